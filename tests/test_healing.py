"""Broken connections: nothing lost, nothing sent twice, and an end in bounded time."""

from __future__ import annotations

import asyncio
import functools
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import llm
import pytest
from chat_ui import ChatUI, Fault
from helpers import (
    AT_ONCE,
    NEVER,
    TurnRequest,
    ask_async,
    ask_sync,
    both,
    calls,
    command,
    described,
    kept,
    only_conversation,
    parts,
    run,
    sends,
    soon,
    tree,
    wait_for,
)

from llm_huggingchat import limits

LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
PLAIN = "[[tokens=12]] [[delay=0.005]]"
MIXED = "[[tools]] [[delay=0.005]]"
# None of these answers repeats its question, so that of an uncut run is the same.
STEERING = [
    PLAIN,
    MIXED,
    "[[reasoning_events]] [[tokens=6]]",
    "[[think]]",
    "[[unicode]]",
    "[[file]] [[tokens=6]]",
]
SENDING = [
    "[[drop=after]]",
    "[[drop=before]]",
    "[[status=502*1]]",
    "[[status_after=500]]",
    "[[status_after=502]]",
]
STREAMING = [
    "[[cut=0]]",
    "[[cut=1]]",
    "[[cut=5]]",
    "[[cut=3,1,0,2]]",
    "[[cut=0,0,0]]",
    "[[cut_bytes=200]]",
    "[[cut_bytes=777]]",
    "[[end=0]]",
    "[[end=2]]",
    "[[cut=2]] [[gone]]",
    "[[cut=2]] [[log_status=404]]",
    "[[cut=2]] [[log_status=502*2]]",
    "[[noise]] [[split]] [[cut=3,1]]",
]
SILENT = ["[[stall=2]]", "[[cut=1]] [[stall_resume=1]]", "[[cut=1]] [[churn=1]]"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little patience, so that what takes long is soon over."""
    monkeypatch.setattr("llm_huggingchat.limits.read_timeout", 0.35)
    monkeypatch.setattr("llm_huggingchat.limits.reconnect_timeout", 1.0)
    monkeypatch.setattr("llm_huggingchat.limits.backoff", (0.02, 0.05, 0.1, 0.1, 0.1, 0.1))
    monkeypatch.setattr("llm_huggingchat.limits.look_again", 0.05)
    monkeypatch.setattr("chat_ui.HEARTBEAT", 0.1)


@functools.cache
def uncut(steering: str) -> list[dict[str, Any]]:
    """What a prompt gives when nothing breaks."""
    with ChatUI() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_HUGGINGCHAT_URL", server.url)
        return tidy(ask_sync(steering, web_search=True))


def tidy(response: llm.Response) -> list[dict[str, Any]]:
    """The parts of an answer, without a file's address, which differs, and a last space."""
    found = parts(response)
    for part in found:
        if "text" in part:
            part["text"] = re.sub(r"\]\(\S+\)", "](…)", part["text"])
    found[-1]["text"] = found[-1]["text"].rstrip()  # chat-ui stores none
    return found


def one_message_each(server: ChatUI) -> bool:
    """Is every conversation one question, with one answer to it?"""
    return all(
        [message["from"] for message in server.messages(id)] == ["system", "user", "assistant"]
        for id in server.conversations
    )


# --- what comes out equals an uncut run -----------------------------------------------


@pytest.mark.parametrize("steering", STEERING)
@pytest.mark.parametrize("words", STREAMING)
def test_answer_is_that_of_an_uncut_run(server: ChatUI, steering: str, words: str) -> None:
    check_healed(server, ask_sync, steering, words)


@both
@pytest.mark.parametrize("words", SILENT)
def test_silence_does_not_change_an_answer(server: ChatUI, ask: TurnRequest, words: str) -> None:
    check_healed(server, ask, MIXED, words)


@pytest.mark.parametrize("words", STREAMING)
def test_async_answer_is_that_of_an_uncut_run(server: ChatUI, words: str) -> None:
    check_healed(server, ask_async, MIXED, words)


@pytest.mark.parametrize("words", SENDING)
def test_message_is_sent_until_it_arrives_and_then_not_again(server: ChatUI, words: str) -> None:
    check_healed(server, ask_async, MIXED, words)


def check_healed(server: ChatUI, ask: TurnRequest, steering: str, words: str) -> None:
    """An answer is that of an uncut run, and the server has one question and one answer."""
    response = ask(f"{steering} {words}", web_search=True)
    assert tidy(response) == uncut(steering)
    assert one_message_each(server)
    assert len(server.runs) == 1
    assert kept(response)["message_id"] == server.messages(only_conversation(server).id)[2]["id"]


@pytest.mark.parametrize("size", range(0, 1400, 73))
def test_cut_after_any_byte(server: ChatUI, size: int) -> None:
    check_healed(server, ask_sync, "[[tools]]", f"[[cut_bytes={size}]]")


@both
def test_log_that_is_gone_is_read_from_the_store_with_its_tools(
    server: ChatUI, ask: TurnRequest
) -> None:
    response = ask("[[tools]] [[cut=2]] [[gone]]", web_search=True)
    assert [part["type"] for part in parts(response)].count("tool_result") == 2


@both
def test_answer_of_which_half_is_stored_is_an_error(server: ChatUI, ask: TurnRequest) -> None:
    with pytest.raises(llm.ModelError) as caught:
        ask("[[tokens=20]] [[cut=2]] [[gone_incomplete]]")
    assert f"{server.url}/conversation/{only_conversation(server).id}" in str(caught.value)
    assert server.stops == []


@both
@pytest.mark.parametrize(
    ("status", "says"), [(401, "login"), (403, "403"), (500, "did not come back"), (503, "second")]
)
def test_log_that_is_refused_for_good_is_an_error(
    server: ChatUI, ask: TurnRequest, status: int, says: str
) -> None:
    with soon(), pytest.raises(llm.ModelError, match=says) as caught:
        ask(f"[[tokens=5]] [[cut=1]] [[log_status={status}]]")
    assert status == 401 or only_conversation(server).id in str(caught.value)
    assert len(sends(server)) == 1
    assert server.stops == []


@both
@pytest.mark.parametrize("words", ["", "[[log_status=502*2]]", "[[stall_resume=1]]"])
def test_turn_asks_the_log_whether_the_one_before_it_is_stored(
    server: ChatUI, ask: TurnRequest, words: str
) -> None:
    """The first turn's own connection says nothing after the answer, and then breaks."""
    question = f"{words} [[hold]] [[store=0.8]] one"
    second = ask("two", after=ask(question))
    assert second.text() == "You said: two"
    assert tree(server, only_conversation(server).id) == {question: {"two": {}}}
    first, _ = server.messages(only_conversation(server).id, "assistant")
    assert first["content"] == f"You said: {question}"


# --- the conversation is deleted ------------------------------------------------------


def in_stream(server: ChatUI, act: Callable[[], None]) -> threading.Thread:
    """Do something once the model has begun to speak."""

    def later() -> None:
        wait_for(lambda: any(run._text for run in server.all_runs))
        act()

    thread = threading.Thread(target=later)
    thread.start()
    return thread


@both
def test_answer_of_a_conversation_that_is_deleted_meanwhile_is_given(
    server: ChatUI, ask: TurnRequest
) -> None:
    thread = in_stream(server, server.conversations.clear)
    first = ask("[[tokens=20]] [[delay=0.02]]")
    thread.join()
    assert first.text().endswith("w18 w19 ")
    assert server.conversations == {}
    ask("two", after=first)
    (question,) = server.messages(only_conversation(server).id, "user")
    assert first.text().strip() in question["content"]  # nothing is lost for the model


@both
def test_conversation_that_is_deleted_while_its_answer_is_cut_is_an_error(
    server: ChatUI, ask: TurnRequest
) -> None:
    with pytest.raises(llm.ModelError, match="was deleted") as caught:
        ask("[[tokens=9]] [[delete=2]] [[cut=3]]")
    assert f"{server.url}/conversation/" in str(caught.value)
    assert len(sends(server)) == 1


# --- sending --------------------------------------------------------------------------


@both
@pytest.mark.parametrize("words", ["[[drop=after]]", "[[drop=before]]"])
def test_later_message_is_never_doubled(server: ChatUI, ask: TurnRequest, words: str) -> None:
    first = ask("one")
    second = ask(f"two {words}", after=first)
    assert second.text() == f"You said: two {words}"
    assert tree(server, only_conversation(server).id) == {"one": {f"two {words}": {}}}
    assert len(server.messages(only_conversation(server).id, "user")) == 2
    assert len(sends(server)) == 2 + (words == "[[drop=before]]")


async def test_message_on_a_kept_connection_is_never_doubled(server: ChatUI) -> None:
    conversation = llm.get_async_model("hf-llama").conversation()
    await conversation.prompt("one").text()
    assert await conversation.prompt("two [[drop=after]]").text() == "You said: two [[drop=after]]"
    assert await conversation.prompt("three [[drop=before]]").text()
    first, second, *_ = sends(server)
    assert first.connection == second.connection
    assert tree(server, only_conversation(server).id) == {
        "one": {"two [[drop=after]]": {"three [[drop=before]]": {}}}
    }
    assert len(server.messages(only_conversation(server).id, "user")) == 3


def test_kept_connection_that_died_is_replaced(server: ChatUI) -> None:
    conversation = llm.get_model("hf-llama").conversation()
    conversation.prompt("one").text()
    server.faults["POST", "/conversation/*"] = [Fault(drop=True)]
    assert conversation.prompt("two").text() == "You said: two"
    assert len(server.messages(only_conversation(server).id, "user")) == 2


def test_server_that_was_restarted_between_turns(server: ChatUI) -> None:
    conversation = llm.get_model("hf-llama").conversation()
    conversation.prompt("one").text()
    server.down()
    server.up()
    assert conversation.prompt("two").text() == "You said: two"
    assert tree(server, only_conversation(server).id) == {"one": {"two": {}}}


@both
def test_refused_connections_are_tried_again(server: ChatUI, ask: TurnRequest) -> None:
    server.refuse_next(2)
    assert ask("hello").text() == "You said: hello"
    assert one_message_each(server)


@both
@pytest.mark.parametrize("fault", [Fault(drop=True), Fault(status=503)], ids=["drop", "503"])
def test_creation_that_breaks_is_tried_again(
    server: ChatUI, ask: TurnRequest, fault: Fault
) -> None:
    server.faults["POST", "/conversation"] = [fault, fault]
    assert ask("hello").text() == "You said: hello"
    assert len(server.conversations) == 1


def test_creation_that_stalls_is_an_error_and_not_made_twice(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.call_timeout", 0.3)
    server.faults["POST", "/conversation"] = [Fault(stall=True)]
    with pytest.raises(llm.ModelError, match="did not answer"):
        ask_sync("hello")
    assert calls(server) == [("POST", "/conversation")]


def test_creation_that_takes_long_is_waited_for(server: ChatUI) -> None:
    server.faults["POST", "/conversation"] = [Fault(delay=1.2)]  # it may be silent, and slow
    assert ask_sync("hello").text() == "You said: hello"
    assert [path for _, path in calls(server)].count("/conversation") == 1
    assert one_message_each(server)


@both
@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("fault", [Fault(drop=True, done=True), Fault(status=502, done=True)])
def test_conversation_that_was_made_unseen_is_found(
    server: ChatUI, ask: TurnRequest, system: str | None, fault: Fault
) -> None:
    server.faults["POST", "/conversation"] = [fault]
    assert ask("hello", system=system).text() == "You said: hello"
    assert [path for _, path in calls(server)].count("/conversation") == 1
    assert one_message_each(server)
    assert only_conversation(server).preprompt == (system or "")


def test_conversation_that_was_made_unseen_on_a_kept_connection_is_found(server: ChatUI) -> None:
    """curl alone would send it again there."""
    ask_sync("one")
    server.faults["POST", "/conversation"] = [Fault(drop=True, done=True)]
    ask_sync("two")
    assert len(server.conversations) == 2
    assert one_message_each(server)


def test_conversation_that_is_not_alike_is_not_taken_for_one_made_unseen(server: ChatUI) -> None:
    server.store_delay = 0
    qwen = server.add_conversation("session", "Qwen/Qwen3.6-27B", "")
    brief = server.add_conversation("session", LLAMA, "Be brief.")
    ask_sync("one", key="session")
    server.faults["POST", "/conversation"] = [Fault(drop=True)]
    ask_sync("two", key="session")
    first, second = list(server.conversations)[2:]
    assert [len(server.messages(id)) for id in (qwen.id, brief.id, first, second)] == [1, 1, 3, 3]
    assert ("GET", f"/api/v2/conversations/{brief.id}") in calls(server)  # it was looked at


async def test_conversations_that_were_made_unseen_at_once_stay_apart(server: ChatUI) -> None:
    server.faults["POST", "/conversation"] = 3 * [Fault(drop=True, done=True)]
    server.latency = 0.1  # so that all have looked before any has sent
    model = llm.get_async_model("hf-llama")
    words = ("left", "right", "ahead")
    await asyncio.gather(*(model.prompt(word).text() for word in words))
    assert len(server.conversations) == 3
    assert one_message_each(server)


@both
def test_last_line_needs_no_end(server: ChatUI, ask: TurnRequest) -> None:
    body = (
        b'{"type":"status","status":"started"}\n{"type":"status","status":"error","message":"full"}'
    )
    server.faults["POST", "/conversation/*"] = [
        Fault(status=200, body=body, content_type="application/jsonl")
    ]
    with pytest.raises(llm.ModelError, match="failed: full"):
        ask("hello")


def test_call_has_one_limit_for_all_its_tries(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.call_timeout", 0.8)
    server.faults["GET", "/api/v2/conversations"] = 4 * [Fault(delay=0.5, drop=True)]
    run("huggingchat", "conversations", status=1)
    assert 1 <= len([path for _, path in calls(server) if path == "/api/v2/conversations"]) <= 2


def test_message_that_stalls_is_looked_for(server: ChatUI) -> None:
    server.faults["POST", "/conversation/*"] = [Fault(stall=True)]
    assert ask_async("hello").text() == "You said: hello"
    assert one_message_each(server)


def test_message_that_is_never_taken_is_given_up(server: ChatUI) -> None:
    with pytest.raises(llm.ModelError) as caught:
        ask_async("[[drop=before*99]]")
    assert len(sends(server)) == limits.max_attempts
    id = only_conversation(server).id
    assert f"{server.url}/conversation/{id}" in str(caught.value)
    assert server.messages(id, "user") == []


# --- the server goes away -------------------------------------------------------------


@both
def test_server_comes_back_in_the_middle(server: ChatUI, ask: TurnRequest) -> None:
    def restart() -> None:
        server.down()
        time.sleep(0.5)
        server.up()

    thread = in_stream(server, restart)
    response = ask("[[tokens=40]] [[delay=0.02]]")
    thread.join()
    assert response.text() == "".join(f"w{number} " for number in range(40))
    assert one_message_each(server)


def test_server_that_never_comes_back_is_an_error(server: ChatUI) -> None:
    thread = in_stream(server, server.down)
    with soon(), pytest.raises(llm.ModelError) as caught:
        ask_sync("[[tokens=20]] [[delay=0.02]]")
    thread.join()
    assert f"{server.url}/conversation/{only_conversation(server).id}" in str(caught.value)


def test_what_was_printed_stays_when_the_server_goes(server: ChatUI) -> None:
    thread = in_stream(server, server.down)
    shown = run("-m", "hf-llama", "[[tokens=20]] [[delay=0.05]]", status=1)
    thread.join()
    assert shown.stdout.startswith("w0 ")
    assert only_conversation(server).id in shown.stderr
    assert len(shown.stderr.strip().splitlines()) <= 2


def test_log_that_stays_silent_is_an_error(server: ChatUI) -> None:
    with soon(), pytest.raises(llm.ModelError) as caught:
        ask_async("[[tokens=5]] [[cut=1]] [[stall_resume=99]]")
    assert f"{server.url}/conversation/{only_conversation(server).id}" in str(caught.value)


@both
def test_long_answer_outlives_unused_connections(
    server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.keep_alive", 0.2)
    assert ask("[[wait=0.7]]").text() == "You said: [[wait=0.7]]"


def test_thinking_is_not_silence(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.read_timeout", 0.8)
    assert ask_async("[[wait=1.2]]").text() == "You said: [[wait=1.2]]"
    assert len(server.log) <= 4
    assert not any(request.path.endswith("/stream") for request in server.log)


def test_thinking_for_longer_than_patience_on_a_resumed_stream(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.reconnect_timeout", 0.6)
    assert (
        ask_sync("[[wait=1.2]] [[cut_bytes=150]]").text()
        == "You said: [[wait=1.2]] [[cut_bytes=150]]"
    )
    assert any(request.path.endswith("/stream") for request in server.log)


def test_what_is_waited_for_at_the_end_is_short() -> None:
    """All else takes for ever in the tests of what is given, or gone, at once."""
    assert limits.stop_timeout < 0.8
    assert limits.id_timeout <= 2
    assert limits.tail_timeout <= 0.2


@both
@pytest.mark.parametrize(
    "words", ["[[hold]]", f"[[title_delay={NEVER}]]", f"[[cut=1]] [[title_delay={NEVER}]]"]
)
def test_nothing_waits_after_the_final_answer(
    server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.read_timeout", NEVER)
    monkeypatch.setattr("llm_huggingchat.limits.store_timeout", NEVER)
    with soon():
        assert ask(f"one {words}").text() == f"You said: one {words}"


def test_command_returns_after_the_final_answer(server: ChatUI) -> None:
    shown = command(server, "-m", "hf-llama", f"one [[hold]] [[title_delay={NEVER}]]")
    said = f"You said: one [[hold]] [[title_delay={NEVER}]]"
    assert shown.stdout
    assert shown.stdout.read(len(said)) == said
    _, err = shown.communicate(timeout=AT_ONCE)
    assert err == ""
    assert server.stops == []


@both
def test_interrupted_elsewhere_is_said(server: ChatUI, ask: TurnRequest) -> None:
    def stop() -> None:
        for going in server.all_runs:
            going.stop()

    thread = in_stream(server, stop)
    response = ask("[[tokens=100]] [[delay=0.02]]")
    thread.join()
    assert response.text().startswith("w0 ")
    assert described(response)["interrupted"] is True


@both
@pytest.mark.parametrize("words", ["", "[[cut=1]]", "[[cut=1]] [[gone]]"])
def test_model_that_breaks_off_leaves_what_it_said(
    server: ChatUI, ask: TurnRequest, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = ask(f"[[tokens=9]] [[die=3]] {words}")
    assert response.text() == "w0 w1 w2 "
    assert described(response)["interrupted"] is True
    assert "broke off" in caplog.text or "gone" in words


# --- leaving early --------------------------------------------------------------------

LONG = "[[tokens=6000]] [[delay=0.1]]"


def interrupted(server: ChatUI) -> bool:
    """Was the server told to stop every run, and did it?"""
    return set(server.runs.values()) == {"interrupted"} and {
        generation_id for _, generation_id in server.stops
    } == set(server.runs)


def test_abandoned_iterator_stops_the_run(server: ChatUI) -> None:
    for _ in llm.get_model("hf-llama").prompt(LONG):
        break
    wait_for(lambda: interrupted(server))
    (answer,) = server.messages(only_conversation(server).id, "assistant")
    assert answer["interrupted"]


async def test_abandoned_async_iterator_stops_the_run(server: ChatUI) -> None:
    async for _ in llm.get_async_model("hf-llama").prompt(LONG):
        break
    await asyncio.to_thread(wait_for, lambda: interrupted(server))


async def wait_until_streaming(server: ChatUI) -> None:
    await asyncio.to_thread(wait_for, lambda: any(run._text for run in server.all_runs))


async def test_cancelled_task_stops_the_run(server: ChatUI) -> None:
    task = asyncio.create_task(llm.get_async_model("hf-llama").prompt(LONG).text())
    await wait_until_streaming(server)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(wait_for, lambda: interrupted(server))


@pytest.mark.parametrize(
    "words", [LONG, f"[[wait={NEVER}]]", f"[[stall=1]] [[tokens={NEVER:.0f}]] [[delay=1]]"]
)
async def test_timeout_stops_the_run(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.read_timeout", NEVER)
    with soon(), pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(llm.get_async_model("hf-llama").prompt(words).text(), 0.4)
    await asyncio.to_thread(wait_for, lambda: interrupted(server))


async def test_timeout_while_nothing_is_sent_yet(server: ChatUI) -> None:
    server.faults["POST", "/conversation"] = [Fault(stall=True)]
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(llm.get_async_model("hf-llama").prompt("hello").text(), 0.2)
    assert server.stops == []
    assert server.conversations == {}


async def test_end_of_the_loop_stops_the_run(server: ChatUI) -> None:
    async def abandon() -> None:
        chunks = llm.get_async_model("hf-llama").prompt(LONG)
        await chunks.__aiter__().__anext__()

    await asyncio.to_thread(asyncio.run, abandon())
    await asyncio.to_thread(wait_for, lambda: interrupted(server))


def test_stop_cuts_the_answer_where_the_reader_left(server: ChatUI) -> None:
    shown = ""
    for chunk in llm.get_model("hf-llama").prompt(LONG):
        shown += chunk
        if "w5" in shown:
            break
    wait_for(lambda: interrupted(server))
    (answer,) = server.messages(only_conversation(server).id, "assistant")
    assert answer["content"].startswith(shown.strip())
    assert len(answer["content"]) < len(shown) + 100


@both
@pytest.mark.parametrize("words", ["hello", "[[tools]]", "[[cut=1]]", "[[err=500]]", "[[empty]]"])
def test_answer_that_ended_is_not_stopped(server: ChatUI, ask: TurnRequest, words: str) -> None:
    try:
        ask(words, web_search=True)
    except llm.ModelError:
        assert words in ("[[err=500]]", "[[empty]]")
    ask("another")
    assert server.stops == []


def test_two_prompts_in_one_process_one_abandoned(server: ChatUI) -> None:
    model = llm.get_model("hf-llama")
    left = iter(model.prompt(LONG))
    next(left)
    assert ask_sync("hello").text() == "You said: hello"
    left.close()  # type: ignore[attr-defined]
    wait_for(lambda: sorted(server.runs.values()) == ["completed", "interrupted"])
