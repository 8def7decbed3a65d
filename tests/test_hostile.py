"""Hostile servers and hostile files: nothing is destroyed, leaked, or broken for good."""

from __future__ import annotations

import errno
import json
import math
import os
import pathlib
import re
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import llm
import pytest
import sqlite_utils
from chat_ui import PICTURE, ChatUI, Conversation, Fault
from helpers import (
    TurnRequest,
    both,
    failure,
    logged,
    make_logs,
    only_conversation,
    run,
    sends,
    soon,
)
from llm.parts import Message, TextPart

import llm_huggingchat
from llm_huggingchat import (
    MCP,
    SERVICE,
    Parent,
    event_of,
    find_key,
    keep_key,
    known_id,
    load_catalogue,
    parent_of,
    parse_server,
    read_json,
)


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
    assert event == llm_huggingchat.ToolCall("u", "n", {"kept": 1})


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


@pytest.mark.parametrize("metadata", [["huggingchat"], 5, "huggingchat", {"huggingchat": [1]}])
def test_answer_with_odd_metadata_is_one_from_elsewhere(metadata: Any) -> None:
    part = TextPart(text="hi", provider_metadata=metadata)
    assert parent_of(Message("assistant", [part]), "http://127.0.0.1") is None


@pytest.mark.parametrize("name", ["conversation_id", "server"])
def test_row_with_half_an_emoji_keeps_no_other_from_being_read(server: ChatUI, name: str) -> None:
    run("-m", "hf-llama", "one")
    id = stored_conversation(server).id
    db = database()
    metadata = {"server": server.url, "conversation_id": "c"} | {name: "\ud800"}
    payload = json.dumps({"provider_metadata": {"huggingchat": metadata}})
    (tip,) = db.execute("select tip_message_hash from turns").fetchone()
    db.table("parts").insert(
        {"message_hash": tip, "position": -1, "type": "reasoning", "payload": payload}
    )
    db.conn.commit()
    assert f"{id} *" in run("huggingchat", "conversations").stdout
    assert id in run("huggingchat", "open", "--print").stdout
    db.execute("update parts set position = 99 where position = -1")
    db.conn.commit()
    said = failure("huggingchat", "open", "--print")
    assert "hold no conversation" in said or "cannot be the chat server's address" in said


@pytest.mark.parametrize(
    "damage", ["delete from messages", "update messages set parent_hash = 'there is none'"]
)
def test_import_into_logs_that_are_not_whole(server: ChatUI, damage: str) -> None:
    run("-m", "hf-llama", "one")
    run("-c", "two", "-n")
    id = stored_conversation(server).id
    db = database()
    db.execute("pragma foreign_keys = off")
    db.execute(damage)
    db.conn.commit()
    assert "cannot be read, so nothing can be added" in failure("huggingchat", "import", id)


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
@pytest.mark.parametrize("address", [*ADDRESSES, "ftp://127.0.0.1:{}/a.txt"])
def test_attachment_is_not_redirected_to_another_protocol(
    server: ChatUI, ask: TurnRequest, raw: tuple[int, list[bytes]], address: str
) -> None:
    port, heard = raw
    elsewhere = (("location", address.format(port)),)
    server.faults["GET", "/a.txt"] = [Fault(status=302, headers=elsewhere)]
    with pytest.raises(llm.ModelError, match="cannot be fetched"):
        ask("hello", attachments=[llm.Attachment(type="text/plain", url=f"{server.url}/a.txt")])
    assert heard == []
    assert server.conversations == {}


@both
@pytest.mark.skipif(os.name != "posix", reason="no pipes with names")
@pytest.mark.parametrize("type", ["text/plain", "audio/wav"])
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_attachment_that_is_no_file_is_not_waited_for(
    server: ChatUI, ask: TurnRequest, type: str, kind: str, tmp_path: pathlib.Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    path = {"pipe": str(pipe), "device": "/dev/zero", "directory": str(tmp_path)}[kind]
    with soon(), pytest.raises(llm.ModelError, match="cannot be read"):
        ask("hello", attachments=[llm.Attachment(type=type, path=path)])
    assert server.log == []


# --- files that somebody asked for ----------------------------------------------------


def export_of(server: ChatUI) -> tuple[list[str], bytes]:
    """A command that writes an export, and what it writes."""
    run("-m", "hf-llama", "[[file]] hello", "-n")
    command = ["huggingchat", "export", stored_conversation(server).id]
    return command, run(*command).stdout_bytes


def download_of(server: ChatUI) -> tuple[list[str], bytes]:
    """A command that downloads a file of an answer, and the file."""
    answer = run("-m", "hf-llama", "[[file]] hello", "-n").stdout
    (link,) = re.findall(r"\((http[^)]*)\)", answer)
    return ["huggingchat", "download", link], PICTURE


Writing = Callable[[ChatUI], tuple[list[str], bytes]]
writing = pytest.mark.parametrize(
    "writing", [pytest.param(export_of, id="export"), pytest.param(download_of, id="download")]
)


@writing
def test_link_stays_a_link(server: ChatUI, tmp_path: pathlib.Path, writing: Writing) -> None:
    command, content = writing(server)
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to("real")
    for _ in range(2):  # nothing is there at first
        run(*command, "-o", str(link), input="y\n")
        assert link.is_symlink()
        assert real.read_bytes() == content
        real.write_text("mine")
    other = tmp_path / "other"
    os.link(real, other)
    run(*command, "-o", str(real), input="y\n")
    assert real.read_bytes() == other.read_bytes() == content


@writing
def test_dash_is_standard_output(
    server: ChatUI, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, writing: Writing
) -> None:
    command, content = writing(server)
    monkeypatch.chdir(tmp_path)
    assert run(*command, "-o", "-").stdout_bytes == content
    assert not (tmp_path / "-").exists()


@writing
def test_file_that_cannot_be_written_whole_stays_as_it_was(
    server: ChatUI, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, writing: Writing
) -> None:
    command, _ = writing(server)
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / "file"
    file.write_text("mine")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", full)
    shown = run(*command, "-o", str(file), input="y\n", status=1)
    assert "Error: No space left on device" in shown.stderr
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert file.read_text() == "mine"


# --- files of our own -----------------------------------------------------------------




# --- cookies and secrets --------------------------------------------------------------

ELSEWHERE = "https://chat.example.org"
SECRET = "sesame-sesame"


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        (f"hf-chat={SECRET}", ()),
        ("", ("--key", "huggingchat")),
        ("", ("--key", "huggingchat:huggingface.example")),
    ],
)
def test_cookies_of_the_service_are_not_for_another_host(
    user_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, key: str, arguments: tuple[str, ...]
) -> None:
    for name in ("huggingchat", "huggingchat:huggingface.example"):
        keep_key(name, f"hf-chat={SECRET}")
    monkeypatch.setenv(llm_huggingchat.SERVER_VARIABLE, ELSEWHERE)
    monkeypatch.setenv(llm_huggingchat.KEY_VARIABLE, key)
    said = failure("-m", "hf-llama", "hello", *arguments)
    assert "llm keys set huggingchat:chat.example.org" in said
    assert SECRET not in said
    if key:
        for command in ("status", "conversations"):
            shown = run("huggingchat", command, status=1).output
            assert "llm keys set huggingchat:chat.example.org" in shown
            assert SECRET not in shown


def test_cookies_of_the_service_are_for_the_service_and_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_key("huggingchat", "of-the-service")
    keep_key("huggingchat:chat.example.org", "of-the-other")
    monkeypatch.setenv(llm_huggingchat.KEY_VARIABLE, "of-the-environment")
    service, near, other = map(parse_server, (SERVICE, "http://localhost:1", ELSEWHERE))
    assert find_key(near)[0] == "of-the-environment"
    assert find_key(near, "huggingchat")[0] == "of-the-service"
    assert find_key(service, "huggingchat")[0] == find_key(service)[0] == "of-the-service"
    assert find_key(other)[0] == "of-the-other"
    assert find_key(other, "huggingchat:chat.example.org")[0] == "of-the-other"
    assert find_key(other, "hf-chat=typed")[0] == "hf-chat=typed"


def selected_servers(server: ChatUI) -> list[dict[str, Any]]:
    return [s for request in sends(server) for s in (request.data or {})["selectedMcpServers"]]


@both
@pytest.mark.parametrize(
    "url",
    [
        f"https://ann:{SECRET}@mcp.example/x",
        f"https://{SECRET}@mcp.example/x",
        f"http://ann:{SECRET}@mcp.example/x?key={SECRET}",
        f"http://mcp.example/x?key={SECRET}#{SECRET}",
        f"ann:{SECRET}@mcp.example/x",
        f"https:ann:{SECRET}@mcp.example/x",
        f"https://[{SECRET}",
        "https://$LOGIN@mcp.example/x",
        "https://$HOST/x",
    ],
)
def test_name_and_password_in_an_address_are_refused_unseen(
    server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("LOGIN", f"ann:{SECRET}")
    monkeypatch.setenv("HOST", f"ann:{SECRET}@mcp.example")
    with pytest.raises(llm.ModelError, match="MCP") as caught:
        ask("hello", tools=[MCP(url)])
    assert "sesame" not in str(caught.value)
    assert server.log == []


def test_query_of_an_address_is_sent_but_not_logged(
    server: ChatUI, user_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"https://mcp.example/@org/x?key={SECRET}&$NAMED&a={SECRET}%20b#{SECRET}"
    monkeypatch.setenv("NAMED", "flag")
    run("-m", "hf-llama", "-T", f'MCP("{url}")', "one")
    assert selected_servers(server)[0]["url"] == url.replace("$NAMED", "flag")
    for path in user_path.iterdir():
        assert SECRET.encode() not in path.read_bytes()
    assert "not kept in the logs" in failure("-c", "two")
    assert len(sends(server)) == 1


@pytest.mark.parametrize("name", [5, ["a"], {"a": "b"}, True])
def test_name_of_a_tool_server_is_text(server: ChatUI, name: object) -> None:
    tool = json.dumps({"url": "https://example.org/mcp", "name": name})
    assert "name is text" in failure("-m", "hf-llama", "-T", f"MCP({tool})", "hello")
    assert server.conversations == {}


@pytest.mark.parametrize(("name", "sent"), [("a\nb\x1b[31m", "a b[31m"), ("\n", "example.org")])
def test_name_of_a_tool_server_is_a_line(server: ChatUI, name: str, sent: str) -> None:
    tool = json.dumps({"url": "https://example.org/mcp", "name": name})
    run("-m", "hf-llama", "-T", f"MCP({tool})", "hello")
    (request,) = sends(server)
    assert request.data
    assert request.data["selectedMcpServerNames"] == [sent]
    assert [each["name"] for each in request.data["selectedMcpServers"]] == [sent]


@pytest.mark.parametrize("name", ["LLM_HUGGINGCHAT_KEY", "huggingchat", "huggingchat_other"])
@pytest.mark.parametrize(
    "tool",
    [
        'MCP(url="https://mcp.example/x", headers={"Cookie": "$NAME"})',
        'MCP(url="https://mcp.example/x", headers={"Cookie": "a $NAME:b"})',
        'MCP("https://mcp.example/x?key=$NAME")',
    ],
)
def test_the_chats_own_cookies_are_put_into_no_header(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch, name: str, tool: str
) -> None:
    keep_key("huggingchat", SECRET)
    keep_key("huggingchat_other", SECRET)
    monkeypatch.setenv(llm_huggingchat.KEY_VARIABLE, SECRET)
    said = failure("-m", "hf-llama", "-T", tool.replace("NAME", name), "hello")
    assert f"${name}" in said
    assert SECRET not in said
    assert server.log == []


# --- ids from the server --------------------------------------------------------------

ODD_IDS = ["a/b", "../x", "a b", "\ud800", "é", "a\n", "", "x" * 300, 5, None, ["a"]]


@pytest.mark.parametrize(
    "id", ["6b039392759aa03066f1190f", "aB-_123", "a1b2c3d4-0000-4000-8000-000000000000"]
)
def test_id(id: str) -> None:
    assert known_id(id) == id


@pytest.mark.parametrize("id", ODD_IDS)
def test_id_that_is_none(id: object) -> None:
    assert known_id(id) == ""


@pytest.mark.parametrize("id", [id for id in ODD_IDS if id])
def test_events_with_odd_ids_make_no_sense(id: object) -> None:
    assert event_of({"type": "file", "name": "n", "sha": id}) is None
    for subtype in ("call", "result", "error"):
        event = event_of({"type": "tool", "subtype": subtype, "uuid": id, "call": {"name": "n"}})
        assert event is None


@pytest.mark.parametrize("id", ["a/b", "\ud800"])
def test_metadata_with_odd_ids_is_passed_over(id: str) -> None:
    def parent(**more: str) -> Parent | None:
        kept = {"server": SERVICE, "conversation_id": "c", **more}
        part = TextPart(text="x", provider_metadata={"huggingchat": kept})
        return parent_of(Message("assistant", [part]), SERVICE)

    assert parent(conversation_id=id) is None
    assert parent(message_id=id, generation_id="g") == Parent("c", None, "g")
    assert parent(generation_id=id, message_id="m") == Parent("c", "m", None)


@pytest.mark.parametrize("id", ["a/b", "\ud800", "", 5, None])
def test_answers_with_odd_ids_are_told(server: ChatUI, id: object) -> None:
    def answers(method: str, path: str, value: object) -> None:
        body = json.dumps({"json": value} if "/api/" in path else value).encode()
        server.faults[method, path] = [Fault(status=200, body=body, content_type="text/json")]

    root = json.dumps({"json": {"rootMessageId": "root"}})
    answers("POST", "/conversation", {"conversationId": id, "conversation": root})
    assert "did not name it" in failure("-m", "hf-llama", "hello", "-n")
    root = json.dumps({"json": {"rootMessageId": id}})
    answers("POST", "/conversation", {"conversationId": "c", "conversation": root})
    assert "did not name it" in failure("-m", "hf-llama", "hello", "-n")
    assert sends(server) == []
    run("-m", "hf-llama", "hello", "-n")
    mine = stored_conversation(server).id
    answers("POST", "/conversation/*/share", {"shareId": id})
    assert "did not say where" in failure("huggingchat", "share", mine)
    (share,) = re.findall(r"/r/(\S+)", run("huggingchat", "share", mine).stdout)
    share_page = f"{server.url}/r/{share}"
    answers("POST", "/api/v2/conversations/import-share", {"conversationId": id})
    assert "makes no sense" in failure("huggingchat", "import", share_page)


@pytest.mark.parametrize("messages", [5, None, "text", {"a": 1}, [5, None, "text", [], {}]])
@pytest.mark.parametrize("command", ["import", "export"])
def test_messages_that_are_none(server: ChatUI, messages: object, command: str) -> None:
    run("-m", "hf-llama", "hello", "-n")
    id = stored_conversation(server).id
    value = {"json": {"messages": messages, "title": "T", "model": "m"}}
    fault = Fault(status=200, body=json.dumps(value).encode(), content_type="application/json")
    server.faults["GET", f"/api/v2/conversations/{id}"] = [fault]
    shown = run("huggingchat", command, id, status=0 if isinstance(messages, list) else 1)
    if not isinstance(messages, list):
        assert "makes no sense" in shown.stderr


@pytest.mark.parametrize("name", ["id", "generationId"])
@pytest.mark.parametrize("id", ["a/b", "\ud800", "", 5, None])
def test_import_of_odd_ids_adds_nothing_twice(server: ChatUI, name: str, id: object) -> None:
    run("-m", "hf-llama", "one [[file]]", "-n")
    conversation = stored_conversation(server)
    answer_of(conversation)[name] = id
    value = json.dumps({"json": conversation.as_json()}).encode()
    path = ("GET", f"/api/v2/conversations/{conversation.id}")
    server.faults[path] = [Fault(status=200, body=value, content_type="application/json")] * 3
    shown = [run("huggingchat", "import", conversation.id) for _ in range(2)]
    run("huggingchat", "export", conversation.id)
    number = 0 if name == "id" else 1
    assert len(logged()) == number
    assert [f"{number} turn added" in result.stdout for result in shown] == [bool(number), False]
    if name == "id":
        assert "1 of its messages make no sense" in shown[0].stdout


@pytest.mark.parametrize("id", ["\ud800", 5, "a/b"])
@pytest.mark.parametrize("command", ["import", "export"])
def test_answer_that_is_not_stored_and_has_an_odd_id(
    server: ChatUI, id: object, command: str
) -> None:
    run("-m", "hf-llama", "one", "-n")
    conversation = stored_conversation(server)
    answer_of(conversation).update(generationId=id, updates=[])
    run("huggingchat", command, conversation.id)


@pytest.mark.parametrize("field", ["ancestors", "files", "updates", "content", "from", "createdAt"])
@pytest.mark.parametrize("value", [5, None, "\ud800", {"a": 1}, [5, None, "\ud800", [], {}]])
def test_import_of_odd_messages_breaks_nothing(server: ChatUI, field: str, value: object) -> None:
    run("-m", "hf-llama", "one [[file]]", "-n")
    conversation = stored_conversation(server)
    for message in conversation.messages:
        message[field] = value
    body = json.dumps({"json": conversation.as_json()}).encode()
    path = ("GET", f"/api/v2/conversations/{conversation.id}")
    server.faults[path] = [Fault(status=200, body=body, content_type="application/json")] * 3
    run("huggingchat", "import", conversation.id, "--branches")
    number = len(logged())
    run("huggingchat", "import", conversation.id, "--branches")
    assert len(logged()) == number
    run("huggingchat", "export", conversation.id)


def test_kept_id_that_is_odd_is_not_opened(server: ChatUI) -> None:
    run("-m", "hf-llama", "hello")
    db = database()
    old, odd = stored_conversation(server).id, r"..\/..\/x"
    db.execute("update parts set payload = replace(payload, ?, ?)", [old, odd])
    db.conn.commit()
    assert "no conversation" in failure("huggingchat", "open", "--print")


# --- the terminal, and the names and types of files -----------------------------------




@both
@pytest.mark.parametrize(
    "type",
    [
        "text/plain\r\nX-Evil: 1",
        "text/plain\n",
        "text/plain\r\n\r\nevil",
        'text/plain"',
        "text",
        "\r\n",
    ],
)
def test_type_of_an_attachment_ends_no_header(server: ChatUI, ask: TurnRequest, type: str) -> None:
    ask("hello", attachments=[llm.Attachment(type=type, content=b"Rex is a dog")])
    (request,) = sends(server)
    assert request.files == [("attachment.txt", "text/plain", b"Rex is a dog")]
    assert b"evil" not in request.body.lower()




# --- files of our own that are broken -------------------------------------------------


@pytest.mark.parametrize("time", ["-Infinity", "NaN", "1e999", "-1e300", '"-inf"', "true", "null"])
def test_catalogue_of_no_time(server: ChatUI, user_path: pathlib.Path, time: str) -> None:
    cache = user_path / llm_huggingchat.CACHE
    cache.write_text(
        f'{{"servers": {{"{server.url}": {{"time": {time}, "models": [{{"id": "a/b"}}]}}}}}}'
    )
    assert "(built in, never refreshed)" in run("huggingchat", "status").stdout
    assert load_catalogue(server.url).is_old
    assert run("-m", "hf-llama", "hello").stdout == "You said: hello\n"






def test_first_prompts_at_once_use_one_session(server: ChatUI, user_path: pathlib.Path) -> None:
    make_logs()
    server.faults["POST", "/conversation"] = [Fault(delay=0.5)] * 3
    command = [sys.executable, "-m", "llm", "-m", "hf-llama", "hello"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate(timeout=30)[0] for process in processes] == [
        b"You said: hello\n"
    ] * 3
    assert len({conversation.session for conversation in server.conversations.values()}) == 1
    assert len(server.conversations) == 3
    run("-c", "two")
    assert len(server.conversations) == 3






@pytest.mark.parametrize(
    "odd",
    [
        {"generation_id": "a&fromSeq=1"},
        {"generation_id": b"\xff"},
        {"process": "me"},
        {"process": 2**62},
        {"since": "soon"},
        {"since": 9e18},
        {"since": math.inf},
        {"stopped": "now"},
        {"stopped": 9e18, "process": None, "since": 0.0},
    ],
    ids=str,
)
def test_note_of_a_run_that_makes_no_sense_is_not_waited_for(
    server: ChatUI, odd: dict[str, object]
) -> None:
    run("-m", "hf-llama", "one")
    id = stored_conversation(server).id
    row = {
        "generation_id": "g",
        "process": os.getppid(),
        "since": time.time() - 1e6,
        "stopped": None,
    }
    row |= {"page": f"{server.url}/conversation/{id}", "begun": time.time(), **odd}
    db = sqlite_utils.Database(llm.user_dir() / llm_huggingchat.RUNS)
    db.table("runs").insert(row)
    db.close()
    with soon():
        run("-c", "two")
    assert [request.data["inputs"] for request in sends(server) if request.data] == ["one", "two"]
