"""What comes out of a run, cut and continued anywhere: each piece once, none lost."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from recorded import (
    Follower,
    Given,
    capture,
    follow,
    log_of,
    new_answer,
    stream_of,
    streams,
    tell,
    updates_of,
)

from llm_huggingchat import (
    Event,
    EventStreamDecoder,
    Failed,
    File,
    FinalAnswer,
    Finished,
    JsonLinesDecoder,
    Reasoning,
    Replay,
    RouterMetadata,
    Text,
    Title,
    ToolCall,
    ToolResult,
    is_settled,
    stored_answer,
    stored_events,
)

STREAMS = streams()


# --- recorded streams -----------------------------------------------------------------


# What artifacts become is looked at in test_artifacts.py.
# Nor is text that a tool comes between, which test_tool_call looks at.
CHANGED = ("artifact", "tool_call")


@pytest.mark.parametrize("name", [name for name in STREAMS if not name.startswith(CHANGED)])
def test_answer_is_byte_for_byte_what_the_server_sent(name):
    updates = updates_of(STREAMS[name])
    sent = "".join(u["token"].rstrip("\0") for u in updates if u["type"] == "stream")
    thought = "".join(re.findall(r"<think>(.*?)</think>", sent, re.DOTALL))
    got = follow(STREAMS[name])
    assert got.joined("text") == re.sub(r"<think>.*?</think>", "", sent, flags=re.DOTALL)
    assert got.joined("reasoning") == thought


def only(scenario: str) -> bytes:
    (stream,) = (body for name, body in STREAMS.items() if name.rpartition("-")[0] == scenario)
    return stream


def test_reasoning():
    assert follow(only("reasoning")).given == [
        ("reasoning", "Let me think about\n\nthis carefully.", None, None),
        ("text", "You said: [[reason]] why", None, None),
    ]


def test_tool_call():
    id = "5cbfbccc-7c21-4a25-8804-1f8a283912fa"
    found = "1. chat-ui source https://example.org/chat-ui\n2. docs for chat-ui https://example.org/docs"
    assert follow(only("tool_call")).given == [
        ("text", "Let me look that up.", None, None),
        ("tool_call_name", "web_search_exa", id, None),
        ("tool_call_args", '{"query": "chat-ui"}', id, None),
        ("tool_result", found, id, "web_search_exa"),
        ("text", f"\n\nThe tool said: {found}", None, None),
    ]


def test_router_and_provider():
    follower = follow(only("omni_router"))
    assert follower.answer.router == RouterMetadata("default", "zai-org/GLM-4.6", "novita")
    assert follower.answer.title == 'You said: User message: "hi there"'


def test_stopped_answer_gives_nothing_twice():
    follower = follow(only("stop"))
    assert follower.joined("text") == "".join(f"w{n} " for n in range(19))
    assert follower.answer.final == FinalAnswer("w0 w1 w2 w3 w4 w5 w6", True)


@pytest.mark.parametrize("name", ["empty_answer", "upstream_error_429", "upstream_error_500"])
def test_failed_run_gives_no_text(name):
    follower = follow(only(name))
    assert follower.given == []
    assert not follower.answer.begun


# --- cut and continued ----------------------------------------------------------------

RICH = stream_of(
    [
        {"type": "status", "status": "started"},
        {"type": "reasoning", "subtype": "stream", "token": "First, "},
        {"type": "reasoning", "subtype": "stream", "token": "an idea 💡"},
        {"type": "stream", "token": "<thi"},
        {"type": "stream", "token": "nk>so "},
        {"type": "status", "status": "keepAlive"},
        {"type": "stream", "token": "be it</th"},
        {"type": "stream", "token": "ink>\n"},
        {"type": "stream", "token": "Look\u2028ing \ud83c"},
        {"type": "stream", "token": "\udf89 up "},
        {
            "type": "tool",
            "subtype": "call",
            "uuid": "a",
            "call": {"name": "search", "parameters": {"q": "é"}},
        },
        {"type": "tool", "subtype": "eta", "uuid": "a", "eta": 1},
        {"type": "tool", "subtype": "call", "uuid": "b", "call": {"name": "fetch"}},
        {"type": "tool", "subtype": "error", "uuid": "b", "message": "no such page"},
        {
            "type": "tool",
            "subtype": "result",
            "uuid": "a",
            "result": {"status": "success", "outputs": [{"text": "found"}]},
        },
        {"type": "stream", "token": "<think>again"},
        {"type": "stream", "token": "</think>see"},
        {"type": "file", "name": "one [1].png", "sha": "111", "mime": "image/png"},
        {"type": "file", "name": "two.png", "sha": "222", "mime": "image/png"},
        {"type": "status", "status": "keepAlive"},
        {"type": "stream", "token": " <think> and 日本 "},
        {"type": "stream", "token": "<thin"},
        {"type": "finalAnswer", "text": "<think>again</think>see <think> and 日本 <thin"},
        {"type": "title", "title": "T"},
        {"type": "status", "status": "finished"},
    ]
)
RICH_GIVEN: Given = [
    ("reasoning", "First, an idea 💡so be it", None, None),
    ("text", "\nLook\u2028ing 🎉 up ", None, None),
    ("tool_call_name", "search", "a", None),
    ("tool_call_args", '{"q": "é"}', "a", None),
    ("tool_call_name", "fetch", "b", None),
    ("tool_call_args", "{}", "b", None),
    ("tool_result", "Error: no such page", "b", "fetch"),
    ("tool_result", "found", "a", "search"),
    ("reasoning", "again", None, None),
    (
        "text",
        "\n\nsee\n[one 1.png](https://chat.example/output/111)\n"
        "\n[two.png](https://chat.example/output/222)\n"
        " <think> and 日本 <thin",
        None,
        None,
    ),
]
# Streams that differ in more than the words said.
TO_CUT = {
    "rich": RICH,
    **{
        name: only(name)
        for name in ("reasoning", "tool_call", "omni_router", "stop", "text_file_in", "image_in")
    },
}


def test_rich_stream():
    assert follow(RICH).given == RICH_GIVEN


@pytest.mark.parametrize("merge", [1, 4])
@pytest.mark.parametrize("name", TO_CUT)
def test_cut_after_any_byte_and_continued_from_the_log(name, merge):
    stream = TO_CUT[name]
    whole, log = follow(stream), b"".join(log_of(updates_of(stream), merge))
    assert whole.given
    # All up to the final answer; after that, there is no connection to lose.
    for at in range(stream.rindex(b" " * 4096) + 1):
        got = follow(stream[:at], log)
        assert got.given == whole.given, at
        assert got.answer.final == whole.answer.final
        assert got.answer.seen_length == whole.answer.seen_length


@pytest.mark.parametrize("name", ["rich", "tool_call"])
def test_cut_again_after_any_byte_of_the_log(name):
    stream = TO_CUT[name]
    whole, entries = follow(stream), log_of(updates_of(stream), 3)
    log = b"".join(entries)
    lines = stream[: stream.rindex(b" " * 4096)].splitlines(keepends=True)
    for taken in range(0, len(lines), 5):
        for at in range(0, len(log), 1 if taken in (0, 10) else 7):
            follower = Follower().take(JsonLinesDecoder().feed(b"".join(lines[:taken])))
            follower.answer.take(Replay())
            first = EventStreamDecoder()
            follower.take(first.feed(log[:at]))
            # The next connection begins after the last event that came whole.
            follower.take(EventStreamDecoder().feed(b"".join(entries[first.seq :])))
            assert follower.given == whole.given, (taken, at)


def test_recorded_stream_that_broke_off_goes_on_in_its_recorded_log():
    stream = only("resume")
    (log,) = (x.body for x in capture("resume") if x.kind == "text/event-stream")
    words = [("text", "".join(f"w{n} " for n in range(40)), None, None)]
    for at in range(len(stream) + 1):
        assert follow(stream[:at], log).given == words


def test_stored_answer_in_place_of_a_log_that_is_gone():
    """What is stored has the text in other pieces, and not the spaces around it."""
    stored, complete = stored_events(answers("tool_call")[-1])
    assert complete
    stream = only("tool_call")
    for at in range(stream.rindex(b" " * 4096)):
        follower = follow(stream[:at])
        follower.answer.take(Replay())
        assert follower.take(stored).given == follow(stream).given, at


# --- odd events -----------------------------------------------------------------------


def test_halves_of_an_emoji_in_two_tokens():
    assert tell(Text("a\ud83c"), Text("\udf89b")).given == [("text", "a🎉b", None, None)]


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([Text("a\ud83c"), Text("b")], "a\ufffdb"),
        ([Text("a\udf89b")], "a\ufffdb"),
        ([Text("a\ud83c"), FinalAnswer("", True)], "a\ufffd"),
        ([Text("a\ud83c"), FinalAnswer("a\ud83c", False)], "a\ufffd"),
        ([FinalAnswer("a\ud83c", False)], "a\ufffd"),
    ],
)
def test_half_of_an_emoji_alone_can_be_printed(events, text):
    assert tell(*events).joined("text") == text


@pytest.mark.parametrize(
    "between",
    [[File("f", "1")], [ToolCall("u", "t", {}), ToolResult("u", "t", "x")]],
    ids=["file", "tool"],
)
def test_half_of_an_emoji_before_something_else_is_not_given_twice(between):
    events: list[Event] = [Text("a\ud83c"), *between, Text("b"), FinalAnswer("b", False)]
    whole = tell(*events)
    for at in range(len(events)):
        follower = tell(*events[:at])
        follower.answer.take(Replay())
        assert follower.take(events).given == whole.given, at


@pytest.mark.parametrize("cut", [1, 2], ids=["between the halves", "after them"])
def test_halves_of_an_emoji_in_two_pieces_of_reasoning_are_given_once(cut):
    pieces: list[Event] = [
        Reasoning("a\ud83c"),
        Reasoning("\udf89b"),
        Text("c"),
        FinalAnswer("c", False),
    ]
    follower = tell(*pieces[:cut])
    follower.answer.take(Replay())
    follower.take([Reasoning("a🎉b"), Text("c"), FinalAnswer("c", False)])
    assert follower.joined("reasoning") == "a🎉b"
    assert follower.joined("text") == "c"


def test_nuls_are_nowhere_in_the_answer():
    follower = tell(Text("a\0b\0"), Text("\0"), FinalAnswer("a\0b", False))
    assert follower.given == [("text", "ab", None, None)]


def test_answer_that_was_never_streamed():
    text = "<think>why</think>Because."
    assert tell(FinalAnswer(text, False)).given == [
        ("reasoning", "why", None, None),
        ("text", "Because.", None, None),
    ]


def test_only_the_end_was_not_streamed():
    assert tell(Text("Hello"), FinalAnswer("Hello there", False)).joined("text") == "Hello there"


def test_after_a_tool_the_final_answer_is_the_last_part_alone():
    events = (Text("Looking."), ToolCall("u", "t", {}), ToolResult("u", "", "x"))
    found = tell(*events, Text("Found."), FinalAnswer("Found.", False))
    assert found.joined("text") == "Looking.\n\nFound."
    assert tell(*events, FinalAnswer("Found.", False)).joined("text") == "Looking.\n\nFound."
    assert tell(*events, FinalAnswer("Looking.", True)).joined("text") == "Looking."


@pytest.mark.parametrize("final", ["w0", "w0 w1", "w0 w1 ", "", "other words"])
def test_interrupted_answer_adds_nothing(final):
    events = (Text("w0 "), Text("w1 "), FinalAnswer(final, True))
    assert tell(*events).joined("text") == "w0 w1 "


@pytest.mark.parametrize("seen", ["Looking it up.", "Looking", "L"])
def test_stop_on_the_web_page_while_a_tool_works_adds_nothing(seen):
    """chat-ui cuts the whole text, not its last part, where the page was when it was stopped."""
    tool = (ToolCall("u", "t", {}), ToolResult("u", "", "", "Aborted by user"))
    assert (
        tell(Text("Looking it up."), *tool, FinalAnswer(seen, True)).joined("text")
        == "Looking it up."
    )


def test_final_answer_without_the_spaces_that_were_streamed():
    assert tell(Text(" a "), Text("b\n"), FinalAnswer("a b", False)).joined("text") == " a b\n"


def test_nothing_known_is_overwritten_by_nothing():
    answer = new_answer()
    for router in (
        RouterMetadata("default", "a/b", ""),
        RouterMetadata("", "", "novita"),
        RouterMetadata("", "", ""),
    ):
        answer.take(router)
    assert answer.router == RouterMetadata("default", "a/b", "novita")
    answer.take(Title("T"))
    answer.take(Title(""))
    assert answer.title == "T"


def test_result_without_a_name_has_that_of_its_call():
    assert tell(ToolCall("u", "search", {}), ToolResult("u", "", "x")).given[-1] == (
        "tool_result",
        "x",
        "u",
        "search",
    )


def test_a_tools_failure_is_told_to_llm():
    (out,) = new_answer().take(ToolResult("u", "search", "", "no network"))
    assert (out.chunk, out.server_executed) == ("Error: no network", True)
    assert out.provider_metadata == {"huggingchat": {"error": "no network"}}


def test_length_seen_is_counted_as_javascript_does():
    answer = new_answer()
    for event in (Text("<think>💡</think>"), Text("a🎉\0\0"), Text("é\ud83c")):
        answer.take(event)
    assert answer.seen_length == len("<think>") + 2 + len("</think>") + 1 + 2 + 1


def test_last_piece_is_text_or_not():
    answer = new_answer()
    assert not answer.last_is_text
    answer.take(Text("a"))
    assert answer.last_is_text
    answer.take(ToolResult("u", "t", ""))
    assert not answer.last_is_text
    answer.take(Text("b"))
    answer.take(Finished())
    assert answer.last_is_text


# --- stored answers -------------------------------------------------------------------


def answers(scenario: str) -> list[dict[str, Any]]:
    """The answers in the last look at a scenario's conversation."""
    looks = [x for x in capture(scenario) if x.method == "GET" and "/api/v2/conv" in x.path]
    messages = looks[-1].json()["json"]["messages"]
    return [message for message in messages if message["from"] == "assistant"]


STORED = [
    "branch",
    "image_in",
    "omni_router",
    "reasoning",
    "regenerate",
    "resume",
    "switch_model",
    "text_file_in",
    "tool_call",
    "two_turns",
]


@pytest.mark.parametrize("scenario", STORED)
def test_stored_answer_tells_what_the_stream_told(scenario):
    bodies = [b for name, b in STREAMS.items() if name.rpartition("-")[0] == scenario]
    if scenario == "resume":
        bodies = [stream_of([json.loads(line[6:]) for line in log_lines()])]
    told = answers(scenario)
    assert len(told) == len(bodies)
    for message, stream in zip(told, bodies, strict=True):
        events, complete = stored_events(message)
        assert complete
        assert is_settled(message)
        follower, streamed = tell(*events), follow(stream)
        assert [(o[0], o[1].strip()) for o in follower.given] == [
            (o[0], o[1].strip()) for o in streamed.given
        ]
        text = "".join(event.text for event in events if isinstance(event, Text))
        assert text == message["content"]


def log_lines() -> list[bytes]:
    (log,) = (x.body for x in capture("resume") if x.kind == "text/event-stream")
    return [line for line in log.splitlines() if line.startswith(b'data: {"type"')]


def test_stored_answer_is_found_by_its_runs_id():
    look = capture("two_turns")[-1].json()
    for message in answers("two_turns"):
        assert stored_answer(look, message["generationId"]) == message
    assert stored_answer(look, "another") is None
    assert stored_answer(look, None) is None
    assert stored_answer({"json": {"messages": [None, 5, {"generationId": None}]}}, None) is None
    assert stored_answer("nonsense", "another") is None


def test_stored_failure():
    events, complete = stored_events(answers("upstream_error_500")[-1])
    assert Failed("500 upstream says 500", 500) in events
    assert not complete
    assert is_settled(answers("upstream_error_500")[-1])


def test_stored_answer_that_was_stopped():
    events, complete = stored_events(answers("stop")[-1])
    assert complete
    assert events[-1] == FinalAnswer("", True)
    assert tell(*events).joined("text") == "w0 w1 w2 w3 w4 w5 w6"


def test_lengths_of_stored_pieces_are_javascripts():
    called = {"type": "tool", "subtype": "call", "uuid": "u", "call": {"name": "t"}}
    message = {
        "content": "a🎉b💡c",
        "updates": [{"type": "stream", "len": 3}, called, {"type": "stream", "len": 2}],
    }
    assert stored_events(message) == (
        [Text("a🎉"), ToolCall("u", "t", {}), Text("b\ud83d"), Text("\udca1c")],
        False,
    )
    assert tell(*stored_events(message)[0]).joined("text") == "a🎉\n\nb💡c"


@pytest.mark.parametrize(
    "updates",
    [
        None,
        5,
        {},
        [],
        [None],
        [{"type": "stream"}],
        [{"type": "stream", "len": -1}],
        [{"type": "stream", "len": "9"}],
        [{"type": "stream", "len": 10**400}],
        [{"type": "stream", "token": "all of it"}],
    ],
)
def test_stored_text_is_whole_whatever_the_marks_say(updates):
    events, complete = stored_events({"content": "all of it", "updates": updates})
    assert events == [Text("all of it")]
    assert not complete


def test_stored_reasoning_of_an_older_server_comes_first():
    events, _ = stored_events({"content": "b", "reasoning": "a", "updates": []})
    assert events == [Reasoning("a"), Text("b")]


def test_run_that_ended_without_a_final_answer_is_interrupted():
    message = {"content": "a", "updates": [{"type": "status", "status": "finished"}]}
    assert stored_events(message) == ([Text("a"), FinalAnswer("", True)], True)


@pytest.mark.parametrize(
    ("message", "settled"),
    [
        ({"updates": [{"type": "status", "status": "finished"}]}, True),
        ({"updates": [{"type": "status", "status": "error"}]}, True),
        ({"updates": [{"type": "status", "status": "started"}]}, False),
        ({"updates": [{"type": "finalAnswer", "text": "a"}]}, False),
        ({"updates": "finished"}, False),
        ({}, False),
        (None, False),
    ],
)
def test_run_is_over_when_its_end_is_stored(message, settled):
    assert is_settled(message) is settled
