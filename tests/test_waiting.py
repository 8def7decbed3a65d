"""What a turn waits for: a pause that the server wants, and a turn before it that goes on."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections import Counter

import llm
import pytest
from chat_ui import STOP_MARKER, ChatUI, Fault
from helpers import (
    NEVER,
    TurnRequest,
    ask_async,
    ask_sync,
    both,
    calls,
    host,
    meanwhile,
    only_conversation,
    run,
    sends,
    soon,
    stored,
    tree,
    until,
    wait_for,
)

from llm_huggingchat import limits, reset

pytestmark = pytest.mark.usefixtures("quick")
WAIT = "LLM_HUGGINGCHAT_WAIT"
BUSY = b'{"message": "You are sending too many messages. Try again later."}'
NO = Fault(status=429, body=BUSY, content_type="application/json")


def refuse(server: ChatUI, *tries: bool) -> None:
    """The next messages are refused, or not."""
    server.faults["POST", "/conversation/*"] = [NO if no else Fault() for no in tries]


@pytest.fixture
def busy(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> ChatUI:
    """A server that is waited for; what takes it a minute takes 0.3 seconds."""
    monkeypatch.setattr(limits, "rate_window", 0.3)
    monkeypatch.setenv(WAIT, "600")
    return server


def each_sent_once(server: ChatUI, number: int) -> None:
    questions = [m["content"] for id in server.conversations for m in server.messages(id, "user")]
    assert Counter(questions) == {f"number {n}": 1 for n in range(number)}
    assert len(server.conversations) == number


# --- a pause that the server wants ----------------------------------------------------


async def test_prompts_at_once_are_all_answered_and_each_pause_is_told_once(
    busy: ChatUI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "rate_window", 0.6)
    busy.messages_per_minute, busy.minute = 3, 0.6
    model = llm.get_async_model("hf-llama")
    prompts = [model.prompt(f"number {n}") for n in range(7)]
    answers = await asyncio.gather(*(prompt.text() for prompt in prompts))
    assert answers == [f"You said: number {n}" for n in range(7)]
    each_sent_once(busy, 7)
    assert 1 <= caplog.text.count("asks for a pause; waiting") <= 2


async def test_threads_and_loops_share_the_pause_of_one_server(
    busy: ChatUI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What one of them was told, the others need not ask."""
    monkeypatch.setattr(limits, "rate_window", NEVER)
    refuse(busy, True)
    waiting = asyncio.create_task(llm.get_async_model("hf-llama").prompt("one").text())
    await until(lambda: "asks for a pause" in caplog.text)
    monkeypatch.setattr(limits, "rate_window", 0.3)
    monkeypatch.setenv(WAIT, "1")
    for ask in (ask_sync, ask_async):
        with pytest.raises(llm.ModelError, match=r"asks for a pause .*sending too many messages"):
            await asyncio.to_thread(ask, "hello")
    assert len(sends(busy)) == 1
    with ChatUI(store_delay=0) as other:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", other.url)
        assert (await asyncio.to_thread(ask_sync, "two")).text() == "You said: two"
    waiting.cancel()


def test_wait_is_told_once_on_the_command_line(busy: ChatUI) -> None:
    refuse(busy, True, True)
    shown = run("-m", "hf-llama", "number 0")
    assert shown.stdout == "You said: number 0\n"
    said = f"{host(busy)} asks for a pause; waiting, for 600 seconds at most"
    assert shown.stderr == f"huggingchat: {said}\n"
    each_sent_once(busy, 1)
    assert len(sends(busy)) == 3


@both
def test_wait_that_was_too_short_says_so_and_the_conversation_goes_on(
    busy: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WAIT, "0.5")
    first = ask("one")
    refuse(busy, True, True, True)
    with pytest.raises(llm.ModelError) as caught:
        ask("two", after=first)
    said = str(caught.value)
    assert re.search("HTTP 429: .*LLM_HUGGINGCHAT_WAIT", said)
    assert len(sends(busy)) == 3
    busy.faults.clear()
    monkeypatch.setenv(WAIT, "60")
    assert ask("three", after=first).text() == "You said: three"
    assert stored(busy)[2:] == ["three", "You said: three"]


def test_limits_that_waiting_does_not_change_are_told_at_once(busy: ChatUI) -> None:
    busy.max_messages = 2
    first = ask_sync("one")
    with pytest.raises(llm.ModelError, match=r"has reached a limit .*Start a new one"):
        ask_sync("two", after=first)
    busy.max_conversations = 1
    ask_sync("three")
    with pytest.raises(llm.ModelError, match=r"has reached a limit .*Delete some to continue"):
        ask_sync("four")
    assert len(sends(busy)) == 3


async def cancel(task: asyncio.Task[str]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_task_that_is_cancelled_while_it_waits_lets_the_next_turn_go(
    busy: ChatUI, caplog: pytest.LogCaptureFixture
) -> None:
    first = llm.get_async_model("hf-llama").prompt("one")
    await first
    refuse(busy, *100 * [True])
    waiting = asyncio.create_task((await first.reply("two")).text())
    await until(lambda: "asks for a pause" in caplog.text)
    await cancel(waiting)
    busy.faults.clear()
    with soon():
        assert await (await first.reply("three")).text() == "You said: three"
    assert stored(busy)[::2] == ["one", "three"]
    assert busy.stops == []


async def test_task_that_is_cancelled_while_it_tries_again_lets_the_next_prompt_go(
    busy: ChatUI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = llm.get_async_model("hf-llama")
    busy.faults["POST", "/conversation/*"] = [NO, Fault(stall=True)]
    trying = asyncio.create_task(model.prompt("one").text())
    await until(lambda: "asks for a pause" in caplog.text)
    monkeypatch.setattr(limits, "rate_window", NEVER)
    await until(lambda: len(sends(busy)) == 2)
    await cancel(trying)
    with soon():
        assert await model.prompt("two").text() == "You said: two"


# --- a turn before it that is not stored yet ------------------------------------------


@both
@pytest.mark.parametrize(
    "words",
    [
        "[[title_delay=0.3]]",
        "[[store=0.3]]",
        "[[log_status=502*2]] [[hold]] [[store=0.5]]",  # its stream says no more, and then breaks
        "[[stall_resume=1]] [[hold]] [[store=0.5]]",
    ],
)
def test_turn_waits_until_the_answer_before_it_is_stored(
    server: ChatUI, ask: TurnRequest, words: str
) -> None:
    question = f"one {words}"
    first = ask(question)
    if "title" not in words:
        reset()  # as in a new process
    ask("two", after=first)
    assert tree(server, only_conversation(server).id) == {question: {"two": {}}}
    assert stored(server)[1::2] == [f"You said: {question}", "You said: two"]


def test_turn_before_it_is_asked_about_with_a_session_made_from_the_token(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "store_timeout", 0.3)
    server.login_required, server.tokens["t-ada"] = True, "ada"
    first = ask_sync(f"one [[store={NEVER}]]", key="token=t-ada")
    reset()  # as in a new process
    before = len(server.log)
    assert ask_sync("two", after=first, key="token=t-ada").text() == "You said: two"
    paths = [request.path for request in list(server.log)[before:]]
    message = f"/conversation/{only_conversation(server).id}"
    assert paths.index("/login") < paths.index(f"{message}/stream") < paths.index(message)


@pytest.mark.parametrize("later", [120.0, 50_000.0, -86_400.0])
def test_turn_waits_for_the_one_before_it_whatever_the_clock_says(
    server: ChatUI, later: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may take minutes, and a clock may have been wrong: neither loses an answer."""
    first = ask_sync("one [[store=0.3]]")
    reset()
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + later)
    with soon():
        ask_sync("two", after=first)
    assert stored(server)[1::2] == ["You said: one [[store=0.3]]", "You said: two"]


@pytest.mark.parametrize(
    ("words", "patience"), [("", 0.3), ("[[log_status=404]]", NEVER)], ids=["beats", "no log"]
)
def test_run_that_was_never_stored_does_not_block_the_conversation_for_ever(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch, words: str, patience: float
) -> None:
    """A run whose final write failed beats for ever, unless its log is not there."""
    monkeypatch.setattr(limits, "store_timeout", patience)
    first = ask_async(f"one [[store={NEVER}]] {words}")
    with soon():
        assert ask_async("two", after=first).text() == "You said: two"


def test_run_of_another_process_that_has_no_log_is_not_waited_for(server: ChatUI) -> None:
    first = ask_sync(f"one [[store={NEVER}]] [[log_status=404]]")
    reset()
    assert ask_sync("two", after=first).text() == "You said: two"


def test_two_threads_in_one_conversation_send_one_after_the_other(server: ChatUI) -> None:
    first = ask_sync("one")
    server.may_speak.clear()
    with meanwhile(ask_sync, "left", after=first) as left:
        wait_for(lambda: len(sends(server)) == 2)
        with meanwhile(ask_async, "right", after=first) as right:
            wait_for(right.running)
            assert len(sends(server)) == 2
            server.may_speak.set()
            assert left.result().text() == "You said: left"
            assert right.result().text() == "You said: right"
    id = only_conversation(server).id
    assert tree(server, id) == {"one": {"left": {}, "right": {}}}
    assert calls(server).count(("GET", f"/conversation/{id}/stream")) <= 2


# --- in another process ---------------------------------------------------------------


def llm_process(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llm", *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


@pytest.mark.process
def test_turn_waits_for_the_run_of_a_process_that_was_killed(server: ChatUI) -> None:
    run("-m", "hf-llama", "one")
    left = llm_process("-c", "left [[tokens=40]] [[delay=0.03]]")
    assert left.stdout
    assert left.stdout.read(1) == b"w"
    left.kill()
    left.communicate()
    assert run("-c", "right").stdout == "You said: right\n"
    assert set(server.runs.values()) == {"completed"}
    assert sorted(answer.split()[-1] for answer in stored(server)[1::2]) == ["one", "right", "w39"]


@pytest.mark.process
def test_turn_waits_for_a_message_that_a_killed_process_had_just_sent(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "arrival", 1.5)
    run("-m", "hf-llama", "one")
    server.faults["POST", "/conversation/*"] = [Fault(delay=0.4)]
    left = llm_process("-c", "left")
    wait_for(lambda: len(sends(server)) == 2)
    left.kill()
    left.communicate()
    assert run("-c", "right").stdout == "You said: right\n"
    assert set(server.runs.values()) == {"completed"}
    assert sorted(tree(server, only_conversation(server).id)["one"]) == ["left", "right"]


@pytest.mark.process
def test_turn_waits_for_one_that_goes_on_in_another_process_however_long(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "store_timeout", 0.1)
    monkeypatch.setattr(limits, "call_timeout", 0.2)
    run("-m", "hf-llama", "one")
    server.may_speak.clear()
    left = llm_process("-c", "left")
    wait_for(lambda: len(sends(server)) == 2)
    with meanwhile(run, "-c", "right") as right:
        with pytest.raises(TimeoutError):
            right.result(timeout=0.4)
        sent = len(sends(server))
        server.may_speak.set()
        assert sent == 2
        assert right.result().stdout == "You said: right\n"
    assert left.wait() == 0
    assert sorted(tree(server, only_conversation(server).id)["one"]) == ["left", "right"]


# --- the marker of a stop -------------------------------------------------------------

LONG = "[[tokens=6000]] [[delay=0.1]]"


def test_marker_is_waited_out_for_as_long_as_chat_ui_keeps_it() -> None:
    assert limits.stop_marker > STOP_MARKER


async def test_stop_that_came_in_time_is_not_waited_out(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "stop_marker", NEVER)
    first = llm.get_async_model("hf-llama").prompt("one")
    await first
    async for _ in await first.reply(f"left {LONG}"):
        break
    with soon():
        assert await (await first.reply("right")).text() == "You said: right"
    assert "interrupted" in server.runs.values()


@pytest.mark.parametrize("process", ["the same process", "another process"])
async def test_prompt_after_a_stop_that_came_too_late_is_not_stopped_by_it(
    server: ChatUI, process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer had ended: the stop's marker would kill the conversation's next run."""
    monkeypatch.setattr(limits, "stop_marker", 0.9)
    monkeypatch.setattr("chat_ui.STOP_MARKER", 0.35)
    first = llm.get_async_model("hf-llama").prompt("one")
    await first
    server.faults["POST", "*/stop-generating"] = [Fault(delay=0.3)]
    async for _ in await first.reply("[[tokens=2]] [[delay=0.1]]"):
        break  # the stop is told, and arrives when the run is over
    await until(lambda: server.stops)
    assert set(server.runs.values()) == {"completed"}
    if process == "another process":
        await asyncio.to_thread(reset)
    answer = await (await first.reply("[[tokens=9]] [[delay=0.06]]")).text()
    assert answer == "".join(f"w{n} " for n in range(9))
    assert "interrupted" not in server.runs.values()


async def test_prompt_after_an_answer_without_end_is_not_stopped_by_the_stop_of_that(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "stop_marker", 0.9)
    monkeypatch.setattr("chat_ui.STOP_MARKER", 0.35)
    monkeypatch.setattr("llm_huggingchat.ANSWER_LIMIT", 50)
    first = llm.get_async_model("hf-llama").prompt("one")
    await first
    server.faults["POST", "*/stop-generating"] = [Fault(delay=0.3)]
    with pytest.raises(llm.ModelError, match="no end"):
        await (await first.reply("[[tokens=40]]")).text()
    await until(lambda: server.stops)
    answer = await (await first.reply("[[tokens=9]] [[delay=0.06]]")).text()
    assert answer == "".join(f"w{n} " for n in range(9))
    assert "interrupted" not in server.runs.values()
