"""What chat-ui says, as types: updates, streams and logs cut anywhere, stored answers."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import Follower, capture, exchanges, streams, updates_of

import llm_huggingchat
from llm_huggingchat import (
    Conversation,
    Envelope,
    EventStreamDecoder,
    FileUpdate,
    FinalAnswer,
    HuggingChatError,
    JsonLinesDecoder,
    LogEnd,
    ReasoningUpdate,
    RouterMetadata,
    StatusUpdate,
    StoredMessage,
    StreamUpdate,
    TitleUpdate,
    ToolUpdate,
    Update,
    decode,
    decode_update,
    stored_updates,
)
from pure.cuts import CUTS, pieces

EXCHANGES, STREAMS = exchanges(), streams()
LOG = next(x.body for x in capture("resume") if x.kind == "text/event-stream")
KEEP_ALIVE = StatusUpdate("keepAlive")


def line(**update: Any) -> bytes:
    return json.dumps(update).encode() + b"\n"


def streamed(*chunks: bytes) -> list[Update | LogEnd]:
    decoder = JsonLinesDecoder()
    return [update for chunk in chunks for update in decoder.feed(chunk)] + decoder.end()


def logged(*chunks: bytes) -> tuple[list[Update | LogEnd], int]:
    decoder = EventStreamDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)], decoder.seq


def chunks(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


# --- what was recorded ---


@pytest.mark.parametrize("name", STREAMS)
def test_every_recorded_update_decodes(name):
    sent, got = updates_of(STREAMS[name]), streamed(STREAMS[name])
    assert [update["type"] for update in sent] == [update.__struct_config__.tag for update in got]
    tokens = [update["token"] for update in sent if update["type"] == "stream"]
    assert tokens == [update.token for update in got if isinstance(update, StreamUpdate)]


def bodies(method: str, path: str) -> list[Any]:
    """The recorded answers in JSON to what was asked like this."""
    return [
        pytest.param(each.body, id=name)
        for name, each in EXCHANGES.items()
        if each.method == method and re.fullmatch(path, each.path) and each.status == 200
    ]


@pytest.mark.parametrize("body", bodies("GET", r"/api/v2/conversations/\w+"))
def test_every_recorded_conversation_decodes(body):
    sent = json.loads(body)["json"]
    conversation = decode(body, Envelope[Conversation]).json
    assert (conversation.title, conversation.model) == (sent["title"], sent["model"])
    for message, got in zip(sent["messages"], conversation.messages, strict=True):
        assert (got.id, got.sender, got.content) == (message["id"], message["from"], got.content)
        assert len(got.decoded_updates()) == len(message.get("updates") or [])
        assert got.generation_id == message.get("generationId")
        if run := got.generation_id:
            assert conversation.answer_of(run) == got
    assert conversation.answer_of("another") is conversation.answer_of(None) is None


# --- JSON ---


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a":-Infinity}', "[" * 100_000, "", "{"])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        decode(text, Any)
    with pytest.raises(ValueError, match=r"."):
        decode(f'["\\ud83c", {text}]', Any)  # also beside half an emoji


def test_half_an_emoji_costs_only_itself():
    assert (
        decode(rb'{"id": "a", "content": "\ud83c!", "x": [1]}', StoredMessage).content == "\ufffd!"
    )
    assert decode(rb'["\ud83c\udf89", "\udf89"]', list[str]) == ["🎉", "\ufffd"]


@pytest.mark.parametrize("id", ["", "../etc", "a b", "a\n", "é", "x" * 201])
def test_id_that_could_harm_is_none(id):
    with pytest.raises(msgspec.ValidationError):
        decode(json.dumps({"id": id}), StoredMessage)


# --- single updates ---


@pytest.mark.parametrize(
    ("update", "meant"),
    [
        ({"type": "status", "status": "keepAlive"}, KEEP_ALIVE),
        (
            {"type": "status", "status": "error", "message": "no", "statusCode": 429},
            StatusUpdate("error", "no", 429),
        ),
        ({"type": "status", "status": "error", "message": None}, StatusUpdate("error")),
        ({"type": "stream", "token": "a\0\0"}, StreamUpdate("a\0\0")),
        ({"type": "stream", "token": "a\ud83c"}, StreamUpdate("a\ud83c")),
        ({"type": "stream", "token": "", "len": 3}, StreamUpdate("", 3)),
        (
            {"type": "reasoning", "subtype": "stream", "token": "hm"},
            ReasoningUpdate("stream", "hm"),
        ),
        ({"type": "reasoning", "subtype": "status", "status": "x"}, ReasoningUpdate("status")),
        ({"type": "title", "title": "T", "more": [1]}, TitleUpdate("T")),
        (
            {"type": "routerMetadata", "route": "r", "model": "m", "provider": None},
            RouterMetadata("r", "m", None),
        ),
        ({"type": "finalAnswer", "text": "t", "interrupted": True}, FinalAnswer("t", True)),
        ({"type": "finalAnswer", "text": None}, FinalAnswer()),
        ({"type": "file", "name": "p.png", "sha": "abc", "mime": None}, FileUpdate("abc", "p.png")),
        ({"type": "tool", "subtype": "call", "uuid": "u", "call": None}, ToolUpdate("call", "u")),
        ({"type": "unheard-of", "token": "no"}, None),
        ({"type": "file", "sha": "../../login"}, None),
        ({"type": "stream", "token": 5}, None),
    ],
)
def test_update(update, meant):
    assert decode_update(json.dumps(update).encode()) == meant


def tool(**more: Any) -> ToolUpdate:
    update = decode_update(line(type="tool", uuid="u", **more))
    assert isinstance(update, ToolUpdate)
    return update


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ({"text": "found"}, "found"),
        ({"text": "found", "content": [{"type": "text", "text": "found"}]}, "found"),
        (
            {
                "text": "t",
                "sources": [{"title": "A", "link": "https://a"}, {"url": "https://b"}, 5],
            },
            "t\n[A](https://a)\n[https://b](https://b)",
        ),
        ({"content": [{"type": "resource_link", "uri": "x:c", "name": "C"}, None]}, "[C](x:c)"),
        (
            {"content": [{"type": "resource", "resource": {"uri": "x://y", "text": "inside"}}]},
            "[x://y](x://y)\ninside",
        ),
        ({"content": [{"type": "image", "mimeType": "image/png"}]}, "[image: image/png]"),
        ({"structured": {"a": "é"}}, '{"structured": {"a": "é"}}'),
        (
            {"text": None, "content": None, "sources": None},
            '{"text": null, "content": null, "sources": null}',
        ),
        ({}, ""),
        *(({name: 5, "text": "t"}, "t") for name in ("content", "sources")),
        ({"content": [{"type": "resource", "resource": "odd", "text": "t"}], "text": "t"}, "t"),
    ],
)
def test_what_a_tool_gave_back(output, text):
    assert tool(subtype="result", result={"status": "success", "outputs": [output]}).output == text


# --- streams and logs, cut anywhere ---

NOISE = [
    *(b"\n", b"\r\n", b"not JSON\n", b"<html></html>\n", b"{\n", b"null\n", b"12\n", b'"text"\n'),
    *(b"{}\n", b'{"type":null}\n', b'{"type":{"a":1}}\n', b"\xff\xfe\x00\n", b"NaN\n"),
    b'[{"type":"stream","token":"no"}]\n',
    b'{"type":"stream","token":"no","x":NaN}\n',
    b"[" * 100_000 + b"\n",
    b'{"a":' * 50_000 + b"\n",
    b'{"type":"tool","call":{"parameters":' + b'{"a":' * 50_000 + b"\n",
    b'{"type":' + b"9" * 10_000 + b"}\n",
]


@pytest.mark.parametrize("noise", NOISE, ids=lambda noise: repr(noise[:12]))
def test_noise_between_two_updates_is_passed_over(noise):
    a, b = line(type="stream", token="a"), line(type="stream", token="b")
    assert streamed(a + noise + b) == [StreamUpdate("a"), StreamUpdate("b")]
    events, _ = logged(b"data: " + a + b"\ndata: " + noise + b"\ndata: " + b + b"\n")
    assert events == [StreamUpdate("a"), StreamUpdate("b")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_recorded_streams_and_log_are_the_same_in_pieces_of_any_size(size):
    for stream in STREAMS.values():
        assert streamed(*chunks(stream, size)) == streamed(stream)
    assert logged(*chunks(LOG, size)) == logged(LOG)


ANY_TEXT = st.text(st.characters(), max_size=30)  # halves of surrogate pairs too
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-9, 9) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)
TYPES = [update.__struct_config__.tag for update in Update.__args__]
NAMES = """subtype status statusCode message token len text interrupted title model uuid call name
parameters argumentsRaw result outputs content request"""
FIELDS = st.sampled_from(re.findall(r"\w+", NAMES))
ANY_UPDATE = st.builds(
    lambda type, more: more | {"type": type},
    st.sampled_from([*TYPES, "x"]),
    st.dictionaries(FIELDS, ANY_JSON, max_size=4),
)
ANY_LINE = (ANY_UPDATE | ANY_JSON).map(lambda value: json.dumps(value).encode()) | st.binary()


@given(st.lists(ANY_LINE, max_size=8).map(b"\n".join), CUTS)
def test_any_bytes_as_a_stream_cut_anywhere(stream, cuts):
    updates = streamed(stream)
    assert streamed(*pieces(stream, cuts)) == updates
    Follower().take(updates).end()


@given(
    st.lists(
        st.builds(
            lambda name, value: name + b":" + value,
            st.sampled_from([b"id", b"event", b"data", b"", b"retry"]),
            ANY_LINE | st.sampled_from([b" end", b" 7", b'{"status":"completed"}']),
        )
        | st.just(b""),
        max_size=15,
    ).map(b"\n".join),
    CUTS,
)
def test_any_bytes_as_a_log_cut_anywhere(log, cuts):
    events, seq = logged(log)
    assert logged(*pieces(log, cuts)) == (events, seq)
    Follower().take(events).end()


@pytest.mark.parametrize(
    ("stream", "updates"),
    [
        (b'{"type":"stream","token":"a\xffb"}\n', [StreamUpdate("a\ufffdb")]),
        ('{"type":"title","title":"a\u2028\x85b"}\r\n'.encode(), [TitleUpdate("a\u2028\x85b")]),
        (b'{"type":"title","title":"no line end"}', [TitleUpdate("no line end")]),
        (b'{"type":"title","title":"hal', []),
        (
            line(type="finalAnswer", text="x") + b" " * 4096 + line(type="title", title="T"),
            [FinalAnswer("x"), TitleUpdate("T")],
        ),
    ],
)
def test_stream_in_pieces_of_a_byte(stream, updates):
    assert streamed(*chunks(stream, 1)) == updates


@pytest.mark.parametrize("decoder", [JsonLinesDecoder, EventStreamDecoder])
def test_line_without_end_is_given_up(decoder, monkeypatch):
    monkeypatch.setattr(llm_huggingchat, "LINE_LIMIT", 1000)
    endless = decoder()
    with pytest.raises(HuggingChatError, match="1,000 bytes"):
        list(map(endless.feed, [b"data: " + b"x" * 90] * 100))


def test_number_is_that_of_the_last_whole_event():
    first = b'id: 1\nevent: update\ndata: {"type":"stream","token":"a"}\n\n'
    second = b'id: 2\nevent: update\ndata: {"type":"stream","token":"b"}\n'
    assert logged(first + second) == ([StreamUpdate("a")], 1)
    assert logged(first + second + b"\n") == ([StreamUpdate("a"), StreamUpdate("b")], 2)
    assert logged(first + b"id: 9\ndata: nonsense\n\n") == ([StreamUpdate("a")], 9)
    assert logged(b": ping\r\n" + first) == ([KEEP_ALIVE, StreamUpdate("a")], 1)


@pytest.mark.parametrize("id", [b"x", b"-1", b"1.5", "٣".encode(), b"", b"\xb2"])
def test_number_that_is_none_is_passed_over(id):
    log = b"id: 4\ndata: {}\n\nid: " + id + b'\ndata: {"type":"stream","token":"a"}\n\n'
    assert logged(log) == ([StreamUpdate("a")], 4)


# --- stored answers ---


def stored(**message: Any) -> StoredMessage:
    message = {"id": "a"} | message
    decoded = decode(json.dumps(message), StoredMessage)
    assert isinstance(decoded, StoredMessage)
    return decoded


FINISHED = {"type": "status", "status": "finished"}
FAILED = {"type": "status", "status": "error", "message": "no"}
FINAL = {"type": "finalAnswer", "text": "hello"}
ASKED = {"type": "elicitation", "subtype": "request", "request": {"elicitationId": "q"}}
RESOLVED = {"type": "elicitation", "subtype": "resolved", "elicitationId": "q"}


def mark(length: int) -> dict[str, Any]:
    return {"type": "stream", "token": "", "len": length}


@pytest.mark.parametrize(
    ("more", "end", "settled"),
    [
        ({"updates": [mark(5), FINAL, FINISHED]}, FinalAnswer("", False), True),
        ({"updates": [mark(5), FINAL]}, FinalAnswer("", False), False),
        ({"updates": [mark(5), FINAL | {"interrupted": True}]}, FinalAnswer("", True), False),
        ({"updates": [mark(5), FINAL], "interrupted": True}, FinalAnswer("", True), False),
        ({"updates": [mark(5)], "interrupted": True}, FinalAnswer("", True), False),
        ({"updates": [mark(5), FINISHED]}, FinalAnswer("", True), True),  # the model died
        ({"updates": [mark(5), FAILED]}, None, True),
        ({"updates": [mark(2)]}, None, False),
        ({"updates": []}, None, False),
        ({"updates": None}, None, False),
        ({}, None, False),
        # A question that ended the run, then the run that resumes it.
        ({"updates": [ASKED, FINISHED]}, FinalAnswer("", True), True),
        ({"updates": [ASKED, FINISHED, RESOLVED, mark(5)]}, None, False),
        (
            {"updates": [ASKED, FINISHED, RESOLVED, mark(5), FINAL, FINISHED]},
            FinalAnswer("", False),
            True,
        ),
    ],
)
def test_stored_answer_is_complete_or_settled(more, end, settled):
    updates, complete, its_run_is_over = stored_updates(stored(content="hello", **more))
    assert complete is (end is not None)
    assert (updates[-1] if complete else None) == end
    assert its_run_is_over is settled


@pytest.mark.parametrize(
    "updates",
    [
        *(None, [], [None], [5], [{}], [mark(-1)], [{"type": "stream"}]),
        [{"type": "stream", "len": "9"}],
        [mark(10**400)],
        [mark(3), mark(100)],
        [{"type": "stream", "token": "all of it"}],
    ],
    ids=repr,
)
def test_stored_text_is_whole_whatever_the_marks_say(updates):
    found, complete, _ = stored_updates(stored(content="all of it", updates=updates))
    assert "".join(each.token for each in found if isinstance(each, StreamUpdate)) == "all of it"
    assert not complete


@given(ANY_TEXT, st.lists(st.integers(-1, 9).map(mark) | ANY_UPDATE | ANY_JSON))
def test_stored_text_is_whole_whatever_else_is_stored(content, updates):
    message = stored(content=content, updates=updates)
    found, *_ = stored_updates(message)
    text = "".join(each.token for each in found if isinstance(each, StreamUpdate))
    assert text.encode("utf-16", "surrogatepass") == message.content.encode("utf-16")
    Follower().take(found).end()
