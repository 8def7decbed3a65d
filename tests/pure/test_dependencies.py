"""What the module leans on in other people's code, beyond what that code promises.

A failure says what moved in a new version. What the things do is seen by the other tests; where
it is easily said, by these.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import io
import operator
import pathlib
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any, get_args

import click
import llm
import llm.cli
import msgspec
import pytest
import sqlite_utils
from filelock import FileLock, Timeout
from helpers import AT_ONCE, make_logs, wait_for
from llm.logs import LogStore
from llm.parts import StreamEvent, TextPart

import llm_huggingchat

# A thing's module and name, and the arguments that it must take.
THINGS = """
llm                             Response                prompt model stream
llm                             Response._process_chunk chunk
llm                             Response.messages
llm                             Response.set_resolved_model
llm                             Response.add_tool_call
llm                             AsyncResponse.add_tool_call
llm                             Prompt                  prompt model messages
llm                             Prompt.messages
llm                             Prompt.system
llm                             KeyModel.get_key        explicit_key
llm                             KeyModel._validate_attachments  attachments
llm                             KeyModel.supported_server_side_tools
llm                             ServerSideTool
llm                             Attachment.resolve_type
llm                             user_dir
llm                             load_keys
llm.cli                         cli
llm.logs                        LogStore                db
llm.logs                        LogStore.create_thread  name tip forked_from id
llm.logs                        LogStore.load_chain
llm.logs                        LogStore.log            response thread_id
llm.logs                        LogStore.thread_tip
sqlite_utils                    Database.atomic
ulid                            ULID
tzlocal                         reload_localzone
curl_cffi                       CurlOpt.QUICK_EXIT
curl_cffi                       CurlOpt.PROTOCOLS_STR
curl_cffi                       CurlOpt.REDIR_PROTOCOLS_STR
curl_cffi                       AsyncCurl.remove_handle curl
curl_cffi.requests              Headers.multi_items
curl_cffi.requests              AsyncSession.release_curl curl
filelock                        FileLock                timeout
filelock                        AsyncFileLock           timeout thread_local
click                           get_current_context     silent
click                           Context.find_root
click                           progressbar             length label show_pos file
jsonschema.exceptions           best_match
jsonschema.validators           validator_for           default
jsonschema.validators           Draft202012Validator.FORMAT_CHECKER
referencing                     Registry
referencing.exceptions          Unresolvable
"""
THINGS += "\n".join(
    f"browser_cookie3 {b} cookie_file domain_name" for b in llm_huggingchat.BROWSERS
)


@pytest.mark.parametrize("thing", THINGS.strip().splitlines())
def test_thing_is_there(thing: str) -> None:
    module, name, *arguments = thing.split()
    found = operator.attrgetter(name)(importlib.import_module(module))
    taken = inspect.signature(found).parameters if arguments else {}
    assert set(arguments) <= set(taken)


async def test_session_takes_what_an_exchange_gives_it() -> None:
    from curl_cffi.requests import AsyncSession

    taken = inspect.signature(AsyncSession.request).parameters
    given = "headers content content_callback allow_redirects verify timeout accept_encoding"
    assert set(f"{given} impersonate proxies http_version".split()) <= set(taken)
    async with AsyncSession[Any]() as session:
        assert session._closed is False
        assert callable(session.acurl.remove_handle)


# --- llm ---


def a_response(*chunks: StreamEvent) -> llm.Response:
    model = llm_huggingchat.HuggingChat(llm_huggingchat.ModelInfo("a/b"))
    response = llm.Response(llm.Prompt(None, model, messages=[llm.user("hi")]), model, True)
    for chunk in chunks:
        response._process_chunk(chunk)
    response._done, response._start, response._end = True, 0.0, 1.5
    return response


def test_response_is_done_when_it_says_so_and_took_as_long_as_it_says() -> None:
    response = a_response(StreamEvent(type="text", chunk="hello"))
    assert (response.text(), response.duration_ms()) == ("hello", 1500)
    assert hasattr(response, "_start_utcnow")


@pytest.mark.parametrize("kind", ["text", "reasoning"])
def test_metadata_without_text_is_kept_with_a_part_of_its_kind(kind: str) -> None:
    """Unless an answer ends in text, a reasoning part carries what the next turn needs."""
    kept = {"huggingchat": {"x": 1}}
    said = [StreamEvent(type="text", chunk="hello")] if kind == "text" else []
    response = a_response(*said, StreamEvent(type=kind, chunk="", provider_metadata=kept))
    assert response.messages()[-1].parts[-1].provider_metadata == kept


def test_logged_metadata_is_where_the_modules_sql_looks_for_it() -> None:
    make_logs()
    kept = {"huggingchat": {"server": "s"}}
    response = a_response(StreamEvent(type="text", chunk="hello", provider_metadata=kept))
    with closing(sqlite_utils.Database(llm.user_dir() / "logs.db")) as db:
        store = LogStore(db)
        thread = store.create_thread(name="t")
        store.log(response, thread)
        found = store.db.execute(
            f"select {llm_huggingchat.METADATA.format('server')}, turns.thread_id, parts.position "
            "from turns join parts on parts.message_hash = turns.tip_message_hash"
        )
        assert ("s", thread, 0) in found.fetchall()
        tip = store.thread_tip(thread)
        assert isinstance(store.load_chain(tip)[-1].parts[0], TextPart)
        json_of_none = llm_huggingchat.METADATA.replace("parts.payload", "'{'")
        assert db.execute(f"select {json_of_none}").fetchall() == [(None,)]


def test_command_line_is_known_by_its_root_command() -> None:
    assert isinstance(llm.cli.cli, click.Group)
    with click.Context(llm.cli.cli) as root, click.Context(click.Command("prompt"), parent=root):
        assert llm_huggingchat.on_command_line()
    assert not llm_huggingchat.on_command_line()


def test_models_hooks_are_those_that_llm_calls() -> None:
    source = inspect.getsource(importlib.import_module("llm.models"))
    for hook in ("_validate_attachments(", "supported_server_side_tools", ".get_key("):
        assert source.count(hook) > 1, f"llm.models does not use {hook} any more"


# --- curl_cffi ---


def test_curls_error_codes_mean_what_they_meant() -> None:
    from curl_cffi import CurlECode
    from curl_cffi.requests.exceptions import RequestException

    meant = {3: "URL_MALFORMAT", 5: "COULDNT_RESOLVE_PROXY", 6: "COULDNT_RESOLVE_HOST"}
    meant |= {7: "COULDNT_CONNECT", 35: "SSL_CONNECT_ERROR", 60: "PEER_FAILED_VERIFICATION"}
    meant |= {77: "SSL_CACERT_BADFILE", 28: "OPERATION_TIMEDOUT"}
    assert {CurlECode[name]: name for name in meant.values()} == meant
    assert all(RequestException("", CurlECode(number)).code == number for number in meant)


def test_browsers_to_look_like_are_listed() -> None:
    from curl_cffi.requests.impersonate import REAL_TARGET_MAP, BrowserTypeLiteral

    assert {"chrome", "firefox", "safari"} <= {*REAL_TARGET_MAP, *get_args(BrowserTypeLiteral)}


@contextlib.contextmanager
def raw_server(*replies: bytes) -> Iterator[tuple[str, list[bytes], threading.Event]]:
    """A server: its address, the requests that came, and whether a client has left.

    It gives each reply to one request of a connection, says nothing after the last, and closes
    the connection where a reply is empty.
    """
    requests, left = list[bytes](), threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            for reply in replies:
                request = connection.recv(65_536)
                while request and b"<end>" not in request:
                    request += connection.recv(65_536)
                requests.append(request)
                if not reply:
                    return
                connection.sendall(reply)
            while connection.recv(65_536):
                requests.append(b"")
            left.set()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=[listening.accept()[0]], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/", requests, left


async def test_cancelled_request_closes_its_socket() -> None:
    """Nothing else ends a connection to a silent server."""
    from curl_cffi.requests import AsyncSession

    with raw_server() as (url, requests, left):
        async with AsyncSession[Any]() as session:
            task = asyncio.create_task(session.get(url, content_callback=len, timeout=0))
            await asyncio.to_thread(wait_for, lambda: requests)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert await asyncio.to_thread(left.wait, AT_ONCE)


async def test_body_from_an_iterator_is_not_sent_twice() -> None:
    """curl sends other bodies again by itself, on a kept connection that turns out to be dead."""
    from curl_cffi.requests import AsyncSession
    from curl_cffi.requests.exceptions import RequestException

    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with raw_server(ok, b"") as (url, requests, _):
        async with AsyncSession[Any](max_clients=1000, discard_cookies=True) as session:

            async def post(body: bytes) -> int:
                response = await session.request(
                    *("POST", url),
                    content=iter([body[:4], body[4:]]),
                    content_callback=came.write,
                    headers={"Content-Length": str(len(body))},
                )
                return int(response.status_code)

            came = io.BytesIO()
            assert await post(b"first<end>") == 200
            assert came.getvalue() == b"ok"
            with pytest.raises(RequestException):
                await post(b"second<end>")
    assert [request.rpartition(b"\r\n\r\n")[2] for request in requests] == [
        b"first<end>",
        b"second<end>",
    ]


# --- filelock, msgspec ---


def test_two_locks_of_one_process_exclude_each_other(tmp_path: pathlib.Path) -> None:
    with FileLock(tmp_path / "lock"):
        other = FileLock(tmp_path / "lock", timeout=0)
        with pytest.raises(Timeout):
            other.acquire()
        other.release()  # which was not taken
    with FileLock(tmp_path / "lock", timeout=0):
        pass


def test_lock_may_be_unlinked_while_it_is_held(tmp_path: pathlib.Path) -> None:
    """Whoever waits for it gets the file that is there, not the one that is gone."""
    path, inside, most = tmp_path / "lock", 0, list[int]()

    def take() -> None:
        nonlocal inside
        for _ in range(50):
            lock = FileLock(path, poll_interval=0.001)
            lock.acquire()
            inside += 1
            most.append(inside)
            inside -= 1
            path.unlink()
            lock.release()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(AT_ONCE)
    assert len(most) == 200
    assert set(most) == {1}


class A(msgspec.Struct, tag="a"):
    x: int | None = None


class B(msgspec.Struct, tag="b"):
    raw: msgspec.Raw = msgspec.Raw(b"[]")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (b'{"type": "a", "y": {"z": 1}, "x": null}', A()),
        (b'{"type": "b", "raw": [ 1 ]}', B(msgspec.Raw(b"[ 1 ]"))),
        (b'{"type": "c"}', msgspec.ValidationError),
        (b'{"type": "a", "x": "1"}', msgspec.ValidationError),
        (b'{"type": "a", "x": NaN}', msgspec.DecodeError),
        (rb'{"type": "a", "y": "\ud83c"}', msgspec.DecodeError),
        (b"[" * 100_000, RecursionError),
    ],
)
def test_msgspec_decodes_tagged_unions(text: bytes, meant: Any) -> None:
    decoder = msgspec.json.Decoder(A | B)
    if not isinstance(meant, type):
        assert decoder.decode(text) == meant
        return
    with pytest.raises((msgspec.DecodeError, RecursionError)) as failed:
        (decoder if b"type" in text else msgspec.json.Decoder()).decode(text)
    assert type(failed.value) is meant
