"""Whatever comes: a value or the documented error, no text lost, and any cut is as none."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, TypeVar

import llm
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import Follower, Update, capture, follow, log_of, new_answer, stream_of, streams, tell

from llm_huggingchat import (
    CACHE,
    Catalogue,
    Event,
    EventStreamDecoder,
    JsonLinesDecoder,
    LogEnd,
    ModelInfo,
    Reasoning,
    Replay,
    Text,
    ThinkTags,
    aliases,
    event_of,
    is_settled,
    load_catalogue,
    parse_cookies,
    parse_server,
    plain,
    read_catalogue,
    stored_answer,
    stored_events,
)

# The same examples every time, and as long as they take: no test depends on chance or time.
settings.register_profile("suite", derandomize=True, deadline=None, database=None, max_examples=100)
settings.load_profile("suite")

URL = "https://huggingface.co/chat"
ANY_TEXT = st.text(st.characters(), max_size=30)  # halves of surrogate pairs too


def words(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from(text.split())


FIELDS = words(
    """
    type subtype status statusCode message token len text interrupted title route model provider
    uuid call name parameters argumentsRaw result outputs content uri resource sources link sha
    request server url updates reasoning generationId messages json id multimodal description
    supportsTools isRouter unlisted cookies domain host value hf-chat made_up
    """
)
WORDS = words(
    """
    stream reasoning tool file title routerMetadata finalAnswer status error finished keepAlive
    elicitation request call result eta success image resource_link <think> </think> a/b u
    """
)
HUGE = st.sampled_from([10**400, -(10**400), float("inf"), float("nan"), 2**63])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | HUGE | st.floats() | WORDS | ANY_TEXT,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(FIELDS | ANY_TEXT, inner, max_size=6)
    ),
    max_leaves=12,
)
UPDATES = st.builds(
    lambda first, more: more | first,
    st.fixed_dictionaries({"type": WORDS}, optional={"subtype": WORDS, "status": WORDS}),
    st.dictionaries(FIELDS, JSON, max_size=5),
)
LINES = st.one_of(
    UPDATES.map(lambda update: json.dumps(update).encode()),
    JSON.map(lambda value: json.dumps(value).encode()),
    ANY_TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=40),
)
T = TypeVar("T")
CUTS = st.lists(st.integers(0, 10_000), max_size=8)


def pieces(data: Any, cuts: list[int]) -> list[Any]:
    """`data`, cut at these places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def attempt(call: Callable[[], T]) -> tuple[T | None, str]:
    """What a call gives, or the words of the one error it may raise."""
    try:
        return call(), ""
    except llm.ModelError as error:
        return None, str(error)


# --- decoder --------------------------------------------------------------------------


def streamed(parts: list[bytes]) -> list[Event]:
    decoder = JsonLinesDecoder()
    return [event for part in parts for event in decoder.feed(part)] + decoder.end()


def logged(parts: list[bytes]) -> tuple[list[Event | LogEnd], int]:
    decoder = EventStreamDecoder()
    return [event for part in parts for event in decoder.feed(part)], decoder.seq


@given(st.lists(LINES, max_size=8).map(b"\n".join), CUTS)
def test_any_bytes_as_a_stream_cut_anywhere(stream, cuts):
    events = streamed([stream])
    assert streamed(pieces(stream, cuts)) == events
    tell(*events)


@given(st.sampled_from(sorted(streams().values())), CUTS)
def test_recorded_streams_cut_anywhere(stream, cuts):
    assert streamed(pieces(stream, cuts)) == streamed([stream])


LOG_LINES = st.one_of(
    st.just(b""),
    st.builds(
        lambda name, value: name + b":" + value,
        st.sampled_from([b"id", b"event", b"data", b"", b"retry"]),
        LINES | st.sampled_from([b" end", b" 7", b'{"status":"completed"}']),
    ),
    LINES,
)


@given(st.lists(LOG_LINES, max_size=15).map(b"\n".join), CUTS)
def test_any_bytes_as_a_log_cut_anywhere(log, cuts):
    events, seq = logged([log])
    assert logged(pieces(log, cuts)) == (events, seq)
    Follower().take(events)


@given(st.lists(st.text(st.characters(exclude_characters="\0")) | LINES, max_size=12))
def test_no_noise_takes_a_token_with_it(things):
    lines = [
        json.dumps({"type": "stream", "token": thing.ljust(16, "\0")}).encode()
        if isinstance(thing, str)
        else b'{"type":"noise"}' + thing.replace(b"\n", b" ")
        for thing in things
    ]
    events = streamed([line + b"\n" for line in lines])
    sent = [json.loads(json.dumps(thing)) for thing in things if isinstance(thing, str) and thing]
    assert [event.text for event in events if isinstance(event, Text)] == sent


@given(UPDATES | JSON)
def test_any_json_as_an_event(value):
    event = event_of(value)
    if event:
        new_answer().take(event)


@given(ANY_TEXT, st.integers(1, 20))
def test_any_text_for_a_terminal(text, limit):
    shown = plain(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()


# --- thinking -------------------------------------------------------------------------

TAGGED = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "think>", "</", ">", " ", "\n", "a", "é🎉"]),
    max_size=12,
).map("".join)


def expected(text: str) -> tuple[str, str]:
    """What is text and what is reasoning, told in another way: all of it at once."""
    answer = reasoning = ""
    while match := re.match(r"(\s*)<think>(.*?)(?:</think>|\Z)", text, re.DOTALL):
        answer, reasoning = answer + match[1], reasoning + match[2]
        text = text[match.end() :]
    return answer + text, reasoning


@given(TAGGED | ANY_TEXT, CUTS)
def test_thinking_cut_anywhere(text, cuts):
    thinking, given_ = ThinkTags(), list[Event]()
    for piece in pieces(text, cuts):
        given_ += thinking.feed(Text(piece))
    given_ += thinking.end()
    said = "".join(piece.text for piece in given_ if isinstance(piece, Text))
    thought = "".join(piece.text for piece in given_ if isinstance(piece, Reasoning))
    assert (said, thought) == expected(text)


# --- answer ---------------------------------------------------------------------------

TOKENS = st.sampled_from(
    ["<thi", "nk>", "</think>", "<think>", "a ", " b", "\n", "🎉", "é", "\ud83c", "\udf89", "<", ""]
)
THINGS = st.one_of(
    TOKENS.map(lambda token: {"type": "stream", "token": token}),
    TOKENS.map(lambda token: {"type": "stream", "token": token}),
    st.just({"type": "reasoning", "subtype": "stream", "token": "hm "}),
    st.just({"type": "status", "status": "keepAlive"}),
    st.just({"type": "file", "name": "f", "sha": "0f"}),
    st.builds(
        lambda id, kind: {"type": "tool", "subtype": kind, "uuid": id, "call": {"name": "t"}},
        st.sampled_from("abc"),
        st.sampled_from(["call", "result", "error", "eta"]),
    ),
    st.just({"type": "routerMetadata", "route": "r"}),
)


def finished(things: list[Update], interrupted: bool) -> list[Update]:
    """A whole run: what was told, and the final answer, which is the text after the last tool."""
    text = ""
    for thing in things:
        if thing["type"] == "tool" and thing["subtype"] != "eta":
            text = ""
        text += thing.get("token", "") if thing["type"] == "stream" else ""
    text = text[: len(text) // 2] if interrupted else text
    final = {"type": "finalAnswer", "text": text.strip(), "interrupted": interrupted}
    return [*things, final]


@settings(max_examples=300)
@given(
    st.lists(THINGS, max_size=12),
    st.booleans(),
    st.integers(1, 5),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
)
def test_any_run_cut_anywhere_and_its_log_too(things, interrupted, merge, cut, log_cut):
    run = finished(things, interrupted)
    stream, entries = stream_of(run), log_of(run, merge)
    whole = follow(stream)
    follower = Follower().take(JsonLinesDecoder().feed(stream[: cut % len(stream)]))
    if not follower.over:
        follower.answer.take(Replay())
        log, first = b"".join(entries), EventStreamDecoder()
        follower.take(first.feed(log[: log_cut % len(log)]))
        follower.take(EventStreamDecoder().feed(b"".join(entries[first.seq :])))
    assert follower.given == whole.given


# --- stored answers -------------------------------------------------------------------


def utf16(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")


@given(
    ANY_TEXT,
    st.lists(st.integers(-1, 9).map(lambda n: {"type": "stream", "len": n}) | UPDATES | JSON),
)
def test_stored_text_is_all_there_whatever_is_marked(content, updates):
    events, _ = stored_events({"content": content, "updates": updates})
    text = "".join(event.text for event in events if isinstance(event, Text))
    assert utf16(text) == utf16(content)
    tell(*events)


@given(st.dictionaries(FIELDS, JSON), JSON)
def test_any_json_as_a_stored_answer(message, conversation):
    tell(*stored_events(message)[0])
    is_settled(message)
    stored_answer(conversation, "u")
    assert stored_answer({"messages": [conversation, message, {"generationId": "g"}]}, "g")


# --- cookies, addresses ---------------------------------------------------------------

COOKIE_TEXT = st.one_of(
    ANY_TEXT,
    st.binary(max_size=60).map(lambda data: data.decode("utf-8", "surrogateescape")),
    JSON.map(json.dumps),
    st.lists(st.dictionaries(FIELDS, ANY_TEXT)).map(json.dumps),
    st.lists(
        words('hf-chat token aws-waf-token = = = ; ; " Cookie: { [ x1 x2 .example.org')
        | st.sampled_from(" \t\n"),
        max_size=20,
    ).map("".join),
)
# All that may be said of cookies that are none: nothing of what was pasted.
COOKIE_ERROR = (
    r"The key for huggingface\.co holds neither 'hf-chat' nor 'token': "
    r"the cookie 'token' is missing\. Run: llm huggingchat login"
    r"|The value of the cookie '(hf-chat|token|aws-waf-token)' has characters that no cookie has\. "
    r"Copy it again from the browser\."
)


@settings(max_examples=300)
@given(COOKIE_TEXT)
def test_any_text_as_cookies(text):
    cookies, error = attempt(lambda: parse_cookies(text))
    if cookies is None:
        assert re.fullmatch(COOKIE_ERROR, error)
    else:
        values = r"(hf-chat=[!-~]+?|(?=token))(; |$|(?=token))(token=[!-~]+?(; |$))?"
        assert re.fullmatch(rf"{values}(aws-waf-token=[!-~]+)?", cookies.header())
        assert parse_cookies(cookies.to_key()) == cookies


ADDRESS = st.lists(
    words("https http :// / : @ [ ] ::1 127.0.0.1 localhost a.b 80 ? # % huggingface.co chat .")
    | st.sampled_from(["\\", "\n", " ", "é", "\uff19", "\ud83c"]),
    max_size=8,
).map("".join)


@settings(max_examples=300)
@given(ADDRESS | ADDRESS.map("https://".__add__) | ANY_TEXT)
def test_any_text_as_an_address(text):
    server, error = attempt(lambda: parse_server(text))
    if server is None:
        assert error
        assert error.isprintable()
    else:
        assert parse_server(server.url) == server
        assert server.url.startswith("https://") or server.is_loopback
        assert re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", server.host)


# --- catalogue ------------------------------------------------------------------------

ENTRIES = st.fixed_dictionaries({"id": JSON | st.text("a-/.1V", max_size=8)}) | JSON


@given(JSON | st.lists(ENTRIES, max_size=5) | st.builds(lambda x: {"json": x}, st.lists(ENTRIES)))
def test_any_json_as_a_catalogue(value):
    try:
        models = read_catalogue(value)
    except ValueError as error:
        assert str(error) == "no model in the catalogue"  # noqa: PT017
        return
    assert models
    assert set(aliases(models).values()) == {model.id for model in models}
    assert read_catalogue([model.to_json() for model in models]) == models


@given(st.data())
def test_order_of_the_services_list_changes_no_alias(data):
    (exchange,) = capture("models_service")
    models = read_catalogue(exchange.json())
    assert aliases(data.draw(st.permutations(models))) == aliases(models)


@given(
    st.lists(
        st.builds(
            ModelInfo,
            st.from_regex(
                r"([ab]/)?(qwen|glm|llama)?[v-]?[0-9.]{0,4}(-[a-z0-9]{1,4}){0,3}", fullmatch=True
            ),
            multimodal=st.booleans(),
            router=st.booleans(),
            unlisted=st.booleans(),
        ),
        unique_by=lambda model: model.id,
        max_size=6,
    ).flatmap(lambda models: st.tuples(st.just(models), st.permutations(models)))
)
def test_order_of_any_list_changes_no_alias(lists):
    models, shuffled = lists
    found = aliases(models)
    assert aliases(shuffled) == found
    assert set(found.values()) <= {model.id for model in models}
    assert {f"hf-{model.name.lower()}" for model in models} <= found.keys()


CACHES = st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda models, time: json.dumps(
            {"servers": {URL: {"models": models, "time": time}}}
        ).encode(),
        st.lists(ENTRIES, max_size=3) | st.just([{"id": "a/b"}]),
        HUGE | JSON,
    ),
)


@given(CACHES)
def test_any_file_as_the_cache(content):
    pathlib.Path(os.environ["LLM_USER_PATH"], CACHE).write_bytes(content)
    catalogue = load_catalogue(URL)
    assert catalogue.models
    assert catalogue.is_old in (True, False)
    assert all(isinstance(model, ModelInfo) for model in catalogue.models)
    assert isinstance(catalogue, Catalogue)
