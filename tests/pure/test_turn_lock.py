"""Whose turn it is in a conversation: what a turn leaves behind for the next one."""

import asyncio
import json
import os
import pathlib
import time

import llm
import pytest
from filelock import FileLock

from llm_huggingchat import TurnLock, turn_is_pending

PAGE = "https://huggingface.co/chat/conversation/6b039392759aa03066f1190f"
DAY = 86_400.0


async def entered(page: str = PAGE) -> TurnLock:
    lock = TurnLock(page)
    await lock.acquire()
    return lock


async def left(page: str = PAGE, stopped: float | None = None) -> None:
    """A turn whose run may go on."""
    lock = await entered(page)
    lock.begin()
    lock.release(stored=False, stopped=stopped)


async def wait_in_vain() -> None:
    """A turn that is cancelled while it waits."""
    waiting = asyncio.create_task(entered())
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])


def files() -> list[pathlib.Path]:
    return sorted((llm.user_dir() / "huggingchat_turns").iterdir())


def kept_in() -> pathlib.Path:
    """The file that says what became of the turn."""
    return next(file for file in files() if file.suffix == ".json")


async def test_turn_whose_run_is_stored_leaves_nothing():
    lock = await entered()
    lock.begin()
    assert turn_is_pending(PAGE)
    lock.release(stored=True)
    assert not turn_is_pending(PAGE)
    assert files() == []


async def test_next_turn_knows_that_a_run_may_go_on_and_when_it_was_stopped():
    stopped = time.time()
    await left(stopped=stopped)
    assert turn_is_pending(PAGE)
    lock = await entered()
    assert (lock.pending, lock.stopped) == (True, stopped)
    lock.release(stored=True)
    assert not (await entered()).pending


async def test_next_turn_knows_when_a_process_that_died_had_sent_its_message():
    before = time.time()
    lock = await entered()
    lock.begin()
    content = kept_in().read_bytes()
    lock.release(stored=False)
    kept_in().write_bytes(content)  # a process that dies does not release it
    lock = await entered()
    assert lock.pending
    assert before <= lock.sent_at <= time.time()
    lock.release(stored=False)
    assert (await entered()).sent_at == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"stopped": "now"}', b"\xff"])
async def test_file_that_is_broken_still_says_that_a_run_may_go_on(content):
    await left()
    kept_in().write_bytes(content)
    lock = await entered()
    assert (lock.pending, lock.stopped) == (True, None)


async def test_what_was_done_is_not_still_to_come_where_the_clock_was_wrong():
    await left()
    kept_in().write_text(json.dumps(dict.fromkeys(("sent", "stopped"), time.time() + DAY)))
    lock = await entered()
    assert 0 < lock.sent_at <= time.time()
    assert lock.stopped is not None
    assert lock.stopped <= time.time()


async def test_one_turn_at_a_time_in_a_conversation():
    first, other = await entered(), await entered(PAGE + "x")
    waiting = asyncio.create_task(entered())
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    for lock in (first, other):
        lock.release(stored=True)
    (await waiting).release(stored=True)


async def test_turn_that_is_cancelled_while_it_waits_does_not_hold_up_the_next():
    first = await entered()
    (file,) = files()
    await wait_in_vain()
    first.release(stored=True)
    (await entered()).release(stored=True)
    with FileLock(file):  # another process has the turn
        await wait_in_vain()
    async with asyncio.timeout(10):
        (await entered()).release(stored=True)


@pytest.mark.parametrize(("days", "pending"), [(6, True), (8, False)])
async def test_what_nobody_continued_is_forgotten_after_a_week(days, pending):
    for page in (PAGE + "old", PAGE + "new"):
        (await entered(page)).release(stored=False)
    for file in files():
        os.utime(file, (time.time() - days * DAY,) * 2)
    await left(PAGE + "new")
    lock = await entered()
    lock.begin()
    assert turn_is_pending(PAGE + "new")
    assert turn_is_pending(PAGE + "old") is pending
    lock.release(stored=True)


async def test_where_no_file_can_be_made_the_server_is_asked(user_path):
    (user_path / "huggingchat_turns").write_text("a file where the folder should be")
    lock = await entered()
    assert lock.pending
    lock.begin()
    lock.release(stored=False)
    assert (await entered()).pending
