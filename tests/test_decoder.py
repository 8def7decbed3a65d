"""Bytes to events, and text to text and reasoning, wherever they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from recorded import capture, streams

from llm_huggingchat import (
    Elicitation,
    ElicitationResolved,
    Event,
    EventStreamDecoder,
    Failed,
    File,
    FinalAnswer,
    Finished,
    JsonLinesDecoder,
    KeepAlive,
    Lines,
    LogEnd,
    Progress,
    Reasoning,
    RouterMetadata,
    Text,
    ThinkTags,
    Title,
    ToolCall,
    ToolResult,
    event_of,
)

STREAMS = streams()
LOG = next(x.body for x in capture("resume") if x.kind == "text/event-stream")


def decoded(stream: bytes, size: int = 0) -> list[Event]:
    """The events of a stream that comes in pieces of `size` bytes."""
    decoder = JsonLinesDecoder()
    size = size or len(stream)
    events = [e for at in range(0, len(stream), size) for e in decoder.feed(stream[at : at + size])]
    return events + decoder.end()


def texts(stream: bytes) -> list[str]:
    return [event.text for event in decoded(stream) if isinstance(event, Text)]


def line(**update: Any) -> bytes:
    return json.dumps(update).encode() + b"\n"


# --- streams --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("name", STREAMS)
def test_stream_is_the_same_in_pieces_of_any_size(name, size):
    assert decoded(STREAMS[name], size) == decoded(STREAMS[name])


def test_stream_is_the_same_cut_once_at_any_byte():
    stream = line(type="stream", token="é 🎉").replace(rb"\u00e9", "é".encode())
    stream += '{"type":"stream","token":"日本"}\n{"type":"finalAnswer","text":"é 🎉日本"}'.encode()
    whole = [Text("é 🎉"), Text("日本"), FinalAnswer("é 🎉日本", False)]
    for at in range(len(stream) + 1):
        decoder = JsonLinesDecoder()
        got = decoder.feed(stream[:at]) + decoder.feed(stream[at:]) + decoder.end()
        assert got == whole


def test_unusual_line_separators_are_text():
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"
    stream = json.dumps({"type": "stream", "token": text}, ensure_ascii=False).encode() + b"\n"
    assert decoded(stream) == [Text(text)]
    assert decoded(stream, 1) == [Text(text)]


def test_padding_is_taken_off_the_right_only():
    assert texts(line(type="stream", token="You" + "\0" * 13)) == ["You"]
    assert texts(line(type="stream", token=" \n\0\0")) == [" \n"]
    assert texts(line(type="stream", token="\0" * 16)) == []


def test_spaces_after_the_answer_belong_to_no_event():
    stream = line(type="finalAnswer", text="x") + b" " * 4096 + line(type="title", title="T")
    assert decoded(stream, 50) == [FinalAnswer("x", False), Title("T")]
    assert decoded(line(type="finalAnswer", text="x") + b" " * 4096) == [FinalAnswer("x", False)]


NOISE = [
    b"\n",
    b"\r\n",
    b"not JSON\n",
    b"<html></html>\n",
    b"{\n",
    b"null\n",
    b"true\n",
    b"12\n",
    b'"text"\n',
    b'[{"type":"stream","token":"no"}]\n',
    b"{}\n",
    b'{"type":null}\n',
    b'{"type":["stream"]}\n',
    b'{"type":{"a":1}}\n',
    b'{"type":"unheard-of","token":"no"}\n',
    b'{"type":"file","sha":7}\n',
    b"\xff\xfe\x00\n",
    b"[" * 100_000 + b"\n",
    b'{"a":' * 50_000 + b"\n",
    b"1" * 10_000 + b"\n",
    b'{"type":' + b"9" * 10_000 + b"}\n",
    b"NaN\n",
]


@pytest.mark.parametrize("noise", NOISE, ids=lambda noise: repr(noise[:12]))
def test_noise_between_two_events_is_passed_over(noise):
    a, b = line(type="stream", token="a"), line(type="stream", token="b")
    assert decoded(a + noise + b) == [Text("a"), Text("b")]


def test_last_line_without_an_end_counts():
    assert decoded(b'{"type":"finalAnswer","text":"x"}') == [FinalAnswer("x", False)]
    decoder = JsonLinesDecoder()
    assert decoder.feed(b'{"type":"finalAnswer","text":"x"}') == []
    assert decoder.end() == [FinalAnswer("x", False)]
    assert decoder.end() == []


def test_half_a_line_at_the_end_does_not():
    assert decoded(b'{"type":"stream","token":"a"}\n{"type":"stream","tok') == [Text("a")]


def test_bytes_that_are_not_utf8_cost_only_themselves():
    assert texts(b'{"type":"stream","token":"a\xffb"}\n') == ["a\ufffdb"]


def test_lines_end_at_line_feeds_only():
    lines = Lines()
    assert lines.feed(b"a\rb\x0b") == []
    assert lines.feed(b"c\n\nd") == [b"a\rb\x0bc", b""]
    assert lines.end() == b"d"
    assert lines.end() == b""


# --- single events --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("update", "event"),
    [
        ({"type": "status", "status": "keepAlive"}, KeepAlive()),
        ({"type": "status", "status": "started"}, KeepAlive()),
        ({"type": "status", "status": "finished"}, Finished()),
        (
            {"type": "status", "status": "error", "message": "no\x1b[31m\nway", "statusCode": 429},
            Failed("no[31m way", 429),
        ),
        ({"type": "status", "status": "error", "statusCode": "429"}, Failed("", None)),
        ({"type": "stream"}, KeepAlive()),
        ({"type": "stream", "token": 5}, KeepAlive()),
        ({"type": "reasoning", "subtype": "stream", "token": "hm\0\0"}, Reasoning("hm")),
        ({"type": "reasoning", "subtype": "status", "status": "thinking"}, KeepAlive()),
        ({"type": "title", "title": "<think>a\nb</think>c\x07"}, Title("a bc")),
        ({"type": "title"}, Title("")),
        ({"type": "routerMetadata", "route": "r", "model": None}, RouterMetadata("r", "", "")),
        ({"type": "finalAnswer", "text": "t", "interrupted": True}, FinalAnswer("t", True)),
        ({"type": "finalAnswer"}, FinalAnswer("", False)),
        ({"type": "finalAnswer", "text": ["t"], "interrupted": "yes"}, FinalAnswer("", False)),
        ({"type": "file", "name": "p.png", "sha": "abc"}, File("p.png", "abc")),
        ({"type": "file", "sha": "abc"}, File("file", "abc")),
        (
            {
                "type": "elicitation",
                "subtype": "request",
                "request": {"server": "Exa", "message": "Which?", "url": 7},
            },
            Elicitation("", "Exa", "Which?"),
        ),
        ({"type": "tool", "subtype": "eta", "uuid": "u", "eta": 10}, KeepAlive()),
        ({"type": "tool", "subtype": "progress", "uuid": "u"}, KeepAlive()),
        (
            {"type": "tool", "subtype": "progress", "uuid": "u", "progress": 1, "message": "a\nb"},
            Progress("u", 1, None, "a b"),
        ),
        (
            {"type": "elicitation", "subtype": "resolved", "elicitationId": "q", "resolution": 5},
            ElicitationResolved("q", ""),
        ),
        ({"type": "elicitation", "subtype": "resolved"}, None),
        ({"type": "tool", "subtype": "call", "uuid": "u"}, ToolCall("u", "", {})),
        (
            {"type": "tool", "subtype": "error", "uuid": "u"},
            ToolResult("u", "", "", "the tool failed"),
        ),
        (
            {"type": "tool", "subtype": "error", "uuid": "u", "message": "oh"},
            ToolResult("u", "", "", "oh"),
        ),
        (
            {"type": "tool", "subtype": "result", "uuid": "u", "result": {"status": "error"}},
            ToolResult("u", "", "", "the tool failed"),
        ),
        ({"type": "tool", "subtype": "result", "uuid": "u"}, ToolResult("u", "", "")),
    ],
)
def test_event(update, event):
    assert event_of(update) == event


def call(**more: Any) -> dict[str, Any]:
    return {"type": "tool", "subtype": "call", "uuid": "u", **more}


def test_tool_call_keeps_what_the_server_drops_from_the_parameters():
    named = {"name": "search", "parameters": {"query": "x"}}
    raw = '{"query": "x", "filter": {"year": [2026]}}'
    assert event_of(call(call=named, argumentsRaw=raw)) == ToolCall("u", "search", json.loads(raw))


@pytest.mark.parametrize("raw", [None, "", "null", "[1]", "{oops", "[" * 100_000, 5])
def test_tool_call_without_usable_raw_arguments_has_its_parameters(raw):
    named = {"name": "search", "parameters": {"query": "x"}}
    assert event_of(call(call=named, argumentsRaw=raw)) == ToolCall("u", "search", {"query": "x"})


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ({"text": "found"}, "found"),
        ({"text": "found", "content": [{"type": "text", "text": "found"}]}, "found"),
        (
            {"text": "t", "sources": [{"title": "A", "link": "https://a"}, {"url": "https://b"}]},
            "t\n[A](https://a)\n[https://b](https://b)",
        ),
        (
            {"content": [{"type": "resource_link", "uri": "https://c", "name": "C"}]},
            "[C](https://c)",
        ),
        (
            {"content": [{"type": "resource", "resource": {"uri": "x://y", "text": "inside"}}]},
            "[x://y](x://y)\ninside",
        ),
        ({"content": [{"type": "image", "mimeType": "image/png"}]}, "[image: image/png]"),
        ({"structured": {"a": "é"}}, '{"structured": {"a": "é"}}'),
        ({}, ""),
        ("not an object", ""),
    ],
)
def test_what_a_tool_returned(output, text):
    result = {"status": "success", "call": {"name": "search"}, "outputs": [output]}
    update = {"type": "tool", "subtype": "result", "uuid": "u", "result": result}
    assert event_of(update) == ToolResult("u", "search", text)


# --- event logs -----------------------------------------------------------------------


def read(log: bytes, size: int = 0) -> tuple[list[Event | LogEnd], int]:
    decoder = EventStreamDecoder()
    size = size or len(log)
    events = [e for at in range(0, len(log), size) for e in decoder.feed(log[at : at + size])]
    return events, decoder.seq


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_log_is_the_same_in_pieces_of_any_size(size):
    assert read(LOG, size) == read(LOG)


def test_recorded_log():
    events, seq = read(LOG)
    text = "".join(event.text for event in events if isinstance(event, Text))
    assert text == "".join(f"w{n} " for n in range(40))
    assert FinalAnswer(text.strip(), False) in events
    assert events[-2:] == [Finished(), LogEnd("completed")]
    assert seq == 15


def test_log_of_a_run_that_is_gone():
    (gone,) = (x for x in capture("resume_gone") if x.kind == "text/event-stream")
    assert read(gone.body) == ([LogEnd("gone")], 0)


def test_number_of_the_last_whole_event():
    first = b'id: 1\nevent: update\ndata: {"type":"stream","token":"a"}\n\n'
    second = b'id: 2\nevent: update\ndata: {"type":"stream","token":"b"}\n'
    assert read(first + second) == ([Text("a")], 1)
    assert read(first + second + b"\n") == ([Text("a"), Text("b")], 2)
    # Also one that is not understood was given.
    assert read(first + b"id: 9\ndata: nonsense\n\n") == ([Text("a")], 9)


def test_log_with_carriage_returns_and_comments():
    assert read(b': ping\r\nid: 3\r\ndata: {"type":"stream",\r\ndata: "token":"a"}\r\n\r\n') == (
        [KeepAlive(), Text("a")],
        3,
    )


@pytest.mark.parametrize("id", [b"x", b"-1", b"1.5", "٣".encode(), b"9" * 5_000, b""])
def test_number_that_is_none_is_passed_over(id):
    log = b"id: 4\ndata: {}\n\nid: " + id + b'\ndata: {"type":"stream","token":"a"}\n\n'
    assert read(log) == ([Text("a")], 4)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"[]", b'{"status":7}', b"[" * 100_000])
def test_end_that_makes_no_sense_is_still_an_end(data):
    assert read(b"event: end\ndata: " + data + b"\n\n") == ([LogEnd("")], 0)


@pytest.mark.parametrize("noise", NOISE, ids=lambda noise: repr(noise[:12]))
def test_noise_in_a_log_is_passed_over(noise):
    a, b = (b'data: {"type":"stream","token":"%s"}\n\n' % x for x in (b"a", b"b"))
    events, _ = read(a + b"data: " + noise + b"\n" + b)
    assert [event for event in events if isinstance(event, Text)] == [Text("a"), Text("b")]


# --- thinking -------------------------------------------------------------------------

CALLED = ToolCall("u", "search", {})


def split(text: str, *cuts: int) -> tuple[str, str]:
    """What is text and what is reasoning, with the text fed in pieces."""
    thinking, pieces = ThinkTags(), list[Event]()
    for begin, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        pieces += thinking.feed(Text(text[begin:end]))
    pieces += thinking.end()
    return (
        "".join(piece.text for piece in pieces if isinstance(piece, Text)),
        "".join(piece.text for piece in pieces if isinstance(piece, Reasoning)),
    )


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("plain", "plain", ""),
        ("", "", ""),
        ("<think>a</think>b", "b", "a"),
        ("<think>a\n\n b</think>\n\nc\n", "\n\nc\n", "a\n\n b"),
        ("\n <think>a</think>b", "\n b", "a"),
        ("<think></think>b", "b", ""),
        ("<think>a</think><think>b</think>c", "c", "ab"),
        ("<think>a</think>\n<think>b</think>\nc", "\n\nc", "ab"),
        ("<think>never closed", "", "never closed"),
        ("<think>a </thin b</think>c", "c", "a </thin b"),
        ("<think>a <think> b</think>c", "c", "a <think> b"),
        ("<think>a</thi", "", "a</thi"),
        ("<think>a</</think>b", "b", "a</"),
        # What only looks like it stays as it is.
        ("<thinking>a</thinking>b", "<thinking>a</thinking>b", ""),
        ("<Think>a</Think>b", "<Think>a</Think>b", ""),
        ("<think", "<think", ""),
        ("<", "<", ""),
        ("<b>bold</b>", "<b>bold</b>", ""),
        ("</think>a", "</think>a", ""),
        ("Write <think>x</think>!", "Write <think>x</think>!", ""),
        ("<think>a</think>b <think>c</think>", "b <think>c</think>", "a"),
        ("x <think", "x <think", ""),
        (" \n\t ", " \n\t ", ""),
        ("<think>a</think> \n", " \n", "a"),
        ("🎉<think>é</think>", "🎉<think>é</think>", ""),
        ("<think>🎉</think>é", "é", "🎉"),
    ],
)
def test_thinking_wherever_the_text_is_cut(text, answer, reasoning):
    assert split(text) == (answer, reasoning)
    assert split(text, *range(1, len(text))) == (answer, reasoning)
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            assert split(text, first, second) == (answer, reasoning)


def test_text_is_given_as_soon_as_it_cannot_become_a_tag():
    thinking = ThinkTags()
    assert thinking.feed(Text("<thi")) == []
    assert thinking.feed(Text("s")) == [Text("<this")]
    assert thinking.feed(Text(" <think>")) == [Text(" <think>")]
    thinking.feed(CALLED)
    assert thinking.feed(Text("<think>a</")) == [Reasoning("a")]
    assert thinking.feed(Text("b")) == [Reasoning("</b")]


def test_after_a_tool_thinking_may_begin_anew():
    thinking = ThinkTags()
    thinking.feed(Text("Let me look."))
    assert thinking.feed(CALLED) == [CALLED]
    assert thinking.feed(Text("<think>b</think>c")) == [Reasoning("b"), Text("c")]
