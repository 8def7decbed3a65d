"""What chat-ui says, as types: updates, streams and logs cut anywhere, stored answers."""

import contextlib
import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from recorded import Follower, exchanges, streams, updates_of

import llm_huggingchat as plugin
from llm_huggingchat import FinalAnswer, StatusUpdate, StoredMessage, StreamUpdate, decode
from pure.cuts import ANY_TEXT, ASKED, CUTS, FAILED, FINISHED, RESOLVED, SMALL, any_json, pieces

KEEP_ALIVE = StatusUpdate("keepAlive")


def line(**update: Any) -> bytes:
    return json.dumps(update).encode() + b"\n"


def streamed(*chunks: bytes) -> list[plugin.Update | plugin.LogEnd]:
    decoder = plugin.JsonLinesDecoder()
    return [update for chunk in chunks for update in decoder.feed(chunk)] + decoder.end()


def logged(*chunks: bytes) -> tuple[list[plugin.Update | plugin.LogEnd], int]:
    decoder = plugin.EventStreamDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)], decoder.seq


def test_every_recorded_update_decodes():
    for name, stream in streams().items():
        sent, got = updates_of(stream), streamed(stream)
        assert [each["type"] for each in sent] == [each.__struct_config__.tag for each in got], name
        tokens = [each["token"] for each in sent if each["type"] == "stream"]
        assert tokens == [each.token for each in got if isinstance(each, StreamUpdate)]


def test_every_recorded_conversation_decodes():
    place = r"/api/v2/conversations/\w+"
    looks = [each for each in exchanges().values() if re.fullmatch(place, each.path)]
    for body in [each.body for each in looks if (each.method, each.status) == ("GET", 200)]:
        sent = json.loads(body)["json"]
        conversation = decode(body, plugin.Envelope[plugin.Conversation[plugin.StoredMessage]]).json
        assert (conversation.title, conversation.model) == (sent["title"], sent["model"])
        for message, got in zip(sent["messages"], conversation.messages, strict=True):
            assert (got.id, got.sender) == (message["id"], message["from"])
            assert len(got.updates or ()) == len(message.get("updates") or ())
            assert all(map(plugin.decode_update, got.updates or ()))
            if run := message.get("generationId"):
                assert conversation.answer_of(run) == got
        assert conversation.answer_of("another") is conversation.answer_of(None) is None


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a":-Infinity}', "[" * 100_000, "", "{"])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        decode(text, Any)
    with pytest.raises(ValueError, match=r"."):
        decode(f'["\\ud83c", {text}]', Any)  # also beside half an emoji


def test_half_an_emoji_costs_only_itself():
    message = decode(rb'{"id": "a", "content": "\ud83c!", "x": [1]}', StoredMessage)
    assert message.content == "\ufffd!"
    assert decode(rb'["\ud83c\udf89", "\udf89"]', list[str]) == ["🎉", "\ufffd"]


@pytest.mark.parametrize("id", ["", "../etc", "a b", "a\n", "é", "x" * 201])
def test_id_that_could_harm_is_none(id):
    with pytest.raises(msgspec.ValidationError):
        decode(json.dumps({"id": id}), StoredMessage)


def of(type: str, **more: Any) -> dict[str, Any]:
    return {"type": type, **more}


@pytest.mark.parametrize(
    ("update", "meant"),
    [
        (of("status", status="keepAlive"), KEEP_ALIVE),
        (of("status", status="error", message="m", statusCode=9), StatusUpdate("error", "m", 9)),
        (of("status", status="error", message=None), StatusUpdate("error")),
        (of("stream", token="a\0\ud83c"), StreamUpdate("a\0\ud83c")),
        (of("reasoning", subtype="stream", token="hm"), plugin.ReasoningUpdate("stream", "hm")),
        (of("reasoning", subtype="status", status="x"), plugin.ReasoningUpdate("status")),
        (of("title", title="T", more=[1]), plugin.TitleUpdate("T")),
        (of("routerMetadata", route="r", provider=None), plugin.RouterMetadata("r")),
        (of("finalAnswer", text="t", interrupted=True), FinalAnswer("t", True)),
        (of("finalAnswer", text=None), FinalAnswer()),
        (of("file", name="p.png", sha="abc", mime=None), plugin.FileUpdate("abc", "p.png")),
        (of("tool", subtype="call", uuid="u", call=None), plugin.ToolUpdate("call", "u")),
        (of("unheard-of", token="no"), None),
        (of("file", sha="../../login"), None),
        (of("stream", token=5), None),
    ],
)
def test_update(update, meant):
    assert plugin.decode_update(json.dumps(update).encode()) == meant


LINKS = [{"title": "A", "link": "https://a"}, {"url": "https://b"}, 5]
NOTHING = '{"text": null, "content": null, "sources": null}'


def part(type: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": type, **more}, None]}


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ({"text": "found", **part("text", text="found")}, "found"),
        ({"text": "t", "sources": LINKS}, "t\n[A](https://a)\n[https://b](https://b)"),
        (part("resource_link", uri="x:c", name="C"), "[C](x:c)"),
        (part("resource", resource={"uri": "x:y", "text": "inside"}), "[x:y](x:y)\ninside"),
        (part("image", mimeType="image/png"), "[image: image/png]"),
        ({"structured": {"a": "é"}}, '{"structured": {"a": "é"}}'),
        (json.loads(NOTHING), NOTHING),
        ({}, ""),
        *(({name: 5, "text": "t"}, "t") for name in ("content", "sources")),
    ],
)
def test_what_a_tool_gave_back(output, text):
    result = {"status": "success", "outputs": [output]}
    update = plugin.decode_update(line(type="tool", uuid="u", subtype="result", result=result))
    assert isinstance(update, plugin.ToolUpdate)
    assert update.output == text


# --- streams and logs, cut anywhere ---

NOISE = [
    *(b"", b"\r", b"<html></html>", b"{", b"null", b"12", b'{"type":{"a":1}}', b"\xff\xfe\x00"),
    *(b"[" * 100_000, b'{"type":"stream","token":"no","x":NaN}', b'{"a":' * 50_000),
    *(b'[{"type":"stream","token":"no"}]', b'{"type":' + b"9" * 10_000 + b"}"),
    b'{"type":"tool","call":{"parameters":' + b'{"a":' * 50_000,
    b'{"type":"tool","subtype":"call","call":{"name":"t","parameters":{"a":1e400}}}',
]


@pytest.mark.parametrize("noise", NOISE, ids=lambda noise: repr(noise[:12]))
def test_noise_between_two_updates_is_passed_over(noise):
    a, b = line(type="stream", token="a"), line(type="stream", token="b")
    assert streamed(a + noise + b"\n" + b) == [StreamUpdate("a"), StreamUpdate("b")]
    events, _ = logged(b"data: " + a + b"\ndata: " + noise + b"\n\ndata: " + b + b"\n")
    assert events == [StreamUpdate("a"), StreamUpdate("b")]


ANY_JSON = any_json(SMALL | st.floats(-9, 9) | ANY_TEXT)
TYPES = [update.__struct_config__.tag for update in plugin.Update.__args__]
NAMES = """subtype status statusCode message token len text interrupted title model uuid call name
parameters argumentsRaw result outputs content request"""
FIELDS = st.sampled_from(re.findall(r"\w+", NAMES))
ANY_UPDATE = st.builds(
    lambda type, more: more | {"type": type},
    st.sampled_from([*TYPES, "x"]),
    st.dictionaries(FIELDS, ANY_JSON, max_size=4),
)
ANY_LINE = (ANY_UPDATE | ANY_JSON).map(lambda value: json.dumps(value).encode()) | st.binary()
ANY_FIELD = st.builds(
    lambda name, value: name + b":" + value,
    st.sampled_from([b"id", b"event", b"data", b"", b"retry"]),
    ANY_LINE | st.sampled_from([b" end", b" 7", b'{"status":"completed"}']),
)


@given(st.lists(ANY_LINE, max_size=8).map(b"\n".join), CUTS)
def test_any_bytes_as_a_stream_cut_anywhere(stream, cuts):
    updates = streamed(stream)
    assert streamed(*pieces(stream, cuts)) == updates
    Follower().take(updates).end()


@given(st.lists(ANY_FIELD | st.just(b""), max_size=15).map(b"\n".join), CUTS)
def test_any_bytes_as_a_log_cut_anywhere(log, cuts):
    events, seq = logged(log)
    assert logged(*pieces(log, cuts)) == (events, seq)
    Follower().take(events).end()


def test_stream_in_pieces_of_a_byte():
    title, odd = "no line end", "a\u2028\x85b"
    stream = b'{"type":"stream","token":"a\xffb"}\n'
    stream += f'{{"type":"title","title":"{odd}"}}\r\n{{"type":"title","title":"{title}"}}'.encode()
    updates = [StreamUpdate("a\ufffdb"), plugin.TitleUpdate(odd), plugin.TitleUpdate(title)]
    assert streamed(*(stream[at : at + 1] for at in range(len(stream)))) == updates
    assert streamed(stream[:-3]) == updates[:-1]


def test_line_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(plugin, "LINE_LIMIT", 1000)
    with pytest.raises(plugin.HuggingChatError, match="1,000 bytes"):
        streamed(*[b"x" * 90] * 12)


def test_number_is_that_of_the_last_whole_event():
    first = b'id: 1\nevent: update\ndata: {"type":"stream","token":"a"}\n\n'
    second = b'id: 2\nevent: update\ndata: {"type":"stream","token":"b"}\n'
    assert logged(first + second) == ([StreamUpdate("a")], 1)
    assert logged(first + second + b"\n") == ([StreamUpdate("a"), StreamUpdate("b")], 2)
    assert logged(first + b"id: 9\ndata: nonsense\n\n") == ([StreamUpdate("a")], 9)
    assert logged(b": ping\r\n" + first) == ([KEEP_ALIVE, StreamUpdate("a")], 1)
    assert logged(first.replace(b"\n", b"\r\n")) == ([StreamUpdate("a")], 1)


@pytest.mark.parametrize("id", ["x", "-1", "1.5", "٣", "", "\xb2", "9" * 5_000])
def test_number_that_is_none_is_passed_over(id):
    log = b"id: 4\ndata: {}\n\nid: " + id.encode() + b'\ndata: {"type":"stream","token":"a"}\n\n'
    assert logged(log) == ([StreamUpdate("a")], 4)


# --- stored answers ---


def stored(**message: Any) -> StoredMessage:
    return decode(json.dumps({"id": "a"} | message), StoredMessage)


FINAL = {"type": "finalAnswer", "text": "hello"}


def mark(length: Any) -> dict[str, Any]:
    return {"type": "stream", "token": "", "len": length}


AFTER_RESOLVED = [ASKED, FINISHED, RESOLVED, mark(5)]


@pytest.mark.parametrize(
    ("updates", "more", "end", "settled"),
    [
        ([mark(5), FINAL, FINISHED], {}, FinalAnswer("", False), True),
        ([mark(5), FINAL], {}, FinalAnswer("", False), False),
        ([mark(5), FINAL | {"interrupted": True}], {}, FinalAnswer("", True), False),
        ([mark(5), FINAL], {"interrupted": True}, FinalAnswer("", True), False),
        ([mark(5)], {"interrupted": True}, FinalAnswer("", True), False),
        ([mark(5), FINISHED], {}, FinalAnswer("", True), True),  # the model died
        ([mark(5), FAILED], {}, None, True),
        *((updates, {}, None, False) for updates in ([mark(2)], None)),
        # A question that ended the run, then the run that resumes it.
        ([ASKED, FINISHED], {}, FinalAnswer("", True), True),
        (AFTER_RESOLVED, {}, None, False),
        ([*AFTER_RESOLVED, FINAL, FINISHED], {}, FinalAnswer("", False), True),
    ],
)
def test_stored_answer_is_complete_or_settled(updates, more, end, settled):
    message = stored(content="hello", updates=updates, **more)
    answer = message.replay()
    assert answer.complete is (end is not None)
    assert (answer.updates[-1] if answer.complete else None) == end
    assert answer.settled is settled


def test_stored_reasoning_comes_first():
    (first, *_) = stored(content="x", reasoning="why").replay().updates
    assert first == plugin.ReasoningUpdate("stream", "why")


MARKS = st.sampled_from([*range(-1, 9), 99, 10**400, "9"]).map(mark)


@example("all of it", [mark(3), mark(100), {"type": "stream", "token": "all of it"}])
@given(ANY_TEXT, st.lists(MARKS | ANY_UPDATE | ANY_JSON, max_size=6))
def test_stored_text_is_whole_whatever_else_is_stored(content, updates):
    message = stored(content=content, updates=updates)
    found = message.replay().updates
    text = "".join(each.token for each in found if isinstance(each, StreamUpdate))
    assert text.encode("utf-16", "surrogatepass") == message.content.encode("utf-16")
    Follower().take(found).end()


def test_json_at_the_limit_of_nesting_raises_nothing_but_value_error():
    for depth in range(1000):
        with contextlib.suppress(ValueError):
            decode(f'["\\ud800", {"[" * depth}{"]" * depth}]', Any)
