"""One prompt: what is sent, what comes back, how it is shown, and what an error says."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import click
import llm
import pytest
from chat_ui import ChatUI, Fault
from click.testing import CliRunner
from helpers import (
    COOKIES,
    LLAMA,
    NEVER,
    SESSION,
    TOKEN,
    TurnRequest,
    ask_async,
    ask_sync,
    both,
    calls,
    described,
    failure,
    host,
    kept,
    logged,
    meanwhile,
    only_conversation,
    parts,
    reasoning,
    run,
    sends,
    soon,
    tree,
    use,
    wait_for,
)

from llm_huggingchat import limits, load_catalogue, reset

pytestmark = pytest.mark.usefixtures("quick")
ways = pytest.mark.parametrize("way", [(), ("--async",), ("--no-stream",)], ids=" ".join)


# --- what is sent ---------------------------------------------------------------------


def test_first_turn_makes_two_requests_before_its_first_token(server: ChatUI) -> None:
    server.may_speak.clear()
    with meanwhile(ask_async, "hello", system="Be brief") as answer:
        wait_for(lambda: server.all_runs)
        conversation = only_conversation(server)
        path = f"/conversation/{conversation.id}"
        assert calls(server)[:2] == [("POST", "/conversation"), ("POST", path)]
        server.may_speak.set()
        assert answer.result().text() == "You said: hello"
    assert calls(server)[2:] == [("GET", f"/api/v2/conversations/{conversation.id}")]
    root, question, _ = server.messages(conversation.id)
    (request,) = sends(server)
    assert request.data
    assert request.data["id"] == root["id"]
    assert request.data["inputs"] == question["content"] == "hello"
    assert request.data["selectedMcpServerNames"] == request.data["selectedMcpServers"] == []
    assert request.data["is_retry"] is False
    assert request.files == []
    assert conversation.preprompt == "Be brief"


@pytest.mark.parametrize("variable", ["Europe/Berlin", ":America/New_York", "X-3"])
def test_message_says_the_time_zone_if_it_has_a_name(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("TZ", variable)
    ask_sync("one")
    zone = variable.lstrip(":") if "/" in variable else None
    assert (sends(server)[0].data or {"timezone": ""}).get("timezone") == zone


def test_requests_say_where_they_come_from_and_what_they_take(server: ChatUI) -> None:
    ask_sync("hello", key="hf-chat=session; token=login")
    for request in server.log:
        public = request.path == "/api/v2/models"
        assert request.headers["accept"] == "*/*"
        assert request.headers["origin"] == server.url.removesuffix("/chat")
        assert request.cookies == ({} if public else {"hf-chat": "session", "token": "login"})
    assert {request.headers["accept-encoding"] for request in sends(server)} == {"identity"}


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
        "model": LLAMA,
    }
    assert response.text() == "You said: hello"
    assert kept(response) == known
    page = {"url": f"{server.url}/conversation/{conversation.id}", "title": "hello"}
    assert described(response) == known | page | {"provider": "novita"}
    assert response.resolved_model == LLAMA


@pytest.mark.parametrize("words", ["[[reason]]", "[[tools]]", "[[file]]", "[[unstreamed]]"])
def test_one_part_keeps_what_the_next_turn_needs(server: ChatUI, words: str) -> None:
    response = ask_async(f"hello {words}", web_search=True)
    (answer,) = server.messages(only_conversation(server).id, "assistant")
    assert kept(response)["message_id"] == answer["id"]
    holders = [
        part
        for message in response.messages()
        for part in message.parts
        if "conversation_id" in (part.provider_metadata or {}).get("huggingchat", {})
    ]
    assert len(holders) == 1


async def test_answer_is_streamed_as_it_comes(server: ChatUI) -> None:
    words = "[[tokens=400]] [[delay=0.1]]"
    assert next(iter(llm.get_model("hf-llama").prompt(words))) == "w0 "
    assert list(server.runs.values()) == ["running"]
    assert await anext(aiter(llm.get_async_model("hf-llama").prompt(words))) == "w0 "
    assert list(server.runs.values())[1] == "running"


@both
@pytest.mark.parametrize("fault", ["", "[[hold]]", "[[cut=1]]"])
def test_nothing_waits_after_the_final_answer(
    server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Not for the title, which another model may take long to write, nor for the storing."""
    monkeypatch.setattr(limits, "read_timeout", NEVER)
    monkeypatch.setattr(limits, "store_timeout", NEVER)
    words = f"one {fault} [[title_delay={NEVER}]]"
    with soon():
        response = ask(words)
    assert response.text() == f"You said: {words}"
    assert list(server.runs.values()) == ["running"] or "hold" in words
    assert server.stops == []


def test_router_says_who_answered(server: ChatUI) -> None:
    response = ask_async("hello", model="hf-omni", system="Be brief")
    found = described(response)
    assert response.resolved_model == "zai-org/GLM-4.6"
    assert [found[name] for name in ("route", "provider", "model")] == ["default", "novita", "omni"]


def test_file_in_an_answer_is_a_link_where_it_came(server: ChatUI) -> None:
    text = ask_sync("[[file]] look here").text()
    before, link, after = re.split(r"\n\n\[picture\.png\]\((\S+)\)\n\n", text)
    assert link.startswith(f"{server.url}/conversation/{only_conversation(server).id}/output/")
    assert before.strip()
    assert after.strip()
    assert (before + after).replace(" ", "") == "Yousaid:[[file]]lookhere"


# --- reasoning ------------------------------------------------------------------------

THOUGHTS = "Let me think about\n\nthis carefully."


@pytest.mark.parametrize(
    ("words", "thought", "said"),
    [
        ("[[reason]]", THOUGHTS, "You said: [[reason]]"),
        ("[[think]] [[split=3]]", "pondering deeply", "\n\nDone."),
        ("[[reasoning_events]]", "Let me think.", "You said: [[reasoning_events]]"),
    ],
)
def test_reasoning_is_a_part_of_its_own(
    server: ChatUI, words: str, thought: str, said: str
) -> None:
    response = ask_async(words)
    assert [part["type"] for part in parts(response)] == ["reasoning", "text"]
    assert (reasoning(response), response.text()) == (thought, said)


def test_reasoning_is_shown_on_standard_error_and_logged_apart(server: ChatUI) -> None:
    shown = run("-m", "hf-llama", "[[reason]]")
    assert (shown.stdout, shown.stderr) == ("You said: [[reason]]\n", f"{THOUGHTS}\n")
    (entry,) = logged()
    assert entry["response"] == "You said: [[reason]]"
    assert THOUGHTS in str(entry["reasoning"])
    hidden = run("-m", "hf-llama", "-R", "[[reason]]")
    assert (hidden.stdout, hidden.stderr) == ("You said: [[reason]]\n", "")


# --- the command line, and the logs ---------------------------------------------------

UNICODE = "Привет, мир! 日本語 👩‍👩‍👧 e\u0301 \\u0000 literal\nnew\u2028line next\u0085line 😀"


@ways
def test_prompt_is_printed_as_it_is_but_for_control_characters_and_logged(
    server: ChatUI, way: tuple[str, ...]
) -> None:
    shown = run("-m", "hf-llama-3.3-70b-instruct", "-s", "Be brief", "[[unicode]]", *way)
    text = UNICODE.replace("\u0085", "")  # which is a control character
    assert (shown.stdout, shown.stderr) == (f"{text}\n", "")
    conversation = only_conversation(server)
    (entry,) = logged()
    assert entry["model"] == f"huggingchat/{LLAMA}"
    assert (entry["prompt"], entry["system"]) == ("[[unicode]]", "Be brief")
    assert entry["response"] == text
    found = entry["response_json"]["huggingchat"]
    assert found["conversation_id"] == conversation.id
    assert found["message_id"] == server.messages(conversation.id, "assistant")[0]["id"]


# --- refusals -------------------------------------------------------------------------


def refusal(status: int, message: str) -> Fault:
    body = json.dumps({"message": message}).encode()
    return Fault(status=status, body=body, content_type="application/json")


def check_told(said: str) -> None:
    """One or two lines, without HTML, control characters or cookies."""
    assert 0 < len(said.splitlines()) <= 2
    assert not re.search(r"(?i)<(!doctype|html)|[\x00-\x09\x0b-\x1f\x7f]", said)
    assert SESSION not in said
    assert TOKEN not in said


@pytest.mark.parametrize("path", ["/conversation", "/conversation/*"], ids=["create", "send"])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (refusal(400, "Invalid request"), "llm huggingchat refresh"),
        (Fault(status=401, body=b"You have to be logged in.", content_type="text/plain"), "login"),
        (refusal(429, "You are sending too many messages."), "Try again later"),
        (Fault(status=418, body=b"\x1b[31mteapot\x07", content_type="text/plain"), "teapot"),
        (Fault(status=200), "web page"),
        (Fault(status=503), "503"),
    ],
)
def test_refusal_is_told_in_words(server: ChatUI, path: str, fault: Fault, says: str) -> None:
    server.faults["POST", path] = [fault] * 9
    ask = ask_async if path == "/conversation" else ask_sync
    with pytest.raises(llm.ModelError, match=re.escape(says)) as caught:
        ask("hello", key=COOKIES)
    check_told(str(caught.value))
    assert server.stops == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("[[err=429]]", "HTTP 429"),
        ("[[err=429]] [[cut_bytes=30]]", "HTTP 429"),
        ("[[empty]] [[cut_bytes=30]]", "empty answer"),
        ("[[die=0]]", "empty answer"),
    ],
)
def test_failure_of_the_model_is_told(server: ChatUI, words: str, says: str) -> None:
    with pytest.raises(llm.ModelError, match=says) as caught:
        ask_async(f"hello {words}")
    check_told(str(caught.value))
    assert server.stops == []


@ways
def test_command_fails_in_words_logs_nothing_and_the_conversation_goes_on(
    server: ChatUI, way: tuple[str, ...]
) -> None:
    run("-m", "hf-llama", "one", *way)
    failure("-c", "two [[err=429]]", *way)
    failure("-c", "two [[html]]", *way)
    run("-c", "three", *way)
    assert [entry["prompt"] for entry in logged()] == ["one", "three"]
    assert "three" in tree(server, only_conversation(server).id)["one"]
    shown = run("chat", "-m", "hf-llama", input="one [[err=500]]\ntwo\nquit\n", status=1)
    assert "Traceback" not in shown.output
    assert "HTTP 500" in shown.output


def test_model_that_is_gone_is_told(server: ChatUI) -> None:
    run("-m", "hf-llama", "one")
    server.models = [model for model in server.models if "Llama-4" not in model["id"]]
    for words in (("-c", "two"), ("-m", "hf-llama", "three")):
        assert "llm huggingchat refresh" in failure(*words)


# --- notes ----------------------------------------------------------------------------

BREAKS_OFF = "[[tokens=9]] [[die=3]]"


@both
@pytest.mark.parametrize("words", ["", "[[cut=1]]", "[[cut=1]] [[gone]]"])
def test_model_that_breaks_off_leaves_what_it_said_and_a_library_logs_it(
    server: ChatUI, ask: TurnRequest, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also in a program with a command line of its own."""

    @click.command()
    def program() -> None:
        response = ask(f"{BREAKS_OFF} {words}")
        assert response.text() == "w0 w1 w2 "
        assert described(response)["interrupted"] is True

    result = CliRunner().invoke(program, catch_exceptions=False)
    assert (result.exit_code, result.output) == (0, "")
    for record in caplog.records:
        assert (record.name, record.levelname) == ("llm_huggingchat", "WARNING")
    assert "broke off its answer" in caplog.text or "gone" in words


@pytest.mark.parametrize("way", [(), ("--async",)])
def test_command_line_notes_on_standard_error(
    server: ChatUI, caplog: pytest.LogCaptureFixture, way: tuple[str, ...]
) -> None:
    shown = run("-m", "hf-llama", BREAKS_OFF, *way)
    assert re.fullmatch(r"huggingchat: the model \S+ broke off its answer\n", shown.stderr)
    assert shown.stdout == "w0 w1 w2 \n"
    assert caplog.records == []


# --- addresses ------------------------------------------------------------------------


def test_nobody_listening_is_told_after_a_few_attempts(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.down()
    monkeypatch.setattr(limits, "reconnect_timeout", NEVER)
    with soon():
        said = failure("-m", "hf-llama", "hello")
    for words in (host(server), "nobody is listening", "LLM_HUGGINGCHAT_URL"):
        assert words in said


def test_only_other_machines_are_asked_through_the_proxy(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChatUI(base_path="") as proxy:  # it refuses to pass anything on
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        assert ask_async("hello").text() == "You said: hello"
        assert proxy.connections == 0
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", "https://chat.example.org")
        run("keys", "set", "huggingchat:chat.example.org", "--value", COOKIES)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert "proxy" in failure("-m", "hf-llama", "hello")
        assert proxy.connections > 0


# --- logged in, and out ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (f"hf-chat={SESSION}", "'token' is missing"),
        ("token=stale", "expired"),
        ("some words that are no cookie", "'token'"),
        ("hf-chat=a\x01b; token=x", "characters that no cookie has"),
    ],
)
def test_cookies_that_do_not_let_in_are_told(guarded: ChatUI, key: str, says: str) -> None:
    use(guarded, key)
    said = failure("-m", "hf-llama", "hello")
    assert says in said
    assert re.search(r"llm huggingchat login|Copy it again", said)
    for secret in (SESSION, TOKEN, "stale", "no cookie\n"):
        assert secret not in said
    assert not sends(guarded)
    use(guarded, COOKIES)
    assert run("-m", "hf-llama", "hello").stdout == "You said: hello\n"


def test_service_wants_a_key_before_anything_is_asked() -> None:
    said = failure("-m", "hf-llama", "hello")
    assert "llm huggingchat login" in said
    assert "llm keys set huggingchat" in said


def test_login_that_ends_in_the_middle_of_a_conversation(guarded: ChatUI) -> None:
    first = ask_sync("one", key=COOKIES)
    guarded.sessions.clear()
    with pytest.raises(llm.ModelError, match="Not logged in"):
        ask_sync("two", after=first, key=COOKIES)
    assert len(guarded.conversations) == 1
    guarded.sessions[SESSION] = ("ann", TOKEN)
    ask_sync("two", after=first, key=COOKIES)
    assert tree(guarded, only_conversation(guarded).id) == {"one": {"two": {}}}


def test_wrong_address_is_told_by_prompts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", "nonsense")
    assert "huggingchat/" in run("models").stdout
    assert "'nonsense' cannot be the chat server's address" in failure("-m", "hf-llama", "Hello")


# --- the catalogue, beside a prompt ---------------------------------------------------


def test_catalogue_is_refreshed_beside_a_prompt_once_a_day(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prompt(until: Callable[[], bool]) -> int:
        """As a new process; how often the catalogue has been fetched then."""
        for _ in llm.get_model("hf-llama").prompt("[[tokens=6000]] [[delay=0.01]]"):
            if until():
                break
        reset()
        return [request.path for request in server.log].count("/api/v2/models")

    assert prompt(lambda: not load_catalogue(server.url).is_old) == 1
    assert prompt(lambda: True) == 1
    later = time.time() + 90_000
    monkeypatch.setattr("time.time", lambda: later)
    assert prompt(lambda: not load_catalogue(server.url).is_old) == 2
