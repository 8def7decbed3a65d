"""Sessions of prompts: made from the cookie `token`, renewed, shared; and the firewall's cookie."""

import asyncio
import json
import pathlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import helpers as h
import llm
import pytest
from chat_ui import ChatUI, Fault

from llm_huggingchat import limits

CAPTURE = pathlib.Path(__file__).parent / "captures" / "login_renewed.json"
ENDED = "11111111-2222-4333-8444-555555555555"
TOKEN = "t-ada"
LOGIN = [("GET", "/login"), ("GET", "outside:/oauth/authorize"), ("GET", "/login/callback")]


@pytest.fixture
def chat(server: ChatUI, quick: None) -> ChatUI:
    """A server that wants logins. The provider knows ada's token; she has no session."""
    server.login_required = True
    server.tokens[TOKEN] = "ada"
    return server


def logins(server: ChatUI) -> list[tuple[str, str]]:
    """The requests that belong to logins."""
    return [call for call in h.calls(server) if call in LOGIN]


def keep(server: ChatUI, name: str = "", **cookies: str) -> None:
    """Put cookies into the key store, as somebody did some time ago."""
    names = {name.replace("_", "-"): value for name, value in cookies.items()}
    h.run("keys", "set", name or f"huggingchat:{h.host(server)}", "--value", json.dumps(names))


def session_of(server: ChatUI, name: str = "") -> dict[str, Any]:
    """The cookies that the key store has for the server, or under another name."""
    return dict(json.loads(h.keys()[name or f"huggingchat:{h.host(server)}"]))


@h.both
def test_prompt_makes_its_session_from_token_as_a_browser_does(chat, ask):
    before = time.time()
    keep(chat, token=TOKEN, aws_waf_token="w")
    assert ask("hello").text() == "You said: hello"
    assert h.calls(chat)[:4] == [*LOGIN, ("POST", "/conversation")]
    recorded = json.loads(CAPTURE.read_text())["exchanges"][:3]
    steps = [request for request in chat.log if (request.method, request.path) in LOGIN]
    assert [set(step.cookies) - {"aws-waf-token"} for step in steps] == [
        set(exchange["request"]["cookie_names"]) for exchange in recorded
    ]
    assert all(step.cookies["aws-waf-token"] == "w" for step in steps)
    kept = session_of(chat)
    assert chat.sessions[kept["hf-chat"]] == ("ada", TOKEN)
    assert before <= kept["since"] <= time.time()
    assert ask("again").text() == "You said: again"
    assert logins(chat) == LOGIN


def test_prompts_go_on_when_the_session_has_ended(chat):
    keep(chat, hf_chat=ENDED, token=TOKEN)
    first = h.ask_sync("one")
    assert h.calls(chat).count(("POST", "/conversation")) == 2  # the first was sent to a login
    chat.sessions.clear()
    chat.log.clear()
    assert h.ask_sync("two", after=first).text() == "You said: two"
    id = h.only_conversation(chat).id
    message = ("POST", f"/conversation/{id}")
    assert h.calls(chat)[:5] == [message, *LOGIN, message]  # it is known that it did not arrive
    assert h.tree(chat, id) == {"one": {"two": {}}}
    assert session_of(chat)["hf-chat"] in chat.sessions


@pytest.mark.parametrize("key", [f"token={TOKEN}", f"hf-chat={ENDED}; token={TOKEN}"])
def test_session_that_is_not_kept_is_made_anew_whenever_it_ends(chat, monkeypatch, key):
    """A process that runs for weeks has its cookies from the environment."""
    monkeypatch.setenv("LLM_HUGGINGCHAT_KEY", key)
    answer = h.ask_sync("one")
    for text in ("two", "three"):
        chat.sessions.clear()
        answer = h.ask_sync(text, after=answer)
        assert answer.text() == f"You said: {text}"
    assert logins(chat) == LOGIN * 3


def test_conversation_of_an_ended_session_is_not_taken_for_a_deleted_one(chat, monkeypatch):
    monkeypatch.setattr(limits, "id_timeout", 0.1)
    keep(chat, token=TOKEN)
    first = h.ask_async("one [[nofetch]]")
    assert "message_id" not in h.described(first)
    conversation = h.only_conversation(chat)
    conversation.words.clear()
    chat.sessions.clear()
    h.ask_async("two", after=first, model="hf-qwen")  # reads it, changes it, and goes on in it
    assert h.tree(chat, conversation.id) == {"one [[nofetch]]": {"two": {}}}
    assert conversation.model == h.QWEN
    chat.conversations.clear()  # and the other way round
    h.ask_sync("three", after=first)
    assert len(chat.conversations) == 1
    assert logins(chat) == 2 * LOGIN


@pytest.mark.parametrize("path", ["/login", "/login/callback"])
def test_login_that_leads_nowhere_wants_a_person(chat, path):
    keep(chat, hf_chat=ENDED, token=TOKEN)
    places = ["", "/chat/login", "login", "http://[", "http://127.0.0.1\t:1/", "javascript:x"]
    no = [Fault(status=302, headers=(("location", place),)) for place in places]
    for fault in (*no, Fault(status=403, content_type="text/plain")):
        chat.log.clear()
        chat.faults["GET", path] = [fault] * 99
        said = h.failure("-m", "hf-llama", "hello")
        assert f"{chat.url}/login" in said
        assert "llm huggingchat login" in said
        assert TOKEN not in said
        assert len(chat.log) < 20
    assert chat.conversations == {}
    assert session_of(chat) == {"hf-chat": ENDED, "token": TOKEN}


def test_prompts_at_the_same_time_share_one_session(chat):
    async def work() -> list[str]:
        prompts = [llm.get_async_model("hf-llama").prompt(f"{n}") for n in range(12)]
        leaving = asyncio.ensure_future(llm.get_async_model("hf-llama").prompt("x").text())
        others = asyncio.gather(*(prompt.text() for prompt in prompts))
        await h.until(lambda: h.calls(chat))
        leaving.cancel()  # the others still get their session
        return await others

    def threads(**key: Any) -> None:
        with ThreadPoolExecutor(4) as pool:
            said = list(pool.map(lambda n: h.ask_sync(f"{n}", **key).text(), range(4)))
        assert said == [f"You said: {n}" for n in range(4)]

    keep(chat, hf_chat=ENDED, token=TOKEN)
    assert asyncio.run(work()) == [f"You said: {n}" for n in range(12)]
    chat.sessions.clear()
    threads()
    assert logins(chat) == LOGIN * 2
    chat.tokens["t-too"] = "ada"
    threads(key="token=t-too")  # whose session is kept nowhere
    assert logins(chat) == LOGIN * 3


def test_session_without_a_login_is_forgotten_where_one_is_wanted(server):
    server.login_required = True
    assert "requires a login" in h.failure("-m", "hf-llama", "hello")
    assert "huggingchat" not in str(h.keys())


def test_new_session_is_kept_where_the_old_one_was(chat):
    keep(chat, hf_chat="x", token=TOKEN, name="work")
    keep(chat, hf_chat=ENDED, token=TOKEN, name="huggingchat:other.example")
    keep(chat, hf_chat=ENDED, token="token-of-bob", name="bobs")
    for name in ("mine", "ours"):
        keep(chat, hf_chat=ENDED, token=TOKEN, aws_waf_token="w", name=name)
    h.run("keys", "set", "openai", "--value", f"sk-{TOKEN}")
    before = h.keys()
    h.run("-m", "hf-llama", "hello", "--key", "mine")
    assert h.only_conversation(chat).session == "ada"
    mine = session_of(chat, "mine")
    assert mine == session_of(chat, "ours")
    assert chat.sessions[mine["hf-chat"]] == ("ada", TOKEN)
    assert mine["aws-waf-token"] == "w"
    changed = {name for name, value in h.keys().items() if value != before[name]}
    assert changed == {"mine", "ours"}


def test_note_of_a_session_that_cannot_be_kept_is_logged(server, user_path, caplog, capsys):
    (user_path / ".keys.json.lock").mkdir()
    h.ask_sync("hello")
    assert "cannot be continued later" in caplog.text
    assert capsys.readouterr().err == ""


CHALLENGE = Fault(status=202, body=b"", headers=(("X-Amzn-Waf-Action", "challenge"),))
NETWORK = Fault(status=403, body=b"<!DOCTYPE html><script>x-secret</script>")
BROWSER = "LLM_HUGGINGCHAT_IMPERSONATE"


@pytest.mark.parametrize("wall", [CHALLENGE, NETWORK], ids=["202", "403"])
@pytest.mark.parametrize("path", ["/conversation", "/conversation/?*"])
def test_prompt_that_a_firewall_refused_says_what_helps(server, wall, path):
    server.faults["POST", path] = [wall]
    said = h.failure("-m", "hf-llama", "hello")
    for words in ("firewall", f"HTTP {wall.status}", BROWSER, "chrome", "aws-waf-token"):
        assert words in said
    assert "x-secret" not in said
    assert server.faults["POST", path] == []  # asked once: nothing is tried again


def test_firewall_at_the_login_is_not_taken_for_a_wrong_token(chat):
    keep(chat, hf_chat=ENDED, token=TOKEN)
    chat.faults["GET", "/login"] = [CHALLENGE]
    assert "firewall" in h.failure("-m", "hf-llama", "hello")


@pytest.mark.parametrize("path", ["/conversation/?*", "/api/v2/conversations/?*"])
def test_firewall_does_not_make_a_conversation_disappear(server, path):
    first = h.ask_sync("one")
    server.faults["POST", path] = server.faults["PATCH", path] = [NETWORK]
    assert "firewall" in h.error_of(h.ask_sync, "two", after=first, model="hf-qwen")
    assert len(server.conversations) == 1


def test_firewalls_cookie_goes_to_its_host_alone(server, monkeypatch):
    keep(server, hf_chat="s", aws_waf_token="waf:1/a")
    h.run("-m", "hf-llama", "hello")
    h.run("huggingchat", "refresh")
    assert {request.cookies.get("aws-waf-token") for request in server.log} == {"waf:1/a"}
    public = [request for request in server.log if request.path == "/api/v2/models"]
    assert public
    assert all(set(request.cookies) == {"aws-waf-token"} for request in public)
    with ChatUI() as other:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", other.url)
        h.run("-m", "hf-llama", "hello")
        h.run("huggingchat", "refresh")
        assert not any("aws-waf-token" in request.cookies for request in other.log)


@pytest.mark.parametrize(
    ("name", "agent"), [("chrome", "Chrome/"), ("firefox", "Firefox/"), ("safari", "Version/")]
)
def test_requests_are_as_the_pages_own(server, monkeypatch, name, agent):
    monkeypatch.setenv(BROWSER, name)
    assert h.ask_sync("hello").text() == "You said: hello"
    origin = server.url.removesuffix("/chat")
    common = {
        "accept": "*/*",
        "referer": f"{server.url}/",
        "sec-fetch-site": "same-origin",
        "sec-fetch-mode": "cors",
        "sec-fetch-dest": "empty",
    }
    for request in server.log:
        assert agent in request.headers["user-agent"]
        assert common.items() <= dict(request.headers).items()
        assert not {"upgrade-insecure-requests", "sec-fetch-user", "upgrade"} & set(request.headers)
        assert "br" in request.headers["accept-encoding"]
        assert (request.headers.get("origin") == origin) is (request.method != "GET")
        assert "huggingchat" not in str(request.headers).lower()
