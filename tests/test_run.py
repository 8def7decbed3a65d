"""A run's states, with plain values: whatever breaks, sent once, given once, stored before done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import new_answer

from llm_huggingchat import (
    BEYOND,
    Backoff,
    ConnectionLost,
    Done,
    Elicitation,
    ElicitationResolved,
    Event,
    Fail,
    Failed,
    FinalAnswer,
    Finished,
    Follow,
    HttpError,
    HttpResponse,
    IncompleteAnswer,
    KeepAlive,
    LogEnd,
    Look,
    NotFound,
    Progress,
    Reasoning,
    Replay,
    Run,
    Send,
    State,
    Text,
    Title,
    TooLarge,
    ToolCall,
    ToolResult,
    Wait,
    limits,
)

CUT = ConnectionLost("cut", sent=True)
UNSENT = ConnectionLost("nobody is listening there", sent=False)
SILENT = ConnectionLost("silent", sent=True, silent=True)
HI = FinalAnswer("hi", False)
STORED: dict[str, Any] = {
    "content": "hi",
    "updates": [
        {"type": "stream", "len": 2},
        {"type": "finalAnswer", "text": "hi"},
        {"type": "status", "status": "finished"},
    ],
}
HALF: dict[str, Any] = {"content": "h", "updates": [{"type": "stream", "len": 1}]}


def refused(status: int) -> HttpError:
    return HttpError(HttpResponse(status, "", b""))


def sent() -> Run:
    """A run whose message is on its way."""
    run = Run("g", 0.0)
    assert run.next(0.0) == Send()
    return run


def taken() -> Run:
    """A run that began to speak, and whose connection then broke."""
    run = sent()
    assert run.took(Text("h"), 0.0) == [Text("h")]
    run.lost(CUT, 0.0)
    return run


def answered() -> Run:
    run = sent()
    for event in (Text("hi"), HI):
        assert run.took(event, 0.0) == [event]
    return run


def state(run: Run) -> State:
    return run.state


def why(run: Run, now: float = 0.0) -> Exception:
    """Why a run failed."""
    step = run.next(now)
    assert isinstance(step, Fail), step
    return step.why


# --- the usual way --------------------------------------------------------------------


def test_message_is_in_doubt_as_soon_as_it_is_being_sent():
    run = Run("g", 0.0)
    assert state(run) is State.NEW
    assert run.is_settled
    assert run.next(0.0) == Send()
    assert state(run) is State.SENT
    assert not run.is_settled


def test_answer_is_over_with_the_final_answer_and_stored_with_the_end_of_its_stream():
    run = answered()
    assert run.outcome == HI
    assert state(run) is State.ANSWERED
    assert run.took(Title("T"), 0.0) == [Title("T")]
    assert run.took(Finished(), 0.0) == []
    assert not run.is_settled
    run.ended(0.0)
    assert state(run) is State.STORED
    assert run.is_settled
    assert run.next(0.0) == Done()


@pytest.mark.parametrize("last", [Finished(), Failed("late")])
def test_title_may_come_after_the_last_status(last):
    run = answered()
    run.took(last, 0.0)
    assert run.took(Title("T"), 0.0) == [Title("T")]
    assert run.took(KeepAlive(), 0.0) == []
    run.ended(0.0)
    assert state(run) is State.STORED


def test_stream_that_ends_before_finished_was_cut():
    run = answered()
    run.ended(0.0)
    assert not run.is_settled
    assert run.next(0.0) == Follow(BEYOND)


@pytest.mark.parametrize("status", ["completed", "error", "interrupted", "gone"])
def test_answered_run_is_stored_when_its_log_says_end(status):
    run = answered()
    run.lost(CUT, 0.0)
    assert run.next(0.0) == Follow(BEYOND)
    assert run.took(KeepAlive(), 0.0) == []
    assert not run.is_settled
    assert run.took(LogEnd(status), 0.0) == []
    assert run.end == status
    assert run.next(0.0) == Done()


def test_run_of_another_turn_is_only_seen_stored():
    run = Run("g", 0.0, State.ANSWERED)
    assert run.next(0.0) == Follow(BEYOND)
    run.took(LogEnd("gone"), 0.0)
    assert run.next(0.0) == Done()


# --- sending --------------------------------------------------------------------------


def test_what_did_not_leave_is_sent_again_a_few_times():
    run = sent()
    for _ in range(limits.max_attempts - 1):
        run.lost(UNSENT, 0.0)
        assert isinstance(run.next(0.0), Wait)
        assert run.next(0.0) == Send()
    run.lost(UNSENT, 0.0)
    assert why(run) is UNSENT
    assert run.is_settled


def test_hopeless_connection_is_not_tried_again():
    run = sent()
    hopeless = ConnectionLost("its certificate is not trusted", sent=False, final=True)
    run.lost(hopeless, 0.0)
    assert why(run) is hopeless


def test_what_left_is_looked_for_twice_and_then_sent_again():
    run = sent()
    run.lost(CUT, 0.0)
    assert run.next(0.0) == Look()
    assert run.looked(None, 0.0) == []
    assert isinstance(run.next(0.0), Wait)
    assert run.next(0.0) == Look()
    run.looked(None, 0.0)
    assert state(run) is State.NEW
    assert isinstance(run.next(0.0), Wait)
    assert run.next(0.0) == Send()


def test_what_fell_silent_is_looked_for_as_long_as_it_may_be_on_its_way():
    run = sent()
    run.lost(SILENT, 10.0)
    now = 10.0
    while now < 10.0 + limits.reconnect_timeout:
        assert run.next(now) == Look()
        run.looked(None, now)
        step = run.next(now)
        assert isinstance(step, Wait)
        now += step.seconds
    assert run.next(now) == Look()
    run.looked(None, now)
    assert isinstance(run.next(now), Wait)
    assert run.next(now) == Send()


def test_message_that_is_found_is_followed_from_the_start():
    run = sent()
    run.lost(CUT, 0.0)
    run.next(0.0)
    assert run.looked(HALF, 0.0) == []
    assert state(run) is State.TAKEN
    assert run.next(0.0) == Follow(0)


def test_message_that_never_arrives_is_given_up():
    run = sent()
    for number in range(limits.max_attempts):
        run.lost(CUT, 0.0)
        for _ in range(2):
            while isinstance(run.next(0.0), Wait):
                pass
            run.looked(None, 0.0)
        if number < limits.max_attempts - 1:
            assert isinstance(run.next(0.0), Wait)
            assert run.next(0.0) == Send()
    assert isinstance(why(run), ConnectionLost)


@pytest.mark.parametrize("status", [400, 401, 410, 413, 429])
def test_refused_message_was_not_taken(status):
    run = sent()
    run.refused(refused(status), 0.0)
    assert run.is_settled
    assert isinstance(why(run), HttpError)


@pytest.mark.parametrize(("first", "kind"), [(True, HttpError), (False, NotFound)])
@pytest.mark.parametrize("status", [403, 404])
def test_conversation_that_is_not_there(status, first, kind):
    run = sent()
    run.refused(refused(status), 0.0, first=first)
    assert run.is_settled
    assert isinstance(why(run), kind)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_message_may_have_been_taken_before_the_server_failed(status):
    run = sent()
    run.refused(refused(status), 0.0)
    assert run.next(0.0) == Look()
    run.looked(HALF, 0.0)
    assert run.next(0.0) == Follow(0)


@pytest.mark.parametrize(("parent", "kind"), [(True, HttpError), (False, NotFound)])
def test_unknown_parent_is_a_500_as_well(parent, kind):
    run = sent()
    run.refused(refused(500), 0.0)
    for _ in range(2):
        while isinstance(run.next(0.0), Wait):
            pass
        run.looked(None, 0.0, parent=parent)
    assert run.is_settled
    assert isinstance(why(run), kind)


def test_proxys_refusal_is_told_when_it_lasts():
    run = sent()
    for _ in range(limits.max_attempts):
        run.refused(refused(502), 0.0)
        for _ in range(2):
            while isinstance(run.next(0.0), Wait):
                pass
            run.looked(None, 0.0)
        while isinstance(step := run.next(0.0), Wait):
            pass
    assert isinstance(step, Fail)
    assert isinstance(step.why, HttpError)


def test_message_that_was_taken_is_not_sent_again_whatever_a_broken_connection_says():
    run = sent()
    run.took(Text("h"), 0.0)
    run.lost(UNSENT, 0.0)  # as an encrypted connection that breaks may be told
    assert run.next(0.0) == Follow(0)


def test_patience_begins_anew_when_a_message_is_found_late():
    run = sent()
    run.lost(SILENT, 0.0)
    now = limits.reconnect_timeout + 5
    run.next(now)
    run.looked(HALF, now)
    assert run.next(now) == Follow(0)
    run.lost(UNSENT, now)
    assert isinstance(run.next(now), Wait)


# --- following ------------------------------------------------------------------------


def test_log_is_taken_up_after_its_last_event():
    run = taken()
    assert run.next(0.0) == Follow(0)
    run.took(Text("h"), 0.0, 1)
    run.took(Text("i"), 0.0, 2)
    run.ended(0.0)
    assert isinstance(run.next(0.0), Wait)
    assert run.next(0.0) == Follow(2)


def test_log_is_taken_up_after_its_last_event_though_only_heartbeats_came_since():
    run = taken()
    assert run.next(0.0) == Follow(0)
    run.took(ToolCall("c", "n", {}), 0.0, 7)
    for _ in range(3):
        run.ended(0.0)
        assert run.next(0.0) == Wait(0.25)
        assert run.next(0.0) == Follow(7)
        run.took(KeepAlive(), 0.0, 0)


def test_network_that_stays_away_is_given_up_in_bounded_time():
    run = taken()
    now = 0.0
    while isinstance(step := run.next(now), (Wait, Follow)):
        if isinstance(step, Wait):
            now += step.seconds
        else:
            run.lost(UNSENT, now)
    assert isinstance(step, Fail)
    assert isinstance(step.why, ConnectionLost)
    assert limits.reconnect_timeout <= now <= limits.reconnect_timeout + 1
    assert not run.is_settled


def test_thinking_for_long_is_no_failure():
    run = taken()
    for now in range(0, 1000, 5):
        while isinstance(step := run.next(now), Wait):
            pass
        assert step == Follow(0)
        run.took(KeepAlive(), now)
        run.ended(now)


def test_run_at_work_is_never_given_up():
    """A day of a tool that works, behind a proxy that cuts every ten seconds."""
    run, now = taken(), 0.0
    while now < 86_400:
        assert not isinstance(run.next(now), Fail)
        for _ in range(100):
            now += 0.1
            run.took(KeepAlive(), now)
        run.lost(CUT, now)


def test_log_that_repeats_an_answer_is_followed_again_and_again():
    run = taken()
    events: list[Event] = [ToolCall("c", "n", {}), ToolResult("c", "n", "")]
    events += [Progress("c", number) for number in range(998)]
    for number in range(50):
        assert not isinstance(run.next(number), Fail)
        for event in events:
            run.took(event, number)
        run.lost(CUT, number)


@pytest.mark.parametrize(
    "event", [KeepAlive(), ToolResult("c", "n", ""), ElicitationResolved("q", "user")]
)
def test_what_is_told_for_ever_and_is_nothing_new_is_given_up(event: Event):
    run = sent()
    for number in range(100_000):
        run.took(event, number / 1000)

    def go_on() -> None:
        for number in range(100_000, 200_000):
            run.took(event, number / 1000)

    with pytest.raises(TooLarge, match="nothing new"):
        go_on()


def test_server_without_logs_is_read():
    run = taken()
    assert run.next(0.0) == Follow(0)
    run.refused(refused(404), 0.0)
    assert run.next(0.0) == Look()
    assert run.looked(STORED, 0.0) == [Replay(), Text("hi"), FinalAnswer("", False)]
    assert run.next(0.0) == Done()


@pytest.mark.parametrize("status", ["gone", "completed", "interrupted"])
def test_log_that_ends_without_an_answer_leaves_it_to_the_store(status):
    run = taken()
    run.next(0.0)
    run.took(LogEnd(status), 0.0)
    assert run.next(0.0) == Look()
    assert run.looked(STORED, 0.0)[-1] == run.outcome
    assert run.next(0.0) == Done()


def test_stored_answer_that_still_grows_is_waited_for():
    run = taken()
    run.next(0.0)
    run.took(LogEnd("gone"), 0.0)
    updates: list[dict[str, Any]] = []
    now = 0.0
    for _ in range(20):
        while isinstance(step := run.next(now), Wait):
            now += step.seconds
        assert step == Look()
        updates.append({"type": "stream", "len": 1})
        assert run.looked({"content": "x" * 20, "updates": updates}, now) == []
        now += limits.reconnect_timeout * 0.9
    assert state(run) is State.TAKEN


def test_stored_answer_that_stays_half_is_an_error_in_bounded_time():
    run = taken()
    run.next(0.0)
    run.took(LogEnd("gone"), 0.0)
    now = 0.0
    while isinstance(step := run.next(now), (Wait, Look)):
        if isinstance(step, Wait):
            now += step.seconds
        else:
            run.looked(HALF, now)
    assert isinstance(step, Fail)
    assert isinstance(step.why, IncompleteAnswer)
    assert now <= limits.reconnect_timeout + 1


@pytest.mark.parametrize(
    ("stored", "given_"),
    [
        (
            {"content": "h", "updates": [{"type": "stream", "len": 1}], "interrupted": True},
            [Replay(), Text("h"), FinalAnswer("", True)],
        ),
        (
            {"content": "h", "updates": [{"type": "status", "status": "error", "message": "full"}]},
            [Replay(), Failed("full"), Text("h")],
        ),
        (
            {"content": "", "updates": [{"type": "finalAnswer", "text": ""}]},
            [Replay(), Failed("No output was generated")],
        ),
    ],
    ids=["stopped", "failed", "empty"],
)
def test_stored_answer_may_have_ended_in_other_ways(stored, given_):
    run = sent()
    run.took(KeepAlive(), 0.0)
    run.lost(CUT, 0.0)
    run.next(0.0)
    run.took(LogEnd("gone"), 0.0)
    assert run.next(0.0) == Look()
    given = run.looked(stored, 0.0)
    assert [event for event in given if not isinstance(event, Text) or event.text] == given_[
        : len(given)
    ]
    assert run.outcome in given_
    assert run.is_settled


def test_answered_run_that_is_never_stored_is_given_up_without_an_error():
    run = answered()
    run.lost(CUT, 0.0)
    run.next(0.0)
    run.refused(refused(404), 0.0)
    now = 0.0
    while isinstance(step := run.next(now), (Wait, Look)):
        if isinstance(step, Wait):
            now += step.seconds
        else:
            run.looked(HALF, now)
    assert step == Done()
    assert now <= limits.reconnect_timeout + 1


def test_answer_that_the_server_lost_is_an_error():
    run = taken()
    run.next(0.0)
    run.took(LogEnd("gone"), 0.0)
    run.looked(None, 0.0)
    assert isinstance(why(run), IncompleteAnswer)


def test_message_of_which_nothing_was_given_is_sent_again_when_the_server_lost_it():
    run = sent()
    run.took(KeepAlive(), 0.0)
    run.lost(CUT, 0.0)
    assert run.next(0.0) == Follow(0)
    run.took(LogEnd("gone"), 0.0)
    assert run.next(0.0) == Look()
    run.looked(None, 0.0)
    assert isinstance(run.next(0.0), Wait)
    assert run.next(0.0) == Send()
    run.took(Text("h"), 0.0)
    run.lost(CUT, 0.0)
    assert run.next(0.0) == Follow(0)  # the new run has a log


def test_deleted_conversation():
    run = taken()
    run.next(0.0)
    run.gone()
    assert state(run) is State.STORED
    assert isinstance(why(run), NotFound)
    run = sent()
    run.gone()  # before anything was taken: it can go into a new one
    assert state(run) is State.NEW
    assert isinstance(why(run), NotFound)


@pytest.mark.parametrize("status", [401, 403])
def test_log_that_is_refused_is_an_error(status):
    run = taken()
    run.next(0.0)
    run.refused(refused(status), 0.0)
    assert isinstance(why(run), HttpError)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_log_that_fails_is_tried_again(status):
    run = taken()
    run.next(0.0)
    run.refused(refused(status), 0.0)
    assert isinstance(run.next(0.0), Wait)
    assert run.next(0.0) == Follow(0)


# --- other outcomes -------------------------------------------------------------------


def test_failure_is_the_outcome_and_still_to_be_stored():
    run = sent()
    failed = Failed("overloaded", 429)
    assert run.took(failed, 0.0) == [failed]
    assert run.outcome is failed
    assert not run.is_settled
    run.ended(0.0)
    assert run.is_settled


def test_empty_final_answer_is_followed_by_the_reason():
    run = sent()
    assert run.took(FinalAnswer("", False), 0.0) == []
    failed = Failed("No output was generated")
    assert run.took(failed, 0.0) == [failed]
    assert run.outcome is failed


def test_empty_final_answer_after_a_tool_is_an_answer():
    run = sent()
    for event in (ToolCall("u", "t", {}), ToolResult("u", "t", "x"), FinalAnswer("", False)):
        assert run.took(event, 0.0) == [event]
    assert run.outcome == FinalAnswer("", False)


def test_model_that_died_leaves_what_it_said():
    run = sent()
    run.took(Reasoning("hm"), 0.0)
    assert run.took(Finished(), 0.0) == [FinalAnswer("", True)]
    assert run.died
    run.ended(0.0)
    assert run.is_settled


def test_model_that_died_before_it_spoke():
    run = sent()
    assert run.took(Finished(), 0.0) == [run.outcome]
    assert isinstance(run.outcome, Failed)
    assert not run.died


def test_padding_is_nothing_said():
    run = sent()
    run.took(Text("\0" * 16), 0.0)
    run.took(Finished(), 0.0)
    assert isinstance(run.outcome, Failed)
    run = sent()
    for text in ("h", "\0" * 16, ""):
        run.took(Text(text), 0.0)
    assert run.took(Finished(), 0.0) == [FinalAnswer("", True)]


def test_stream_that_ends_with_a_question_is_followed():
    run = sent()
    asked = Elicitation("q", "Exa", "Which?", "form")
    assert run.took(asked, 0.0) == [asked]
    run.ended(0.0)
    assert not run.is_settled
    assert run.outcome is None
    assert run.next(0.0) == Follow(0)


# --- pauses ---------------------------------------------------------------------------


def test_pauses_grow_and_end():
    backoff = Backoff(0.0)
    pauses = [backoff.pause(0.0) or 0.0 for _ in range(5)]
    assert pauses == sorted(pauses)
    assert pauses[0] > 0
    assert backoff.pause(limits.reconnect_timeout - 0.1) == pytest.approx(0.1)
    assert backoff.pause(limits.reconnect_timeout) is None
    backoff.alive(limits.reconnect_timeout)
    assert backoff.pause(limits.reconnect_timeout) == pauses[0]


def test_number_of_tries_is_what_counts_when_it_is_given():
    backoff = Backoff(0.0, 3)
    assert [backoff.pause(1e9) is None for _ in range(4)] == [False, False, True, True]


# --- any order of cuts ----------------------------------------------------------------


@dataclass
class World:
    """A server and a network, in which what `faults` names goes wrong, one a step."""

    faults: list[tuple[str, int]]
    events: list[Event]
    save_after: int  # steps from the end of the answer until it is stored
    now: float = 0.0
    arrived: int = 0  # how often the message was stored
    ended_at: int | None = None
    steps: int = 0
    late: float | None = None  # when a message arrives that was sent and not heard of
    given: list[Event] = field(default_factory=list)

    def fault(self) -> tuple[str, int]:
        return self.faults.pop(0) if self.faults else ("", 0)

    @property
    def stored(self) -> bool:
        return self.ended_at is not None and self.steps - self.ended_at >= self.save_after

    def arrive(self) -> None:
        self.arrived += 1
        self.ended_at = self.ended_at or self.steps

    def drive(self, run: Run) -> Exception | None:
        """Do what the run says, until it is done or fails."""
        while True:
            self.steps += 1
            assert self.steps < 2000, "it goes on for ever"
            if self.late is not None and self.now >= self.late:
                self.late = None
                self.arrive()
            step = run.next(self.now)
            if isinstance(step, Done):
                assert self.stored or not self.arrived
                return None
            if isinstance(step, Fail):
                return step.why
            if isinstance(step, Wait):
                assert 0 < step.seconds <= limits.reconnect_timeout
                self.now += step.seconds
                continue
            self.now += 0.01
            if isinstance(step, Send):
                self.send(run)
            elif isinstance(step, Look):
                self.look(run)
            else:
                self.follow(run, step)

    def take(self, run: Run, event: Event | LogEnd, seq: int = 0) -> None:
        self.given += run.took(event, self.now, seq)

    def send(self, run: Run) -> None:
        kind, number = self.fault()
        if kind == "unsent":
            return run.lost(UNSENT, self.now)
        if kind == "lost":
            return run.lost(CUT, self.now)
        if kind == "silent":
            self.late = self.now + number / 100 * limits.reconnect_timeout * 0.8
            return run.lost(SILENT, self.now)
        if kind == "502 unsent":
            return run.refused(refused(502), self.now, first=True)
        self.arrive()
        if kind == "502":
            return run.refused(refused(502), self.now, first=True)
        if kind == "500":
            return run.refused(refused(500), self.now, first=True)
        count = number % (len(self.events) + 1) if kind else len(self.events)
        for event in self.events[:count]:
            self.take(run, event)
        if kind in ("cut", "stall"):
            return run.lost(CUT if kind == "cut" else SILENT, self.now)
        if kind == "clean":
            # A proxy may end a stream in good form, but not after its last event.
            return run.ended(self.now) if count < len(self.events) else None
        self.steps += self.save_after  # the stream ends when the run is stored
        return run.ended(self.now)

    def look(self, run: Run) -> None:
        kind, _ = self.fault()
        if kind:
            return run.lost(UNSENT, self.now)
        stored = None
        if self.arrived:
            text = "".join(event.text for event in self.events if isinstance(event, Text))
            stored = {"content": text if self.stored else "", "updates": []}
            if self.stored:
                stored = {**STORED, "content": text}
        self.given += run.looked(stored, self.now)
        return None

    def follow(self, run: Run, step: Follow) -> None:
        kind, number = self.fault()
        if step.after == 0:
            self.given.append(Replay())
        if kind in ("unsent", "lost", "silent", "stall"):
            return run.lost(CUT, self.now)
        if kind in ("500", "502", "502 unsent"):
            return run.refused(refused(502), self.now)
        if kind == "gone":
            return self.take(run, LogEnd("gone")) if self.stored else run.ended(self.now)
        numbered = list(enumerate(self.events, 1))[step.after :]
        count = number % (len(numbered) + 1) if kind else len(numbered)
        for seq, event in numbered[:count]:
            self.take(run, event, seq)
            if run.state is State.STORED:
                return None
        if kind or not self.stored:
            return run.ended(self.now)
        return self.take(run, LogEnd("completed"))


WORDS = ("one ", "two ", "three ", "four ")
ANSWER: list[Event] = [
    *map(Text, WORDS),
    FinalAnswer("".join(WORDS), False),
    Title("T"),
    Finished(),
]
KINDS = ["unsent", "lost", "silent", "502", "502 unsent", "500", "cut", "stall", "clean", "gone"]
FAULTS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 100)), max_size=8)


@given(FAULTS, st.integers(0, 5))
def test_whatever_breaks_an_answer_is_sent_once_and_given_once(faults, save_after):
    world, run, answer = World(faults, ANSWER, save_after), Run("g", 0.0), new_answer()
    trouble = world.drive(run)
    given_ = "".join(out.chunk for event in world.given for out in answer.take(event))
    assert world.arrived <= 1
    if trouble is None:
        assert world.arrived == 1
        assert given_ == "".join(WORDS)
        assert isinstance(run.outcome, FinalAnswer)
        assert run.is_settled
    else:
        assert "".join(WORDS).startswith(given_)
        # Only what fails again and again makes a turn fail.
        assert isinstance(trouble, (ConnectionLost, HttpError))
        assert world.now >= limits.reconnect_timeout or world.steps >= limits.max_attempts


@given(FAULTS, st.integers(0, 5))
def test_run_of_another_turn_is_seen_stored_whatever_breaks(faults, save_after):
    world, run = World(faults, ANSWER, save_after), Run("g", 0.0, State.ANSWERED)
    world.arrive()
    trouble = world.drive(run)
    assert trouble is None or world.now >= limits.reconnect_timeout
    assert world.given in ([], [Replay()] * len(world.given))
