"""llm's chain and the server's tree are one, however a conversation is continued."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import math
import os
import pathlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import llm
import llm.plugins
import pytest
from chat_ui import ChatUI, Fault
from helpers import (
    NEVER,
    TurnRequest,
    ask_async,
    ask_sync,
    both,
    calls,
    described,
    kept,
    logged,
    only_conversation,
    run,
    sends,
    soon,
    tree,
    wait_for,
)
from llm.parts import Message

import llm_huggingchat
from llm_huggingchat import RUNS, Client, Noted, claim_run, still_noted

LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
QWEN = "Qwen/Qwen3.8-2.4T-A95B"


def seen(text: str) -> list[tuple[str, str]]:
    """What a [[history]] answer says that the model saw: roles and contents."""
    return [(message["role"], message["content"]) for message in json.loads(text)]


class Parrot(llm.Model):
    """A model of another provider."""

    model_id = "parrot"

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[str]:
        yield f"Squawk: {prompt.prompt}"


@pytest.fixture
def parrot() -> Iterator[Parrot]:
    """A model of another provider, which llm knows."""
    model = Parrot()

    class Plugin:
        @llm.hookimpl
        def register_models(self, register: Any) -> None:
            register(model)

    plugin = Plugin()
    llm.plugins.load_plugins()
    llm.plugins.pm.register(plugin)
    yield model
    llm.plugins.pm.unregister(plugin)


# --- a line ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", [(), ("--async",), ("--no-stream",)])
def test_continued_prompts_make_a_line(server: ChatUI, way: tuple[str, ...]) -> None:
    run("-m", "hf-llama", "one", "-s", "Be brief", *way)
    run("-c", "two", *way)
    shown = run("-c", "[[history]]", *way)
    conversation = only_conversation(server)
    assert tree(server, conversation.id) == {"one": {"two": {"[[history]]": {}}}}
    assert seen(shown.stdout)[1:] == [
        ("user", "one"),
        ("assistant", "You said: one"),
        ("user", "two"),
        ("assistant", "You said: two"),
        ("user", "[[history]]"),
    ]
    assert [request.data and request.data["inputs"] for request in sends(server)] == [
        "one",
        "two",
        "[[history]]",
    ]
    assert conversation.preprompt == "Be brief"
    assert shown.stderr == ""


@both
def test_later_turn_makes_one_request_before_its_first_token(
    server: ChatUI, ask: TurnRequest
) -> None:
    server.store_delay = 0
    response = ask("one")
    before = len(calls(server))
    ask("[[wait=0.3]] two", after=response)
    id = only_conversation(server).id
    assert calls(server)[before:] == [
        ("POST", f"/conversation/{id}"),
        ("GET", f"/api/v2/conversations/{id}"),
    ]
    fetches = [request for request in server.log if request.path.endswith(id)]
    assert fetches[-1].at - sends(server)[1].at >= 0.3


def test_fiftieth_upload_is_no_larger_than_the_second(server: ChatUI) -> None:
    server.store_delay = 0.0  # no turn has to wait for the one before it
    conversation = llm.get_model("hf-llama").conversation()
    for number in range(50):
        assert conversation.prompt(f"turn {number:02}").text() == f"You said: turn {number:02}"
    sizes = [len(request.body) for request in sends(server)]
    assert len(sizes) == 50
    assert set(sizes[1:]) == {sizes[1]}
    assert len(server.messages(only_conversation(server).id)) == 101
    assert [method for method, path in calls(server) if path == "/conversation"] == ["POST"]


def test_chat_keeps_its_connections(server: ChatUI) -> None:
    opened = []
    take = server.record

    def record(request: Any) -> None:
        if request.data:
            opened.append(server.connections)
        take(request)

    server.record = record  # type: ignore[method-assign]
    shown = run("chat", "-m", "hf-llama", "-s", "Be brief", input="one\ntwo\nthree\nfour\nquit\n")
    assert "You said: four" in shown.stdout
    id = only_conversation(server).id
    assert tree(server, id) == {"one": {"two": {"three": {"four": {}}}}}
    # The first turn may open one for each of what goes on at once; the others use those.
    assert opened[1] == opened[2] == opened[3]
    assert server.connections == opened[1]


def test_chat_continues_a_conversation(server: ChatUI) -> None:
    run("-m", "hf-llama", "one")
    run("chat", "-c", input="two\nthree\nquit\n")
    run("-c", "four")
    assert tree(server, only_conversation(server).id) == {"one": {"two": {"three": {"four": {}}}}}


def test_conversation_object_continues(server: ChatUI) -> None:
    conversation = llm.get_model("hf-llama").conversation()
    for prompt in ("one", "two", "three"):
        conversation.prompt(prompt).text()
    assert tree(server, only_conversation(server).id) == {"one": {"two": {"three": {}}}}


async def test_async_conversation_object_continues(server: ChatUI) -> None:
    conversation = llm.get_async_model("hf-llama").conversation()
    for prompt in ("one", "two", "three"):
        await conversation.prompt(prompt).text()
    assert tree(server, only_conversation(server).id) == {"one": {"two": {"three": {}}}}
    assert sends(server)[1].connection == sends(server)[2].connection


@both
def test_chain_given_as_messages_continues(server: ChatUI, ask: TurnRequest) -> None:
    first = ask("one")
    ask(messages=[*first.prompt.messages, *first.messages(), llm.user("two")])
    assert tree(server, only_conversation(server).id) == {"one": {"two": {}}}


def test_sync_async_and_sync_again(server: ChatUI) -> None:
    first = ask_sync("one")
    second = ask_async("two", after=first)
    third = ask_sync("three", after=second)
    ask_async("[[history]]", after=third)
    assert tree(server, only_conversation(server).id) == {
        "one": {"two": {"three": {"[[history]]": {}}}}
    }
    run("-m", "hf-llama", "logged one")
    run("-c", "--async", "logged two")
    run("-c", "logged three")
    _, other = server.conversations
    assert tree(server, other) == {"logged one": {"logged two": {"logged three": {}}}}


@both
def test_response_survives_being_stored_as_json(server: ChatUI, ask: TurnRequest) -> None:
    stored = json.dumps(ask("one [[reason]]").to_dict())
    response = llm.Response.from_dict(json.loads(stored))
    assert response.text() == "You said: one [[reason]]"
    ask("two", after=response)
    assert tree(server, only_conversation(server).id) == {"one [[reason]]": {"two": {}}}


# --- branches -------------------------------------------------------------------------


@both
def test_two_replies_are_two_branches(server: ChatUI, ask: TurnRequest) -> None:
    first = ask("one")
    left = ask("left [[history]]", after=first)
    right = ask("right [[history]]", after=first)
    ask("lefter", after=left)
    assert tree(server, only_conversation(server).id) == {
        "one": {"left [[history]]": {"lefter": {}}, "right [[history]]": {}}
    }
    assert seen(right.text()) == [
        ("user", "one"),
        ("assistant", "You said: one"),
        ("user", "right [[history]]"),
    ]


def test_continuing_by_id_goes_on_after_the_last_answer(server: ChatUI) -> None:
    run("-m", "hf-llama", "one")
    first = kept_in_logs()
    run("-m", "hf-qwen", "something else")
    run("--cid", first, "two")
    run("--cid", first, "three")
    id, other = server.conversations
    assert tree(server, id) == {"one": {"two": {"three": {}}}}
    assert tree(server, other) == {"something else": {}}


def kept_in_logs() -> str:
    """llm's own id of the latest conversation in its logs."""
    (entry,) = json.loads(run("logs", "--json", "-n", "1").stdout)
    return str(entry["conversation_id"])


def test_branches_of_python_and_of_the_command_line_share_a_tree(server: ChatUI) -> None:
    run("-m", "hf-llama", "one")
    thread = kept_in_logs()
    run("--cid", thread, "two")
    messages = first_turn_of_logs()
    ask_sync(messages=[*messages, llm.user("aside [[history]]")])
    run("--cid", thread, "three")
    assert tree(server, only_conversation(server).id) == {
        "one": {"two": {"three": {}}, "aside [[history]]": {}}
    }


def first_turn_of_logs() -> list[Message]:
    """The first question and answer of the latest conversation in llm's logs."""
    import llm.cli

    conversation = llm.cli.load_conversation(None)
    assert conversation
    assert conversation.loaded_messages
    return conversation.loaded_messages[:2]


# --- the answer's id ------------------------------------------------------------------


@both
@pytest.mark.parametrize("word", ["[[nofetch]]", f"[[slowfetch={NEVER}]]"])
def test_answer_whose_id_cannot_be_had_is_given_all_the_same(
    server: ChatUI, ask: TurnRequest, word: str
) -> None:
    with soon():
        response = ask(f"one {word}")
    assert response.text() == f"You said: one {word}"
    assert "message_id" not in kept(response)
    only_conversation(server).words.clear()
    ask("two", after=response)
    assert tree(server, only_conversation(server).id) == {f"one {word}": {"two": {}}}


def test_logged_answer_without_id_is_found_again(server: ChatUI) -> None:
    run("-m", "hf-llama", "one [[nofetch]]")
    only_conversation(server).words.clear()
    run("-c", "two")
    run("-c", "three")
    assert tree(server, only_conversation(server).id) == {"one [[nofetch]]": {"two": {"three": {}}}}


@both
def test_next_turn_waits_until_the_answer_is_stored(server: ChatUI, ask: TurnRequest) -> None:
    first = ask("one [[title_delay=0.4]]")
    ask("two", after=first)
    wait_for(lambda: "running" not in server.runs.values())
    assert tree(server, only_conversation(server).id) == {"one [[title_delay=0.4]]": {"two": {}}}
    answers = server.messages(only_conversation(server).id, "assistant")
    assert [answer["content"] for answer in answers] == [
        "You said: one [[title_delay=0.4]]",
        "You said: two",
    ]


def test_next_process_waits_until_the_answer_is_stored(server: ChatUI) -> None:
    run("-m", "hf-llama", "--async", "one [[title_delay=0.4]]")
    run("-c", "--async", "two")
    wait_for(lambda: "running" not in server.runs.values())
    assert tree(server, only_conversation(server).id) == {"one [[title_delay=0.4]]": {"two": {}}}


def test_chat_waits_until_the_answer_is_stored(server: ChatUI) -> None:
    run("chat", "-m", "hf-llama", input="one [[title_delay=0.4]]\ntwo\nquit\n")
    wait_for(lambda: "running" not in server.runs.values())
    assert tree(server, only_conversation(server).id) == {"one [[title_delay=0.4]]": {"two": {}}}


def test_two_processes_at_once_lose_nothing(server: ChatUI, user_path: pathlib.Path) -> None:
    run("-m", "hf-llama", "one")
    (thread,) = {entry["conversation_id"] for entry in logged()}
    wait_for(lambda: noted_runs(user_path) == [])
    server.may_speak.clear()  # until both have read what to continue
    at_once = [
        subprocess.Popen(
            [sys.executable, "-m", "llm", "--cid", thread, f"{name} [[tokens=20]]"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        for name in ("left", "right")
    ]
    wait_for(lambda: len(noted_runs(user_path)) == 2, 60)
    assert len(sends(server)) <= 2  # one waits for the other
    server.may_speak.set()
    for process in at_once:
        shown, _ = process.communicate(timeout=60)
        assert shown.startswith(b"w0 w1 "), process.args
        assert process.returncode == 0
    wait_for(lambda: "running" not in server.runs.values())
    conversation = only_conversation(server)
    branches = sorted(tree(server, conversation.id)["one"])
    assert branches == ["left [[tokens=20]]", "right [[tokens=20]]"]
    answers = [message["content"] for message in server.messages(conversation.id, "assistant")]
    assert [answer.split()[-1] for answer in answers] == ["one", "w19", "w19"]


def test_turn_waits_for_the_run_of_a_process_that_was_killed(server: ChatUI) -> None:
    run("-m", "hf-llama", "one")
    (entry,) = logged()
    left = subprocess.Popen(
        [sys.executable, "-m", "llm", "-c", "left [[tokens=40]] [[delay=0.05]]"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert left.stdout
    assert left.stdout.read(1) == b"w"
    left.kill()
    left.communicate()
    (generation_id,) = (id for id, state in server.runs.items() if state == "running")
    assert still_noted(generation_id)
    assert run("-c", "right").stdout == "You said: right\n"
    assert server.runs[generation_id] == "completed"
    assert not still_noted(generation_id)
    wait_for(lambda: "running" not in server.runs.values())
    id = entry["response_json"]["huggingchat"]["conversation_id"]
    answers = [message["content"] for message in server.messages(id, "assistant")]
    assert [answer.split()[-1] for answer in answers] == ["one", "w39", "right"]


def noted_runs(user_path: pathlib.Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(user_path / RUNS)) as db:
        return [id for (id,) in db.execute("select generation_id from runs")]


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"SQLite format 3\0" + b"x" * 5000])
def test_nonsense_where_runs_are_noted_does_no_harm(
    server: ChatUI, user_path: pathlib.Path, content: bytes
) -> None:
    (user_path / RUNS).write_bytes(content)
    first = ask_sync("one")
    assert first.reply("two").text() == "You said: two"
    wait_for(lambda: noted_runs(user_path) == [])


@both
def test_where_nothing_can_be_noted_the_last_run_is_asked_about(
    server: ChatUI, ask: TurnRequest, user_path: pathlib.Path
) -> None:
    (user_path / RUNS).mkdir()
    first = ask("one [[store=0.6]]")
    llm_huggingchat._background.close()  # the next turn is another process's
    assert ask("two", after=first).text() == "You said: two"
    assert tree(server, only_conversation(server).id) == {"one [[store=0.6]]": {"two": {}}}


def test_run_of_a_process_that_was_killed_before_it_sent(
    server: ChatUI, user_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask_sync("one")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with monkeypatch.context() as context:
        context.setattr("os.getpid", lambda: ended.pid)
        claim_run(described(first)["url"], "lost")
    assert first.reply("two").text() == "You said: two"
    wait_for(lambda: noted_runs(user_path) == [])


def test_process_that_is_there_has_its_turn_for_a_while() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    now = time.time()
    assert Noted("g", os.getpid(), now).has_a_turn(60)
    assert Noted("g", os.getpid(), now + 500).has_a_turn(60)  # it waits, and is sent only then
    assert not Noted("g", os.getpid(), now - 61).has_a_turn(60)
    assert Noted("g", os.getpid(), now - 61).has_a_turn(math.inf)
    assert not Noted("g", ended.pid, now).has_a_turn(math.inf)
    assert not Noted("g", None, now).has_a_turn(math.inf)


def test_notes_are_of_one_page_and_not_for_ever(user_path: pathlib.Path) -> None:
    assert claim_run("page", "old") == []
    assert claim_run("another", "other") == []
    assert [noted.generation_id for noted in claim_run("page", "new") or ()] == ["old"]
    with contextlib.closing(sqlite3.connect(user_path / RUNS)) as db:
        begun = time.time() - llm_huggingchat.RUN_LIMIT - 1
        db.execute("update runs set begun = ? where generation_id = 'old'", [begun])
        db.commit()
    assert [noted.generation_id for noted in claim_run("page", "newer") or ()] == ["new"]


async def test_run_that_is_known_to_be_stored_is_not_waited_for(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch, user_path: pathlib.Path
) -> None:
    """Though it is noted, by a process that goes on."""
    monkeypatch.setattr("llm_huggingchat.limits.call_timeout", NEVER)
    first = llm.get_async_model("hf-llama").prompt("one")
    about = described(await first.to_sync_response())
    await asyncio.to_thread(wait_for, lambda: noted_runs(user_path) == [])
    claim_run(about["url"], about["generation_id"])
    with soon():
        assert await (await first.reply("two")).text() == "You said: two"


def another_process(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "llm", *arguments], stdin=subprocess.DEVNULL)


async def test_run_that_goes_on_elsewhere_is_waited_for_however_long(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.store_timeout", 0.2)
    monkeypatch.setattr("llm_huggingchat.limits.call_timeout", 0.3)
    await asyncio.to_thread(run, "-m", "hf-llama", "one")
    (entry,) = await asyncio.to_thread(logged)
    server.may_speak.clear()
    left = another_process("-c", "left")
    await asyncio.to_thread(wait_for, lambda: len(sends(server)) == 2)
    right = asyncio.create_task(asyncio.to_thread(run, "-c", "right"))
    streams = f"/conversation/{only_conversation(server).id}/stream"
    await asyncio.to_thread(wait_for, lambda: calls(server).count(("GET", streams)) >= 4)
    assert len(sends(server)) == 2
    server.may_speak.set()
    await right
    assert await asyncio.to_thread(left.wait) == 0
    wait_for(lambda: "running" not in server.runs.values())
    id = entry["response_json"]["huggingchat"]["conversation_id"]
    assert sorted(tree(server, id)["one"]) == ["left", "right"]


async def test_turn_that_waited_long_is_noted_as_one_that_sends_now(
    server: ChatUI, user_path: pathlib.Path
) -> None:
    first = llm.get_async_model("hf-llama").prompt("one")
    claim_run(described(await first.to_sync_response())["url"], "before")
    waiting = asyncio.create_task((await first.reply("two")).text())
    streams = f"/conversation/{only_conversation(server).id}/stream"
    await asyncio.to_thread(wait_for, lambda: ("GET", streams) in calls(server))
    server.may_speak.clear()
    with contextlib.closing(sqlite3.connect(user_path / RUNS)) as db:
        db.execute("update runs set since = 1 where generation_id <> 'before'")
        db.commit()
        llm_huggingchat.forget_run("before")
        await asyncio.to_thread(wait_for, lambda: len(sends(server)) == 2)
        ((since,),) = db.execute("select since from runs")
    server.may_speak.set()
    assert await waiting == "You said: two"
    assert since > time.time() - 600


@both
def test_stop_that_came_too_late_is_waited_out(
    server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stop the conversation's next run."""
    monkeypatch.setattr("llm_huggingchat.limits.stop_marker", 1.0)
    first = ask("one")
    about = described(first)
    claim_run(about["url"], "stopped")
    now = time.monotonic()
    llm_huggingchat.leave_run("stopped", time.time())
    assert ask("two", after=first).text() == "You said: two"
    assert sends(server)[-1].at - now >= 0.95


async def test_stop_that_came_in_time_is_not_waited_out(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.stop_marker", NEVER)
    first = llm.get_async_model("hf-llama").prompt("one")
    await first
    async for _ in await first.reply("left [[tokens=6000]] [[delay=0.1]]"):
        break
    with soon():
        assert await (await first.reply("right")).text() == "You said: right"
    assert "interrupted" in server.runs.values()


def test_loop_that_ends_leaves_its_run_to_the_next_turn(
    server: ChatUI, user_path: pathlib.Path
) -> None:
    """Its tasks are cancelled more than once, and files may take their time."""
    server.may_store.clear()

    async def answer() -> None:
        one_thread = concurrent.futures.ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(one_thread)
        assert await llm.get_async_model("hf-llama").prompt("one").text() == "You said: one"
        one_thread.submit(time.sleep, 0.3)
        for _ in range(30):
            for task in list(Client.here()._tasks):
                task.cancel()
            await asyncio.sleep(0)

    asyncio.run(answer())
    with contextlib.closing(sqlite3.connect(user_path / RUNS)) as db:
        assert list(db.execute("select process from runs")) == [(None,)]


async def test_run_that_no_turn_sends_is_not_waited_for_without_a_log(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch, user_path: pathlib.Path
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.call_timeout", 1.0)
    first = llm.get_async_model("hf-llama").prompt("one")
    url = (await first.json() or {})["huggingchat"]["url"]
    claim_run(url, "lost")  # in this process, which goes on
    server.faults["GET", "/conversation/*/stream"] = 100 * [Fault(status=404)]
    assert await asyncio.wait_for((await first.reply("two")).text(), 20) == "You said: two"
    assert "lost" not in noted_runs(user_path)


async def test_two_replies_at_once_lose_nothing(server: ChatUI) -> None:
    model = llm.get_async_model("hf-llama")
    first = model.prompt("one")
    await first
    replies = [await first.reply(f"{name} [[tokens=20]]") for name in ("left", "right")]
    await asyncio.gather(*(reply.text() for reply in replies))
    wait_for(lambda: "running" not in server.runs.values())
    assert tree(server, only_conversation(server).id) == {
        "one": {"left [[tokens=20]]": {}, "right [[tokens=20]]": {}}
    }


async def test_replies_at_once_lose_nothing_where_nothing_can_be_noted(
    server: ChatUI, user_path: pathlib.Path
) -> None:
    (user_path / RUNS).mkdir()
    first = llm.get_async_model("hf-llama").prompt("one")
    await first
    replies = [await first.reply(name) for name in ("left", "right", "up", "down")]
    await asyncio.gather(*(reply.text() for reply in replies))
    await asyncio.to_thread(server.messages, only_conversation(server).id)
    assert tree(server, only_conversation(server).id) == {
        "one": {"left": {}, "right": {}, "up": {}, "down": {}}
    }
    # What was seen stored is not asked about.
    before = len(calls(server))
    await asyncio.sleep(0)
    await (await replies[1].reply("on")).text()
    assert ("GET", f"/conversation/{only_conversation(server).id}/stream") not in calls(server)[
        before:
    ]


async def test_answer_without_an_id_is_not_taken_for_the_latest(server: ChatUI) -> None:
    first = llm.get_async_model("hf-llama").prompt("one")
    await first
    left = await first.reply("left [[nofetch]]")
    await left
    only_conversation(server).words.clear()
    await (await first.reply("right")).text()
    await (await left.reply("on")).text()
    await asyncio.to_thread(server.messages, only_conversation(server).id)
    assert tree(server, only_conversation(server).id) == {
        "one": {"left [[nofetch]]": {"on": {}}, "right": {}}
    }


# --- another model --------------------------------------------------------------------


@both
def test_another_model_takes_the_conversation_over(server: ChatUI, ask: TurnRequest) -> None:
    server.store_delay = 0
    first = ask("one")
    before = len(calls(server))
    second = ask("two", after=first, model="hf-qwen")
    conversation = only_conversation(server)
    assert calls(server)[before:][:2] == [
        ("PATCH", f"/api/v2/conversations/{conversation.id}"),
        ("POST", f"/conversation/{conversation.id}"),
    ]
    assert conversation.model == QWEN
    assert second.resolved_model == QWEN
    assert tree(server, conversation.id) == {"one": {"two": {}}}


async def test_first_model_comes_back_on_another_branch(server: ChatUI) -> None:
    """What counts is the conversation's model now, not that of the answer to go on from."""
    llama, qwen = llm.get_async_model("hf-llama-3.3-70b-instruct"), llm.get_async_model("hf-qwen")
    first = llama.prompt("one")
    await first
    other = llm.AsyncResponse.from_dict((await first.to_sync_response()).to_dict(), model=qwen)
    second = await other.reply("two")
    await second
    assert only_conversation(server).model == QWEN
    await (await first.reply("three")).text()
    assert only_conversation(server).model == LLAMA


def test_another_model_on_the_command_line(server: ChatUI) -> None:
    run("-m", "hf-llama", "one")
    run("-c", "-m", "hf-qwen", "two")
    run("-c", "three")
    conversation = only_conversation(server)
    assert tree(server, conversation.id) == {"one": {"two": {"three": {}}}}
    patches = [request.body for request in server.log if request.method == "PATCH"]
    assert json.loads(patches[0]) == {"model": QWEN}


def test_turn_of_another_provider_is_carried_once(server: ChatUI, parrot: Parrot) -> None:
    run("-m", "hf-llama", "one")
    run("-c", "-m", "parrot", "two")
    run("-c", "-m", "hf-llama", "three")
    shown = run("-c", "-m", "hf-llama", "[[history]]")
    messages = seen(shown.stdout)
    assert [role for role, _ in messages] == ["user", "assistant"] * 2 + ["user"]
    (_, carried) = messages[2]
    assert carried.endswith("three")
    for piece in ("User: two", "Assistant: Squawk: two"):
        assert carried.count(piece) == 1
    assert "one" not in carried
    assert messages[4] == ("user", "[[history]]")
    questions = server.messages(only_conversation(server).id, "user")
    assert [carried == question["content"] for question in questions] == [False, True, False]


@both
def test_history_from_elsewhere_is_carried(server: ChatUI, ask: TurnRequest) -> None:
    history = [
        llm.system("Be brief"),
        llm.user("my name is Ann"),
        llm.assistant("Hello Ann"),
        llm.user("my dog is Rex"),
        llm.assistant("Hello Rex"),
    ]
    first = ask(messages=[*history, llm.user("who am I?")])
    ask("and my dog?", after=first)
    conversation = only_conversation(server)
    assert conversation.preprompt == "Be brief"
    question, second = server.messages(conversation.id, "user")
    order = ["my name is Ann", "Hello Ann", "my dog is Rex", "Hello Rex", "who am I?"]
    places = [question["content"].index(piece) for piece in order]
    assert places == sorted(places)
    assert question["content"].endswith("who am I?")
    assert "Be brief" not in question["content"]
    assert second["content"] == "and my dog?"


# --- conversations that are not there -------------------------------------------------


def whole_history(server: ChatUI, id: str) -> bool:
    """Does the one question of a conversation hold the earlier turn, and then the new one?"""
    (question,) = server.messages(id, "user")
    content = question["content"]
    return "User: one" in content and "You said: one" in content and bool(content.endswith("two"))


@both
def test_deleted_conversation_starts_anew(
    server: ChatUI,
    ask: TurnRequest,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = ask("one", system="Be brief")
    gone = kept(first)["conversation_id"]
    del server.conversations[gone]
    second = ask("two", after=first)
    said = capfd.readouterr()
    new = only_conversation(server)
    assert kept(second)["conversation_id"] == new.id != gone
    assert whole_history(server, new.id)
    assert new.preprompt == "Be brief"
    assert (said.out, said.err) == ("", "")  # a library writes neither
    (told,) = caplog.messages
    assert gone in told
    ask("three", after=second)
    assert len(server.messages(new.id, "user")) == 2


def test_deleted_conversation_on_the_command_line(server: ChatUI) -> None:
    run("-m", "hf-llama", "one")
    server.conversations.clear()
    shown = run("-c", "two")
    assert len(shown.stderr.splitlines()) == 1
    assert run("-c", "three").stderr == ""
    (first, second) = server.messages(only_conversation(server).id, "user")
    assert "You said: one" in first["content"]
    assert second["content"] == "three"


@both
def test_conversation_of_another_account_starts_anew(
    server: ChatUI, ask: TurnRequest, caplog: pytest.LogCaptureFixture
) -> None:
    first = ask("one", key="hf-chat=ann")
    ask("two", after=first, key="hf-chat=bob")
    anns, bobs = server.conversations.values()
    assert (anns.session, bobs.session) == ("ann", "bob")
    assert whole_history(server, bobs.id)
    assert tree(server, anns.id) == {"one": {}}
    assert len(caplog.messages) == 1


@both
def test_deleted_conversation_with_another_model_starts_anew(
    server: ChatUI, ask: TurnRequest
) -> None:
    first = ask("one")
    server.conversations.clear()
    ask("two", after=first, model="hf-qwen")
    assert only_conversation(server).model == QWEN
    assert whole_history(server, only_conversation(server).id)


@both
def test_parent_that_is_not_there_starts_anew(server: ChatUI, ask: TurnRequest) -> None:
    first = ask("one")
    old = only_conversation(server)
    server.messages(old.id)  # all is stored
    old.messages = old.messages[:1]
    old.messages[0]["children"] = []
    ask("two", after=first)
    _, new = server.conversations
    assert whole_history(server, new)
    assert len(server.messages(old.id)) == 1


@pytest.mark.parametrize("prompt", ["one", "one [[nofetch]]"])
def test_answer_that_was_deleted_is_not_taken_for_the_conversation(
    server: ChatUI, caplog: pytest.LogCaptureFixture, prompt: str
) -> None:
    first = ask_sync(prompt)
    old = only_conversation(server)
    server.messages(old.id)  # all is stored
    old.messages = old.messages[:1]
    old.messages[0]["children"] = []
    old.words.clear()
    with pytest.raises(llm.ModelError) as error:
        ask_sync(None, after=first, retry=True)
    ask_sync("two", after=first)
    for told in (str(error.value), *caplog.messages):
        assert "answer to go on from" in told
        assert "no such conversation" not in told


@both
def test_first_system_prompt_is_told_again_after_another(server: ChatUI, ask: TurnRequest) -> None:
    first = ask("one", system="Speak French")
    second = ask("two", after=first, system="Speak Dutch")
    ask("three", after=second, system="Speak French")
    *_, third = server.messages(only_conversation(server).id, "user")
    assert "Speak French" in third["content"]


@pytest.mark.parametrize("status", [413, 429])
def test_first_message_that_is_refused_leaves_no_empty_conversation(
    server: ChatUI, status: int
) -> None:
    body = b'{"message":"An error occurred"}'
    refused = Fault(status=status, body=body, content_type="application/json")
    server.faults["POST", "/conversation/*"] = [refused]
    with pytest.raises(llm.ModelError) as error:
        ask_sync("one")
    assert not server.conversations
    assert "/conversation/" not in str(error.value)


def test_first_message_that_a_proxy_refused_may_still_arrive(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_huggingchat.limits, "backoff", (0.01,))
    monkeypatch.setattr(llm_huggingchat.limits, "look_again", 0.01)
    server.faults["POST", "/conversation/*"] = [Fault(status=502)] * 20
    with pytest.raises(llm.ModelError) as error:
        ask_sync("one")
    assert only_conversation(server).id in str(error.value)
    server.faults["POST", "/conversation/*"] = [Fault(status=502), Fault(status=413)]
    with pytest.raises(llm.ModelError):
        ask_sync("two")
    assert len(server.conversations) == 2


def test_later_message_that_is_refused_leaves_the_conversation(server: ChatUI) -> None:
    first = ask_sync("one")
    refused = Fault(status=413, body=b"{}", content_type="application/json")
    server.faults["POST", "/conversation/*"] = [refused]
    with pytest.raises(llm.ModelError):
        ask_sync("two", after=first)
    assert len(server.messages(only_conversation(server).id)) == 3


def test_model_that_was_chosen_on_the_web_page_is_told(
    server: ChatUI, caplog: pytest.LogCaptureFixture
) -> None:
    first = ask_sync("one")
    other = "Qwen/Qwen3.6-27B"
    server.messages(only_conversation(server).id)
    only_conversation(server).model = other
    answer = ask_sync("two", after=first)
    assert caplog.messages == [f"{other} answered: it was chosen on the web page"]
    assert answer.resolved_model == other


def test_another_server_gets_the_history_but_not_the_cookies(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = server.url.split("/")[2]
    run("keys", "set", f"huggingchat:{host}", "--value", "hf-chat=of-the-first")
    run("-m", "hf-llama", "one")
    assert {r.cookies.get("hf-chat") for r in server.log if r.cookies} == {"of-the-first"}
    with ChatUI() as other:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", other.url)
        run("-c", "two")
        assert whole_history(other, only_conversation(other).id)
        for request in other.log:
            assert b"of-the-first" not in request.body
            assert "of-the-first" not in str(request.headers)
        run("-c", "three")
        assert len(other.messages(only_conversation(other).id, "user")) == 2
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", server.url)
    run("-c", "back")
    conversation = only_conversation(server)
    assert conversation.session == "of-the-first"
    _, back = server.messages(conversation.id, "user")
    assert "You said: three" in back["content"]
    assert tree(server, conversation.id) == {"one": {back["content"]: {}}}


# --- attachments and fragments --------------------------------------------------------


@both
def test_attachments_are_sent_once(server: ChatUI, ask: TurnRequest) -> None:
    notes = llm.Attachment(type="text/plain", content=b"Rex is a dog")
    first = ask("one", attachments=[notes])
    ask("two [[history]]", after=first)
    assert [len(request.files) for request in sends(server)] == [1, 0]
    assert "Rex is a dog" not in str(sends(server)[1].body)


def test_attachments_and_fragments_of_earlier_turns_are_not_sent_again(
    server: ChatUI, tmp_path: Any
) -> None:
    (tmp_path / "notes.txt").write_text("Rex is a dog")
    (tmp_path / "facts.txt").write_text("The sky is blue")
    run(
        "-m",
        "hf-llama",
        "one",
        "-a",
        str(tmp_path / "notes.txt"),
        "-f",
        str(tmp_path / "facts.txt"),
    )
    run("-c", "two")
    first, second = sends(server)
    assert first.data
    assert "The sky is blue" in first.data["inputs"]
    assert second.data
    assert second.data["inputs"] == "two"
    assert second.files == []


@both
def test_attachments_of_a_carried_history_are_named(
    server: ChatUI, ask: TurnRequest, tmp_path: Any
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Rex is a dog")
    history = [
        llm.user("read this", llm.Attachment(path=str(path), type="text/plain")),
        llm.assistant("Done"),
    ]
    ask(messages=[*history, llm.user("and now?")])
    (question,) = server.messages(only_conversation(server).id, "user")
    assert "notes.txt" in question["content"]
    assert "Rex is a dog" not in question["content"]
    assert sends(server)[0].files == []


# --- many at once ---------------------------------------------------------------------


async def test_twenty_prompts_go_at_once(server: ChatUI) -> None:
    """None waits for another's answer: all are sent before the first is given."""
    server.may_speak.clear()
    model = llm.get_async_model("hf-llama")
    prompts = [model.prompt(f"number {number}") for number in range(20)]
    answers = asyncio.gather(*(prompt.text() for prompt in prompts))
    await asyncio.to_thread(wait_for, lambda: len(server.runs) == 20)
    server.may_speak.set()
    assert await answers == [f"You said: number {number}" for number in range(20)]
    assert len(server.conversations) == 20


def test_ten_threads_at_once(server: ChatUI) -> None:
    model = llm.get_model("hf-llama")

    def talk(number: int) -> list[str]:
        conversation = model.conversation()
        return [conversation.prompt(f"{number} {word}").text() for word in ("one", "two")]

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(talk, range(10)))
    assert answers == [[f"You said: {n} one", f"You said: {n} two"] for n in range(10)]
    assert len(server.conversations) == 10
    for conversation in server.conversations.values():
        assert len(conversation.messages) == 5


async def test_sync_model_works_where_a_loop_runs(server: ChatUI) -> None:
    response = llm.get_model("hf-llama").prompt("one")
    assert response.text() == "You said: one"
    assert response.reply("two").text() == "You said: two"


# --- another answer -------------------------------------------------------------------


@both
def test_retry_makes_a_sibling_answer(server: ChatUI, ask: TurnRequest) -> None:
    first = ask("one")
    again = ask(after=first, options={"retry": True})
    assert again.text() == "You said: one"
    messages = server.messages(only_conversation(server).id)
    assert [message["from"] for message in messages] == ["system", "user", "assistant", "assistant"]
    (request,) = sends(server)[1:]
    assert request.data
    assert request.data["is_retry"] is True
    assert "inputs" not in request.data
    ask("two", after=again)
    answers = server.messages(only_conversation(server).id)[2:4]
    assert [len(answer["children"]) for answer in answers] == [0, 1]


@pytest.mark.parametrize("way", [(), ("--async",)])
def test_retry_on_the_command_line(server: ChatUI, way: tuple[str, ...]) -> None:
    run("-m", "hf-llama", "one")
    assert run("-c", "", "-o", "retry", "true", *way).stdout == "You said: one\n"
    run("-c", "two", *way)
    conversation = only_conversation(server)
    assert len(server.messages(conversation.id, "assistant")) == 3
    assert tree(server, conversation.id) == {"one": {"two": {}}}
    (two,) = [m for m in server.messages(conversation.id, "user") if m["content"] == "two"]
    assert two["ancestors"][-1] == server.messages(conversation.id, "assistant")[1]["id"]


@both
@pytest.mark.parametrize("prompt", ["words", ""])
def test_retry_wants_an_answer_and_no_words(server: ChatUI, ask: TurnRequest, prompt: str) -> None:
    earlier = ask("one") if prompt else None
    before = len(sends(server))
    with pytest.raises(llm.ModelError, match="retry"):
        ask(prompt, after=earlier, **({"options": {"retry": True}} if earlier else {"retry": True}))
    assert len(sends(server)) == before


# --- the conversation on the way ------------------------------------------------------


@both
def test_patch_that_meets_a_busy_proxy_is_tried_again(
    server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.backoff", (0.01,) * 6)
    first = ask("one")
    server.faults["PATCH", "*"] = [Fault(status=502), Fault(drop=True)]
    ask("two", after=first, model="hf-qwen")
    assert tree(server, only_conversation(server).id) == {"one": {"two": {}}}
    assert only_conversation(server).model == QWEN
