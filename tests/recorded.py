"""The exchanges in tests/captures, logs that would go with them, and what comes out of both."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llm_huggingchat import Answer, Event, EventStreamDecoder, JsonLinesDecoder, LogEnd, Replay, Run

CAPTURES = pathlib.Path(__file__).parent / "captures"
Update = dict[str, Any]
Given = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Recorded:
    """One exchange: what was asked, and the whole body of the answer."""

    method: str
    path: str
    sent: str
    status: int
    kind: str
    body: bytes
    cookies: frozenset[str]  # the names of those that were sent

    def json(self) -> Any:
        return json.loads(self.body)


def capture(name: str) -> list[Recorded]:
    """The exchanges of one scenario."""
    exchanges = json.loads((CAPTURES / f"{name}.json").read_text("utf-8"))["exchanges"]
    return [_recorded(exchange["request"], exchange["response"]) for exchange in exchanges]


def _recorded(request: dict[str, Any], response: dict[str, Any]) -> Recorded:
    return Recorded(
        request["method"],
        request["path"],
        request.get("body") or "",
        response["status"],
        dict(response["headers"]).get("content-type", ""),
        "".join(text for _, text in response["chunks"]).encode(),
        frozenset(request.get("cookie_names", ())),
    )


def streams() -> dict[str, bytes]:
    """Every stream there is, by the scenario's name and its place there."""
    return {
        f"{path.stem}-{number}": exchange.body
        for path in sorted(CAPTURES.glob("*.json"))
        for number, exchange in enumerate(capture(path.stem))
        if exchange.kind == "application/jsonl"
    }


def updates_of(stream: bytes) -> list[Update]:
    """The events of a stream as plain JSON."""
    return [json.loads(line) for line in stream.split(b"\n") if line.strip()]


def stream_of(updates: list[Update]) -> bytes:
    """A stream as the server writes it: padded, and with the spaces after the answer."""
    lines = []
    for update in updates:
        if update.get("type") == "stream":
            update = {**update, "token": update["token"].ljust(16, "\0")}
        spaces = " " * 4096 if update.get("type") == "finalAnswer" else ""
        lines.append(json.dumps(update).encode() + b"\n" + spaces.encode())
    return b"".join(lines)


def log_of(updates: list[Update], merge: int = 5) -> list[bytes]:
    """The event log of a run, an entry each: tokens merged and not padded, no keepAlive."""
    logged: list[Update] = []
    merged = 0
    for update in updates:
        if update.get("status") == "keepAlive":
            continue
        if update.get("type") == "stream":
            token = update["token"].rstrip("\0")
            if logged and logged[-1].get("type") == "stream" and merged < merge:
                token = logged.pop()["token"] + token
            else:
                merged = 0
            merged += 1
            update = {**update, "token": token}
        logged.append(update)
    entries = [
        f"id: {number}\nevent: update\ndata: {json.dumps(update)}\n\n".encode()
        for number, update in enumerate(logged, 1)
    ]
    return [*entries, b'event: end\ndata: {"status":"completed"}\n\n']


def new_answer() -> Answer:
    return Answer(lambda file: f"https://chat.example/output/{file.sha}")


class Follower:
    """What a run gives, up to its outcome."""

    def __init__(self) -> None:
        self.answer = new_answer()
        self.given: Given = []
        self._run = Run("a-run", 0.0)

    @property
    def over(self) -> bool:
        return self._run.outcome is not None

    def take(self, events: Iterable[Event | LogEnd]) -> Follower:
        for event in events:
            if isinstance(event, LogEnd):
                break
            for taken in self._run.took(event, 0.0):
                for out in self.answer.take(taken):
                    self._add((out.type, out.chunk, out.tool_call_id, out.tool_name))
        return self

    def _add(self, out: tuple[Any, ...]) -> None:
        """Add to what was given; text next to text is one text, however it was cut."""
        if self.given and out[0] == self.given[-1][0] and out[0] in ("text", "reasoning"):
            out = (out[0], self.given.pop()[1] + out[1], *out[2:])
        self.given.append(out)

    def joined(self, kind: str) -> str:
        return "".join(out[1] for out in self.given if out[0] == kind)


def follow(stream: bytes, log: bytes = b"") -> Follower:
    """Follow a stream that ends, then the run's log if it was not over."""
    decoder, follower = JsonLinesDecoder(), Follower()
    follower.take(decoder.feed(stream))
    if not log:
        follower.take(decoder.end())
    elif not follower.over:
        follower.answer.take(Replay())
        follower.take(EventStreamDecoder().feed(log))
    return follower


def tell(*events: Event) -> Follower:
    return Follower().take(events)
