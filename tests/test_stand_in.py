"""The stand-in server itself: it answers as the recorded server did, and stores when that does."""

from __future__ import annotations

import http.client
import itertools
import json
import pathlib
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from chat_ui import HEARTBEAT, STORE_DELAY, ChatUI, Fault
from helpers import wait_for
from recorded import CAPTURES

SESSION = {"cookie": "hf-chat=session"}
MODEL = "meta-llama/Llama-3.3-70B-Instruct"


# --- a client without any wits --------------------------------------------------------


@dataclass
class Got:
    """An answer, as far as it was read."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Opened:
    """An answer of which nothing has been read yet."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    read: bytes = b""

    def until(self, text: bytes) -> bytes:
        """What comes, until this has come."""
        while text not in self.read:
            piece = self.response.read1(65_536)
            assert piece, self.read
            self.read += piece
        return self.read

    def rest(self) -> Got:
        """All of it. It has to end as a whole answer does."""
        self.read += self.response.read()
        self.leave()
        headers = {name.lower(): value for name, value in self.response.getheaders()}
        return Got(self.response.status, headers, self.read)

    def leave(self) -> None:
        self.response.close()
        self.connection.close()


def open_(
    server: ChatUI,
    method: str,
    path: str,
    body: str | bytes | None = None,
    headers: dict[str, str] = SESSION,
) -> Opened:
    """Ask, and wait for the head of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    sent = body.encode() if isinstance(body, str) else body
    connection.request(method, server.base_path + path, sent, headers)
    return Opened(connection, connection.getresponse())


def call(server: ChatUI, method: str, path: str, body: Any = None) -> Got:
    """Ask, and read the whole answer."""
    sent = None if body is None else json.dumps(body)
    headers = SESSION if body is None else {**SESSION, "content-type": "application/json"}
    return open_(server, method, path, sent, headers).rest()


@dataclass
class Chat:
    """One conversation."""

    server: ChatUI
    id: str = ""
    root: str = ""

    def __post_init__(self) -> None:
        made = call(self.server, "POST", "/conversation", {"model": MODEL}).json()
        self.id = made["conversationId"]
        self.root = json.loads(made["conversation"])["json"]["rootMessageId"]

    def send(self, text: str, parent: str, generation: str | None = None) -> Opened:
        """Send a message, and wait for the head of the stream."""
        data: dict[str, Any] = {"inputs": text, "id": parent, "is_retry": False}
        data["generationId"] = generation or str(uuid.uuid4())
        data["selectedMcpServerNames"] = []
        body = f'--b\r\ncontent-disposition: form-data; name="data"\r\n\r\n{json.dumps(data)}'
        origin = f"http://127.0.0.1:{self.server.port}"
        headers = {"content-type": "multipart/form-data; boundary=b", "origin": origin}
        path = f"/conversation/{self.id}"
        return open_(self.server, "POST", path, body + "\r\n--b--\r\n", {**SESSION, **headers})

    def log(self, generation: str, after: int = 0) -> Opened:
        """Begin to read the log of a run."""
        query = f"generationId={generation}&fromSeq={after}"
        return open_(self.server, "GET", f"/conversation/{self.id}/stream?{query}")

    def stop(self, generation: str, seen: int) -> Got:
        body = {"generationId": generation, "seenContentLength": seen}
        return call(self.server, "POST", f"/conversation/{self.id}/stop-generating", body)

    def get(self) -> dict[str, Any]:
        """The conversation as it is stored now."""
        found: dict[str, Any] = call(self.server, "GET", f"/api/v2/conversations/{self.id}").json()
        return dict(found["json"])

    def stored(self) -> list[tuple[str, str]]:
        """Who said what, as it is stored now."""
        return [(m["from"], m["content"]) for m in self.get()["messages"][1:]]

    def last(self) -> str:
        """The id of the message that is stored last."""
        return str(self.get()["messages"][-1]["id"])


@pytest.fixture
def chat(server: ChatUI) -> Chat:
    return Chat(server)


def updates(stream: bytes) -> list[dict[str, Any]]:
    """The events of a stream but its signs of life, and what pads the tokens."""
    found = [json.loads(line) for line in stream.split(b"\n") if line.strip()]
    return [update for update in found if update.get("status") != "keepAlive"]


def entries(log: bytes) -> list[tuple[dict[str, str], Any]]:
    """The entries of a log: the fields but the data, and the data. No heartbeats."""
    found = []
    for block in log.decode().split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.split("\n") if line[:1] not in ("", ":")
        )
        if fields:
            found.append((fields, json.loads(fields.pop("data"))))
    return found


# --- it answers as the recorded server did --------------------------------------------

CAPTURED = [
    *("branch", "empty_answer", "errors", "image_in", "login_required", "mcp_servers", "models"),
    *("omni_router", "public_config", "reasoning", "regenerate", "rename_list_delete", "resume"),
    *("resume_gone", "settings", "share", "stop", "switch_model", "text_file_in", "tool_call"),
    *("two_turns", "upstream_error_429", "upstream_error_500", "user_logged_in"),
    "user_logged_out",
]
IDS = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<![0-9a-f])[0-9a-f]{24}(?![0-9a-f])"
)
TELLING = ("type", "subtype", "status", "from", "interrupted", "hasMore", "message", "statusCode")
OF_OTHERS = {("errors", 10), ("errors", 11)}  # these came from another session
LOGINS = ("login_required", "user_logged_in", "user_logged_out")


def without_runs(values: Iterable[Any]) -> list[Any]:
    """Without what is the same as the one before it."""
    return [value for value, _ in itertools.groupby(values)]


def shape(value: Any, name: str = "") -> Any:
    """What a value consists of: keys, kinds, and what tells one kind of event from another.

    How many tokens, messages' children or updates there are in a row depends on the model.
    """
    if isinstance(value, dict):
        return {key: shape(item, key) for key, item in value.items() if key != "meta"}
    if isinstance(value, list):
        return without_runs(shape(item) for item in titles_apart(value))
    if isinstance(value, str) and value.startswith('{"json":'):
        return shape(json.loads(value))
    if name in TELLING:
        return value
    return type(value).__name__


def titles_apart(updates: list[Any]) -> list[Any]:
    """Without the title, which another model writes meanwhile: it may come anywhere."""
    return [item for item in updates if not isinstance(item, dict) or item.get("type") != "title"]


def stream_shape(stream: bytes) -> Any:
    """The events of a stream in order, whether a title was among them, and how it is padded."""
    given = updates(stream)
    padded = all(len(update["token"]) >= 16 for update in given if "token" in update)
    spaces = [len(found) for found in re.findall(rb'"finalAnswer"[^\n]*\n( *)', stream)]
    return shape(given), given != titles_apart(given), padded, spaces


def log_shape(log: bytes) -> Any:
    """The entries of a log in order, how they are numbered, and its end."""
    found = entries(log)
    numbers = [int(fields["id"]) for fields, _ in found if "id" in fields]
    kinds = without_runs((tuple(fields), fields["event"]) for fields, _ in found)
    given = [data for _, data in found]
    return numbers == list(range(1, len(numbers) + 1)), kinds, shape(given), log.endswith(b"}\n\n")


def body_shape(kind: str, body: bytes) -> Any:
    if kind == "application/jsonl":
        return stream_shape(body)
    if kind == "text/event-stream":
        return log_shape(body)
    if kind == "application/json":
        found = shape(json.loads(body))
        if isinstance(found, dict) and isinstance(found.get("json"), list):
            return without_runs(sorted(found["json"], key=str))  # a catalogue has no order
        return found
    return body.partition(b">")[0] if kind == "text/html" else body


def head_shape(headers: dict[str, str]) -> dict[str, str]:
    """The headers that matter. Where a redirect leads is up to the server's settings."""
    names = ["content-type", "cache-control", "allow"]
    found = {name: headers[name] for name in names if name in headers}
    if "location" in headers:
        found["location"] = headers["location"].partition("?")[0].partition("/oauth")[1]
    return found


class Replay:
    """Asks the stand-in what the recorded server was asked."""

    def __init__(self, server: ChatUI, name: str) -> None:
        self.server, self.name = server, name
        self.exchanges = json.loads((CAPTURES / f"{name}.json").read_text("utf-8"))["exchanges"]
        self.ids: dict[str, str] = {}  # of the recorded server: of the stand-in

    def here(self, text: str) -> str:
        """The same with the stand-in's ids and address."""
        text = re.sub(r"http://127\.0\.0\.1:51\d\d", f"http://127.0.0.1:{self.server.port}", text)
        return IDS.sub(lambda match: self.ids.get(match[0], match[0]), text)

    def run(self, number: int) -> tuple[Got, Got]:
        """One exchange: the recorded answer, and the stand-in's."""
        request, response = (self.exchanges[number][side] for side in ("request", "response"))
        session = "other" if (self.name, number) in OF_OTHERS else "session"
        headers = {name: self.here(value) for name, value in request["headers"].items()}
        headers["cookie"] = f"hf-chat={session}; token=token"
        body = self.here(request["body"]) if request.get("body") else None
        opened = open_(self.server, request["method"], self.here(request["path"]), body, headers)
        text = "".join(text for _, text in response["chunks"]).encode()
        wanted = Got(response["status"], dict(response["headers"]), text)
        if response["cut"]:
            opened.until(b'"w12 ')
            opened.leave()
            last_line = opened.read.rpartition(b"\n")[2]
            return wanted, Got(200, wanted.headers, opened.read.removesuffix(last_line))
        if self.name == "stop" and wanted.headers["content-type"] == "application/jsonl":
            opened.until(b'"w12 ')
            self.stop(request["body"])
        got = opened.rest()
        self.learn(wanted.body.decode(), got.body.decode())
        return wanted, got

    def stop(self, sent: str) -> None:
        """Stop the answer, as somebody beside the recording did."""
        found = re.search(r'"generationId": "([^"]*)"', sent)
        assert found
        (id,) = self.server.conversations
        body = {"generationId": found[1], "seenContentLength": 20}
        call(self.server, "POST", f"/conversation/{id}/stop-generating", body)

    def learn(self, there: str, here: str) -> None:
        """Learn which ids are whose: they stand at the same places."""
        theirs, ours = (
            re.findall(r'\\?"(?:id|conversationId|rootMessageId)\\?":\\?"([^"\\]*)', text)
            for text in (there, here)
        )
        if len(theirs) == len(ours):
            self.ids.update(zip(theirs, ours, strict=True))


@pytest.mark.parametrize("name", CAPTURED)
def test_stand_in_answers_as_the_recorded_server_did(name: str) -> None:
    sessions = {"session": ("ada", "token" if name == "user_logged_in" else "another")}
    models = [{"id": "deepseek-ai/DeepSeek-V4-Pro-0813"}] if name == "settings" else None
    with ChatUI(login_required=name in LOGINS, sessions=sessions, models=models) as server:
        replay = Replay(server, name)
        for number in range(len(replay.exchanges)):
            wanted, got = replay.run(number)
            kind = wanted.headers.get("content-type", "")
            assert got.status == wanted.status, (number, got)
            assert head_shape(got.headers) == head_shape(wanted.headers), number
            assert body_shape(kind, got.body) == body_shape(kind, wanted.body), number


# --- it stores when the recorded server did -------------------------------------------

LONG = "[[tokens=10000]] [[delay=0.01]]"


def test_answer_is_stored_when_its_stream_ends_and_not_before(chat: Chat) -> None:
    chat.server.may_store.clear()
    stream = chat.send("hello", chat.root)
    stream.until(b'"finished"')
    assert chat.stored() == [("user", "hello"), ("assistant", "")]
    assert list(chat.server.runs.values()) == ["running"]
    chat.server.may_store.set()
    assert stream.rest().body.endswith(b'"finished"}\n')
    assert chat.stored() == [("user", "hello"), ("assistant", "You said: hello")]
    assert list(chat.server.runs.values()) == ["completed"]


def test_storing_takes_its_time_unless_told(chat: Chat) -> None:
    assert chat.server.store_delay == STORE_DELAY > 0.2
    assert chat.server.save_every == 3
    for text, delay in (("hello", STORE_DELAY), ("[[store=0.6]]", 0.6)):
        stream = chat.send(text, chat.root)
        stream.until(b'"finalAnswer"')
        said = time.monotonic()
        stream.rest()
        assert time.monotonic() - said > delay - 0.1


@pytest.mark.parametrize("words", ["[[err=500]]", "[[empty]]"])
def test_failure_is_stored_late_too(chat: Chat, words: str) -> None:
    chat.server.may_store.clear()
    stream = chat.send(words, chat.root)
    stream.until(b'"error"')
    assert "updates" not in chat.get()["messages"][-1]
    chat.server.may_store.set()
    stream.rest()
    assert chat.get()["messages"][-1]["updates"][-1]["status"] == "error"


def test_log_beats_until_the_answer_is_stored_and_then_says_end(chat: Chat) -> None:
    chat.server.may_store.clear()
    stream = chat.send("hello", chat.root, generation := str(uuid.uuid4()))
    stream.until(b'"finished"')
    log = chat.log(generation, 10**15)
    asked = time.monotonic()
    while log.until(b": heartbeat\n\n").count(b": heartbeat") < 3:
        log.read += log.response.read1(65_536)
    assert time.monotonic() - asked > 3 * HEARTBEAT - 0.1
    assert entries(log.read) == []
    chat.server.may_store.set()
    assert entries(log.rest().body) == [({"event": "end"}, {"status": "completed"})]
    assert chat.stored()[-1] == ("assistant", "You said: hello")
    again = chat.log(generation, 10**15).rest()
    assert again.body == b'event: end\ndata: {"status":"completed"}\n\n'
    assert entries(chat.log(generation).rest().body)[-2:] == [
        ({"id": "6", "event": "update"}, {"type": "status", "status": "finished"}),
        ({"event": "end"}, {"status": "completed"}),
    ]


def test_log_shows_all_but_the_end_before_the_answer_is_stored(chat: Chat) -> None:
    chat.server.may_store.clear()
    chat.send("hello", chat.root, generation := str(uuid.uuid4())).until(b'"finished"')
    log = chat.log(generation, 2)
    found = entries(log.until(b": heartbeat"))
    assert [fields["id"] for fields, _ in found] == ["3", "4", "5", "6"]
    assert found[-1][1] == {"type": "status", "status": "finished"}


def test_message_sent_too_early_is_lost_and_then_loses_the_answer_before_it(chat: Chat) -> None:
    chat.server.may_store.clear()
    first = chat.send("one", chat.root)
    first.until(b'"finished"')
    second = chat.send(LONG, chat.last(), generation := str(uuid.uuid4()))
    second.until(b'"w5 ')
    lost = chat.last()
    assert chat.stored() == [("user", "one"), ("assistant", ""), ("user", LONG), ("assistant", "")]
    chat.server.may_store.set()
    first.rest()
    assert chat.stored() == [("user", "one"), ("assistant", "You said: one")]
    assert chat.get()["messages"][-1]["children"] == []
    assert chat.send("three", lost).rest().status == 500
    chat.stop(generation, 6)
    second.rest()
    assert chat.stored() == [
        *(("user", "one"), ("assistant", "")),
        *(("user", LONG), ("assistant", "w0 w1 ")),
    ]


def test_stop_holds_until_the_answer_is_stored(chat: Chat) -> None:
    chat.server.may_store.clear()
    first = chat.send(LONG, chat.root, generation := str(uuid.uuid4()))
    first.until(b'"w5 ')
    chat.stop(generation, 6)
    first.until(b'"finished"')
    second = chat.send(LONG, chat.root)
    assert b'"interrupted":true' in second.until(b'"finished"')
    chat.server.may_store.set()
    first.rest()
    second.rest()
    third = chat.send("hello", chat.root).rest()
    assert b'"interrupted":false' in third.body


def test_running_answer_is_saved_now_and_then_without_the_rest(chat: Chat) -> None:
    chat.server.save_every = 0.05
    stream = chat.send(LONG, chat.root, generation := str(uuid.uuid4()))
    stream.until(b'"w5 ')
    chat.server.conversations[chat.id].title = "Given meanwhile"
    seen: dict[str, Any] = {}
    while len(seen) < 3:
        found = chat.get()
        seen[found["updatedAt"]] = found
    *_, question, answer = found["messages"]
    assert answer["content"].startswith("w0 w1 ")
    assert answer["updates"][0] == {"type": "status", "status": "started"}
    assert question["updatedAt"] <= answer["createdAt"] < answer["updatedAt"]
    assert {"interrupted", "updates"} & {*question} == set()
    assert "interrupted" not in answer
    assert found["title"] == "Given meanwhile"
    assert list(chat.server.runs.values()) == ["running"]
    chat.stop(generation, 6)
    stream.rest()
    assert chat.get()["title"] != "Given meanwhile"
    assert chat.stored()[-1] == ("assistant", "w0 w1 ")


def test_all_is_stored_when_the_first_reader_leaves_and_the_run_goes_on(chat: Chat) -> None:
    chat.server.save_every = 1000
    stream = chat.send(LONG, chat.root, generation := str(uuid.uuid4()))
    stream.until(b'"w5 ')
    assert chat.stored()[-1] == ("assistant", "")
    chat.server.conversations[chat.id].title = "Given meanwhile"
    second = chat.log(generation)
    second.until(b'"w0 ')
    second.leave()
    stream.leave()
    wait_for(lambda: chat.stored()[-1][1].startswith("w0 w1 "))
    assert chat.get()["title"] == "New Chat"
    assert list(chat.server.runs.values()) == ["running"]
    chat.stop(generation, 6)
    assert entries(chat.log(generation).rest().body)[-1][1] == {"status": "interrupted"}
    assert chat.stored()[-1] == ("assistant", "w0 w1 ")


def test_reader_that_leaves_in_silence_is_noticed(chat: Chat) -> None:
    chat.server.may_store.clear()
    chat.server.save_every = 1000
    stream = chat.send("hello", chat.root)
    stream.until(b'"finished"')
    assert chat.stored()[-1] == ("assistant", "")
    stream.leave()
    wait_for(lambda: chat.stored()[-1] == ("assistant", "You said: hello"))
    assert list(chat.server.runs.values()) == ["running"]


def test_view_of_tests_waits_for_what_is_being_stored(chat: Chat) -> None:
    chat.send("hello", chat.root).until(b'"finalAnswer"')
    (answer,) = chat.server.messages(chat.id, "assistant")
    assert answer["content"] == "You said: hello"


# --- what words and switches do -------------------------------------------------------


def finals(stream: bytes) -> list[str]:
    return [update["text"] for update in updates(stream) if update["type"] == "finalAnswer"]


def test_model_says_what_it_is_told_answer_by_answer(chat: Chat) -> None:
    words = "[[say]]one\n [[tokens=3]][[/say]] and [[say]]two é[[/say]]"
    said = []
    parent = chat.root
    for text in (words, "again", "and again"):
        said += finals(chat.send(text, parent).rest().body)
        parent = chat.last()
    assert said == ["one\n [[tokens=3]]", "two é", "two é"]


def test_stream_may_end_as_if_it_were_whole(chat: Chat) -> None:
    stream = chat.send(f"[[end=2]] {LONG}", chat.root, generation := str(uuid.uuid4())).rest()
    assert [update.get("token", "").rstrip("\0") for update in updates(stream.body)] == [
        *("", "w0 ", "w1 ")
    ]
    assert chat.stored()[-1] == ("assistant", "w0 w1 ")
    assert chat.server.runs[generation] == "running"


def test_error_though_the_message_is_stored(chat: Chat) -> None:
    text = "[[status_after=500]] hello"
    refused = chat.send(text, chat.root).rest()
    assert refused.status == 500
    assert refused.json()["message"] == "An error occurred"
    wait_for(lambda: chat.stored()[-1] == ("assistant", f"You said: {text}"))
    assert chat.send(text, chat.root).rest().status == 200
    page = chat.send("[[status_after=502]]", chat.root).rest()
    assert (page.status, page.headers["content-type"]) == (502, "text/html")


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_log_may_be_refused(chat: Chat, status: int) -> None:
    for words, times in ((f"[[log_status={status}*2]]", 2), (f"[[log_status={status}]]", 4)):
        chat.send(words, chat.root, generation := str(uuid.uuid4())).rest()
        refused = [chat.log(generation).rest().status for _ in range(4)]
        assert refused == [status] * times + [200] * (4 - times)


def test_log_may_be_silent(chat: Chat) -> None:
    chat.send("[[stall_resume=1]]", chat.root, generation := str(uuid.uuid4())).rest()
    silent = chat.log(generation)
    silent.connection.sock.settimeout(2 * HEARTBEAT)
    with pytest.raises(TimeoutError):
        silent.response.read1()
    assert entries(chat.log(generation).rest().body)[-1][1] == {"status": "completed"}


def test_conversation_may_be_deleted_during_the_answer(chat: Chat) -> None:
    stream = chat.send("[[delete=2]] hello", chat.root, generation := str(uuid.uuid4())).rest()
    assert updates(stream.body)[-1] == {"type": "status", "status": "finished"}
    assert call(chat.server, "GET", f"/api/v2/conversations/{chat.id}").status == 404
    assert chat.log(generation).rest().status == 404
    assert chat.server.conversations == {}


def test_conversation_may_be_made_though_the_answer_is_lost(server: ChatUI) -> None:
    server.faults["POST", "/conversation"] = [
        Fault(drop=True),
        Fault(drop=True, done=True),
        Fault(delay=0.2, done=True),
    ]
    for made in (0, 1):
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            Chat(server)
        assert len(server.conversations) == made
    asked = time.monotonic()
    assert Chat(server).id in server.conversations
    assert time.monotonic() - asked > 0.15


def test_list_of_conversations_may_repeat_itself_for_ever(chat: Chat) -> None:
    chat.server.endless_list = True
    pages = [call(chat.server, "GET", f"/api/v2/conversations?p={p}").json() for p in (0, 1, 99)]
    assert pages[0] == pages[1] == pages[2]
    assert pages[0]["json"]["hasMore"] is True
    assert [item["id"] for item in pages[0]["json"]["conversations"]] == [chat.id]


def test_server_may_be_far_away(server: ChatUI) -> None:
    server.latency = 0.2
    asked = time.monotonic()
    call(server, "GET", "/api/v2/models")
    assert time.monotonic() - asked > 0.15


def test_uplink_may_be_slow() -> None:
    with ChatUI(uplink=20_000) as server:
        chat = Chat(server)
        asked = time.monotonic()
        opened = chat.send("x" * 10_000, chat.root)
        assert time.monotonic() - asked > 0.4
        opened.leave()
        assert len(server.messages(chat.id, "user", wait=False)[0]["content"]) == 10_000


def test_requests_are_numbered_as_they_begin(chat: Chat) -> None:
    head = f"POST {chat.server.base_path}/conversation HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
    with socket.create_connection(("127.0.0.1", chat.server.port)) as connection:
        connection.sendall(f"{head}\r\n".encode())
        wait_for(lambda: chat.server.begun == 2)
        call(chat.server, "GET", "/api/v2/user")
        connection.sendall(b"{}")
        wait_for(lambda: len(chat.server.log) == 3)
    assert [(request.path, request.number) for request in chat.server.log] == [
        *(("/conversation", 1), ("/api/v2/user", 3), ("/conversation", 2))
    ]


# --- python tests/chat_ui.py ----------------------------------------------------------

COMMAND = """
import os, sys, urllib.request
print(sys.argv[1], os.path.isdir(os.environ["LLM_USER_PATH"]), flush=True)
urllib.request.urlopen(os.environ["LLM_HUGGINGCHAT_URL"] + "/api/v2/models").read()
raise SystemExit(7)
"""


def stand_in(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = pathlib.Path(__file__).with_name("chat_ui.py")
    return subprocess.run(
        [sys.executable, str(program), *arguments], capture_output=True, text=True, timeout=120
    )


def test_stand_in_runs_a_command_and_passes_its_status(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    command = (sys.executable, "-c", COMMAND, "an argument")
    done = stand_in("--log", str(log), "--latency", "0.01", *command)
    assert (done.returncode, done.stdout, done.stderr) == (7, "an argument True\n", "")
    (request,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert (request["method"], request["path"], request["number"]) == ("GET", "/api/v2/models", 1)
    assert request["at"] > 0
    assert stand_in("no-such-command").returncode == 127


# --- questions of tools, as chat-ui's source has them ---------------------------------


def said(server: ChatUI, id: str, value: dict[str, Any]) -> tuple[int, Any]:
    """What comes of an answer to a question."""
    got = call(server, "POST", f"/conversation/{id}/elicitation", value)
    return got.status, got.json().get("message", got.json().get("resume"))


@pytest.mark.parametrize(("word", "resume"), [("elicit", False), ("elicit_ends", True)])
def test_answer_to_a_question(chat: Chat, word: str, resume: bool) -> None:
    stream = chat.send(f"[[{word}]]", chat.root)
    stream.until(b'"elicitationId"')
    ((id, asked),) = chat.server.elicitations.items()
    value = {"elicitationId": id, "action": "accept"}
    wrong: list[tuple[dict[str, Any], Any]] = [
        ({}, (400, "Invalid elicitation response")),
        (value | {"action": "shrug"}, (400, "Invalid elicitation response")),
        (value | {"elicitationId": str(uuid.uuid4())}, (404, "Unknown elicitation.")),
        (value, (400, '"city" is required.')),
        (value | {"content": {"town": "x"}}, (400, 'Unknown field "town".')),
        (value | {"content": {"city": 5}}, (400, '"city" must be a string.')),
    ]
    for body, problem in wrong:
        assert said(chat.server, chat.id, body) == problem
    assert asked.action is None
    content = {"content": {"city": "Rome"}}
    assert said(chat.server, chat.id, value | content) == (200, resume)
    assert said(chat.server, chat.id, value | content) == (409, "Already answered.")
    kinds = [u.get("subtype") or u.get("status") or u["type"] for u in updates(stream.rest().body)]
    assert kinds[-1] == "finished"
    assert ("resolved" in kinds) is not resume
    assert ("finalAnswer" in kinds) is not resume
