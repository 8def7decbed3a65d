"""`llm huggingchat login` and `logout`."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import sqlite3
import stat
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from typing import Any

import llm
import llm.cli
import pytest
from chat_ui import ChatUI
from cli import command, refused
from helpers import COOKIES, NEVER, SESSION, TOKEN, host, keys, run

import llm_huggingchat

pytestmark = pytest.mark.usefixtures("person")


def kept(server: ChatUI) -> dict[str, Any]:
    """What the key store holds for the server."""
    return dict(json.loads(keys()[f"huggingchat:{host(server)}"]))


def test_login_takes_what_people_copy(accounts):
    accounts.models = [*accounts.models, accounts.models[1] | {"id": "home/Grown-1B"}]
    assert "as ada" in command("login", input=f"token={TOKEN}".encode("utf-16")).stdout
    assert kept(accounts)["token"] == TOKEN
    assert accounts.sessions[kept(accounts)["hf-chat"]] == ("ada", TOKEN)
    assert "hf-grown-1b" in command("models", "-q", "grown").stdout
    assert "session made just now" in command("status").stdout


def test_login_takes_the_session_that_comes_with_the_token(accounts, user_path):
    command("login", input=f"{COOKIES}; aws-waf-token=w; other=1")
    assert kept(accounts) == {"hf-chat": SESSION, "token": TOKEN, "aws-waf-token": "w"}
    assert stat.S_IMODE((user_path / "keys.json").stat().st_mode) == 0o600
    assert not [request for request in accounts.log if request.path == "/login"]
    del accounts.sessions[SESSION]
    command("login", input=COOKIES)
    assert kept(accounts)["hf-chat"] in accounts.sessions


def test_refused_login_keeps_nothing_and_does_not_say_to_log_in(accounts):
    for given in ("t-wrong-0123456789abcdef", f"hf-chat={SESSION}; token=t-wrong"):
        said = refused("login", input=given)
        assert "not kept" in said
        assert f"{accounts.url}/login" in said
        assert "Run: llm huggingchat login" not in said
    accounts.login_wants = "consent"
    assert f"Open {accounts.url}/login" in refused("login", input=f"token={TOKEN}")
    accounts.down()  # the network is not asked about rubbish
    for rubbish in ("", "hello there", b"\x00\xff", "hf_" + 34 * "x"):
        said = refused("login", input=rubbish)
        assert "listening" not in said
        assert "Run: llm huggingchat login" not in said
        assert "cookie" in said
    assert keys() == {}


def test_server_without_logins_needs_none(server):
    assert "needs no login" in command("login", input=TOKEN).stdout
    assert keys() == {}


def firefox(home: pathlib.Path, *cookies: tuple[str, str, str]) -> None:
    """Firefox gets these cookies: host, name and value."""
    profile = home / ".mozilla/firefox/abcd.default-release"
    profile.mkdir(parents=True, exist_ok=True)
    (profile.parent / "profiles.ini").write_text(
        "[Install4F96D1932A9F858E]\nDefault=abcd.default-release\nLocked=1\n\n"
        "[Profile0]\nName=default-release\nIsRelative=1\nPath=abcd.default-release\n"
    )
    columns = "host, name, value, path, expiry, isSecure, isHttpOnly, originAttributes"
    with contextlib.closing(sqlite3.connect(profile / "cookies.sqlite")) as db, db:
        db.execute(f"CREATE TABLE IF NOT EXISTS moz_cookies ({columns})")
        row = "INSERT INTO moz_cookies VALUES (?, ?, ?, '/', 4000000000, 0, 1, '')"
        db.executemany(row, cookies)


def test_login_from_firefox_takes_the_servers_own_cookies(accounts, tmp_path, monkeypatch):
    assert "can be read from Firefox" in refused("login", "--browser", "firefox")
    others = ("evil127.0.0.1", "hf-chat", "bad"), ("127.0.0.1.evil.example", "token", "bad")
    firefox(tmp_path, *others, ("127.0.0.1", "session", "other"))
    assert "can be read from Firefox" in refused("login", "--browser", "firefox")
    firefox(tmp_path, ("127.0.0.1", "hf-chat", SESSION), ("127.0.0.1", "token", TOKEN))
    assert "as ada" in command("login", "--browser", "firefox").stdout
    assert kept(accounts) == {"hf-chat": SESSION, "token": TOKEN}
    monkeypatch.setitem(sys.modules, "browser_cookie3", None)
    said = refused("login", "--browser", "firefox")
    assert "llm install browser-cookie3" in said
    run("huggingchat", "login", "--browser", "mosaic", status=2)


# --- a terminal ---

if sys.platform != "win32":
    import fcntl
    import pty
    import termios
    import tty

    class Terminal:
        """Where a person pastes: what is shown there, and what is left for the shell to read."""

        def __init__(self) -> None:
            self.ours, self.theirs = pty.openpty()
            self.shown = b""

        def read_until(self, text: bytes) -> None:
            while text not in self.shown:
                self.shown += os.read(self.ours, 10_000)

        def paste(self, *texts: str) -> None:
            """Paste at the prompt; of several, each after a pause that could be an end."""
            self.read_until(b"token: ")
            for text in texts:
                data = text.encode()
                while data:
                    data = data[os.write(self.ours, data[:1000]) :]
                if text != texts[-1]:
                    time.sleep(0.4)

        def log_in(self, *texts: str) -> str:
            """`llm huggingchat login` while somebody pastes: what is shown."""
            with (
                concurrent.futures.ThreadPoolExecutor(1) as person,
                open(self.theirs, closefd=False) as keyboard,
                open(self.theirs, "w", closefd=False) as screen,
                pytest.MonkeyPatch.context() as patch,
                contextlib.suppress(SystemExit),
            ):
                patch.setattr(sys, "stdin", keyboard)
                for name in ("stdout", "stderr"):
                    patch.setattr(sys, name, screen)
                person.submit(self.paste, *texts)
                llm.cli.cli(["huggingchat", "login"])
            return self.end()

        def end(self) -> str:
            """What was shown, which is no secret; none is left for the shell either."""
            os.set_blocking(self.ours, False)
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(self.ours, 10_000):
                    self.shown += piece
            assert termios.tcgetattr(self.theirs)[3] & termios.ECHO
            tty.setcbreak(self.theirs, termios.TCSANOW)
            os.set_blocking(self.theirs, False)
            with pytest.raises(BlockingIOError):
                os.read(self.theirs, 1)
            assert TOKEN.encode() not in self.shown
            return self.shown.decode()

    @pytest.fixture
    def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
        monkeypatch.setattr(llm_huggingchat.limits, "paste_pause", 0.2)
        terminal = Terminal()
        yield terminal
        os.close(terminal.ours)
        os.close(terminal.theirs)

    ROW = "127.0.0.1\tFALSE\t/\tTRUE\t0\t{}\t{}\n"
    EXTENSION = json.dumps([{"domain": "127.0.0.1", "name": "token", "value": TOKEN}], indent=1)
    PASTES = {
        "value": f"{TOKEN}\n",
        "long header": f"other={'x' * 6000}; token={TOKEN}\n",
        "many lines": ROW.format("other", "x") * 400 + ROW.format("token", TOKEN) + "\n",
        "extension": EXTENSION + "\n\n",
        "curl": f"curl 'http://127.0.0.1/chat' \\\n -H 'a: b' \\\n -b 'token={TOKEN}'\n\n",
        "Ctrl-D": EXTENSION + "\x04",
    }

    @pytest.mark.parametrize("form", PASTES)
    def test_what_is_pasted_on_a_terminal_is_read_whole_and_not_shown(
        accounts, terminal, form, monkeypatch
    ):
        opened: list[str] = []
        monkeypatch.setattr(webbrowser, "open", opened.append)
        monkeypatch.setenv("BROWSER", "true")
        assert "Logged in on" in terminal.log_in(PASTES[form])
        assert opened == [accounts.url]
        command("login", input=TOKEN)
        assert len(opened) == 1  # where it is no terminal nobody has to copy anything

    def test_lines_of_a_slow_paste_belong_together(accounts, terminal, monkeypatch):
        monkeypatch.setattr(llm_huggingchat.limits, "paste_pause", NEVER)
        first, second, *rest = EXTENSION.splitlines(keepends=True)
        assert "Logged in on" in terminal.log_in(first, second, "".join(rest) + "\n\x04")

    def test_what_comes_after_the_cookie_is_not_left_for_the_shell(accounts, terminal):
        accounts.latency = 0.2  # it is still being checked when more comes
        row = f"token={TOKEN}\n"
        assert "Logged in on" in terminal.log_in(row, 2 * row)

    @pytest.mark.parametrize("pasted", ["hello there\n", "\x04"])
    def test_rubbish_on_a_terminal_is_refused_in_words(accounts, terminal, pasted):
        assert "Error: " in terminal.log_in(pasted)

    def test_ctrl_c_leaves_the_terminal_as_it_was(accounts, terminal):
        process = subprocess.Popen(
            [sys.executable, "-m", "llm", "huggingchat", "login"],
            stdin=terminal.theirs,
            stdout=terminal.theirs,
            stderr=terminal.theirs,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(pathlib.Path(llm_huggingchat.__file__).parent)},
            preexec_fn=lambda: fcntl.ioctl(terminal.theirs, termios.TIOCSCTTY, 0),
        )
        terminal.paste("half a val\x03")
        assert process.wait(20) == 1
        assert "Aborted!" in terminal.end()


def test_logout(logged_in):
    assert "forgotten" in command("logout").stdout
    assert TOKEN not in str(keys())
    assert "no cookies" in command("logout").stdout
    assert "requires a login" in refused("conversations")


def test_logout_where_there_are_no_logins_asks_first(server, monkeypatch):
    """The anonymous session is the only way to the conversations."""
    run("-m", "hf-llama", "hello")
    before = keys()
    asked = run("huggingchat", "logout", input="n\n", status=1)
    assert "cannot be reached again" in asked.stderr
    assert keys() == before
    monkeypatch.setenv(llm_huggingchat.KEY_VARIABLE, TOKEN)
    result = command("logout", "--yes")
    assert "forgotten" in result.stdout
    assert "still set" in result.stderr
