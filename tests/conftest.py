"""What every test has: a llm directory of its own, and no network but this machine's."""

import functools
import itertools
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from chat_ui import ChatUI
from curl_cffi import CurlECode
from curl_cffi.requests import AsyncSession
from curl_cffi.requests.exceptions import ConnectionError as CurlConnectionError
from hypothesis import settings
from pytest_recording.network import blocking_context

import llm_huggingchat

HERE = pathlib.Path(__file__).parent
LOOPBACK = [r"127\.\d+\.\d+\.\d+$", r"localhost$", r"::1$"]
VARIABLES = [f"LLM_HUGGINGCHAT_{name}" for name in ("URL", "KEY", "IMPERSONATE", "WAIT")]
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
# What cannot be loaded or run without pseudo-terminals and signals.
collect_ignore = (
    ["test_cli_export.py", "test_interrupt.py", "test_tools.py"] if sys.platform == "win32" else []
)


# The same examples every time, and as long as they take: no test depends on chance or time.
# `--hypothesis-profile=weekly` looks for new ones.
settings.register_profile("suite", derandomize=True, deadline=None, database=None, max_examples=20)
settings.register_profile("weekly", deadline=None, database=None, max_examples=500)
settings.load_profile("suite")


# --- every test -----------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "process: starts processes, or sends them signals")
    # New processes use this module, and the stubs, as pytest does: see pyproject.toml.
    paths = [str(HERE / "stubs"), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Tests with a server wait half of their time; to start a worker takes seconds."""
    return 2 if all("pure" in pathlib.Path(place).parts for place in config.args) else 4


def pytest_recording_configure(config: pytest.Config, vcr: Any) -> None:
    from cassette import CUSTOM_PATCHES  # imports vcr, which few tests need

    vcr._custom_patches = CUSTOM_PATCHES


@pytest.fixture(scope="session", autouse=True)
def _alone() -> Iterator[None]:
    """Beyond loopback it is as if there were no network, and no variable is set."""
    real = AsyncSession.request

    @functools.wraps(real)
    async def request(self: Any, method: Any, url: str, *args: Any, **options: Any) -> Any:
        ways = [url, *(os.environ.get(name.upper(), "") for name in PROXIES[:3])]
        hosts = [urlsplit(way).hostname or "" for way in ways]
        if not any(re.match(pattern, host) for pattern in LOOPBACK for host in hosts):
            raise CurlConnectionError(f"no network: {url}", CurlECode.COULDNT_RESOLVE_HOST)
        return await real(self, method, url, *args, **options)

    with pytest.MonkeyPatch.context() as patch, blocking_context(allowed_hosts=LOOPBACK):
        patch.setattr(AsyncSession, "request", request)  # the guard of sockets cannot see curl
        for name in (*VARIABLES, *PROXIES, *map(str.upper, PROXIES)):
            patch.delenv(name, raising=False)
        patch.setenv("TZ", "UTC")  # else each turn looks for the time zone in files
        yield


_numbers = itertools.count()


@pytest.fixture(autouse=True)
def user_path(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pathlib.Path]:
    """llm's directory for this test: no keys, no cache, no logs."""
    path = tmp_path_factory.getbasetemp() / f"llm-{next(_numbers)}"  # cheaper than tmp_path
    path.mkdir()
    monkeypatch.setenv("LLM_USER_PATH", str(path))
    yield path
    llm_huggingchat.reset()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatUI]:
    """A stand-in that stores at once; LLM_HUGGINGCHAT_URL names it."""
    with ChatUI(store_delay=0) as chat:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", chat.url)
        yield chat


@pytest.fixture
def guarded(server: ChatUI) -> ChatUI:
    """The same, where only Ada may do anything: see helpers.COOKIES."""
    from helpers import SESSION, TOKEN  # not above: it loads all of llm's plugins

    server.login_required = True
    server.sessions[SESSION] = ("ada", TOKEN)
    return server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little patience, so that what is waited for, or given up, is over soon."""
    for name, value in {
        "read_timeout": 0.35,
        "reconnect_timeout": 1.0,
        "backoff": (0.01, 0.02, 0.05),
        "look_again": 0.02,
        "arrival": 0.1,
    }.items():
        monkeypatch.setattr(llm_huggingchat.limits, name, value)
    monkeypatch.setattr("chat_ui.HEARTBEAT", 0.1)


@pytest.fixture
def person(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody with an empty home and no screen, whose failed calls are repeated at once."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "DBUS_SESSION_BUS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(llm_huggingchat.limits, "backoff", (0.01,) * 6)
    monkeypatch.setattr(llm_huggingchat.limits, "look_again", 0.02)


@pytest.fixture
def accounts(guarded: ChatUI) -> ChatUI:
    """The same, where Bob may too, and Ada's token opens a session."""
    guarded.tokens = {token: user for user, token in guarded.sessions.values() if token}
    guarded.sessions["s-bob"] = ("bob", "t-bob")
    return guarded


@pytest.fixture
def logged_in(accounts: ChatUI) -> ChatUI:
    """The same server, with Ada's cookies in the key store."""
    from helpers import COOKIES, run

    run("huggingchat", "login", input=COOKIES)
    return accounts
