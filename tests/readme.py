"""What the documentation shows that is not written by hand: commands, aliases, the picture.

    cog -r -I tests README.md docs/models.md
    python tests/readme.py

The first writes the list of commands and the table of aliases, the second `docs/terminal.svg`: what
a terminal shows of real commands against the stand-in of `chat_ui.py`. Only what the models say is
made up, below, and the server's address and ids are those of no server.
"""

import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from unittest import mock

import chat_ui
import chat_ui_runs
import click
import llm.cli
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

import llm_huggingchat

HERE = pathlib.Path(__file__).parent
PICTURE = HERE.parent / "docs" / "terminal.svg"


# --- into the pages, by cog -----------------------------------------------------------


def command_list() -> str:
    """Each command of `llm huggingchat`, with the first line of its help."""
    group = llm.cli.cli.commands["huggingchat"]
    assert isinstance(group, click.Group)
    width = max(map(len, group.commands))
    lines = (
        f"{name:{width}}  {command.get_short_help_str(200)}"
        for name, command in group.commands.items()
    )
    return "\n".join(["```", *lines, "```"])


def alias_table() -> str:
    """The short aliases of the built-in list, and what their models do by themselves."""
    models = {model.id: model for model in llm_huggingchat.BUILT_IN}
    aliases = llm_huggingchat.aliases(models.values())
    own = {f"hf-{model.name.lower()}" for model in models.values() if not model.router}
    rows = ["| alias | model | thinks | writes artifacts |", "| --- | --- | --- | --- |"]
    for alias in sorted(aliases.keys() - own):
        model = models[aliases[alias]]
        marks = ("yes" if able else "" for able in (model.reasoning, model.artifacts))
        rows.append(f"| `{alias}` | {model.id} | {' | '.join(marks)} |")
    return "\n".join(rows)


# --- a model with something to say ----------------------------------------------------

CLOCK = """<artifact identifier="clock" type="html" title="A clock">
<h1 id="time"></h1>
<script>
  setInterval(() => { time.textContent = new Date().toLocaleTimeString() }, 500)
</script>
</artifact>"""
ANSWERS = {
    "Is 3,599 prime?": "<think>3,599 is 3,600 − 1, so it is 60² − 1² = (60 − 1)(60 + 1).</think>"
    "No, it is 59 × 61.",
    "And 3,601?": "<think>7 leaves 3, 11 leaves 4, 13 leaves nothing: 13 × 277.</think>"
    "Neither is that: it is 13 × 277.",
    "Invent a dog": '{"name": "Biscuit", "age": 4}',
    "Invent three dogs": '{"items": [{"name": "Biscuit", "age": 4}, {"name": "Ada", "age": 9},'
    ' {"name": "Rex", "age": 1}]}',
    "What is 1234 + 5678?": '<tool_call>{"name": "add", "arguments": {"a": 1234, "b": 5678}}'
    "</tool_call>",
    "A clock as a web page": CLOCK,
}


def said(prompt: chat_ui_runs.Prompt) -> list[str]:
    """What the model says, token by token."""
    question = prompt.seen[-1]["content"]
    for asked, answer in ANSWERS.items():
        if question.endswith(asked):
            return re.findall(r"(?s)\s*\S+", answer)
    return PARROT(prompt)


PARROT = chat_ui_runs.tokens


# --- the picture ----------------------------------------------------------------------

COMMANDS = """
llm -m hf-deepseek "Is 3,599 prime?"
llm -c "And 3,601?"
llm huggingchat open --print
llm -m hf-llama --schema 'name, age int' 'Invent a dog'
llm -m hf-deepseek -x "A clock as a web page" > clock.html
llm huggingchat artifacts
llm huggingchat conversations
"""
COLUMNS = 98
DARK, RED, GREEN, YELLOW = (24, 26, 31), (224, 108, 117), (152, 195, 121), (229, 192, 123)
BLUE, MAGENTA, CYAN, LIGHT = (97, 175, 239), (198, 120, 221), (86, 182, 194), (220, 223, 228)
COLOURS = TerminalTheme(DARK, LIGHT, [DARK, RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN, LIGHT])


def in_terminal(command: str, environment: dict[str, str], folder: str) -> str:
    """What a terminal gets from a command, escape sequences and all."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command, shell=True, env=environment, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux: the other end is closed
        while piece := os.read(ours, 10_000):
            shown += piece
    os.close(ours)
    if process.wait():
        raise SystemExit(f"{command}: {shown.decode()}")
    return shown.decode().replace("\r\n", "\n")


def session() -> Iterator[str]:
    """What a terminal shows: each command, and what comes of it."""
    with (
        mock.patch.object(chat_ui_runs, "tokens", said),
        tempfile.TemporaryDirectory(prefix="llm-") as folder,
        chat_ui.ChatUI() as chat,
    ):
        environment = os.environ | {
            "LLM_USER_PATH": folder,
            "LLM_HUGGINGCHAT_URL": chat.url,
            "LLM_HUGGINGCHAT_KEY": "",
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": str(COLUMNS),
            "TERM": "xterm-256color",
        }
        for number, command in enumerate(COMMANDS.strip().splitlines()):
            yield "\n" if number else ""
            yield f"\x1b[1;32m$\x1b[0m \x1b[1m{command}\x1b[0m\n"
            shown = in_terminal(command, environment, folder)
            shown = shown.replace(chat.url, llm_huggingchat.SERVICE)
            for index, id in enumerate(chat.conversations):
                chat.messages(id)  # it is stored now
                shown = shown.replace(id, f"6b039392759aa03066f11{index:03x}")
            yield shown


def picture() -> str:
    """The session as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    # Reasoning is dim piece by piece, and how it is cut differs from time to time.
    shown = "".join(session()).replace("\x1b[0m\x1b[2m", "")
    console.print(Text.from_ansi(shown))
    svg = console.export_svg(title="llm-huggingchat", theme=COLOURS, unique_id="terminal")
    # No font is fetched from anywhere.
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    PICTURE.write_text(picture(), "utf-8")
