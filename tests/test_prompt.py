"""One prompt: what is sent, what comes back, how it is shown, and what an error says."""

import re
import time
from collections.abc import Callable

import click
import helpers as h
import llm
import pytest
from chat_ui import ChatUI, Fault
from click.testing import CliRunner

from llm_huggingchat import limits, load_catalogue, reset

pytestmark = pytest.mark.usefixtures("quick")
ways = pytest.mark.parametrize("way", [(), ("--async",), ("--no-stream",)], ids=" ".join)


# --- what is sent ---------------------------------------------------------------------


def test_first_turn_makes_two_requests_before_its_first_token(server):
    server.may_speak.clear()
    with h.meanwhile(h.ask_async, "hello", system="Be brief") as answer:
        h.wait_for(lambda: server.all_runs)
        conversation = h.only_conversation(server)
        path = f"/conversation/{conversation.id}"
        assert h.calls(server)[:2] == [("POST", "/conversation"), ("POST", path)]
        server.may_speak.set()
        assert answer.result().text() == "You said: hello"
    assert h.calls(server)[2:] == [("GET", f"/api/v2/conversations/{conversation.id}")]
    root, question, _ = server.messages(conversation.id)
    (request,) = h.sends(server)
    assert request.data
    assert request.data["id"] == root["id"]
    assert request.data["inputs"] == question["content"] == "hello"
    assert request.data["selectedMcpServerNames"] == request.data["selectedMcpServers"] == []
    assert request.data["is_retry"] is False
    assert request.files == []
    assert conversation.preprompt == "Be brief"


@pytest.mark.parametrize("variable", ["Europe/Berlin", ":America/New_York", "X-3"])
def test_message_says_the_time_zone_if_it_has_a_name(server, monkeypatch, variable):
    monkeypatch.setenv("TZ", variable)
    h.ask_sync("one")
    zone = variable.lstrip(":") if "/" in variable else None
    assert (h.sends(server)[0].data or {"timezone": ""}).get("timezone") == zone


def test_requests_say_where_they_come_from_and_what_they_take(server):
    h.ask_sync("hello", key="hf-chat=session; token=login")
    for request in server.log:
        public = request.path == "/api/v2/models"
        assert request.headers["accept"] == "*/*"
        assert request.headers["origin"] == server.url.removesuffix("/chat")
        assert request.cookies == ({} if public else {"hf-chat": "session", "token": "login"})
    assert {request.headers["accept-encoding"] for request in h.sends(server)} == {"identity"}


# --- what comes back ------------------------------------------------------------------


@h.both
def test_answer_is_described(server, ask):
    response = ask("hello")
    conversation = h.only_conversation(server)
    (answer,) = server.messages(conversation.id, "assistant")
    known = {
        "conversation_id": conversation.id,
        "message_id": answer["id"],
        "generation_id": answer["generationId"],
        "server": server.url,
        "model": h.LLAMA,
    }
    assert response.text() == "You said: hello"
    assert h.kept(response) == known
    page = {"url": f"{server.url}/conversation/{conversation.id}", "title": "hello"}
    assert h.described(response) == known | page | {"provider": "novita"}
    assert response.resolved_model == h.LLAMA


@pytest.mark.parametrize("words", ["[[reason]]", "[[tools]]", "[[file]]", "[[unstreamed]]"])
def test_one_part_keeps_what_the_next_turn_needs(server, words):
    response = h.ask_async(f"hello {words}", web_search=True)
    (answer,) = server.messages(h.only_conversation(server).id, "assistant")
    assert h.kept(response)["message_id"] == answer["id"]
    found = [part.provider_metadata for message in response.messages() for part in message.parts]
    assert sum("conversation_id" in (each or {}).get("huggingchat", {}) for each in found) == 1


@h.both
@pytest.mark.parametrize("fault", ["", "[[hold]]", "[[cut=1]]"])
def test_nothing_waits_after_the_final_answer(server, ask, monkeypatch, fault):
    """Not for the title, which another model may take long to write, nor for the storing."""
    monkeypatch.setattr(limits, "read_timeout", h.NEVER)
    monkeypatch.setattr(limits, "store_timeout", h.NEVER)
    words = f"one {fault} [[title_delay={h.NEVER}]]"
    with h.soon():
        response = ask(words)
        assert list(server.runs.values()) == ["running"] or "hold" in words
        reset()  # as at the end of a process
    assert response.text() == f"You said: {words}"
    assert server.stops == []


def test_reasoning_is_a_part_of_its_own(server):
    for words, thought, said in (
        ("[[think]] [[split=3]]", "pondering deeply", "\n\nDone."),
        ("[[reasoning_events]]", "Let me think.", "You said: [[reasoning_events]]"),
    ):
        thinks, says = h.parts(h.ask_async(words))
        assert thinks == {"type": "reasoning", "text": thought}
        assert says == {"type": "text", "text": said}


def test_reasoning_is_shown_on_standard_error_and_logged_apart(server):
    shown = h.run("-m", "hf-llama", "[[reason]]")
    thoughts = "Let me think about\n\nthis carefully."
    assert (shown.stdout, shown.stderr) == ("You said: [[reason]]\n", f"{thoughts}\n")
    (entry,) = h.logged()
    assert entry["response"] == "You said: [[reason]]"
    assert thoughts in str(entry["reasoning"])
    hidden = h.run("-m", "hf-llama", "-R", "[[reason]]")
    assert (hidden.stdout, hidden.stderr) == ("You said: [[reason]]\n", "")


UNICODE = "Привет, мир! 日本語 👩‍👩‍👧 e\u0301 \\u0000 literal\nnew\u2028line next\u0085line 😀"


@ways
def test_prompt_is_printed_as_it_is_but_for_control_characters_and_logged(server, way):
    shown = h.run("-m", "hf-llama-3.3-70b-instruct", "-s", "Be brief", "[[unicode]]", *way)
    text = UNICODE.replace("\u0085", "")  # which is a control character
    assert (shown.stdout, shown.stderr) == (f"{text}\n", "")
    conversation = h.only_conversation(server)
    (entry,) = h.logged()
    assert entry["model"] == f"huggingchat/{h.LLAMA}"
    assert (entry["prompt"], entry["system"]) == ("[[unicode]]", "Be brief")
    assert entry["response"] == text
    found = entry["response_json"]["huggingchat"]
    assert found["conversation_id"] == conversation.id
    assert found["message_id"] == server.messages(conversation.id, "assistant")[0]["id"]


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/conversation", "/conversation/*"], ids=["create", "send"])
def test_refusal_is_told_in_words(server, path):
    ask = h.ask_async if path == "/conversation" else h.ask_sync
    for fault, says in (
        (Fault(status=400, body=b"no"), "llm huggingchat refresh"),
        (Fault(status=401, body=b"Log in.", content_type="text/plain"), "login"),
        (Fault(status=200), "web page"),
        (Fault(status=503), "503"),
    ):
        server.faults["POST", path] = [fault] * 9
        assert says in h.error_of(ask, "hello", key=h.COOKIES)
    assert server.stops == []


def test_failure_of_the_model_is_told(server):
    for words, says in (
        ("[[err=429]] [[cut_bytes=30]]", "HTTP 429"),
        ("[[empty]] [[cut_bytes=30]]", "empty answer"),
        ("[[die=0]]", "empty answer"),
    ):
        assert says in h.error_of(h.ask_async, f"hello {words}")
    assert server.stops == []


@ways
def test_command_fails_in_words_logs_nothing_and_the_conversation_goes_on(server, way):
    h.run("-m", "hf-llama", "one", *way)
    h.failure("-c", "two [[err=429]]", *way)
    h.failure("-c", "two [[html]]", *way)
    h.run("-c", "three", *way)
    assert [entry["prompt"] for entry in h.logged()] == ["one", "three"]
    assert "three" in h.tree(server)["one"]
    shown = h.run("chat", "-m", "hf-llama", input="one [[err=500]]\ntwo\nquit\n", status=1)
    assert "Traceback" not in shown.output
    assert "HTTP 500" in shown.output


# --- notes ----------------------------------------------------------------------------

BREAKS_OFF = "[[tokens=9]] [[die=3]]"


@h.both
@pytest.mark.parametrize("words", ["", "[[cut=1]]", "[[cut=1]] [[gone]]"])
def test_model_that_breaks_off_leaves_what_it_said_and_it_is_logged(server, ask, words, caplog):
    """Also in a program with a command line of its own."""

    @click.command()
    def program() -> None:
        response = ask(f"{BREAKS_OFF} {words}")
        assert response.text() == "w0 w1 w2 "
        assert h.described(response)["interrupted"] is True

    result = CliRunner().invoke(program, catch_exceptions=False)
    assert (result.exit_code, result.output) == (0, "")
    for record in caplog.records:
        assert (record.name, record.levelname) == ("llm_huggingchat", "WARNING")
    assert "broke off its answer" in caplog.text or "gone" in words


@pytest.mark.parametrize("way", [(), ("--async",)])
def test_command_line_notes_on_standard_error(server, caplog, way):
    shown = h.run("-m", "hf-llama", BREAKS_OFF, *way)
    assert re.fullmatch(r"huggingchat: the model \S+ broke off its answer\n", shown.stderr)
    assert shown.stdout == "w0 w1 w2 \n"
    assert caplog.records == []


def test_nobody_listening_is_told_after_a_few_attempts(server, monkeypatch):
    server.down()
    monkeypatch.setattr(limits, "reconnect_timeout", h.NEVER)
    with h.soon():
        said = h.failure("-m", "hf-llama", "hello")
    for words in (h.host(server), "nobody is listening", "LLM_HUGGINGCHAT_URL"):
        assert words in said


def test_only_other_machines_are_asked_through_the_proxy(server, monkeypatch):
    with ChatUI(base_path="") as proxy:  # it refuses to pass anything on
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        assert h.ask_async("hello").text() == "You said: hello"
        assert proxy.connections == 0
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", "https://chat.example.org")
        h.run("keys", "set", "huggingchat:chat.example.org", "--value", h.COOKIES)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert "proxy" in h.failure("-m", "hf-llama", "hello")
        assert proxy.connections > 0


# --- logged in, and out ---------------------------------------------------------------


def test_cookies_that_do_not_let_in_are_told(guarded):
    for key, says in (
        (f"hf-chat={h.SESSION}", "'token' is missing"),
        ("token=stale", "expired"),
        ("some words that are no cookie", "'token'"),
        ("hf-chat=a\x01b; token=x", "characters that no cookie has"),
    ):
        h.use(guarded, key)
        said = h.failure("-m", "hf-llama", "hello")
        assert says in said
        assert re.search(r"llm huggingchat login|Copy it again", said)
        for secret in (h.SESSION, h.TOKEN, "stale", "no cookie\n"):
            assert secret not in said
    assert not h.sends(guarded)
    h.use(guarded, h.COOKIES)
    assert h.run("-m", "hf-llama", "hello").stdout == "You said: hello\n"


def test_login_that_ends_in_the_middle_of_a_conversation(guarded):
    first = h.ask_sync("one", key=h.COOKIES)
    guarded.sessions.clear()
    assert "Not logged in" in h.error_of(h.ask_sync, "two", after=first, key=h.COOKIES)
    assert len(guarded.conversations) == 1
    guarded.sessions[h.SESSION] = ("ada", h.TOKEN)
    h.ask_sync("two", after=first, key=h.COOKIES)
    assert h.tree(guarded) == {"one": {"two": {}}}


def test_wrong_address_is_told_by_prompts_alone(monkeypatch):
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", "nonsense")
    assert "huggingchat/" in h.run("models").stdout
    assert "'nonsense' cannot be the chat server's address" in h.failure("-m", "hf-llama", "Hello")


# --- the catalogue, beside a prompt ---------------------------------------------------


def test_catalogue_is_refreshed_beside_a_prompt_once_a_day(server, monkeypatch):
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
