"""The stand-in server itself: it answers as the recorded server did, and stores when that does."""

import http.client
import itertools
import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from chat_ui import ChatUI
from helpers import wait_for
from recorded import CAPTURES, Recorded, capture

SESSION = {"cookie": "hf-chat=session"}
MODEL = "meta-llama/Llama-3.3-70B-Instruct"


# --- a client without any wits --------------------------------------------------------


@dataclass
class Got:
    """An answer, as far as it was read."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    body: bytes = b""

    def until(self, text: bytes) -> bytes:
        """What comes, until this has come."""
        while text not in self.body:
            piece = self.response.read1(65_536)
            assert piece, self.body
            self.body += piece
        return self.body

    def rest(self) -> bytes:
        """All of it. It has to end as a whole answer does."""
        self.body += self.response.read()
        self.leave()
        return self.body

    def leave(self) -> None:
        self.response.close()
        self.connection.close()

    def json(self) -> Any:
        return json.loads(self.rest())


def ask(server: ChatUI, method: str, path: str, body: str | None = None, **headers: str) -> Got:
    """Ask, and wait for the head of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    sent = body.encode() if body else None
    connection.request(method, server.base_path + path, sent, SESSION | headers)
    return Got(connection, connection.getresponse())


def post(server: ChatUI, path: str, **value: Any) -> Got:
    return ask(server, "POST", path, json.dumps(value), **{"content-type": "application/json"})


@dataclass
class Chat:
    """One conversation."""

    server: ChatUI

    def __post_init__(self) -> None:
        made = post(self.server, "/conversation", model=MODEL).json()
        self.path = f"/conversation/{made['conversationId']}"
        self.root = json.loads(made["conversation"])["json"]["rootMessageId"]

    def send(self, text: str, parent: str, generation: str | None = None) -> Got:
        """Send a message, and wait for the head of the stream."""
        data: dict[str, Any] = {"inputs": text, "id": parent, "is_retry": False}
        data["generationId"] = generation or str(uuid.uuid4())
        data["selectedMcpServerNames"] = []
        body = f'--b\r\ncontent-disposition: form-data; name="data"\r\n\r\n{json.dumps(data)}'
        headers = {"content-type": "multipart/form-data; boundary=b", "origin": "http://127.0.0.1"}
        return ask(self.server, "POST", self.path, body + "\r\n--b--\r\n", **headers)

    def log(self, generation: str = "", after: int = 0) -> Got:
        """Begin to read the log of a run; without an id, of the newest."""
        query = f"fromSeq={after}" + f"&generationId={generation}" * bool(generation)
        return ask(self.server, "GET", f"{self.path}/stream?{query}")

    def stop(self, generation: str, seen: int) -> None:
        stop = {"generationId": generation, "seenContentLength": seen}
        post(self.server, f"{self.path}/stop-generating", **stop).rest()

    def messages(self) -> list[dict[str, Any]]:
        """The messages as they are stored now."""
        found = ask(self.server, "GET", f"/api/v2{self.path.replace('ion/', 'ions/')}").json()
        return list(found["json"]["messages"])

    def stored(self) -> list[tuple[str, str]]:
        """Who said what, as it is stored now."""
        return [(message["from"], message["content"]) for message in self.messages()[1:]]


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

OF_OTHER_SERVERS = ("artifact", "login_renewed", "models_service")
CAPTURED = sorted(path.stem for path in CAPTURES.glob("*.json"))
CAPTURED = [name for name in CAPTURED if not name.startswith(OF_OTHER_SERVERS)]
IDS = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<![0-9a-f])[0-9a-f]{24}(?![0-9a-f])"
)
TELLING = ("type", "subtype", "status", "from", "interrupted", "hasMore", "message", "statusCode")
OF_OTHERS = {("errors", 10), ("errors", 11)}  # these came from another session
OF_BROWSERS = {("errors", 3)}  # this wants a page
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
        self.ids: dict[str, str] = {}  # of the recorded server: of the stand-in

    def here(self, text: str) -> str:
        """The same with the stand-in's ids and address."""
        text = re.sub(r"http://127\.0\.0\.1:51\d\d", f"http://127.0.0.1:{self.server.port}", text)
        return IDS.sub(lambda match: self.ids.get(match[0], match[0]), text)

    def run(self, number: int, recorded: Recorded) -> Got:
        """One exchange: the stand-in's answer."""
        session = "other" if (self.name, number) in OF_OTHERS else "session"
        headers = {name: self.here(value) for name, value in recorded.sent_headers.items()}
        headers["cookie"] = f"hf-chat={session}; token=token"
        path, sent = self.here(recorded.path), self.here(recorded.sent)
        got = ask(self.server, recorded.method, path, sent, **headers)
        if recorded.cut:
            got.until(b'"w12 ')
            got.leave()
            got.body = got.body.rpartition(b"\n")[0]
            return got
        if self.name == "stop" and recorded.kind == "application/jsonl":
            got.until(b'"w12 ')  # somebody beside the recording stopped it then
            (id,), (generation,) = self.server.conversations, self.server.runs
            stop = {"generationId": generation, "seenContentLength": 20}
            post(self.server, f"/conversation/{id}/stop-generating", **stop).rest()
        self.learn(recorded.body.decode(), got.rest().decode())
        return got

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
    token = "token" if name == "user_logged_in" else "another"
    sessions: dict[str, tuple[str, str | None]] = {"session": ("ada", token)}
    models = [{"id": "deepseek-ai/DeepSeek-V4-Pro-0813"}] if name == "settings" else []
    with ChatUI(login_required=name in LOGINS, sessions=sessions, models=models) as server:
        replay = Replay(server, name)
        for number, wanted in enumerate(capture(name)):
            if (name, number) in OF_BROWSERS:
                continue
            got = replay.run(number, wanted)
            assert got.response.status == wanted.status, (number, got.body)
            assert head_shape(dict(got.response.headers)) == head_shape(wanted.headers), number
            assert body_shape(wanted.kind, got.body) == body_shape(wanted.kind, wanted.body), number


# --- it stores when the recorded server did -------------------------------------------

LONG = "[[tokens=10000]] [[delay=0.01]]"


def test_answer_is_stored_when_its_stream_ends_and_its_log_beats_until_then(chat: Chat) -> None:
    chat.server.may_store.clear()
    stream = chat.send("hello", chat.root, generation := str(uuid.uuid4()))
    stream.until(b'"finished"')
    assert chat.stored() == [("user", "hello"), ("assistant", "")]
    newest = chat.log(after=10**15)
    assert entries(newest.until(b": heartbeat\n\n")) == []
    chat.server.may_store.set()
    assert stream.rest().endswith(b'"finished"}\n')
    assert chat.stored() == [("user", "hello"), ("assistant", "You said: hello")]
    end = ({"event": "end"}, {"status": "completed"})
    assert entries(newest.rest()) == [end]
    assert entries(chat.log(generation).rest())[-1] == end


def test_message_sent_too_early_is_lost_and_then_loses_the_answer_before_it(chat: Chat) -> None:
    chat.server.may_store.clear()
    first = chat.send("one", chat.root)
    first.until(b'"finished"')
    second = chat.send(LONG, chat.messages()[-1]["id"], generation := str(uuid.uuid4()))
    second.until(b'"w5 ')
    chat.server.may_store.set()
    first.rest()
    assert chat.stored() == [("user", "one"), ("assistant", "You said: one")]
    chat.stop(generation, 6)
    second.rest()
    lost = [("user", "one"), ("assistant", "")]
    assert chat.stored() == [*lost, ("user", LONG), ("assistant", "w0 w1 ")]


def test_stop_that_comes_too_late_stops_the_next_run(chat: Chat) -> None:
    chat.send("hello", chat.root, generation := str(uuid.uuid4())).rest()
    chat.stop(generation, 3)
    next_run = chat.send(LONG, chat.messages()[-1]["id"]).rest()
    assert b'"interrupted":true' in next_run


def test_all_is_stored_when_the_first_reader_leaves_and_the_run_goes_on(chat: Chat) -> None:
    stream = chat.send(LONG, chat.root, generation := str(uuid.uuid4()))
    stream.until(b'"w5 ')
    stream.leave()
    wait_for(lambda: chat.stored()[-1][1].startswith("w0 w1 "))
    assert list(chat.server.runs.values()) == ["running"]
    chat.stop(generation, 6)
    assert entries(chat.log(generation).rest())[-1][1] == {"status": "interrupted"}
    assert chat.stored()[-1] == ("assistant", "w0 w1 ")
