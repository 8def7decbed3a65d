"""llm's chain and the server's tree are one, however a conversation is continued."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import llm
import llm.plugins
import pytest
from chat_ui import ChatUI, Fault
from helpers import (
    LLAMA,
    NEVER,
    QWEN,
    TurnRequest,
    ask_async,
    ask_sync,
    both,
    calls,
    described,
    failure,
    host,
    kept,
    keys,
    meanwhile,
    only_conversation,
    run,
    seen,
    sends,
    soon,
    tree,
    until,
    use,
    wait_for,
)

from llm_huggingchat import reset

pytestmark = pytest.mark.usefixtures("quick")


# --- a line ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", [(), ("--async",), ("--no-stream",)], ids=" ".join)
def test_continued_prompts_make_a_line(server: ChatUI, way: tuple[str, ...]) -> None:
    run("-m", "hf-llama", "one", "-s", "Be brief", *way)
    run("-c", "two", *way)
    shown = run("-c", "[[history]]", *way)
    conversation = only_conversation(server)
    assert tree(server, conversation.id) == {"one": {"two": {"[[history]]": {}}}}
    assert seen(shown.stdout)[1:] == [
        ("user", "one"),
        ("assistant", "You said: one"),
        ("user", "two"),
        ("assistant", "You said: two"),
        ("user", "[[history]]"),
    ]
    inputs = [request.data["inputs"] for request in sends(server) if request.data]
    assert inputs == ["one", "two", "[[history]]"]
    assert conversation.preprompt == "Be brief"
    assert shown.stderr == ""
    run("-c", "four", "-s", "Be rude", *way)
    assert "System: Be rude" in (sends(server)[-1].data or {})["inputs"]


def test_later_turn_makes_one_request_before_its_first_token(server: ChatUI) -> None:
    response = ask_async("one")
    path = f"/conversation/{only_conversation(server).id}"
    wait_for(lambda: "running" not in server.runs.values())
    before = len(calls(server))
    server.may_speak.clear()
    with meanwhile(ask_async, "two", after=response) as answer:
        wait_for(lambda: len(server.all_runs) == 2)
        assert calls(server)[before:] == [("POST", path)]
        server.may_speak.set()
        assert answer.result().text() == "You said: two"


def test_chat_keeps_its_connections(server: ChatUI) -> None:
    run("chat", "-m", "hf-llama", "-s", "Be brief", input="one\ntwo\nthree\nfour\nquit\n")
    id = only_conversation(server).id
    assert tree(server, id) == {"one": {"two": {"three": {"four": {}}}}}
    second, *_ = later = sends(server)[1:]
    opened = {request.connection for request in server.log if request.number < second.number}
    assert {request.connection for request in later} <= opened


async def test_sync_and_async_continue_each_other(server: ChatUI) -> None:
    sync = llm.get_model("hf-llama").conversation()
    asynchronous = llm.get_async_model("hf-llama").conversation()
    for prompt in ("one", "two", "three"):
        sync.prompt(prompt).text()  # where a loop runs, too
        await asynchronous.prompt(prompt).text()
    for words in ("-m hf-llama one", "-c --async two", "-c three"):
        await asyncio.to_thread(run, *words.split())
    line: dict[str, Any] = {"one": {"two": {"three": {}}}}
    assert [tree(server, id) for id in server.conversations] == [line, line, line]


# --- branches -------------------------------------------------------------------------


@both
def test_two_replies_are_two_branches(server: ChatUI, ask: TurnRequest) -> None:
    first = ask("one")
    left = ask("left", after=first)
    right = ask("right [[history]]", after=first)
    ask("lefter", after=left)
    assert tree(server, only_conversation(server).id) == {
        "one": {"left": {"lefter": {}}, "right [[history]]": {}}
    }
    words = ["one", "You said: one", "right [[history]]"]
    assert [said for _, said in seen(right.text())] == words


# --- the answer's id ------------------------------------------------------------------


@pytest.mark.parametrize("word", ["[[nofetch]]", f"[[slowfetch={NEVER}]]"])
def test_answer_whose_id_cannot_be_had_is_given_and_found_next_time(
    server: ChatUI, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.id_timeout", 0.1)
    with soon():
        response = ask_async(f"one {word}")
    assert response.text() == f"You said: one {word}"
    assert "message_id" not in kept(response)
    only_conversation(server).words.clear()
    ask_async("two", after=response)
    assert tree(server, only_conversation(server).id) == {f"one {word}": {"two": {}}}


async def test_ids_of_short_answers_are_had_though_the_server_is_far_away(server: ChatUI) -> None:
    server.latency = 0.15
    model = llm.get_async_model("hf-llama")
    responses = [model.prompt(f"[[say]]{number}[[/say]]") for number in range(5)]
    await asyncio.gather(*(response.text() for response in responses))
    found = [described(await response.to_sync_response()) for response in responses]
    answers = [server.messages(id, "assistant")[0]["id"] for id in server.conversations]
    assert sorted(answer.get("message_id", "") for answer in found) == sorted(answers)


# --- another model --------------------------------------------------------------------


def test_another_model_takes_the_conversation_over(server: ChatUI) -> None:
    first = ask_sync("one")
    wait_for(lambda: "running" not in server.runs.values())
    before = len(calls(server))
    second = ask_sync("two", after=first, model="hf-qwen")
    conversation = only_conversation(server)
    assert calls(server)[before:][:2] == [
        ("PATCH", f"/api/v2/conversations/{conversation.id}"),
        ("POST", f"/conversation/{conversation.id}"),
    ]
    assert conversation.model == second.resolved_model == QWEN
    assert tree(server, conversation.id) == {"one": {"two": {}}}


def test_model_that_was_chosen_on_the_web_page_is_told_and_then_changed_back(
    server: ChatUI, caplog: pytest.LogCaptureFixture
) -> None:
    first = ask_sync("one")
    other = "Qwen/Qwen3.6-27B"
    server.messages(only_conversation(server).id)
    only_conversation(server).model = other
    second = ask_sync("two", after=first)
    assert caplog.messages == [f"{other} answered: it was chosen on the web page"]
    assert second.resolved_model == described(second)["model"] == other
    third = ask_sync("three", after=second)
    assert third.resolved_model == described(third)["model"] == LLAMA
    assert [method for method, _ in calls(server)].count("PATCH") == 1


# --- turns and histories from elsewhere -----------------------------------------------


def test_turn_of_another_provider_is_carried_once(server: ChatUI) -> None:
    first = ask_sync("one")
    others = [llm.user("two"), llm.assistant("Squawk: two")]
    earlier = [*first.prompt.messages, *first.messages()]
    second = ask_sync(messages=[*earlier, *others, llm.user("three")])
    messages = seen(ask_sync("[[history]]", after=second).text())
    assert [role for role, _ in messages] == ["user", "assistant"] * 2 + ["user"]
    (_, carried) = messages[2]
    assert carried.endswith("three")
    for piece in ("User: two", "Assistant: Squawk: two"):
        assert carried.count(piece) == 1
    assert "one" not in carried
    assert messages[4] == ("user", "[[history]]")


def test_attachments_are_sent_once_and_only_named_in_a_carried_history(
    server: ChatUI, tmp_path: pathlib.Path
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("Rex is a dog")
    attachment = llm.Attachment(path=str(notes), type="text/plain")
    first = ask_sync("one", attachments=[attachment])
    ask_sync("two", after=first)
    assert [len(request.files) for request in sends(server)] == [1, 0]
    assert b"Rex is a dog" not in sends(server)[1].body
    history = [llm.user("read this", attachment), llm.assistant("Done")]
    ask_sync(messages=[*history, llm.user("and now?")])
    (_, other) = server.conversations
    (question,) = server.messages(other, "user")
    assert "notes.txt" in question["content"]
    assert "Rex is a dog" not in question["content"]
    assert sends(server)[2].files == []


# --- conversations that are not there -------------------------------------------------


def whole_history(server: ChatUI, id: str) -> bool:
    """Does the one question of a conversation hold the earlier turn, and then the new one?"""
    (question,) = server.messages(id, "user")
    content = question["content"]
    return "User: one" in content and "You said: one" in content and bool(content.endswith("two"))


@both
@pytest.mark.parametrize("model", ["hf-llama", "hf-qwen"])
def test_deleted_conversation_starts_anew_and_says_so(
    server: ChatUI,
    ask: TurnRequest,
    model: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = ask("one", system="Be brief")
    gone = kept(first)["conversation_id"]
    server.messages(gone)
    del server.conversations[gone]
    second = ask("two", after=first, model=model)
    new = only_conversation(server)
    assert kept(second)["conversation_id"] == new.id != gone
    assert whole_history(server, new.id)
    assert new.preprompt == "Be brief"
    assert tuple(capfd.readouterr()) == ("", "")  # a library writes neither
    (told,) = caplog.messages
    assert gone in told
    run("-m", "hf-llama", "one")
    server.messages(list(server.conversations)[1])
    server.conversations.clear()
    assert len(run("-c", "two").stderr.splitlines()) == 1
    assert whole_history(server, only_conversation(server).id)
    assert run("-c", "three").stderr == ""
    assert len(server.messages(only_conversation(server).id, "user")) == 2


def test_conversation_of_another_account_starts_anew(
    server: ChatUI, caplog: pytest.LogCaptureFixture
) -> None:
    first = ask_async("one", key="hf-chat=ann")
    ask_async("two", after=first, key="hf-chat=bob")
    anns, bobs = server.conversations.values()
    assert (anns.session, bobs.session) == ("ann", "bob")
    assert whole_history(server, bobs.id)
    assert tree(server, anns.id) == {"one": {}}
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("prompt", ["one", "one [[nofetch]]"])
def test_deleted_answer_starts_anew_and_is_not_taken_for_the_conversation(
    server: ChatUI, caplog: pytest.LogCaptureFixture, prompt: str
) -> None:
    first = ask_sync(prompt)
    old = only_conversation(server)
    server.messages(old.id)  # all is stored
    old.messages = [old.messages[0] | {"children": []}]
    old.words.clear()
    with pytest.raises(llm.ModelError) as error:
        ask_sync(None, after=first, retry=True)
    ask_sync("two", after=first)
    for told in (str(error.value), *caplog.messages):
        assert "answer to continue after" in told
        assert "no such conversation" not in told
    assert len(server.messages(old.id)) == 1
    assert len(server.conversations) == 2


def test_another_server_gets_the_history_but_not_the_cookies(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(server, "hf-chat=of-the-first")
    run("keys", "set", "huggingchat", "--value", "hf-chat=of-the-service")
    run("-m", "hf-llama", "one")
    with ChatUI(store_delay=0) as other:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", other.url)
        run("-c", "two")
        assert whole_history(other, only_conversation(other).id)
        for request in other.log:
            assert b"of-the-" not in request.body + str(request.headers).encode()
        run("-c", "three")
        assert len(other.messages(only_conversation(other).id, "user")) == 2
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", server.url)
    run("-c", "back")
    conversation = only_conversation(server)
    assert conversation.session == "of-the-first"
    _, back = server.messages(conversation.id, "user")
    assert "You said: three" in back["content"]
    assert tree(server, conversation.id) == {"one": {back["content"]: {}}}


# --- refused messages -----------------------------------------------------------------


@pytest.mark.parametrize("status", [413, 429])
def test_first_message_that_is_refused_leaves_no_empty_conversation_and_a_later_one_what_was(
    server: ChatUI, status: int
) -> None:
    body = b'{"message":"An error occurred"}'
    refused = Fault(status=status, body=body, content_type="application/json")
    server.faults["POST", "/conversation/*"] = [refused]
    with pytest.raises(llm.ModelError) as error:
        ask_sync("one" if status == 429 else "x" * (16 * 1024 * 1024))
    assert not server.conversations
    assert "/conversation/" not in str(error.value)
    assert status == 429 or "The message is too large" in str(error.value)
    server.faults.clear()
    first = ask_sync("one")
    server.faults["POST", "/conversation/*"] = [refused]
    with pytest.raises(llm.ModelError):
        ask_sync("two", after=first)
    assert tree(server, only_conversation(server).id) == {"one": {}}


def test_first_message_that_a_proxy_refused_may_still_arrive(server: ChatUI) -> None:
    server.faults["POST", "/conversation/*"] = [Fault(status=502)] * 20
    with pytest.raises(llm.ModelError) as error:
        ask_sync("one")
    assert only_conversation(server).id in str(error.value)
    server.faults["POST", "/conversation/*"] = [Fault(status=502), Fault(status=413)]
    with pytest.raises(llm.ModelError):
        ask_sync("two")
    assert len(server.conversations) == 2


# --- another answer -------------------------------------------------------------------


@pytest.mark.parametrize("way", [(), ("--async",)], ids=" ".join)
def test_retry_makes_a_sibling_answer(server: ChatUI, way: tuple[str, ...]) -> None:
    run("-m", "hf-llama", "one")
    assert run("-c", "", "-o", "retry", "true", *way).stdout == "You said: one\n"
    data = sends(server)[1].data
    assert data
    assert data["is_retry"] is True
    assert "inputs" not in data
    run("-c", "two", *way)
    messages = server.messages(only_conversation(server).id)
    assert [message["from"] for message in messages[:2]] == ["system", "user"]
    first, again, _ = server.messages(only_conversation(server).id, "assistant")
    assert (first["ancestors"], first["children"]) == (again["ancestors"], [])
    assert messages[-2]["content"] == "two"
    assert messages[-2]["ancestors"][-1] == again["id"]


def test_retry_wants_an_answer_and_no_words(server: ChatUI) -> None:
    first = ask_async("one")
    for prompt, after in (("words", first), ("", None)):
        with pytest.raises(llm.ModelError, match="retry"):
            ask_async(prompt, after=after, options={"retry": True})
    assert len(sends(server)) == 1


# --- many at once ---------------------------------------------------------------------


async def test_twenty_prompts_go_at_once(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> None:
    """None waits for another's answer: all are sent before the first is given."""
    for name in ("read_timeout", "reconnect_timeout"):
        monkeypatch.setattr(f"llm_huggingchat.limits.{name}", NEVER)
    server.may_speak.clear()
    model = llm.get_async_model("hf-llama")
    prompts = [model.prompt(f"number {number}") for number in range(20)]
    answers = asyncio.gather(*(prompt.text() for prompt in prompts))
    await until(lambda: len(server.runs) == 20)
    server.may_speak.set()
    assert await answers == [f"You said: number {number}" for number in range(20)]
    assert len(server.conversations) == 20


# --- sessions -------------------------------------------------------------------------


def test_anonymous_session_is_kept_for_the_next_process(server: ChatUI) -> None:
    run("-m", "hf-llama", "one")
    assert f"huggingchat:{host(server)}" in keys()
    reset()
    run("-c", "two")
    assert tree(server, only_conversation(server).id) == {"one": {"two": {}}}


def test_session_that_was_made_up_is_forgotten_where_the_server_wants_a_login(
    guarded: ChatUI,
) -> None:
    assert "requires a login" in failure("-m", "hf-llama", "one")
    assert f"huggingchat:{host(guarded)}" not in keys()
