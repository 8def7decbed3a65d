"""Ctrl-C, iterators left early, cancelled tasks: the model stops, and nothing is left behind."""

import asyncio
import contextlib
import os
import signal
import subprocess
import textwrap
import threading
from collections.abc import Callable, Iterator

import helpers as h
import llm
import pytest
from chat_ui import ChatUI, Fault

from llm_huggingchat import limits, reset

LONG = f"[[tokens={2 * h.NEVER:.0f}]] [[delay=0.1]]"
SILENT = f"[[wait={h.NEVER}]]"
STALLED = f"[[stall=1]] {LONG}"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends here ends because somebody left."""
    for name in ("read_timeout", "reconnect_timeout", "call_timeout", "store_timeout"):
        monkeypatch.setattr(limits, name, h.NEVER)


def interrupted(server: ChatUI) -> bool:
    """Whether the server was told to stop every run, and did."""
    told = {generation_id for _, generation_id in server.stops}
    return set(server.runs.values()) == {"interrupted"} and told == set(server.runs)


def press(when: Callable[[], object], another_thread: bool = False) -> None:
    """Press Ctrl-C as soon as something holds.

    The system gives the signal to a thread that it chooses: to the main one, or to another.
    """
    h.wait_for(when)
    if another_thread:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    else:
        os.kill(os.getpid(), signal.SIGINT)


@contextlib.contextmanager
def ctrl_c(when: Callable[[], object], another_thread: bool = False) -> Iterator[None]:
    """Ctrl-C is pressed, and has to come up in this block, at once."""
    before = signal.getsignal(signal.SIGINT)
    with h.meanwhile(press, when, another_thread), h.soon(), pytest.raises(KeyboardInterrupt):
        yield
    assert signal.getsignal(signal.SIGINT) == before


# --- iterators left early, tasks cancelled --------------------------------------------


def test_iterator_that_is_left_stops_the_run_where_the_reader_was(server):
    shown = ""
    for chunk in llm.get_model("hf-llama").prompt("[[tokens=6000]] [[delay=0.02]]"):
        shown += chunk
        if "w5" in shown:
            break
    h.wait_for(lambda: interrupted(server))
    (answer,) = server.messages(h.only_conversation(server).id, "assistant")
    assert answer["interrupted"]
    assert answer["content"].startswith(shown.strip())
    assert len(answer["content"]) < len(shown) + 100


def test_iterator_that_is_left_after_the_final_answer_stops_nothing(server, monkeypatch):
    monkeypatch.setattr(limits, "id_timeout", h.NEVER)
    words = f"one [[unstreamed]] [[hold]] [[slowfetch={h.NEVER}]]"
    assert next(iter(llm.get_model("hf-llama").prompt(words)))
    reset()  # waits for stops
    assert server.stops == []


@pytest.mark.parametrize("words", [LONG, SILENT, STALLED], ids=["speaks", "thinks", "stalls"])
async def test_cancelled_task_stops_the_run(server, words):
    task = asyncio.create_task(llm.get_async_model("hf-llama").prompt(words).text())
    await h.until(lambda: any(run.text or words == SILENT for run in server.all_runs))
    task.cancel()
    with h.soon(), pytest.raises(asyncio.CancelledError):
        await task
    await h.until(lambda: interrupted(server))


async def test_wait_for_each_piece_and_then_no_longer(server):
    pieces = llm.get_async_model("hf-llama").prompt(f"[[stall=3]] {LONG}").__aiter__()
    given = [await asyncio.wait_for(pieces.__anext__(), h.NEVER) for _ in range(3)]
    assert given == ["w0 ", "w1 ", "w2 "]
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(pieces.__anext__(), 0.05)
    await h.until(lambda: interrupted(server))
    assert h.stored(server)[1].startswith("w0 w1 w2")


# --- Ctrl-C in a program --------------------------------------------------------------


@pytest.mark.parametrize("another_thread", [False, True])
@pytest.mark.parametrize("words", [LONG, SILENT, STALLED], ids=["speaks", "thinks", "stalls"])
def test_ctrl_c_in_a_sync_prompt(server, words, another_thread):
    shown = ""
    silent = words == SILENT
    with ctrl_c(lambda: any(run.text or silent for run in server.all_runs), another_thread):
        for chunk in llm.get_model("hf-llama").prompt(words):
            shown += chunk
    h.wait_for(lambda: interrupted(server))
    assert silent or h.stored(server)[1].startswith(shown.strip())


def test_ctrl_c_while_nothing_was_sent_leaves_nothing(server):
    server.faults["POST", "/conversation"] = [Fault(stall=True)]
    with ctrl_c(lambda: server.log):
        h.ask_sync("hello")
    h.wait_for(lambda: not server.open_connections)
    assert server.stops == []
    assert server.conversations == {}
    assert h.ask_sync("hello").text() == "You said: hello"


@pytest.mark.parametrize("way", ["read", "wait for each", "between two"])
def test_ctrl_c_in_an_async_prompt(server, way):
    """At a moment when no piece comes: there, wait_for of Python 3.11 loses a cancel."""
    given: list[str] = []

    def tick() -> None:  # asyncio can miss a signal that comes just before it waits
        asyncio.get_running_loop().call_later(0.05, tick)

    async def program() -> None:
        tick()
        pieces = aiter(llm.get_async_model("hf-llama").prompt(STALLED))
        while True:
            next = anext(pieces)
            given.append(await (asyncio.wait_for(next, h.NEVER) if "wait" in way else next))
            if "between" in way:
                await asyncio.sleep(h.NEVER)

    with ctrl_c(lambda: given):
        asyncio.run(program())
    h.wait_for(lambda: interrupted(server))


# --- Ctrl-C on the command line -------------------------------------------------------


@pytest.mark.parametrize("words", [LONG, SILENT, STALLED], ids=["speaks", "thinks", "stalls"])
@pytest.mark.parametrize("way", [(), ("--async",)], ids=" ".join)
def test_ctrl_c_on_the_command_line_stops_the_run(server, words, way):
    h.run("-m", "hf-llama", "one", *way)

    def begun() -> bool:
        return len(server.all_runs) == 2 and bool(server.all_runs[1].text or words == SILENT)

    with h.meanwhile(press, begun), h.soon():
        assert h.run("-c", words, *way, status=1).stderr.strip() == "Aborted!"
    reset()  # as at the end of the process
    h.wait_for(lambda: len(server.stops) == 1)
    assert h.run("-c", "three", *way).stdout == "You said: three\n"


HEAD = f"""
import asyncio, os, signal, sys, threading, time
{h.PATIENT}
NEVER, PROMPT = {h.NEVER}, {LONG!r}
import llm
"""


def python(body: str) -> subprocess.Popen[str]:
    """A process that runs `body`."""
    return h.new_process("-c", HEAD + textwrap.dedent(body))


@pytest.mark.process
def test_ctrl_c_ends_a_program_as_ever_and_stops_its_run(server):
    process = python("""
        async def answer():
            async for _ in llm.get_async_model("hf-llama").prompt(PROMPT):
                print("begun", flush=True)
                await asyncio.sleep(NEVER)

        asyncio.new_event_loop().run_until_complete(answer())
    """)
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=h.AT_ONCE)
    assert "\nKeyboardInterrupt\n" in errors
    assert process.returncode == -signal.SIGINT
    h.wait_for(lambda: interrupted(server))


@pytest.mark.process
def test_ctrl_c_ends_a_command_at_once_and_stops_its_run(server):
    process = h.command("-m", "hf-llama", STALLED)
    assert process.stdout
    assert process.stdout.read(1) == "w"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=h.AT_ONCE)
    assert (process.returncode, errors.strip()) == (1, "Aborted!")
    h.wait_for(lambda: interrupted(server))


@pytest.mark.process
def test_second_ctrl_c_at_the_end_of_a_program_shows_no_second_traceback(server):
    server.faults["POST", "*/stop-generating"] = [Fault(stall=True)] * 9
    process = python("""
        def waits():
            frame = sys._current_frames()[threading.main_thread().ident]
            names = []
            while frame:
                names.append((frame.f_globals["__name__"], frame.f_code.co_name))
                frame = frame.f_back
            return ("threading", "join") in names and "llm_huggingchat" in dict(names)

        def press_again():
            while not waits():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        limits.stop_timeout = NEVER
        for _ in llm.get_model("hf-llama").prompt(PROMPT):
            threading.Thread(target=press_again, daemon=True).start()
            os.kill(os.getpid(), signal.SIGINT)
    """)
    _, errors = process.communicate(timeout=h.AT_ONCE)
    assert process.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1
