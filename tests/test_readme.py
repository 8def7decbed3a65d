"""README.md holds what it should: what is generated, where links lead, what commands print."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import re
import shlex
import subprocess
import sys

import chat_ui
import pytest
import readme
from chat_ui import ChatUI
from cogapp import Cog  # type: ignore[import-untyped]
from helpers import run
from test_audio import recording

from llm_huggingchat import SERVICE

README = pathlib.Path(__file__).parent.parent / "README.md"
TEXT = README.read_text("utf-8")
TOKEN = "token=t-ada"


def test_what_is_generated_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    tests = str(README.parent / "tests")
    status = Cog().main(["cog", "--check", "--diff", "-I", tests, str(README)])
    assert status == 0, f"{capsys.readouterr().out}\nRun: cog -r -I tests README.md"


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"(?m)^#+ (.*)$", TEXT)
    anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in headings}
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXT):
        if link.startswith("#"):
            assert link[1:] in anchors
        elif "://" not in link:
            assert (README.parent / link).exists(), link


@pytest.fixture
def service(server: ChatUI, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ChatUI:
    """A server with logins, which says what README.md says that it says; and files to send."""
    server.login_required = True
    server.store_delay = 0.0  # what a command prints does not depend on it
    server.tokens["t-ada"] = "ada"
    for model in server.models:
        model["supportsArtifacts"] = model["id"].startswith("deepseek-ai/DeepSeek-V4")
    monkeypatch.setattr(chat_ui, "tokens", readme.said)
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(
        "PATH", os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    )
    monkeypatch.setenv("DOCS_TOKEN", "sesame")
    pathlib.Path("notes.txt").write_text("Buy bread")
    pathlib.Path("table.csv").write_text("a,b\n1,2\n")
    pathlib.Path("photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" + bytes(20))
    pathlib.Path("memo.mp3").write_bytes(recording())
    pathlib.Path("cookies.txt").write_text(TOKEN)
    return server


# What needs another server, a shell's loop, a package or a browser, or has no real names in it.
ELSEWHERE = re.compile(
    r"^(pip|python|cog|export|for|cat >>|-|  |END)|llm install|--browser|keys set huggingface"
    r"|SQLite\(|And who is older|example\.org|hf-api|ID/output"
)


def shown(server: ChatUI, command: str) -> str:
    """Run a command of README.md; what it prints. Where it shows an id, there is a real one."""
    ids = list(server.conversations)
    share = next(iter(server.shares), "")
    command = re.sub(r"6b03[0-9a-f]{20}", ids[-1] if ids else "", command)
    command = command.replace(f"{SERVICE}/r/aBcD123", f"{server.url}/r/{share}")
    words = shlex.split(command)
    if words[0] == "llm" and not {"<", ">", "|"} & set(words):
        typed = {"login": TOKEN, "delete": "y\n", "chat": "hello\nexit\n"}
        input = next((typed[word] for word in words[1:3] if word in typed), "")
        return str(run(*words[1:], input=input).output)
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def as_on_the_service(server: ChatUI, text: str) -> str:
    """What a command printed, as it would be on the service; one id and one age for all."""
    own = f"huggingchat:127.0.0.1:{server.port}"
    text = text.replace(server.url, SERVICE).replace(own, "huggingchat")
    text = re.sub(r"\b[0-9a-f]{24}\b", "ID", text)
    return re.sub(r" +(just now|\d+ minutes? ago)", " AGE", text)


def test_commands_work_and_print_what_is_shown(service: ChatUI) -> None:
    for block in readme.blocks(TEXT):
        printed = ""
        for command in block.commands:
            if ELSEWHERE.search(command):
                continue
            if not service.shares and "aBcD123" in command:
                run("huggingchat", "share", next(iter(service.conversations)))
            printed = shown(service, command)
            for id in list(service.conversations):
                service.messages(id)  # it is stored
            if "logout" in command:
                run("huggingchat", "login", input=TOKEN)
        if block.output is not None:
            wanted = as_on_the_service(service, block.output)
            assert as_on_the_service(service, printed) == wanted, block.commands


def test_python_works(service: ChatUI) -> None:
    run("huggingchat", "login", input=TOKEN)
    for program in re.findall(r"(?ms)^```python\n(.*?)^```$", TEXT):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(program, "README.md", "exec"), {})
        assert "You said: " in printed.getvalue()


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="no terminals")
def test_picture_shows_what_a_terminal_shows() -> None:
    def texts(svg: str) -> list[str]:
        return re.findall(r"<text [^>]*>([^<]*)</text>", svg)

    made = texts(readme.picture())
    assert made == texts(readme.PICTURE.read_text("utf-8")), "Run: python tests/readme.py"
