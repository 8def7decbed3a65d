"""The models' event loop, from every kind of program: events in order, leaving, ending."""

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from helpers import AT_ONCE, NEVER, wait_for
from llm.parts import StreamEvent

import llm_huggingchat as plugin

RESULT = plugin.TurnResult("https://chat.example", "a/b")
COUNT = 500
ALL = [str(number) for number in range(COUNT)]


class Work:
    """A turn that emits numbers, and says how it was left."""

    def __init__(self, count: int = COUNT, end: Any = None, stays: bool = False) -> None:
        self.count, self.end, self.stays = count, end, stays
        self.begun, self.left = threading.Event(), threading.Event()
        self.taken = -1  # what the channel says of the caller when the turn is left

    async def __call__(self, client: plugin.Client, channel: plugin.Channel) -> plugin.TurnResult:
        self.begun.set()
        try:
            for number in range(self.count):
                channel.emit(StreamEvent(type="text", chunk=str(number)), number + 1)
                if number % 7 == 0:
                    await asyncio.sleep(0)
            if self.stays:
                await asyncio.sleep(NEVER)
            if self.end:
                raise self.end
            return RESULT
        finally:
            self.taken = channel.delivered
            self.left.set()


def events(work: Any) -> AsyncIterator[StreamEvent]:
    """An async turn, of whose notes and result nobody hears."""
    return plugin.stream_turn_async(work, print, lambda result: None)


async def read(work: Any) -> list[str]:
    async with contextlib.aclosing(events(work)) as turn:  # type: ignore[type-var]
        return [event.chunk async for event in turn]


async def read_each(work: Any) -> list[str]:
    turn, end = events(work), StreamEvent(type="text", chunk="end")
    chunks = []
    while (event := await asyncio.wait_for(anext(turn, end), AT_ONCE)) is not end:
        chunks.append(event.chunk)
    return chunks


def sync(work: Any) -> list[str]:
    return [event.chunk for event in plugin.stream_turn(work, print, print)]


async def within(work: Any) -> list[str]:
    """A sync turn in a program that has a loop, which it blocks."""
    return sync(work)


WAYS = {
    "sync": sync,
    "asyncio.run": lambda work: asyncio.run(read(work)),
    "wait_for each": lambda work: asyncio.run(read_each(work)),
    "sync within a loop": lambda work: asyncio.run(within(work)),
    "a thread": lambda work: asyncio.run(asyncio.to_thread(sync, work)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_events_come_in_order_and_all_of_them_also_of_many_turns_and_then_the_error(way):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(way, [Work() for _ in range(16)])) == [ALL] * 16
    with pytest.raises(plugin.HuggingChatError, match="no luck"):
        way(Work(3, plugin.HuggingChatError("no luck")))


def leave_loop(work: Any) -> None:
    """The loop is closed without a look at the iterators that are open."""
    turn = events(work)
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(anext(turn))
    del turn
    gc.collect()


async def leave_async(work: Any) -> None:
    await anext(events(work))


LEAVE = [
    lambda work: next(plugin.stream_turn(work, print, print)),
    lambda work: asyncio.run(leave_async(work)),
    leave_loop,
]


@pytest.mark.parametrize("leave", LEAVE, ids=["sync", "asyncio.run", "loop"])
def test_turn_is_left_with_its_iterator(leave):
    work = Work(stays=True)
    leave(work)
    assert work.left.wait(AT_ONCE)
    assert work.taken <= 1


async def test_cancel_at_the_moment_of_a_token_loses_none_and_counts_none_twice():
    """What the turn is told that was taken is what the caller was given, 500 times."""

    async def consume(number: int) -> None:
        async with contextlib.aclosing(events(works[number])) as turn:  # type: ignore[type-var]
            async for event in turn:
                given[number].append(event.chunk)
                if len(given[number]) == number % 23:
                    asyncio.get_running_loop().call_soon(tasks[number].cancel)
                if number % 2:
                    await asyncio.sleep(0)

    works = [Work(25, stays=True) for _ in range(500)]
    given: list[list[str]] = [[] for _ in works]
    tasks: dict[int, asyncio.Task[None]] = {}
    for start in range(0, 500, 50):
        batch = range(start, start + 50)
        tasks |= {n: asyncio.create_task(consume(n)) for n in batch}
        for number in batch:
            if number % 23 == 0:  # cancelled from outside, at any moment
                await asyncio.sleep(0)
                tasks[number].cancel()
        await asyncio.wait([tasks[number] for number in batch])
    for number, work in enumerate(works):
        assert tasks[number].cancelled()
        if work.begun.is_set():
            assert await asyncio.to_thread(work.left.wait, AT_ONCE)
            assert work.taken == len(given[number])
        assert given[number] == ALL[: len(given[number])]
    assert sum(map(len, given)) > 5_000


async def test_stop_that_is_being_told_is_not_interrupted_by_leaving_again():
    began, told = threading.Event(), threading.Event()

    async def stop() -> None:
        began.set()
        await asyncio.sleep(0.05)
        told.set()

    async def work(client: plugin.Client, channel: plugin.Channel) -> plugin.TurnResult:
        channel.emit(StreamEvent(type="text", chunk="x"), 1)
        try:
            await asyncio.sleep(NEVER)
        finally:
            client.spawn_stop(stop())
        return RESULT

    turn = plugin.stream_turn(work, print, print)
    next(turn)
    turn.close()
    began.wait(AT_ONCE)
    plugin.reset()
    assert told.is_set()


def test_error_that_nobody_waits_for_any_more_is_nobodys(caplog):
    async def fails_when_left(client: plugin.Client, channel: plugin.Channel) -> plugin.TurnResult:
        try:
            return await Work(1, stays=True)(client, channel)
        finally:
            raise plugin.HuggingChatError("no luck")

    for _ in range(5):
        for work in (Work(1, plugin.HuggingChatError("no luck")), fails_when_left):
            turn = plugin.stream_turn(work, print, print)
            next(turn)
            turn.close()
    plugin.reset()
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


PROGRAM = """
    import asyncio, gc, logging, os, threading
    import llm
    import llm_huggingchat

    logging.getLogger("asyncio").setLevel("ERROR")  # not how long its callbacks take

    def ask():
        return llm.get_model("hf-llama").prompt("hello").text()

    async def ask_async():
        for _ in llm.get_model("hf-llama").prompt("[[tokens=50]]"):
            break
        async for _ in llm.get_async_model("hf-llama").prompt("[[tokens=50]]"):
            break
        left = llm.get_async_model("hf-llama").prompt("[[tokens=50]]").__aiter__()
        await anext(left)
        task = asyncio.create_task(llm.get_async_model("hf-llama").prompt("[[stall=1]]").text())
        await asyncio.sleep(0.1)
        task.cancel()
        return await llm.get_async_model("hf-llama").prompt("hello").text()

    for again in range(2):
        assert ask() == asyncio.run(ask_async()) == "You said: hello"
        llm_huggingchat.reset()
        gc.collect()
        for thread in {*threading.enumerate()} - {threading.main_thread()}:
            thread.join(10)  # those of a pool end by themselves, a moment later
        assert threading.enumerate() == [threading.main_thread()]
    assert ask() == "You said: hello"
    if hasattr(os, "fork"):
        child = os.fork()
        assert ask() == "You said: hello"
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    # What is left ends with the process.
"""


@pytest.mark.process
def test_nothing_is_left_to_the_garbage_collector(server):
    options = ("-X", "dev", "-W", "error::ResourceWarning", "-W", "ignore::DeprecationWarning")
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(PROGRAM)],
        env=os.environ | {"LLM_HUGGINGCHAT_URL": server.url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * AT_ONCE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wait_for(lambda: not server.open_connections)
