"""Sessions: made from the cookie `token`, once for all who need one, and kept."""

from __future__ import annotations

import asyncio
import json
import pathlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import llm
import pytest
from chat_ui import ChatUI, Fault
from helpers import TurnRequest, both, described, failure, run, sends, tree
from recorded import capture

import llm_huggingchat
from llm_huggingchat import Client, Cookies, Credentials, current_server, latest, parse_cookies

ENDED = "11111111-2222-4333-8444-555555555555"
TOKEN = "t-ada"
LOGIN = [("GET", "/login"), ("GET", "outside:/oauth/authorize"), ("GET", "/login/callback")]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatUI]:
    """A server that wants logins. The provider knows ada's token; she has no session."""
    with ChatUI(login_required=True) as server:
        server.tokens[TOKEN] = "ada"
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", server.url)
        monkeypatch.setattr(
            llm_huggingchat.limits, "backoff", (0.01,) * len(llm_huggingchat.limits.backoff)
        )
        yield server


def asked(server: ChatUI) -> list[tuple[str, str]]:
    """Method and path of all requests, in order."""
    return [(request.method, request.path) for request in list(server.log)]


def key_of(server: ChatUI) -> str:
    return f"huggingchat:127.0.0.1:{server.port}"


def keep(server: ChatUI, **cookies: str) -> None:
    """Put cookies into the key store, as somebody did some time ago."""
    names = {name.replace("_", "-"): value for name, value in cookies.items()}
    run("keys", "set", key_of(server), "--value", json.dumps(names))


def kept(server: ChatUI, user_path: pathlib.Path) -> dict[str, Any]:
    """What the key store holds for the server."""
    return dict(json.loads(json.loads((user_path / "keys.json").read_text())[key_of(server)]))


def renewed(cookies: Cookies) -> Cookies:
    """`Client.renewed`, in an event loop of its own."""

    async def work() -> Cookies:
        access = await Client.here().renew(Credentials(current_server(), cookies))
        assert access.cookies
        return access.cookies

    return asyncio.run(work())


# --- a session from `token` ---


def test_session_is_made_as_it_was_recorded(chat: ChatUI) -> None:
    before = time.time()
    made = renewed(Cookies(ENDED, TOKEN, waf="w"))
    assert made == Cookies(made.hf_chat, TOKEN, waf="w", since=made.since)
    assert chat.sessions[made.hf_chat or ""] == ("ada", TOKEN)
    assert made.since
    assert before <= made.since <= time.time()
    assert asked(chat) == LOGIN
    recorded = [exchange.cookies for exchange in capture("login_renewed")][:3]
    assert [set(request.cookies) - {"aws-waf-token"} for request in chat.log] == recorded
    assert all(request.cookies["aws-waf-token"] == "w" for request in chat.log)


def refused(cookies: Cookies, chat: ChatUI) -> str:
    """Why no session can be made, in at most two lines without a secret."""
    with pytest.raises(llm.ModelError) as raised:
        renewed(cookies)
    said = str(raised.value)
    assert f"{chat.url}/login" in said
    assert "llm huggingchat login" in said
    assert len(said.splitlines()) <= 2
    assert TOKEN not in said
    return said


def test_token_that_the_provider_does_not_know(chat: ChatUI) -> None:
    refused(Cookies(ENDED, "t-wrong"), chat)
    assert asked(chat) == LOGIN[:2]


def test_consent_wants_a_person(chat: ChatUI) -> None:
    chat.login_wants = "consent"
    refused(Cookies(ENDED, TOKEN), chat)
    assert asked(chat) == LOGIN[:2]


def test_another_origin_is_not_followed(chat: ChatUI) -> None:
    with ChatUI() as other:
        for address in (other.url, f"http://localhost:{chat.port}/", f"//127.0.0.1:{other.port}/"):
            chat.login_wants = f"{address}/login/callback"
            refused(Cookies(ENDED, TOKEN), chat)
            chat.faults["GET", "/login"] = [Fault(status=302, headers=(("location", address),))]
            refused(Cookies(ENDED, TOKEN), chat)
        assert other.log == []
    assert ("GET", "/login/callback") not in asked(chat)


@pytest.mark.parametrize(
    "location",
    ["", "/", "/chat/login", "login", "http://[", "http://127.0.0.1\t:1/", "javascript:alert(1)"],
)
def test_login_that_leads_nowhere(chat: ChatUI, location: str) -> None:
    fault = Fault(status=302, headers=(("location", location),))
    chat.faults["GET", "/login"] = [fault] * 20
    refused(Cookies(ENDED, TOKEN), chat)
    assert len(chat.log) <= llm_huggingchat.LOGIN_STEPS


def test_callback_that_refuses(chat: ChatUI) -> None:
    chat.faults["GET", "/login/callback"] = [Fault(status=403, content_type="text/plain")]
    refused(Cookies(ENDED, TOKEN), chat)


def test_callback_that_begins_again(chat: ChatUI) -> None:
    again = (("location", "/chat/login"), ("set-cookie", "hfChat-loginRetry=1"))
    chat.faults["GET", "/login/callback"] = [Fault(status=302, headers=again)]
    assert renewed(Cookies(None, TOKEN)).hf_chat in chat.sessions
    assert asked(chat) == LOGIN + LOGIN


def test_server_with_a_problem_of_its_own_is_no_wrong_login(chat: ChatUI) -> None:
    chat.faults["GET", "/login"] = [Fault(status=500)]
    with pytest.raises(llm_huggingchat.HttpError, match="500"):
        renewed(Cookies(None, TOKEN))
    keep(chat, token=TOKEN)
    chat.faults["GET", "/login"] = [Fault(status=500)]
    assert "problem of its own" in failure("huggingchat", "status").lower()


def test_without_token_there_is_nothing_to_make_a_session_from(chat: ChatUI) -> None:
    with pytest.raises(llm.ModelError, match="'token' is missing"):
        renewed(Cookies(ENDED))
    assert chat.log == []


# --- one for all ---


def test_many_at_once_share_one(chat: ChatUI) -> None:
    async def work() -> list[Cookies | None]:
        access = Credentials(current_server(), Cookies(ENDED, TOKEN))
        client = Client.here()
        first = asyncio.create_task(client.renew(access))
        others = [asyncio.create_task(client.renew(access)) for _ in range(20)]
        await asyncio.sleep(0)
        first.cancel()  # it began the login; the others still get their session
        found = [(await other).cookies for other in others]
        found.append((await client.renew(access)).cookies)  # and so does who comes late
        return found

    (made,) = set(asyncio.run(work()))
    assert made
    assert chat.sessions[made.hf_chat or ""] == ("ada", TOKEN)
    assert asked(chat) == LOGIN


def test_event_loops_share_one_through_the_key_store(chat: ChatUI, user_path: pathlib.Path) -> None:
    keep(chat, hf_chat=ENDED, token=TOKEN)
    made: list[Cookies] = []
    threads = [
        threading.Thread(target=lambda: made.append(renewed(Cookies(ENDED, TOKEN))))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [cookies.hf_chat for cookies in made] == [kept(chat, user_path)["hf-chat"]] * 5
    assert [path for path in asked(chat) if path in LOGIN] == LOGIN


def test_session_that_another_process_made_is_taken(chat: ChatUI, user_path: pathlib.Path) -> None:
    chat.sessions["theirs"] = ("ada", TOKEN)
    keep(chat, hf_chat="theirs", token=TOKEN)
    assert renewed(Cookies(ENDED, TOKEN)).hf_chat == "theirs"
    assert asked(chat) == [("GET", "/api/v2/user")]
    # Theirs has ended as well.
    del chat.sessions["theirs"]
    assert renewed(Cookies("theirs", TOKEN)).hf_chat == kept(chat, user_path)["hf-chat"]
    assert kept(chat, user_path)["hf-chat"] in chat.sessions


def test_session_after_a_session_after_a_session(chat: ChatUI) -> None:
    first = Cookies(None, TOKEN)
    for _ in range(3):
        made = renewed(Cookies(None, TOKEN))
        assert renewed(first) == made  # an old one leads to the latest, without a request
        chat.sessions.clear()
        llm_huggingchat._successors.clear()
    server = current_server()
    llm_huggingchat._succeeds(Credentials(server, Cookies("a", TOKEN)), Cookies("b", TOKEN))
    llm_huggingchat._succeeds(Credentials(server, Cookies("b", TOKEN)), Cookies("a", TOKEN))
    assert latest(Credentials(server, Cookies("b", TOKEN))).cookies == Cookies("a", TOKEN)
    assert latest(Credentials(server, Cookies("a", "other"))).cookies == Cookies("a", "other")


# --- what is kept ---


def test_new_session_is_kept_where_the_old_one_was(chat: ChatUI, user_path: pathlib.Path) -> None:
    both = {"hf-chat": ENDED, "token": TOKEN, "aws-waf-token": "w"}
    foreign = {key_of(chat) + "0": both, "huggingchat": both, "work": {**both, "hf-chat": "x"}}
    for name in (key_of(chat), "mine", *foreign):
        run("keys", "set", name, "--value", json.dumps(foreign.get(name, both)))
    run("keys", "set", "openai", "--value", f"sk-{TOKEN}")
    made = renewed(Cookies(ENDED, TOKEN, waf="w"))
    keys = json.loads((user_path / "keys.json").read_text())
    assert parse_cookies(keys[key_of(chat)]) == parse_cookies(keys["mine"]) == made
    assert {name: json.loads(keys[name]) for name in foreign} == foreign
    assert keys["openai"] == f"sk-{TOKEN}"


def test_login_of_somebody_else_is_not_overwritten(chat: ChatUI, user_path: pathlib.Path) -> None:
    keep(chat, hf_chat="s-bob", token="t-bob")
    renewed(Cookies(ENDED, TOKEN))
    assert kept(chat, user_path) == {"hf-chat": "s-bob", "token": "t-bob"}


def test_cookies_from_elsewhere_are_not_put_into_the_store(
    chat: ChatUI, user_path: pathlib.Path
) -> None:
    renewed(Cookies(None, TOKEN))
    assert not (user_path / "keys.json").exists()


# --- the commands ---


@pytest.mark.parametrize(
    "given", [TOKEN, f"\n {TOKEN} ", f"token={TOKEN}", json.dumps({"token": TOKEN}), f'"{TOKEN}"']
)
def test_login_with_token_alone(chat: ChatUI, user_path: pathlib.Path, given: str) -> None:
    assert "as ada" in run("huggingchat", "login", input=given).stdout
    value = kept(chat, user_path)
    assert value["token"] == TOKEN
    assert chat.sessions[value["hf-chat"]] == ("ada", TOKEN)
    assert "Logged in: ada" in run("huggingchat", "status").stdout


def test_login_takes_the_session_that_comes_with_it(chat: ChatUI, user_path: pathlib.Path) -> None:
    chat.sessions[ENDED] = ("ada", TOKEN)
    run("huggingchat", "login", input=f"hf-chat={ENDED}; token={TOKEN}; aws-waf-token=w")
    assert kept(chat, user_path) == {"hf-chat": ENDED, "token": TOKEN, "aws-waf-token": "w"}
    assert ("GET", "/login") not in asked(chat)
    del chat.sessions[ENDED]
    run("huggingchat", "login", input=f"hf-chat={ENDED}; token={TOKEN}")
    assert kept(chat, user_path)["hf-chat"] in chat.sessions


def test_login_with_a_session_alone(chat: ChatUI, user_path: pathlib.Path) -> None:
    assert "'token' is missing" in failure("huggingchat", "login", input=ENDED)
    chat.sessions[ENDED] = ("ada", None)  # a server that does not couple them
    run("huggingchat", "login", input=ENDED)
    assert kept(chat, user_path) == {"hf-chat": ENDED}


def test_login_that_is_refused_keeps_nothing(chat: ChatUI, user_path: pathlib.Path) -> None:
    for given in ("t-wrong", "token=t-wrong", f"hf-chat={ENDED}; token=t-wrong"):
        assert "not kept" in failure("huggingchat", "login", input=given)
    chat.login_wants = "consent"
    assert f"{chat.url}/login" in failure("huggingchat", "login", input=f"token={TOKEN}")
    assert not (user_path / "keys.json").exists()


def test_status_renews_and_says_how_old_the_session_is(
    chat: ChatUI, user_path: pathlib.Path
) -> None:
    keep(chat, hf_chat=ENDED, token=TOKEN)
    state = run("huggingchat", "status").stdout
    assert "Logged in: ada" in state
    assert "session made just now" in state
    value = kept(chat, user_path)
    assert value["hf-chat"] in chat.sessions
    value["since"] -= 3 * 86_400 + 60
    run("keys", "set", key_of(chat), "--value", json.dumps(value))
    assert "session made 3 days ago" in run("huggingchat", "status").stdout
    said = json.loads(run("huggingchat", "status", "--json").stdout)
    assert said["session_time"] == value["since"]
    del value["since"]
    run("keys", "set", key_of(chat), "--value", json.dumps(value))
    assert "session" not in run("huggingchat", "status").stdout
    assert json.loads(run("huggingchat", "status", "--json").stdout)["session_time"] is None


# --- prompts and commands ---


def ended(server: ChatUI) -> None:
    """Every session is over; who has the token can have another."""
    server.sessions.clear()


@both
def test_prompt_makes_its_session_from_token(
    chat: ChatUI, ask: TurnRequest, user_path: pathlib.Path
) -> None:
    keep(chat, token=TOKEN)
    assert ask("hello").text() == "You said: hello"
    assert asked(chat)[:4] == [*LOGIN, ("POST", "/conversation")]
    assert kept(chat, user_path)["hf-chat"] in chat.sessions
    del chat.log[:]
    assert ask("again").text() == "You said: again"
    assert not set(asked(chat)) & set(LOGIN)


@both
def test_prompts_go_on_when_the_session_has_ended(
    chat: ChatUI, ask: TurnRequest, user_path: pathlib.Path
) -> None:
    keep(chat, hf_chat=ENDED, token=TOKEN)
    first = ask("one")
    assert [path for path in asked(chat) if path in LOGIN] == LOGIN
    assert asked(chat).count(("POST", "/conversation")) == 2  # the first was sent to a login
    ended(chat)
    second = ask("two", after=first)
    assert second.text() == "You said: two"
    assert [path for path in asked(chat) if path in LOGIN] == LOGIN * 2
    (conversation,) = chat.conversations.values()
    assert tree(chat, conversation.id) == {"one": {"two": {}}}
    assert kept(chat, user_path)["hf-chat"] in chat.sessions


@both
def test_conversation_of_an_ended_session_is_not_taken_for_a_deleted_one(
    chat: ChatUI, ask: TurnRequest
) -> None:
    keep(chat, token=TOKEN)
    unread = chat.faults["GET", "/api/v2/conversations/?*"] = [Fault(status=500)] * 50
    first = ask("one")
    assert "message_id" not in described(first)
    unread.clear()
    ended(chat)
    ask("two", after=first, model="hf-qwen")  # reads it, changes it, and goes on in it
    (conversation,) = chat.conversations.values()
    assert tree(chat, conversation.id) == {"one": {"two": {}}}
    assert conversation.model == "Qwen/Qwen3.8-2.4T-A95B"


@both
def test_deleted_conversation_is_told_from_an_ended_session(chat: ChatUI, ask: TurnRequest) -> None:
    keep(chat, token=TOKEN)
    first = ask("one")
    chat.conversations.clear()
    ask("two", after=first)
    assert len(chat.conversations) == 1
    assert [path for path in asked(chat) if path in LOGIN] == LOGIN


@both
def test_session_is_renewed_once(chat: ChatUI, ask: TurnRequest) -> None:
    keep(chat, token=TOKEN)
    ask("one")
    del chat.log[:]
    no = Fault(status=401, body=b"You have to be logged in.", content_type="text/plain")
    chat.faults["POST", "/conversation/?*"] = [no] * 9
    with pytest.raises(llm.ModelError, match="Not logged in"):
        ask("two")
    assert [path for path in asked(chat) if path in LOGIN] == LOGIN
    assert len(sends(chat)) == 2
    chat.faults["POST", "/conversation"] = [no] * 9
    with pytest.raises(llm.ModelError, match="Not logged in"):
        ask("three")
    assert [path for path in asked(chat) if path in LOGIN] == LOGIN * 2


@both
def test_prompt_with_a_wrong_token_says_where_to_log_in(
    chat: ChatUI, ask: TurnRequest, user_path: pathlib.Path
) -> None:
    keep(chat, hf_chat=ENDED, token="t-wrong")
    with pytest.raises(llm.ModelError, match=re.escape(f"Open {chat.url}/login")):
        ask("hello")
    assert chat.conversations == {}
    assert kept(chat, user_path) == {"hf-chat": ENDED, "token": "t-wrong"}


def test_many_prompts_at_once_share_one_session(chat: ChatUI) -> None:
    keep(chat, hf_chat=ENDED, token=TOKEN)

    async def work() -> list[str]:
        model = llm.get_async_model("hf-llama")
        return await asyncio.gather(*(model.prompt(f"{n}").text() for n in range(20)))

    assert asyncio.run(work()) == [f"You said: {n}" for n in range(20)]
    assert [path for path in asked(chat) if path in LOGIN] == LOGIN
    assert len(sends(chat)) == 20


def test_processes_share_one_session(chat: ChatUI) -> None:
    keep(chat, hf_chat=ENDED, token=TOKEN)
    command = [sys.executable, "-m", "llm", "-m", "hf-llama"]
    prompts = [
        subprocess.Popen([*command, f"{n}"], stdout=subprocess.PIPE, text=True) for n in range(4)
    ]
    answers = [prompt.communicate(timeout=60)[0] for prompt in prompts]
    assert answers == [f"You said: {n}\n" for n in range(4)]
    assert [path for path in asked(chat) if path in LOGIN] == LOGIN


def test_commands_renew_the_session(chat: ChatUI) -> None:
    keep(chat, token=TOKEN)
    run("-m", "hf-llama", "hello")
    (id,) = chat.conversations
    for command in (
        ["conversations"],
        ["rename", id, "Changed"],
        ["export", id],
        ["share", id],
        ["import", "--all"],
        ["import", id],
        ["delete", id, "--yes"],
    ):
        ended(chat)
        shown = run("huggingchat", *command).output
        assert command != ["conversations"] or id in shown
    assert chat.conversations == {}
    assert [path for path in asked(chat) if path in LOGIN] == LOGIN * 8


def test_token_alone_where_nobody_wants_a_login(server: ChatUI) -> None:
    keep(server, token=TOKEN)
    run("-m", "hf-llama", "one")
    run("-c", "two")
    (conversation,) = server.conversations.values()
    assert tree(server, conversation.id) == {"one": {"two": {}}}


def test_key_of_the_environment_needs_a_session_for_each_process(
    chat: ChatUI, monkeypatch: pytest.MonkeyPatch, user_path: pathlib.Path
) -> None:
    monkeypatch.setenv("LLM_HUGGINGCHAT_KEY", f"token={TOKEN}")
    run("-m", "hf-llama", "one")
    run("-c", "two")
    assert [path for path in asked(chat) if path in LOGIN] == LOGIN
    assert not (user_path / "keys.json").exists()
