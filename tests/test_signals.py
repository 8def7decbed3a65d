"""What ends a process stops the model first, however the prompt is run; loops end clean."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from chat_ui import ChatUI
from helpers import AT_ONCE, NEVER, PATIENT, default_signals, make_logs, wait_for

LONG = f"[[tokens={2 * NEVER:.0f}]] [[delay=0.5]]"
HEAD = f"""
import asyncio, os, sys
{PATIENT}
NEVER = {NEVER}
import llm

PROMPT = {LONG!r}

def begun():
    print("begun", flush=True)

async def answer():
    async for _ in llm.get_async_model("hf-llama").prompt(PROMPT):
        begun()
"""
# Ways to run an async prompt. Each is interrupted after its first line of output.
ASYNC = {
    "run": "asyncio.run(answer())",
    "run_until_complete": """
        loop = asyncio.new_event_loop()
        loop.run_until_complete(answer())
    """,
    "wait_for each piece": """
        async def pieces():
            answer = llm.get_async_model("hf-llama").prompt(PROMPT).__aiter__()
            while True:
                await asyncio.wait_for(answer.__anext__(), NEVER)
                begun()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(pieces())
    """,
    "run, wait_for each piece": """
        async def pieces():
            answer = llm.get_async_model("hf-llama").prompt(PROMPT).__aiter__()
            while True:
                await asyncio.wait_for(answer.__anext__(), NEVER)
                begun()

        asyncio.run(pieces())
    """,
    "between two pieces": """
        async def slow():
            async for _ in llm.get_async_model("hf-llama").prompt(PROMPT):
                begun()
                await asyncio.sleep(NEVER)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(slow())
    """,
    "run, between two pieces": """
        async def slow():
            async for _ in llm.get_async_model("hf-llama").prompt(PROMPT):
                begun()
                await asyncio.sleep(NEVER)

        asyncio.run(slow())
    """,
}
SYNC = {
    "sync": """
        for _ in llm.get_model("hf-llama").prompt(PROMPT):
            begun()
    """,
    "sync, between two pieces": """
        import time
        for _ in llm.get_model("hf-llama").prompt(PROMPT):
            begun()
            time.sleep(NEVER)
    """,
}


def python(server: ChatUI, body: str) -> subprocess.Popen[str]:
    """A process that runs `body`."""
    make_logs()
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + textwrap.dedent(body)],
        env=os.environ | {"LLM_HUGGINGCHAT_URL": server.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )


def ended(server: ChatUI, process: subprocess.Popen[str], number: int) -> str:
    """End a process once its answer has begun; its last words. The server is told."""
    assert process.stdout
    assert process.stdout.readline() == "begun\n", process.communicate()[1]
    process.send_signal(number)
    _, errors = process.communicate(timeout=AT_ONCE)
    wait_for(lambda: set(server.runs.values()) == {"interrupted"})
    return errors


@pytest.mark.parametrize("way", [*ASYNC, *SYNC])
def test_ctrl_c_stops_the_model_and_comes_up_as_itself(server: ChatUI, way: str) -> None:
    process = python(server, (ASYNC | SYNC)[way])
    errors = ended(server, process, signal.SIGINT)
    assert "\nKeyboardInterrupt\n" in errors
    assert process.returncode == -signal.SIGINT
    if way != "between two pieces":  # there the task that Ctrl-C left is the script's own
        assert "Task was destroyed" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("way", [*ASYNC, *SYNC])
def test_what_ends_the_process_stops_the_model(server: ChatUI, way: str, number: int) -> None:
    process = python(server, (ASYNC | SYNC)[way])
    assert ended(server, process, number) == ""
    assert process.returncode == -number


def test_a_handler_of_ones_own_is_left_alone(server: ChatUI) -> None:
    process = python(
        server,
        """
        import signal
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(5))
        for _ in llm.get_model("hf-llama").prompt(PROMPT):
            begun()
        """,
    )
    ended(server, process, signal.SIGTERM)
    assert process.returncode == 5


def test_afterwards_signals_do_what_they_did(server: ChatUI) -> None:
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            HEAD
            + textwrap.dedent(
                """
                import signal
                numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
                before = [signal.getsignal(number) for number in numbers]
                llm.get_model("hf-llama").prompt("hello").text()
                assert before == [signal.getsignal(number) for number in numbers]
                async def hello():
                    return await llm.get_async_model("hf-llama").prompt("hello").text()
                loop = asyncio.new_event_loop()
                loop.run_until_complete(hello())
                assert before == [signal.getsignal(number) for number in numbers]
                asyncio.run(hello())
                assert before == [signal.getsignal(number) for number in numbers]
                """
            ),
        ],
        env=os.environ | {"LLM_HUGGINGCHAT_URL": server.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (shown.returncode, shown.stderr) == (0, "")


def test_loop_that_is_just_closed_leaves_nothing_behind(server: ChatUI) -> None:
    shown = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            HEAD
            + textwrap.dedent(
                """
                import gc, threading

                async def hello():
                    return await llm.get_async_model("hf-llama").prompt("hello").text()

                def once():
                    loop = asyncio.new_event_loop()
                    loop.run_until_complete(hello())
                    loop.close()
                    gc.collect()

                once()
                def open_files():
                    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd")
                                          else "/dev/fd"))
                files = open_files()
                for _ in range(5):
                    once()
                assert open_files() <= files, (open_files(), files)
                """
            ),
        ],
        env=os.environ | {"LLM_HUGGINGCHAT_URL": server.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (shown.returncode, shown.stderr) == (0, "")
