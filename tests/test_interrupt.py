"""Ctrl-C, iterators left early, cancelled tasks: the model stops, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator

import llm
import pytest
from chat_ui import ChatUI, Fault
from helpers import (
    AT_ONCE,
    NEVER,
    PATIENT,
    ask_sync,
    command,
    default_signals,
    described,
    make_logs,
    meanwhile,
    only_conversation,
    run,
    sends,
    soon,
    stored,
    until,
    wait_for,
)

from llm_huggingchat import limits, reset

LONG = f"[[tokens={2 * NEVER:.0f}]] [[delay=0.1]]"
SILENT = f"[[wait={NEVER}]]"
STALLED = f"[[stall=1]] {LONG}"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends here ends because somebody left."""
    for name in ("read_timeout", "reconnect_timeout", "call_timeout", "store_timeout"):
        monkeypatch.setattr(limits, name, NEVER)


def interrupted(server: ChatUI) -> bool:
    """Was the server told to stop every run, and did it?"""
    told = {generation_id for _, generation_id in server.stops}
    return set(server.runs.values()) == {"interrupted"} and told == set(server.runs)


def press(when: Callable[[], object], another_thread: bool = False) -> None:
    """Press Ctrl-C as soon as something holds.

    The system gives the signal to a thread that it chooses: to the main one, or to another.
    """
    wait_for(when)
    if another_thread:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    else:
        os.kill(os.getpid(), signal.SIGINT)


@contextlib.contextmanager
def ctrl_c(when: Callable[[], object], another_thread: bool = False) -> Iterator[None]:
    """Ctrl-C is pressed, and has to come up in this block, at once."""
    before = signal.getsignal(signal.SIGINT)
    with meanwhile(press, when, another_thread), soon(), pytest.raises(KeyboardInterrupt):
        yield
    assert signal.getsignal(signal.SIGINT) == before


# --- iterators left early, tasks cancelled --------------------------------------------


def test_iterator_that_is_left_stops_the_run_where_the_reader_was(server: ChatUI) -> None:
    shown = ""
    for chunk in llm.get_model("hf-llama").prompt("[[tokens=6000]] [[delay=0.02]]"):
        shown += chunk
        if "w5" in shown:
            break
    wait_for(lambda: interrupted(server))
    (answer,) = server.messages(only_conversation(server).id, "assistant")
    assert answer["interrupted"]
    assert answer["content"].startswith(shown.strip())
    assert len(answer["content"]) < len(shown) + 100


def test_iterator_that_is_left_after_the_final_answer_stops_nothing(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "id_timeout", NEVER)
    words = f"one [[unstreamed]] [[hold]] [[slowfetch={NEVER}]]"
    assert next(iter(llm.get_model("hf-llama").prompt(words)))
    reset()  # waits for stops
    assert server.stops == []


@pytest.mark.parametrize("words", [LONG, SILENT, STALLED], ids=["speaks", "thinks", "stalls"])
async def test_cancelled_task_stops_the_run(server: ChatUI, words: str) -> None:
    task = asyncio.create_task(llm.get_async_model("hf-llama").prompt(words).text())
    await until(lambda: any(run.text or words == SILENT for run in server.all_runs))
    task.cancel()
    with soon(), pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: interrupted(server))


async def test_wait_for_each_piece_and_then_no_longer(server: ChatUI) -> None:
    pieces = llm.get_async_model("hf-llama").prompt(f"[[stall=3]] {LONG}").__aiter__()
    given = [await asyncio.wait_for(pieces.__anext__(), NEVER) for _ in range(3)]
    assert given == ["w0 ", "w1 ", "w2 "]
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(pieces.__anext__(), 0.05)
    await until(lambda: interrupted(server))
    assert stored(server)[1].startswith("w0 w1 w2")


# --- Ctrl-C in a program --------------------------------------------------------------


@pytest.mark.parametrize("another_thread", [False, True])
@pytest.mark.parametrize("words", [LONG, SILENT, STALLED], ids=["speaks", "thinks", "stalls"])
def test_ctrl_c_in_a_sync_prompt(server: ChatUI, words: str, another_thread: bool) -> None:
    shown = ""
    silent = words == SILENT
    with ctrl_c(lambda: any(run.text or silent for run in server.all_runs), another_thread):
        for chunk in llm.get_model("hf-llama").prompt(words):
            shown += chunk
    wait_for(lambda: interrupted(server))
    assert silent or stored(server)[1].startswith(shown.strip())


def test_ctrl_c_while_nothing_was_sent_leaves_nothing(server: ChatUI) -> None:
    server.faults["POST", "/conversation"] = [Fault(stall=True)]
    with ctrl_c(lambda: server.log):
        ask_sync("hello")
    wait_for(lambda: server.open_connections == 0)
    assert server.stops == []
    assert server.conversations == {}
    assert ask_sync("hello").text() == "You said: hello"


@pytest.mark.parametrize("way", ["read", "wait for each", "between two"])
def test_ctrl_c_in_an_async_prompt(server: ChatUI, way: str) -> None:
    """At a moment when no piece comes: there, wait_for of Python 3.11 loses a cancel."""
    given: list[str] = []

    async def program() -> None:
        pieces = aiter(llm.get_async_model("hf-llama").prompt(STALLED))
        while True:
            next = anext(pieces)
            given.append(await (asyncio.wait_for(next, NEVER) if "wait" in way else next))
            if "between" in way:
                await asyncio.sleep(NEVER)

    with ctrl_c(lambda: given):
        asyncio.run(program())
    wait_for(lambda: interrupted(server))


def test_conversation_goes_on_after_ctrl_c(server: ChatUI) -> None:
    """The next prompt is answered whole: the stop is not for it."""
    conversation = llm.get_model("hf-llama").conversation()
    conversation.prompt("one").text()
    with ctrl_c(lambda: any(run.text.startswith("w") for run in server.all_runs)):
        conversation.prompt(LONG).text()
    answer = conversation.prompt("[[tokens=8]] [[delay=0.06]]")
    assert answer.text() == "".join(f"w{number} " for number in range(8))
    assert "interrupted" not in described(answer)
    assert len(server.conversations) == 1


# --- Ctrl-C on the command line -------------------------------------------------------


@pytest.mark.parametrize("way", [(), ("--async",)], ids=" ".join)
def test_ctrl_c_on_the_command_line_stops_the_run(server: ChatUI, way: tuple[str, ...]) -> None:
    run("-m", "hf-llama", "one", *way)
    with meanwhile(press, lambda: any(run.text.startswith("w") for run in server.all_runs)), soon():
        shown = run("-c", LONG, *way, status=1)
    assert shown.stderr.strip() == "Aborted!"
    wait_for(lambda: len(server.stops) == 1)
    assert run("-c", "three", *way).stdout == "You said: three\n"


HEAD = f"""
import asyncio, os, sys
{PATIENT}
NEVER, PROMPT = {NEVER}, {LONG!r}
import llm

def begun():
    print("begun", flush=True)

async def answer():
    async for _ in llm.get_async_model("hf-llama").prompt(PROMPT):
        begun()
"""
PROGRAMS = {
    "run": "asyncio.run(answer())",
    "run_until_complete, between two pieces": """
        async def slow():
            async for _ in llm.get_async_model("hf-llama").prompt(PROMPT):
                begun()
                await asyncio.sleep(NEVER)

        asyncio.new_event_loop().run_until_complete(slow())
    """,
}


def python(server: ChatUI, body: str, *options: str) -> subprocess.Popen[str]:
    """A process that runs `body`."""
    make_logs()
    return subprocess.Popen(
        [sys.executable, *options, "-c", HEAD + textwrap.dedent(body)],
        env=os.environ | {"LLM_HUGGINGCHAT_URL": server.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )


@pytest.mark.process
def test_ctrl_c_ends_programs_as_ever_and_stops_their_runs(server: ChatUI) -> None:
    processes = {way: python(server, body) for way, body in PROGRAMS.items()}
    for way, process in processes.items():
        assert process.stdout
        assert process.stdout.readline() == "begun\n", process.communicate()[1]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=AT_ONCE)
        assert "\nKeyboardInterrupt\n" in errors, way
        assert process.returncode == -signal.SIGINT
        # There the task that Ctrl-C left is the program's own.
        assert "Task was destroyed" not in errors or "between" in way
    wait_for(lambda: interrupted(server))


def check_aborts(process: subprocess.Popen[str]) -> None:
    """A command is gone at once, with no more than llm's own word."""
    _, errors = process.communicate(timeout=AT_ONCE)
    assert process.returncode == 1, process.args
    assert errors.strip() == "Aborted!", process.args


@pytest.mark.process
def test_ctrl_c_ends_commands_at_once_and_stops_their_runs(server: ChatUI) -> None:
    prompts = [(LONG, "--async"), (STALLED,), (SILENT,)]
    processes = [command(server, "-m", "hf-llama", *arguments) for arguments in prompts]
    for process, (words, *_) in zip(processes, prompts, strict=True):
        assert process.stdout
        if words == SILENT:
            wait_for(lambda: len(server.runs) == len(prompts))
        else:
            assert process.stdout.read(1) == "w"
        process.send_signal(signal.SIGINT)
        check_aborts(process)
    wait_for(lambda: interrupted(server))


@pytest.mark.process
def test_second_ctrl_c_at_the_end_of_a_program_shows_no_second_traceback(server: ChatUI) -> None:
    server.faults["POST", "*/stop-generating"] = [Fault(stall=True)] * 9
    process = python(
        server,
        """
        import signal, threading, time

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
        """,
    )
    _, errors = process.communicate(timeout=AT_ONCE)
    assert process.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1


@pytest.mark.process
def test_ctrl_c_while_a_message_waits_leaves_nothing_behind(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_HUGGINGCHAT_WAIT", "600")
    run("-m", "hf-llama", "one")
    no = Fault(status=429, body=b'{"message": "Too fast"}', content_type="application/json")
    server.faults["POST", "/conversation/*"] = [no]
    process = command(server, "-c", "two")
    assert process.stderr
    assert "asks for a pause; waiting, for 600 seconds" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    check_aborts(process)
    assert len(sends(server)) == 2
    assert server.stops == []
    assert stored(server) == ["one", "You said: one"]
    assert run("-c", "three").stdout == "You said: three\n"


@pytest.mark.process
def test_command_returns_after_the_final_answer(server: ChatUI) -> None:
    words = f"one [[hold]] [[title_delay={NEVER}]]"
    process = command(server, "-m", "hf-llama", words)
    shown, errors = process.communicate(timeout=AT_ONCE)
    assert (shown, errors) == (f"You said: {words}\n", "")
    assert server.stops == []
