"""What more than one test file uses: prompts both ways, llm's command line, the server's view."""

import asyncio
import concurrent.futures
import contextlib
import functools
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click.testing
import llm
import llm.cli
import llm.migrations
import pytest
import sqlite_utils
from chat_ui import ChatUI, Conversation, Message, Request

TurnRequest = Callable[..., llm.Response]
LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
QWEN = "Qwen/Qwen3.8-2.4T-A95B"
# Of Ada, who may use a `guarded` server.
SESSION, TOKEN = "11111111-2222-4333-8444-555555555555", "t-ada-0123456789abcdef"
COOKIES = f"hf-chat={SESSION}; token={TOKEN}"


def ask_sync(
    prompt: str | None = None,
    *,
    model: str = "hf-llama-3.3-70b-instruct",
    after: llm.Response | None = None,
    **options: Any,
) -> llm.Response:
    """An answer, all of it; `after` an earlier one, if given."""
    chat = llm.get_model(model)
    if after:
        response = llm.Response.from_dict(after.to_dict(), model=chat).reply(prompt, **options)
    else:
        response = chat.prompt(prompt, **options)
    response.text()
    return response


def ask_async(
    prompt: str | None = None,
    *,
    model: str = "hf-llama-3.3-70b-instruct",
    after: llm.Response | None = None,
    **options: Any,
) -> llm.Response:
    """The same through asyncio, in an event loop of its own."""

    async def answer() -> llm.Response:
        chat = llm.get_async_model(model)
        if after:
            earlier = llm.AsyncResponse.from_dict(after.to_dict(), model=chat)
            response = await earlier.reply(prompt, **options)
        else:
            response = chat.prompt(prompt, **options)
        return await response.to_sync_response()

    return asyncio.run(answer())


both = pytest.mark.parametrize(
    "ask", [pytest.param(ask_sync, id="sync"), pytest.param(ask_async, id="async")]
)


@functools.cache
def empty_logs() -> bytes:
    """llm's logs as they are when new: making them takes longer than all else in a test."""
    db = sqlite_utils.Database(memory=True)
    llm.migrations.migrate(db)
    return bytes(db.conn.serialize())


def make_logs() -> None:
    """Let llm have logs."""
    logs = llm.user_dir() / "logs.db"
    if not logs.exists():
        logs.write_bytes(empty_logs())


def run(*arguments: str, input: str | bytes | None = None, status: int = 0) -> Any:
    """Run `llm` with these arguments, in this process: click's result, which has no secret."""
    make_logs()
    result = click.testing.CliRunner().invoke(llm.cli.cli, list(arguments), input=input)
    assert result.exit_code == status, (result.output, result.exception)
    assert not any(secret in result.output for secret in (SESSION, TOKEN, "s-bob", "t-bob"))
    return result


def failure(*arguments: str, input: str | bytes | None = None) -> str:
    """What `llm` says when it fails: one or two lines, on standard error only."""
    result = run(*arguments, input=input, status=1)
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    return str(result.stderr)


def error_of(ask: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Why a prompt fails: one or two lines without HTML, control characters or cookies."""
    with pytest.raises(llm.ModelError) as caught:
        ask(*arguments, **options)
    said = str(caught.value)
    assert 0 < len(said.splitlines()) <= 2
    assert not re.search(r"(?i)<(!doctype|html)|[\x00-\x09\x0b-\x1f\x7f]", said)
    assert not any(secret in said for secret in (SESSION, TOKEN))
    return said


def parts(response: llm.Response) -> list[dict[str, Any]]:
    """What an answer consists of, without what differs from one run to the next."""
    found = [part.to_dict() for message in response.messages() for part in message.parts]
    for part in found:
        part.pop("provider_metadata", None)
        part.pop("tool_call_id", None)
    return found


def reasoning(response: llm.Response) -> str:
    """What the model thought."""
    return "".join(part["text"] for part in parts(response) if part["type"] == "reasoning")


def kept(response: llm.Response) -> dict[str, Any]:
    """What the last part of an answer keeps for the next turn."""
    metadata = response.messages()[-1].parts[-1].provider_metadata
    assert metadata
    return dict(metadata["huggingchat"])


def described(response: llm.Response) -> dict[str, Any]:
    """What an answer says of itself."""
    value = response.json()
    assert value
    return dict(value["huggingchat"])


def logged(*arguments: str) -> list[dict[str, Any]]:
    """`llm logs --json`, the oldest first."""
    return list(json.loads(run("logs", "--json", "-n", "0", *arguments).stdout))


def host(server: ChatUI) -> str:
    """The server's host and port, as the key store names it."""
    return f"127.0.0.1:{server.port}"


def use(server: ChatUI, key: str) -> None:
    """Keep a key for the server."""
    run("keys", "set", f"huggingchat:{host(server)}", "--value", key)


def keys() -> dict[str, Any]:
    """llm's key store."""
    path = llm.user_dir() / "keys.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def kept_files() -> list[pathlib.Path]:
    """All files in llm's directory but the key store."""
    return [p for p in llm.user_dir().rglob("*") if p.is_file() and p.name != "keys.json"]


def seen(text: str) -> list[tuple[str, str]]:
    """What a [[history]] answer says that the model saw: roles and contents."""
    return [(message["role"], message["content"]) for message in json.loads(text)]


def stored(server: ChatUI) -> list[str]:
    """What the messages of the one conversation say, once all that has ended is stored."""
    id = only_conversation(server).id
    return [message["content"] for message in server.messages(id)[1:]]


def calls(server: ChatUI) -> list[tuple[str, str]]:
    """Method and path of every request but the catalogue's, in order."""
    return [(r.method, r.path) for r in list(server.log) if r.path != "/api/v2/models"]


def sends(server: ChatUI) -> list[Request]:
    """The requests that sent a message."""
    return [request for request in list(server.log) if request.data is not None]


def only_conversation(server: ChatUI) -> Conversation:
    """The one conversation that the server has."""
    (conversation,) = server.conversations.values()
    return conversation


def page(server: ChatUI) -> str:
    """The address of the one conversation."""
    return f"{server.url}/conversation/{only_conversation(server).id}"


def tree(server: ChatUI, conversation_id: str = "") -> dict[str, Any]:
    """The stored questions as a tree: each with what was asked after its answers."""
    id = conversation_id or only_conversation(server).id
    messages = {message["id"]: message for message in server.messages(id)}

    def below(message: Message) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for child in (messages[id] for id in message["children"]):
            found.update({child["content"]: below(child)} if child["from"] == "user" else {})
            found.update(below(child) if child["from"] == "assistant" else {})
        return found

    (root,) = (message for message in messages.values() if not message["ancestors"])
    return below(root)


def default_signals() -> None:
    """For a new process: signals do what they do in a terminal, however the tests were started.

    Whoever runs them in the background may have them ignore Ctrl-C or SIGHUP, and processes
    inherit that.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


# How long what is not to be waited for would take, and how long a test waits for what is there at
# once: on the busiest machine the one is not taken for the other.
NEVER, AT_ONCE = 600.0, 60.0

# For a new process: all that the module might wait for takes for ever. In asyncio's debug mode
# nothing is said of how long its callbacks take.
PATIENT = (
    "import logging; logging.getLogger('asyncio').setLevel('ERROR')\n"
    "import llm_huggingchat as module\n"
    f"limits = module.limits; limits.read_timeout = limits.reconnect_timeout = {NEVER}\n"
    f"limits.call_timeout = limits.store_timeout = {NEVER}\n"
)


def on_a_terminal(stream: str, *arguments: str) -> str:
    """`llm` with "stdout" or "stderr" on a terminal: what that shows."""
    make_logs()
    ours, theirs = os.openpty()  # not on Windows
    with open(theirs, "w") as screen, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, stream, screen)
        patch.setattr(sys, "stdin", io.StringIO())
        llm.cli.cli(list(arguments), standalone_mode=False)
        screen.write(".")  # something to read
        screen.flush()
        shown = os.read(ours, 10_000)
    os.close(ours)
    return shown.decode().replace("\r\n", "\n").removesuffix(".")  # as a terminal ends lines


@contextlib.contextmanager
def soon() -> Iterator[None]:
    """What is done here waits for nothing that takes for ever."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < AT_ONCE


@contextlib.contextmanager
def meanwhile(
    work: Callable[..., Any], *arguments: Any, **options: Any
) -> Iterator[concurrent.futures.Future[Any]]:
    """Do something in another thread during this block: as a second terminal does."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield pool.submit(work, *arguments, **options)


def new_process(*arguments: str) -> subprocess.Popen[str]:
    """Python in a process of its own."""
    make_logs()
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals if os.name == "posix" else None,
    )


def command(*arguments: str) -> subprocess.Popen[str]:
    """`llm` in a process of its own."""
    return new_process("-c", f"{PATIENT}from llm.cli import cli\ncli()", *arguments)


def wait_for(condition: Callable[[], object], seconds: float = AT_ONCE) -> None:
    """Wait until something holds, which it has to."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


async def until(condition: Callable[[], object]) -> None:
    """The same, while the loop goes on."""
    await asyncio.to_thread(wait_for, condition)
