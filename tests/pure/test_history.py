"""llm's chain of messages, to what is sent and after which answer."""

import contextlib
from typing import Any

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    assistant,
    system,
    tool_message,
    user,
)

import llm_huggingchat as plugin
from llm_huggingchat import Parent, Plan, PromptedFeatures, make_plan, pending_schema
from pure.cuts import ANY_TEXT, SMALL, any_json

URL = "https://huggingface.co/chat"
PICTURE = llm.Attachment(type="image/png", content=b"png")
NOTES = llm.Attachment(type="text/plain", path="notes/my notes.txt")
FAR = llm.Attachment(url="https://example.org/a/far%20away.jpg?size=1")
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = PromptedFeatures((plugin.tool_definition(llm.Tool.function(len, name="len")),))
BOTH = PromptedFeatures(TOOLS.tools, SCHEMA)
OTHER_SCHEMA = PromptedFeatures(TOOLS.tools, {"type": "array"})


def kept(number: int, **more: Any) -> dict[str, Any]:
    """What an answer of this server keeps."""
    ids = {"conversation_id": f"c{number}", "message_id": f"m{number}"}
    known = {"server": URL, **ids, "generation_id": f"g{number}", "model": "a/b"}
    return {"huggingchat": known | more}


def ours(text: str, number: int = 1, **more: Any) -> Message:
    """An answer from this server."""
    return assistant(TextPart(text=text, provider_metadata=kept(number, **more)))


def parent(number: int = 1, sent: plugin.SentInstructions | None = None) -> Parent:
    return Parent(
        f"c{number}", f"m{number}", f"g{number}", "a/b", sent or plugin.SentInstructions()
    )


def earlier(*turns: str) -> str:
    return "\n\n".join(["[Earlier messages]", *turns, "[End of the earlier messages]"])


def new(text: str, *attachments: llm.Attachment, system: str | None = None) -> Plan:
    """A new conversation begins with this."""
    return Plan(None, system, text, attachments)


def after(number: int, text: str, *attachments: llm.Attachment) -> Plan:
    """This goes after that answer."""
    return Plan(parent(number), None, text, attachments)


SEARCH = ToolCallPart(name="search", arguments={"q": "é"}, tool_call_id="t")
ELSEWHERE = [
    user("Look", PICTURE, NOTES, FAR),
    assistant(ReasoningPart(text="secret thoughts"), "I will search.", SEARCH),
    tool_message(
        ToolResultPart(name="search", output="found", tool_call_id="t", attachments=[PICTURE]),
        ToolResultPart(name="fetch", output="", tool_call_id="u", exception="no network"),
    ),
    assistant("There it is."),
    user("Thanks", PICTURE),
]
ELSEWHERE_TEXT = earlier(
    "User: Look\n[attachment: attachment.png]\n[attachment: my notes.txt]\n"
    "[attachment: far away.jpg]",
    'Assistant: I will search.\n[used the tool search with {"q": "é"}]',
    "Tool: [the tool search returned: found]\n[attachment: attachment.png]\n"
    "[the tool fetch returned: no network]",
    "Assistant: There it is.",
)
ODD_TEXT = "  two spaces\n\n\ttab\u2028\0 <think> 🎉\n"
ONE = [user("1"), ours("one")]
THERE = ours("one", server="http://127.0.0.1:3100/chat")
UNSEEN = earlier("User: 2", "Assistant: two, by another")
SEVERAL = [system("Be brief"), system("Rhyme"), user("Look", PICTURE, "here", NOTES)]


@pytest.mark.parametrize(
    ("messages", "plan"),
    [
        ([user(PICTURE)], new("", PICTURE)),
        (SEVERAL, new("Look\nhere", PICTURE, NOTES, system="Be brief\n\nRhyme")),
        ([system("Be brief"), *ONE, user("2"), ours("two", 2), user(NOTES)], after(2, "", NOTES)),
        ([*ONE, user(ODD_TEXT)], after(1, ODD_TEXT)),
        ([user("1"), user("2")], new(earlier("User: 1") + "\n\n2")),
        ([*ONE, user("2"), assistant("two, by another"), user("3")], after(1, f"{UNSEEN}\n\n3")),
        ([user("1"), THERE, user("2")], new(earlier("User: 1", "Assistant: one") + "\n\n2")),
        ([*ONE, system("Rhyme"), user("2")], after(1, earlier("System: Rhyme") + "\n\n2")),
        (ELSEWHERE, new(f"{ELSEWHERE_TEXT}\n\nThanks", PICTURE)),
    ],
)
def test_what_is_sent_and_after_which_answer(messages, plan):
    assert make_plan(messages, URL) == plan


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        (kept(1, message_id=None), Parent("c1", None, "g1", "a/b")),
        (kept(1, message_id=5, generation_id="", model=[], tools=1, schema=[]), Parent("c1")),
        *((kept(1, conversation_id=id), None) for id in (None, "", "../x", "c1\n", "c" * 201)),
        (kept(1, server="https://huggingface.co/chat/"), None),
        *((other, None) for other in ({"huggingchat": [1]}, {"anthropic": {"a": "s"}}, None)),
    ],
)
def test_parent_as_an_answer_keeps_it(metadata, found):
    part = ReasoningPart(text="", provider_metadata=metadata)
    assert plugin.parent_of(assistant(part, "text"), URL) == found
    assert plugin.parent_of(Message("user", [part]), URL) is None


@pytest.mark.parametrize(
    ("before", "preprompt", "text"),
    [
        ([system("Rhyme")], "Rhyme", "2"),
        ([system("Rhyme"), *ONE], None, "2"),
        (ELSEWHERE[:-1], "Rhyme", f"{ELSEWHERE_TEXT}\n\n2"),
        (ONE, None, earlier("System: Rhyme") + "\n\n2"),
        ([system("Terse"), user("1")], "Terse\n\nRhyme", earlier("User: 1") + "\n\n2"),
    ],
)
def test_system_prompt_is_told_once(before, preprompt, text):
    plan = make_plan([*before, user("2")], URL, system="Rhyme")
    assert (plan.system, plan.text) == (preprompt, text)
    later = [user("1"), ours("one", **plan.instructed.metadata()), user("again")]
    if plan.instructed.system:
        assert make_plan(later, URL, system="Rhyme").text == "again"
        assert make_plan(later, URL, system="Sing").text == earlier("System: Sing") + "\n\nagain"


def calling(*parts: Part, **more: Any) -> Message:
    """An answer of this server that called tools on this side."""
    return assistant(*parts, ReasoningPart(text="", provider_metadata=kept(1, **more)))


def call(id: str | None = "t", **more: Any) -> ToolCallPart:
    return ToolCallPart(name="now", arguments={}, tool_call_id=id, **more)


def result(output: str = "noon", id: str | None = "t", **more: Any) -> ToolResultPart:
    return ToolResultPart(name="now", output=output, tool_call_id=id, **more)


NOON = '<tool_response>\n{"name": "now", "content": "noon"}\n</tool_response>'
CALL, RESULT = calling(call()), tool_message(result())
TWO = [calling(call("a"), call("b")), tool_message(result("1", "a"), result("2", "b"))]
MORE = [assistant("It is noon.", call("y")), tool_message(result("one", "y")), user("2")]
MORE_TEXT = earlier(
    "Tool: [the tool now returned: found]",
    "Assistant: It is noon.\n[used the tool now with {}]",
    "Tool: [the tool now returned: one]",
)
SEEN_TEXT = earlier("Tool: [the tool now returned: noon]")


@pytest.mark.parametrize(
    ("messages", "plan"),
    [
        ([calling(call(None)), tool_message(result(id=None))], after(1, NOON)),
        (TWO, after(1, "\n\n".join(NOON.replace("noon", n) for n in "12"))),
        ([CALL, RESULT, user("And?", PICTURE)], after(1, f"{NOON}\n\nAnd?", PICTURE)),
        (
            [CALL, tool_message(result(), result("found", "x")), *MORE],
            after(1, f"{NOON}\n\n{MORE_TEXT}\n\n2"),
        ),
        (
            [calling(call(server_executed=True)), RESULT],
            after(1, f"{SEEN_TEXT}\n\nGo on from there."),
        ),
    ],
)
def test_results_go_after_the_answer_that_called(messages, plan):
    assert make_plan([user("1"), *messages], URL) == plan


def test_files_that_a_result_brings_are_sent_with_it():
    plan = make_plan([user("1"), CALL, tool_message(result(attachments=[PICTURE]))], URL)
    assert plan.attachments == (PICTURE,)


def test_new_conversation_is_told_in_its_preprompt():
    plan = make_plan([system("Be brief"), user("1")], URL, features=BOTH)
    preprompt = f"Be brief\n\n{plugin.instructions(BOTH, plugin.SentInstructions())}"
    assert plan == Plan(None, preprompt, "1", instructed=BOTH.instructed, features=BOTH)


def test_later_turn_is_told_what_is_different():
    messages = [user("1"), ours("one", **BOTH.instructed.metadata()), user("2")]
    assert make_plan(messages, URL, features=BOTH).text == "2"
    plan = make_plan(messages, URL, features=TOOLS)
    changes = plugin.instructions(TOOLS, BOTH.instructed)
    assert plan.text == f"[Instructions]\n{changes}\n[End of instructions]\n\n2"
    assert (plan.instructed, plan.system) == (TOOLS.instructed, None)


def test_schema_holds_until_the_tools_are_through():
    asked = [user("1"), calling(call(), **BOTH.instructed.metadata())]
    assert pending_schema([*asked, RESULT], URL) == SCHEMA
    assert pending_schema([*asked, RESULT, user(PICTURE)], URL) == SCHEMA
    assert pending_schema([*asked, RESULT, user("2")], URL) is None
    assert pending_schema([*asked, user("2")], URL) is None
    assert pending_schema([user("1"), CALL, RESULT], URL) is None


@pytest.mark.parametrize(("features", "kept"), [(TOOLS, BOTH), (OTHER_SCHEMA, OTHER_SCHEMA)])
def test_retry_keeps_what_the_question_was_asked_with(features, kept):
    answer = ours("one", 2, **BOTH.instructed.metadata())
    messages = [system("Rhyme"), user("1"), CALL, RESULT, answer]
    plan = make_plan(messages, URL, retry=True, system="Rhyme", features=features)
    asked = parent(2, BOTH.instructed)
    assert plan == Plan(asked, None, "", instructed=BOTH.instructed, features=kept, retry=True)


MANY = [user("1"), CALL, RESULT, ours("noon", 2)]


@pytest.mark.parametrize(
    ("messages", "options", "says"),
    [
        ([*ONE, user("2")], {}, r"takes no words .*\n.* llm -c"),
        ([*ONE, user(PICTURE)], {}, "takes no words"),
        ([], {}, "There is nothing to retry"),
        ([ours("one", server="https://chat.example.org")], {}, "There is nothing to retry"),
        ([ours("one"), assistant("two")], {}, "There is nothing to retry"),
        (MANY, {"system": "Rhyme"}, "no system prompt"),
        ([ours("one", **TOOLS.instructed.metadata())], {}, "Give the same -T and --functions"),
    ],
)
def test_what_cannot_be_retried_is_refused(messages, options, says):
    with pytest.raises(llm.ModelError, match=says):
        make_plan(messages, URL, retry=True, **options)


MEMO = llm.Attachment(type="audio/mpeg", content=b"memo")
SAYS = "Buy milk"
SPOKEN = f"[Transcript of attachment.mp3]\n{SAYS}\n[End of the transcript]"


def test_what_earlier_turns_heard_stands_where_the_recording_was():
    its = {"huggingchat": {"heard": MEMO.id()}}
    common: Any = {"name": plugin.TRANSCRIBE, "server_executed": True, "provider_metadata": its}
    heard = [ToolCallPart(arguments={"file": "x"}, **common), ToolResultPart(output=SAYS, **common)]
    messages = [user("What?", MEMO), Message("assistant", [*heard, TextPart("I will")])]
    assert plugin.earlier_transcripts(messages) == {MEMO.id(): SAYS}
    before = earlier(f"User: What?\n{SPOKEN}", "Assistant: I will")
    assert make_plan([*messages, user("When?")], URL) == new(f"{before}\n\nWhen?")
    result = ToolResultPart(name="record", output="done", attachments=[MEMO])
    text = plugin.render_history([Message("tool", [result])], {MEMO.id(): SAYS})
    assert text == earlier(f"Tool: [the tool record returned: done]\n{SPOKEN}")


JSON = any_json(SMALL | st.floats() | ANY_TEXT)
NAMES = ["server", "conversation_id", "message_id", "tools", "schema", "system"]
LEFT = st.dictionaries(st.sampled_from(NAMES), st.just(URL) | JSON)
METADATA = st.none() | st.dictionaries(st.just("huggingchat"), LEFT | JSON) | st.just(kept(1))
ANY_NAME, URLS = st.none() | ANY_TEXT, st.sampled_from([None, "https://a.example/a"])
CONTENTS = st.none() | st.binary(max_size=3)
ATTACHMENTS = st.builds(llm.Attachment, type=ANY_NAME, path=ANY_NAME, url=URLS, content=CONTENTS)
SAID = st.text(st.characters(), min_size=1, max_size=20)
PARTS = st.one_of(
    st.builds(TextPart, text=SAID, provider_metadata=METADATA),
    st.builds(AttachmentPart, attachment=st.none() | ATTACHMENTS),
    st.builds(ToolCallPart, name=ANY_TEXT, arguments=st.dictionaries(ANY_TEXT, JSON, max_size=2)),
    st.builds(ToolResultPart, name=ANY_TEXT, output=ANY_TEXT, exception=st.none() | ANY_TEXT),
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool"])
HISTORIES = st.lists(st.builds(Message, ROLES, st.lists(PARTS, max_size=3)), max_size=5)


@given(HISTORIES, st.lists(PARTS, max_size=3), st.none() | SAID, st.sampled_from([URL, None]))
def test_any_history_is_sent_without_a_word_lost(messages, asked, system, url):
    with contextlib.suppress(llm.ModelError):
        again = make_plan(messages, url, retry=True)
        assert not again.retry or (again.parent and not again.text)
    chain = [*messages, Message("user", asked)]
    last = messages[-1] if messages else chain[-1]
    try:
        plan = make_plan(chain, url, system=system)
    except llm.ModelError:
        assert not any(getattr(p, "text", "") or getattr(p, "attachment", None) for p in asked)
        assert last.role != "tool" or not any(isinstance(p, ToolResultPart) for p in last.parts)
        return
    question = "\n".join(part.text for part in asked if isinstance(part, TextPart))
    assert plan.text.endswith(question)
    sent = f"{plan.system or ''}\n{plan.text}"
    if plan.parent is None:
        texts = [part.text for m in chain for part in m.parts if isinstance(part, TextPart)]
        assert all(text in sent for text in texts)
        assert system is None or system in sent
