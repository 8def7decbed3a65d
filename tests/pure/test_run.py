"""One run against a server and a network in which anything breaks: sent once, given once."""

from __future__ import annotations

import asyncio
import json
import re
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, cast
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import Follower, Json, log_of, stream_of

from llm_huggingchat import (
    ConnectionLost,
    Conversation,
    Credentials,
    ElicitationUpdate,
    FinalAnswer,
    HttpError,
    HttpResponse,
    HuggingChatError,
    IncompleteAnswer,
    NotFound,
    Run,
    RunTarget,
    StatusUpdate,
    TitleUpdate,
    TooLarge,
    Update,
    decode,
    limits,
    parse_server,
)

WORDS = ("one ", "two ", "three ", "four ")
TOKENS = [{"type": "stream", "token": word} for word in WORDS]
FINAL = {"type": "finalAnswer", "text": "".join(WORDS)}
TITLE = {"type": "title", "title": "T"}
FINISHED = {"type": "status", "status": "finished"}
ASKED = {"type": "elicitation", "subtype": "request", "request": {"elicitationId": "q"}}
RESOLVED = {"type": "elicitation", "subtype": "resolved", "elicitationId": "q"}
ANSWER: list[Json] = [{"type": "status", "status": "started"}, *TOKENS, FINAL, TITLE, FINISHED]
CUT = ConnectionLost("cut", sent=True)
SILENT = ConnectionLost("silent", sent=True, silent=True)
UNSENT = ConnectionLost("nobody is listening there", sent=False)


class Clock(selectors.SelectSelector):
    """Time that stands still while something is to be done, and else goes on to what is next."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found and timeout != 0:
            assert timeout is not None, "it waits for what never comes"
            self.now += max(timeout, 1e-6)
        return found

    def time(self) -> float:
        return self.now

    def run(self, work: Awaitable[Any]) -> Any:
        with mock.patch("time.monotonic", self.time):
            loop = asyncio.SelectorEventLoop(self)
            try:
                return loop.run_until_complete(work)
            finally:
                loop.close()


class Exchange:
    """A response that comes step by step: bytes, seconds that pass, or an error."""

    def __init__(self, steps: Callable[[], Any], status: int = 200) -> None:
        self.response = HttpResponse(status)
        self._steps = steps()

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def read(self, silence: float) -> bytes:
        for step in self._steps:
            if isinstance(step, Exception):
                raise step
            if not isinstance(step, bytes):
                await asyncio.sleep(step)
            elif step:
                return step
        return b""


class World:
    """A server, and a network in which what `faults` names goes wrong: one a request.

    `lag` is how many seconds after its end a run is stored; until then its stored answer `grows`
    or not. Without `log` there are no logs.
    """

    def __init__(
        self,
        *faults: Any,
        answer: list[Json] = ANSWER,
        lag: float = 0.0,
        log: bool = True,
        grows: bool = False,
    ) -> None:
        self.faults = [fault if isinstance(fault, tuple) else (fault, 0) for fault in faults]
        self.clock, self.answer, self.lag, self.log = Clock(), answer, lag, log
        self.grows = grows
        self.arrivals: list[float] = []  # when the message came
        self.asked: list[str] = []
        self.notes: list[str] = []
        self.follower = Follower()
        self.titles = 0
        target = RunTarget(
            Credentials(parse_server("https://chat.example")), "c", "g", "p", b"{}", "text/plain"
        )
        self.run: Run
        self.target = target

    def drive(self) -> Exception | None:
        """Let the run come to its end: the error that it ends with."""

        async def drive() -> Exception | None:
            client: Any = self
            again = self.follower.answer.rewind
            self.run = Run(client, self.target, self.take, again, self.notes.append)
            try:
                await self.run.drive()
            except (
                ConnectionLost,
                HttpError,
                NotFound,
                IncompleteAnswer,
                HuggingChatError,
            ) as error:
                return error
            return None

        return cast("Exception | None", self.clock.run(drive()))

    def take(self, update: Update) -> None:
        self.titles += isinstance(update, TitleUpdate)
        self.follower.take([update])

    @property
    def stored(self) -> bool:
        return bool(self.arrivals) and self.clock.now >= self.arrivals[0] + self.lag

    def fault(self) -> tuple[Any, int]:
        assert len(self.asked) < 3000, "it goes on for ever"
        return self.faults.pop(0) if self.faults else ("", 0)

    # The client's calls

    def open(self, credentials: Any, method: str, path: str, *_: Any) -> Exchange:
        self.asked.append(f"{method} {path}")
        kind, number = self.fault()
        if isinstance(kind, Exception):
            return Exchange(lambda: iter([kind]))
        if method == "POST":
            return self.send(kind, number)
        return self.follow(kind, number, int(path.rpartition("=")[2]))

    def send(self, kind: Any, number: int) -> Exchange:
        if kind == "late":  # it arrives, but only after nothing was heard for long
            self.arrivals.append(
                self.clock.now + 0.8 * limits.reconnect_timeout * (number % 100) / 100
            )
            return Exchange(lambda: iter([SILENT]))
        if kind in (400, 502):
            return Exchange(lambda: iter([]), kind)
        self.arrivals.append(self.clock.now)
        if kind == 500:
            return Exchange(lambda: iter([]), kind)
        sent = stream_of(self.answer)
        ends: dict[Any, Any] = {
            "": [self.lag],
            "clean": [],
            "broken": [UNSENT],
        }  # as TLS that breaks may be told
        end: list[Any] = ends.get(kind, [CUT])
        # A proxy may end a stream in good form, but not after its last event.
        return Exchange(lambda: iter([sent[: number % len(sent)] if kind else sent, *end]))

    def follow(self, kind: Any, number: int, start: int) -> Exchange:
        if isinstance(kind, int) or not self.log:
            return Exchange(lambda: iter([]), 404 if not self.log else max(kind, 502))
        if kind == "gone" and self.stored:
            return Exchange(lambda: iter([b'event: end\ndata: {"status":"gone"}\n\n']))

        def steps() -> Any:
            entries = log_of(self.answer, 1)
            end = entries.pop()
            rest = b"".join(entries[start:])
            if kind:
                yield rest[: number % (len(rest) + 1)]
                yield CUT
            yield rest
            while not self.stored:
                yield b": heartbeat\n\n"
                yield 0.25
            yield end

        return Exchange(steps)

    async def conversation(self, credentials: Any, id: str, type: Any = Conversation) -> Any:
        self.asked.append("look")
        kind, _ = self.fault()
        await asyncio.sleep(0.01)
        if kind == "deleted":
            raise NotFound
        if kind:
            raise HttpError(HttpResponse(kind)) if isinstance(kind, int) else UNSENT
        message: Json = {"id": "a", "generationId": "g"}
        if self.grows:
            message["updates"] = [{"type": "stream", "len": 0}] * int(self.seconds)
        if self.stored:
            text = "".join(each.get("token", "") for each in self.answer)
            marks = [each for each in self.answer if each["type"] not in ("stream", "title")]
            message |= {"content": text, "updates": marks}
        here = any(arrival <= self.clock.now for arrival in self.arrivals)
        messages = [{"id": "p"}, *([message] if here else [])]
        return decode(json.dumps({"messages": messages}), type)

    @property
    def sessions(self) -> World:
        return self

    async def renew_after(self, *_: Any) -> bool:
        return False

    # What came of it

    @property
    def text(self) -> str:
        return self.follower.joined("text")

    @property
    def seconds(self) -> float:
        return self.clock.now - 1000.0

    def came(self, *asked: str) -> bool:
        """Were these the requests, in order?"""
        pattern = " ".join(asked).replace("follow", r"GET \S+=(\d+)").replace("send", r"POST \S+")
        return re.fullmatch(pattern, " ".join(self.asked)) is not None


SUCH_FAULTS = st.lists(
    st.tuples(
        st.sampled_from([UNSENT, CUT, SILENT, "late", 502, 500, "cut", "clean", "gone"]),
        st.integers(0, 6_000),
    ),
    max_size=8,
)


@given(SUCH_FAULTS, st.sampled_from([0.0, 0.1, 1.0, 5.0]))
def test_whatever_breaks_an_answer_is_sent_once_and_given_once(faults, lag):
    world = World(*faults, lag=lag)
    error = world.drive()
    assert len(world.arrivals) <= 1
    if error is None:
        assert len(world.arrivals) == 1
        assert world.text == "".join(WORDS)
        assert world.run.is_settled
        assert world.stored
        assert isinstance(world.run.progress.outcome, FinalAnswer)
    else:  # only what fails again and again makes a run fail
        assert "".join(WORDS).startswith(world.text)
        assert isinstance(error, (ConnectionLost, HttpError))
        assert world.seconds >= limits.reconnect_timeout or len(world.asked) >= 3


@pytest.mark.parametrize(
    ("faults", "asked"),
    [
        ([], ["send"]),
        ([UNSENT, UNSENT], ["send", "send", "send"]),
        ([CUT], ["send", "look", "look", "send"]),
        ([502], ["send", "look", "look", "send"]),
        ([500], ["send", "look", "follow"]),
        ([("cut", 0), UNSENT, UNSENT, UNSENT], ["send", *["look"] * 4, "follow"]),
        ([500, UNSENT, 502, UNSENT], ["send", *["look"] * 4, "follow"]),
        ([("cut", 700), ("cut", 300)], ["send", "follow", "follow"]),
        ([("clean", 700)], ["send", "follow"]),
        ([("cut", 200), "gone"], ["send", "follow", "look"]),
        ([("cut", 200), 502], ["send", "follow", "follow"]),
        # The end of the answer came, but not that of the stream.
        ([("cut", 5500)], ["send", "follow"]),
    ],
)
def test_run_heals_with_few_requests(faults, asked):
    world = World(*faults)
    assert world.drive() is None
    assert world.came(*asked), world.asked
    assert (world.text, len(world.arrivals)) == ("".join(WORDS), 1)


@pytest.mark.parametrize(
    ("faults", "kind", "seconds"),
    [
        ([UNSENT] * 99, ConnectionLost, limits.max_attempts),
        ([502, "", ""] * 99, HttpError, 10),
        ([400], HttpError, 1),
        ([("cut", 200), *[UNSENT] * 999], ConnectionLost, limits.reconnect_timeout + 1),
        ([CUT, "deleted"], NotFound, 1),
        ([("cut", 200), "gone", "deleted"], NotFound, 1),
    ],
)
def test_what_cannot_be_healed_is_given_up_in_bounded_time(faults, kind, seconds):
    world = World(*faults)
    assert isinstance(world.drive(), kind)
    assert world.seconds <= seconds


@pytest.mark.parametrize(("lag", "grows"), [(20, False), (300, True)])
def test_server_without_logs_is_read_until_the_answer_is_stored(lag, grows):
    world = World(("cut", 300), lag=lag, log=False, grows=grows)
    assert world.drive() is None
    assert world.text == "".join(WORDS)
    assert lag <= world.seconds < lag + limits.reconnect_timeout


def test_answer_that_is_saved_on_the_way_is_given_but_is_not_yet_stored():
    """chat-ui saves an answer alone every few seconds, and the conversation only at the end."""

    class Saving(World):
        async def conversation(self, *arguments: Any) -> Any:
            found = await super().conversation(*arguments)
            if answer := self.arrivals and found.answer_of("g"):
                ends = [FINAL] if self.seconds < 5 else [FINAL, FINISHED]
                answer.content = "".join(WORDS)
                answer.updates = msgspec.Raw(json.dumps(ends).encode())
            return found

    world = Saving(("cut", 300), lag=1e6, log=False)
    assert world.drive() is None
    assert world.text == "".join(WORDS)
    assert 5 <= world.seconds < 5 + limits.reconnect_timeout


def test_answer_that_stays_half_is_an_error_in_bounded_time():
    world = World(("cut", 300), lag=1e6, log=False)
    assert isinstance(world.drive(), IncompleteAnswer)
    assert limits.reconnect_timeout <= world.seconds <= limits.reconnect_timeout + 10


def test_run_at_work_is_never_given_up():
    """A day of a tool that works, behind a proxy that cuts all the time."""

    class Working(World):
        def follow(self, kind: Any, number: int, start: int) -> Exchange:
            if self.stored:
                return super().follow(kind, number, start)
            return Exchange(lambda: iter([30.0, b": heartbeat\n\n", CUT]))

    world = Working(("cut", 60), lag=86_400)
    assert world.drive() is None
    assert world.text == "".join(WORDS)
    assert world.seconds > 86_000


@pytest.mark.parametrize("faults", [[], [("cut", 5500)]], ids=["stream", "log"])
def test_answer_that_is_never_stored_is_waited_for_in_bounded_time(faults):
    """chat-ui's last write has failed: its heartbeat goes on for ever."""
    world = World(*faults, lag=1e6)
    assert world.drive() is None
    assert world.text == "".join(WORDS)
    assert not world.run.is_settled
    assert world.seconds == pytest.approx(limits.store_timeout, abs=2)


@pytest.mark.parametrize(
    ("error", "settled"),
    [(HuggingChatError("its certificate is not trusted"), True), (TooLarge("no end"), False)],
)
def test_next_message_may_be_sent_where_this_one_was_not(error, settled):
    world = World(error)
    assert world.drive() is error
    assert world.run.is_settled is settled
    assert world.came("send")


def test_server_that_goes_away_again_after_a_late_message_has_its_full_time():
    class GoneAgain(World):
        def follow(self, *arguments: Any) -> Exchange:
            if self.seconds < limits.reconnect_timeout + 5:
                return Exchange(lambda: iter([UNSENT]))
            return super().follow(*arguments)

    world = GoneAgain(("late", 99))
    assert world.drive() is None
    assert (world.text, len(world.arrivals)) == ("".join(WORDS), 1)


def test_log_is_taken_up_where_it_broke_and_only_its_end_once_the_answer_is_there():
    starts = []
    for world in (World(("cut", 200), ("cut", 300)), World(("cut", 700))):
        assert world.drive() is None
        starts += [int(asked.rpartition("=")[2]) for asked in world.asked if "=" in asked]
    assert starts[0] == 0 < starts[1] < len(ANSWER) < starts[2]


def test_message_that_the_server_lost_is_sent_again_and_its_new_log_read_from_the_start():
    """Only a sign of life and a title had come: nothing of an answer is given twice."""

    class Forgetful(World):
        async def conversation(self, *arguments: Any) -> Any:
            self.arrivals.clear()
            found = await super().conversation(*arguments)
            self.faults.append(("cut", 300))
            return found

    begun = [{"type": "status", "status": "started"}, TITLE]
    heard = len(b"".join(log_of(begun)[:2]))
    world = Forgetful(("cut", 60), ("cut", heard), "gone", answer=[*begun, *ANSWER[1:]])
    assert world.drive() is None
    assert world.asked.count("look") == 1
    assert world.text == "".join(WORDS)


# --- what a run comes to ---

EMPTY = {"type": "finalAnswer", "text": ""}
FAILED = {"type": "status", "status": "error", "message": "full", "statusCode": 503}
NOTHING = StatusUpdate("error", "No output was generated")
CALLED = {"type": "tool", "subtype": "call", "uuid": "u"}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    ("answer", "outcome", "died"),
    [
        ([*TOKENS, FINAL, FINISHED], FinalAnswer("".join(WORDS)), False),
        ([*TOKENS, FINAL, FAILED], FinalAnswer("".join(WORDS)), False),
        ([FAILED], StatusUpdate("error", "full", 503), False),
        ([*TOKENS, FAILED], StatusUpdate("error", "full", 503), False),
        ([EMPTY, FAILED], StatusUpdate("error", "full", 503), False),
        ([EMPTY, FINISHED], NOTHING, False),
        ([CALLED, EMPTY, FINISHED], FinalAnswer(""), False),
        ([FINISHED], NOTHING, False),
        ([{"type": "stream", "token": ""}, FINISHED], NOTHING, False),
        ([*TOKENS, FINISHED], FinalAnswer("", True), True),  # the model died
        ([*TOKENS, ASKED, FINISHED], decode(json.dumps(ASKED), ElicitationUpdate), False),
        ([ASKED, RESOLVED, *TOKENS, FINAL, FINISHED], FinalAnswer("".join(WORDS)), False),
    ],
)
def test_run_comes_to_an_answer_a_failure_or_a_question(answer, outcome, died, cut):
    world = World(*([("cut", 0), "", ""] if cut else []), answer=answer)
    if cut:
        world.arrivals.append(world.clock.now)
        world.faults = [(CUT, 0)]
    assert world.drive() is None
    assert (world.run.progress.outcome, world.run.progress.died, world.run.is_settled) == (
        outcome,
        died,
        True,
    )
    assert world.run.progress.answered.is_set()
