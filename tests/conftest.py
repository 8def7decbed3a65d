"""What every test has: a llm directory of its own, and no network but this machine's."""

from __future__ import annotations

import functools
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from cassette import pytest_recording_configure, vcr_config  # noqa: F401 - for all tests
from chat_ui import ChatUI
from curl_cffi import CurlECode
from curl_cffi.requests import AsyncSession
from curl_cffi.requests.exceptions import ConnectionError as CurlConnectionError

import llm_huggingchat

LOOPBACK = [r"127\.\d+\.\d+\.\d+$", r"localhost$", r"::1$"]
# What needs a terminal, a signal, a pipe or a file's mode.
collect_ignore = ["test_posix.py", "test_signals.py"] if sys.platform == "win32" else []
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


# --- every test -----------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.block_network(allowed_hosts=LOOPBACK))


@pytest.fixture(autouse=True)
def user_path(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """llm's directory for this test: no keys, no cache, no logs. Nothing else is set."""
    path = tmp_path / "llm"
    path.mkdir()
    monkeypatch.setenv("LLM_USER_PATH", str(path))
    for name in ("SERVER_VARIABLE", "KEY_VARIABLE", "BROWSER_VARIABLE", "WAIT_VARIABLE"):
        monkeypatch.delenv(getattr(llm_huggingchat, name), raising=False)
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield path
    llm_huggingchat._background.close()  # the next test makes connections of its own,
    llm_huggingchat._made_up.clear()  # and sessions
    llm_huggingchat._successors.clear()
    llm_huggingchat._gates.clear()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond loopback it is as if there were no network: pytest-recording cannot see curl."""
    real = AsyncSession.request

    @functools.wraps(real)
    async def request(self: Any, method: Any, url: str, *args: Any, **options: Any) -> Any:
        ways = [url, *(os.environ.get(name.upper(), "") for name in PROXY_VARIABLES[:3])]
        if not any(llm_huggingchat._is_loopback(urlsplit(way).hostname or "") for way in ways):
            raise CurlConnectionError(f"no network: {url}", CurlECode.COULDNT_RESOLVE_HOST)
        return await real(self, method, url, *args, **options)

    monkeypatch.setattr(AsyncSession, "request", request)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatUI]:
    """A stand-in server, which LLM_HUGGINGCHAT_URL names."""
    with ChatUI() as chat:
        monkeypatch.setenv(llm_huggingchat.SERVER_VARIABLE, chat.url)
        yield chat
