"""What every test has: a llm directory of its own, and no network but this machine's."""

from __future__ import annotations

import functools
import io
import os
import pathlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import curl_cffi.requests
import pytest
from chat_ui import ChatUI
from curl_cffi import CurlECode
from curl_cffi.requests import AsyncSession, Headers
from curl_cffi.requests.exceptions import ConnectionError as CurlConnectionError
from hypothesis import settings
from vcr import VCR  # type: ignore[import-untyped]
from vcr.errors import CannotOverwriteExistingCassetteException  # type: ignore[import-untyped]
from vcr.request import Request  # type: ignore[import-untyped]

import llm_huggingchat

LOOPBACK = [r"127\.\d+\.\d+\.\d+$", r"localhost$", r"::1$"]
# What needs a terminal, a signal, a pipe or a file's mode.
collect_ignore = ["test_posix.py", "test_signals.py"] if sys.platform == "win32" else []
# The same examples every time, and as long as they take: no test depends on chance or time.
settings.register_profile("suite", derandomize=True, deadline=None, database=None, max_examples=100)
settings.load_profile("suite")
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
    llm_huggingchat._anonymous.clear()  # and sessions
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


# --- cassettes ------------------------------------------------------------------------


class CassetteSession(AsyncSession[Any]):
    """A session whose exchanges come from a cassette, or go to it: vcrpy cannot see curl."""

    cassette: Any = None  # vcrpy gives each cassette a subclass

    async def request(  # type: ignore[override]
        self, method: Any, url: str, *, content: Any, content_callback: Any, **options: Any
    ) -> Any:
        sent = content
        if hasattr(content, "read"):
            sent = b"".join(iter(lambda: content.read(65_536), b""))
        request = Request(method, url, sent, options["headers"])
        if self.cassette.can_play_response_for(request):
            recorded = self.cassette.play_response(request)
        else:
            if self.cassette.write_protected:
                raise CannotOverwriteExistingCassetteException(
                    cassette=self.cassette, failed_request=request
                )
            recorded = await self._record(method, url, sent, options)
            self.cassette.append(request, recorded)
        body = recorded["body"]["string"]
        for at in range(0, len(body), 61):  # in pieces, cut anywhere
            content_callback(body[at : at + 61])
        headers = Headers({name: values[0] for name, values in recorded["headers"].items()})
        return SimpleNamespace(status_code=recorded["status"]["code"], headers=headers)

    async def _record(self, method: Any, url: str, sent: bytes | None, options: Any) -> Any:
        body = io.BytesIO()
        content = None if sent is None else io.BytesIO(sent)
        response = await super().request(
            method, url, content=content, content_callback=body.write, **options
        )
        kind = response.headers.get("content-type")
        return {
            "status": {"code": response.status_code, "message": response.reason},
            "headers": {"content-type": [kind]} if kind else {},
            "body": {"string": body.getvalue()},
        }


def pytest_recording_configure(config: pytest.Config, vcr: VCR) -> None:
    vcr._custom_patches = ((curl_cffi.requests, "AsyncSession", CassetteSession),)


@pytest.fixture
def vcr_config() -> dict[str, Any]:
    return {
        "match_on": ["method", "path", "query", "body"],
        "filter_headers": ["cookie", "set-cookie"],
        "allowed_hosts": LOOPBACK,
    }
