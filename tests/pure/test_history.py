"""llm's chain of messages, to what is sent and after which answer."""

from __future__ import annotations

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

from llm_huggingchat import (
    MALFORMED,
    TRANSCRIBE,
    Parent,
    Plan,
    PromptedFeatures,
    SentInstructions,
    earlier_transcripts,
    instructions,
    make_plan,
    parent_of,
    pending_schema,
    tool_definition,
    transcript,
)

URL = "https://huggingface.co/chat"
PICTURE = llm.Attachment(type="image/png", content=b"png")
NOTES = llm.Attachment(type="text/plain", path="notes/my notes.txt")
FAR = llm.Attachment(url="https://example.org/a/far%20away.jpg?size=1")


def kept(number: int, **more: Any) -> dict[str, Any]:
    """What an answer of this server keeps."""
    known = {
        "server": URL,
        "conversation_id": f"c{number}",
        "message_id": f"m{number}",
        "generation_id": f"g{number}",
        "model": "a/b",
    }
    return {"huggingchat": known | more}


def ours(text: str, number: int = 1, **more: Any) -> Message:
    """An answer from this server."""
    return assistant(TextPart(text=text, provider_metadata=kept(number, **more)))


def parent(number: int = 1) -> Parent:
    return Parent(f"c{number}", f"m{number}", f"g{number}", "a/b")


def earlier(*turns: str) -> str:
    return "\n\n".join(["[Earlier messages]", *turns, "[End of the earlier messages]"])


# --- where to go on -------------------------------------------------------------------


def test_first_turn():
    assert make_plan([user("Hello")], URL) == Plan(None, None, "Hello")


def test_first_turn_with_all_there_can_be():
    messages = [system("Be brief"), user("Look", PICTURE, "here", NOTES)]
    assert make_plan(messages, URL) == Plan(None, "Be brief", "Look\nhere", (PICTURE, NOTES))


def test_attachment_alone():
    assert make_plan([user(PICTURE)], URL) == Plan(None, None, "", (PICTURE,))


def test_later_turn():
    messages = [system("Be brief"), user("Hello"), ours("Hi"), user("More", PICTURE)]
    assert make_plan(messages, URL) == Plan(parent(), None, "More", (PICTURE,))


def test_the_newest_answer_is_the_parent():
    messages = [user("1"), ours("one", 1), user("2"), ours("two", 2), user("3")]
    assert make_plan(messages, URL).parent == parent(2)


def test_branch_goes_on_after_the_answer_that_its_chain_ends_in():
    left = [user("1"), ours("one"), user("left")]
    right = [user("1"), ours("one"), user("right")]
    assert make_plan(left, URL) == Plan(parent(), None, "left")
    assert make_plan(right, URL) == Plan(parent(), None, "right")


def test_metadata_may_be_on_any_part():
    parts: list[Part] = [
        ReasoningPart(text="hm"),
        TextPart(text="a", provider_metadata={"openai": {"x": 1}}),
        ReasoningPart(text="", provider_metadata=kept(1)),
        TextPart(text="b"),
    ]
    assert parent_of(Message("assistant", parts), URL) == parent()


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        (kept(1, message_id=None), Parent("c1", None, "g1", "a/b")),
        (kept(1, message_id=5, generation_id="", model=[]), Parent("c1")),
        (kept(1, conversation_id=None), None),
        (kept(1, conversation_id=""), None),
        (kept(1, server="https://huggingface.co/chat/"), None),
        (kept(1, server="http://127.0.0.1:3100/chat"), None),
        ({"huggingchat": None}, None),
        ({"huggingchat": [1]}, None),
        ({"anthropic": {"signature": "s"}}, None),
        ({}, None),
        (None, None),
    ],
)
def test_parent_as_an_answer_keeps_it(metadata, found):
    message = assistant(TextPart(text="a", provider_metadata=metadata))
    assert parent_of(message, URL) == found


def test_question_is_never_a_parent():
    assert parent_of(user(TextPart(text="a", provider_metadata=kept(1))), URL) is None


# --- what the server has not seen -----------------------------------------------------


def test_turns_of_another_provider_in_between_are_told_once():
    messages = [
        user("1"),
        ours("one"),
        user("2"),
        assistant("two, by another"),
        user("3"),
    ]
    assert make_plan(messages, URL) == Plan(
        parent(), None, earlier("User: 2", "Assistant: two, by another") + "\n\n3"
    )


def test_answer_of_another_server_is_told_like_any_other():
    messages = [user("1"), ours("one", server="http://127.0.0.1:3100/chat"), user("2")]
    plan = make_plan(messages, URL)
    assert plan == Plan(None, None, earlier("User: 1", "Assistant: one") + "\n\n2")


def test_whole_history_goes_into_a_new_conversation():
    messages = [system("Be brief"), user("1"), ours("one"), user("2"), ours("two", 2), user("3")]
    assert make_plan(messages, None) == Plan(
        None,
        "Be brief",
        earlier("User: 1", "Assistant: one", "User: 2", "Assistant: two") + "\n\n3",
    )


def test_history_from_elsewhere_names_its_attachments_and_tools():
    messages = [
        user("Look", PICTURE, NOTES, FAR),
        assistant(
            ReasoningPart(text="secret thoughts"),
            "I will search.",
            ToolCallPart(name="search", arguments={"q": "é"}, tool_call_id="t"),
        ),
        tool_message(
            ToolResultPart(name="search", output="found", tool_call_id="t", attachments=[PICTURE]),
            ToolResultPart(name="fetch", output="", tool_call_id="u", exception="no network"),
        ),
        assistant("There it is."),
        user("Thanks", PICTURE),
    ]
    assert make_plan(messages, URL) == Plan(
        None,
        None,
        earlier(
            "User: Look\n[attachment: attachment.png]\n[attachment: my notes.txt]\n"
            "[attachment: far away.jpg]",
            'Assistant: I will search.\n[used the tool search with {"q": "é"}]',
            "Tool: [the tool search returned: found [attachment: attachment.png]]\n"
            "[the tool fetch returned: no network]",
            "Assistant: There it is.",
        )
        + "\n\nThanks",
        (PICTURE,),
    )


def test_text_is_sent_as_it_is():
    text = "  two spaces\n\n\ttab\u2028\0 <think> 🎉\n"
    assert make_plan([user(text)], URL).text == text
    assert make_plan([user("1"), ours("one"), user(text)], URL).text == text


def test_two_questions_in_a_row():
    assert make_plan([user("1"), user("2")], URL).text == earlier("User: 1") + "\n\n2"


def test_no_messages_are_no_transcript():
    assert transcript([]) == ""


# --- system prompts -------------------------------------------------------------------


def test_system_prompt_of_the_first_turn():
    for messages in ([system("Be brief"), user("1")], [user("1")]):
        assert make_plan(messages, URL, system="Be brief") == Plan(None, "Be brief", "1")


def test_system_prompt_that_the_chain_has_already_is_not_repeated():
    messages = [system("Be brief"), user("1"), ours("one"), user("2")]
    assert make_plan(messages, URL, system="Be brief") == Plan(parent(), None, "2")


def test_new_system_prompt_on_a_later_turn_is_told():
    messages = [system("Be brief"), user("1"), ours("one"), user("2")]
    plan = make_plan(messages, URL, system="Rhyme")
    text = earlier("System: Rhyme") + "\n\n2"
    assert plan == Plan(parent(), None, text, sent=SentInstructions(system=plan.sent.system))
    assert plan.sent.system


def test_new_system_prompt_for_a_history_from_elsewhere():
    messages = [system("Be brief"), user("1"), assistant("one"), user("2")]
    plan = make_plan(messages, URL, system="Rhyme")
    text = earlier("User: 1", "Assistant: one", "System: Rhyme") + "\n\n2"
    assert plan == Plan(None, "Be brief", text, sent=SentInstructions(system=plan.sent.system))


def test_first_system_prompt_for_a_history_from_elsewhere():
    messages = [user("1"), assistant("one"), user("2")]
    assert make_plan(messages, URL, system="Rhyme") == Plan(
        None, "Rhyme", earlier("User: 1", "Assistant: one") + "\n\n2"
    )


def test_system_prompts_before_everything_else_are_one():
    messages = [system("Be brief"), system("Rhyme"), user("1")]
    assert make_plan(messages, URL) == Plan(None, "Be brief\n\nRhyme", "1")


def test_system_prompt_in_the_middle_stays_there():
    messages = [user("1"), ours("one"), system("Rhyme"), user("2")]
    assert make_plan(messages, URL) == Plan(parent(), None, earlier("System: Rhyme") + "\n\n2")


# --- calls of local tools -------------------------------------------------------------


def calling(*parts: Part, **more: Any) -> Message:
    """An answer of this server that called tools on this side."""
    return assistant(*parts, ReasoningPart(text="", provider_metadata=kept(1, **more)))


def call(id: str | None = "t", **more: Any) -> ToolCallPart:
    return ToolCallPart(name="now", arguments={}, tool_call_id=id, **more)


def result(output: str = "noon", id: str | None = "t", **more: Any) -> ToolResultPart:
    return ToolResultPart(name="now", output=output, tool_call_id=id, **more)


def response(content: str) -> str:
    return f"<tool_response>\n{content}\n</tool_response>"


NOON = response('{"name": "now", "content": "noon"}')


def test_results_go_after_the_answer_that_called():
    messages = [user("1"), calling(call()), tool_message(result())]
    assert make_plan(messages, URL) == Plan(parent(), None, NOON)


def test_results_go_in_the_order_of_the_calls():
    messages = [
        user("1"),
        calling(call("a"), call("b")),
        tool_message(result("1", "a"), result("2", "b")),
    ]
    expected = [response(f'{{"name": "now", "content": "{number}"}}') for number in (1, 2)]
    assert make_plan(messages, URL).text == "\n\n".join(expected)


def test_results_and_a_question():
    messages = [user("1"), calling(call()), tool_message(result()), user("And?", PICTURE)]
    assert make_plan(messages, URL) == Plan(parent(), None, f"{NOON}\n\nAnd?", (PICTURE,))


@pytest.mark.parametrize(
    "after",
    [
        [tool_message(result(attachments=[PICTURE, NOTES]))],
        [tool_message(result()), user(PICTURE, NOTES)],
    ],
    ids=["on the result", "in a message of their own"],
)
def test_attachments_of_results_are_sent(after):
    plan = make_plan([user("1"), calling(call()), *after], URL)
    assert plan.attachments == (PICTURE, NOTES)
    assert plan.text.startswith('<tool_response>\n{"name": "now", "content": "noon"')
    anew = make_plan([user("1"), calling(call()), *after], None)
    assert anew.attachments == (PICTURE, NOTES)


def test_results_of_calls_without_ids_go_by_name():
    messages = [user("1"), calling(call(None)), tool_message(result(id=None))]
    assert make_plan(messages, URL).text == NOON


def test_results_of_others_calls_stay_a_transcript():
    messages = [
        user("1"),
        calling(call()),
        tool_message(result(), result("found", "x")),
        assistant("It is noon.", call("y")),
        tool_message(result("one", "y")),
        user("2"),
    ]
    others = earlier(
        "Tool: [the tool now returned: found]",
        "Assistant: It is noon.\n[used the tool now with {}]",
        "Tool: [the tool now returned: one]",
    )
    assert make_plan(messages, URL) == Plan(parent(), None, f"{NOON}\n\n{others}\n\n2")


def test_tools_of_the_server_have_had_their_results():
    messages = [user("1"), calling(call(server_executed=True)), tool_message(result())]
    assert make_plan(messages, URL).text.startswith("[Earlier messages]\n\nTool: [the tool now")


def test_history_that_ends_in_results_is_gone_on_from():
    messages = [user("1"), calling(call()), tool_message(result())]
    told = earlier(
        "User: 1", "Assistant: [used the tool now with {}]", "Tool: [the tool now returned: noon]"
    )
    assert make_plan(messages, None) == Plan(None, None, f"{told}\n\nGo on from there.")


def test_malformed_call_is_answered_with_what_was_wrong():
    wrong = {"huggingchat": {"problem": "it is empty"}}
    bad = ToolCallPart(name=MALFORMED, arguments={"text": ""}, tool_call_id="t")
    bad.provider_metadata = wrong
    error = 'Error: tool "malformed_tool_call" does not exist'
    messages = [user("1"), calling(bad), tool_message(result(error))]
    text = make_plan(messages, URL).text
    assert "This was no call: it is empty. Write it again" in text
    assert error not in text


# --- tools and schemas told of --------------------------------------------------------


def now(zone: str = "UTC") -> str:
    """The time.

    In a zone.
    """
    return zone


TOOLS = PromptedFeatures((tool_definition(llm.Tool.function(now)),))
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
BOTH = PromptedFeatures(TOOLS.tools, SCHEMA)


def test_new_conversation_is_told_in_its_preprompt():
    plan = make_plan([system("Be brief"), user("1")], URL, features=BOTH)
    assert (plan.parent, plan.text, plan.sent) == (None, "1", BOTH.sent)
    assert plan.system is not None
    assert plan.system.startswith("Be brief\n\nYou can call functions")
    assert '"name": "now"' in plan.system
    assert '{"type": "object", "properties": {"a": {"type": "integer"}}}' in plan.system


def test_conversation_that_is_gone_is_told_with_its_whole_history():
    messages = [user("1"), calling(call(), **BOTH.sent.metadata()), tool_message(result())]
    plan = make_plan(messages, None, features=BOTH)
    assert plan.system == instructions(BOTH, SentInstructions())
    assert "[the tool now returned: noon]" in plan.text


def test_nothing_is_told_twice():
    messages = [user("1"), ours("one", **BOTH.sent.metadata()), user("2")]
    plan = make_plan(messages, URL, features=BOTH)
    assert (plan.text, plan.sent) == ("2", BOTH.sent)


def test_later_turn_is_told_what_is_different():
    messages = [user("1"), ours("one", **BOTH.sent.metadata()), user("2")]
    plan = make_plan(messages, URL, features=TOOLS)
    assert (plan.sent, plan.features, plan.system) == (TOOLS.sent, TOOLS, None)
    said, _, question = plan.text.partition("\n[End of instructions]\n\n")
    assert said == f"[Instructions]\n{instructions(TOOLS, BOTH.sent)}"
    assert question == "2"


def test_schema_holds_until_the_tools_are_through():
    asked = [user("1"), calling(call(), **BOTH.sent.metadata())]
    assert pending_schema([*asked, tool_message(result())], URL) == SCHEMA
    assert pending_schema([*asked, tool_message(result()), user(PICTURE)], URL) == SCHEMA
    assert pending_schema([*asked, tool_message(result()), user("2")], URL) is None
    assert pending_schema([*asked, user("2")], URL) is None
    assert pending_schema([user("1"), calling(call()), tool_message(result())], URL) is None


# --- nothing to send, and retrying ----------------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [user("")],
        [user()],
        [system("Be brief")],
        [user("1"), ours("one")],
        [user("1"), ours("one"), user("")],
    ],
    ids=["empty", "no text", "no part", "system only", "no question", "no text later"],
)
def test_nothing_to_send(messages):
    for url in (URL, None):
        with pytest.raises(llm.ModelError, match="There is nothing to send"):
            make_plan(messages, url)


def test_retry_keeps_what_the_question_was_asked_with():
    messages = [user("1"), ours("one", **BOTH.sent.metadata())]
    for features in (TOOLS, BOTH):
        plan = make_plan(messages, URL, retry=True, features=features)
        answer = Parent("c1", "m1", "g1", "a/b", BOTH.sent)
        assert plan == Plan(answer, None, "", sent=BOTH.sent, features=BOTH, retry=True)


def test_retry_may_want_another_schema():
    other = PromptedFeatures(schema={"type": "array"})
    messages = [user("1"), ours("one", **PromptedFeatures(schema=SCHEMA).sent.metadata())]
    plan = make_plan(messages, URL, retry=True, features=other)
    assert (plan.features, plan.sent.schema) == (other, SCHEMA)


@pytest.mark.parametrize(
    ("before", "features", "says"),
    [
        (TOOLS, PromptedFeatures(), "Give the same -T and --functions"),
        (TOOLS, PromptedFeatures(({"name": "other"},)), "Give the same -T and --functions"),
        (PromptedFeatures(), TOOLS, "Give no -T and no --functions"),
    ],
)
def test_retry_with_other_tools_is_refused(before, features, says):
    messages = [user("1"), ours("one", **before.sent.metadata())]
    with pytest.raises(llm.ModelError, match=says):
        make_plan(messages, URL, retry=True, features=features)


def test_retry_with_another_system_prompt_is_refused():
    messages = [system("Be brief"), user("1"), ours("one")]
    assert make_plan(messages, URL, retry=True, system="Be brief").retry
    with pytest.raises(llm.ModelError, match="takes no system prompt"):
        make_plan(messages, URL, retry=True, system="Rhyme")


def test_retried_answer_that_calls_tools_gets_their_results():
    """llm passes the options of the retry with each message of the chain."""
    messages = [user("1"), calling(call(), **BOTH.sent.metadata()), tool_message(result())]
    for chain in (messages, [*messages, user(PICTURE)]):
        plan = make_plan(chain, URL, retry=True, features=BOTH)
        assert plan == make_plan(chain, URL, features=BOTH)
        assert (plan.retry, plan.text) == (False, NOON)


def test_retry_after_a_chain_of_calls():
    kept = BOTH.sent.metadata()
    messages = [user("1"), calling(call(), **kept), tool_message(result()), ours("{}", 2, **kept)]
    plan = make_plan(messages, URL, retry=True, features=TOOLS)
    assert (plan.retry, plan.parent and plan.parent.message_id) == (True, "m2")
    assert plan.features == BOTH


@pytest.mark.parametrize("question", [user("2"), user(PICTURE)])
def test_retry_takes_no_question(question):
    with pytest.raises(llm.ModelError, match=r"takes no words of its own.\s+Run: llm -c"):
        make_plan([user("1"), ours("one"), question], URL, retry=True)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [system("Be brief")],
        [assistant("one")],
        [ours("one", server="https://chat.example.org"), assistant("two")],
        [ours("one"), assistant("two")],
    ],
    ids=["empty", "system only", "another provider", "another server", "another in between"],
)
def test_nothing_to_retry(messages):
    with pytest.raises(llm.ModelError, match="There is nothing to retry"):
        make_plan(messages, URL, retry=True)


# --- recordings -----------------------------------------------------------------------

MEMO = llm.Attachment(type="audio/mpeg", content=b"memo")
SPOKEN = "[Transcript of attachment.mp3]\nBuy milk\n[End of the transcript]"


def hearing(attachment: llm.Attachment, text: str) -> list[Part]:
    """How an answer tells what its question's recording says."""
    common: dict[str, Any] = {
        "name": TRANSCRIBE,
        "server_executed": True,
        "provider_metadata": {"huggingchat": {"heard": attachment.id()}},
    }
    return [ToolCallPart(arguments={"file": "x"}, **common), ToolResultPart(output=text, **common)]


def test_recordings_are_sent_as_what_they_say():
    messages = [user("1"), ours("one"), user("What?", MEMO, PICTURE)]
    plan = make_plan(messages, URL, transcripts={MEMO.id(): "Buy milk"})
    assert plan == Plan(parent(), None, f"{SPOKEN}\n\nWhat?", (PICTURE,))
    anew = make_plan(messages, None, transcripts={MEMO.id(): "Buy milk"})
    before = earlier("User: 1", "Assistant: one")
    assert anew == Plan(None, None, f"{before}\n\n{SPOKEN}\n\nWhat?", (PICTURE,))
    assert make_plan(messages, URL).attachments == (MEMO, PICTURE)  # before it is heard


def test_what_earlier_turns_heard_stands_where_the_recording_was():
    answer = Message("assistant", [*hearing(MEMO, "Buy milk"), TextPart(text="I will")])
    messages = [user("What?", MEMO), answer, user("When?")]
    assert earlier_transcripts(messages) == {MEMO.id(): "Buy milk"}
    before = earlier(f"User: What?\n{SPOKEN}", "Assistant: I will")
    assert make_plan(messages, URL) == Plan(None, None, f"{before}\n\nWhen?")


def test_recording_of_a_tool_that_others_called():
    result = ToolResultPart(name="record", output="done", attachments=[MEMO])
    text = transcript([Message("tool", [result])], {MEMO.id(): "Buy milk"})
    tool = "Tool: [the tool record returned: done [attachment: attachment.mp3]]"
    assert text == earlier(f"{tool}\n{SPOKEN}")


def test_recording_that_is_not_there_any_more_is_named():
    gone = llm.Attachment(type="audio/mpeg", path="/nowhere/memo.mp3")
    answer = Message("assistant", [*hearing(MEMO, "Buy milk"), TextPart(text="I will")])
    text = make_plan([user("1", gone), answer, user("2")], URL).text
    assert "User: 1\n[attachment: memo.mp3]" in text


@pytest.mark.parametrize("kept", [None, {}, {"huggingchat": 1}, {"huggingchat": {"heard": 1}}])
def test_tools_that_hear_nothing_stay_tools(kept: Any):
    part = ToolResultPart(name=TRANSCRIBE, output="x", server_executed=True, provider_metadata=kept)
    messages = [Message("assistant", [part])]
    assert earlier_transcripts(messages) == {}
    assert "the tool transcribe returned: x" in transcript(messages)


# --- any history ----------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(), max_size=30)  # halves of surrogate pairs too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=6),
    max_leaves=12,
)
METADATA_OF_OURS = st.dictionaries(
    st.sampled_from(
        ["server", "conversation_id", "message_id", "model", "tools", "schema", "system", "problem"]
    ),
    st.just(URL) | JSON,
)
METADATA = (
    st.none()
    | st.dictionaries(st.just("huggingchat"), METADATA_OF_OURS | JSON)
    | st.dictionaries(
        st.just("huggingchat"), st.just({"server": URL, "conversation_id": "c", "message_id": "m"})
    )
)
ATTACHMENTS = st.builds(
    llm.Attachment,
    type=st.none() | ANY_TEXT,
    path=st.none() | ANY_TEXT,
    url=st.none() | st.just("https://example.org/a.png"),
    content=st.none() | st.binary(max_size=3),
)
SAID = st.text(st.characters(), min_size=1, max_size=20)
PARTS = st.one_of(
    st.builds(TextPart, text=SAID, provider_metadata=METADATA),
    st.builds(TextPart, text=SAID, provider_metadata=METADATA),
    st.builds(ReasoningPart, text=ANY_TEXT, provider_metadata=METADATA),
    st.builds(AttachmentPart, attachment=st.none() | ATTACHMENTS),
    st.builds(ToolCallPart, name=ANY_TEXT, arguments=st.dictionaries(ANY_TEXT, JSON, max_size=2)),
    st.builds(ToolResultPart, name=ANY_TEXT, output=ANY_TEXT, exception=st.none() | ANY_TEXT),
)
MESSAGES = st.builds(
    Message,
    role=st.sampled_from(["user", "assistant", "system", "tool"]),
    parts=st.lists(PARTS, max_size=3),
)


def texts(messages: list[Message]) -> list[str]:
    return [part.text for m in messages for part in m.parts if isinstance(part, TextPart)]


@given(
    st.lists(MESSAGES, max_size=5),
    st.lists(PARTS.filter(lambda part: not isinstance(part, ReasoningPart)), max_size=3),
    st.none() | SAID,
    st.booleans(),
)
def test_any_history_is_sent_without_a_word_lost(messages, asked, system, known):
    question = Message("user", asked)
    chain = [*messages, question]
    try:
        plan = make_plan(chain, URL if known else None, system=system)
    except llm.ModelError:
        plan = None
    has_something = any(getattr(p, "text", "") or getattr(p, "attachment", None) for p in asked)
    last = messages[-1] if messages else question
    results = last.role == "tool" and any(isinstance(part, ToolResultPart) for part in last.parts)
    assert (plan is not None) == (has_something or results)
    if plan is None:
        return
    sent = f"{plan.system or ''}\n{plan.text}"
    assert plan.text.endswith("\n".join(texts([question])))
    if plan.parent is None:
        assert all(text in sent for text in texts(chain))
        assert system is None or system in sent
    else:
        assert plan.system is None


@given(st.lists(MESSAGES, max_size=5), st.sampled_from([URL, None]))
def test_any_history_to_retry(messages, url):
    try:
        plan = make_plan(messages, url, retry=True)
    except llm.ModelError as error:
        assert "retry" in str(error) or "nothing to send" in str(error)
    else:
        assert not plan.retry or (plan.parent and not plan.text)
