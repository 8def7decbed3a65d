"""One exchange: what is sent, what comes back, and in what form."""

from __future__ import annotations

import asyncio
import re

import llm
import pytest
from chat_ui import PICTURE, ChatUI
from helpers import (
    TurnRequest,
    ask_sync,
    both,
    calls,
    described,
    kept,
    logged,
    only_conversation,
    parts,
    reasoning,
    run,
    sends,
)

# --- what is sent ---------------------------------------------------------------------


@both
def test_first_turn_makes_two_requests_before_its_first_token(
    server: ChatUI, ask: TurnRequest
) -> None:
    ask("[[wait=0.3]] hello")
    id = only_conversation(server).id
    assert calls(server) == [
        ("POST", "/conversation"),
        ("POST", f"/conversation/{id}"),
        ("GET", f"/api/v2/conversations/{id}"),
    ]
    # All others came after the model had begun to speak.
    assert all(request.at - server.log[1].at >= 0.3 for request in server.log[2:])


@both
def test_first_turn_waits_for_nothing_but_the_model(server: ChatUI, ask: TurnRequest) -> None:
    ask("hello")
    assert server.log[0].path == "/conversation"
    assert server.log[1].data is not None


@both
def test_message_is_sent_after_the_root_and_selects_no_tools(
    server: ChatUI, ask: TurnRequest
) -> None:
    ask("hello", system="Be brief")
    root, question, _ = server.messages(only_conversation(server).id)
    (request,) = sends(server)
    assert request.data
    assert request.data["id"] == root["id"]
    assert request.data["inputs"] == question["content"] == "hello"
    assert request.data["selectedMcpServerNames"] == []
    assert request.data["selectedMcpServers"] == []
    assert request.data["is_retry"] is False
    assert request.files == []
    assert only_conversation(server).preprompt == "Be brief"


@pytest.mark.parametrize(
    ("variable", "zone"),
    [("Europe/Berlin", "Europe/Berlin"), (":America/New_York", "America/New_York"), ("X-3", None)],
)
def test_message_says_the_time_zone(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch, variable: str, zone: str | None
) -> None:
    monkeypatch.setenv("TZ", variable)
    first = ask_sync("one")
    ask_sync("two", after=first)
    assert [request.data and request.data.get("timezone") for request in sends(server)] == [
        zone
    ] * 2
    assert zone or not any("timezone" in (request.data or ()) for request in sends(server))


@both
def test_requests_say_where_they_come_from_and_what_they_take(
    server: ChatUI, ask: TurnRequest
) -> None:
    ask("hello")
    for request in server.log:
        assert request.headers["accept"] == "*/*"
        assert request.headers["origin"] == server.url.removesuffix("/chat")
    assert {request.headers["accept-encoding"] for request in sends(server)} == {"identity"}


@both
def test_cookies_go_with_every_call_but_the_catalogue(server: ChatUI, ask: TurnRequest) -> None:
    ask("hello", key="hf-chat=session; token=login")
    for request in server.log:
        public = request.path == "/api/v2/models"
        assert request.cookies == ({} if public else {"hf-chat": "session", "token": "login"})


@both
def test_system_prompt_reaches_the_model(server: ChatUI, ask: TurnRequest) -> None:
    text = ask("[[history]]", system="Be brief").text()
    assert '"role": "system", "content": "Be brief' in text


# --- what comes back ------------------------------------------------------------------


@both
def test_answer_is_described(server: ChatUI, ask: TurnRequest) -> None:
    response = ask("hello")
    conversation = only_conversation(server)
    (answer,) = server.messages(conversation.id, "assistant")
    known = {
        "conversation_id": conversation.id,
        "message_id": answer["id"],
        "generation_id": answer["generationId"],
        "server": server.url,
        "model": "meta-llama/Llama-3.3-70B-Instruct",
    }
    assert response.text() == "You said: hello"
    assert kept(response) == known
    assert response.json() == {
        "huggingchat": known
        | {
            "url": f"{server.url}/conversation/{conversation.id}",
            "title": "hello",
            "provider": "novita",
        }
    }
    assert response.resolved_model == "meta-llama/Llama-3.3-70B-Instruct"


@both
@pytest.mark.parametrize("words", ["[[reason]]", "[[tools]]", "[[file]]", "[[unstreamed]]"])
def test_last_part_keeps_what_the_next_turn_needs(
    server: ChatUI, ask: TurnRequest, words: str
) -> None:
    response = ask(f"hello {words}", web_search=True)
    assert (
        kept(response)["message_id"] == server.messages(kept(response)["conversation_id"])[2]["id"]
    )
    holders = [
        part
        for message in response.messages()
        for part in message.parts
        if "conversation_id" in (part.provider_metadata or {}).get("huggingchat", {})
    ]
    assert len(holders) == 1


@both
def test_answer_is_streamed_as_it_comes(server: ChatUI, ask: TurnRequest) -> None:
    prompt = "[[tokens=4]] [[delay=0.2]]"

    def first_sync() -> tuple[str, list[str]]:
        chunks = iter(llm.get_model("hf-llama").prompt(prompt))
        first = next(chunks)
        return first, list(server.runs.values())

    async def first_async() -> tuple[str, list[str]]:
        async for chunk in llm.get_async_model("hf-llama").prompt(prompt):
            return chunk, list(server.runs.values())
        raise AssertionError("nothing came")

    first, states = first_sync() if ask is ask_sync else asyncio.run(first_async())
    assert first == "w0 "
    assert states == ["running"]


@both
def test_nothing_waits_for_the_title(server: ChatUI, ask: TurnRequest) -> None:
    response = ask("[[title_delay=30]] hello")
    assert response.text() == "You said: [[title_delay=30]] hello"
    assert "title" not in described(response)
    assert list(server.runs.values()) == ["running"]


@both
def test_title_that_comes_first_is_kept(server: ChatUI, ask: TurnRequest) -> None:
    response = ask("[[title=A poem]] [[title_first]]")
    assert described(response)["title"] == "A poem"


# --- reasoning ------------------------------------------------------------------------

THOUGHTS = "Let me think about\n\nthis carefully."


@both
@pytest.mark.parametrize(
    ("words", "thought", "said"),
    [
        ("[[reason]]", THOUGHTS, "You said: [[reason]]"),
        ("[[reason]] [[split]]", THOUGHTS, "You said: [[reason]] [[split]]"),
        ("[[think]]", "pondering deeply", "\n\nDone."),
        ("[[think]] [[split=3]]", "pondering deeply", "\n\nDone."),
        ("[[reasoning_events]]", "Let me think.", "You said: [[reasoning_events]]"),
    ],
)
def test_reasoning_is_a_part_of_its_own(
    server: ChatUI, ask: TurnRequest, words: str, thought: str, said: str
) -> None:
    response = ask(words)
    assert [part["type"] for part in parts(response)] == ["reasoning", "text"]
    assert reasoning(response) == thought
    assert response.text() == said


def test_reasoning_is_shown_dim_and_logged_apart(server: ChatUI) -> None:
    shown = run("-m", "hf-llama", "[[reason]]")
    assert shown.stdout == "You said: [[reason]]\n"
    assert shown.stderr == f"{THOUGHTS}\n"
    (entry,) = logged()
    assert entry["response"] == "You said: [[reason]]"
    assert THOUGHTS in str(entry["reasoning"])


def test_reasoning_can_be_hidden(server: ChatUI) -> None:
    shown = run("-m", "hf-llama", "-R", "[[reason]]")
    assert shown.stdout == "You said: [[reason]]\n"
    assert shown.stderr == ""


@both
def test_words_that_only_look_like_tags_stay(server: ChatUI, ask: TurnRequest) -> None:
    prompt = "a <think> b </think> c <thin"
    assert ask(prompt).text() == f"You said: {prompt}"


# --- odd streams ----------------------------------------------------------------------

UNICODE = "Привет, мир! 日本語 👩‍👩‍👧 e\u0301 \\u0000 literal\nnew\u2028line next\u0085line 😀"


@both
@pytest.mark.parametrize(
    "words",
    ["", "[[noise]]", "[[split]]", "[[split=7]]", "[[noise]] [[split=5]]", "[[unstreamed]]"],
)
@pytest.mark.parametrize(
    ("steering", "said"),
    [
        ("[[unicode]]", UNICODE),
        ("[[surrogates]]", "Look: 😀 there"),
        ("[[tokens=12]]", "".join(f"w{number} " for number in range(12))),
    ],
)
def test_answer_is_what_the_model_said(
    server: ChatUI, ask: TurnRequest, words: str, steering: str, said: str
) -> None:
    response = ask(f"{steering} {words}")
    assert response.text() == said
    (answer,) = server.messages(only_conversation(server).id, "assistant")
    assert answer["content"].rstrip() == said.rstrip()


def test_answer_is_printed_as_it_is(server: ChatUI) -> None:
    assert run("-m", "hf-llama", "[[unicode]]").stdout == f"{UNICODE}\n"
    assert run("-m", "hf-llama", "--no-stream", "[[unicode]]").stdout == f"{UNICODE}\n"
    assert run("-m", "hf-llama", "--async", "[[unicode]]").stdout == f"{UNICODE}\n"


# --- the command line -----------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [(), ("--no-stream",), ("--async",), ("--async", "--no-stream")]
)
def test_prompt_is_logged_with_the_ids_of_the_server(
    server: ChatUI, options: tuple[str, ...]
) -> None:
    assert (
        run("-m", "hf-llama-3.3-70b-instruct", "-s", "Be brief", "hello", *options).stdout
        == "You said: hello\n"
    )
    conversation = only_conversation(server)
    (entry,) = logged()
    assert entry["model"] == "huggingchat/meta-llama/Llama-3.3-70B-Instruct"
    assert entry["prompt"] == "hello"
    assert entry["system"] == "Be brief"
    assert entry["response"] == "You said: hello"
    found = entry["response_json"]["huggingchat"]
    assert found["conversation_id"] == conversation.id
    assert found["message_id"] == server.messages(conversation.id, "assistant")[0]["id"]
    assert "You said: hello" in run("logs").stdout


def test_key_is_taken_from_where_people_put_it(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def used(*options: str) -> str:
        run("-m", "hf-llama", "hello", *options)
        return sends(server)[-1].cookies["hf-chat"]

    made_up = used()
    monkeypatch.setenv("LLM_HUGGINGCHAT_KEY", "hf-chat=from-environment")
    assert used() == "from-environment" != made_up
    host = re.sub(r"https?://|/chat", "", server.url)
    run("keys", "set", f"huggingchat:{host}", "--value", '{"hf-chat": "from-store"}')
    assert used() == "from-store"
    assert used("--key", "hf-chat=from-option") == "from-option"
    run("keys", "set", "work", "--value", "hf-chat=by-name")
    assert used("--key", "work") == "by-name"


@both
def test_router_says_who_answered(server: ChatUI, ask: TurnRequest) -> None:
    response = ask("hello", model="hf-omni")
    found = described(response)
    assert response.resolved_model == "zai-org/GLM-4.6"
    assert found["route"] == "default"
    assert found["provider"] == "novita"
    assert found["model"] == "omni"


def test_resolved_model_is_logged(server: ChatUI) -> None:
    run("-m", "hf-omni", "hello")
    (entry,) = logged()
    assert entry["resolved_model"] == "zai-org/GLM-4.6"


@both
def test_file_in_an_answer_is_a_link_where_it_came(server: ChatUI, ask: TurnRequest) -> None:
    text = ask("[[file]] look here").text()
    (link,) = re.findall(r"\n\[picture\.png\]\((\S+)\)\n", text)
    assert link.startswith(f"{server.url}/conversation/{only_conversation(server).id}/output/")
    before, after = re.split(r"\n\[picture\.png\]\(\S+\)\n", text)
    assert before.strip()
    assert after.strip()
    assert before + after == "You said: [[file]] look here"


def test_file_in_an_answer_can_be_fetched(server: ChatUI, tmp_path) -> None:
    text = run("-m", "hf-llama", "[[file]] look").stdout
    (link,) = re.findall(r"\((\S+)\)", text)
    run("huggingchat", "download", link, "-o", str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").read_bytes() == PICTURE
