"""Whole exchanges with a server whose answers are spoilt: three laws hold, whatever comes.

What comes of it is an answer, or an error in words. No cookie is printed, logged or stored but
in llm's key store. It ends.

    python tests/test_exchanges.py 5000

tries that many other examples of each kind, which takes hours.
"""

from __future__ import annotations

import copy
import gzip
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click.testing
import llm
import llm.cli
import pytest
import sqlite_utils
from chat_ui import ChatUI, Conversation, Request
from helpers import ask_async, ask_sync, make_logs, only_conversation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_properties import JSON, UPDATES

import llm_huggingchat

MANY = int(os.environ.get("EXAMPLES", "0"))  # of each kind, when it is run by hand
SUITE = settings(
    max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
SESSION, TOKEN = "5e55-10n-of-ada", "70ke-n-of-ada"
WITHIN = 60.0  # seconds that any of this may take, on a busy machine too
QUICK = {
    "read_timeout": 0.5,
    "call_timeout": 2.0,
    "reconnect_timeout": 0.5,
    "backoff": (0.001,),
    "look_again": 0.001,
    "id_timeout": 0.1,
    "stop_timeout": 0.1,
    "store_timeout": 0.5,
    "stop_marker": 0.01,
    "settle_timeout": 0.1,
    "rate_window": 0.01,
    "transcribe_timeout": 2.0,
}


# --- what is spoilt -------------------------------------------------------------------


@dataclass(frozen=True)
class Spoilt:
    """What becomes of one answer. `change` takes its status, headers and body."""

    what: str
    change: Callable[[int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]
    cut: int | None = None  # how much of the whole is sent

    def __call__(self, raw: bytes) -> bytes:
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
        if headers.pop("transfer-encoding", ""):
            body = b"".join(re.split(rb"(?:\A|\r\n)[0-9a-f]+\r\n", body))
        status = int((first.split() or ["", "0"])[1]) if first else 502
        headers.pop("content-length", None)
        status, headers, body = self.change(status, headers, body)
        headers.setdefault("content-length", str(len(body)))
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items())]
        whole = "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body
        return whole if self.cut is None else whole[: self.cut % (len(whole) + 1)]

    def __repr__(self) -> str:
        return self.what


def in_place(value: Any, path: list[int], new: Any, how: str) -> Any:
    """JSON with one value changed: the one that `path` leads to."""
    if not path or not isinstance(value, dict | list) or not value:
        return [new, value] if how == "wrap" else new
    value = copy.copy(value)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    if len(path) == 1 and how == "delete":
        del value[key]
    elif len(path) == 1 and how == "twice" and isinstance(value, list):
        value.insert(key, value[key])
    elif len(path) == 1 and how == "name" and isinstance(value, dict):
        value[str(new)] = value.pop(key)
    else:
        value[key] = in_place(value[key], path[1:], new, how)
    return value


def json_changed(path: list[int], new: Any, how: str, inside: bool, line: int) -> Spoilt:
    def spoil(text: bytes) -> bytes:
        try:
            value = json.loads(text)
        except ValueError:
            return text
        if inside and isinstance(value, dict) and isinstance(value.get("conversation"), str):
            value["conversation"] = spoil(value["conversation"].encode()).decode()
            return json.dumps(value).encode()
        return json.dumps(in_place(value, path, new, how)).encode()

    def change(status: int, headers: dict[str, str], body: bytes) -> Any:
        lines = body.split(b"\n") if "json" not in headers.get("content-type", "x/json") else [body]
        if "jsonl" in headers.get("content-type", "") or len(body.split(b"\n")) > 2:
            lines = body.split(b"\n")
        at = line % len(lines)
        data = lines[at].removeprefix(b"data: ")
        lines[at] = lines[at][: len(lines[at]) - len(data)] + spoil(data)
        return status, headers, b"\n".join(lines)

    return Spoilt(f"json {how} {path} {new!r} in line {line}", change)


def lines_added(line: int, updates: list[Any]) -> Spoilt:
    def change(status: int, headers: dict[str, str], body: bytes) -> Any:
        lines = body.split(b"\n")
        at = line % (len(lines) + 1)
        event = b"data: " if "event-stream" in headers.get("content-type", "") else b""
        more = [
            event + json.dumps(update).encode() + (b"\n" if event else b"") for update in updates
        ]
        return status, headers, b"\n".join([*lines[:at], *more, *lines[at:]])

    return Spoilt(f"lines {updates!r} before line {line}", change)


def with_headers(status: int | None, more: dict[str, str]) -> Spoilt:
    return Spoilt(
        f"{status} {more}", lambda old, headers, body: (status or old, headers | more, body)
    )


def with_body(body: bytes) -> Spoilt:
    return Spoilt(f"body {body!r}", lambda status, headers, _: (status, headers, body))


def with_bytes(at: int, new: bytes) -> Spoilt:
    def change(status: int, headers: dict[str, str], body: bytes) -> Any:
        place = at % (len(body) + 1)
        return status, headers, body[:place] + new + body[place + len(new) :]

    return Spoilt(f"bytes {new!r} at {at}", change)


def cut(at: int) -> Spoilt:
    return Spoilt(f"cut at {at}", lambda *parts: parts, at)


STATUSES = [200, 201, 204, 206, 302, 303, 307, 400, 401, 402, 403, 404, 405, 409, 410, 413, 422]
STATUSES += [429, 500, 501, 502, 503, 504, 599]
LOCATIONS = [
    *("", "/", "/chat/login", "//evil.test/", "http://[", "\x7f", "file:///etc/passwd"),
    *("https://evil.test/login?client_id=1", "http://127.0.0.1:1/"),
    "/chat/login/callback?code=c&state=s",
]
NAMES = [
    *("content-type", "location", "content-disposition", "set-cookie", "retry-after"),
    *("content-encoding", "x-amzn-waf-action", "content-length", "connection"),
]
VALUES = [
    *("text/html", "application/json", "image/png; x", "gzip", "identity", "0", "5", "99999"),
    *("-1", "close", "hf-chat=; Path=/", "hf-chat=new", "challenge", "soon"),
    *("attachment; filename=../../x", "attachment; filename*=utf-8''%0a%1b%2f", *LOCATIONS),
]
HEADERS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES), max_size=3)
ODD = st.sampled_from(
    [
        *("", None, 5, -1, 1e300, True, [], {}, ["x"] * 50, {"id": "\x1b"}),
        *("..", "../../x", "a" * 300, "\x1b[31m", "\ud800", "\0", "<script>", "[[err=500]]"),
        *("\u202e", "2026-13-99T99:99:99Z"),
    ]
)
SPOILT = st.one_of(
    st.builds(
        json_changed,
        st.lists(st.integers(0, 20), max_size=6),
        ODD | JSON,
        st.sampled_from(["put", "put", "delete", "twice", "wrap", "name"]),
        st.booleans(),
        st.integers(0, 30),
    ),
    st.builds(lines_added, st.integers(0, 30), st.lists(UPDATES | JSON, min_size=1, max_size=4)),
    st.builds(with_headers, st.none() | st.sampled_from(STATUSES), HEADERS),
    st.builds(
        with_body, st.binary(max_size=30) | JSON.map(lambda value: json.dumps(value).encode())
    ),
    st.just(with_body(gzip.compress(b"[" * 100_000))),
    st.builds(with_bytes, st.integers(0, 5_000), st.binary(min_size=1, max_size=5)),
    st.builds(cut, st.integers(0, 5_000)),
)
# Which answers are spoilt, counted from the first, and how. The same may happen to all.
PLANS = st.one_of(
    st.dictionaries(st.integers(0, 9), SPOILT, min_size=1, max_size=3),
    SPOILT.map(lambda spoilt: dict.fromkeys(range(1000), spoilt)),
    st.tuples(st.integers(0, 5), SPOILT).map(lambda x: dict.fromkeys(range(x[0], 1000), x[1])),
)


# --- what is done meanwhile -----------------------------------------------------------


def template() -> Conversation:
    """A conversation with a file, a tool, an artifact and a branch."""
    said = '<artifact identifier="clock" type="text/html" title="Clock">\n<p>12</p>\n</artifact>'
    with ChatUI(store_delay=0, delay=0) as chat, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", chat.url)
        first = ask_sync(f"[[file]] [[say]]{said}[[/say]]")
        ask_sync("[[reason]] [[tool]] two", after=first, tools=[llm_huggingchat.WebSearch()])
        ask_sync("three", after=first)
        chat.messages(only_conversation(chat).id)
        return only_conversation(chat)


_template: list[Conversation] = []


@dataclass
class Scene:
    """A server with a conversation, and llm with its cookies."""

    chat: ChatUI
    folder: pathlib.Path
    id: str
    sha: str

    def llm(self, *arguments: str) -> str:
        """Run `llm`; what it printed."""
        result = click.testing.CliRunner().invoke(llm.cli.cli, list(arguments), input="y\ny\n")
        said = result.stdout + result.stderr
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in (0, 1, 2), said
        assert "Traceback" not in said
        if result.exit_code:
            assert re.search(r"^(Error: |Aborted!)", result.stderr, re.MULTILINE), said
        return said

    def command(self, *arguments: str) -> str:
        return self.llm("huggingchat", *arguments)


def told(work: Callable[[], object]) -> str:
    """What a prompt in Python comes to: its text, or the words of an error."""
    try:
        return str(work())
    except llm.ModelError as error:
        said = str(error)
    assert 0 < len(said) < 3_000
    return said


def prompts(ask: Callable[..., llm.Response]) -> Callable[[Scene], str]:
    def work(scene: Scene) -> str:
        def turns() -> str:
            first = ask("one two [[router]]")
            second = ask("[[tool]] three", after=first, tools=[llm_huggingchat.WebSearch()])
            db = sqlite_utils.Database(llm.user_dir() / "logs.db")
            for response in (first, second):
                response.log_to_db(db)
            db.close()
            return first.text() + second.text()

        return told(turns) + scene.llm("logs", "--json")

    return work


def continues(scene: Scene) -> str:
    """Conversations of the web page go on; one prompt after another, whatever became of it."""
    said = [scene.command("import", scene.id), scene.llm("-m", "hf-llama", "-c", "and [[file]]")]
    return "".join(said) + scene.llm("-c", "[[cut=2]] so on") + scene.llm("logs")


def with_files(scene: Scene) -> str:
    path = scene.folder / "dogs.csv"
    path.write_text("Rex,4\n")
    sound = scene.folder / "memo.mp3"
    sound.write_bytes(b"ID3\x04 hello")
    files = [llm.Attachment(path=str(path)), llm.Attachment(path=str(sound))]
    return told(lambda: ask_sync("one [[cut=1]]", attachments=files).text())


def with_a_schema(scene: Scene) -> str:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    return told(lambda: ask_sync("[[json]] Invent a dog", schema=schema).text())


def lists(scene: Scene) -> str:
    return (
        scene.command("conversations", "--json") + scene.command("models") + scene.command("status")
    )


def refreshes(scene: Scene) -> str:
    return scene.command("refresh") + scene.command("models", "--json") + scene.llm("models")


def imports(scene: Scene) -> str:
    said = scene.command("import", "--all", "--branches") + scene.command("import", scene.id)
    return said + scene.llm("logs", "list") + scene.command("conversations")


def exports(scene: Scene) -> str:
    said = scene.command("export", scene.id) + scene.command("export", scene.id, "--format", "json")
    return said + scene.command("export", scene.id, "-o", str(scene.folder / "out.md"))


def sets(scene: Scene) -> str:
    said = scene.command("settings") + scene.command("settings", "hf-llama", "--provider", "novita")
    return said + scene.command("settings", "hf-llama", "--no-artifacts", "--json")


def artifacts(scene: Scene) -> str:
    said = scene.command("artifacts", scene.id) + scene.command("artifacts", scene.id, "--json")
    return said + scene.command("artifacts", scene.id, "-o", str(scene.folder / "pages"), "--all")


def downloads(scene: Scene) -> str:
    link = f"{scene.chat.url}/conversation/{scene.id}/output/{scene.sha}"
    return scene.command("download", link, "-o", str(scene.folder)) + scene.command(
        "download", link, "-o", str(scene.folder / "picture.png")
    )


def shares(scene: Scene) -> str:
    said = scene.command("share", scene.id) + scene.command("rename", scene.id, "Ünder")
    share = scene.chat.url + "/r/" + next(iter(scene.chat.shares), "aBcD123")
    return said + scene.command("import", share) + scene.llm("-f", f"huggingchat:{share}", "hi")


def deletes(scene: Scene) -> str:
    return scene.command("delete", scene.id) + scene.command("delete", "--all", "-y")


def logs_in_again(scene: Scene) -> str:
    """The session has ended, and is renewed."""
    scene.chat.sessions.clear()
    return scene.command("conversations") + prompts(ask_sync)(scene) + scene.command("status")


SCENES: dict[str, Callable[[Scene], str]] = {
    "sync": prompts(ask_sync),
    "async": prompts(ask_async),
    **{
        work.__name__: work
        for work in (
            *(continues, with_files, with_a_schema, lists, refreshes, imports, exports, sets),
            *(artifacts, downloads, shares, deletes, logs_in_again),
        )
    },
}


# --- the laws -------------------------------------------------------------------------


class Everything(logging.Handler):
    """What Python's logs are told."""

    def __init__(self) -> None:
        super().__init__(0)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


def play(work: Callable[[Scene], str], plan: dict[int, Spoilt], wants: str = "") -> None:
    """Do something with a server whose answers are spoilt, and see that the laws hold."""
    if not _template:
        _template.append(template())
    base = tempfile.mkdtemp()
    logger, everything = logging.getLogger(), Everything()
    level = logger.level
    sessions = {SESSION: ("ada", TOKEN)}
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        ChatUI(login_required=True, sessions=sessions, store_delay=0, delay=0) as chat,
    ):
        for name, value in QUICK.items():
            monkeypatch.setattr(llm_huggingchat.limits, name, value)
        user = pathlib.Path(base, "llm")
        user.mkdir()
        folder = pathlib.Path(base, "folder")
        folder.mkdir()
        monkeypatch.setenv("LLM_USER_PATH", str(user))
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", chat.url)
        monkeypatch.setenv("LLM_RAISE_ERRORS", "")
        make_logs()
        key = json.dumps({"hf-chat": SESSION, "token": TOKEN})
        llm_huggingchat.keep_key(f"huggingchat:127.0.0.1:{chat.port}", key)
        old = _template[0]
        conversation = chat.add_conversation(
            "ada", old.model, old.preprompt, messages=old.messages, title=old.title, files=old.files
        )
        chat.tokens[TOKEN] = "ada"
        chat.login_wants = wants
        answered = 0

        def spoil(request: Request, raw: bytes) -> bytes:
            nonlocal answered
            with chat.lock:
                number, answered = answered, answered + 1
            return plan[number](raw) if number in plan else raw

        chat.spoil = spoil
        logger.addHandler(everything)
        logger.setLevel(0)
        begun = time.monotonic()
        try:
            said = work(Scene(chat, folder, conversation.id, next(iter(old.files))))
        finally:
            logger.removeHandler(everything)
            logger.setLevel(level)
            llm_huggingchat._background.close()
            llm_huggingchat._anonymous.clear()
            llm_huggingchat._successors.clear()
            llm_huggingchat._gates.clear()
        assert time.monotonic() - begun < WITHIN
        stored = b"".join(
            path.read_bytes()
            for path in pathlib.Path(base).rglob("*")
            if path.is_file() and path.name != "keys.json"
        )
        for secret in (TOKEN, *chat.sessions, SESSION):
            assert secret not in said
            assert secret not in "".join(everything.said)
            assert secret.encode() not in stored
        assert {path.name for path in pathlib.Path(base).iterdir()} == {"llm", "folder"}
    shutil.rmtree(base)


@pytest.mark.parametrize("name", SCENES)
def test_nothing_is_spoilt(name: str) -> None:
    """So that the others test what they are to test."""
    play(SCENES[name], {})


@settings(SUITE if not MANY else settings(SUITE, max_examples=MANY, derandomize=False))
@given(plan=PLANS, wants=st.sampled_from(["", "", "consent", "http://127.0.0.2:9/x"]))
@pytest.mark.parametrize("name", SCENES)
def test_whatever_comes(name: str, plan: dict[int, Spoilt], wants: str) -> None:
    play(SCENES[name], plan, wants)


if __name__ == "__main__":
    number = sys.argv[1] if len(sys.argv) > 1 else "1000"
    os.environ["EXAMPLES"] = number
    sys.exit(pytest.main([__file__, "-q", "-k", "whatever", "-n", "2", *sys.argv[2:]]))
