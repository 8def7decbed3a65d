"""What the module leans on in other people's code, beyond what that code promises."""

from __future__ import annotations

import concurrent.futures
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
from typing import Any

import llm
import pytest
import sqlite_utils
from filelock import FileLock
from helpers import AT_ONCE, make_logs
from llm.logs import LogStore
from llm.parts import StreamEvent

import llm_huggingchat

# Module and name of what is not promised, and the arguments that it must take.
THINGS = """
llm                   Response._process_chunk        chunk
llm                   KeyModel._validate_attachments attachments
llm                   KeyModel.get_key               explicit_key
llm                   AsyncResponse.add_tool_call    tool_call
llm.logs              LogStore.create_thread         name tip forked_from id
llm.logs              LogStore.log                   response thread_id
curl_cffi             AsyncCurl.remove_handle        curl
curl_cffi.requests    AsyncSession.release_curl      curl
jsonschema.exceptions best_match                     errors
"""


@pytest.mark.parametrize("thing", THINGS.strip().splitlines())
def test_thing_is_there(thing: str) -> None:
    module, name, *arguments = thing.split()
    found = operator.attrgetter(name)(importlib.import_module(module))
    assert set(arguments) <= set(inspect.signature(found).parameters)


def a_response(*chunks: StreamEvent) -> llm.Response:
    model = llm_huggingchat.HuggingChat(llm_huggingchat.ModelInfo("a/b"))
    response = llm.Response(llm.Prompt(None, model, messages=[llm.user("hi")]), model, True)
    for chunk in chunks:
        response._process_chunk(chunk)
    response._done, response._start, response._end = True, 0.0, 1.5
    return response


@pytest.mark.parametrize("kind", ["text", "reasoning"])
def test_metadata_without_text_is_kept_with_a_part_of_its_kind(kind: str) -> None:
    """Unless an answer ends in text, a reasoning part carries what the next turn needs."""
    kept = {"huggingchat": {"x": 1}}
    said = [StreamEvent(type="text", chunk="hello")] if kind == "text" else []
    response = a_response(*said, StreamEvent(type=kind, chunk="", provider_metadata=kept))
    assert response.messages()[-1].parts[-1].provider_metadata == kept
    assert response.duration_ms() == 1500


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
        malformed = llm_huggingchat.METADATA.replace("parts.payload", "'{'")
        assert db.execute(f"select {malformed}").fetchall() == [(None,)]


@contextlib.contextmanager
def closing_server() -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers a connection's first request, and closes it after the second."""
    bodies: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            for reply in (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b""):
                request = b""
                while not request.endswith(b"<end>"):
                    request += connection.recv(65_536)
                bodies.append(request.rpartition(b"\r\n\r\n")[2])
                connection.sendall(reply)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=[listening.accept()[0]], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/", bodies


async def test_body_from_an_iterator_is_not_sent_twice() -> None:
    """curl sends other bodies again by itself, on a kept connection that turns out to be dead."""
    from curl_cffi.requests import AsyncSession
    from curl_cffi.requests.exceptions import RequestException

    with closing_server() as (url, bodies):
        async with AsyncSession[Any]() as session:

            async def post(body: bytes) -> bytes:
                came = io.BytesIO()
                options = {"content": iter([body[:4], body[4:]]), "content_callback": came.write}
                headers = {"Content-Length": str(len(body))}
                await session.request("POST", url, headers=headers, **options)
                return came.getvalue()

            assert await post(b"first<end>") == b"ok"
            with pytest.raises(RequestException):
                await post(b"second<end>")
    assert bodies == [b"first<end>", b"second<end>"]


def test_lock_may_be_unlinked_while_it_is_held(tmp_path: pathlib.Path) -> None:
    """Whoever waits for it gets the file that is there, not the one that is gone."""
    path, inside, seen = tmp_path / "lock", 0, list[int]()

    def take(_: int) -> None:
        nonlocal inside
        with FileLock(path, poll_interval=0.001):
            inside += 1
            seen.append(inside)
            inside -= 1
            path.unlink()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(take, range(200), timeout=AT_ONCE))
    assert seen == [1] * 200
