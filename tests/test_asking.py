"""Questions of tools, and tools at work, as a person at a terminal meets them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, cast

import llm
import pytest
from chat_ui import FORM, ChatUI, Fault, wrong_value
from helpers import (
    AT_ONCE,
    calls,
    default_signals,
    logged,
    make_logs,
    only_conversation,
    run,
    sends,
    soon,
    wait_for,
)
from hypothesis import example, given
from hypothesis import strategies as st

import llm_huggingchat
from llm_huggingchat import (
    Answer,
    Answered,
    AskedField,
    Credentials,
    Elicitation,
    ElicitationResolved,
    Event,
    Failed,
    File,
    FinalAnswer,
    Finished,
    Keyboard,
    Paragraphs,
    Parked,
    Plan,
    Progress,
    Questions,
    Reasoning,
    Replay,
    Resumed,
    Run,
    Screen,
    Server,
    State,
    Text,
    ToolCall,
    ToolResult,
    TurnRequest,
    about_address,
    default_of,
    event_of,
    field_words,
    fit,
    is_settled,
    leads_to,
    stored_events,
    typed_value,
)


def asked_of(*fields: dict[str, Any], **more: Any) -> Elicitation:
    """The question in an event of the server's."""
    request = {"elicitationId": "q", "server": "Exa", "mode": "form", "message": "Which?"}
    request |= {"fields": list(fields)} | more
    event = event_of({"type": "elicitation", "subtype": "request", "request": request})
    assert isinstance(event, Elicitation)
    return event


def field_of(**told: Any) -> AskedField:
    (found,) = asked_of({"name": "n", "required": True} | told).fields
    return found


# --- what a question is ---------------------------------------------------------------


def test_form_is_read() -> None:
    asked = asked_of(*FORM)
    assert [(each.name, each.kind, each.required) for each in asked.fields] == [
        (told["name"], told["kind"], told["required"]) for told in FORM
    ]
    assert asked.mode == "form"
    assert asked.question == "Exa: Which?"


def test_time_that_the_server_waits_is_read_in_seconds() -> None:
    request = {"elicitationId": "q", "mode": "form", "message": "Which?", "fields": []}
    event = {"type": "elicitation", "subtype": "request", "request": request}
    for told, until in ((1_795_651_200_000, 1_795_651_200.0), (None, None), ("soon", None)):
        asked = event_of(event | {"expiresAt": told})
        assert isinstance(asked, Elicitation)
        assert asked.until == until


TEXT = {"kind": "string", "name": "n", "required": True}
PICK = {"kind": "select", "name": "n", "required": True, "multiple": False}


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ([TEXT, TEXT], {}),
        ([TEXT | {"kind": "colour"}], {}),
        ([TEXT | {"name": ""}], {}),
        ([TEXT | {"name": 5}], {}),
        ([5], {}),
        ([PICK], {}),
        ([PICK | {"options": []}], {}),
        ([PICK | {"options": [{"label": "x"}]}], {}),
        ([PICK | {"options": [{"value": "x"}, 5]}], {}),
        ([TEXT | {"name": str(number)} for number in range(101)], {}),
        ([], {"mode": "telepathy"}),
        ([], {"elicitationId": "a/../b"}),
        ([], {"mode": "url"}),
        ([], {"mode": "url", "url": "javascript:alert(1)"}),
        ([], {"mode": "url", "url": "https://example.org/a b"}),
        ([], {"mode": "url", "url": "https://exa\u202emple.org/"}),
        ([], {"mode": "url", "url": "https://example.org/" + "a" * 2000}),
        ([PICK | {"options": [{"value": str(number)} for number in range(1001)]}], {}),
        ([PICK | {"options": [{"value": "v" * 300_000}]}], {}),
        ([TEXT | {"name": "n" * 300_000}], {}),
    ],
)
def test_question_that_makes_no_sense_can_not_be_answered_here(fields: Any, more: Any) -> None:
    asked = asked_of(*fields, **more)
    assert asked.mode == ""
    assert "Which?" in asked.question


def test_default_is_no_longer_than_what_is_typed() -> None:
    """To see whether it is an address takes the square of its length: days, for a megabyte."""
    field = field_of(kind="string", format="email", default="a@" + "." * 10_000)
    assert field.default is None
    many = field_of(kind="select", options=[{"value": "x"}], multiple=True, default=["x"] * 1000)
    assert many.default is None


def test_words_of_a_question_are_one_line_each_and_move_no_cursor() -> None:
    evil = "a\r\n\x1b[2Jb\u202e"
    option = {"value": evil, "label": evil}
    told = {"title": evil, "description": evil, "options": [option], "default": evil}
    asked = asked_of(PICK | told, server=evil, message=evil)
    above, words = field_words(asked.fields[0])
    for text in (asked.question, asked.server, asked.message, words, *above):
        assert text.isprintable(), text
    assert typed_value(asked.fields[0], "1") == evil  # it is sent back as it was


# --- what is typed --------------------------------------------------------------------

WHOLE = {"kind": "number", "integer": True, "minimum": 1, "maximum": 8}
NUMBER = {"kind": "number", "integer": False}
NAME = {"kind": "string", "minLength": 2, "maxLength": 4}
MAIL = {"kind": "string", "format": "email"}
DAY = {"kind": "string", "format": "date"}
WHEN = {"kind": "string", "format": "date-time"}
SITE = {"kind": "string", "format": "uri"}
YES = {"kind": "boolean"}
ONE = {"kind": "select", "options": [{"value": v, "label": w} for v, w in ("eE", "bB", "21")]}
SOME = ONE | {"multiple": True, "maxItems": 2}
COMMA = {"options": [{"value": "f", "label": "Fish, fried"}, {"value": "s", "label": "Soup"}]}
SAME = {"options": [{"value": "a", "label": "EE"}, {"value": "b", "label": "Ee"}]}


@pytest.mark.parametrize(
    ("told", "typed", "value"),
    [
        (NAME, " Ada ", "Ada"),
        (NAME, "👩", "👩"),
        (MAIL, "ada@example.org", "ada@example.org"),
        (DAY, "2024-02-29", "2024-02-29"),
        (WHEN, "2026-11-26T09:30:00Z", "2026-11-26T10:30:00+01:00"),
        (WHEN, "2026-11-26 09:30", "2026-11-26T09:30:00+01:00"),
        (WHEN, "2026-11-26 09:30-05:00", "2026-11-26T15:30:00+01:00"),
        (SITE, "https://example.org/a?b#c", "https://example.org/a?b#c"),
        (WHOLE, "8", 8),
        (WHOLE, "1", 1),
        (WHOLE, "+3", 3),
        (NUMBER, "-1.5e2", -150.0),
        (NUMBER, "7", 7),
        (NUMBER, "1" * 21, 1.1111111111111111e20),
        (YES, "Y", True),
        (YES, "true", True),
        (YES, "no", False),
        (ONE, "E", "e"),
        (ONE, "b", "b"),
        (ONE, "3", "2"),
        (ONE, "1", "2"),  # a name counts before a number
        (SOME, "e, B", ["e", "b"]),
        (SOME, "e,e", ["e"]),
        (SOME | COMMA, "Fish, fried", ["f"]),
        (SOME | {"minItems": 2}, "e, b", ["e", "b"]),
    ],
)
def test_what_is_typed_becomes_a_value(
    monkeypatch: pytest.MonkeyPatch, told: Any, typed: str, value: Any
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        found = typed_value(field_of(**told), typed)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("told", "typed", "problem"),
    [
        (NAME, "A", "it is 1 long, and has to have 2 to 4 characters"),
        (NAME, "👩👩👩", "it is 6 long"),  # as chat-ui counts
        (NAME, "", "has to be filled in"),
        (NAME, "a\x1b[Db", "control characters"),
        (NAME, "\udc80b", "control characters"),  # half a character
        (MAIL, "ada", "not an e-mail address"),
        (MAIL, "a b@example.org", "not an e-mail address"),
        (DAY, "2023-02-29", "not a date"),
        (DAY, "tomorrow", "not a date"),
        (WHEN, "2026-11-26", "not date and time"),
        (WHEN, "09:30", "not date and time"),
        (SITE, "example", "not an address"),
        (WHOLE, "9", "1 to 8"),
        (NUMBER | {"minimum": 0}, "-1", "it has to be at least 0"),
        (WHOLE, "1.5", "no whole number"),
        (WHOLE, "٣", "no whole number"),
        (WHOLE | {"maximum": None}, "9" * 17, "too large"),
        (NUMBER, "nan", "no number"),
        (NUMBER, "1e999", "too large"),
        (NUMBER, "0x10", "no number"),
        (YES, "maybe", "type y or n"),
        (ONE, "4", "none of them"),
        (ONE, "0", "none of them"),
        (ONE | SAME, "ee", "none of them"),  # it could be either
        (ONE, "e, b", "none of them"),
        (SOME, "e, b, 3", "at most 2"),
    ],
)
def test_what_is_wrong_is_said(told: Any, typed: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        typed_value(field_of(**told), typed)


@pytest.mark.parametrize(
    ("told", "default"),
    [
        (NAME | {"default": "Ada"}, "Ada"),
        (NAME | {"default": "A"}, None),
        (NAME | {"default": ""}, None),
        (NAME | {"default": 5}, None),
        (DAY | {"default": "2026-09-01"}, "2026-09-01"),
        (WHOLE | {"default": 2}, 2),
        (WHOLE | {"default": 9}, None),
        (WHOLE | {"default": True}, None),
        (WHOLE | {"default": 2.5}, None),
        (NUMBER | {"default": 10**400}, None),
        (YES | {"default": False}, False),
        (YES | {"default": "yes"}, None),
        (ONE | {"default": "b"}, "b"),
        (ONE | {"default": "B"}, None),
        (SOME | {"default": ["e", "x"]}, ["e"]),
        (SOME | {"default": "e"}, None),
        (SOME | {"default": ["e", ["x"]]}, None),
    ],
)
def test_nothing_typed_is_the_default_if_the_field_allows_it(told: Any, default: Any) -> None:
    asked = field_of(**told, required=False)
    assert default_of(asked) == default
    assert typed_value(asked, " ") == default
    if default is not None:
        assert typed_value(field_of(**told), "") == default  # also where one is required
    assert ("[" in field_words(asked)[1]) == (default is not None)


KINDS = [NAME, MAIL, DAY, WHEN, SITE, WHOLE, NUMBER, YES, ONE, SOME]


@given(st.sampled_from(KINDS), st.text() | st.from_regex(r"[0-9eE+.,: @-]{1,12}", fullmatch=True))
@example(WHEN, "0001-01-01 00:00")
@example(WHOLE, "1" * 5000)
@example(SITE, "EE4:e,")
def test_whatever_is_typed_is_refused_here_or_taken_by_the_server(told: Any, typed: str) -> None:
    asked = field_of(**told)
    try:
        value = typed_value(asked, typed)
    except ValueError:
        return
    told = {"name": "n", "required": True, "multiple": False} | told
    assert wrong_value(told, value) is None


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (WHOLE, "n (a whole number, 1 to 8): "),
        (WHOLE | {"minimum": 0}, "n (a whole number, 0 to 8): "),
        (WHOLE | {"maximum": None}, "n (a whole number, at least 1): "),
        (NAME | {"maxLength": None}, "n (text, at least 2 characters): "),
        (NAME | {"minLength": None, "title": "Name"}, "Name (text, at most 4 characters): "),
        (NAME | {"minLength": 0, "maxLength": None, "required": False}, "n (text, optional): "),
        (YES | {"default": True}, "n (y or n) [y]: "),
        (YES | {"default": False}, "n (y or n) [n]: "),
        (
            SOME | {"default": ["b", "e"]},
            "n (some of them, with commas between, at most 2) [E, B]: ",
        ),
    ],
)
def test_words_before_what_is_typed(told: Any, words: str) -> None:
    assert field_words(field_of(**told))[1] == words


def test_as_many_fields_as_a_form_may_have() -> None:
    asked = asked_of(*(TEXT | {"name": str(number)} for number in range(100)))
    assert (asked.mode, len(asked.fields)) == ("form", 100)


def test_where_an_address_leads_is_said() -> None:
    assert about_address("https://example.org/x") == "It leads to example.org."
    assert about_address("https://bank.example@evil.example:8443/") == (
        "It leads to evil.example:8443."
    )
    doubtful = about_address("http://xn--pple-43d.localhost/")
    assert "not encrypted" in doubtful
    assert "imitate" in doubtful
    assert "private network" in doubtful
    assert leads_to("https://[::1]:8/") == "::1:8"
    assert "private network" in about_address("https://[::1]:8/")
    for number in ("127.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "017700000001", "localhost."):
        assert "private network" in about_address(f"https://{number}/")
    assert "private" not in about_address("https://1.1.1.1/")
    assert "private" not in about_address("https://web3.example1/")


# --- text before and after a tool -----------------------------------------------------

CALL, BACK = ToolCall("u", "t", {}), ToolResult("u", "t", "x")


def through(*events: Event) -> str:
    """The text that comes out, a tool as |."""
    stage = Paragraphs()
    given = [out for event in events for out in stage.feed(event)] + stage.end()
    shown = {ToolCall: "|", File: "\n[f](x)\n"}
    return "".join(e.text if isinstance(e, Text) else shown.get(type(e), "") for e in given)


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ("a", "b", "a|\n\nb"),
        ("a\n", "b", "a\n|\nb"),
        ("a\n\n", "b", "a\n\n|b"),
        ("a", "\nb", "a|\n\nb"),
        ("a", "\n\nb", "a|\n\nb"),
        ("a\n", " \n  b", "a\n| \n  b"),
        ("a\n \n\n", "b", "a\n \n\n|b"),
        ("", "b", "|b"),
        ("\n", "b", "\n|b"),
        ("a", "", "a|"),
        ("a", "\n", "a|\n"),
    ],
)
def test_text_after_a_tool_is_set_apart(before: str, after: str, wanted: str) -> None:
    assert through(Text(before), CALL, BACK, Text(after), FinalAnswer("", False)) == wanted
    one_by_one = [[Text(char) for char in text] for text in (before, after)]
    assert through(*one_by_one[0], CALL, BACK, *one_by_one[1]) == wanted


def test_link_to_a_file_after_a_tool_is_set_apart() -> None:
    assert through(Text("a"), CALL, BACK, File("f", "x"), Text("b")) == "a|\n\n[f](x)\nb"
    assert through(CALL, BACK, File("f", "x"), CALL, Text("b")) == "|\n[f](x)\n|\nb"


def test_line_ends_between_two_tools_count() -> None:
    assert through(Text("a"), CALL, BACK, Text("\n"), CALL, BACK, Text("b")) == "a|\n|\nb"


def texts(events: Sequence[Event]) -> str:
    answer = Answer(lambda file: "x")
    return "".join(o.chunk for e in events for o in answer.take(e) if o.type == "text")


def test_replays_and_what_is_stored_give_the_same_text() -> None:
    run: list[Event] = [Text("a"), CALL, BACK, Text("b"), Text("c")]
    wanted = "a\n\nbc"
    assert texts([*run, FinalAnswer("bc", False)]) == wanted
    assert texts([*run[:4], Replay(), *run, FinalAnswer("bc", False)]) == wanted
    assert texts([*run[:3], FinalAnswer("bc", False)]) == wanted  # it was not streamed
    call = {"type": "tool", "subtype": "call", "uuid": "u", "call": {"name": "t"}}
    final = {"type": "finalAnswer", "text": "bc", "interrupted": False}
    streamed = {"type": "stream", "len": 1}
    for content, updates in (
        ("abc", [streamed, call, {"type": "stream", "len": 2}, final]),
        ("a\n\nbc", [streamed, call, final]),  # as chat-ui merges what was not streamed
    ):
        assert texts(stored_events({"content": content, "updates": updates})[0]) == wanted


# --- a run with questions -------------------------------------------------------------

ASKED = Elicitation("q", "Exa", "Which?", "form")


def running() -> Run:
    run = Run("g", 0.0)
    run.next(0.0)
    for event in (CALL, ASKED):
        assert run.took(event, 0.0) == [event]
    return run


def test_run_goes_on_while_a_tool_waits_for_an_answer() -> None:
    run = running()
    assert run.state is State.TAKEN
    assert run.outcome is None
    assert run.took(ASKED, 0.0) == []  # a log tells it again
    assert run.took(ElicitationResolved("q", "user"), 0.0) == [ElicitationResolved("q", "user")]
    assert run.took(ElicitationResolved("q", "user"), 0.0) == []
    assert run.took(ASKED, 0.0) == []
    run.took(FinalAnswer("x", False), 0.0)
    assert run.outcome == FinalAnswer("x", False)


@pytest.mark.parametrize("end", [FinalAnswer("", True), Failed("no more", 500)])
def test_question_of_a_run_that_was_stopped_is_closed_by_its_end(end: Event) -> None:
    run = running()
    assert run.took(end, 0.0) == [ElicitationResolved("q", "aborted"), end]
    assert run.outcome is end


def test_run_that_ends_with_a_question_is_parked_and_stored() -> None:
    run = running()
    assert run.took(Finished(), 0.0) == [run.outcome]
    assert run.outcome == Parked((ASKED,))
    assert not run.is_settled
    run.ended(0.0)
    assert run.is_settled
    assert not run.died


def test_run_that_ends_with_two_questions_is_parked_with_both() -> None:
    run = running()
    other = Elicitation("r", "Exa", "When?", "form")
    run.took(other, 0.0)
    run.took(Finished(), 0.0)
    assert run.outcome == Parked((ASKED, other))


def test_run_that_ends_with_its_question_closed_is_not_parked() -> None:
    run = running()
    run.took(ElicitationResolved("q", "expired"), 0.0)
    run.took(Finished(), 0.0)
    assert run.outcome == FinalAnswer("", True)


QUESTION = {"elicitationId": "q", "server": "Exa", "message": "Which?", "mode": "form"}
FIRST = [
    {"type": "status", "status": "started"},
    {"type": "stream", "len": 2},
    {"type": "elicitation", "subtype": "request", "request": QUESTION},
    {"type": "status", "status": "finished"},
]
SECOND = [
    {"type": "elicitation", "subtype": "resolved", "elicitationId": "q", "resolution": "user"},
    {"type": "stream", "len": 1},
]
END = [
    {"type": "finalAnswer", "text": "b", "interrupted": False},
    {"type": "status", "status": "finished"},
]


def test_stored_answer_of_two_runs() -> None:
    parked = {"content": "💡", "updates": FIRST}
    assert is_settled(parked)
    assert Finished() in stored_events(parked)[0]
    going_on = {"content": "💡b", "updates": FIRST + SECOND}
    assert not is_settled(going_on)
    assert stored_events(going_on)[1] is False
    whole = {"content": "💡b", "updates": FIRST + SECOND + END}
    assert is_settled(whole)
    events, complete = stored_events(whole)
    assert complete
    assert [e.text for e in events if isinstance(e, Text)] == ["💡", "b"]
    assert events[-1] == FinalAnswer("", False)
    resumed = [ElicitationResolved("q", "user"), Text("b"), FinalAnswer("", False)]
    assert stored_events(whole, 4) == (resumed, True)
    assert not is_settled(parked, 4)
    assert stored_events(parked, 4) == ([], False)
    thought = whole | {"reasoning": "Hm."}
    assert stored_events(thought)[0][0] == Reasoning("Hm.")
    assert stored_events(thought, 4) == (resumed, True)  # the run before it gave that


def test_text_of_a_resumed_run_is_no_repetition() -> None:
    first: list[Event] = [Text("ab"), CALL]
    second: list[Event] = [Resumed(2), BACK, Text("ab"), Replay(), BACK, Text("abc")]
    assert texts([*first, *second, FinalAnswer("abc", False)]) == "ab\n\nabc"
    answer = Answer(lambda file: "x")
    for event in (*first, *second):
        answer.take(event)
    assert answer.seen_length == 5  # the server counts from the answer's beginning


def test_resumed_run_that_streams_nothing() -> None:
    assert texts([Text("ab"), Resumed(2), FinalAnswer("cd", False)]) == "abcd"
    answer = Answer(lambda file: "x")
    for event in (Text("ab"), Resumed(2), FinalAnswer("", True)):
        answer.take(event)
    assert answer.begun


def test_files_of_a_resumed_run_are_counted_anew() -> None:
    one, two, three = (File(name, name) for name in ("one", "two", "three"))
    given = texts([one, Resumed(0), two, Replay(), two, three])
    assert re.findall(r"\[(.*?)\]", given) == ["one", "two", "three"]


# --- tools at work --------------------------------------------------------------------


class Shown(Screen):
    """A screen that keeps what it shows, with the codes that matter as characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.shown = ""

    def _write(self, text: str) -> None:
        self.shown += re.sub(r"\x1b\[[02]m", "", text.replace("\r\x1b[2K", "<"))

    def _columns(self) -> int:
        return 40

    def say(self, text: str, type: str = "text") -> None:
        """As llm does: it prints what it is given."""
        self.gives(llm.parts.StreamEvent(type=type, chunk=text))
        self.shown += text


def test_tool_is_shown_between_two_pieces_of_text() -> None:
    screen = Shown()
    screen.say("Let me look.")
    screen.tell(ToolCall("u", "search", {"q": "é\x1b[2J"}))
    screen.tell(Progress("u", 1, 4, "halfway"))
    screen.tell(Progress("u", 1, 4, "halfway"))  # a log tells it again
    screen.tell(ToolCall("u", "search", {"q": "é"}))
    screen.tell(ToolResult("u", "search", "x"))
    screen.tell(Progress("u", 2, 4))
    screen.say("\n\nFound.")
    assert screen.shown == (
        'Let me look.\nTool: search {"q": "é\\u001b[2J"}'
        '<Tool: search {"q": "é\\u001…  1/4 halfway\n\nFound.'
    )


def test_tool_that_fails_and_an_answer_that_begins_or_ends_with_one() -> None:
    screen = Shown()
    with screen:
        screen.tell(CALL)
        screen.tell(ToolResult("u", "", "", "no\nnetwork"))
        screen.say("Sorry.")
        screen.tell(ToolCall("v", "t", {}))
    assert screen.shown == "Tool: t\nTool: t failed: no network\nSorry.\nTool: t\n"


@pytest.mark.parametrize(
    ("said", "ending", "shown"),
    [
        ("Let me", llm.ModelError, "Let me\n"),
        ("Let me.\n", llm.ModelError, "Let me.\n"),
        ("Let me", KeyboardInterrupt, "Let me"),
    ],
)
def test_error_has_a_line_of_its_own(said: str, ending: type[BaseException], shown: str) -> None:
    screen = Shown()
    screen.say(said)
    with pytest.raises(ending), screen:
        raise ending
    assert screen.shown == shown


def test_tools_side_by_side_share_a_line() -> None:
    screen = Shown()
    for event in (CALL, ToolCall("v", "s", {}), Progress("u", 1), Progress("v", 2)):
        screen.tell(event)
    screen.tell(ToolResult("v", "", "", "oh"))
    screen.tell(Progress("u", 2))
    assert screen.shown == (
        "Tool: t\nTool: s\nTools: t 1<Tools: t 1, s 2<Tool: s failed: oh\nTool: t 2"
    )


def test_hidden_tools_and_a_text_that_goes_elsewhere() -> None:
    screen = Shown(tools=False)
    screen.tell(CALL)
    assert screen.shown == ""
    screen = Shown(mixed=False)
    screen.gives(llm.parts.StreamEvent(type="text", chunk="Let me look."))
    screen.tell(CALL)
    screen.gives(llm.parts.StreamEvent(type="text", chunk="\n\nFound."))
    assert screen.shown == "Tool: t\n"


def test_thinking_that_is_hidden_moves_nothing() -> None:
    screen = Shown(tools=False)
    screen.make_room()
    screen.closed("Declined.")
    screen.gives(llm.parts.StreamEvent(type="reasoning", chunk="Hm."))
    screen.say("\n\nFine.")
    assert screen.shown == "Declined.\n\nFine."


def test_progress_of_nothing_yet_is_shown() -> None:
    screen = Shown()
    screen.tell(CALL)
    screen.tell(Progress("u", 0, 4, "begun"))
    assert screen.shown == "Tool: t<Tool: t  0/4 begun"


def test_terminal_that_cannot_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    screen = Shown()
    screen.tell(CALL)
    screen.tell(Progress("u", 1, 4))
    assert screen.shown == "Tool: t"


def test_progress_of_one_of_several_tools_leaves_its_line() -> None:
    screen = Shown()
    for event in (ToolCall("v", "s", {}), CALL, Progress("u", 1)):
        screen.tell(event)
    assert screen.shown == "Tool: s\nTool: t\nTools: t 1"


def test_two_questions_at_once() -> None:
    screen = Shown()
    screen.make_room()
    screen.make_room()
    screen.tell(CALL)
    screen.closed("Declined.")
    assert "Tool" not in screen.shown  # the other one is still there
    screen.closed("Answered.")
    assert screen.shown == "Declined.\nAnswered.\nTool: t"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen_of(monkeypatch: pytest.MonkeyPatch, stream: bool = True, **prompt: Any) -> Screen:
    """The screen of a prompt on llm's command line, where a person looks at standard error."""
    monkeypatch.setattr(llm_huggingchat, "on_command_line", lambda: True)
    monkeypatch.setattr(sys, "stderr", Terminal())
    screen = Screen.of(llm.Prompt("x", llm.get_model("hf-llama"), **prompt), stream)
    assert screen
    screen.gives(llm.parts.StreamEvent(type="text", chunk="Let me look."))
    screen.tell(CALL)
    return screen


def on_screen() -> str:
    return re.sub(r"\x1b\[[0-9]*m", "", cast(io.StringIO, sys.stderr).getvalue())


@pytest.mark.parametrize(("stream", "before"), [(True, "\n"), (False, "")])
def test_tool_has_a_line_of_its_own_after_text_that_is_there(
    monkeypatch: pytest.MonkeyPatch, stream: bool, before: str
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    screen_of(monkeypatch, stream)
    assert on_screen() == f"{before}Tool: t"


def test_tool_has_a_line_of_its_own_after_text_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    out, into = os.pipe()  # to `tee`, perhaps
    with open(out), open(into, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        screen_of(monkeypatch)
    assert on_screen() == "\nTool: t"


def test_tool_has_a_line_of_its_own_after_those_that_llm_ran(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = [llm.ToolResult(name="add", output="3")]
    screen_of(monkeypatch, tool_results=results)
    assert on_screen() == "\nTool: t"


def test_tools_are_hidden_as_thinking_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen_of(monkeypatch, hide_reasoning=True)
    assert on_screen() == ""


def test_what_happens_while_a_person_types_is_shown_after_it() -> None:
    screen = Shown()
    screen.tell(CALL)
    screen.make_room()
    screen.tell(ToolCall("v", "s", {}))
    assert screen.shown == "Tool: t\n"
    screen.closed("Declined.")
    assert screen.shown == "Tool: t\nDeclined.\nTool: s"


@pytest.fixture
def typist(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, str]]:
    """Have a question answered with these lines: the answer, and what was shown."""

    def answer(asked: Elicitation, *lines: str | ValueError | None) -> tuple[Any, str]:
        left = list(lines)

        class Typed:
            def forget(self) -> None: ...
            def close(self) -> None: ...
            async def line(self) -> str | None:
                line = left.pop(0)
                if isinstance(line, ValueError):
                    raise line
                return line

        monkeypatch.setattr(llm_huggingchat, "Keyboard", Typed)
        screen = Shown()
        answered = asyncio.run(screen.answer(asked))
        assert left == []
        return answered, screen.shown

    return answer


LINK = {"mode": "url", "url": "https://example.org/"}


def test_opened_address_is_answered_without_content(typist: Callable[..., Any]) -> None:
    assert typist(asked_of(TEXT, **LINK), "y")[0] == Answered("accept")


def test_browser_that_is_not_there_is_not_opened(
    typist: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(llm_huggingchat, "_can_open", lambda: False)
    monkeypatch.setattr(llm_huggingchat, "_open", opened.append)
    answered, shown = typist(asked_of(**LINK), "o", "n")
    assert (answered, opened) == (Answered("decline"), [])
    assert "browser" not in shown


def test_ctrl_d_in_a_field_declines(typist: Callable[..., Any]) -> None:
    assert typist(asked_of(TEXT), "y", None)[0] == Answered("decline")


def test_what_is_no_text_is_no_answer(typist: Callable[..., Any]) -> None:
    optional = TEXT | {"required": False}
    answered, shown = typist(asked_of(optional), "y", ValueError("no UTF-8"), "Rome")
    assert answered == Answered("accept", {"n": "Rome"})
    assert "control characters" in shown


def test_field_that_is_left_out_is_not_sent(typist: Callable[..., Any]) -> None:
    assert typist(asked_of(TEXT | {"required": False}), "y", "")[0] == Answered("accept", {})


def test_progress_that_a_terminal_is_too_slow_for_is_passed_over() -> None:
    screen = Shown()
    screen.tell(CALL)
    asides = [screen.telling(Progress("u", done)) for done in range(1, 1000)]
    first, *others = asides
    assert first
    assert others == [None] * 998
    first.act()
    assert screen.shown == "Tool: t<Tool: t  999"
    assert screen.telling(Progress("u", 1000))
    of_many = [screen.telling(Progress(f"v{number}", 1)) for number in range(1000)]
    assert 50 < len([aside for aside in of_many if aside]) < 200


def test_progress_while_a_person_types_is_shown_once() -> None:
    screen = Shown()
    screen.tell(CALL)
    screen.make_room()
    for done in range(1, 1000):
        screen.tell(Progress("u", done))
        screen.tell(Progress(f"v{done}", 1))
    assert len(screen._later) <= 100
    screen.closed("")
    assert screen.shown == "Tool: t\n" + "Tool: t 999"


def test_very_many_tools_at_once_take_little_time() -> None:
    screen = Shown()
    for number in range(3000):
        screen.tell(ToolCall(str(number), "t", {}))
    screen.shown = ""
    for number in range(3000):
        screen.tell(Progress(str(number), 1))
    assert screen.shown.count("<") < 100


def test_what_has_no_width_has_an_end() -> None:
    assert len(fit("a" + "\u0301" * 100_000, 40)) <= 160
    assert fit("e\u0301\u0302" * 40, 40) == "e\u0301\u0302" * 40


def test_wide_characters_take_two_columns() -> None:
    assert fit("日本語", 6) == "日本語"
    assert fit("日本語", 5) == "日…"
    assert fit("abc", 2) == "a…"


# --- several questions ----------------------------------------------------------------


async def settled() -> None:
    """Let all go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Putting(Screen):
    """A screen that shows what it is asked, and waits until it is `typed`."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.typed = asyncio.Event()

    def can_ask(self, asked: Elicitation) -> bool:
        return True

    def make_room(self) -> None: ...
    def closed(self, words: str) -> None:
        self.shown.append(words)

    async def answer(self, asked: Elicitation, problem: str = "") -> Answered:
        self.shown.append(asked.id)
        await self.typed.wait()
        return Answered("accept", {})


class Taking:
    """A client whose server takes every answer."""

    def beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.create_task(work)

    async def call(self, *_: Any) -> None: ...


def questions_on(screen: Screen) -> Questions:
    plan = Plan(None, None, "Which?")
    access = Credentials(Server("http://127.0.0.1/chat"), None)
    return Questions(cast(Any, Taking()), TurnRequest(access, "m", plan, None, screen=screen))


def question(id: str) -> Elicitation:
    return Elicitation(id, "Exa", "Which?", "form")


async def test_question_waits_for_the_text_and_the_questions_before_it() -> None:
    screen = Putting()
    questions = questions_on(screen)
    printed = [questions.put(question(id), "c").act for id in ("q", "r")]
    await settled()
    assert screen.shown == []  # the text before it is not printed yet
    for tell in printed:
        tell()
    await settled()
    assert screen.shown == ["q"]
    screen.typed.set()
    await asyncio.wait_for(questions.answered(question("r")), AT_ONCE)
    assert screen.shown == ["q", "Answered.", "r", "Answered."]


async def test_question_that_is_closed_before_its_turn_is_not_put() -> None:
    screen = Putting()
    questions = questions_on(screen)
    for id in ("q", "r"):
        questions.put(question(id), "c").act()
    await settled()
    await questions.close(ElicitationResolved("r", "expired"))
    screen.typed.set()
    await asyncio.wait_for(questions.answered(question("r")), AT_ONCE)
    assert screen.shown == ["q", "Answered."]


# --- a person at a terminal -----------------------------------------------------------


class Person:
    """Somebody who runs a command in a terminal of its own, reads and types."""

    def __init__(self, *command: str, stdin: int | None = None, stdout: int | None = None) -> None:
        make_logs()
        self.terminal, theirs = pty.openpty()
        name = os.ttyname(theirs)

        def begin() -> None:
            default_signals()
            os.setsid()
            fcntl.ioctl(os.open(name, os.O_RDWR), termios.TIOCSCTTY, 0)

        self.modes = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=theirs if stdin is None else stdin,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            preexec_fn=begin,
        )
        self.theirs = theirs
        self.raw = b""
        self._read_to = 0

    def sees(self, text: str, seconds: float = 20.0) -> None:
        """Wait until this comes on the screen, after what was seen last."""
        end = time.monotonic() + seconds
        while (at := self.screen.find(text, self._read_to)) < 0:
            assert time.monotonic() < end, self.screen
            self._read(0.1)
        self._read_to = at + len(text)

    def _read(self, seconds: float) -> None:
        if select.select([self.terminal], [], [], seconds)[0]:
            with contextlib.suppress(OSError):
                self.raw += os.read(self.terminal, 10_000)

    @property
    def screen(self) -> str:
        """All that was shown, without colours."""
        text = re.sub(r"\x1b\[[0-9]*m", "", self.raw.decode(errors="replace"))
        return text.replace("\r\n", "\n")

    def types(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def answers(self, *pairs: tuple[str, str]) -> None:
        for seen, typed in pairs:
            self.sees(seen)
            self.types(typed)

    def leaves(self, status: int = 0, seconds: float = 20.0) -> str:
        """Wait for the end of the command. All that was shown."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, self.screen
            self._read(0.05)
        self._read(0.05)
        assert self.process.returncode == status, self.screen
        assert termios.tcgetattr(self.theirs) == self.modes
        return self.screen

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.terminal)
        os.close(self.theirs)


@pytest.fixture
def person(server: ChatUI) -> Iterator[Callable[..., Person]]:
    """Make somebody who runs llm with these arguments."""
    people: list[Person] = []

    def make(*arguments: str, **files: int) -> Person:
        people.append(Person("llm", *arguments, **files))
        return people[-1]

    yield make
    for each in people:
        each.close()


ASK = ("-m", "hf-llama", "-T", "WebSearch")
BOTH_ENDS = pytest.mark.parametrize("word", ["elicit", "elicit_ends"])


def answer_of(server: ChatUI) -> dict[str, Any]:
    """The one answer that the server has stored."""
    return only_conversation(server).messages[-1]


@BOTH_ENDS
@pytest.mark.parametrize("how", ["sync", "async"])
def test_question_is_answered_and_the_same_answer_goes_on(
    server: ChatUI, person: Callable[..., Person], word: str, how: str
) -> None:
    ada = person(*ASK, *(["--async"] if how == "async" else []), f"[[{word}]]")
    ada.answers(("Answer? ", "y\n"), ("City (text): ", "Łódź\n"))
    shown = ada.leaves()
    said = 'The person said: accept {"city": "\\u0141\\u00f3d\\u017a"}'
    assert "The tool server Web Search (Exa) asks:\n  Which city do you mean?\n" in shown
    assert shown.endswith(f"Answered.\n\n{said}\n")
    assert answer_of(server)["content"] == f"Let me ask.{said}"
    assert len(sends(server)) == (1 if word == "elicit" else 2)
    (turn,) = logged()
    assert turn["response"] == f"Let me ask.\n\n{said}"
    assert server.stops == []


@BOTH_ENDS
def test_conversation_goes_on_after_a_question(
    server: ChatUI, person: Callable[..., Person], word: str
) -> None:
    ada = person("chat", *ASK)
    for number in (1, 2):
        ada.answers(("> ", f"[[{word}]] {number}\n"), ("Answer? ", "y\n"), ("City", "Rome\n"))
        ada.sees('accept {"city": "Rome"}')
    ada.answers(("> ", "And now?\n"))
    ada.sees("You said: And now?")
    ada.answers(("> ", "exit\n"))
    ada.leaves()
    questions = [m for m in only_conversation(server).messages if m["from"] == "user"]
    assert len(questions) == 3
    assert len(questions[-1]["ancestors"]) == 5
    assert logged()[0]["response"].endswith('{"city": "Rome"}')


@BOTH_ENDS
def test_every_kind_of_field(server: ChatUI, person: Callable[..., Person], word: str) -> None:
    ada = person(*ASK, f"[[{word}=form]]")
    ada.answers(
        ("10 fields, of which 5 must be filled in", ""),
        ("Answer? ", "maybe\n"),
        ("Answer? ", "y\n"),
        ("Name (text, 2 to 20 characters): ", "A\n"),
        ("has to have 2 to 20 characters", ""),
        ("Name (", "Ada\n"),
        ("Mail (an e-mail address): ", "\n"),
        ("has to be filled in", ""),
        ("Mail (", "ada@example.org\n"),
        ("Seats (a whole number, 1 to 8) [2]: ", "\n"),
        ("budget (a number, optional): ", "12.5\n"),
        ("At the window? (y or n): ", "n\n"),
        ("1. Economy\n  2. Business\n", ""),
        ("Class (one of them): ", "2\n"),
        ("at most 2, optional): ", "1, soup\n"),
        ("Day (a date like 2026-11-26, optional): ", "2026-12-24\n"),
        ("When (", "2026-12-24 09:30\n"),
        ("Site (", "\n"),
    )
    ada.leaves()
    (asked,) = server.elicitations.values()
    assert asked.action == "accept"
    assert asked.content
    when = asked.content.pop("when")
    assert when.startswith("2026-12-24T09:30:00")
    assert asked.content == {
        "name": "Ada",
        "mail": "ada@example.org",
        "seats": 2,
        "budget": 12.5,
        "window": False,
        "class": "b",
        "meals": ["fish", "soup"],
        "day": "2026-12-24",
    }


@BOTH_ENDS
@pytest.mark.parametrize("typed", ["\n", "n\n", "\x04", "y\n\x04"])
def test_question_is_declined(
    server: ChatUI, person: Callable[..., Person], word: str, typed: str
) -> None:
    ada = person(*ASK, f"[[{word}]]")
    ada.answers(("Answer? ", typed[:1]))
    if typed[1:]:
        ada.types(typed[1:2])
        ada.answers(*([("City", typed[2:])] if typed[2:] else []))
    assert ada.leaves().endswith("Declined.\n\nThe person said: decline {}\n")
    assert [asked.action for asked in server.elicitations.values()] == ["decline"]


@BOTH_ENDS
@pytest.mark.parametrize("how", ["sync", "async", "chat"])
@pytest.mark.parametrize("typed", ["", "y\n"])
def test_ctrl_c_at_a_question_stops_the_run_at_once(
    server: ChatUI, person: Callable[..., Person], word: str, how: str, typed: str
) -> None:
    if how == "chat":
        ada = person("chat", *ASK)
        ada.answers(("> ", f"[[{word}]]\n"))
    else:
        ada = person(*ASK, *(["--async"] if how == "async" else []), f"[[{word}]]")
    ada.answers(("Answer? ", typed))
    if typed:
        ada.answers(("City", "Ro"))
    wait_for(lambda: word == "elicit" or "completed" in server.runs.values())
    with soon():  # the question itself would wait for an hour
        ada.types("\x03")
        ada.leaves(status=1)
    assert len(server.stops) == (word == "elicit")
    assert not any(asked.action == "accept" for asked in server.elicitations.values())
    wait_for(lambda: "running" not in server.runs.values())


def test_no_typing_ahead(server: ChatUI, person: Callable[..., Person]) -> None:
    ada = person(*ASK, "[[elicit]] [[wait=0.7]]")
    ada.types("y\nyes to all\n")
    ada.answers(("Answer? ", ""))
    time.sleep(0.3)
    assert server.elicitations
    assert all(asked.action is None for asked in server.elicitations.values())
    ada.types("\n")
    ada.leaves()


@BOTH_ENDS
def test_two_questions_after_each_other(
    server: ChatUI, person: Callable[..., Person], word: str
) -> None:
    ada = person(*ASK, f"[[{word}=twice]]")
    ada.answers(("Answer? ", "y\n"), ("City", "Rome\n"), ("Are you sure?", ""))
    ada.answers(("Answer? ", "y\n"), ("Sure? (y or n): ", "y\n"))
    assert ada.leaves().endswith('Answered.\n\nThe person said: accept {"sure": true}\n')
    assert len(sends(server)) == (1 if word == "elicit" else 3)


def test_endless_questions_are_not_put(server: ChatUI, person: Callable[..., Person]) -> None:
    def question(number: int) -> bytes:
        request = {"elicitationId": f"q{number}", "mode": "form", "fields": []}
        event = {"type": "elicitation", "subtype": "request", "request": request}
        return json.dumps(event).encode() + b"\n"

    body = b"".join(map(question, range(1000)))
    alive = b'{"type":"status","status":"started"}\n'
    server.faults["POST", "/conversation/*"] = [Fault(body=body, flood=alive)]
    ada = person(*ASK, "hello")
    assert ada.leaves(1).endswith("The answer does not end: tools ask more than 50 questions.\n")


def test_question_with_the_id_of_one_that_is_closed_is_put(
    server: ChatUI, person: Callable[..., Person]
) -> None:
    """Else run after run would be resumed, and nobody asked."""
    old = {"elicitationId": "old", "mode": "form", "fields": [], "message": "Never mind"}
    told = [
        {"type": "elicitation", "subtype": "request", "request": old},
        {"type": "elicitation", "subtype": "resolved", "elicitationId": "old"},
    ]
    before = b"".join(json.dumps(each).encode() + b"\n" for each in told)

    def spoil(request: Any, raw: bytes) -> bytes:
        head, _, body = raw.partition(b"\r\n\r\n")
        close = b"\r\nConnection: close\r\n\r\n"
        if request.data is None:
            return head + close + body
        head = re.sub(rb"(?i)\r\n(content-length|transfer-encoding): [^\r]*", b"", head)
        if len(sends(server)) == 1:
            return head + close + before + body
        latest = list(server.elicitations)[-1]
        return head + close + body.replace(latest.encode(), b"old")

    server.spoil = spoil
    ada = person(*ASK, "[[elicit_ends=twice]]")
    ada.answers(("Answer? ", "y\n"), ("City", "Rome\n"))
    ada.sees("Are you sure?")


@BOTH_ENDS
def test_address_is_shown_before_it_is_opened(
    server: ChatUI, person: Callable[..., Person], word: str
) -> None:
    ada = person(*ASK, f"[[{word}=url]]")
    ada.sees("https://example.org/authorize?x=1\n  It leads to example.org.\n")
    ada.answers(("you have done it", "y\n"))
    ada.leaves()
    assert [asked.action for asked in server.elicitations.values()] == ["accept"]


def test_address_is_opened_on_demand(
    server: ChatUI, person: Callable[..., Person], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/opened\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    ada = person(*ASK, "[[elicit=url]]")
    ada.answers(("o opens it in your browser", "o\n"))
    ada.sees("o opens it in your browser")
    wait_for((tmp_path / "opened").exists)
    assert all(asked.action is None for asked in server.elicitations.values())
    ada.types("\n")
    ada.leaves()
    assert (tmp_path / "opened").read_text() == "https://example.org/authorize?x=1\n"
    assert [asked.action for asked in server.elicitations.values()] == ["decline"]


def test_input_and_output_may_be_pipes(server: ChatUI, person: Callable[..., Person]) -> None:
    ours, theirs = os.pipe()
    out, into = os.pipe()
    os.write(theirs, b"y\nParis\n")
    os.close(theirs)
    ada = person(*ASK, "[[elicit]]", stdin=ours, stdout=into)
    os.close(into)
    ada.answers(("Answer? ", "y\n"), ("City", "Rome\n"))
    ada.leaves()
    with open(out) as answer:
        assert answer.read() == 'Let me ask.\n\nThe person said: accept {"city": "Rome"}\n'
    os.close(ours)


def test_without_a_terminal_the_error_names_the_page(server: ChatUI) -> None:
    make_logs()
    command = [sys.executable, "-m", "llm", *ASK, "[[elicit]]"]
    found = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True
    )
    assert found.returncode == 1
    assert "A tool asks something. Web Search (Exa): Which city do you mean?" in found.stderr
    assert only_conversation(server).id in found.stderr
    assert found.stdout == "Let me ask."


def test_question_that_makes_no_sense_is_not_put_to_a_person(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Keyboard, "_opened", lambda self: io.BytesIO())
    assert Screen().can_ask(asked_of(TEXT))
    assert not Screen().can_ask(asked_of(TEXT, TEXT))


def test_half_an_answer_is_not_the_next_prompt(
    server: ChatUI, person: Callable[..., Person]
) -> None:
    server.elicitation_timeout = 2.0
    ada = person("chat", *ASK)
    ada.answers(("> ", "[[elicit]]\n"), ("Answer? ", "y\n"), ("City", "Ro"))
    ada.sees("The time to answer is over.")
    ada.answers(("> ", "hello\n"), ("You said: hello", ""), ("> ", "exit\n"))
    ada.leaves()


def test_library_asks_nobody(server: ChatUI, person: Callable[..., Person]) -> None:
    program = (
        "import llm\n"
        "llm.get_model('hf-llama').prompt('[[elicit]]', options={'web_search': True}).text()\n"
    )
    ada = Person("timeit", "-n1", "-r1", program)
    ada.sees("A tool asks something")
    ada.leaves(status=1)
    ada.close()


def test_time_to_answer_is_over(server: ChatUI, person: Callable[..., Person]) -> None:
    server.elicitation_timeout = 2.0
    ada = person(*ASK, "[[elicit]]")
    ada.answers(("Answer? ", "y\n"), ("City", "Ro"))
    ada.sees("The time to answer is over.")
    assert ada.leaves().endswith("\n\nThe person said: cancel {}\n")


def elsewhere(server: ChatUI) -> None:
    """Somebody answers on the web page."""
    ((_, asked),) = server.elicitations.items()
    asked.content, asked.action = {"city": "Oslo"}, "accept"


def test_question_is_answered_on_the_web_page(
    server: ChatUI, person: Callable[..., Person]
) -> None:
    ada = person(*ASK, "[[elicit]]")
    ada.answers(("Answer? ", "y\n"), ("City", "Ro"))
    elsewhere(server)
    ada.sees("Answered elsewhere.")
    assert ada.leaves().endswith('\n\nThe person said: accept {"city": "Oslo"}\n')


def test_run_is_stopped_on_the_web_page_while_a_person_types(
    server: ChatUI, person: Callable[..., Person]
) -> None:
    ada = person(*ASK, "[[elicit]]")
    ada.answers(("Answer? ", "y\n"), ("City", "Ro"))
    (going,) = server.all_runs
    going.stop()
    ada.sees("Ro\nStopped.\n")
    ada.leaves()
    assert [asked.action for asked in server.elicitations.values()] == [None]


def test_run_that_somebody_else_resumes_is_left_to_them(
    server: ChatUI, person: Callable[..., Person]
) -> None:
    ada = person(*ASK, "[[elicit_ends]]")
    ada.answers(("Answer? ", "y\n"), ("City", ""))
    elsewhere(server)
    ada.types("Rome\n")
    assert ada.leaves(status=1).count("Already answered") == 1
    assert only_conversation(server).id in ada.screen
    assert len(sends(server)) == 1


def elicitation_path(server: ChatUI) -> tuple[str, str]:
    return "POST", "/conversation/*/elicitation"


@BOTH_ENDS
@pytest.mark.parametrize(
    "fault",
    [
        Fault(drop=True),
        Fault(drop=True, done=True),
        Fault(status=502),
        Fault(status=502, done=True),
    ],
)
def test_answer_is_given_once_whatever_happens_to_it(
    server: ChatUI, person: Callable[..., Person], word: str, fault: Fault
) -> None:
    server.faults[elicitation_path(server)] = [fault]
    ada = person(*ASK, f"[[{word}]]")
    ada.answers(("Answer? ", "y\n"), ("City", "Rome\n"))
    shown = ada.leaves()
    assert shown.count('The person said: accept {"city": "Rome"}') == 1
    assert len(sends(server)) == (1 if word == "elicit" else 2)


def test_answer_that_comes_too_late_is_told_and_the_run_goes_on(
    server: ChatUI, person: Callable[..., Person]
) -> None:
    server.elicitation_timeout = 3.0
    why = json.dumps({"message": "No such question."}).encode()
    server.faults[elicitation_path(server)] = [
        Fault(status=404, body=why, content_type="application/json")
    ]
    ada = person(*ASK, "[[elicit]]")
    ada.answers(("Answer? ", "y\n"), ("City", "Rome\n"))
    ada.sees("The question could not be answered: No such question. See ")
    assert ada.leaves().endswith("\n\nThe person said: cancel {}\n")


@BOTH_ENDS
def test_answer_that_the_server_does_not_take_is_asked_for_again(
    server: ChatUI, person: Callable[..., Person], word: str
) -> None:
    why = json.dumps({"message": '"city" is\x1b[2J no city.'}).encode()
    server.faults[elicitation_path(server)] = [
        Fault(status=400, body=why, content_type="application/json")
    ]
    ada = person(*ASK, f"[[{word}]]")
    ada.answers(("Answer? ", "y\n"), ("City", "Rom\n"))
    ada.answers(('does not take that: "city" is[2J no city.', ""), ("City", "Rome\n"))
    assert ada.leaves().endswith('Answered.\n\nThe person said: accept {"city": "Rome"}\n')


@pytest.mark.parametrize("words", ["[[cut=1]]", "[[cut=1,3]]", "[[cut_bytes=600]]"])
def test_connection_that_breaks_while_a_tool_waits(
    server: ChatUI, person: Callable[..., Person], words: str
) -> None:
    ada = person(*ASK, f"[[elicit]] {words}")
    ada.answers(("Answer? ", "y\n"), ("City", ""))
    time.sleep(1)
    ada.types("Rome\n")
    shown = ada.leaves()
    assert shown.count("Let me ask.") == 1
    assert shown.count("Answer? ") == 1
    assert shown.endswith('Answered.\n\nThe person said: accept {"city": "Rome"}\n')
    assert len(sends(server)) == 1


@pytest.mark.parametrize(
    "words",
    [
        "[[cut=1]]",
        "[[then_cut=1]]",
        "[[then_cut=2,3]]",
        "[[then_cut_bytes=300]]",
        "[[then_drop=before]]",
        "[[then_drop=after]]",
        "[[then_status_after=500]]",
        "[[then_gone]] [[then_cut=2]]",
        "[[then_end=2]]",
        "[[then_store=1]]",
    ],
)
def test_resumed_run_heals_as_the_first_does(
    server: ChatUI, person: Callable[..., Person], words: str
) -> None:
    ada = person(*ASK, f"[[elicit_ends]] {words}")
    ada.answers(("Answer? ", "y\n"), ("City", "Rome\n"))
    shown = ada.leaves()
    said = 'The person said: accept {"city": "Rome"}'
    assert shown.endswith(f"Answered.\n\n{said}\n")
    assert shown.count("Let me ask.") == 1
    wait_for(lambda: answer_of(server).get("content") == f"Let me ask.{said}")
    assert len(server.runs) == 2  # the message that resumes was taken once
    updates = answer_of(server)["updates"]
    assert sum(u.get("subtype") == "result" for u in updates) == 1


def test_next_turn_waits_for_the_resumed_run(server: ChatUI, person: Callable[..., Person]) -> None:
    ada = person(*ASK, "[[elicit_ends]]")
    ada.answers(("Answer? ", "y\n"), ("City", ""))
    wait_for(lambda: "completed" in server.runs.values())
    server.may_store.clear()
    ada.types("Rome\n")
    ada.leaves()
    bob = person("-c", "And now?")
    wait_for(lambda: any(path.endswith("/stream") for _, path in calls(server)))
    assert len(sends(server)) == 2
    server.may_store.set()
    bob.leaves()
    found = [message["content"] for message in only_conversation(server).messages[1:]]
    assert found[1:] == [
        'Let me ask.The person said: accept {"city": "Rome"}',
        "And now?",
        "You said: And now?",
    ]


def test_ctrl_c_in_a_resumed_run_keeps_what_was_seen(
    server: ChatUI, person: Callable[..., Person]
) -> None:
    ada = person(*ASK, "[[elicit_ends]] [[then_delay=0.4]]")
    ada.answers(("Answer? ", "y\n"), ("City", "Rome\n"))
    ada.sees("The person")
    ada.types("\x03")
    ada.leaves(status=1)
    wait_for(lambda: answer_of(server).get("interrupted"))
    assert re.match(r"Let me ask\.The( person)?( said: )?", answer_of(server)["content"])


def test_conversation_that_is_deleted_while_a_person_types(
    server: ChatUI, person: Callable[..., Person]
) -> None:
    ada = person(*ASK, "[[elicit_ends]]")
    ada.answers(("Answer? ", "y\n"), ("City", ""))
    server.conversations.clear()
    ada.types("Rome\n")
    ada.leaves(status=1)
    assert len(server.conversations) == 0  # no new one is begun in the middle of an answer
    assert len(sends(server)) == 1


def test_conversation_that_is_deleted_before_the_answer_resumes_it(
    server: ChatUI, person: Callable[..., Person]
) -> None:
    run("-m", "hf-llama", "one")
    server.faults["POST", "/conversation/*"] = [Fault(), Fault(), Fault(status=404)]
    ada = person("-c", "-T", "WebSearch", "[[elicit_ends]]")
    ada.answers(("Answer? ", "y\n"), ("City", "Rome\n"))
    ada.leaves(status=1)
    assert [asked.action for asked in server.elicitations.values()] == ["accept"]
    assert only_conversation(server)  # no new one is begun in the middle of an answer
    assert [path for _, path in calls(server)].count("/conversation") == 1


def test_refusal_that_the_server_does_not_take_is_an_error(
    server: ChatUI, person: Callable[..., Person]
) -> None:
    server.faults[elicitation_path(server)] = [Fault(status=400)]
    ada = person(*ASK, "[[elicit_ends]]")
    ada.answers(("Answer? ", "\n"))
    assert ada.leaves(status=1).count("The answer was not given.") == 1


def test_resume_that_is_refused_leaves_the_conversation(
    server: ChatUI, person: Callable[..., Person]
) -> None:
    """It holds the question, and what was answered."""
    ada = person(*ASK, "[[elicit_ends]] [[then_status=429]]")
    ada.answers(("Answer? ", "y\n"), ("City", "Rome\n"))
    assert "wants a pause (HTTP 429" in ada.leaves(status=1)
    assert not [call for call in calls(server) if call[0] == "DELETE"]
    assert only_conversation(server)


@pytest.mark.parametrize("hide", [False, True])
def test_tools_are_seen_at_work(server: ChatUI, person: Callable[..., Person], hide: bool) -> None:
    ada = person(*ASK, *(["-R"] if hide else []), "[[tools]]")
    shown = ada.leaves()
    line = 'Tool: web_search_exa {"query": "chat-ui"}'
    assert (line in shown) is not hide
    assert ("1/2 halfway" in shown) is not hide
    assert "Let me look that up.\n" in shown
    assert "\n\nThe tool said" in shown
    assert (logged()[0]["response"]).startswith("Let me look that up.\n\nOne more.\n\nThe tool")


def test_nothing_of_tools_goes_into_pipes(server: ChatUI, person: Callable[..., Person]) -> None:
    out, into = os.pipe()
    ada = person(*ASK, "[[tools]]", stdout=into)
    os.close(into)
    ada.leaves()
    assert "Tool: web_search_exa" in ada.screen
    with open(out) as answer:
        assert answer.read().startswith("Let me look that up.\n\nOne more.\n\nThe tool said: ")


# --- reading a terminal where a loop cannot watch it ----------------------------------


def test_keyboard_is_read_in_a_thread_where_the_loop_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setattr(Keyboard, "_opened", lambda self: io.FileIO(os.dup(theirs)))

    async def read() -> list[str | None]:
        def refuse(*_: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", refuse)
        keyboard = Keyboard()
        threading.Timer(0.1, os.write, (ours, b"one\ntwo\n\x04")).start()
        lines = [await keyboard.line() for _ in range(3)]
        keyboard.close()
        return lines

    assert asyncio.run(read()) == ["one", "two", None]
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("typed", "raw", "line"),
    [
        ([b"Rome\n"], False, "Rome"),
        ([b"\x04"], False, None),
        ([b"Rome\x04", b"\x04"], False, "Rome"),
        ([b"Ro", b"me\r"], True, "Rome"),  # the terminal makes no line end of Return
    ],
)
def test_what_ends_a_line(
    monkeypatch: pytest.MonkeyPatch, typed: list[bytes], raw: bool, line: str | None
) -> None:
    ours, theirs = pty.openpty()
    if raw:
        tty.setraw(theirs)
    monkeypatch.setattr(Keyboard, "_opened", lambda self: io.FileIO(os.dup(theirs)))

    class Typed(Keyboard):
        left = iter(typed)

        async def _piece(self) -> bytes:
            os.write(ours, next(self.left))
            return await super()._piece()

    async def read() -> str | None:
        keyboard = Typed()
        try:
            return await asyncio.wait_for(keyboard.line(), AT_ONCE)
        finally:
            keyboard.close()

    assert asyncio.run(read()) == line
    os.close(ours)
    os.close(theirs)


def test_there_is_no_screen_in_a_library() -> None:
    prompt = llm.Prompt("x", llm.get_model("hf-llama"))
    assert Screen.of(prompt, True) is None
