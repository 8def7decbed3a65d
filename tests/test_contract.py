"""What the module leans on in other people's code, beyond what that code promises.

Each entry names a thing, and who uses it here. A failure says what moved in a new version, and
where to look. What the things do is seen by the other tests; where it is easily said, by these.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import importlib
import inspect
import operator
import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any, cast, get_args

import click
import llm
import llm.cli
import pytest
import sqlite_utils
from chat_ui import ChatUI
from helpers import make_logs
from llm.logs import LogStore
from llm.parts import StreamEvent, TextPart

import llm_huggingchat

# A thing's module and name; the arguments that it must take, by name; who uses it.
THINGS: list[tuple[str, str, tuple[str, ...], str]] = [
    ("llm", "Response._process_chunk", ("chunk",), "response_of"),
    ("llm", "Response", ("prompt", "model", "stream"), "response_of"),
    ("llm", "Response.messages", (), "Importer, export"),
    ("llm", "Response.set_resolved_model", (), "_HuggingChat._events, response_of"),
    ("llm", "Response.add_tool_call", (), "_HuggingChat._events"),
    ("llm", "AsyncResponse.add_tool_call", (), "_HuggingChat._events"),
    ("llm", "Prompt", ("prompt", "model", "messages"), "response_of"),
    ("llm", "Prompt.messages", (), "_HuggingChat._events"),
    ("llm", "Prompt.system", (), "_HuggingChat._events"),
    ("llm", "KeyModel.get_key", ("explicit_key",), "_HuggingChat.get_key"),
    ("llm", "KeyModel._validate_attachments", ("attachments",), "_HuggingChat"),
    ("llm", "KeyModel.supported_server_side_tools", (), "_HuggingChat"),
    ("llm", "ServerSideTool", (), "HuggingChatTool"),
    ("llm", "Attachment.resolve_type", (), "_HuggingChat._upload"),
    ("llm", "user_dir", (), "files"),
    ("llm", "load_keys", (), "stored_key, keys_of"),
    ("llm.cli", "cli", (), "noting"),
    ("llm.logs", "LogStore", ("db",), "_logs"),
    ("llm.logs", "LogStore.create_thread", ("name", "tip", "forked_from", "id"), "Importer._add"),
    ("llm.logs", "LogStore.load_chain", (), "Importer._add"),
    ("llm.logs", "LogStore.log", ("response", "thread_id"), "Importer._add"),
    ("llm.logs", "LogStore.thread_tip", (), "Importer._add"),
    ("sqlite_utils", "Database.atomic", (), "Importer.add"),
    ("sqlite_utils", "Database.execute", (), "_latest_kept, _known_threads, Importer"),
    ("sqlite_utils", "Database.close", (), "_logs"),
    ("ulid", "ULID", (), "ulid_of"),
    ("curl_cffi.requests.impersonate", "REAL_TARGET_MAP", (), "impersonated"),
    ("curl_cffi.requests.impersonate", "BrowserTypeLiteral", (), "impersonated"),
    ("curl_cffi.curl", "CURL_WRITEFUNC_ERROR", (), "_download"),
    ("curl_cffi", "CurlOpt.QUICK_EXIT", (), "Client"),
    ("curl_cffi", "CurlOpt.PROTOCOLS_STR", (), "_download"),
    ("curl_cffi", "CurlOpt.REDIR_PROTOCOLS_STR", (), "_download"),
    ("curl_cffi.requests", "Headers.multi_items", (), "Exchange"),
    ("curl_cffi.requests", "AsyncSession.release_curl", ("curl",), "Client"),
    ("curl_cffi", "AsyncCurl.remove_handle", ("curl",), "Client"),
    (
        "curl_cffi.requests",
        "AsyncSession.request",
        (
            *("headers", "content", "content_callback", "allow_redirects", "verify", "timeout"),
            *("accept_encoding", "impersonate", "proxies", "http_version"),
        ),
        "Client.open, Exchange",
    ),
    ("filelock", "FileLock", ("timeout",), "_updating, one_login"),
    ("filelock", "Timeout", (), "one_login"),
    ("click", "get_current_context", ("silent",), "noting"),
    ("click", "Context.find_root", (), "noting"),
    ("click", "Group.invoke", ("ctx",), "_Commands"),
    ("jsonschema.exceptions", "best_match", (), "schema_checker"),
    ("jsonschema.validators", "validator_for", ("default",), "schema_checker"),
    ("jsonschema.validators", "Draft202012Validator.FORMAT_CHECKER", (), "schema_checker"),
    ("referencing", "Registry", (), "schema_checker"),
    ("referencing.exceptions", "Unresolvable", (), "schema_checker"),
    *(
        ("browser_cookie3", browser, ("cookie_file", "domain_name"), "browser_cookies")
        for browser in llm_huggingchat.BROWSERS
    ),
]


@pytest.mark.parametrize(("module", "name", "arguments", "used"), THINGS)
def test_thing_is_there(module: str, name: str, arguments: tuple[str, ...], used: str) -> None:
    where = f"{module}.{name} (llm_huggingchat: {used})"
    try:
        thing = operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{where} is gone: {error}")
    if arguments:
        taken = inspect.signature(thing).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        missing = [name for name in arguments if name not in taken]
        assert not missing or (open_ended and missing != list(arguments)), (
            f"{where} takes no {', '.join(missing)} any more, but {', '.join(taken)}"
        )


# --- llm ------------------------------------------------------------------------------


def a_response(*chunks: StreamEvent) -> llm.Response:
    model = llm_huggingchat.HuggingChat(llm_huggingchat.ModelInfo("a/b"))
    response = llm.Response(llm.Prompt(None, model, messages=[llm.user("hi")]), model, True)
    for chunk in chunks:
        response._process_chunk(chunk)
    response._done, response._end = True, 0.0
    return response


def test_response_is_done_when_it_says_so_and_took_as_long_as_it_says() -> None:
    """response_of sets `_done`, `_start_utcnow`, `_start` and `_end`: there is no public way."""
    response = a_response(StreamEvent(type="text", chunk="hello"))
    for name in ("_done", "_start_utcnow", "_start", "_end", "id", "response_json"):
        assert hasattr(response, name), f"llm.Response.{name} is gone (response_of sets it)"
    begun = datetime.datetime(2026, 8, 1, tzinfo=datetime.UTC)
    response._done, response._start_utcnow, response._start, response._end = True, begun, 0.0, 1.5
    assert response.text() == "hello", "a response with _done asks the model again"
    assert response.datetime_utc() == begun.isoformat()
    assert response.duration_ms() == 1500
    assert [part.text for m in response.messages() for part in m.parts] == ["hello"]


def test_metadata_of_an_event_without_text_is_kept_with_a_part_of_its_own_kind() -> None:
    """last_event leans on it: a text part without text would be dropped, and what is in it."""
    kept = {"huggingchat": {"x": 1}}
    for kind, chunks in (
        ("text", [StreamEvent(type="text", chunk="hello")]),
        ("reasoning", [StreamEvent(type="tool_call_name", chunk="t", tool_call_id="i")]),
    ):
        last = StreamEvent(type=kind, chunk="", provider_metadata=kept)
        parts = a_response(*chunks, last).messages()[-1].parts
        assert parts[-1].provider_metadata == kept, f"the metadata of an empty {kind} part is lost"


TABLES = {
    "turns": {"id", "thread_id", "tip_message_hash"},
    "parts": {"message_hash", "position", "payload"},
    "threads": {"id", "tip_message_hash"},
}


@pytest.mark.parametrize("table", TABLES)
def test_logs_have_the_columns_that_are_asked_for(table: str) -> None:
    """_latest_kept, _known_threads and Importer ask llm's logs in SQL."""
    make_logs()
    with closing(sqlite_utils.Database(llm.user_dir() / "logs.db")) as db:
        LogStore(db)
        assert table in db.table_names(), f"llm's logs have no table {table} any more"
        missing = TABLES[table] - set(db[table].columns_dict)
        assert not missing, f"{table} has no {missing} any more, but {set(db[table].columns_dict)}"


def test_logged_part_has_its_metadata_in_the_payload() -> None:
    """_KEPT looks for $.provider_metadata.huggingchat in parts.payload."""
    make_logs()
    kept = {"huggingchat": {"server": "s"}}
    response = a_response(StreamEvent(type="text", chunk="hello", provider_metadata=kept))
    with closing(sqlite_utils.Database(llm.user_dir() / "logs.db")) as db:
        store = LogStore(db)
        assert store.db is db, "LogStore.db is not the database it was given"
        thread = store.create_thread(name="t")
        store.log(response, thread)
        tip = store.thread_tip(thread)
        found = db.execute(
            f"select {llm_huggingchat._KEPT.format('server')} from parts where message_hash = ?",
            [tip],
        ).fetchall()
        assert found == [("s",)], "provider_metadata is elsewhere in parts.payload"
        assert isinstance(store.load_chain(tip)[-1].parts[0], TextPart)


def test_command_line_is_known_by_its_root_command() -> None:
    """noting tells `llm` from a library's use by it."""
    assert isinstance(llm.cli.cli, click.Group)
    with click.Context(llm.cli.cli) as root, click.Context(click.Command("prompt"), parent=root):
        assert llm_huggingchat.noting() is llm_huggingchat.note
    assert llm_huggingchat.noting() is not llm_huggingchat.note


def test_models_hooks_are_those_that_llm_calls() -> None:
    """_HuggingChat overrides them; an llm that calls others would pass them by."""
    source = inspect.getsource(importlib.import_module("llm.models"))
    for hook in ("_validate_attachments(", "supported_server_side_tools", ".get_key("):
        assert source.count(hook) > 1, f"llm.models does not use {hook} any more"


# --- curl_cffi ------------------------------------------------------------------------


def test_curls_error_codes_mean_what_they_meant() -> None:
    """_lost tells them in words, and knows from them whether a request can have left."""
    from curl_cffi import CurlECode
    from curl_cffi.requests.exceptions import RequestException

    meant = {
        3: "URL_MALFORMAT",
        5: "COULDNT_RESOLVE_PROXY",
        6: "COULDNT_RESOLVE_HOST",
        7: "COULDNT_CONNECT",
        28: "OPERATION_TIMEDOUT",
        35: "SSL_CONNECT_ERROR",
        60: "PEER_FAILED_VERIFICATION",
        77: "SSL_CACERT_BADFILE",
        97: "PROXY",
    }
    for number, name in meant.items():
        assert CurlECode[name] == number, f"curl's error {number} is not {name} (_lost)"
        assert RequestException("", CurlECode[name]).code == number


def test_browsers_to_look_like_are_listed() -> None:
    """impersonated offers them."""
    from curl_cffi.requests.impersonate import REAL_TARGET_MAP, BrowserTypeLiteral

    assert {"chrome", "firefox", "safari"} <= {*REAL_TARGET_MAP, *get_args(BrowserTypeLiteral)}


@contextlib.contextmanager
def silent_server() -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """A server that takes one request and says nothing: its address, asked, and left."""
    asked, left = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)
                asked.set()
                while connection.recv(65_536):
                    pass
                left.set()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/", asked, left


async def test_cancelled_request_closes_its_socket() -> None:
    """Exchange.drop leans on it: nothing else ends a connection to a silent server."""
    from curl_cffi.requests import AsyncSession

    with silent_server() as (url, asked, left):
        async with AsyncSession[Any]() as session:
            task = asyncio.create_task(
                session.get(url, content_callback=len, timeout=0, proxies={"all": ""})
            )
            await asyncio.to_thread(asked.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(left.wait, 20), "the socket stays open (Exchange.drop)"


async def test_body_is_read_from_an_object_with_read_and_given_to_the_callback(
    server: ChatUI,
) -> None:
    """_Body and Exchange: `content` with read(size), `content_callback`, status and headers."""
    from curl_cffi.requests import AsyncSession

    body, given = llm_huggingchat._Body(b'{"model": "omni"}'), bytearray()

    def take(piece: bytes) -> int:
        given.extend(piece)
        return len(piece)

    async with AsyncSession[Any](max_clients=1000, discard_cookies=True) as session:
        response = await session.request(
            "POST",
            f"{server.url}/conversation",
            content=cast(Any, body),
            content_callback=take,
            headers={"Content-Type": "application/json", "Content-Length": "17"},
            allow_redirects=False,
            timeout=0,
        )
    assert body.sent, "curl_cffi reads `content` in another way than by read(size)"
    assert b"conversationId" in given
    assert response.status_code == 200
    assert ("content-type", "application/json") in [
        (name.lower(), value) for name, value in response.headers.multi_items()
    ]


async def test_session_has_what_frees_a_handle() -> None:
    """Client puts `remove_handle` before the rest of `release_curl`."""
    from curl_cffi.requests import AsyncSession

    async with AsyncSession[Any]() as session:
        assert session._closed is False
        assert callable(session.acurl.remove_handle)


# --- the standard library, filelock ----------------------------------------------------


def test_loops_close_can_be_replaced() -> None:
    """_close_with closes a loop's client with the loop."""
    loop = asyncio.new_event_loop()
    close, closed = loop.close, threading.Event()

    def closing_too() -> None:
        closed.set()
        close()

    loop.close = closing_too  # type: ignore[method-assign]
    with closing(loop):
        loop.run_until_complete(asyncio.sleep(0))
    assert closed.is_set()


@pytest.mark.parametrize("name", ["add_signal_handler", "remove_signal_handler"])
def test_loop_handles_signals(name: str) -> None:
    """_Signals stops runs when the process is to end."""
    assert hasattr(asyncio.AbstractEventLoop, name)
    assert callable(signal.default_int_handler)


def test_sqlite_reads_json_and_knows_what_is_none() -> None:
    """_KEPT: json_extract would fail for a whole query on one payload that is not JSON."""
    with closing(sqlite3.connect(":memory:")) as db:
        (row,) = db.execute(
            "select case when json_valid(?1) then json_extract(?1, '$.a') end", ["{"]
        )
    assert row == (None,)


def test_lock_that_was_not_taken_can_be_released(tmp_path: Any) -> None:
    """one_login goes on without a lock when none is to be had, and releases it all the same."""
    from filelock import FileLock, Timeout

    path = tmp_path / "lock"
    with FileLock(path):
        other = FileLock(path, timeout=0, is_singleton=False)
        with pytest.raises(Timeout):
            other.acquire()
        other.release()
