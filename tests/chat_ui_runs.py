"""What the stand-in of `chat_ui.py` keeps, what its model says, and the runs between the two."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import re
import secrets
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chat_ui import ChatUI

Event = dict[str, Any]
Message = dict[str, Any]
File = tuple[str, str, bytes]  # name, type, content
# The pieces of a stream, and which are events that its faults count. An empty one says that this
# is all for now, and asks whether the reader is still there.
Pieces = Generator[tuple[bytes, bool], None, None]

PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
PROVIDER = {"type": "routerMetadata", "route": "", "model": "", "provider": "novita"}
ROUTE = {"type": "routerMetadata", "route": "default", "model": "zai-org/GLM-4.6"}
DOCUMENT_TYPES = ("application/json", "application/xml", "application/csv")
NEW_CHAT = "New Chat"
KEEP_ALIVE = 0.1  # seconds between two keepAlive events
LOG_TOKEN = 16  # characters: tokens that come together are logged as one event up to this
REFUSALS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "Conversation not found",
    410: "Model not available anymore",
    429: "You are sending too many messages. Try again later.",
    500: "An error occurred",
}


class Refusal(Exception):
    """An answer that says no."""

    def __init__(self, status: int, message: str | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = {"message": message or REFUSALS.get(status, "Invalid request")}
        if self.body["message"] == REFUSALS[500]:
            self.body["errorId"] = str(uuid.uuid4())


# --- values --------------------------------------------------------------------------------------


def now() -> str:
    """The time as the server writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def dumps(value: object) -> bytes:
    """JSON as JavaScript writes it: no spaces, UTF-8, half an emoji as an escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def utf16(text: str) -> bytes:
    """The text in the units that JavaScript counts: two bytes each."""
    return text.encode("utf-16-le", "surrogatepass")


SAY = re.compile(r"(?s)\[\[say\]\](.*?)\[\[/say\]\]")


class Words(dict[str, str]):
    """The [[words]] of a prompt, with their values. What the model is to say has none."""

    def __init__(self, prompt: str = "") -> None:
        super().__init__(re.findall(r"\[\[(\w+)(?:=([^\]]*))?\]\]", SAY.sub("", prompt)))

    def number(self, name: str, default: float) -> float:
        return float(self.get(name) or default)

    def numbers(self, name: str) -> list[int]:
        return [int(part) for part in self.get(name, "").split(",") if part]

    def times(self, name: str, default: float) -> tuple[str, float]:
        """A word's value and how often it holds: `before*3` is before, three times."""
        value, _, times = self.get(name, "").partition("*")
        return value, float(times or default)


# --- the store -----------------------------------------------------------------------------------


def new_message(ancestors: list[str]) -> Message:
    """What all messages have."""
    times = {"createdAt": now(), "updatedAt": now()}
    return times | {"id": str(uuid.uuid4()), "ancestors": ancestors, "children": []}


def stored_title(title: str) -> str:
    """A title as it is stored: without tags of thinking."""
    return re.sub(r"</?think>", "", title, flags=re.I).strip()


@dataclass
class Conversation:
    """A conversation as it is stored."""

    session: str  # whose it is: the user's name, or the session cookie's value
    model: str
    preprompt: str
    messages: list[Message]
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    title: str = NEW_CHAT
    updated_at: str = field(default_factory=now)
    from_share: str | None = None
    shared: bool = False
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # hash: type, content
    words: Words = field(default_factory=Words)  # of all its messages
    stop: tuple[float, object, int | None] | None = None  # when, which run, what was seen

    def as_json(self) -> dict[str, Any]:
        """The conversation as the server gives it."""
        value: dict[str, Any] = {"messages": copy.deepcopy(self.messages), "title": self.title}
        value |= {"model": self.model, "preprompt": self.preprompt}
        value |= {"rootMessageId": self.messages[0]["id"], "id": self.id}
        value |= {"updatedAt": self.updated_at, "modelId": self.model}
        return value | {"shared": self.shared, "deployedSpaces": None}

    def grow(self, data: dict[str, Any], files: list[File]) -> list[Message]:
        """Add a new question and an empty answer: a copy of the tree, the answer at its end."""
        messages = copy.deepcopy(self.messages)
        by_id = {message["id"]: message for message in messages}

        def add(parent: Message, **fields: Any) -> Message:
            message = fields | new_message([*parent["ancestors"], parent["id"]])
            messages.append(message)
            parent["children"].append(message["id"])
            return message

        place = by_id.get(data["id"])
        retry = data.get("is_retry", False)
        if not place:
            raise Refusal(404, "Message not found") if retry else Refusal(500)
        if retry and place["from"] == "assistant":
            question = by_id[place["ancestors"][-1]]
        else:
            stored = [
                {"type": "hash", "value": sha256(content), "mime": mime, "name": name}
                for name, mime, content in files
            ]
            parent = by_id[place["ancestors"][-1]] if retry else place
            text = data["inputs"].replace("\r\n", "\n")
            question = add(parent, **{"from": "user", "content": text, "files": stored})
        answer = add(question, **{"from": "assistant", "content": ""})
        answer["generationId"] = data.get("generationId") or str(uuid.uuid4())
        self.files |= {sha256(content): (mime, content) for _, mime, content in files}
        self.messages = copy.deepcopy(messages)
        self.updated_at = now()
        self.words.update(Words(question["content"]))
        return messages

    def prompt(self, messages: list[Message], model: dict[str, Any], tools: list[str]) -> Prompt:
        """What a model is given: all before the last message on its way, images if it can."""
        system = [f"Tools: {', '.join(map(tool_name, tools))}."] if tools else []
        system += 2 * [self.preprompt] if self.preprompt else []  # yes, twice
        seen = [{"role": "system", "content": "\n\n".join(system)}] if system else []
        images, asked = 0, ""
        for message in messages[1:]:
            if message["id"] not in messages[-1]["ancestors"]:
                continue
            asked = text = message["content"]
            if message["from"] == "assistant":
                text = re.sub(r"(?s)<think>.*?</think>", "", text).strip()
            for stored in reversed(message["files"] if message["from"] == "user" else []):
                mime, content = self.files[stored["value"]]
                images += mime.startswith("image/") and model["multimodal"]
                if mime.startswith("text/") or mime in DOCUMENT_TYPES:
                    head = f'<document name="{self.id}-{stored["value"]}" type="{mime}">'
                    text = f"{head}\n{content.decode(errors='replace')}\n</document>\n\n{text}"
            if text or message["from"] == "user":
                seen.append({"role": message["from"], "content": text})
        return Prompt(Words(asked), seen, images, tools, model)


# --- the model -----------------------------------------------------------------------------------


class ModelFailed(Exception):
    """The model's host answered with an error: a message, and maybe a status."""


class Stopped(Exception):
    """Somebody asked for the answer to stop."""


@dataclass
class Prompt:
    """What a model is given."""

    words: Words
    seen: list[dict[str, str]]  # the messages, as role and content
    images: int
    tools: list[str]  # names of the tool servers
    model: dict[str, Any]
    outcome: Event = field(default_factory=dict)  # what became of the question of a tool


FIXED = {
    "think": ["<th", "ink>", "pondering", " deeply", "</thi", "nk>", "\n\n", "Done", "."],
    "unicode": [
        *("Привет", ", ", "мир", "! ", "日本", "語 ", "👩‍👩‍👧", " e\u0301", " \\u0000 literal"),
        *("\nnew\u2028line", " next\u0085line", " 😀"),
    ],
}


def tokens(prompt: Prompt) -> list[str]:
    """What the model says, token by token."""
    words = prompt.words
    if "tokens" in words:
        return [f"w{index} " for index in range(int(words["tokens"]))]
    for word, said in FIXED.items():
        if word in words:
            return said
    asked = "\n".join(message["content"] for message in prompt.seen if message["role"] == "user")
    if texts := SAY.findall(asked):
        turn = sum(message["role"] == "assistant" for message in prompt.seen)
        return re.findall(r"(?s).{1,7}", texts[min(turn, len(texts) - 1)])
    if "history" in words:
        return [json.dumps(prompt.seen)]
    if "images" in words:
        return [f"I see {prompt.images} image(s)."]
    return re.findall(r"\s*\S+", "You said: " + prompt.seen[-1]["content"])


def script(prompt: Prompt) -> Iterator[Event]:
    """The events of an answer, in the order in which the model gives them."""
    words, tools = prompt.words, prompt.tools
    if "err" in words:
        raise ModelFailed(f"{words['err']} upstream says {words['err']}", int(words["err"]))
    if "reasoning_events" in words:
        yield {"type": "reasoning", "subtype": "status", "status": "Started reasoning..."}
        for token in ("Let me", " think."):
            yield {"type": "reasoning", "subtype": "stream", "token": token}
        yield {"type": "reasoning", "subtype": "status", "status": "Done in 1s."}
    said = [] if "empty" in words else tokens(prompt)
    if "reason" in words or ("tools" in words and tools):
        thoughts = ["<think>Let me", " think", " about\n\n", "this", " carefully.</think>"]
        yield from map(text_event, thoughts)
    if tools and {"elicit", "elicit_ends"} & words.keys():
        request: Event = {"elicitationId": str(uuid.uuid4()), "mode": "form", "server": tools[0]}
        request["message"] = "Which city do you mean?"
        request["fields"] = [{"kind": "string", "name": "city", "title": "City", "required": True}]
        asked: Event = {"type": "elicitation", "subtype": "request", "request": request}
        yield from tool_call("ask", "Let me ask.", "The person answered.", asked)
        said = ["The", " person", " said: accept ", json.dumps(prompt.outcome["content"])]
    elif tools and {"tool", "tools", "tool_error"} & words.keys():
        result = None if "tool_error" in words else RESULTS
        yield from tool_call(tool_name(tools[0]), "Let me look that up.", result)
        said = ["The", " tool", " said: ", RESULTS] if result else ["The", " tool", " failed."]
        if "tools" in words:
            halfway = {"subtype": "progress", "progress": 1, "total": 2, "message": "halfway"}
            yield from tool_call(tool_name(tools[-1]), "One more.", RESULTS, halfway)
    if "unstreamed" in words:
        yield {"type": "finalAnswer", "text": "".join(said), "interrupted": False}
        return
    for index, token in enumerate(said):
        if "die" in words and index == int(words["die"]):
            return
        if "file" in words and index == len(said) // 2:
            sha = sha256(PICTURE)
            yield {"type": "file", "name": "picture.png", "sha": sha, "mime": "image/png"}
        yield text_event(token)


def text_event(token: str) -> Event:
    return {"type": "stream", "token": token}


def tool_name(server: str) -> str:
    """The one tool of a tool server: `Web Search (Exa)` has `web_search_exa`."""
    return re.sub(r"\W+", "_", server.lower()).strip("_")


RESULTS = "1. first page https://example.org/first\n2. its docs https://example.org/docs"


def tool_call(name: str, said: str, result: str | None, *meanwhile: Event) -> Iterator[Event]:
    """The model says something and calls a tool, which gives back a text, or fails without one."""
    call = {"name": name, "parameters": {"query": "chat-ui"}}
    raw = {"originalId": "call_1", "argumentsRaw": json.dumps(call["parameters"])}
    base: Event = {"type": "tool", "uuid": str(uuid.uuid4())}
    yield text_event(said)
    yield base | {"subtype": "call", "call": call, "content": said} | raw
    yield base | {"subtype": "eta", "eta": 10}
    yield from (base | event for event in meanwhile)
    if not result:
        yield base | {"subtype": "error", "message": "The tool could not be reached"}
        return
    output: Event = {"text": result, "structured": {"result": result}}
    output |= {"content": [{"type": "text", "text": result}]}
    outcome = {"status": "success", "call": call, "outputs": [output], "display": True}
    yield base | {"subtype": "result", "result": outcome}


# Lines that a reader of the stream has to live with, one between every two tokens.
NOISE = [
    b'{"type":"somethingNew","value":1}\n',
    b"this is not JSON\n",
    b"\n",
    b'[{"type":"stream","token":"not an event"}]\n',
    b'{"type":"status","status":"somethingNew"}\n',
    b'"a string"\n{}\n   \n{"type":"stream"}\n{"type":null}\n',
]


# --- runs ----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Run:
    """One answer being written. It goes on when its reader leaves.

    `wire` is what the first reader gets: lines, and whether each is a token. `log` is for readers
    who come back. `messages` is the run's own copy of the conversation, as it was when the message
    arrived, with the question and an empty answer. When its first reader leaves, and `store_delay`
    after `finished`, the whole copy is written over whatever came in between; only then do the
    stream and the log end. The real server does the same (`persistConversation` in
    src/routes/conversation/[id]/+server.ts of chat-ui).
    """

    chat: ChatUI
    conversation: Conversation
    prompt: Prompt
    messages: list[Message]
    wire: list[tuple[bytes, bool]] = field(default_factory=list)
    log: list[Event] = field(default_factory=list)
    state: str = "running"
    ending: bool = False  # all that is still to come is a title, and the storing
    text: str = ""
    streamed: bool = False  # its first reader has been sent a token
    resumes: int = 0  # how often its log was asked for

    def __post_init__(self) -> None:
        self.answer = self.messages[-1]
        self.generation_id: str = self.answer["generationId"]
        self.words = self.prompt.words
        self.changed = threading.Condition()
        self.known_title = self.conversation.title  # it is written back too
        self.recent = ""  # the text after the last tool
        self.updates: list[Event] = []
        self.held = False  # its first reader gets nothing more
        self.read = 0  # so many events of the log have been read
        self._started = self._next_alive = time.monotonic()
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._write, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _write(self) -> None:
        state, failure = "completed", None
        self._tell({"type": "status", "status": "started"})
        try:
            self._speak()
            self._metadata()
            self.chat.closing.wait(self.words.number("title_delay", 0))
        except Stopped:
            state = "interrupted"
            self._metadata()
        except ModelFailed as error:
            failure = error
        if self.known_title == NEW_CHAT:
            question = next(m["content"] for m in self.messages if m["from"] == "user")
            title = self.words.get("title") or " ".join(question.split()[:5]) or NEW_CHAT
            self._tell({"type": "title", "title": title})
        if state == "interrupted":
            _, run, seen = self.conversation.stop or (0, None, None)
            if run == self.generation_id and seen is not None:  # the rest is dropped
                self.text = utf16(self.text)[: 2 * seen].decode("utf-16-le", "surrogatepass")
            self._tell({"type": "finalAnswer", "text": self.text, "interrupted": True})
        elif not self.text and "interrupted" not in self.answer:
            failure = failure or ModelFailed("No output was generated. Something went wrong.")
        if failure:
            state, (message, *status) = "error", failure.args
            event = {"type": "status", "status": "error", "message": message}
            self._tell(event | ({"statusCode": status[0]} if status else {}))
        else:
            self._tell({"type": "status", "status": "finished"})
        self.chat.may_store.wait()
        self.chat.closing.wait(self.words.number("store", self.chat.store_delay))
        with self.chat.lock, self.changed:
            if "gone_incomplete" in self.words:
                self.text = self.text[: len(self.text) // 2]
                self.updates = self.updates[: len(self.updates) // 2]
                self.answer.pop("interrupted", None)
            self.write_back()
            if state == "interrupted":
                self.conversation.stop = None
            self.state, self.ending = state, False
            self.changed.notify_all()

    def _speak(self) -> None:
        """Let the model speak."""
        words, delay = self.words, self.words.number("delay", self.chat.delay)
        noise = iter(NOISE if "noise" in words else [])
        left = words.number("delete", math.inf)
        self._pause(words.number("wait", 0))
        while not self.chat.may_speak.is_set():
            self._pause(0.02)
        if self.prompt.model["isRouter"] or "router" in words:
            self._tell(ROUTE)
        if self.prompt.tools:
            self._metadata()
        for event in script(self.prompt):
            if "request" not in event:
                self._tell(event)
            elif "elicit" in words:
                self._ask(event)
            else:
                self._tell(event)
                return
            if event.get("subtype") in ("result", "error"):
                self._tell(PROVIDER)  # once for every round
            left -= event["type"] == "stream"
            if left <= 0:
                self.chat.conversations.pop(self.conversation.id, None)
            self._pause(delay if "token" in event or "progress" in event else 0)
            if line := next(noise, b""):
                self._put(line)
        if self.text and not {"die", "unstreamed"} & words.keys():
            self._tell({"type": "finalAnswer", "text": self.recent.rstrip(), "interrupted": False})

    def _ask(self, event: Event) -> None:
        """Tell a question, and what the person says to it."""
        outcome = self.prompt.outcome
        outcome |= {"type": "elicitation", "subtype": "resolved"}
        outcome["elicitationId"] = event["request"]["elicitationId"]
        self.chat.elicitations.append(outcome)
        self._tell(event | {"expiresAt": int(1000 * time.time()) + 3_600_000})
        while "action" not in outcome:
            self._pause(0.02)
        self._tell(outcome)

    def _pause(self, seconds: float) -> None:
        """Wait, giving signs of life; raise Stopped if somebody asked for that."""
        end = time.monotonic() + seconds
        while True:
            time_now = time.monotonic()
            if self._stop.is_set() or (self.conversation.stop and time_now - self._started > 0.3):
                raise Stopped
            if time_now >= self._next_alive:
                self._put(dumps({"type": "status", "status": "keepAlive"}) + b"\n")
                self._next_alive = time_now + KEEP_ALIVE
            if time_now >= end:
                return
            self._stop.wait(min(end, self._next_alive) - time_now)

    def _put(self, line: bytes, is_token: bool = False) -> None:
        with self.changed:
            self.wire += [] if self.held else [(line, is_token)]
            self.changed.notify_all()

    def _tell(self, event: Event) -> None:
        """Send, log and store an event."""
        kind, token = event["type"], event.get("token", "")
        with self.changed:
            store(self, event)
            self.ending |= kind == "finalAnswer" or event.get("status") == "error"
            last = self.log[-1] if len(self.log) > self.read else {}
            if token and last.keys() == event.keys() and len(last["token"]) < LOG_TOKEN:
                last["token"] += token  # tokens become one event while nobody has read it
            else:
                self.log.append(dict(event))
        if kind == "stream":  # padded, so that the sizes of packets tell nothing
            event = event | {"token": token + "\0" * (16 - len(utf16(token)) // 2)}
        self._put(dumps(event) + b"\n", kind == "stream")
        if kind == "finalAnswer":
            self._put(b" " * 4096)
            self.held = "hold" in self.words

    def _metadata(self) -> None:
        """Say who runs the model, once."""
        if not self.answer.get("routerMetadata", {}).get("provider"):
            self._tell(PROVIDER)

    def write_back(self) -> None:
        """Store the whole conversation as this run knows it, over what there is."""
        self.read = len(self.log)
        if "interrupted" not in self.answer:
            self.answer["content"] = self.text
        self.answer |= {"updates": list(self.updates), "materializedSeq": len(self.log)}
        for message in self.messages:
            message.setdefault("updates", [])
        self.conversation.messages = copy.deepcopy(self.messages)
        self.conversation.title = self.known_title
        self.conversation.updated_at = now()


def store(run: Run, event: Event) -> None:
    """Let an event leave its mark on the answer message."""
    answer, kind = run.answer, event["type"]
    answer["updatedAt"] = now()
    if kind == "stream":
        run.text += event["token"]
        run.recent += event["token"]
        event = {"type": "stream", "token": "", "len": len(utf16(event["token"])) // 2}
    elif kind == "reasoning" and "token" in event:
        answer["reasoning"] = answer.get("reasoning", "") + event["token"]
    elif kind == "tool" and event["subtype"] in ("result", "error"):
        run.recent = ""
    elif kind == "title":
        run.known_title = run.conversation.title = stored_title(event["title"])
        run.conversation.updated_at = now()
    elif kind == "file":
        stored = {"type": "hash", "name": event["name"], "value": event["sha"]}
        answer["files"] = [*answer.get("files", []), stored | {"mime": event["mime"]}]
        run.conversation.files[event["sha"]] = (event["mime"], PICTURE)
    elif kind == "routerMetadata":
        answer["routerMetadata"] = {"route": "", "model": ""} | answer.get("routerMetadata", {})
        answer["routerMetadata"].update({key: value for key, value in event.items() if value})
        del answer["routerMetadata"]["type"]
        event = event | {"provider": event.get("provider")}
    elif kind == "finalAnswer":
        answer["interrupted"] = event["interrupted"]
        rounds = any(update["type"] == "tool" for update in run.updates)
        earlier = run.text.removesuffix(event["text"]) if rounds else ""
        answer["content"] = earlier + event["text"]
    run.updates.append(event)


def stream_of(run: Run) -> Pieces:
    """Everything for the first reader, up to the moment of storing.

    When it leaves, all there is is stored, as the server does.
    """
    index, state = 0, "running"
    try:
        while state == "running" or run.held:
            with run.changed:
                if len(run.wire) == index and (run.state == "running" or run.held):
                    run.changed.wait(0.05)
                lines, state = run.wire[index:], run.state
            index += len(lines)
            yield from [*lines, (b"", False)]
            run.streamed |= any(is_token for _, is_token in lines)
    finally:
        with run.chat.lock, run.changed:
            if run.state == "running":
                run.write_back()


def log_of(run: Run | None, sequence: int, heartbeat: float) -> Pieces:
    """The log of a run after an event's number, up to its end; a log that there is not is gone."""
    state = "running" if run else "gone"
    while run and state == "running":
        yield b"", False
        with run.changed:
            if len(run.log) <= sequence and run.state == "running":
                run.changed.wait(heartbeat)
            run.read = len(run.log)
            events, state = run.log[sequence:], run.state
        for event in events:
            sequence += 1
            yield b"id: %d\nevent: update\ndata: %b\n\n" % (sequence, dumps(event)), True
        if not events and state == "running":
            yield b": heartbeat\n\n", False
    yield b"event: end\ndata: %b\n\n" % dumps({"status": state}), False
