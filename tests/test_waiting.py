"""What a turn waits for: a pause that the server wants, and a turn before it that goes on."""

import asyncio
import re
import time

import helpers as h
import llm
import pytest
from chat_ui import STOP_MARKER, ChatUI, Fault

from llm_huggingchat import limits, reset

pytestmark = pytest.mark.usefixtures("quick")
WAIT, MESSAGES = "LLM_HUGGINGCHAT_WAIT", ("POST", "/conversation/*")
BUSY = b'{"message": "You are sending too many messages. Try again later."}'
NO = Fault(status=429, body=BUSY, content_type="application/json")


@pytest.fixture
def busy(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> ChatUI:
    """A server that is waited for; what takes it a minute takes 0.3 seconds."""
    monkeypatch.setattr(limits, "rate_window", 0.3)
    monkeypatch.setenv(WAIT, "600")
    return server


# --- a pause that the server wants ----------------------------------------------------


async def test_prompts_at_once_are_answered_and_each_pause_is_told(busy, monkeypatch, caplog):
    monkeypatch.setattr(limits, "rate_window", 0.6)
    busy.messages_per_minute, busy.minute = 3, 0.6
    model = llm.get_async_model("hf-llama")
    prompts = [model.prompt(f"number {n}") for n in range(7)]
    answers = await asyncio.gather(*(prompt.text() for prompt in prompts))
    assert answers == [f"You said: number {n}" for n in range(7)]
    questions = [busy.messages(id, "user")[0]["content"] for id in busy.conversations]
    assert sorted(questions) == [f"number {n}" for n in range(7)]
    assert 1 <= caplog.text.count("asks for a pause; waiting") <= 2


async def test_threads_and_loops_share_the_pause_of_one_server(busy, monkeypatch, caplog):
    """What one of them was told, the others need not ask."""
    monkeypatch.setattr(limits, "rate_window", h.NEVER)
    busy.faults[MESSAGES] = [NO]
    waiting = asyncio.create_task(llm.get_async_model("hf-llama").prompt("one").text())
    await h.until(lambda: "asks for a pause" in caplog.text)
    monkeypatch.setattr(limits, "rate_window", 0.3)
    monkeypatch.setenv(WAIT, "1")
    for ask in (h.ask_sync, h.ask_async):
        said = await asyncio.to_thread(h.error_of, ask, "hello")
        assert re.search("asks for a pause .*sending too many messages", said)
    assert len(h.sends(busy)) == 1
    with ChatUI(store_delay=0) as other:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", other.url)
        assert (await asyncio.to_thread(h.ask_sync, "two")).text() == "You said: two"
    waiting.cancel()


def test_wait_is_told_once_on_the_command_line(busy):
    busy.faults[MESSAGES] = [NO] * 2
    shown = h.run("-m", "hf-llama", "number 0")
    assert shown.stdout == "You said: number 0\n"
    said = f"{h.host(busy)} asks for a pause; waiting, for 600 seconds at most"
    assert shown.stderr == f"huggingchat: {said}\n"
    assert len(h.sends(busy)) == 3


@h.both
def test_wait_that_was_too_short_says_so_and_the_conversation_goes_on(busy, ask, monkeypatch):
    monkeypatch.setenv(WAIT, "0.5")
    first = ask("one")
    busy.faults[MESSAGES] = [NO] * 3
    assert re.search(f"HTTP 429: .*{WAIT}", h.error_of(ask, "two", after=first))
    assert len(h.sends(busy)) == 3
    busy.faults.clear()
    monkeypatch.setenv(WAIT, "60")
    assert ask("three", after=first).text() == "You said: three"
    assert h.stored(busy)[2:] == ["three", "You said: three"]


def test_limits_that_waiting_does_not_change_are_told_at_once(busy):
    busy.max_messages = 2
    first = h.ask_sync("one")
    said = h.error_of(h.ask_sync, "two", after=first)
    assert re.search("has reached a limit .*Start a new one", said)
    busy.max_conversations = 1
    h.ask_sync("three")
    said = h.error_of(h.ask_sync, "four")
    assert re.search("has reached a limit .*Delete some to continue", said)
    assert len(h.sends(busy)) == 3


async def cancel(task: asyncio.Task[str]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_task_that_is_cancelled_while_it_waits_lets_the_next_turn_go(busy, caplog):
    first = llm.get_async_model("hf-llama").prompt("one")
    await first
    busy.faults[MESSAGES] = [NO] * 100
    waiting = asyncio.create_task((await first.reply("two")).text())
    await h.until(lambda: "asks for a pause" in caplog.text)
    await cancel(waiting)
    busy.faults.clear()
    with h.soon():
        assert await (await first.reply("three")).text() == "You said: three"
    assert h.stored(busy)[::2] == ["one", "three"]
    assert busy.stops == []


async def test_task_cancelled_while_it_tries_again_lets_the_next_go(busy, monkeypatch, caplog):
    model = llm.get_async_model("hf-llama")
    busy.faults[MESSAGES] = [NO, Fault(stall=True)]
    trying = asyncio.create_task(model.prompt("one").text())
    await h.until(lambda: "asks for a pause" in caplog.text)
    monkeypatch.setattr(limits, "rate_window", h.NEVER)
    await h.until(lambda: len(h.sends(busy)) == 2)
    await cancel(trying)
    with h.soon():
        assert await model.prompt("two").text() == "You said: two"


# --- a turn before it that is not stored yet ------------------------------------------


@h.both
@pytest.mark.parametrize(
    "words",
    [
        "[[title_delay=0.2]]",
        "[[store=0.2]]",
        "[[log_status=502*2]] [[hold]] [[store=0.4]]",  # its stream says no more, and then breaks
        "[[stall_resume=1]] [[hold]] [[store=0.4]]",
    ],
)
def test_turn_waits_until_the_answer_before_it_is_stored(server, ask, words):
    question = f"one {words}"
    first = ask(question)
    if "title" not in words:
        reset()  # as in a new process
    ask("two", after=first)
    assert h.tree(server) == {question: {"two": {}}}
    assert h.stored(server)[1::2] == [f"You said: {question}", "You said: two"]


def test_turn_before_it_is_asked_about_with_a_session_made_from_the_token(server, monkeypatch):
    monkeypatch.setattr(limits, "store_timeout", 0.3)
    server.login_required, server.tokens["t-ada"] = True, "ada"
    first = h.ask_sync(f"one [[store={h.NEVER}]]", key="token=t-ada")
    reset()  # as in a new process
    before = len(server.log)
    assert h.ask_sync("two", after=first, key="token=t-ada").text() == "You said: two"
    paths = [request.path for request in list(server.log)[before:]]
    message = f"/conversation/{h.only_conversation(server).id}"
    assert paths.index("/login") < paths.index(f"{message}/stream") < paths.index(message)


@pytest.mark.parametrize("later", [120.0, 50_000.0, -86_400.0])
def test_turn_waits_for_the_one_before_it_whatever_the_clock_says(server, later, monkeypatch):
    """A run may take minutes, and a clock may have been wrong: neither loses an answer."""
    first = h.ask_sync("one [[store=0.3]]")
    reset()
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + later)
    with h.soon():
        h.ask_sync("two", after=first)
    assert h.stored(server)[1::2] == ["You said: one [[store=0.3]]", "You said: two"]


async def test_turn_that_is_cancelled_while_it_waits_leaves_the_wait_to_the_next(server):
    server.may_store.clear()
    first = llm.get_async_model("hf-llama").prompt("one")
    await first
    await asyncio.to_thread(reset)  # as in a new process
    for words in ("two", "three"):
        server.log.clear()
        turn = asyncio.create_task((await first.reply(words)).text())
        await h.until(lambda: "fromSeq" in str(server.log))
        assert h.sends(server) == []
        await (cancel(turn) if words == "two" else asyncio.sleep(0))
    server.may_store.set()
    assert await turn == "You said: three"


@pytest.mark.parametrize("new_process", [False, True])
@pytest.mark.parametrize(("words", "patience"), [("", 0.3), ("[[log_status=404]]", h.NEVER)])
def test_run_that_was_never_stored_does_not_block_for_ever(
    server, monkeypatch, words, patience, new_process
):
    """A run whose final write failed beats for ever, unless its log is not there."""
    monkeypatch.setattr(limits, "store_timeout", patience)
    first = h.ask_async(f"one [[store={h.NEVER}]] {words}")
    if new_process:
        reset()
    with h.soon():
        assert h.ask_async("two", after=first).text() == "You said: two"


def test_two_threads_in_one_conversation_send_one_after_the_other(server):
    first = h.ask_sync("one")
    server.may_speak.clear()
    with h.meanwhile(h.ask_sync, "left", after=first) as left:
        h.wait_for(lambda: len(h.sends(server)) == 2)
        with h.meanwhile(h.ask_async, "right", after=first) as right:
            h.wait_for(right.running)
            assert len(h.sends(server)) == 2
            server.may_speak.set()
            assert left.result().text() == "You said: left"
            assert right.result().text() == "You said: right"
    id = h.only_conversation(server).id
    assert h.tree(server, id) == {"one": {"left": {}, "right": {}}}
    assert h.calls(server).count(("GET", f"/conversation/{id}/stream")) <= 2


@pytest.mark.process
def test_turn_waits_for_a_message_that_a_killed_process_had_just_sent(server, monkeypatch):
    monkeypatch.setattr(limits, "arrival", 1.5)
    h.run("-m", "hf-llama", "one")
    server.faults[MESSAGES] = [Fault(delay=0.4)]
    left = h.command("-c", "left")
    h.wait_for(lambda: len(h.sends(server)) == 2)
    left.kill()
    left.communicate()
    assert h.run("-c", "right").stdout == "You said: right\n"
    assert set(server.runs.values()) == {"completed"}
    assert list(h.tree(server)["one"]) == ["left", "right"]


@pytest.mark.process
def test_turn_waits_for_one_in_another_process_that_is_then_killed(server, monkeypatch):
    monkeypatch.setattr(limits, "store_timeout", 0.1)
    monkeypatch.setattr(limits, "call_timeout", 0.2)
    h.run("-m", "hf-llama", "one")
    server.may_speak.clear()
    left = h.command("-c", "left")
    h.wait_for(lambda: len(h.sends(server)) == 2)
    with h.meanwhile(h.run, "-c", "right") as right:
        with pytest.raises(TimeoutError):
            right.result(timeout=0.4)
        monkeypatch.setattr(limits, "store_timeout", h.NEVER)
        left.kill()
        left.communicate()
        with pytest.raises(TimeoutError):
            right.result(timeout=0.2)
        sent = len(h.sends(server))
        server.may_speak.set()
        assert sent == 2
        assert right.result().stdout == "You said: right\n"
    assert set(server.runs.values()) == {"completed"}
    assert list(h.tree(server)["one"]) == ["left", "right"]


# --- the marker of a stop -------------------------------------------------------------


def test_marker_is_waited_out_for_as_long_as_chat_ui_keeps_it():
    assert limits.stop_marker > STOP_MARKER


async def test_stop_that_came_in_time_is_not_waited_out(server, monkeypatch):
    monkeypatch.setattr(limits, "stop_marker", h.NEVER)
    first = llm.get_async_model("hf-llama").prompt("one")
    await first
    async for _ in await first.reply("left [[tokens=6000]] [[delay=0.1]]"):
        break
    with h.soon():
        assert await (await first.reply("right")).text() == "You said: right"
    assert "interrupted" in server.runs.values()


@pytest.mark.parametrize("why", ["left", "left in another process", "the answer has no end"])
async def test_prompt_after_a_stop_that_came_too_late_goes_on(server, why, monkeypatch):
    """The answer had ended: the stop's marker would kill the conversation's next run."""
    monkeypatch.setattr(limits, "stop_marker", 0.9)
    monkeypatch.setattr("chat_ui.STOP_MARKER", 0.35)
    first = llm.get_async_model("hf-llama").prompt("one")
    await first
    server.faults["POST", "*/stop-generating"] = [Fault(delay=0.3)]  # then the run is over
    if "left" in why:
        async for _ in await first.reply("[[tokens=2]] [[delay=0.1]]"):
            break
    else:
        monkeypatch.setattr("llm_huggingchat.ANSWER_LIMIT", 50)
        with pytest.raises(llm.ModelError, match="no end"):
            await (await first.reply("[[tokens=40]]")).text()
    await h.until(lambda: server.stops)
    assert set(server.runs.values()) == {"completed"}
    if "process" in why:
        await asyncio.to_thread(reset)
    answer = await (await first.reply("[[tokens=9]] [[delay=0.06]]")).text()
    assert answer == "".join(f"w{n} " for n in range(9))
    assert "interrupted" not in server.runs.values()
