"""What every test has: a llm directory of its own, and no network but this machine's."""

from __future__ import annotations

import functools
import io
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import cli
import curl_cffi.requests
import pytest
from chat_ui import ChatUI
from curl_cffi import CurlECode
from curl_cffi.requests import AsyncSession, Headers
from curl_cffi.requests.exceptions import ConnectionError as CurlConnectionError
from vcr import VCR  # type: ignore[import-untyped]
from vcr.errors import CannotOverwriteExistingCassetteException  # type: ignore[import-untyped]
from vcr.request import Request  # type: ignore[import-untyped]

import llm_huggingchat

LOOPBACK = [r"127\.\d+\.\d+\.\d+$", r"localhost$", r"::1$"]
VARIABLES = [f"LLM_HUGGINGCHAT_{name}" for name in ("URL", "KEY", "IMPERSONATE", "WAIT")]
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
# What needs a terminal, a signal, a pipe or a file's mode.
collect_ignore = ["test_posix.py", "test_signals.py"] if sys.platform == "win32" else []


# --- every test -----------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "process: starts processes, or sends them signals")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.block_network(allowed_hosts=LOOPBACK))


def reset() -> None:
    """Let the plugin forget its sessions and connections, as in a new process."""
    if hasattr(llm_huggingchat, "reset"):
        llm_huggingchat.reset()
        return
    llm_huggingchat._background.close()
    for name in ("_made_up", "_successors", "_gates"):
        getattr(llm_huggingchat, name).clear()


@pytest.fixture(autouse=True)
def user_path(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """llm's directory for this test: no keys, no cache, no logs. No variable is set."""
    path = tmp_path / "llm"
    path.mkdir()
    monkeypatch.setenv("LLM_USER_PATH", str(path))
    for name in (*VARIABLES, *PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(name, raising=False)
    yield path
    reset()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond loopback it is as if there were no network: pytest-recording cannot see curl."""
    real = AsyncSession.request

    @functools.wraps(real)
    async def request(self: Any, method: Any, url: str, *args: Any, **options: Any) -> Any:
        ways = [url, *(os.environ.get(name.upper(), "") for name in PROXIES[:3])]
        hosts = [urlsplit(way).hostname or "" for way in ways]
        if not any(re.match(pattern, host) for pattern in LOOPBACK for host in hosts):
            raise CurlConnectionError(f"no network: {url}", CurlECode.COULDNT_RESOLVE_HOST)
        return await real(self, method, url, *args, **options)

    monkeypatch.setattr(AsyncSession, "request", request)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatUI]:
    """A stand-in that stores at once; LLM_HUGGINGCHAT_URL names it."""
    with ChatUI(store_delay=0) as chat:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", chat.url)
        yield chat


@pytest.fixture
def guarded(server: ChatUI) -> ChatUI:
    """The same, where only Ann may do anything: see helpers.COOKIES."""
    server.login_required = True
    server.sessions["ann-session-value"] = ("ann", "ann-token-value")
    return server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little patience, so that what is waited for, or given up, is over soon."""
    for name, value in {
        "read_timeout": 0.35,
        "reconnect_timeout": 1.0,
        "backoff": (0.01, 0.02, 0.05),
        "look_again": 0.02,
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


@pytest.fixture
def accounts(server: ChatUI) -> ChatUI:
    """A server that wants a login; ada and bob have one, but nobody is logged in here."""
    server.login_required = True
    server.sessions = {cli.SESSION: ("ada", cli.TOKEN), "s-bob": ("bob", "t-bob")}
    server.tokens[cli.TOKEN] = "ada"
    return server


@pytest.fixture
def logged_in(accounts: ChatUI) -> ChatUI:
    """The same server, with ada's cookies in the key store."""
    cli.command("login", input=cli.COOKIES)
    return accounts


# --- cassettes ------------------------------------------------------------------------

RUN_ID = re.compile(rb'"generationId": ?"([0-9a-f-]{36})"')


def what_is_said(request: Request) -> list[Any]:
    """The JSON and the files of a request, without what differs from one run to the next."""
    body = request.body or b""
    kind = str(request.headers.get("Content-Type", request.headers.get("content-type")))
    boundary = re.search(r"boundary=(\S+)", kind)
    found: list[Any] = []
    for part in body.split(boundary[1].encode()) if boundary else [body]:
        head, _, content = part.rpartition(b"\r\n\r\n")
        try:
            value = json.loads(content.removesuffix(b"\r\n--"))
        except ValueError:
            found.append((head, content))
            continue
        own = ("generationId", "timezone")
        found.append({name: value[name] for name in value if name not in own})
    return found


def says_the_same(one: Request, other: Request) -> None:
    """Whether two requests match, for vcrpy."""
    assert what_is_said(one) == what_is_said(other)


class CassetteSession(AsyncSession[Any]):
    """A session whose exchanges come from a cassette, or go to it: vcrpy cannot see curl."""

    cassette: Any = None  # vcrpy gives each cassette a subclass

    async def request(  # type: ignore[override]
        self, method: Any, url: str, *, content: Any, content_callback: Any, **options: Any
    ) -> Any:
        # The ids of runs: ours, and those that were recorded.
        ids: dict[bytes, bytes] = vars(self.cassette).setdefault("run_ids", {})
        sent = content
        if content is not None and not isinstance(content, bytes):
            read = getattr(content, "read", None)
            sent = b"".join(iter(lambda: read(65_536), b"") if read else content)
        for ours, recorded_id in ids.items():
            url = url.replace(ours.decode(), recorded_id.decode())
        request = Request(method, url, sent, options["headers"])
        if self.cassette.can_play_response_for(request):
            recorded = self.cassette.play_response(request)
            (said,) = (r.body for r, played in self.cassette.data if played is recorded)
            ids.update(zip(RUN_ID.findall(sent or b""), RUN_ID.findall(said or b""), strict=True))
        elif self.cassette.write_protected:
            raise CannotOverwriteExistingCassetteException(
                cassette=self.cassette, failed_request=request
            )
        else:
            recorded = await self._record(method, url, sent, options)
            self.cassette.append(request, recorded)
        body = recorded["body"]["string"]
        for ours, recorded_id in ids.items():
            body = body.replace(recorded_id, ours)
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
    vcr.register_matcher("says the same", says_the_same)


@pytest.fixture
def vcr_config() -> dict[str, Any]:
    return {
        "match_on": ["method", "path", "query", "says the same"],
        "filter_headers": ["cookie", "set-cookie"],
        "allowed_hosts": LOOPBACK,
    }
