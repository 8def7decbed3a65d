"""A pause that the server wants: waited for if that is allowed, and nothing is sent twice."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import pathlib
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

import llm
import pytest
from chat_ui import TOO_LONG, TOO_MANY, ChatUI, Fault
from helpers import (
    AT_ONCE,
    NEVER,
    TurnRequest,
    ask_async,
    ask_sync,
    both,
    calls,
    default_signals,
    described,
    failure,
    only_conversation,
    run,
    sends,
    wait_for,
)
from hypothesis import given
from hypothesis import strategies as st

import llm_huggingchat
from llm_huggingchat import (
    RUNS,
    WAIT_VARIABLE,
    ConnectionLost,
    Done,
    Fail,
    Finished,
    HttpError,
    HttpResponse,
    KeepAlive,
    RateLimiter,
    Run,
    Send,
    Text,
    Wait,
    claim_run,
    keep_run,
    limits,
    max_wait,
)

BUSY = "You are sending too many messages. Try again later."


def refused(message: str = BUSY) -> HttpError:
    body = f'{{"message": "{message}"}}'.encode()
    return HttpError(HttpResponse(429, "application/json", body))


def waiting_run(gate: RateLimiter, name: str = "g", wait: float = 600.0) -> Run:
    return Run(name, 0.0, gate=gate, wait=wait)


def why(run: Run, now: float) -> Exception:
    step = run.next(now)
    assert isinstance(step, Fail), step
    return step.why


# --- one run --------------------------------------------------------------------------


def test_refused_message_is_sent_again_after_a_minute() -> None:
    run = waiting_run(RateLimiter())
    assert run.next(0.0) == Send()
    assert not run.is_held
    run.refused(refused(), 1.0)
    assert run.next(1.0) == Wait(limits.rate_window)
    assert run.is_held
    assert run.is_settled
    assert run.next(1.0 + limits.rate_window) == Send()
    assert not run.is_held
    assert run.took(Text("hi"), 70.0) == [Text("hi")]


def test_without_an_allowed_wait_it_is_an_error_at_once() -> None:
    run = Run("g", 0.0, gate=RateLimiter())
    run.next(0.0)
    run.refused(refused(), 0.0)
    error = why(run, 0.0)
    assert isinstance(error, HttpError)
    assert error.waited is None


@pytest.mark.parametrize("message", [TOO_LONG.format(4), TOO_MANY])
def test_what_a_pause_does_not_change_is_an_error_at_once(message: str) -> None:
    run = waiting_run(RateLimiter())
    run.next(0.0)
    run.refused(refused(message), 0.0)
    assert isinstance(why(run, 0.0), HttpError)
    assert run.is_settled


def test_firewall_is_not_waited_for() -> None:
    run = waiting_run(RateLimiter())
    run.next(0.0)
    headers = (("x-amzn-waf-action", "challenge"),)
    run.refused(HttpError(HttpResponse(429, "text/html", b"", headers=headers)), 0.0)
    assert isinstance(why(run, 0.0), HttpError)


@pytest.mark.parametrize(("wait", "tries"), [(59, 1), (60, 2), (119, 2), (120, 3), (121, 3)])
def test_wait_has_an_end(wait: float, tries: int) -> None:
    """The error comes when it is known that no further try is in time."""
    run, now, sent = waiting_run(RateLimiter(), wait=wait), 0.0, 0
    while not isinstance(step := run.next(now), Fail):
        if isinstance(step, Wait):
            now += step.seconds
        else:
            sent += 1
            run.refused(refused(), now)
    assert sent == tries
    assert isinstance(step.why, HttpError)
    assert step.why.waited == now == limits.rate_window * (tries - 1)
    assert step.why.reply.message == BUSY
    assert run.is_settled


# --- several runs at one gate -----------------------------------------------------------


def closed(now: float = 0.0) -> RateLimiter:
    """A gate that a refusal has just closed."""
    gate = RateLimiter()
    gate.refused("another", refused(), now)
    return gate


def test_who_comes_meanwhile_waits_too() -> None:
    gate = closed()
    run = waiting_run(gate)
    assert run.next(20.0) == Wait(40.0)
    assert isinstance(why(waiting_run(gate, wait=39.0), 20.0), HttpError)


def test_one_goes_first_and_the_others_follow_once_it_was_taken() -> None:
    gate = closed()
    first, second, third = (waiting_run(gate, name) for name in "abc")
    assert [run.next(0.0) for run in (first, second, third)] == [Wait(limits.rate_window)] * 3
    assert first.next(60.0) == Send()
    assert second.next(60.0) == Wait(limits.backoff[0])
    first.took(KeepAlive(), 61.0)
    assert third.next(61.0) == Send()
    assert second.next(61.0) == Wait(limits.backoff[0])
    third.refused(refused(), 62.0)
    assert second.next(62.0) == Wait(limits.rate_window)
    assert third.next(62.0) == Wait(limits.rate_window)


@pytest.mark.parametrize("what", ["lost", "stalled", "ended", "failed", "session", "left"])
def test_try_that_comes_to_something_else_holds_nobody_up(what: str) -> None:
    gate = closed()
    first, second = waiting_run(gate, "a"), waiting_run(gate, "b")
    assert first.next(60.0) == Send()
    if what == "lost":
        first.lost(ConnectionLost("nobody is listening there", sent=False), 60.0)
    elif what == "stalled":
        first.lost(ConnectionLost("silent", sent=True, silent=True), 60.0)
    elif what == "ended":
        first.ended(60.0)
    elif what == "failed":
        first.refused(HttpError(HttpResponse(502, "", b"")), 60.0)
    elif what == "session":
        first.not_taken()
    if what == "left":
        first.leave()
    else:
        step = first.next(60.0)
        if what == "session":
            assert step == Send()  # it is sent again, with a new session
            return
    assert second.next(60.0) == Send()


def test_try_that_nobody_hears_of_again_holds_nobody_up_for_ever() -> None:
    gate = closed()
    assert waiting_run(gate, "killed").next(60.0) == Send()
    run = waiting_run(gate)
    assert run.next(61.0) == Wait(limits.backoff[0])
    assert run.next(60.0 + limits.rate_window) == Send()


def test_all_send_at_once_when_nobody_was_held_for_a_minute() -> None:
    gate = closed()
    assert waiting_run(gate, "a").next(limits.rate_window * 2) == Send()
    assert waiting_run(gate, "b").next(limits.rate_window * 2) == Send()
    gate = closed()
    assert waiting_run(gate, "a").next(limits.rate_window) == Send()
    assert isinstance(waiting_run(gate, "b").next(limits.rate_window * 1.9), Wait)
    assert (
        waiting_run(gate, "c").next(limits.rate_window * 2.1) == Send()
    )  # what "a" came to is not known
    assert isinstance(waiting_run(gate, "b").next(limits.rate_window * 2.2), Wait)


def test_one_note_is_enough_for_a_pause() -> None:
    gate = closed()
    assert [gate.to_be_told() for _ in range(3)] == [True, False, False]
    gate.refused("b", refused(), 1.0)  # sent before it was known
    assert not gate.to_be_told()
    gate.refused("c", refused(), 90.0)
    assert gate.to_be_told()


# --- any number of runs, any quota, with a server that counts as chat-ui does ---------------


@dataclass
class Minute:
    """A server that takes `quota` messages a minute, and counts those that it refused too."""

    quota: int
    tries: list[float] = field(default_factory=list)
    taken: list[tuple[float, str]] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)

    def takes(self, run: Run, now: float) -> bool:
        self.tries.append(now)
        recent = [at for at in self.tries if at > now - 60]
        if len(recent) > self.quota:
            self.refusals.append(now)
            return False
        self.taken.append((now, run.generation_id))
        return True


def let_go(
    server: Minute, runs: list[Run], latency: float = 0.0, within: float = 0.0
) -> dict[str, Exception]:
    """Drive `runs`, which begin `within` some seconds, to their end: those that failed, and why."""
    clock = {run.generation_id: random.uniform(0, within) for run in runs}
    failed: dict[str, Exception] = {}
    sending: dict[str, bool] = {}
    alive = {run.generation_id: run for run in runs}
    for _ in range(1_000_000):
        if not alive:
            return failed
        name = min(alive, key=lambda name: clock[name])
        run, now = alive[name], clock[name]
        if name in sending:  # the answer arrives
            if sending.pop(name):
                run.took(Finished(), now)
                run.ended(now)
            else:
                run.refused(refused(), now)
        step = run.next(now)
        if isinstance(step, (Done, Fail)):
            del alive[name]
            if isinstance(step, Fail):
                failed[name] = step.why
        elif isinstance(step, Wait):
            assert step.seconds > 0
            clock[name] += step.seconds
        else:
            assert step == Send()
            sending[name] = server.takes(run, now)
            clock[name] += latency
    raise AssertionError("it goes on for ever")


@given(st.integers(1, 12), st.integers(1, 30), st.sampled_from([0.0, 0.05, 1.0, 5.0]))
def test_all_are_sent_once_and_one_a_minute_is_refused(
    quota: int, number: int, latency: float
) -> None:
    server, gate = Minute(quota), RateLimiter()
    runs = [waiting_run(gate, str(n), wait=1e6) for n in range(number)]
    assert let_go(server, runs, latency) == {}
    assert Counter(name for _, name in server.taken) == {str(n): 1 for n in range(number)}
    later = [at for at in server.refusals if at > 0]
    assert all(b - a >= 60 for a, b in itertools.pairwise(later))
    # It takes as many minutes as the quota wants, and what is lost is a round trip each.
    minutes = (number - 1) // quota
    overhead = (latency + limits.backoff[0]) * (quota + 1)
    assert server.taken[-1][0] <= minutes * (60 + overhead) + overhead


@given(st.integers(1, 60))
def test_those_that_wait_too_long_fail_in_time(number: int) -> None:
    server, gate = Minute(3), RateLimiter()
    runs = [waiting_run(gate, str(n), wait=130.0) for n in range(number)]
    failed = let_go(server, runs)
    assert len(server.taken) == min(number, 9)
    assert len(failed) == number - len(server.taken)
    assert all(at <= 130.0 for at in server.tries)
    assert all(
        isinstance(error, HttpError) and error.waited is not None for error in failed.values()
    )


@pytest.mark.parametrize(("number", "quota"), [(4, 1), (10, 3), (30, 3)])
def test_processes_that_know_nothing_of_each_other_get_through(number: int, quota: int) -> None:
    """Each has a gate of its own: at the same pace, they would refuse each other for ever."""
    random.seed(1)
    server = Minute(quota)
    runs = [waiting_run(RateLimiter(), str(n), wait=1e5) for n in range(number)]
    assert let_go(server, runs, 0.1, within=3.0) == {}
    assert len(server.taken) == number
    assert server.taken[-1][0] < 3600 * 1.5


# --- the variable -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, 0), ("", 0), (" ", 0), ("0", 0), ("600", 600), (" 1.5 ", 1.5)]
)
def test_variable(monkeypatch: pytest.MonkeyPatch, text: str | None, seconds: float) -> None:
    if text is not None:
        monkeypatch.setenv(WAIT_VARIABLE, text)
    assert max_wait() == seconds


@pytest.mark.parametrize("text", ["-1", "ten", "10 minutes", "inf", "nan", "-inf", "1e999", "\x1b"])
def test_variable_that_makes_no_sense(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(WAIT_VARIABLE, text)
    said = failure("-m", "hf-llama", "hello")
    assert WAIT_VARIABLE in said
    assert "seconds" in said
    assert "\x1b" not in said
    assert sends(server) == []
    assert server.conversations == {}


# --- with a server ----------------------------------------------------------------------

NO = Fault(status=429, body=refused().reply.body, content_type="application/json")


def refuse(server: ChatUI, *tries: bool) -> None:
    """The next messages are refused, or not."""
    server.faults["POST", "/conversation/*"] = [NO if no else Fault() for no in tries]


@pytest.fixture
def busy(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> ChatUI:
    """A server that is waited for; a minute is half a second."""
    monkeypatch.setattr(llm_huggingchat.limits, "rate_window", 0.5)
    monkeypatch.setenv(WAIT_VARIABLE, "600")
    return server


def each_sent_once(server: ChatUI, number: int) -> None:
    stored = [m["content"] for id in server.conversations for m in server.messages(id, "user")]
    assert Counter(stored) == {f"number {n}": 1 for n in range(number)}
    assert len(server.conversations) == number


async def test_ten_prompts_at_once_are_all_answered(
    busy: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_huggingchat.limits, "rate_window", 2.0)
    busy.messages_per_minute, busy.minute = 3, 2.0
    model = llm.get_async_model("hf-llama")
    prompts = [model.prompt(f"number {n}") for n in range(10)]
    answers = await asyncio.gather(*(prompt.text() for prompt in prompts))
    assert answers == [f"You said: number {n}" for n in range(10)]
    each_sent_once(busy, 10)


def test_ten_threads_at_once_are_all_answered(
    busy: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_huggingchat.limits, "rate_window", 2.0)
    busy.messages_per_minute, busy.minute = 3, 2.0
    model = llm.get_model("hf-llama")
    with concurrent.futures.ThreadPoolExecutor(10) as threads:
        answers = threads.map(lambda n: model.prompt(f"number {n}").text(), range(10))
        assert list(answers) == [f"You said: number {n}" for n in range(10)]
    each_sent_once(busy, 10)


def test_threads_and_loops_share_the_pause(busy: ChatUI, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one of them was told, the others need not ask."""
    monkeypatch.setattr(llm_huggingchat.limits, "rate_window", 60.0)
    monkeypatch.setenv(WAIT_VARIABLE, "30")
    refuse(busy, True)
    for number, ask in enumerate((ask_sync, ask_async, ask_async, ask_sync)):
        with pytest.raises(llm.ModelError, match=r"sending too many messages.*waited for 0 s"):
            ask(f"number {number}")
    assert len(sends(busy)) == 1


def test_another_server_has_a_pause_of_its_own(
    busy: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_huggingchat.limits, "rate_window", 60.0)
    monkeypatch.setenv(WAIT_VARIABLE, "30")
    refuse(busy, True)
    with pytest.raises(llm.ModelError, match="wants a pause"):
        ask_sync("one")
    with ChatUI() as other:
        monkeypatch.setenv(llm_huggingchat.SERVER_VARIABLE, other.url)
        assert ask_sync("two").text() == "You said: two"


def test_loop_over_files_takes_its_time(busy: ChatUI) -> None:
    refuse(busy, False, False, True, False, False, True)
    for n in range(5):
        assert run("-m", "hf-llama", f"number {n}").stdout == f"You said: number {n}\n"
    each_sent_once(busy, 5)
    assert len(sends(busy)) == 7


def test_wait_is_told_once_on_a_terminal(busy: ChatUI) -> None:
    refuse(busy, True, True)
    shown = run("-m", "hf-llama", "number 0")
    assert shown.stdout == "You said: number 0\n"
    note = f"huggingchat: 127.0.0.1:{busy.port} wants a pause; waiting, for 600 seconds at most\n"
    assert shown.stderr == note
    each_sent_once(busy, 1)
    assert len(sends(busy)) == 3


async def test_many_prompts_tell_of_a_pause_once(
    busy: ChatUI, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(busy, *3 * [True])
    model = llm.get_async_model("hf-llama")
    prompts = [model.prompt(f"number {n}") for n in range(3)]
    await asyncio.gather(*(prompt.text() for prompt in prompts))
    assert caplog.text.count("wants a pause; waiting") == 1


@both
def test_wait_that_was_too_short_says_so(
    busy: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch, user_path: pathlib.Path
) -> None:
    monkeypatch.setenv(WAIT_VARIABLE, "0.9")
    first = ask("one")
    refuse(busy, True, True, True)
    with pytest.raises(llm.ModelError) as caught:
        ask("two", after=first)
    said = str(caught.value)
    assert re.search(r"HTTP 429: .*waited for \d+ seconds?.*LLM_HUGGINGCHAT_WAIT", said)
    wait_for(lambda: noted(user_path) == [])
    assert len(sends(busy)) == 3
    busy.faults.clear()
    monkeypatch.setenv(WAIT_VARIABLE, "60")
    assert ask("three", after=first).text() == "You said: three"


@both
def test_connections_are_not_unused_while_a_message_waits(
    busy: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_huggingchat.limits, "keep_alive", 0.05)
    monkeypatch.setattr(llm_huggingchat.limits, "rate_window", 2.0)
    refuse(busy, True)
    assert ask("number 0").text() == "You said: number 0"
    each_sent_once(busy, 1)


def noted(user_path: pathlib.Path) -> list[str]:
    with closing(sqlite3.connect(user_path / RUNS)) as db:
        return [id for (id,) in db.execute("select generation_id from runs")]


@both
def test_without_the_variable_nothing_waits(
    server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.messages_per_minute = 1
    first = ask("one")
    for _ in range(2):
        with pytest.raises(llm.ModelError, match="LLM_HUGGINGCHAT_WAIT=600"):
            ask("two", after=first)
    assert len(sends(server)) == 3


@both
def test_limits_of_another_kind_are_told_at_once(busy: ChatUI, ask: TurnRequest) -> None:
    busy.max_messages = 2
    first = ask("one")
    with pytest.raises(llm.ModelError, match=r"has a limit .*Start a new one"):
        ask("two", after=first)
    assert len(sends(busy)) == 2
    busy.max_conversations = 1
    ask("three")
    with pytest.raises(llm.ModelError, match=r"has a limit .*Delete some to continue"):
        ask("four")
    assert len(sends(busy)) == 3


@both
def test_models_own_429_stays_an_error(busy: ChatUI, ask: TurnRequest) -> None:
    with pytest.raises(llm.ModelError, match="failed \\(HTTP 429\\)"):
        ask("hello [[err=429]]")
    assert len(sends(busy)) == 1


@pytest.mark.parametrize("way", [(), ("--async",)])
def test_ctrl_c_while_waiting_leaves_nothing_behind(
    busy: ChatUI, user_path: pathlib.Path, way: tuple[str, ...]
) -> None:
    run("-m", "hf-llama", "one")
    refuse(busy, True)
    process = subprocess.Popen(
        [sys.executable, "-m", "llm", "-c", "two", *way],
        env=os.environ | {"LLM_HUGGINGCHAT_URL": busy.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )
    assert process.stderr
    assert "wants a pause; waiting, for 600 seconds" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=50)  # the wait would be 60 seconds
    assert (shown, "Traceback" in errors) == ("", False)
    assert len(sends(busy)) == 2
    assert busy.stops == []
    assert [m["content"] for m in busy.messages(only_conversation(busy).id, "user")] == ["one"]
    assert noted(user_path) == []


async def test_task_that_is_cancelled_while_it_waits_lets_the_next_turn_go(
    busy: ChatUI, caplog: pytest.LogCaptureFixture
) -> None:
    first = llm.get_async_model("hf-llama").prompt("one")
    await first
    refuse(busy, *100 * [True])
    waiting = asyncio.create_task((await first.reply("two")).text())
    await until(lambda: "wants a pause" in caplog.text)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    busy.faults.clear()
    assert await asyncio.wait_for((await first.reply("three")).text(), 30) == "You said: three"
    questions = [m["content"] for m in busy.messages(only_conversation(busy).id, "user")]
    assert questions == ["one", "three"]


async def test_task_that_is_cancelled_while_it_tries_lets_the_next_prompt_go(
    busy: ChatUI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = llm.get_async_model("hf-llama")
    busy.faults["POST", "/conversation/*"] = [NO, Fault(stall=True)]
    trying = asyncio.create_task(model.prompt("one").text())
    await until(lambda: "wants a pause" in caplog.text)
    monkeypatch.setattr(llm_huggingchat.limits, "rate_window", NEVER)
    await until(lambda: len(sends(busy)) == 2)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    assert await asyncio.wait_for(model.prompt("two").text(), AT_ONCE) == "You said: two"


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds, and let the loop go on."""
    await asyncio.to_thread(wait_for, condition, 20.0)


# --- turns of one conversation in other processes ---------------------------------------


async def test_turn_waits_for_one_that_is_held_elsewhere(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that is: the two must not send at the same moment."""
    monkeypatch.setattr(llm_huggingchat.limits, "call_timeout", 0.6)
    first = llm.get_async_model("hf-llama").prompt("one")
    url = described(await first.to_sync_response())["url"]
    claim_run(url, "held")
    waiting = asyncio.create_task((await first.reply("two")).text())
    await until(lambda: any(path.endswith("/stream") for _, path in calls(server)))
    for _ in range(4):  # it has seen the note, and that changes
        keep_run("held", NEVER)
        await asyncio.sleep(0.4)
    assert not waiting.done()
    assert len(sends(server)) == 1
    llm_huggingchat.forget_run("held")
    assert await asyncio.wait_for(waiting, AT_ONCE) == "You said: two"


async def test_held_turn_tells_other_processes_of_it(
    busy: ChatUI, monkeypatch: pytest.MonkeyPatch, user_path: pathlib.Path
) -> None:
    monkeypatch.setattr(llm_huggingchat.limits, "rate_window", 60.0)
    first = llm.get_async_model("hf-llama").prompt("one")
    await first
    refuse(busy, True)
    held = asyncio.create_task((await first.reply("two")).text())

    def ahead() -> bool:
        with closing(sqlite3.connect(user_path / RUNS)) as db:
            return any(
                since > time.time() + 10 for (since,) in db.execute("select since from runs")
            )

    await until(ahead)
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
    assert noted(user_path) == []
