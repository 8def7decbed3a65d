"""What Linux and macOS have, and Windows has not: terminals, signals, pipes, modes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import pathlib
import pty
import re
import signal
import stat
import subprocess
import sys
import threading
from typing import Any

import llm
import pytest
import readme
from chat_ui import ChatUI, Fault
from helpers import AT_ONCE, NEVER, command, run, wait_for
from test_healing import LONG, interrupted
from test_hostile import Writing, stored_conversation, writing

from llm_huggingchat import keep_key, local_timezone

# --- terminals ------------------------------------------------------------------------


def test_login_on_a_terminal_does_not_show_what_is_pasted(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.login_required = True
    server.tokens["t-ada"] = "ada"
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llm", "huggingchat", "login"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    for prompt, answer in ((b"token: ", b"t-ada\n"), (b"as ada", b"")):
        while prompt not in shown:
            shown += os.read(ours, 10_000)
        os.write(ours, answer)
    assert process.wait(10) == 0
    os.close(ours)
    assert b"developer tools" in shown
    assert b"t-ada" not in shown


def test_progress_is_seen_on_a_terminal_alone(server: ChatUI, tmp_path: pathlib.Path) -> None:
    for words in ("one", "two"):
        run("-m", "hf-llama", words, "-n")
    wait_for(lambda: "running" not in server.runs.values())
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llm", "huggingchat"]
    with (tmp_path / "ids.txt").open("wb") as output:
        for arguments in (["import", "--all"], ["delete", "--all", "--yes"]):
            subprocess.run([*command, *arguments], stdout=output, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux: the other end is closed
        while piece := os.read(ours, 10_000):
            shown += piece
    os.close(ours)
    text = shown.decode()
    for what in ("Conversations found", "Conversations imported", "Conversations deleted"):
        assert what in text
    assert "2/2" in text
    written = (tmp_path / "ids.txt").read_text()
    assert len(written.splitlines()) == 3
    assert "Conversations imported" not in written


def test_export_to_a_terminal(server: ChatUI) -> None:
    run("-m", "hf-llama", "one", "-n")
    conversation = stored_conversation(server)
    conversation.preprompt = "safe\rEVIL\x0b\x0c\x1c\x85\x1b]0;x\x07 end"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llm", "huggingchat", "export", conversation.id]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux: the other end is closed
            while piece := os.read(ours, 10_000):
                shown += piece
        os.close(ours)
    assert process.returncode == 0
    text = shown.decode().replace("\r\n", "\n")  # as a terminal ends its lines
    assert "safeEVIL]0;x end\n" in text
    assert all(char == "\n" or char.isprintable() for char in text)


# --- files ----------------------------------------------------------------------------


@writing
def test_pipe_gets_what_is_written(
    server: ChatUI, tmp_path: pathlib.Path, writing: Writing
) -> None:
    command, content = writing(server)
    pipe, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    shown = run(*command, "-o", str(pipe), input="")  # there is nothing to overwrite
    if not pipe.is_fifo():
        pytest.fail("the pipe was replaced")
    reader.join(5)
    assert read == [content]
    assert shown.stdout_bytes != content


@writing
def test_modes_are_those_of_any_file(
    server: ChatUI, tmp_path: pathlib.Path, writing: Writing
) -> None:
    command, content = writing(server)
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("mine")
    old.chmod(0o664)
    umask = os.umask(0o027)
    try:
        run(*command, "-o", str(old), input="y\n")
        run(*command, "-o", str(new))
    finally:
        os.umask(umask)
    assert [path.read_bytes() for path in (old, new)] == [content, content]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (old, new)] == [0o664, 0o640]


KILLED = """
import os, signal
import llm_huggingchat
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
llm_huggingchat.keep_key("huggingchat", "secret-value")
"""




def test_key_store_where_files_cannot_be_locked(
    user_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", missing)
    with pytest.warns(UserWarning, match="flock"):
        keep_key("name", "value")
    assert llm.load_keys()["name"] == "value"


@pytest.mark.parametrize(
    ("link", "text", "zone"),
    [
        ("/usr/share/zoneinfo/Europe/Berlin", None, "Europe/Berlin"),
        ("../usr/share/zoneinfo/Etc/UTC", None, "Etc/UTC"),
        ("/var/db/timezone/zoneinfo/America/Argentina/Ushuaia", "", "America/Argentina/Ushuaia"),
        ("/usr/share/zoneinfo/posix/Asia/Tokyo", "Etc/UTC\n", "Asia/Tokyo"),
        (None, "Europe/Berlin\n", "Europe/Berlin"),
        (None, None, None),
        (None, "", None),
        (None, "Europe", None),
        (None, "../../etc/passwd", None),
        (None, "Nowhere/At_All", None),
        (None, "Europe/Bérlin", None),
        ("/somewhere/else", None, None),
        ("/usr/share/zoneinfo/localtime", None, None),
    ],
)
def test_time_zone_of_the_machine(
    tmp_path: pathlib.Path, link: str | None, text: str | None, zone: str | None
) -> None:
    (tmp_path / "etc").mkdir()
    if link is not None:
        (tmp_path / "etc/localtime").symlink_to(link)
    if text is not None:
        (tmp_path / "etc/timezone").write_text(text, "utf-8")
    assert local_timezone(None, tmp_path) == local_timezone("", tmp_path) == zone
    assert local_timezone("Asia/Tokyo", tmp_path) == "Asia/Tokyo"
    assert local_timezone("CET-1CEST,M3.5.0,M10.5.0/3", tmp_path) is None


# --- nothing is left behind -------------------------------------------------------------


def descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


def test_abandoned_streams_leave_nothing_behind(server: ChatUI) -> None:
    model = llm.get_model("hf-llama")

    def abandon(count: int) -> None:
        for _ in range(count):
            for _ in model.prompt(LONG):
                break

    abandon(5)
    wait_for(lambda: "running" not in server.runs.values())
    before = threading.active_count(), descriptors() - 2 * server.open_connections
    abandon(40)
    wait_for(lambda: "running" not in server.runs.values())
    gc.collect()

    def settled() -> bool:
        threads = threading.active_count() - server.open_connections
        files = descriptors() - 2 * server.open_connections
        return threads <= before[0] + 3 and files <= before[1] + 6

    wait_for(settled)
    wait_for(lambda: server.open_connections < 20)  # the last runs are still being stored
    assert len(server.stops) == 45


async def test_abandoned_async_streams_leave_nothing_behind(server: ChatUI) -> None:
    model = llm.get_async_model("hf-llama")

    async def abandon(count: int) -> None:
        for _ in range(count):
            async for _ in model.prompt(LONG):
                break

    await abandon(5)
    await asyncio.to_thread(wait_for, lambda: "running" not in server.runs.values())
    tasks = len(asyncio.all_tasks())
    files = descriptors() - 2 * server.open_connections
    await abandon(40)
    await asyncio.to_thread(wait_for, lambda: "running" not in server.runs.values())
    gc.collect()
    for _ in range(100):
        if len(asyncio.all_tasks()) <= tasks + 2:
            break
        await asyncio.sleep(0.02)
    assert len(asyncio.all_tasks()) <= tasks + 2
    assert descriptors() - 2 * server.open_connections <= files + 6
    await asyncio.to_thread(wait_for, lambda: server.open_connections < 20)
    assert len(server.stops) == 45


# --- Ctrl-C ---------------------------------------------------------------------------


def interrupt(process: subprocess.Popen[str]) -> None:
    """Press Ctrl-C: the command is gone at once, and says no more than llm's own word."""
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=AT_ONCE)
    assert process.returncode == 1, process.args
    assert errors.strip() == "Aborted!", process.args


def test_interrupted_commands_are_gone_and_their_runs_stopped(server: ChatUI) -> None:
    stalled = f"[[stall=2]] [[tokens={NEVER:.0f}]] [[delay=1]]"
    speaking = [
        command(server, "-m", "hf-llama", words, *way)
        for words in (LONG, stalled)
        for way in ((), ("--async",))
    ]
    waiting = [
        command(server, "-m", "hf-llama", f"[[wait={NEVER}]]", *way) for way in ((), ("--async",))
    ]
    for process in speaking:
        assert process.stdout
        assert process.stdout.read(1) == "w"
        interrupt(process)
    wait_for(lambda: len(server.runs) == 6, 20)
    for process in waiting:
        interrupt(process)
    wait_for(lambda: interrupted(server))


def test_interrupted_while_nothing_was_sent(server: ChatUI) -> None:
    server.faults["POST", "/conversation"] = [Fault(stall=True)]
    process = command(server, "-m", "hf-llama", "hello")
    wait_for(lambda: server.log, 20)
    interrupt(process)
    assert server.stops == []


# --- the picture in README.md ---------------------------------------------------------


def test_picture_shows_what_a_terminal_shows() -> None:
    def texts(svg: str) -> list[str]:
        return re.findall(r"<text [^>]*>([^<]*)</text>", svg)

    made = texts(readme.picture())
    assert made == texts(readme.PICTURE.read_text("utf-8")), "Run: python tests/readme.py"
