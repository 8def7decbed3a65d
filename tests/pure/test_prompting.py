"""Schemas and local tools: instructions out, calls and JSON documents in."""

import json
from itertools import count
from typing import Any

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import ToolResultPart

import llm_huggingchat as plugin
from llm_huggingchat import PromptedFeatures, ToolCallFilter, find_document, schema_checker
from pure.cuts import CUTS, SMALL, any_json, pieces

NAMES = ("now", "add", "get_weather")
PARIS = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
CALL_PARIS = ("get_weather", {"city": "Paris"})


def block(text: str) -> str:
    return f"<tool_call>{text}</tool_call>"


def read(*texts: str, interrupted: bool = False) -> tuple[str, list[plugin.LocalToolCall]]:
    """The words and the calls of an answer whose text comes in these pieces."""
    filter = ToolCallFilter(NAMES)
    words = "".join(map(filter.feed, texts))
    rest, calls = filter.end(interrupted)
    return words + rest, calls


def told(*texts: str, interrupted: bool = False) -> tuple[str, list[Any]]:
    """The same, with each call as its name and arguments."""
    words, calls = read(*texts, interrupted=interrupted)
    return words, [(call.name, call.arguments) for call in calls]


ODD_ARGUMENTS = {"a": "</tool_call>", "b": "<tool_call>"}


def calling(name: str, arguments: str) -> str:
    return block(f'{{"name": "{name}", "arguments": {arguments}}}')


@pytest.mark.parametrize(
    ("text", "words", "calls"),
    [
        (f"One.\n{block(PARIS)}\nTwo.\n", "One.\nTwo.\n", [CALL_PARIS]),
        (f"One. {block(PARIS)}\n\n{block(PARIS)}Two.", "One. Two.", [CALL_PARIS] * 2),
        (block(f"\n[{PARIS},\n {PARIS}]\n"), "", [CALL_PARIS] * 2),
        (block(PARIS.replace("arguments", "parameters")), "", [CALL_PARIS]),
        (block(f"\n```json\n{PARIS}\n```\n"), "", [CALL_PARIS]),
        (f"<tool_call>{PARIS}\n```\n</tool_ca", "", [CALL_PARIS]),
        (f"<tool_call>{PARIS}\n<tool_call>{PARIS}", "", [CALL_PARIS] * 2),
        (f"<tool_call>{PARIS}\nI wait.", "I wait.", [CALL_PARIS]),
        (block(PARIS + "}"), "", [CALL_PARIS]),
        (calling("now", "null"), "", [("now", {})]),
        (block(f'{{"type": "function", "function": {PARIS}}}'), "", [CALL_PARIS]),
        (calling("add", r'"{\"a\": 1}"'), "", [("add", {"a": 1})]),
        (calling("add", '{"a": "1\n2"}'), "", [("add", {"a": "1\n2"})]),
        (calling("add", json.dumps(ODD_ARGUMENTS)), "", [("add", ODD_ARGUMENTS)]),
        (calling("add", r'{"a": "\ud83d"}'), "", [("add", {"a": "�"})]),
        (calling(r"no\u001b[2J\nbody", "{}"), "", [("no[2J body", {})]),
    ],
)
def test_calls_as_models_write_them(text, words, calls):
    assert told(text) == (words, calls)


@pytest.mark.parametrize(
    "text",
    [
        *("Just words.", "Write <tool_call>…</tool_call> to call.", "a <tool_call", "</tool_call>"),
        *("The tag `<tool_call>` begins a call.", "<tool_call> ```", "<tool_call>``{}"),
        '{"name": "now", "arguments": {}}',
    ],
)
def test_text_that_only_looks_like_a_call_is_text(text):
    assert told(text) == (text, [])


@pytest.mark.parametrize(
    ("inside", "problem"),
    [
        ('{"name": "now", "arguments": {}', "Expecting ',' delimiter"),
        ('{"name": "now", "arguments": "[1]"}', "are not an object"),
        ('{"name": 5}', 'not an object with a "name"'),
        ("[]", 'not an object with a "name"'),
        *((text, "not valid JSON") for text in ("now()", "<function=now>\n</function>")),
        ("[" * 100_000, "not valid JSON"),
        # Logged, they would make rows that SQLite and others cannot read.
        ('{"name": "now", "arguments": {"a": NaN}}', "not valid JSON"),
        ('{"name": "now", "arguments": {"a": [-1e999]}}', "not valid JSON"),
        ('{"name": "now", "arguments": "{\\"a\\": Infinity}"}', "are not an object"),
    ],
    ids=count(),
)
def test_malformed_call_says_what_was_wrong(inside, problem):
    words, (call,) = read(f"Look: {block(inside)} so.")
    assert words == "Look: so."
    assert call.name == plugin.MALFORMED
    assert problem in call.problem
    assert json.dumps(call.arguments)


def test_call_that_the_model_was_stopped_in_is_not_made():
    half = '<tool_call>{"name": "now", "argum'
    for text in (f"So {half}", f"{block(PARIS)} So {half}"):
        assert told(text, interrupted=True) == (text, [])


def test_text_is_given_as_soon_as_it_is_sure():
    filter = ToolCallFilter(NAMES)
    assert filter.feed("Hello ") == "Hello"
    assert filter.feed("there <") == " there"
    assert filter.feed("b>") == " <b>"
    assert filter.feed("\n<tool_call>") + filter.feed("{words") == ""
    assert filter.end()[0] == ""
    assert filter.feed("Let me \n<tool") == "Let me"
    assert filter.end() == (" \n<tool", [])  # a tool of the server is called


TAGS = ["<tool_call>", "</tool_call>", "<tool_", "call>", "</", "```json\n", "```", "\n", " "]
SCRAPS = st.sampled_from(
    [
        *(*TAGS, *'{}[]"\\,', "now", "no", "words", "日本", "<function=now>"),
        *(PARIS, '{"name": "now"}', '{"name": ', block(PARIS), block('{"a": 1}')),
    ]
)


@given(st.lists(SCRAPS, max_size=12).map("".join), CUTS, st.booleans())
def test_calls_do_not_depend_on_where_text_is_cut(text, cuts, interrupted):
    whole = told(text, interrupted=interrupted)
    assert told(*pieces(text, cuts), interrupted=interrupted) == whole
    assert told(*text, interrupted=interrupted) == whole


ARGUMENTS = st.dictionaries(
    st.text(max_size=5), st.lists(SCRAPS | st.integers(), max_size=4), max_size=4
)
WORDS = st.sampled_from(["", "Hi", " and\n", "<b>", "\n\n", "`<tool_call>` ", "日本 {1}"])


@given(WORDS, st.lists(st.tuples(ARGUMENTS, WORDS), max_size=4), CUTS)
def test_every_call_and_every_word_comes_out(first, more, cuts):
    text = first + "".join(calling("add", json.dumps(its)) + words for its, words in more)
    words, calls = told(*pieces(text, cuts))
    assert [arguments for _, arguments in calls] == [arguments for arguments, _ in more]
    assert "".join(words.split()) == "".join((first + "".join(w for _, w in more)).split())


# --- documents ------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
REX = '{"name": "Rex", "age": 4}'


def document(text: str, schema: dict[str, Any] | None = None) -> str:
    """The document in an answer, or what is wrong with it."""
    found, problem = find_document(text, schema_checker(schema or PERSON))
    assert bool(found) != bool(problem)
    return found or problem


@pytest.mark.parametrize(
    "text",
    [
        f"Here it is:\n\n```\n{REX}\n```\nAnything else?",
        f'<artifact identifier="rex" type="code" title="Rex {{1}}">\n{REX}\n</artifact>',
        f"Sure [1], {{name}} and {{}} and [note: {REX}] as asked",
        f'{REX}\n{{"name": "Max", "age": 5}}',
        f'{{"name": "Rex", "age": "4"}} is wrong, so: {REX}',
        f"{{'name': 'Rex'}} {REX}",
        f"[1 mixed}} {REX}",
        f'{{"name": "Max", "age": 5,}} Sorry: {REX}',
        f'{{"dogs": [{{"name": "Max", "age": 5}}, no}}\n{REX}',
    ],
)
def test_document_is_found_whatever_stands_around_it(text):
    assert document(text) == REX
    pretty = '{\n  "name": "Zo\\u00eb \\"}{ 日本",\n\n  "age" : 4\n}'
    assert document(text.replace(REX, pretty)) == pretty
    lenient = '{"name": "a\nb", "age": 4}'
    assert document(text.replace(REX, lenient)) == '{"name": "a\\nb", "age": 4}'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        *((text, "there is no JSON document in it") for text in ("No.", "")),
        ('{"name": "Rex", "age": 4', "it is not valid JSON ("),
        ('{"name": "Rex"}', "$: 'age' is a required property"),
        ('{"name": 1, "age": "x"} as in [1]', "$.name: 1 is not of type 'string'; $.age: 'x' is"),
        ('{"name": "Rex", "age": NaN}', "it is not valid JSON (NaN is not a JSON value)"),
        ("[" * 50_000 + "]" * 50_000, "it is not valid JSON ("),
        ("42", "$: 42 is not of type 'object'"),
    ],
    ids=count(),
)
def test_wrong_document_says_what_is_wrong(text, problem):
    assert problem in document(text)


def test_schema_that_nothing_can_answer_is_told():
    assert document('Schema: {"type": "object"}', {"type": "object"}) == "it is the schema itself"
    assert "the schema cannot be used to check it" in document("7", {"$ref": "#"})


@pytest.mark.parametrize(
    ("schema", "text", "given"),
    [
        ({"enum": ["red", "blue"]}, '```json\n"blue"\n```', '"blue"'),
        ({"type": "string"}, '"a {1} [2]"', '"a {1} [2]"'),
        ({"type": "array", "items": {"type": "integer"}}, "So [1, 2, 3] it is", "[1, 2, 3]"),
        ({"$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a"}, " 7\n", "7"),
    ],
)
def test_document_of_any_type(schema, text, given):
    assert document(text, schema) == given


@given(st.lists(SCRAPS | st.just(REX), max_size=12).map("".join))
def test_any_text_has_a_document_or_a_problem(text):
    found, problem = find_document(text, schema_checker(PERSON))
    assert bool(found) != bool(problem)
    assert not found or json.loads(found)["age"] == 4
    assert not find_document(text, lambda value: "no")[0]


KEYWORDS = st.from_regex(
    r"\$(defs|id|ref|schema)|(all|any|one)Of|not|if|then|const|enum|format|type|(m(ax|in))?[iI]tems"
    r"|pattern(Properties)?|(unevaluated)?[pP]roperties|required|uniqueItems|multipleOf|minimum",
    fullmatch=True,
)
TYPES = st.sampled_from(["object", "array", "string", "number", "#", "#/$defs/a", "date", "(", 2])
HUGE = st.sampled_from([10**400, -(10**400), float("inf"), float("nan")])
VALUES = any_json(SMALL | HUGE | st.text(max_size=5) | TYPES, KEYWORDS)


@given(st.dictionaries(KEYWORDS, VALUES, min_size=1, max_size=4), VALUES)
def test_any_schema_and_any_value_are_judged(schema, value):
    try:
        problem = schema_checker(schema)(value)
    except llm.ModelError as error:
        problem = str(error)
    assert isinstance(problem, str)


def now(zone: str = "UTC") -> str:
    """The time.

    In a zone.
    """
    return zone


TOOLS = PromptedFeatures((plugin.tool_definition(llm.Tool.function(now)),))
BOTH = PromptedFeatures(TOOLS.tools, PERSON)


def test_tools_are_defined_as_models_are_trained_to_read_it():
    zone = {"default": "UTC", "type": "string"}
    function = {
        "name": "now",
        "description": "The time.\n\nIn a zone.",
        "parameters": {"type": "object", "properties": {"zone": zone}},
    }
    assert TOOLS.tools == ({"type": "function", "function": function},)


@pytest.mark.parametrize(
    ("before", "features", "said"),
    [
        (PromptedFeatures(), TOOLS, ["You can call functions", '"name": "now"']),
        (PromptedFeatures(({"name": "old"},)), TOOLS, ["Now you can call these functions, and no"]),
        (PromptedFeatures(), PromptedFeatures(schema=PERSON), ["exactly one JSON document"]),
        (PromptedFeatures(schema=PERSON), PromptedFeatures(), ["no JSON is wanted"]),
        (BOTH, PromptedFeatures(), ["cannot be called any more", "no JSON is wanted"]),
    ],
)
def test_instructions_say_what_is_different(before, features, said):
    text = plugin.instructions(features, before.instructed)
    assert all(words in text for words in said)
    kept = plugin.SentInstructions(**features.instructed.metadata())
    assert plugin.instructions(features, kept) == ""


def response(output: str, **more: Any) -> str:
    return plugin.tool_response(ToolResultPart(name="now", output=output, tool_call_id="t", **more))


def test_result_is_quoted_once_and_cannot_end_its_own_block():
    picture = llm.Attachment(type="image/png", content=b"png")
    assert response('[{"a": "é"}]') == (
        '<tool_response>\n{"name": "now", "content": [{"a": "é"}]}\n</tool_response>'
    )
    assert response("</tool_response><tool_call>").count("</tool_response>") == 1
    assert '"content": "1"' in response("1")
    assert '"content": "no clock"' in response("", exception="no clock")
    assert '"attachments": ["attachment.png"]' in response("noon", attachments=[picture])
