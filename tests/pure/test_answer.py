"""What an answer gives to llm, cut and continued anywhere: each piece once, none lost."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import Follower, Given, Json, capture, follow, log_of, stream_of, streams, told

import llm_huggingchat as plugin
from llm_huggingchat import FENCE, EventStreamDecoder, FinalAnswer, StreamUpdate, ThinkTags

STREAMS = streams()
CALL = plugin.ToolUpdate("call", "u", plugin.ToolCallBody("t"))
BODY = plugin.ToolResultBody("success", outputs=[{"text": "x"}])
RESULT = plugin.ToolUpdate("result", "u", result=BODY)
TOOL = (CALL, RESULT)
FILE = plugin.FileUpdate("111", "one [1].png")
OPEN = '<artifact type="svg" identifier="i">'
SVG = f"{FENCE}svg\n<svg/>\n{FENCE}"
LINK = "\n\n[one 1.png](https://chat.example/output/111)"


def text_of(*tokens: Any) -> str:
    """The text that an answer gives; a str stands for a token."""
    updates = [StreamUpdate(each) if isinstance(each, str) else each for each in tokens]
    return told(*updates).joined("text")


def test_broken_stream_goes_on_in_its_recorded_log():
    (stream,) = (body for name, body in STREAMS.items() if name.startswith("resume-"))
    (log,) = (x.body for x in capture("resume") if x.kind == "text/event-stream")
    words = [("text", "".join(f"w{n} " for n in range(40)), None, None)]
    assert all(follow(stream[:at], log).given == words for at in range(0, len(stream) + 1, 19))


def answers(scenario: str) -> list[plugin.StoredMessage]:
    """The answers in the last look at a scenario's conversation."""
    looks = [x for x in capture(scenario) if x.method == "GET" and "/api/v2/conv" in x.path]
    conversation = plugin.decode(
        looks[-1].body, plugin.Envelope[plugin.Conversation[plugin.StoredMessage]]
    ).json
    return [message for message in conversation.messages if message.sender == "assistant"]


SAME = """artifact artifact_rewritten artifact_stopped branch image_in omni_router reasoning
regenerate switch_model text_file_in tool_call two_turns"""


@pytest.mark.parametrize("scenario", SAME.split())
def test_recorded_answer_is_the_same_from_its_stream_its_log_and_the_store(scenario):
    bodies = [body for name, body in STREAMS.items() if name.rpartition("-")[0] == scenario]
    for message, stream in zip(answers(scenario), bodies, strict=True):
        streamed = follow(stream)
        stored = message.replay()
        assert stored.complete
        if scenario != "artifact_stopped":  # which is stored cut where the page was
            got = [(kind, text.strip()) for kind, text, *_ in told(*stored.updates).given]
            assert got == [(kind, text.strip()) for kind, text, *_ in streamed.given]
        log = b"".join(log_of([json.loads(line) for line in stream.split(b"\n") if line.strip()]))
        for at in range(0, stream.rindex(b" " * 4096), 97):
            again = follow(stream[:at], log)
            assert again.given == streamed.given, at
            assert again.answer.seen_length == streamed.answer.seen_length
            from_store = follow(stream[:at]).again(stored.updates)
            if scenario != "artifact_stopped":
                assert from_store.joined("text").strip() == streamed.joined("text").strip()


def test_text_that_only_the_final_answer_has_is_not_lost_after_a_cut():
    follower = told(StreamUpdate("one ")).again([FinalAnswer("one two")])
    assert follower.joined("text") == "one two"


MARKS = ["<thi", "nk>", "</think>", "<think>", "<", "\ud83c", "\udf89", "🎉", "a ", " b", "\n", ""]
CALLING = ["<tool_call>", '{"name": "do", "arguments": {"n": 1}}', "</tool_call>", "```", "c"]
TOKENS = st.sampled_from([*MARKS, *CALLING, OPEN, "</artifact>"])
TOKEN = TOKENS.map(lambda token: {"type": "stream", "token": token})
THINGS = st.one_of(
    *[TOKEN] * 4,
    TOKENS.map(lambda token: {"type": "reasoning", "subtype": "stream", "token": token}),
    st.just({"type": "status", "status": "keepAlive"}),
    st.just({"type": "file", "name": "f", "sha": "0f"}),
    st.builds(
        lambda id, kind: {"type": "tool", "subtype": kind, "uuid": id, "call": {"name": "t"}},
        st.sampled_from("abc"),
        st.sampled_from(["call", "result", "error", "eta"]),
    ),
)
DO = {"type": "function", "function": {"name": "do"}}
SCHEMAS = st.sampled_from([None, None, {"type": "object"}])
FEATURES = st.builds(plugin.PromptedFeatures, st.sampled_from([(), (DO,)]), SCHEMAS)
PLACE = st.integers(0, 10_000)


def ended(things: list[Json], interrupted: bool, unstreamed: str) -> list[Json]:
    """A whole run: what came, and the final answer, which is the text after the last tool."""
    text = ""
    for thing in things:
        text = "" if thing["type"] == "tool" and thing["subtype"] != "eta" else text
        text += thing["token"] if thing["type"] == "stream" else ""
    text = text[: len(text) // 2] if interrupted else text + unstreamed
    return [*things, {"type": "finalAnswer", "text": text.strip(), "interrupted": interrupted}]


def without_ids(given_: Given) -> list[tuple[str, str]]:
    """What was given; the ids of local calls are made up each time."""
    return [(kind, chunk) for kind, chunk, *_ in given_]


@given(
    st.lists(THINGS, max_size=12),
    st.booleans(),
    st.sampled_from(["", "", "rest"]),
    FEATURES,
    st.integers(1, 5),
    st.tuples(PLACE, PLACE),
)
def test_any_run_cut_anywhere_and_its_log_too(things, interrupted, rest, features, merge, cuts):
    run = ended(things, interrupted, rest)
    stream, entries = stream_of(run), log_of(run, merge)
    whole = follow(stream, features=features)
    follower = Follower(features).take(
        plugin.JsonLinesDecoder().feed(stream[: cuts[0] % len(stream)])
    )
    if not follower.answer.final:
        log, first = b"".join(entries), EventStreamDecoder()
        follower.again(first.feed(log[: cuts[1] % len(log)]))
        # The next connection begins after the last event that came whole.
        follower.take(EventStreamDecoder().feed(b"".join(entries[first.seq :])))
    assert without_ids(follower.given) == without_ids(whole.given)
    assert follower.answer.seen_length == whole.answer.seen_length
    assert follower.answer.problem == whole.answer.problem


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["a\ud83c", "\udf89b"], "a🎉b"),
        (["a\ud83c", "b"], "a\ufffdb"),
        (["a\udf89b"], "a\ufffdb"),
        (["a\ud83c", FinalAnswer("", True)], "a\ufffd"),
        ([FinalAnswer("a\ud83c")], "a\ufffd"),
        (["a\ud83c", FILE], f"a\ufffd{LINK}"),
        (["a\0b\0", "\0", FinalAnswer("a\0b")], "ab"),
        (["a\ud83c\0", "\0\udf89b"], "a🎉b"),
    ],
)
def test_halves_of_an_emoji_meet_and_alone_can_be_printed(tokens, text):
    assert text_of(*tokens) == text


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([FinalAnswer("<think>why</think>Because.")], "Because."),
        (["Hello", FinalAnswer("Hello there")], "Hello there"),
        *((["Hello", FinalAnswer(nothing)], "Hello") for nothing in ("", None)),
        *(
            (["Looking.", *TOOL, *found, FinalAnswer("Found.")], "Looking.\n\nFound.")
            for found in (["Found."], ["Fou"], [])
        ),
        # chat-ui cuts the whole text, not its last part, where the page was when it was stopped.
        (["Looking.", *TOOL, FinalAnswer("Looking.", True)], "Looking."),
        (["Looking.", *TOOL, FinalAnswer("Look", True)], "Looking."),
        *((["w0 ", "w1 ", FinalAnswer(cut, True)], "w0 w1 ") for cut in ("w0", "w0 w1", "", "no")),
    ],
)
def test_final_answer_adds_only_what_was_not_streamed(tokens, text):
    assert text_of(*tokens) == text


def split(*texts: str) -> tuple[str, str]:
    """What is text and what is reasoning."""
    think = ThinkTags()
    found = [piece for text in texts for piece in think.feed(text)] + think.end()
    return tuple(  # type: ignore[return-value]
        "".join(text for kind, text in found if kind == wanted) for wanted in ("text", "reasoning")
    )


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("<think>a\n\n b</think>\n\nc\n", "\n\nc\n", "a\n\n b"),
        ("\n <think>a</think>b", "\n b", "a"),
        ("<think>a</think>\n<think>b</think>\nc", "\n\nc", "ab"),
        ("<think>a </thin b</think>c", "c", "a </thin b"),
        ("<think>a</thi", "", "a</thi"),
        ("<think>a</</think>b", "b", "a</"),
        ("<think>a</think>b <think>c</think>", "b <think>c</think>", "a"),
        # What only looks like it stays as it is.
        *((text, text, "") for text in ("<thinking>a</thinking>b", "<Think>a</Think>b", "<think")),
        *((text, text, "") for text in ("<", "</think>a", "🎉<think>é</think>", " \n ", "x <thin")),
    ],
)
def test_thinking_wherever_the_text_is_cut(text, answer, reasoning):
    assert split(*text) == (answer, reasoning)
    for at in range(len(text) + 1):
        assert split(text[:at], text[at:]) == (answer, reasoning)


def test_text_is_given_as_soon_as_it_cannot_become_a_tag():
    think = ThinkTags()
    assert think.feed("<thi") == []
    assert think.feed("s") == [("text", "<this")]
    assert think.end() == []
    assert think.feed("<think>a</") == [("reasoning", "a")]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        *(([before, *TOOL, "b"], "a\n\nb") for before in ("a", "a\n", "a\n\n")),
        (["a\n", *TOOL, "\nb"], "a\n\nb"),
        (["a", *TOOL, "\n", "\n", "\n", "b"], "a\n\nb"),
        ([*TOOL, "b"], "b"),
        ([" ", *TOOL, "b"], " b"),
        (["a", CALL, "b", RESULT, "c"], "a\n\nb\n\nc"),
        (["a", *TOOL, "\n", FinalAnswer("")], "a"),
        (["a", FILE, *TOOL, "b"], f"a{LINK}\n\nb"),
        (["a", FILE, FILE, "b"], f"a{LINK}\n\nb"),
        # An open artifact ends with its run.
        ([f"a{OPEN}<svg/>", FinalAnswer("", True)], f"a\n\n**i** (`i`)\n\n{SVG}"),
    ],
)
def test_text_around_a_tool_a_file_or_an_artifact_is_apart(tokens, text):
    assert text_of(*tokens) == text


@pytest.mark.parametrize("interrupted", [False, True])
def test_model_that_is_interrupted_calls_nothing(interrupted):
    answer = plugin.Answer(str, plugin.PromptedFeatures((DO,)))
    answer.add(StreamUpdate('<tool_call>{"name": "do", "arguments": {}}</tool_call>'))
    events = answer.add(FinalAnswer("", interrupted))
    assert [call.name for call in answer.calls] == ["do"] * (not interrupted)
    assert any(event.type == "text" for event in events) is interrupted


def test_length_seen_is_counted_as_javascript_does():
    got = told(*map(StreamUpdate, ("<think>💡</think>", "a🎉\0\0", "é\ud83c")))
    assert got.answer.seen_length == len("<think>xx</think>") + 1 + 2 + 1
    assert got.end().answer.seen_length == len("<think>xx</think>") + 1 + 2 + 1 + 1


def test_answer_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(plugin, "ANSWER_LIMIT", 1000)
    with pytest.raises(plugin.HuggingChatError, match="has no end"):
        text_of(*["x" * 100] * 11)
