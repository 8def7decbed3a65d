"""What a hostile server, model or environment says does no harm."""

from __future__ import annotations

import json

import llm
import pytest
from chat_ui import ChatUI, Fault
from helpers import ask_sync, failure, parts, run

from llm_huggingchat import (
    MCP,
    ArtifactFilter,
    EventStreamDecoder,
    HttpResponse,
    decode_update,
    find_document,
    proxy_of,
    read_pairs,
    safe_stem,
)

TOKEN = "t-ada-0123456789"


@pytest.mark.parametrize("text", ["\x1b]0;title\x07", "\x1b[2J", "\x9b2J", "\x00\x08"])
def test_no_escape_sequence_of_a_model_reaches_the_terminal(server: ChatUI, text: str) -> None:
    shown = run("-m", "hf-llama", f"[[say]]<think>a{text}b</think>c{text}d[[/say]]")
    assert not set("\x1b\x07\x9b\x00\x08") & set(shown.stdout + shown.stderr)
    assert not set("\x1b\x07\x9b\x00\x08") & set(run("logs", "-r").stdout)


def test_text_keeps_its_lines_and_tabs(server: ChatUI) -> None:
    text = "one\n\ttwo\n  three"
    assert ask_sync(f"[[say]]{text}[[/say]]").text() == text


@pytest.mark.parametrize("path", ["/conversation", "/conversation/*"])
def test_server_that_repeats_a_cookie_does_not_have_it_shown(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("LLM_HUGGINGCHAT_KEY", f"hf-chat=session; token={TOKEN}")
    body = json.dumps({"message": f"You sent token={TOKEN}"}).encode()
    server.faults["POST", path] = [Fault(status=400, body=body, content_type="application/json")]
    said = failure("-m", "hf-llama", "hello")
    assert "You sent token=(cookie)" in said
    assert TOKEN not in said


def test_secret_in_an_address_is_not_logged_whatever_it_looks_like() -> None:
    for query in ("key=c2VjcmV0==", "a=c2VjcmV0=$X", "c2VjcmV0", "a=1&c2VjcmV0="):
        logged = MCP.loggable({"url": f"https://example.org/mcp?{query}"})
        assert "c2VjcmV0" not in logged["url"].replace("c2VjcmV0=(not", "") or "=" in query


@pytest.mark.parametrize("size", [100_000])
def test_texts_without_end_are_read_once(size: int) -> None:
    """Read again from each beginning, any of these would take hours."""
    assert read_pairs("<old_str>" * size + "</old_str><new_str>") == []
    assert find_document("```\n" + "\n" * size + "x", lambda value: "wrong")[0] == ""
    shown, tags = ArtifactFilter(), "<artifact " * (size // 20)
    assert shown.feed(tags) + shown.end() == tags


def test_number_of_an_event_that_is_none_is_passed_over() -> None:
    decoder = EventStreamDecoder(3)
    decoder.feed(b"id: " + b"9" * 5_000 + b"\n\n")
    assert decoder.seq == 3


@pytest.mark.parametrize("number", ["1e400", "NaN", "-Infinity"])
def test_numbers_that_json_does_not_have_reach_no_log(number: str) -> None:
    call = f'{{"name": "t", "parameters": {{"a": {number}, "b": "\\ud83c"}}}}'
    assert decode_update(f'{{"type":"tool","subtype":"call","call":{call}}}'.encode()) is None


def test_proxy_that_is_no_address_is_still_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://ada:secret@[::1")
    assert proxy_of("https://huggingface.co/chat") == "[::1"


def test_cookie_with_a_name_that_http_does_not_have_is_not_sent_on() -> None:
    headers = (("set-cookie", "n\xe4me=a"), ("set-cookie", "good=b; Path=/"))
    assert HttpResponse(302, headers).set_cookies == {"good": "b"}


@pytest.mark.parametrize(
    ("name", "safe"), [("-rf", "rf"), ("con", "_con"), ("con .x", "_con .x"), ("a:b", "a_b")]
)
def test_name_of_a_file_is_no_option_and_no_device(name: str, safe: str) -> None:
    assert safe_stem(name) == safe


def test_tool_names_are_one_line(server: ChatUI) -> None:
    answer = ask_sync("[[tool]] hi", web_search=True)
    assert all("\n" not in str(part.get("name", "")) for part in parts(answer))
    assert isinstance(answer, llm.Response)
