"""One run against a server and a network in which anything breaks: sent once, given once."""

import asyncio
import contextlib
import json
import selectors
from collections.abc import Awaitable, Iterable
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import Follower, Json, log_of, stream_of

import llm_huggingchat as plugin
from llm_huggingchat import ConnectionLost, FinalAnswer, HttpError, HttpResponse, NotFound, limits
from pure.cuts import ASKED, FAILED, FINISHED, RESOLVED

WORDS = ("one ", "two ", "three ", "four ")
TOKENS = [{"type": "stream", "token": word} for word in WORDS]
TEXT = "".join(WORDS)
FINAL = {"type": "finalAnswer", "text": TEXT}
TITLE = {"type": "title", "title": "T"}
ANSWER: list[Json] = [{"type": "status", "status": "started"}, *TOKENS, FINAL, TITLE, FINISHED]
CUT = ConnectionLost("cut", sent=True)
SILENT = ConnectionLost("silent", sent=True, silent=True)
UNSENT = ConnectionLost("nobody is listening there", sent=False)
CHAT = plugin.Credentials(plugin.parse_server("https://chat.example"))
TARGET = plugin.RunTarget(CHAT, "c", "g", "p", b"{}", "text/plain")


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
        loop = asyncio.SelectorEventLoop(self)
        with mock.patch("time.monotonic", self.time), contextlib.closing(loop):
            return loop.run_until_complete(work)


class Exchange(contextlib.AbstractAsyncContextManager["Exchange"]):
    """A response that comes step by step: bytes, seconds that pass, or an error."""

    def __init__(self, steps: Iterable[Any], status: int = 200) -> None:
        self.response = HttpResponse(status)
        self._steps = iter(steps)

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

    def __init__(self, *faults, answer=ANSWER, lag=0.0, log=True, grows=False):
        self.faults = [fault if isinstance(fault, tuple) else (fault, 0) for fault in faults]
        self.answer, self.lag, self.log, self.grows = answer, lag, log, grows
        self.clock, self.follower = Clock(), Follower()
        self.arrivals: list[float] = []  # when the message came
        self.asked: list[str] = []
        self.starts: list[int] = []  # where in its log a run is followed
        self.run: plugin.Run

    def drive(self) -> Exception | None:
        """Let the run come to its end: the error that it ends with."""

        async def drive() -> None:
            client: Any = self
            again = self.follower.answer.rewind
            self.run = plugin.Run(client, TARGET, self.take, again, print)
            await self.run.drive()

        try:
            self.clock.run(drive())
        except (ConnectionLost, HttpError, NotFound, plugin.HuggingChatError) as error:
            return error
        return None

    def heal(self) -> None:
        """The run comes to its end: sent once, and given once."""
        assert self.drive() is None
        assert (self.text, len(self.arrivals)) == (TEXT, 1)

    def take(self, update: plugin.Update) -> None:
        self.follower.take([update])

    @property
    def stored(self) -> bool:
        return bool(self.arrivals) and self.clock.now >= self.arrivals[0] + self.lag

    def fault(self) -> tuple[Any, int]:
        assert len(self.asked) < 3000, "it goes on for ever"
        return self.faults.pop(0) if self.faults else ("", 0)

    sessions = mock.Mock(renew_after=mock.AsyncMock(return_value=False))

    def open(self, credentials: Any, method: str, path: str, *_: Any) -> Exchange:
        self.asked.append("send" if method == "POST" else "follow")
        kind, number = self.fault()
        if isinstance(kind, Exception):
            return Exchange([kind])
        if method == "POST":
            return self.send(kind, number)
        self.starts.append(int(path.rpartition("=")[2]))
        return self.follow(kind, number, self.starts[-1])

    def send(self, kind: Any, number: int) -> Exchange:
        if kind == "late":  # it arrives, but only after nothing was heard for long
            wait = 0.8 * limits.reconnect_timeout * (number % 100) / 100
            self.arrivals.append(self.clock.now + wait)
            return Exchange([SILENT])
        if kind not in (400, 502):
            self.arrivals.append(self.clock.now)
        if isinstance(kind, int):
            return Exchange([], kind)
        sent = stream_of(self.answer)
        # A proxy may end a stream in good form, but not after its last event.
        ends: dict[Any, Any] = {"": [self.lag], "clean": []}
        return Exchange([sent[: number % len(sent)] if kind else sent, *ends.get(kind, [CUT])])

    def follow(self, kind: Any, number: int, start: int) -> Exchange:
        if isinstance(kind, int) or not self.log:
            return Exchange([], max(kind, 502) if self.log else 404)
        if kind == "gone" and self.stored:
            return Exchange([b'event: end\ndata: {"status":"gone"}\n\n'])

        def steps() -> Any:
            *entries, end = log_of(self.answer, 1)
            rest = b"".join(entries[start:])
            if kind:
                yield rest[: number % (len(rest) + 1)]
                yield CUT
            yield rest
            while not self.stored:
                yield b": heartbeat\n\n"
                yield 0.25
            yield end

        return Exchange(steps())

    async def conversation(
        self, credentials: Any, id: str, type: Any = plugin.Conversation[plugin.StoredMessage]
    ) -> Any:
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
        return plugin.decode(json.dumps({"messages": messages}), type)

    @property
    def text(self) -> str:
        return self.follower.joined("text")

    @property
    def seconds(self) -> float:
        return self.clock.now - 1000.0


KINDS = st.sampled_from([UNSENT, CUT, SILENT, "late", 502, 500, "cut", "clean", "gone"])
SUCH_FAULTS = st.lists(st.tuples(KINDS, st.integers(0, 6_000)), max_size=8)


@given(SUCH_FAULTS, st.sampled_from([0.0, 0.1, 1.0, 5.0]))
def test_whatever_breaks_an_answer_is_sent_once_and_given_once(faults, lag):
    world = World(*faults, lag=lag)
    error = world.drive()
    assert len(world.arrivals) <= 1
    if error is None:
        assert (world.text, len(world.arrivals)) == (TEXT, 1)
        assert world.run.may_send_next
        assert world.stored
        assert isinstance(world.run.progress.outcome, FinalAnswer)
    else:  # only what fails again and again makes a run fail
        assert TEXT.startswith(world.text)
        assert isinstance(error, (ConnectionLost, HttpError))
        assert world.seconds >= limits.reconnect_timeout or len(world.asked) >= 3


@pytest.mark.parametrize(
    ("faults", "asked"),
    [
        ([], "send"),
        ([UNSENT, UNSENT], "send send send"),
        ([CUT], "send look look send"),
        ([502], "send look look send"),
        ([500], "send look follow"),
        ([("cut", 0), UNSENT, UNSENT, UNSENT], "send look look look look follow"),
        ([500, UNSENT, 502, UNSENT], "send look look look look follow"),
        ([("cut", 700), ("cut", 300)], "send follow follow"),
        ([("clean", 700)], "send follow"),
        ([("cut", 200), "gone"], "send follow look"),
        ([("cut", 200), 502], "send follow follow"),
        # The end of the answer came, but not that of the stream.
        ([("cut", 5500)], "send follow"),
    ],
)
def test_run_heals_with_few_requests(faults, asked):
    world = World(*faults)
    world.heal()
    assert world.asked == asked.split()


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


@pytest.mark.parametrize(("lag", "grows"), [(20, False), (100, True)])
def test_server_without_logs_is_read_until_the_answer_is_stored(lag, grows):
    world = World(("cut", 300), lag=lag, log=False, grows=grows)
    world.heal()
    assert lag <= world.seconds < lag + limits.reconnect_timeout


def test_answer_that_is_saved_on_the_way_is_given_but_is_not_yet_stored():
    """chat-ui saves an answer alone every few seconds, and the conversation only at the end."""

    class Saving(World):
        async def conversation(self, *arguments: Any) -> Any:
            found = await super().conversation(*arguments)
            if answer := self.arrivals and found.answer_of("g"):
                ends = [FINAL] if self.seconds < 5 else [FINAL, FINISHED]
                answer.content = TEXT
                answer.updates = [msgspec.Raw(json.dumps(end).encode()) for end in ends]
            return found

    world = Saving(("cut", 300), lag=1e6, log=False)
    world.heal()
    assert 5 <= world.seconds < 5 + limits.reconnect_timeout


def test_run_at_work_is_never_given_up():
    """Hours of a tool that works, behind a proxy that cuts all the time."""

    class Working(World):
        def follow(self, kind: Any, number: int, start: int) -> Exchange:
            if self.stored:
                return super().follow(kind, number, start)
            return Exchange([30.0, b": heartbeat\n\n", CUT])

    world = Working(("cut", 60), lag=7_200)
    world.heal()
    assert world.seconds > 7_000


@pytest.mark.parametrize("faults", [[], [("cut", 5500)]], ids=["stream", "log"])
def test_answer_that_is_never_stored_is_waited_for_in_bounded_time(faults):
    """chat-ui's last write has failed: its heartbeat goes on for ever."""
    world = World(*faults, lag=1e6)
    world.heal()
    assert not world.run.may_send_next
    assert world.seconds == pytest.approx(limits.store_timeout, abs=2)


def test_next_message_may_be_sent_where_this_one_was_not():
    untrusted, endless = plugin.HuggingChatError("not trusted"), plugin.TooLarge("no end")
    for error, settled in ((untrusted, True), (endless, False)):
        world = World(error)
        assert world.drive() is error
        assert (world.run.may_send_next, world.asked) == (settled, ["send"])


def test_server_that_goes_away_again_after_a_late_message_has_its_full_time():
    class GoneAgain(World):
        def follow(self, *arguments: Any) -> Exchange:
            if self.seconds < limits.reconnect_timeout + 5:
                return Exchange([UNSENT])
            return super().follow(*arguments)

    world = GoneAgain(("late", 99))
    world.heal()


def test_log_is_taken_up_where_it_broke_and_only_its_end_once_the_answer_is_there():
    broken, answered = World(("cut", 200), ("cut", 300)), World(("cut", 700))
    assert broken.drive() is answered.drive() is None
    starts = [*broken.starts, *answered.starts]
    assert starts[0] == 0 < starts[1] < len(ANSWER) < starts[2]


def test_message_that_the_server_lost_is_sent_again_and_its_new_log_read_from_the_start():
    """Only a sign of life and a title had come: nothing of an answer is given twice."""

    class Forgetful(World):
        async def conversation(self, *arguments: Any) -> Any:
            self.arrivals.clear()
            found = await super().conversation(*arguments)
            self.faults.append(("cut", 300))
            return found

    begun = [ANSWER[0], TITLE]
    heard = len(b"".join(log_of(begun)[:2]))
    world = Forgetful(("cut", 60), ("cut", heard), "gone", answer=[*begun, *ANSWER[1:]])
    world.heal()
    assert world.asked.count("look") == 1


EMPTY = {"type": "finalAnswer", "text": ""}
ALL = FinalAnswer(TEXT)
FULL = plugin.StatusUpdate("error", "no", 503)
NOTHING = plugin.StatusUpdate("error", "No output was generated")
QUESTION = plugin.decode(json.dumps(ASKED), plugin.ElicitationUpdate)
CALLED = {"type": "tool", "subtype": "call", "uuid": "u"}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    ("answer", "outcome", "died"),
    [
        ([*TOKENS, FINAL, FINISHED], ALL, False),
        ([*TOKENS, FINAL, FAILED], ALL, False),
        ([FAILED], FULL, False),
        ([*TOKENS, FAILED], FULL, False),
        ([EMPTY, FAILED], FULL, False),
        ([EMPTY, FINISHED], NOTHING, False),
        ([CALLED, EMPTY, FINISHED], FinalAnswer(""), False),
        ([{"type": "stream", "token": ""}, FINISHED], NOTHING, False),
        ([*TOKENS, FINISHED], FinalAnswer("", True), True),  # the model died
        ([*TOKENS, ASKED, FINISHED], QUESTION, False),
        ([ASKED, RESOLVED, *TOKENS, FINAL, FINISHED], ALL, False),
    ],
)
def test_run_comes_to_an_answer_a_failure_or_a_question(answer, outcome, died, cut):
    world = World(*([CUT] if cut else []), answer=answer)
    if cut:  # it arrived all the same
        world.arrivals.append(world.clock.now)
    assert world.drive() is None
    progress = world.run.progress
    assert (progress.outcome, progress.broke_off, world.run.may_send_next) == (outcome, died, True)
    assert progress.answered.is_set()
