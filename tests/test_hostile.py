"""Hostile servers and hostile files: nothing is destroyed, leaked, or broken for good."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import llm
import pytest
import sqlite_utils
from chat_ui import ChatUI, Conversation, Fault
from helpers import Ask, both, logged, make_logs, only_conversation, run

import llm_huggingchat
from llm_huggingchat import event_of, read_json


def stored_conversation(server: ChatUI) -> Conversation:
    """The one conversation that the server has, once its answer is stored."""
    conversation = only_conversation(server)
    server.messages(conversation.id)
    return conversation


def answer_of(conversation: Conversation) -> dict[str, Any]:
    """The stored answer of a conversation with one turn: a test changes it."""
    return next(m for m in conversation.messages if m["from"] == "assistant")


def database() -> sqlite_utils.Database:
    make_logs()
    return sqlite_utils.Database(llm.user_dir() / "logs.db")


# --- JSON that is none ----------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "-Infinity", "[1e999]", '{"a": -1e999}', "[" * 100_000, "", "\xff"]
)
def test_json_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_json(text)
    with pytest.raises(ValueError):  # noqa: PT011
        read_json(text.encode("latin-1"))


def test_json_is_read_as_ever() -> None:
    text = ' {"a": [1, -2.5e3, "\\ud83d\\ude00", null, true], "b": 1e-999}\n'
    assert read_json(text) == read_json(text.encode()) == json.loads(text)


LONG = "x" * llm_huggingchat.LARGE


@pytest.mark.parametrize("text", ["NaN", "[1e999]", "[" * 100_000, "1 2", "1,", ",", "", "1} {"])
def test_long_conversation_that_is_no_json_is_refused(text: str) -> None:
    for shape in ('{{"a": "{}", "messages": [{}]}}', '{{"a": "{}", "messages": [1, {}'):
        with pytest.raises(ValueError):  # noqa: PT011
            read_json(shape.format(LONG, text or "1, "))


@pytest.mark.parametrize(
    "text",
    [
        '{"json": {"messages" :\n[ {"a": []} ,\t2 ]}, "meta": {}}',
        '{"messages": []}',
        '{"messages": [ ]}',
        '{"x": {"messages": [1]}, "messages": []}',
        '{"x\\"messages": [1], "messages": [2]}',
        '[{"messages": [1]}]',
        '{"messages": [1], "messages": [2]}',
    ],
)
def test_long_json_is_read_as_ever(text: str) -> None:
    text += " " * llm_huggingchat.LARGE
    assert read_json(text) == read_json(text.encode()) == json.loads(text)


NO_NUMBERS = ['{"x": 1e999}', '{"x": NaN}', '{"x": [-Infinity]}']


@pytest.mark.parametrize("raw", NO_NUMBERS)
def test_arguments_that_are_no_json_give_way_to_the_others(raw: str) -> None:
    call = {"name": "n", "parameters": {"kept": 1}}
    event = event_of(
        {"type": "tool", "subtype": "call", "uuid": "u", "call": call, "argumentsRaw": raw}
    )
    assert event == llm_huggingchat.Called("u", "n", {"kept": 1})


@pytest.mark.parametrize("raw", NO_NUMBERS)
def test_number_that_is_none_from_a_shared_conversation(server: ChatUI, raw: str) -> None:
    run("-m", "hf-llama", "-T", "WebSearch", "[[tool]] hello", "-n")
    conversation = stored_conversation(server)
    for update in answer_of(conversation)["updates"]:
        if "argumentsRaw" in update:
            update["argumentsRaw"] = raw
    run("huggingchat", "import", conversation.id)
    for (payload,) in database().execute("select payload from parts where payload > ''"):
        read_json(payload)
    (entry,) = logged()
    assert entry["tool_calls"][0]["arguments"] == {"query": "chat-ui"}
    run("huggingchat", "conversations")


@pytest.mark.parametrize("value", ["Infinity", "NaN", "-Infinity", "[" * 3000 + "]" * 3000])
def test_logs_that_hold_what_is_no_json_can_be_used(server: ChatUI, value: str) -> None:
    run("-m", "hf-llama", "-T", "WebSearch", "[[tool]] hello")
    id = stored_conversation(server).id
    db = database()
    db.execute(
        "update parts set payload = replace(payload, '\"chat-ui\"', ?)",
        [f'{{"huggingchat": {value}}}'],
    )
    db.conn.commit()
    assert db.execute("select count(*) from parts where not json_valid(payload)").fetchone()[0]
    assert id in run("huggingchat", "open", "--print").stdout
    assert f"{id} *" in run("huggingchat", "conversations").stdout
    assert " 0 turns added" in run("huggingchat", "import", id).stdout


# --- attachments' addresses -----------------------------------------------------------


@pytest.fixture
def raw() -> Iterator[tuple[int, list[bytes]]]:
    """A port where somebody listens: its number, and what every connection said."""
    heard: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"220 hello\r\n")  # ftp lets the server speak first
            heard.append(self.request.recv(1000))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield listening.server_address[1], heard
        listening.shutdown()
        thread.join()


ADDRESSES = ["gopher://127.0.0.1:{}/_chosen", "dict://127.0.0.1:{}/chosen", "file:///etc/passwd"]


@both
@pytest.mark.parametrize("address", [*ADDRESSES, "/etc/passwd", "127.0.0.1:{}", "http:/x", " "])
def test_attachment_comes_over_http_alone(
    server: ChatUI, ask: Ask, raw: tuple[int, list[bytes]], address: str
) -> None:
    port, heard = raw
    attachment = llm.Attachment(type="text/plain", url=address.format(port))
    with pytest.raises(llm.ModelError, match="http"):
        ask("hello", attachments=[attachment])
    assert heard == server.log == []


@both
@pytest.mark.parametrize("address", [*ADDRESSES, "ftp://127.0.0.1:{}/a.txt"])
def test_attachment_is_not_redirected_to_another_protocol(
    server: ChatUI, ask: Ask, raw: tuple[int, list[bytes]], address: str
) -> None:
    port, heard = raw
    elsewhere = (("location", address.format(port)),)
    server.faults["GET", "/a.txt"] = [Fault(status=302, headers=elsewhere)]
    with pytest.raises(llm.ModelError, match="cannot be fetched"):
        ask("hello", attachments=[llm.Attachment(type="text/plain", url=f"{server.url}/a.txt")])
    assert heard == []
    assert server.conversations == {}
