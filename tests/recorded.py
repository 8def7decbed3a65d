"""The exchanges in tests/captures, their runs' logs, and what an answer makes of both."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llm_huggingchat import (
    NO_FEATURES,
    Answer,
    EventStreamDecoder,
    FinalAnswer,
    JsonLinesDecoder,
    LogEnd,
    PromptedFeatures,
    RouterMetadata,
    TitleUpdate,
    Update,
)

CAPTURES = pathlib.Path(__file__).parent / "captures"
Json = dict[str, Any]
Given = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Recorded:
    """One exchange: what was asked, and the whole answer."""

    method: str
    path: str
    sent: str
    sent_headers: dict[str, str]
    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool = False  # its reader left in the middle

    @property
    def kind(self) -> str:
        return self.headers.get("content-type", "")

    def json(self) -> Any:
        return json.loads(self.body)


def capture(name: str) -> list[Recorded]:
    """The exchanges of one scenario."""
    found = []
    for exchange in json.loads((CAPTURES / f"{name}.json").read_text("utf-8"))["exchanges"]:
        asked, given = exchange["request"], exchange["response"]
        request = (asked["method"], asked["path"], asked.get("body") or "", asked["headers"])
        body = "".join(text for _, text in given["chunks"]).encode()
        headers = dict(given["headers"])
        found.append(Recorded(*request, given["status"], headers, body, given["cut"]))
    return found


def exchanges() -> dict[str, Recorded]:
    """Every exchange there is, by the scenario's name and its place there."""
    return {
        f"{path.stem}-{number}": exchange
        for path in sorted(CAPTURES.glob("*.json"))
        for number, exchange in enumerate(capture(path.stem))
    }


def streams() -> dict[str, bytes]:
    """Every stream there is, by the same."""
    return {n: each.body for n, each in exchanges().items() if each.kind == "application/jsonl"}


def updates_of(stream: bytes) -> list[Json]:
    """The updates of a stream as plain JSON."""
    return [json.loads(line) for line in stream.split(b"\n") if line.strip()]


def stream_of(updates: list[Json]) -> bytes:
    """A stream as the server writes it: padded, and with the spaces after the answer."""
    lines = []
    for update in updates:
        if update.get("type") == "stream":
            update = {**update, "token": update["token"].ljust(16, "\0")}
        spaces = " " * 4096 if update.get("type") == "finalAnswer" else ""
        lines.append(json.dumps(update).encode() + b"\n" + spaces.encode())
    return b"".join(lines)


def log_of(updates: list[Json], merge: int = 5) -> list[bytes]:
    """The event log of a run, an entry each: tokens merged and not padded, no keepAlive."""
    logged: list[Json] = []
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


class Follower:
    """What an answer gives to llm, up to its end."""

    def __init__(self, features: PromptedFeatures = NO_FEATURES, artifacts: bool = True) -> None:
        self.answer = Answer(lambda sha: f"https://chat.example/output/{sha}", features, artifacts)
        self.given: Given = []

    def take(self, updates: Iterable[Update | LogEnd]) -> Follower:
        for update in updates:
            late = self.answer.final and not isinstance(update, (TitleUpdate, RouterMetadata))
            if not (isinstance(update, LogEnd) or late or self._is_empty(update)):
                self._add(self.answer.add(update))
        return self

    def again(self, updates: Iterable[Update | LogEnd]) -> Follower:
        """The same updates once more, from the first."""
        self.answer.rewind()
        return self.take(updates)

    def _is_empty(self, update: Update) -> bool:
        """Whether this is a final answer that the reason for it follows, as a failure."""
        final = isinstance(update, FinalAnswer) and not (update.text or update.interrupted)
        return final and not self.answer.begun

    def end(self) -> Follower:
        """The run broke off."""
        self._add(self.answer.end())
        return self

    def _add(self, events: Iterable[Any]) -> None:
        """Add to what was given; text next to text is one text, however it was cut."""
        for event in events:
            out = (event.type, event.chunk, event.tool_call_id, event.tool_name)
            if self.given and out[0] == self.given[-1][0] and out[0] in ("text", "reasoning"):
                out = (out[0], self.given.pop()[1] + out[1], *out[2:])
            self.given.append(out)

    def joined(self, kind: str) -> str:
        return "".join(out[1] for out in self.given if out[0] == kind)


def follow(stream: bytes, log: bytes = b"", **options: Any) -> Follower:
    """Follow a stream that ends, then the run's log if it was not over."""
    decoder, follower = JsonLinesDecoder(), Follower(**options)
    follower.take(decoder.feed(stream))
    if not log:
        follower.take(decoder.end())
    elif not follower.answer.final:
        follower.again(EventStreamDecoder().feed(log))
    return follower


def told(*updates: Update, **options: Any) -> Follower:
    return Follower(**options).take(updates)
