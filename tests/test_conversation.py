"""llm's chain and the server's tree are one, however a conversation is continued."""

import asyncio
from typing import Any

import helpers as h
import llm
import llm.plugins
import pytest
from chat_ui import ChatUI, Fault

pytestmark = pytest.mark.usefixtures("quick")


# --- a line ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", [(), ("--async",), ("--no-stream",)], ids=" ".join)
def test_continued_prompts_make_a_line(server, way):
    h.run("-m", "hf-llama", "one", "-s", "Be brief", *way)
    h.run("-c", "two", *way)
    shown = h.run("-c", "[[history]]", *way)
    conversation = h.only_conversation(server)
    assert h.tree(server, conversation.id) == {"one": {"two": {"[[history]]": {}}}}
    said = ["one", "You said: one", "two", "You said: two", "[[history]]"]
    assert [text for _, text in h.seen(shown.stdout)[1:]] == said
    inputs = [request.data["inputs"] for request in h.sends(server) if request.data]
    assert inputs == ["one", "two", "[[history]]"]
    assert conversation.preprompt == "Be brief"
    assert shown.stderr == ""
    h.run("-c", "four", "-s", "Be rude", *way)
    assert "System: Be rude" in (h.sends(server)[-1].data or {})["inputs"]


def test_later_turn_makes_one_request_before_its_first_token(server):
    response = h.ask_async("one")
    path = f"/conversation/{h.only_conversation(server).id}"
    h.wait_for(lambda: "running" not in server.runs.values())
    before = len(h.calls(server))
    server.may_speak.clear()
    with h.meanwhile(h.ask_async, "two", after=response) as answer:
        h.wait_for(lambda: len(server.all_runs) == 2)
        assert h.calls(server)[before:] == [("POST", path)]
        server.may_speak.set()
        assert answer.result().text() == "You said: two"


async def test_sync_and_async_continue_each_other(server):
    sync = llm.get_model("hf-llama").conversation()
    asynchronous = llm.get_async_model("hf-llama").conversation()
    for prompt in ("one", "two", "three"):
        sync.prompt(prompt).text()  # where a loop runs, too
        await asynchronous.prompt(prompt).text()
    for words in ("-m hf-llama one", "-c --async two", "-c three"):
        await asyncio.to_thread(h.run, *words.split())
    line: dict[str, Any] = {"one": {"two": {"three": {}}}}
    assert [h.tree(server, id) for id in server.conversations] == [line, line, line]


@h.both
def test_two_replies_are_two_branches(server, ask):
    first = ask("one")
    left = ask("left", after=first)
    right = ask("right [[history]]", after=first)
    ask("lefter", after=left)
    assert h.tree(server) == {"one": {"left": {"lefter": {}}, "right [[history]]": {}}}
    words = ["one", "You said: one", "right [[history]]"]
    assert [said for _, said in h.seen(right.text())] == words


# --- the answer's id ------------------------------------------------------------------


@pytest.mark.parametrize("word", ["[[nofetch]]", f"[[slowfetch={h.NEVER}]]"])
def test_answer_whose_id_cannot_be_had_is_given_and_found_next_time(server, word, monkeypatch):
    monkeypatch.setattr("llm_huggingchat.limits.id_timeout", 0.1)
    with h.soon():
        response = h.ask_async(f"one {word}")
    assert response.text() == f"You said: one {word}"
    assert "message_id" not in h.kept(response)
    h.only_conversation(server).words.clear()
    h.ask_async("two", after=response)
    assert h.tree(server) == {f"one {word}": {"two": {}}}


async def test_ids_of_short_answers_are_had_though_the_server_is_far_away(server):
    server.latency = 0.15
    model = llm.get_async_model("hf-llama")
    responses = [model.prompt(f"[[say]]{number}[[/say]]") for number in range(5)]
    await asyncio.gather(*(response.text() for response in responses))
    found = [h.described(await response.to_sync_response()) for response in responses]
    answers = [server.messages(id, "assistant")[0]["id"] for id in server.conversations]
    assert sorted(answer.get("message_id", "") for answer in found) == sorted(answers)


def test_another_model_takes_over_unless_the_web_page_chose_one_meanwhile(server, caplog):
    first = h.ask_sync("one")
    conversation = h.only_conversation(server)
    server.messages(conversation.id)
    server.log.clear()
    second = h.ask_sync("two", after=first, model="hf-qwen")
    change = ("PATCH", f"/api/v2/conversations/{conversation.id}")
    assert h.calls(server)[:2] == [change, ("POST", f"/conversation/{conversation.id}")]
    assert conversation.model == second.resolved_model == h.QWEN
    server.messages(conversation.id)
    other = conversation.model = "Qwen/Qwen3.6-27B"
    third = h.ask_sync("three", after=second, model="hf-qwen")
    assert caplog.messages == [f"{other} answered: it was chosen on the web page"]
    assert third.resolved_model == h.described(third)["model"] == other
    fourth = h.ask_sync("four", after=third)
    assert fourth.resolved_model == h.described(fourth)["model"] == h.LLAMA
    assert h.tree(server, conversation.id) == {"one": {"two": {"three": {"four": {}}}}}
    assert h.calls(server).count(change) == 2


# --- turns and histories from elsewhere -----------------------------------------------


def test_turn_of_another_provider_is_carried_once(server):
    first = h.ask_sync("one")
    others = [llm.user("two"), llm.assistant("Squawk: two")]
    earlier = [*first.prompt.messages, *first.messages()]
    second = h.ask_sync(messages=[*earlier, *others, llm.user("three")])
    messages = h.seen(h.ask_sync("[[history]]", after=second).text())
    assert [role for role, _ in messages] == ["user", "assistant"] * 2 + ["user"]
    (_, carried) = messages[2]
    assert carried.endswith("three")
    for piece in ("User: two", "Assistant: Squawk: two"):
        assert carried.count(piece) == 1
    assert "one" not in carried
    assert messages[4] == ("user", "[[history]]")


def test_attachments_are_sent_once_and_only_named_in_a_carried_history(server, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("Rex is a dog")
    attachment = llm.Attachment(path=str(notes), type="text/plain")
    first = h.ask_sync("one", attachments=[attachment])
    h.ask_sync("two", after=first)
    assert [len(request.files) for request in h.sends(server)] == [1, 0]
    assert b"Rex is a dog" not in h.sends(server)[1].body
    history = [llm.user("read this", attachment), llm.assistant("Done")]
    h.ask_sync(messages=[*history, llm.user("and now?")])
    (_, other) = server.conversations
    (question,) = server.messages(other, "user")
    assert "notes.txt" in question["content"]
    assert "Rex is a dog" not in question["content"]
    assert h.sends(server)[2].files == []


# --- conversations that are not there -------------------------------------------------


def whole_history(server: ChatUI, id: str) -> bool:
    """Whether the one question of a conversation holds the earlier turn, and then the new one."""
    (question,) = server.messages(id, "user")
    content = question["content"]
    return "User: one" in content and "You said: one" in content and bool(content.endswith("two"))


@h.both
@pytest.mark.parametrize("model", ["hf-llama", "hf-qwen"])
def test_deleted_conversation_starts_anew_and_says_so(server, ask, model, capfd, caplog):
    first = ask("one", system="Be brief")
    gone = h.kept(first)["conversation_id"]
    server.messages(gone)
    del server.conversations[gone]
    second = ask("two", after=first, model=model)
    new = h.only_conversation(server)
    assert h.kept(second)["conversation_id"] == new.id != gone
    assert whole_history(server, new.id)
    assert new.preprompt == "Be brief"
    assert tuple(capfd.readouterr()) == ("", "")  # a library writes neither
    (told,) = caplog.messages
    assert gone in told
    h.run("-m", "hf-llama", "one")
    server.messages(list(server.conversations)[1])
    server.conversations.clear()
    assert len(h.run("-c", "two").stderr.splitlines()) == 1
    assert whole_history(server, h.only_conversation(server).id)
    assert h.run("-c", "three").stderr == ""
    assert len(server.messages(h.only_conversation(server).id, "user")) == 2


@pytest.mark.parametrize("prompt", ["one", "one [[nofetch]]"])
def test_deleted_answer_starts_anew_and_is_not_taken_for_the_conversation(server, caplog, prompt):
    first = h.ask_sync(prompt)
    old = h.only_conversation(server)
    server.messages(old.id)  # all is stored
    old.messages = [old.messages[0] | {"children": []}]
    old.words.clear()
    error = h.error_of(h.ask_sync, None, after=first, retry=True)
    h.ask_sync("two", after=first)
    for told in (error, *caplog.messages):
        assert "answer to continue after" in told
        assert "no such conversation" not in told
    assert len(server.messages(old.id)) == 1
    assert len(server.conversations) == 2


def test_another_server_gets_the_history_but_not_the_cookies(server, monkeypatch):
    h.use(server, "hf-chat=of-the-first")
    h.run("keys", "set", "huggingchat", "--value", "hf-chat=of-the-service")
    h.run("-m", "hf-llama", "one")
    with ChatUI(store_delay=0) as other:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", other.url)
        h.run("-c", "two")
        assert whole_history(other, h.only_conversation(other).id)
        for request in other.log:
            assert b"of-the-" not in request.body + str(request.headers).encode()
        h.run("-c", "three")
        assert len(other.messages(h.only_conversation(other).id, "user")) == 2
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", server.url)
    h.run("-c", "back")
    conversation = h.only_conversation(server)
    assert conversation.session == "of-the-first"
    _, back = server.messages(conversation.id, "user")
    assert "You said: three" in back["content"]
    assert h.tree(server, conversation.id) == {"one": {back["content"]: {}}}


# --- refused messages -----------------------------------------------------------------


@pytest.mark.parametrize("status", [413, 429])
def test_message_that_is_refused_leaves_what_was_and_no_empty_conversation(server, status):
    body = b'{"message":"An error occurred"}'
    refused = Fault(status=status, body=body, content_type="application/json")
    server.faults["POST", "/conversation/*"] = [refused]
    said = h.error_of(h.ask_sync, "one" if status == 429 else "x" * (16 * 1024 * 1024))
    assert not server.conversations
    assert "/conversation/" not in said
    assert status == 429 or "The message is too large" in said
    server.faults.clear()
    first = h.ask_sync("one")
    server.faults["POST", "/conversation/*"] = [refused]
    h.error_of(h.ask_sync, "two", after=first)
    assert h.tree(server) == {"one": {}}


def test_first_message_that_a_proxy_refused_may_still_arrive(server):
    server.faults["POST", "/conversation/*"] = [Fault(status=502)] * 20
    said = h.error_of(h.ask_sync, "one")
    assert h.only_conversation(server).id in said
    server.faults["POST", "/conversation/*"] = [Fault(status=502), Fault(status=413)]
    h.error_of(h.ask_sync, "two")
    assert len(server.conversations) == 2


# --- another answer -------------------------------------------------------------------


@pytest.mark.parametrize("way", [(), ("--async",)], ids=" ".join)
def test_retry_makes_a_sibling_answer(server, way):
    h.run("-m", "hf-llama", "one")
    assert h.run("-c", "", "-o", "retry", "true", *way).stdout == "You said: one\n"
    data = h.sends(server)[1].data
    assert data
    assert data["is_retry"] is True
    assert "inputs" not in data
    h.run("-c", "two", *way)
    messages = server.messages(h.only_conversation(server).id)
    assert [message["from"] for message in messages[:2]] == ["system", "user"]
    first, again, _ = server.messages(h.only_conversation(server).id, "assistant")
    assert (first["ancestors"], first["children"]) == (again["ancestors"], [])
    assert messages[-2]["content"] == "two"
    assert messages[-2]["ancestors"][-1] == again["id"]


async def test_twenty_prompts_go_at_once(server, monkeypatch):
    """None waits for another's answer: all are sent before the first is given."""
    for name in ("read_timeout", "reconnect_timeout"):
        monkeypatch.setattr(f"llm_huggingchat.limits.{name}", h.NEVER)
    server.may_speak.clear()
    model = llm.get_async_model("hf-llama")
    prompts = [model.prompt(f"number {number}") for number in range(20)]
    answers = asyncio.gather(*(prompt.text() for prompt in prompts))
    await h.until(lambda: len(server.runs) == 20)
    server.may_speak.set()
    assert await answers == [f"You said: number {number}" for number in range(20)]
    assert len(server.conversations) == 20


def test_session_that_was_made_up_is_forgotten_where_the_server_wants_a_login(guarded):
    assert "requires a login" in h.failure("-m", "hf-llama", "one")
    kept = h.keys()
    assert f"huggingchat:{h.host(guarded)}" not in kept


# --- models that the server does not offer any more ------------------------------------


def forget(server: ChatUI) -> None:
    """A Llama leaves the catalogue."""
    server.models = [model for model in server.models if "Llama-3.3" not in model["id"]]
    h.run("huggingchat", "refresh")


@pytest.fixture
def removed(server: ChatUI) -> ChatUI:
    """One question was put to that Llama."""
    h.run("-m", "hf-llama-3.3-70b-instruct", "My name is Ada")
    forget(server)
    return server


def test_conversation_goes_on_with_another_model_as_the_error_says(removed):
    for arguments in (("-c",), ("-m", "huggingchat/meta-llama/Llama-3.3-70B-Instruct")):
        said = h.failure(*arguments, "Who am I?")
        assert "huggingchat/meta-llama/Llama-3.3-70B-Instruct is no longer offered by" in said
        assert "-m MODEL" in said
    assert len(h.sends(removed)) == 1
    assert h.run("-c", "-m", "hf-qwen", "Who am I?").stdout == "You said: Who am I?\n"
    assert len({request.path for request in h.sends(removed)}) == 1


def test_conversation_is_found_from_another_server(removed, monkeypatch):
    with ChatUI() as other:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", other.url)
        forget(other)
        assert "You said" in h.run("-c", "-m", "hf-qwen", "Who am I?").stdout


def test_model_that_was_gone_before_the_first_refresh_is_known_from_its_prompt(server):
    server.faults["GET", "/api/v2/models"] = [Fault(status=404)]
    h.run("-m", "hf-llama-3.3-70b-instruct", "My name is Ada")
    server.faults.clear()
    forget(server)
    assert "is no longer offered by" in h.failure("-c", "Who am I?")
    assert h.run("-c", "-m", "hf-qwen", "Who am I?").stdout == "You said: Who am I?\n"
