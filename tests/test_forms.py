"""Calls of local tools, and JSON documents, out of an answer's text, cut anywhere."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import llm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_huggingchat import (
    MALFORMED,
    Event,
    File,
    Filter,
    FinalAnswer,
    JsonDocument,
    LocalToolCall,
    Text,
    ToolCall,
    ToolCallFilter,
    ToolResult,
    checker,
)

settings.register_profile("suite", derandomize=True, deadline=None, database=None, max_examples=100)
settings.load_profile("suite")

NAMES = ("now", "add", "get_weather")
PARIS = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
CALLED_PARIS = ("get_weather", {"city": "Paris"})
CUTS = st.lists(st.integers(0, 10_000), max_size=8)


def block(text: str) -> str:
    return f"<tool_call>{text}</tool_call>"


def words(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from(text.split())


def through(stage: Filter, *texts: str, cut: bool = False) -> list[Event]:
    """What a stage gives of an answer whose text comes in these pieces."""
    final = FinalAnswer("".join(texts), cut)
    events = [out for text in texts for out in stage.feed(Text(text))] + stage.feed(final)
    assert events.pop() == final
    return events


def told(events: list[Event]) -> list[Any]:
    """Text as text, however it was cut, and calls as name and arguments."""
    found: list[Any] = []
    for event in events:
        if isinstance(event, LocalToolCall):
            found.append((event.name, event.arguments))
        elif isinstance(event, Text) and found and isinstance(found[-1], str):
            found[-1] += event.text
        else:
            found.append(event.text if isinstance(event, Text) else event)
    return found


def calls(*texts: str, cut: bool = False) -> list[Any]:
    return told(through(ToolCallFilter(NAMES), *texts, cut=cut))


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


# --- calls ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (block(PARIS), [CALLED_PARIS]),
        (f"Let me see.\n\n{block(PARIS)}", ["Let me see.", CALLED_PARIS]),
        (f"One.\n{block(PARIS)}\nTwo.\n", ["One.", CALLED_PARIS, "\nTwo.\n"]),
        (f"One. {block(PARIS)}Two.", ["One.", CALLED_PARIS, " Two."]),
        (f"{block(PARIS)}\n{block(PARIS)}\n", [CALLED_PARIS, CALLED_PARIS]),
        (block(f"\n[{PARIS},\n {PARIS}]\n"), [CALLED_PARIS, CALLED_PARIS]),
        (block(f"{PARIS}\n{PARIS}"), [CALLED_PARIS, CALLED_PARIS]),
        (block(PARIS.replace("arguments", "parameters")), [CALLED_PARIS]),
        (block(f"\n```json\n{PARIS}\n```\n"), [CALLED_PARIS]),
        (block(f"```\n{PARIS}```"), [CALLED_PARIS]),
        (f"<tool_call>\n{PARIS}", [CALLED_PARIS]),
        (f"<tool_call>{PARIS}\n```\n</tool_ca", [CALLED_PARIS]),
        (f"<tool_call>{PARIS}\n<tool_call>{PARIS}", [CALLED_PARIS, CALLED_PARIS]),
        (f"<tool_call>{PARIS}<tool_call>", [CALLED_PARIS]),
        (f"<tool_call>{PARIS}\nI wait.", [CALLED_PARIS, "I wait."]),
        (block(PARIS + "}"), [CALLED_PARIS]),
        (block('{"name": "now"}'), [("now", {})]),
        (block('{"name": "now", "arguments": null}'), [("now", {})]),
        (block('{"name": "now", "arguments": ""}'), [("now", {})]),
        (block(f'{{"type": "function", "function": {PARIS}}}'), [CALLED_PARIS]),
        (block('{"name": "add", "arguments": "{\\"a\\": 1}"}'), [("add", {"a": 1})]),
        (block('{"name": "add", "arguments": {"a": "1\n2"}}'), [("add", {"a": "1\n2"})]),
        (
            block('{"name": "add", "arguments": {"a": "</tool_call>", "b": "<tool_call>"}}'),
            [("add", {"a": "</tool_call>", "b": "<tool_call>"})],
        ),
        (
            block('{"name": "add", "arguments": {"a": "\\ud83d"}}'),
            [("add", {"a": "�"})],
        ),
        (block('{"name": "nobody", "arguments": {}}'), [("nobody", {})]),
    ],
)
def test_calls_as_models_write_them(text, found):
    assert calls(text) == found
    assert calls(*text) == found


@pytest.mark.parametrize(
    "text",
    [
        "Just words.",
        "  spaces\n",
        "Write <tool_call>…</tool_call> to call.",
        "The tag `<tool_call>` begins a call.",
        "<tool_calls>{}</tool_calls>",
        "</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>",
        "a <tool_ca",
        "a <tool_call",
        "<tool_call> ```",
        "<tool_call>``{}",
        '{"name": "now", "arguments": {}}',
        "<tool_response>{}</tool_response>",
    ],
)
def test_text_that_only_looks_like_a_call_is_text(text):
    assert calls(text) == [text]
    assert calls(*text) == [text]


@pytest.mark.parametrize(
    ("inside", "problem"),
    [
        ('{"name": "now", "arguments": {}', "Expecting ',' delimiter"),
        ('{"name": "now", "arguments": "[1]"}', "are not an object"),
        ('{"name": "now", "arguments": [1]}', "are not an object"),
        ('{"arguments": {}}', 'not an object with a "name"'),
        ('{"name": 5}', 'not an object with a "name"'),
        ('["now"]', 'not an object with a "name"'),
        ('"now"', 'not an object with a "name"'),
        ("now()", "not valid JSON"),
        ("<function=now>\n</function>", "not valid JSON"),
        ("[]", "empty"),
        ('{"name": "now, "arguments": {"a": "b}}', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        # Logged, they would make rows that SQLite and others cannot read.
        ('{"name": "now", "arguments": {"a": NaN}}', "not valid JSON"),
        ('{"name": "now", "arguments": {"a": [-1e999]}}', "not valid JSON"),
        ('{"name": "now", "arguments": "{\\"a\\": Infinity}"}', "are not an object"),
    ],
)
def test_malformed_call_says_what_was_wrong(inside, problem):
    given = through(ToolCallFilter(NAMES), f"Look: {block(inside)} so.")
    assert [event for event in given if isinstance(event, Text)] == [Text("Look:"), Text(" so.")]
    (call,) = (event for event in given if isinstance(event, LocalToolCall))
    assert call.name == MALFORMED
    assert problem in call.problem
    assert json.dumps(call.arguments)


def test_a_good_call_before_a_malformed_one_stands():
    good, bad = through(
        ToolCallFilter(NAMES), block(PARIS + '\n{"name": "now", "arguments": {oops}}')
    )
    assert told([good]) == [CALLED_PARIS]
    assert isinstance(bad, LocalToolCall)
    assert bad.name == MALFORMED
    assert bad.arguments == {"text": '{"name": "now", "arguments": {oops}}'}


def test_each_call_has_an_id_of_its_own():
    one, two = through(ToolCallFilter(NAMES), block(PARIS) + block(PARIS))
    assert isinstance(one, LocalToolCall)
    assert isinstance(two, LocalToolCall)
    assert one.id != two.id


def test_call_that_the_model_was_stopped_in_is_not_made():
    half = '<tool_call>{"name": "now", "argum'
    assert calls(f"{block(PARIS)} So {half}", cut=True) == [CALLED_PARIS, f" So {half}"]
    assert calls(f"<tool_call>{PARIS}", cut=True) == [CALLED_PARIS]


def test_text_is_given_before_a_server_tool_is_called():
    stage = ToolCallFilter(NAMES)
    call = ToolCall("a", "search", {})
    assert stage.feed(Text("Let me \n<tool")) == [Text("Let me")]
    assert stage.feed(call) == [Text(" \n<tool"), call]


def test_text_comes_as_soon_as_it_is_sure():
    stage = ToolCallFilter(NAMES)
    assert stage.feed(Text("Hello ")) == [Text("Hello")]
    assert stage.feed(Text("there <")) == [Text(" there")]
    assert stage.feed(Text("b>")) == [Text(" <b>")]
    assert stage.feed(Text("<tool_call>{")) == []


SCRAPS = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<tool_", "call>", "</", "```json\n", "```", "\n", " "),
        *("{", "}", "[", "]", '"', "\\", ",", "now", "no", "words", "日本", "<function=now>"),
        *(PARIS, '{"name": "now"}', '{"name": ', block(PARIS), block('{"a": 1}')),
    ]
)


@given(st.lists(SCRAPS, max_size=12).map("".join), CUTS, st.booleans())
def test_calls_do_not_depend_on_where_text_is_cut(text, cuts, cut):
    assert calls(*pieces(text, cuts), cut=cut) == calls(text, cut=cut)


ARGUMENTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=10) | SCRAPS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    ),
    max_size=4,
)
WORDS = st.sampled_from(["", "Hi", " and\n", "<b>", "\n\n", "`<tool_call>` ", "日本 {1}"])


@given(WORDS, st.lists(st.tuples(ARGUMENTS, WORDS), max_size=4), CUTS)
def test_every_call_and_every_word_comes_out(first, more, cuts):
    text = first + "".join(
        block(json.dumps({"name": "add", "arguments": arguments})) + words
        for arguments, words in more
    )
    got = calls(*pieces(text, cuts))
    assert [out[1] for out in got if isinstance(out, tuple)] == [arguments for arguments, _ in more]
    said = "".join(out for out in got if isinstance(out, str))
    assert said.split() == (first + "".join(words for _, words in more)).split()


# --- documents ------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
REX = '{"name": "Rex", "age": 4}'


def document(*texts: str, schema: dict[str, Any] | None = None) -> str:
    """The document that an answer gives, or what is wrong with it."""
    stage = JsonDocument(checker(schema or PERSON))
    given = through(stage, *texts)
    assert len(given) == stage.done
    return "".join(event.text for event in given if isinstance(event, Text)) or stage.problem


@pytest.mark.parametrize(
    "text",
    [
        REX,
        f"\n\n{REX}\n",
        f"```json\n{REX}\n```",
        f"Here it is:\n\n```\n{REX}\n```\nAnything else?",
        f'<artifact identifier="rex" type="code" title="Rex {{1}}">\n{REX}\n</artifact>',
        f"Sure [1], {{name}} and {{}} and [note: {REX}] as asked",
        f'I thought of {{"name": "Rex"}} at first. {REX}',
        f"{REX}\n{REX}",
        f'{REX}\n{{"name": "Max", "age": 5}}',
        f'{{"name": "Rex", "age": "4"}} is wrong, so: {REX}',
        f"{{'name': 'Rex'}} {REX}",
        f"[1 mixed}} {REX}",
    ],
)
def test_document_is_given_alone(text):
    assert document(text) == REX
    assert document(*text) == REX


def test_document_is_given_as_the_model_wrote_it():
    pretty = '{\n  "name": "Zo\\u00eb \\"}{ 日本",\n\n  "age" : 4\n}'
    assert document(f"So: {pretty} ok") == pretty
    assert document('{"name": "a\nb", "age": 4}') == '{"name": "a\\nb", "age": 4}'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("No.", "there is no JSON document in it"),
        ("", "there is no JSON document in it"),
        ('{"name": "Rex", "age": 4', "the document is not complete"),
        ('{"name": "Rex"}', "$: 'age' is a required property"),
        ('{"name": 1, "age": "x"} as in [1]', "$.name: 1 is not of type 'string'; $.age: 'x' is"),
        ('{"name": "Rex", "age": 4,}', "it is not valid JSON ("),
        ('{"name": "Rex", "age": NaN}', "it is not valid JSON (NaN is not a JSON value)"),
        ('{"name": "Rex", "age": [}', "it is not valid JSON ("),
        ("[" * 50_000 + "]" * 50_000, "it is nested too deeply"),
        ("42", "$: 42 is not of type 'object'"),
        (f"[{REX}]", "is not of type 'object'"),
    ],
)
def test_wrong_document_says_what_is_wrong(text, problem):
    assert problem in document(text)
    assert problem in document(*text)


@pytest.mark.parametrize(
    ("schema", "text", "given"),
    [
        ({"enum": ["red", "blue"]}, '"red"', '"red"'),
        ({"enum": ["red", "blue"]}, '```json\n"blue"\n```', '"blue"'),
        ({"type": "string"}, '"a {1} [2]"', '"a {1} [2]"'),
        ({"type": "integer"}, " 42\n", "42"),
        ({"type": "array", "items": {"type": "integer"}}, "So [1, 2, 3] it is", "[1, 2, 3]"),
        ({"$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a"}, "7", "7"),
    ],
)
def test_document_of_any_type(schema, text, given):
    assert document(text, schema=schema) == given
    assert document(*text, schema=schema) == given


@given(st.lists(SCRAPS | st.just(REX), max_size=12).map("".join), CUTS)
def test_documents_do_not_depend_on_where_text_is_cut(text, cuts):
    assert document(*pieces(text, cuts)) == document(text)


def test_document_is_given_as_soon_as_it_ends():
    stage = JsonDocument(checker(PERSON))
    assert stage.feed(Text(f"So: {REX[:-1]}")) == []
    assert stage.feed(Text("} and then")) == [Text(REX)]
    assert stage.feed(Text(REX)) == []


def test_document_waits_where_a_call_may_follow():
    stage = JsonDocument(checker(PERSON), tools=True)
    assert stage.feed(Text(REX)) == []
    assert stage.feed(FinalAnswer(REX, False)) == [Text(REX), FinalAnswer(REX, False)]


def test_answer_that_calls_a_tool_is_not_the_document():
    stage, call = JsonDocument(checker(PERSON), tools=True), LocalToolCall("a", "now", {})
    assert stage.feed(Text(f"I look first. {REX}")) == []
    assert stage.feed(call) == [call]
    assert stage.feed(FinalAnswer("", False)) == [FinalAnswer("", False)]
    assert stage.done


def test_what_is_not_text_passes_by_a_document_except_files():
    stage = JsonDocument(checker(PERSON))
    call, back = ToolCall("a", "search", {}), ToolResult("a", "search", "found")
    assert [stage.feed(event) for event in (call, back, File("a", "b"))] == [[call], [back], []]


# --- schemas --------------------------------------------------------------------------

KEYWORDS = words(
    """
    $defs $id $ref $schema additionalProperties allOf anyOf const contains default definitions
    dependentRequired enum exclusiveMinimum format if items maxLength maximum minItems minimum
    multipleOf not oneOf pattern patternProperties prefixItems properties propertyNames required
    then title type unevaluatedProperties uniqueItems
    """
)
TYPES = st.sampled_from(["object", "array", "string", "number", "#", "#/$defs/a", "date", "(", 2])


def test_references_stay_in_the_schema():
    wrong = checker({"$ref": "https://example.org/schema.json"})(1)
    assert "refers to something that is not in it" in wrong
    assert checker({"properties": {"a": {"$ref": "#"}}, "type": "object"})({"a": {"a": {}}}) == ""
    assert "too deeply" in checker({"$ref": "#"})(1)


def test_schema_is_no_document_of_its_own():
    assert (
        checker(PERSON | {"required": []})(PERSON | {"required": []}) == "it is the schema itself"
    )


def test_formats_are_checked():
    assert checker({"type": "string", "format": "date"})("2026-08-01") == ""
    assert "is not a 'date'" in checker({"type": "string", "format": "date"})("August")


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "text"}, "$.type: 'text' is not valid"),
        ({"properties": {"a": {"pattern": "("}}}, "$.properties.a.pattern: '(' is not a 'regex'"),
        ({"required": "a"}, "$.required: 'a' is not of type 'array'"),
    ],
)
def test_what_is_no_schema_is_told(schema, why):
    with pytest.raises(llm.ModelError, match="not a JSON schema. " + re.escape(why)):
        checker(schema)


HUGE = st.sampled_from([10**400, -(10**400), float("inf"), float("nan")])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | HUGE | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(KEYWORDS, VALUES | TYPES, min_size=1), VALUES)
def test_any_schema_and_any_value_are_judged(schema, value):
    try:
        problem = checker(schema)(value)
    except llm.ModelError as error:
        problem = str(error)
    assert isinstance(problem, str)
