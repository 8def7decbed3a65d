"""Far servers, slow lines, long conversations, proxies: what is waited for, and what is not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import llm
import pytest
from chat_ui import ChatUI, Fault
from curl_cffi.requests import AsyncSession
from helpers import (
    TurnRequest,
    ask_sync,
    both,
    calls,
    described,
    failure,
    logged,
    only_conversation,
    run,
    sends,
    tree,
    wait_for,
)

import llm_huggingchat
from llm_huggingchat import Client, read_json


@contextlib.contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[ChatUI]:
    """A stand-in server with these options, which LLM_HUGGINGCHAT_URL names."""
    with ChatUI(**options) as server:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", server.url)
        yield server


# --- proxies --------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", ["http_proxy", "all_proxy", "ALL_PROXY"])
def test_this_machine_is_asked_without_a_proxy(
    server: ChatUI, ask: TurnRequest, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChatUI(base_path="") as proxy:
        monkeypatch.setenv(name, proxy.url)
        assert ask("hello").text() == "You said: hello"
        assert proxy.connections == 0


def test_other_machines_are_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.backoff", (0.01,))
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", "https://chat.example.org")
    with ChatUI(base_path="") as proxy:  # it refuses to pass anything on
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert "proxy" in failure("-m", "hf-llama", "hello")
        assert proxy.connections > 0


# --- time -----------------------------------------------------------------------------


@both
def test_answer_may_take_longer_than_curl_gives_a_request(
    server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """curl_cffi ends a request after 30 seconds unless told otherwise; here after 0.3."""
    make = AsyncSession.__init__

    def hasty(self: AsyncSession[Any], **options: Any) -> None:
        make(self, **options)
        self.timeout = 0.3

    monkeypatch.setattr(AsyncSession, "__init__", hasty)
    server.faults["POST", "/conversation"] = [Fault(delay=0.6)]
    assert ask("[[wait=0.8]]").text() == "You said: [[wait=0.8]]"
    assert [path.rpartition("/")[2] for _, path in calls(server)].count("conversation") == 1
    assert not any(path.endswith("/stream") for _, path in calls(server))


def test_slow_upload_is_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.read_timeout", 1.2)
    with stand_in(monkeypatch, uplink=150_000) as server:
        file = llm.Attachment(type="text/plain", content=b"x" * 300_000)
        response = ask_sync("[[say]]Long.[[/say]]", attachments=[file])
        assert response.text() == "Long."
        id = only_conversation(server).id
        assert calls(server) == [
            ("POST", "/conversation"),
            ("POST", f"/conversation/{id}"),
            ("GET", f"/api/v2/conversations/{id}"),
        ]


async def test_ids_of_short_answers_are_had_though_the_server_is_far_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stand_in(monkeypatch, latency=0.6) as server:
        model = llm.get_async_model("hf-llama")
        responses = [model.prompt(f"[[say]]{number}[[/say]]") for number in range(5)]
        await asyncio.gather(*(response.text() for response in responses))
        answers = [server.messages(id, "assistant") for id in server.conversations]
    found = [described(await response.to_sync_response()) for response in responses]
    assert sorted(answer.get("message_id", "") for answer in found) == sorted(
        answer["id"] for (answer,) in answers
    )


def test_id_that_comes_late_is_logged(server: ChatUI) -> None:
    run("-m", "hf-llama", "one [[slowfetch=0.8]]")
    (answer,) = server.messages(only_conversation(server).id, "assistant")
    (entry,) = logged()
    assert entry["response_json"]["huggingchat"]["message_id"] == answer["id"]


# --- connections that are not used ----------------------------------------------------


def test_unused_connections_are_closed(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.keep_alive", 0.2)
    first = ask_sync("one")
    wait_for(lambda: server.open_connections == 0)
    assert first.reply("two").text() == "You said: two"
    wait_for(lambda: server.open_connections == 0)
    assert tree(server, only_conversation(server).id) == {"one": {"two": {}}}


async def test_unused_connections_of_a_loop_are_closed(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.keep_alive", 0.2)
    first = llm.get_async_model("hf-llama").prompt("one")
    await first.text()
    await asyncio.to_thread(wait_for, lambda: server.open_connections == 0)
    assert await (await first.reply("two")).text() == "You said: two"
    await asyncio.to_thread(wait_for, lambda: server.open_connections == 0)


# --- long conversations ---------------------------------------------------------------


def read_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, threading.Thread]]:
    """How much JSON is read in one go from now on, in characters, and in which thread."""
    sizes: list[tuple[int, threading.Thread]] = []
    decode = json.JSONDecoder.raw_decode

    def raw_decode(self: json.JSONDecoder, text: str, idx: int = 0) -> Any:
        value, end = decode(self, text, idx)
        sizes.append((end - idx, threading.current_thread()))
        return value, end

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", raw_decode)
    return sizes


async def test_long_conversation_is_not_read_on_the_loop(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_huggingchat.LARGE", 10_000)
    sizes = read_sizes(monkeypatch)
    prompt = "[[say]]Long.[[/say]] " + "x " * 15_000
    response = llm.get_async_model("hf-llama").prompt(prompt)
    assert await response.text() == "Long."
    assert "message_id" in described(await response.to_sync_response())
    server_threads = {going.thread for going in server.all_runs}
    readers = {thread for size, thread in sizes if size > 20_000} - server_threads
    assert readers
    assert threading.current_thread() not in readers


def conversation(turns: int) -> dict[str, Any]:
    """A conversation as the server gives it, each answer with its marks."""
    mark = {"type": "stream", "token": "", "len": 5}
    messages = [
        {"id": str(number), "content": f'{number} "messages": [] ]', "updates": [mark] * 300}
        for number in range(turns)
    ]
    return {"title": 'A "title": [', "messages": messages, "rootMessageId": "0", "model": "a/b"}


def test_of_a_long_conversation_only_a_message_is_read_in_one_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While JSON is being read, no other thread is at work, and so no loop."""
    data = json.dumps({"json": conversation(100)}).encode()
    assert len(data) > 5 * llm_huggingchat.LARGE
    sizes = read_sizes(monkeypatch)
    assert read_json(data) == {"json": conversation(100)}
    assert max(size for size, _ in sizes) < len(data) / 50


@pytest.mark.parametrize(
    "value",
    [
        *({"json": conversation(turns)} for turns in (0, 1, 2, 3)),
        conversation(2),
        {"json": {"messages": "none"}, "meta": {"messages": [1, 2]}},
        {"json": {"messages": [1, [2, {"messages": [3]}], "]"]}},
        {"json": [{"messages": [1, 2]}]},
        {"messages": [1, 2], "json": {"title": "x"}},
        ["messages", [1, 2]],
    ],
    ids=lambda value: json.dumps(value)[:60],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_what_is_read_in_pieces_is_what_was_sent(
    value: Any, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_huggingchat.LARGE", 0)
    assert read_json(json.dumps(value, indent=indent).encode()) == value


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_half_a_conversation_is_an_error(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_huggingchat.LARGE", 0)
    with pytest.raises(ValueError, match=r"."):
        read_json(json.dumps({"json": {"messages": [{"id": "x" * 40}, 1]}}).encode()[:cut])


async def test_conversation_whose_reading_was_only_late_is_not_read_again(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.id_timeout", 0.05)
    first = llm.get_async_model("hf-llama").prompt("one [[slowfetch=0.5]]")
    await first.text()
    assert "message_id" not in described(await first.to_sync_response())
    id = only_conversation(server).id
    client = Client.here()
    await asyncio.to_thread(wait_for, lambda: client.known(id).message_id)
    only_conversation(server).words.clear()
    await (await first.reply("two")).text()
    begun = {request.number for request in sends(server)}
    reads = [r for r in server.log if r.path == f"/api/v2/conversations/{id}"]
    assert len([read for read in reads if read.number < max(begun)]) == 1
    assert tree(server, id) == {"one [[slowfetch=0.5]]": {"two": {}}}
