"""Sessions of prompts: made from the cookie `token`, renewed, shared; and the firewall's cookie."""

from __future__ import annotations

import asyncio
import json
import pathlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llm
import llm.cli
import pytest
from chat_ui import ChatUI, Fault
from helpers import (
    TurnRequest,
    ask_async,
    ask_sync,
    both,
    described,
    failure,
    only_conversation,
    run,
    tree,
    wait_for,
)

import llm_huggingchat

CAPTURE = pathlib.Path(__file__).parent / "captures" / "login_renewed.json"
ENDED = "11111111-2222-4333-8444-555555555555"
TOKEN = "t-ada"
LOGIN = [("GET", "/login"), ("GET", "outside:/oauth/authorize"), ("GET", "/login/callback")]
NO = Fault(status=401, body=b"You have to be logged in.", content_type="text/plain")


@pytest.fixture
def chat(server: ChatUI, quick: None) -> ChatUI:
    """A server that wants logins. The provider knows ada's token; she has no session."""
    server.login_required = True
    server.tokens[TOKEN] = "ada"
    return server


def asked(server: ChatUI) -> list[tuple[str, str]]:
    """Method and path of all requests but the catalogue's, in order."""
    log = [(request.method, request.path) for request in list(server.log)]
    return [call for call in log if call != ("GET", "/api/v2/models")]


def logins(server: ChatUI) -> list[tuple[str, str]]:
    """The requests that belong to logins."""
    return [call for call in asked(server) if call in LOGIN]


def key_of(server: ChatUI) -> str:
    return f"huggingchat:127.0.0.1:{server.port}"


def keep(server: ChatUI, **cookies: str) -> None:
    """Put cookies into the key store, as somebody did some time ago."""
    names = {name.replace("_", "-"): value for name, value in cookies.items()}
    run("keys", "set", key_of(server), "--value", json.dumps(names))


def keys(user_path: pathlib.Path) -> dict[str, Any]:
    """What the key store holds: cookies, by the key's name."""
    stored = json.loads((user_path / "keys.json").read_text())
    return {name: json.loads(value) for name, value in stored.items() if value[:1] == "{"}


# --- a session from `token` -----------------------------------------------------------


@both
def test_prompt_makes_its_session_from_token_as_a_browser_does(
    chat: ChatUI, ask: TurnRequest, user_path: pathlib.Path
) -> None:
    before = time.time()
    keep(chat, token=TOKEN, aws_waf_token="w")
    assert ask("hello").text() == "You said: hello"
    assert asked(chat)[:4] == [*LOGIN, ("POST", "/conversation")]
    recorded = json.loads(CAPTURE.read_text())["exchanges"][:3]
    steps = [request for request in chat.log if (request.method, request.path) in LOGIN]
    assert [set(step.cookies) - {"aws-waf-token"} for step in steps] == [
        set(exchange["request"]["cookie_names"]) for exchange in recorded
    ]
    assert all(step.cookies["aws-waf-token"] == "w" for step in steps)
    kept = keys(user_path)[key_of(chat)]
    assert chat.sessions[kept["hf-chat"]] == ("ada", TOKEN)
    assert before <= kept["since"] <= time.time()
    assert ask("again").text() == "You said: again"
    assert logins(chat) == LOGIN


def test_prompts_go_on_when_the_session_has_ended(chat: ChatUI, user_path: pathlib.Path) -> None:
    keep(chat, hf_chat=ENDED, token=TOKEN)
    first = ask_sync("one")
    assert asked(chat).count(("POST", "/conversation")) == 2  # the first was sent to a login
    chat.sessions.clear()
    chat.log.clear()
    assert ask_sync("two", after=first).text() == "You said: two"
    id = only_conversation(chat).id
    message = ("POST", f"/conversation/{id}")
    assert asked(chat)[:5] == [message, *LOGIN, message]  # it is known that it did not arrive
    assert tree(chat, id) == {"one": {"two": {}}}
    assert keys(user_path)[key_of(chat)]["hf-chat"] in chat.sessions


def test_conversation_of_an_ended_session_is_not_taken_for_a_deleted_one(
    chat: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_huggingchat.limits, "id_timeout", 0.1)
    keep(chat, token=TOKEN)
    unread = chat.faults["GET", "/api/v2/conversations/?*"] = [Fault(status=500)] * 50
    first = ask_async("one")
    assert "message_id" not in described(first)
    unread.clear()
    chat.sessions.clear()
    ask_async("two", after=first, model="hf-qwen")  # reads it, changes it, and goes on in it
    conversation = only_conversation(chat)
    assert tree(chat, conversation.id) == {"one": {"two": {}}}
    assert conversation.model == "Qwen/Qwen3.8-2.4T-A95B"


def test_deleted_conversation_is_not_taken_for_an_ended_session(chat: ChatUI) -> None:
    keep(chat, token=TOKEN)
    first = ask_sync("one")
    chat.conversations.clear()
    ask_sync("two", after=first)
    assert len(chat.conversations) == 1
    assert logins(chat) == LOGIN


# --- logins that a person has to see to -----------------------------------------------


def refused(chat: ChatUI) -> None:
    """A prompt says where to log in, and nothing of what the key store holds."""
    with pytest.raises(llm.ModelError) as raised:
        ask_sync("hello")
    said = str(raised.value)
    assert f"{chat.url}/login" in said
    assert "llm huggingchat login" in said
    assert len(said.splitlines()) <= 2
    assert TOKEN not in said
    assert chat.conversations == {}


@pytest.mark.parametrize("path", ["/login", "/login/callback"])
@pytest.mark.parametrize(
    "location",
    ["", "/chat/login", "login", "http://[", "http://127.0.0.1\t:1/", "javascript:alert(1)", None],
)
def test_login_that_leads_nowhere_wants_a_person(
    chat: ChatUI, user_path: pathlib.Path, path: str, location: str | None
) -> None:
    fault = Fault(status=302, headers=(("location", location or ""),))
    if location is None:
        fault = Fault(status=403, content_type="text/plain")
    chat.faults["GET", path] = [fault] * 99
    keep(chat, hf_chat=ENDED, token=TOKEN)
    refused(chat)
    assert len(chat.log) < 20
    assert keys(user_path)[key_of(chat)] == {"hf-chat": ENDED, "token": TOKEN}


# --- one for all ----------------------------------------------------------------------


def test_prompts_at_the_same_time_share_one_session(chat: ChatUI) -> None:
    keep(chat, hf_chat=ENDED, token=TOKEN)

    async def work() -> list[str]:
        prompts = [llm.get_async_model("hf-llama").prompt(f"{n}") for n in range(12)]
        leaving = asyncio.ensure_future(llm.get_async_model("hf-llama").prompt("x").text())
        others = asyncio.gather(*(prompt.text() for prompt in prompts))
        await asyncio.to_thread(wait_for, lambda: asked(chat))
        leaving.cancel()  # the others still get their session
        return await others

    assert asyncio.run(work()) == [f"You said: {n}" for n in range(12)]
    with ThreadPoolExecutor(4) as threads:
        chat.sessions.clear()
        said = list(threads.map(lambda n: ask_sync(f"{n}").text(), range(4)))
    assert said == [f"You said: {n}" for n in range(4)]
    assert logins(chat) == LOGIN * 2


def test_session_that_another_process_has_made_is_used(
    chat: ChatUI, user_path: pathlib.Path
) -> None:
    ours = f"hf-chat={ENDED}; token={TOKEN}"
    chat.sessions["theirs"] = ("ada", TOKEN)
    keep(chat, hf_chat="theirs", token=TOKEN)
    assert ask_sync("hello", key=ours).text() == "You said: hello"
    assert logins(chat) == []
    chat.sessions.clear()  # theirs has ended as well
    ask_sync("again")
    assert logins(chat) == LOGIN
    assert keys(user_path)[key_of(chat)]["hf-chat"] in chat.sessions


def test_prompts_at_the_same_time_share_a_session_that_is_not_kept(
    chat: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_HUGGINGCHAT_KEY", f"token={TOKEN}")
    with ThreadPoolExecutor(4) as threads:
        said = list(threads.map(lambda n: ask_sync(f"{n}").text(), range(4)))
    assert said == [f"You said: {n}" for n in range(4)]
    assert logins(chat) == LOGIN


def test_kept_session_that_has_ended_too_is_made_anew(chat: ChatUI) -> None:
    keep(chat, hf_chat=ENDED.replace("1", "6"), token=TOKEN)
    key = f"hf-chat={ENDED}; token={TOKEN}"
    assert ask_sync("hello", key=key).text() == "You said: hello"
    assert logins(chat) == LOGIN


def test_new_session_is_kept_where_the_old_one_was(chat: ChatUI, user_path: pathlib.Path) -> None:
    ours = {"hf-chat": ENDED, "token": TOKEN, "aws-waf-token": "w"}
    foreign = {key_of(chat) + "0": ours, "huggingchat": ours, "work": {**ours, "hf-chat": "x"}}
    for name in (key_of(chat), "mine", *foreign):
        run("keys", "set", name, "--value", json.dumps(foreign.get(name, ours)))
    run("keys", "set", "openai", "--value", f"sk-{TOKEN}")
    ask_sync("hello")
    kept = keys(user_path)
    assert kept[key_of(chat)] == kept["mine"]
    assert kept["mine"]["hf-chat"] in chat.sessions
    assert kept["mine"]["aws-waf-token"] == "w"
    assert {name: kept[name] for name in foreign} == foreign
    assert f'"sk-{TOKEN}"' in (user_path / "keys.json").read_text()


# --- the firewall ---------------------------------------------------------------------

PAGE = b"<!DOCTYPE html><title>Human Verification</title><script>x-secret</script>"
CHALLENGE = Fault(status=202, body=b"", headers=(("X-Amzn-Waf-Action", "challenge"),))
CAPTCHA = Fault(status=405, body=PAGE, headers=(("x-amzn-waf-action", "captcha"),))
NETWORK = Fault(status=403, body=PAGE)
WALLS = pytest.mark.parametrize("wall", [CHALLENGE, CAPTCHA, NETWORK], ids=lambda w: str(w.status))
BROWSER = "LLM_HUGGINGCHAT_IMPERSONATE"


@WALLS
@pytest.mark.parametrize("path", ["/conversation", "/conversation/?*"])
def test_prompt_that_a_firewall_refused_says_what_helps(
    server: ChatUI, wall: Fault, path: str
) -> None:
    server.faults["POST", path] = [wall]
    said = failure("-m", "hf-llama", "hello")
    for words in ("firewall", f"HTTP {wall.status}", BROWSER, "chrome", "aws-waf-token"):
        assert words in said
    assert "x-secret" not in said
    assert server.faults["POST", path] == []  # asked once: nothing is tried again


@pytest.mark.parametrize("path", ["/conversation/?*", "/api/v2/conversations/?*"])
def test_firewall_does_not_make_a_conversation_disappear(server: ChatUI, path: str) -> None:
    first = ask_sync("one")
    server.faults["POST", path] = server.faults["PATCH", path] = [NETWORK]
    with pytest.raises(llm.ModelError, match="firewall"):
        ask_sync("two", after=first, model="hf-qwen")
    assert len(server.conversations) == 1


def test_firewalls_cookie_goes_to_its_host_alone(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(server, hf_chat="s", aws_waf_token="waf:1/a")
    run("-m", "hf-llama", "hello")
    run("huggingchat", "refresh")
    assert {request.cookies.get("aws-waf-token") for request in server.log} == {"waf:1/a"}
    public = [request for request in server.log if request.path == "/api/v2/models"]
    assert public
    assert all(set(request.cookies) == {"aws-waf-token"} for request in public)
    with ChatUI() as other:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", other.url)
        run("-m", "hf-llama", "hello")
        run("huggingchat", "refresh")
        assert not any("aws-waf-token" in request.cookies for request in other.log)


# --- looking like a browser -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "agent"), [("chrome", "Chrome/"), ("firefox", "Firefox/"), ("safari", "Version/")]
)
def test_requests_are_as_the_pages_own(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch, name: str, agent: str
) -> None:
    monkeypatch.setenv(BROWSER, name)
    assert ask_sync("hello").text() == "You said: hello"
    for request in server.log:
        assert agent in request.headers["user-agent"]
        assert request.headers["accept"] == "*/*"
        assert request.headers["sec-fetch-site"] == "same-origin"
        assert request.headers["sec-fetch-mode"] == "cors"
        assert request.headers["sec-fetch-dest"] == "empty"
        assert request.headers["referer"] == f"{server.url}/"
        assert not {"upgrade-insecure-requests", "sec-fetch-user", "upgrade"} & set(request.headers)
        assert "br" in request.headers["accept-encoding"]
        own = request.headers.get("origin") == server.url.removesuffix("/chat")
        assert own is (request.method != "GET")
        assert "huggingchat" not in str(request.headers).lower()
