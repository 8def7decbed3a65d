"""`llm huggingchat …`, run as a person runs it, against the stand-in server."""

from __future__ import annotations

import json
import os
import pathlib
import re
import sqlite3
import stat
import subprocess
import sys
import urllib.request
import uuid
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import llm
import pytest
from chat_ui import ChatUI, Fault
from click.testing import CliRunner, Result
from llm.cli import cli
from llm.logs import LogStore

import llm_huggingchat
from llm_huggingchat import (
    SERVICE,
    ConversationRef,
    ConversationTree,
    Importer,
    Server,
    _age,
    _text_of,
    branches_of,
    file_name,
    parse_conversation_ref,
    parse_server,
    ulid_of,
)

LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
COOKIES = "hf-chat=s-ada; token=t-ada"
NO_ID = "f" * 24
NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person with an empty home and no screen."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "DBUS_SESSION_BUS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        llm_huggingchat.limits, "backoff", (0.01,) * len(llm_huggingchat.limits.backoff)
    )


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatUI]:
    """A server that wants logins; ada and bob have one, and nobody is logged in yet."""
    sessions: dict[str, tuple[str, str | None]] = {"s-ada": ("ada", "t-ada"), "s-bob": ("bob", "b")}
    with ChatUI(login_required=True, sessions=sessions) as server:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", server.url)
        yield server


@pytest.fixture
def open_chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatUI]:
    """A server without logins."""
    with ChatUI() as server:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", server.url)
        yield server


@pytest.fixture
def run() -> Run:
    """Run `llm huggingchat …`. Nothing may end in a traceback, or in more than two lines."""

    def run_it(*arguments: str, input: str | None = None, fails: bool = False) -> Result:
        result = CliRunner().invoke(cli, ["huggingchat", *arguments], input=input)
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        assert (result.exit_code != 0) is fails, result.output
        if fails and not result.stdout.startswith("{"):  # JSON says itself what is wrong
            errors = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
            assert len(errors) == 1 or "Aborted!" in result.stderr
            assert len(result.stderr.splitlines()) <= 2 or result.exit_code == 2
        for secret in ("s-ada", "t-ada", "s-bob"):
            assert secret not in result.output
        return result

    return run_it


@pytest.fixture
def logged_in(chat: ChatUI, monkeypatch: pytest.MonkeyPatch) -> ChatUI:
    """The same server, with ada's cookies in the key store."""
    assert CliRunner().invoke(cli, ["huggingchat", "login"], input=COOKIES).exit_code == 0
    # As llm does: a command is run in the same process here, and models are looked up anew.
    assert CliRunner().invoke(cli, ["huggingchat", "refresh"]).exit_code == 0
    return chat


def ask(*arguments: str) -> str:
    """`llm …`: an answer."""
    result = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def logs(*arguments: str) -> list[dict[str, Any]]:
    """`llm logs --json`, the oldest first."""
    output = CliRunner().invoke(cli, ["logs", "-n", "0", "--json", *arguments]).stdout
    return list(json.loads(output or "[]"))


@dataclass
class Web:
    """The web page of one person: what is done there, llm does not know of."""

    chat: ChatUI
    cookie: str = COOKIES

    def call(self, path: str, body: bytes, kind: str = "application/json") -> bytes:
        headers = {
            "Cookie": self.cookie,
            "Content-Type": kind,
            "Origin": self.chat.url.removesuffix("/chat"),
        }
        request = urllib.request.Request(self.chat.url + path, data=body, headers=headers)
        with urllib.request.urlopen(request) as reply:
            return bytes(reply.read())

    def begin(self, *texts: str, preprompt: str = "", **more: Any) -> str:
        """A new conversation with these questions, one after another."""
        value = {"model": LLAMA, "preprompt": preprompt, **more}
        id = json.loads(self.call("/conversation", json.dumps(value).encode()))["conversationId"]
        for text in texts:
            self.say(id, text)
        return str(id)

    def say(
        self, id: str, text: str, after: str | None = None, tools: bool = False, file: str = ""
    ) -> str:
        """A question after some message, or the last one: the answer's id."""
        data = {
            "inputs": text,
            "id": after or self.chat.messages(id)[-1]["id"],
            "is_retry": False,
            "generationId": str(uuid.uuid4()),
            "selectedMcpServerNames": ["Web Search (Exa)"] if tools else [],
            "selectedMcpServers": [],
        }
        parts = ['Content-Disposition: form-data; name="data"\r\n\r\n' + json.dumps(data)]
        if file:
            parts.append(
                'Content-Disposition: form-data; name="files"; filename="base64;note.txt"\r\n'
                f"Content-Type: text/plain\r\n\r\n{file}"
            )
        body = "".join(f"--x\r\n{part}\r\n" for part in parts) + "--x--\r\n"
        self.call(f"/conversation/{id}", body.encode(), "multipart/form-data; boundary=x")
        return str(self.chat.messages(id)[-1]["id"])


def thread_of(result: Result, line: int = 0) -> str:
    return result.stdout.splitlines()[line].split()[0]


# --- log in ---


def test_login_keeps_what_works_and_nothing_else(
    chat: ChatUI, run: Run, user_path: pathlib.Path
) -> None:
    keys = user_path / "keys.json"
    assert "'token' is missing" in run("login", input="hf-chat=s-ada", fails=True).stderr
    assert not keys.exists()
    result = run("login", input="Cookie: hf-chat=s-ada; other=1; token=t-ada\n")
    assert "as ada" in result.stdout
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    kept = keys.read_text()
    assert "other" not in kept
    result = run("login", input='{"hf-chat": "s-bob", "token": "wrong"}', fails=True)
    assert "not kept" in result.stderr
    assert "bob" not in result.output
    for broken in ("", "token=t-bob", "hf-chat=ü", "\x00\xff", "<html>"):
        run("login", input=broken, fails=True)
    assert keys.read_text() == kept


def test_login_is_not_needed_everywhere(
    open_chat: ChatUI, run: Run, user_path: pathlib.Path
) -> None:
    assert "needs no login" in run("login").stdout
    assert not (user_path / "keys.json").exists()


def firefox(
    home: pathlib.Path, *cookies: tuple[str, str, str], place: str = ".mozilla/firefox"
) -> None:
    """A profile as Firefox keeps it; cookies are host, name and value."""
    profile = home / place / "abcd.default-release"
    profile.mkdir(parents=True)
    (profile.parent / "profiles.ini").write_text(
        "[Install4F96D1932A9F858E]\nDefault=abcd.default-release\nLocked=1\n\n"
        "[Profile0]\nName=default-release\nIsRelative=1\nPath=abcd.default-release\n"
    )
    db = sqlite3.connect(profile / "cookies.sqlite")
    db.execute(
        "CREATE TABLE moz_cookies (id INTEGER PRIMARY KEY, originAttributes TEXT NOT NULL DEFAULT"
        " '', name TEXT, value TEXT, host TEXT, path TEXT, expiry INTEGER, lastAccessed INTEGER,"
        " creationTime INTEGER, isSecure INTEGER, isHttpOnly INTEGER, inBrowserElement INTEGER"
        " DEFAULT 0, sameSite INTEGER DEFAULT 0)"
    )
    for host, name, value in cookies:
        db.execute(
            "INSERT INTO moz_cookies (name, value, host, path, expiry, isSecure, isHttpOnly)"
            " VALUES (?, ?, ?, '/', 4000000000, 0, 1)",
            (name, value, host),
        )
    db.commit()
    db.close()


@pytest.mark.parametrize("place", [".mozilla/firefox", ".config/mozilla/firefox"])
def test_login_from_firefox(
    chat: ChatUI,
    run: Run,
    tmp_path: pathlib.Path,
    user_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert "no profile" in run("login", "--browser", "firefox", fails=True).stderr
    firefox(
        tmp_path,
        ("evil127.0.0.1", "hf-chat", "bad"),
        ("127.0.0.1.evil.example", "token", "bad"),
        ("127.0.0.1", "hf-chat", "s-ada"),
        ("127.0.0.1", "token", "t-ada"),
        ("127.0.0.1", "session", "other"),
        place=place,
    )
    assert "as ada" in run("login", "--browser", "firefox").stdout
    kept = (user_path / "keys.json").read_text()
    assert "other" not in kept
    assert "bad" not in kept
    assert "ada" in run("status").stdout


def test_login_from_firefox_without_the_cookie(
    chat: ChatUI, run: Run, tmp_path: pathlib.Path
) -> None:
    firefox(tmp_path, ("127.0.0.1", "_ga", "t-ada"), ("huggingface.co", "token", "t-ada"))
    result = run("login", "--browser", "firefox", fails=True)
    assert "no cookie 'token' of 127.0.0.1" in result.stderr


def test_login_from_firefox_with_token_alone(
    chat: ChatUI, run: Run, tmp_path: pathlib.Path, user_path: pathlib.Path
) -> None:
    chat.tokens["t-ada"] = "ada"
    firefox(tmp_path, ("127.0.0.1", "token", "t-ada"), ("127.0.0.1", "aws-waf-token", "waf"))
    assert "as ada" in run("login", "--browser", "firefox").stdout
    assert "waf" in (user_path / "keys.json").read_text()
    assert len(chat.sessions) == 3


def test_login_from_a_broken_profile(chat: ChatUI, run: Run, tmp_path: pathlib.Path) -> None:
    firefox(tmp_path)
    (tmp_path / ".mozilla/firefox/abcd.default-release/cookies.sqlite").write_bytes(b"x" * 5000)
    assert "locked or broken" in run("login", "--browser", "firefox", fails=True).stderr


def test_login_from_a_browser_needs_the_extra(
    chat: ChatUI, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "browser_cookie3", None)
    result = run("login", "--browser", "firefox", fails=True)
    assert "llm install 'llm-huggingchat[browser]'" in result.stderr
    assert "Invalid value" in run("login", "--browser", "mosaic", fails=True).stderr


def test_logout(logged_in: ChatUI, run: Run, user_path: pathlib.Path) -> None:
    assert "forgotten" in run("logout").stdout
    assert "s-ada" not in (user_path / "keys.json").read_text()
    assert "no cookies" in run("logout").stdout
    assert "wants a login" in run("conversations", fails=True).stderr


def test_logout_where_there_are_no_logins_asks_first(
    open_chat: ChatUI, run: Run, user_path: pathlib.Path
) -> None:
    """The session that was made up is the only way to the conversations."""
    llm.get_model("hf-llama").prompt("hello").text()
    kept = (user_path / "keys.json").read_text()
    assert "cannot be reached again" in run("logout", input="n\n", fails=True).stderr
    assert (user_path / "keys.json").read_text() == kept
    assert "forgotten" in run("logout", "--yes").stdout


def test_status(logged_in: ChatUI, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("status")
    assert logged_in.url in result.stdout
    assert "Logged in: ada" in result.stdout
    assert "llm keys (huggingchat:127.0.0.1:" in result.stdout
    assert f"Models: {len(logged_in.models)} (refreshed just now)" in result.stdout
    state = json.loads(run("status", "--json").stdout)
    assert (state["ok"], state["user"], state["reason"]) == (True, "ada", None)
    del logged_in.sessions["s-ada"]
    assert "expired" in run("status", fails=True).stderr
    state = json.loads(run("status", "--json", fails=True).stdout)
    assert (state["ok"], state["user"]) == (False, None)
    assert "llm huggingchat login" in state["reason"]
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", "http://example.org/chat")
    assert "use https" in run("status", fails=True).stderr
    monkeypatch.delenv("LLM_HUGGINGCHAT_URL")
    result = run("status", fails=True)  # the service, without a key: no request is made
    assert SERVICE in result.stdout
    assert "requires a login" in result.stderr


def test_status_without_logins(open_chat: ChatUI, run: Run) -> None:
    assert "no login is needed" in run("status").stdout
    open_chat.down()
    assert "nobody is listening" in run("status", fails=True).stderr


# --- models ---


def test_refresh_says_what_changed(open_chat: ChatUI, run: Run) -> None:
    open_chat.models.append(open_chat.models[1] | {"id": "home/Grown-1B"})
    first = run("refresh").stdout
    assert "Added: huggingchat/home/Grown-1B" in first
    assert "Removed: huggingchat/nvidia/" in first
    assert "nothing changed" in run("refresh").stdout
    gone = open_chat.models.pop(2)
    open_chat.models.append(gone | {"id": "new/Model-1"})
    lines = run("refresh").stdout.splitlines()
    assert lines == [
        "Added: huggingchat/new/Model-1",
        f"Removed: huggingchat/{gone['id']}",
        f"{len(open_chat.models)} models on {open_chat.url.split('/')[2]}.",
    ]


def test_refresh_keeps_the_old_list_when_it_fails(open_chat: ChatUI, run: Run) -> None:
    run("refresh")
    before = run("models").stdout
    open_chat.models = []
    assert "without models" in run("refresh", fails=True).stderr
    open_chat.down()
    assert "nobody is listening" in run("refresh", fails=True).stderr
    assert run("models").stdout == before


def test_models_are_listed_without_a_request(open_chat: ChatUI, run: Run) -> None:
    result = run("models")
    assert "huggingchat/omni (hf-omni): images, tools, artifacts, router\n" in result.stdout
    assert "built-in" in result.stderr
    models = {model["id"]: model for model in json.loads(run("models", "--json").stdout)}
    assert models[f"huggingchat/{LLAMA}"]["aliases"] == ["hf-llama-3.3-70b-instruct"]
    assert models["huggingchat/openai/gpt-oss-120b"]["aliases"] == ["hf-gpt-oss", "hf-gpt-oss-120b"]
    assert models["huggingchat/openai/gpt-oss-120b"]["artifacts"] is True
    assert models["huggingchat/omni"]["router"] is True
    assert open_chat.log == []


# --- the list ---


def test_conversations_over_all_pages(logged_in: ChatUI, run: Run) -> None:
    for number in range(65):
        conversation = logged_in.add_conversation("ada", LLAMA, "", title=f"Number {number}")
        conversation.updated_at = (NOW + timedelta(minutes=number)).isoformat()
    logged_in.add_conversation("bob", LLAMA, "", title="Not yours")
    listed = json.loads(run("conversations", "-n", "0", "--json").stdout)
    assert [entry["title"] for entry in listed] == [f"Number {n}" for n in range(64, -1, -1)]
    assert listed[0]["url"] == f"{logged_in.url}/conversation/{listed[0]['id']}"
    assert len(run("conversations").stdout.splitlines()) == 20
    del logged_in.log[:]
    assert len(run("conversations", "-n", "7").stdout.splitlines()) == 7
    assert len(logged_in.log) == 1
    lines = run("conversations", "-q", "NUMBER 6").stdout.splitlines()
    assert [line.split("  ")[-1][:9] for line in lines] == [
        "Number 64", "Number 63", "Number 62", "Number 61", "Number 60", "Number 6 "
    ]  # fmt: skip
    assert "no conversation" in run("conversations", "-q", "nowhere").stderr


@pytest.mark.parametrize("command", [["conversations", "-n", "0"], ["import", "--all"]])
def test_list_that_repeats_a_page_for_ever(logged_in: ChatUI, run: Run, command: list[str]) -> None:
    ids = [Web(logged_in).begin(f"[[title=Number {number}]] hello") for number in range(3)]
    logged_in.endless_list = True
    # A fourth page is one too many: an answer that ends it all.
    logged_in.faults["GET", "/api/v2/conversations"] = [*[Fault()] * 3, *[Fault(status=418)] * 9]
    lines = run(*command).stdout.splitlines()
    assert sorted(line.split("Number ")[1][0] for line in lines) == ["0", "1", "2"]
    assert len(ids) == len(lines)


def test_conversations_mark_what_the_logs_know(logged_in: ChatUI, run: Run) -> None:
    ask("-m", "hf-llama", "From llm")
    Web(logged_in).begin("From the web [[title=Evil \x1b[31mtitle\u202e]]")
    web, mine = run("conversations").stdout.splitlines()
    assert " * " in mine
    assert " * " not in web
    assert "Evil" in web
    assert not re.search("[\x1b\u202e]", web)
    entries = json.loads(run("conversations", "--json").stdout)
    assert [entry["thread_id"] for entry in entries] == [None, logs()[0]["conversation_id"]]


def test_conversations_of_a_stranger(chat: ChatUI, run: Run) -> None:
    """Logged out, the server gives an empty list; that is not the reason."""
    for command in (
        ["conversations"],
        ["import", NO_ID],
        ["import", "--all"],
        ["rename", NO_ID, "x"],
        ["share", NO_ID],
        ["delete", NO_ID, "--yes"],
        ["export", NO_ID],
        ["download", f"{chat.url}/conversation/{NO_ID}/output/abc"],
    ):
        assert "wants a login" in run(*command, fails=True).stderr


@pytest.mark.parametrize(
    "command",
    [
        ["import", "{}"],
        ["rename", "{}", "x"],
        ["share", "{}"],
        ["delete", "{}", "--yes"],
        ["export", "{}"],
    ],
)
def test_wrong_ids(logged_in: ChatUI, run: Run, command: list[str]) -> None:
    foreign = logged_in.add_conversation("bob", LLAMA, "").id
    for id, said in (
        (NO_ID, "o such conversation"),
        (foreign, "o such conversation"),
        ("nonsense", "names no conversation"),
        ("../../settings", "names no conversation"),
        (f"https://evil.example/chat/conversation/{NO_ID}", "is not the address"),
        (f"{logged_in.url}/conversation/", "is not the address"),
    ):
        result = run(*(word.format(id) for word in command), fails=True)
        assert said in result.stderr
    assert foreign in logged_in.conversations
    logged_in.down()
    words = [word.format(NO_ID) for word in command]
    assert "nobody is listening" in run(*words, fails=True).stderr


def test_id_of_the_logs_names_a_conversation_of_its_own_server_only(
    logged_in: ChatUI, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("-m", "hf-llama", "one")
    thread, id = logs()[0]["conversation_id"], next(iter(logged_in.conversations))
    logged_in.messages(id)  # a rename before the answer is stored would be overwritten
    commands = (["rename", thread, "new"], ["share", thread], ["delete", thread, "--yes"])
    with ChatUI() as other:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", other.url)
        for command in commands:
            assert "names no conversation" in run(*command, fails=True).stderr
        assert other.log == []  # it does not even get to know the id
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", logged_in.url)
    assert logged_in.conversations[id].title == "one"
    for command in commands:
        run(*command)
    assert [share.title for share in logged_in.shares.values()] == ["new"]
    assert logged_in.conversations == {}


def test_reader_that_has_had_enough_is_no_failure_to_tell(logged_in: ChatUI) -> None:
    Web(logged_in).begin("one")
    process = subprocess.Popen(
        [sys.executable, "-m", "llm", "huggingchat", "conversations"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(10) == 1


# --- import ---


def test_import_of_branches_with_reasoning_and_tools(logged_in: ChatUI, run: Run) -> None:
    web = Web(logged_in)
    id = web.begin("[[title=A quest]] one", preprompt="Be brief.")
    first = logged_in.messages(id)[-1]["id"]
    web.say(id, "[[reason]] [[tool]] old branch", first, tools=True)
    newest = web.say(id, "[[reason]] [[tool]] new branch", first, tools=True)

    result = run("import", id)
    assert result.stdout.endswith("  2 turns added: A quest\n")
    one, two = logs()
    assert one["system"] == "Be brief."
    assert one["conversation_name"] == "A quest"
    assert two["prompt"] == "[[reason]] [[tool]] new branch"
    assert "first page" in two["response"]
    assert "think" not in two["response"]
    assert two["reasoning"]
    (call,), (returned,) = two["tool_calls"], two["tool_results"]
    assert call["name"] == returned["name"] == "web_search_exa"
    assert "first page" in returned["output"]
    assert two["response_json"]["huggingchat"]["message_id"] == newest
    assert two["resolved_model"] == LLAMA
    stored = datetime.fromisoformat(logged_in.messages(id)[-1]["createdAt"].replace("Z", "+00:00"))
    assert datetime.fromisoformat(two["datetime_utc"]) == stored
    assert [row["id"] for row in logs("-q", "branch")] == [two["id"]]

    assert "0 turns added" in run("import", logged_in.url + f"/conversation/{id}?leafId=x").stdout
    assert len(logs()) == 2

    assert "A quest]] one" in ask("-c", "[[history]] three")
    assert logged_in.messages(id)[-2]["ancestors"][-1] == newest

    result = run("import", "--branches", id)
    assert result.stdout.endswith("  1 turn added: A quest\n")
    assert "old branch" in ask("--cid", thread_of(result), "[[history]] four")
    assert "0 turns added" in run("import", "--branches", id).stdout
    assert len(logs()) == 5
    assert not LogStore(sqlite_logs()).verify()


def sqlite_logs() -> Any:
    import sqlite_utils

    return sqlite_utils.Database(os.environ["LLM_USER_PATH"] + "/logs.db")


def test_import_of_all_branches_at_once(logged_in: ChatUI, run: Run) -> None:
    web = Web(logged_in)
    id = web.begin("one")
    first = logged_in.messages(id)[-1]["id"]
    root = logged_in.messages(id)[0]["id"]
    for text, after in (("two", first), ("deux", first), ("uno", root), ("zwei", first)):
        web.say(id, text, after)
    result = run("import", "--branches", id)
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["2", "1", "1", "1"]
    assert sorted(row["prompt"] for row in logs()) == ["deux", "one", "two", "uno", "zwei"]
    told = [ask("--cid", thread_of(result, n), "[[history]]") for n in range(4)]
    for chain, (has, lacks) in zip(
        told, [("zwei", "uno"), ("uno", "one"), ("deux", "two"), ("two", "deux")], strict=True
    ):
        assert f'"content": "{has}"' in chain
        assert f'"content": "{lacks}"' not in chain


def test_import_adds_to_what_began_in_llm(logged_in: ChatUI, run: Run) -> None:
    """Turns made on the web go on in the same thread; a branch of the web forks off."""
    ask("-m", "hf-llama", "one")
    id = next(iter(logged_in.conversations))
    web = Web(logged_in)
    first = logged_in.messages(id)[-1]["id"]
    web.say(id, "two, on the web")
    result = run("import", id)
    assert "1 turn added" in result.stdout
    assert [row["prompt"] for row in logs("-c")] == ["one", "two, on the web"]
    ask("-c", "three")
    web.say(id, "other two, on the web", first)
    assert thread_of(run("import", thread_of(result))) != thread_of(result)
    assert "two, on the web" not in ask("-c", "[[history]]").replace("other two", "")
    assert [row["prompt"] for row in logs()] == [
        "one", "two, on the web", "three", "other two, on the web", "[[history]]"
    ]  # fmt: skip
    assert "0 turns added" in run("import", "--all", "--branches").stdout


def test_import_again_adds_to_a_thread_with_a_system_prompt(logged_in: ChatUI, run: Run) -> None:
    web = Web(logged_in)
    id = web.begin("one", preprompt="Be brief.")
    thread = thread_of(run("import", id))
    web.say(id, "two")
    result = run("import", id)
    assert "1 turn added" in result.stdout
    assert thread_of(result) == thread
    assert "0 turns added" in run("import", id).stdout
    messages = [(m.role, _text_of(m)) for m in LogStore(sqlite_logs()).thread_messages(thread)]
    assert messages == [
        ("system", "Be brief."),
        ("user", "one"),
        ("assistant", "You said: one"),
        ("user", "two"),
        ("assistant", "You said: two"),
    ]
    ask("-c", "three")
    assert len(logged_in.messages(id)) == 7
    assert len(logged_in.conversations) == 1


def test_import_of_two_new_branches_off_one_logged_answer(logged_in: ChatUI, run: Run) -> None:
    ask("-m", "hf-llama", "one")
    thread = logs()[0]["conversation_id"]
    id = next(iter(logged_in.conversations))
    first = logged_in.messages(id)[-1]["id"]
    web = Web(logged_in)
    for text in ("older", "newer"):
        web.say(id, text, first)
    result = run("import", "--branches", id)
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["1", "1"]
    assert thread_of(result) == thread  # the newest goes on where the logs end
    store = LogStore(sqlite_logs())
    said = [
        [_text_of(m) for m in store.thread_messages(thread_of(result, line)) if m.role == "user"]
        for line in (0, 1)
    ]
    assert said == [["one", "newer"], ["one", "older"]]
    assert not store.verify()
    assert "0 turns added" in run("import", "--branches", id).stdout


def test_import_finds_a_turn_whose_message_id_was_not_known(logged_in: ChatUI, run: Run) -> None:
    ask("-m", "hf-llama", "one [[nofetch]]")
    conversation = next(iter(logged_in.conversations.values()))
    conversation.words.clear()
    Web(logged_in).say(conversation.id, "two")
    assert "1 turn added" in run("import", conversation.id).stdout
    assert [row["prompt"] for row in logs()] == ["one [[nofetch]]", "two"]


def test_import_does_not_fork_off_a_thread_that_went_on_elsewhere(
    logged_in: ChatUI, run: Run
) -> None:
    """The thread was continued with another model: its end stays where it is."""
    ask("-m", "hf-llama", "one")
    id = next(iter(logged_in.conversations))
    db = sqlite_logs()
    store = LogStore(db)
    thread = logs()[0]["conversation_id"]
    from llm.parts import assistant, user

    tip = store.append(thread, [user("elsewhere"), assistant("yes")])
    Web(logged_in).say(id, "two")
    assert thread_of(run("import", id)) != thread
    assert store.thread_tip(thread) == tip


def test_import_of_a_shared_link(logged_in: ChatUI, run: Run) -> None:
    bob = Web(logged_in, "hf-chat=s-bob; token=b")
    id = bob.begin("[[title=Bob's]] his question")
    link = (
        f"{logged_in.url}/r/{json.loads(bob.call(f'/conversation/{id}/share', b'{}'))['shareId']}"
    )
    assert "1 turn added: Bob's" in run("import", link).stdout
    assert "0 turns added" in run("import", link, f"{link}?x=1").stdout
    assert "his question" in ask("-c", "[[history]] mine")
    assert len(logged_in.messages(id)) == 3  # bob's own is as it was
    copies = [c for c in logged_in.conversations.values() if c.session == "ada"]
    assert [len(copy.messages) for copy in copies] == [5]
    assert "o such conversation" in run("import", f"{logged_in.url}/r/nowhere", fails=True).stderr
    assert "shared link" in run("delete", link, "-y", fails=True).stderr


def test_import_of_a_shared_link_without_a_session(open_chat: ChatUI, run: Run) -> None:
    """Nothing to copy it to: it is continued in a new conversation, which is told of it."""
    run("refresh")
    bob = Web(open_chat, "hf-chat=s-bob")
    id = bob.begin("his question")
    share_id = json.loads(bob.call(f"/conversation/{id}/share", b"{}"))["shareId"]
    run("import", f"{open_chat.url}/r/{share_id}")
    assert len(open_chat.conversations) == 1
    assert logs()[0]["response_json"]["huggingchat"]["url"].endswith(f"/r/{share_id}")
    assert "his question" in ask("-c", "[[history]] mine")
    assert len(open_chat.conversations) == 2


def test_import_names_files_as_attachments(logged_in: ChatUI, run: Run) -> None:
    web = Web(logged_in)
    id = web.begin()
    web.say(id, "what is in it? [[file]]", file="aGVsbG8=")
    run("import", id)
    (row,) = logs()
    (attachment,) = row["attachments"]
    assert attachment["type"] == "text/plain"
    page = f"{logged_in.url}/conversation/{id}/output/"
    assert attachment["url"].startswith(page)
    assert page in row["response"]  # the picture in the answer


def test_import_of_questions_without_answers(logged_in: ChatUI, run: Run) -> None:
    web = Web(logged_in)
    id = web.begin()
    assert "no answer in it yet" in run("import", id).stdout
    web.say(id, "[[err=500]] fails")
    assert "no answer in it yet" in run("import", id).stdout
    web.say(id, "works")
    assert "1 turn added" in run("import", id).stdout
    assert "works" in logs()[0]["response"]
    assert "Give ids" in run("import", fails=True).stderr
    assert "Give ids" in run("import", "--all", id, fails=True).stderr


def test_import_interrupted_and_started_again(
    logged_in: ChatUI, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = Web(logged_in)
    ids = [web.begin(f"question {n}", "and then?") for n in range(7)]
    log, turns = LogStore.log, [0]

    def interrupted(store: LogStore, response: Any, thread_id: str | None = None) -> str:
        turns[0] += 1
        if turns[0] == 6:  # half-way through the third conversation
            raise KeyboardInterrupt
        return log(store, response, thread_id)

    with monkeypatch.context() as patch:
        patch.setattr(LogStore, "log", interrupted)
        assert "Aborted!" in run("import", "--all", fails=True).stderr
    assert len(logs()) == 4
    assert run("import", "--all").stdout.count("2 turns added") == 5
    assert sorted(row["prompt"] for row in logs()) == sorted(
        ["and then?"] * 7 + [f"question {n}" for n in range(7)]
    )
    assert len(json.loads(run("conversations", "--json").stdout)) == len(ids)
    assert run("import", "--all").stdout.count(" 0 turns added") == 7


def test_import_of_some_that_are_not_there(logged_in: ChatUI, run: Run) -> None:
    id = Web(logged_in).begin("one")
    result = run("import", NO_ID, id, fails=True)
    assert NO_ID in result.stderr
    assert "1 turn added" in result.stdout


def test_threads_are_in_the_order_of_their_conversations(logged_in: ChatUI, run: Run) -> None:
    web = Web(logged_in)
    old = web.begin("old")
    for message in logged_in.conversations[old].messages:
        message["createdAt"] = message["updatedAt"] = "2020-01-01T00:00:00.000Z"
    new = web.begin("new")
    run("import", new)
    run("import", old)
    assert "new" in ask("-c", "[[history]]")
    assert [row["prompt"] for row in logs()] == ["old", "new", "[[history]]"]


# --- one conversation ---


def test_open(logged_in: ChatUI, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert "hold no conversation" in run("open", fails=True).stderr
    ask("-m", "hf-llama", "one")
    page = f"{logged_in.url}/conversation/{next(iter(logged_in.conversations))}"
    assert run("open").stdout == f"{page}\n"
    assert opened == []  # there is no browser here
    monkeypatch.setenv("BROWSER", "true")
    assert run("open", "--print").stdout == f"{page}\n"
    assert opened == []
    for name in (page, page[-24:], logs()[0]["conversation_id"]):
        assert run("open", name).stdout == f"{page}\n"
    assert opened == [page] * 3
    assert "names no conversation" in run("open", "nonsense", fails=True).stderr


def test_rename(logged_in: ChatUI, run: Run) -> None:
    id = Web(logged_in).begin("one")
    run("rename", id, "  A title  ")
    assert logged_in.conversations[id].title == "A title"
    assert "1 to 100" in run("rename", id, " ", fails=True).stderr
    assert "1 to 100" in run("rename", id, "x" * 101, fails=True).stderr


def test_share(logged_in: ChatUI, run: Run) -> None:
    id = Web(logged_in).begin("one")
    link = run("share", id).stdout.strip()
    assert link.removeprefix(f"{logged_in.url}/r/") in logged_in.shares


def test_delete_asks_first(logged_in: ChatUI, run: Run) -> None:
    web = Web(logged_in)
    logged_in.store_delay = 0.0  # the web page waits until a conversation is stored
    ids = [web.begin("one") for _ in range(35)]
    assert "Aborted!" in run("delete", ids[0], input="n\n", fails=True).stderr
    assert "Aborted!" in run("delete", ids[0], input="", fails=True).stderr
    assert len(logged_in.conversations) == 35
    run("delete", ids[0], input="y\n")
    result = run("delete", NO_ID, ids[1], "--yes", fails=True)
    assert NO_ID in result.stderr
    assert sorted(logged_in.conversations) == sorted(ids[2:])
    assert "33 conversations" in run("delete", "--all", input="y\n").stderr
    assert logged_in.conversations == {}
    assert "0 conversations" in run("delete", "--all", "--yes").stdout
    assert "Give ids" in run("delete", fails=True).stderr


def test_export(logged_in: ChatUI, run: Run, tmp_path: pathlib.Path) -> None:
    web = Web(logged_in)
    id = web.begin("[[title=A title]] one", preprompt="Be brief.")
    web.say(id, "[[reason]] [[tool]] two", tools=True)
    text = run("export", id).stdout
    assert text.startswith(f"# A title\n\n<{logged_in.url}/conversation/{id}>\n\n## System\n")
    for piece in ("## You\n\n[[reason]]", f"## {LLAMA}\n", "Tool `web_search_exa`", "Reasoning"):
        assert piece in text
    value = json.loads(run("export", id, "--format", "json").stdout)
    assert [message["id"] for message in value["messages"]] == [
        message["id"] for message in logged_in.messages(id)
    ]
    file = tmp_path / "out.md"
    assert run("export", id, "-o", str(file)).stdout == ""
    assert file.read_text() == text
    file.write_text("mine")
    assert "Overwrite" in run("export", id, "-o", str(file), input="n\n", fails=True).stderr
    assert file.read_text() == "mine"
    assert "no directory" in run("export", id, "-o", "nowhere/out.md", fails=True).stderr


def test_download(logged_in: ChatUI, run: Run, tmp_path: pathlib.Path) -> None:
    answer = ask("-m", "hf-llama", "[[file]]")
    link = re.findall(r"\((http[^)]*)\)", answer)[0]
    (mime, content) = next(iter(next(iter(logged_in.conversations.values())).files.values()))
    name = f"{link.rpartition('/')[2][:8]}.{mime.partition('/')[2]}"
    assert run("download", link).stdout == f"{name} ({len(content)} bytes)\n"
    assert (tmp_path / name).read_bytes() == content
    (tmp_path / name).write_text("mine")
    assert "Overwrite" in run("download", link, input="n\n", fails=True).stderr
    assert (tmp_path / name).read_text() == "mine"
    run("download", link, input="y\n")
    assert (tmp_path / name).read_bytes() == content
    run("download", link, "-o", "picture")
    assert (tmp_path / "picture").read_bytes() == content
    assert "no such file" in run("download", f"{link}0", fails=True).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["llm", "picture", name])


def test_download_sends_cookies_for_files_only(logged_in: ChatUI, run: Run) -> None:
    del logged_in.log[:]
    url, origin = logged_in.url, logged_in.url.removesuffix("/chat")
    for link in (
        f"https://evil.example/chat/conversation/{NO_ID}/output/abc",
        f"{origin}@evil.example/chat/conversation/{NO_ID}/output/abc",
        f"{origin}/conversation/{NO_ID}/output/abc",
        f"{url}/api/v2/user",
        f"{url}/conversation/../../settings/output/abc",
        f"{url}/conversation/%2e%2e/output/abc",
        f"{url}/conversation/{NO_ID}/output/abc/../../../../settings",
        f"{url}/conversation/{NO_ID}/output/abc?x=/..",
        "file:///etc/passwd",
        "abc",
    ):
        assert "is not the link of a file" in run("download", link, fails=True).stderr
    assert logged_in.log == []


def test_download_does_not_follow(logged_in: ChatUI, run: Run, tmp_path: pathlib.Path) -> None:
    elsewhere = (("location", f"{logged_in.url}/api/v2/user"),)
    logged_in.faults["GET", "/conversation/*/output/*"] = [Fault(status=302, headers=elsewhere)]
    link = f"{logged_in.url}/conversation/{NO_ID}/output/abc"
    del logged_in.log[:]
    run("download", link, fails=True)
    assert len(logged_in.log) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["llm"]


def test_every_command_has_help_and_an_example(run: Run) -> None:
    commands = [llm_huggingchat.huggingchat, *llm_huggingchat.huggingchat.commands.values()]
    assert len(commands) == 17
    for command in commands:
        assert "Example:\n" in (command.help or "")
        assert "llm huggingchat" in (command.help or "")
    for name in llm_huggingchat.huggingchat.commands:
        assert "Example:" in run(name, "--help").stdout


def test_a_server_that_answers_nonsense(logged_in: ChatUI, run: Run) -> None:
    page = Fault(status=200)
    broken = Fault(status=200, body=b'{"json": {"conversations": 1}}', content_type="text/plain")
    for fault, said in ((page, "not JSON"), (Fault(status=429), "pause")):
        logged_in.faults["GET", "/api/v2/conversations"] = [fault]
        assert said in run("conversations", fails=True).stderr
    logged_in.faults["GET", "/api/v2/conversations"] = [broken]
    run("conversations")


def test_logs_that_cannot_be_used(logged_in: ChatUI, run: Run, user_path: pathlib.Path) -> None:
    (user_path / "logs.db").write_bytes(b"not a database" * 100)
    assert "llm's logs" in run("import", Web(logged_in).begin("one"), fails=True).stderr


# --- the parts that need no server ---


def test_read_name() -> None:
    server = Server(SERVICE)
    id = "6b039392759aa03066f1190F"
    assert parse_conversation_ref(f" {id} ", server) == ConversationRef(id.lower())
    assert parse_conversation_ref(
        f"{SERVICE}/conversation/{id}?leafId=1", server
    ) == ConversationRef(id)
    for link in (f"{SERVICE}/r/aB-_123", "https://hf.co/chat/r/aB-_123#x"):
        assert parse_conversation_ref(link, server) == ConversationRef("aB-_123", True)
    assert parse_conversation_ref(f"{SERVICE}/conversation/aB-_123", server) == ConversationRef(
        "aB-_123", True
    )
    assert parse_conversation_ref("01m82zgx37ee6a87wr61s3djw4", server) is None


@pytest.mark.parametrize(
    ("disposition", "type", "name"),
    [
        ('attachment; filename="0123abcd.png"', "image/png", "0123abcd.png"),
        ('attachment; filename="../../etc/passwd"', "", "passwd"),
        ('attachment; filename="..\\..\\x.png"', "image/png", "x.png"),
        ('attachment; filename=".bashrc"', "text/plain", "bashrc.txt"),
        ('attachment; filename="a\x1b[31m\r\nX: y.png"', "image/png", "a[31mX: y.png"),
        ("attachment; filename*=UTF-8''%e2%82%ac.png", "image/png", "€.png"),
        ("", "image/png", "0123.png"),
        ('attachment; filename=""', "image/webp", "0123.webp"),
        ('attachment; filename="/"', "", "attachment"),
    ],
)
def test_file_name(disposition: str, type: str, name: str) -> None:
    assert file_name(disposition, "https://x/conversation/1/output/0123", type) == name


def test_age() -> None:
    ages = [_age(seconds) for seconds in (-5, 59, 60, 7_199, 86_400, 400 * 86_400)]
    assert ages == [
        "just now", "just now", "1 minute ago", "1 hour ago", "1 day ago", "400 days ago"
    ]  # fmt: skip


def test_ulid_of() -> None:
    old, new = NOW, NOW + timedelta(milliseconds=1)
    assert ulid_of(old, "a") == ulid_of(old, "a")
    assert ulid_of(old, "b", "c") != ulid_of(old, "bc")
    assert ulid_of(old, "z") < ulid_of(new, "a")
    future = datetime.now(UTC) + timedelta(days=9)
    ahead = ulid_of(future, "a")
    assert ahead[:10] <= ulid_of(None, "a")[:10]  # its time is never ahead of llm's own
    assert re.fullmatch("[0-9a-hjkmnp-tv-z]{26}", ulid_of(old, "a"))


def stored(id: str, kind: str, *ancestors: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "from": kind, "content": id, "ancestors": list(ancestors), **more}


def tree(*messages: Any, **more: Any) -> ConversationTree:
    value = {"title": "T", "model": LLAMA, "messages": list(messages), **more}
    return ConversationTree(parse_server(SERVICE), "6" * 24, value)


def test_branches_pass_over_what_is_no_answer() -> None:
    def run_at(seconds: float) -> dict[str, Any]:
        time = (NOW - timedelta(seconds=seconds)).isoformat()
        return {"generationId": "g", "createdAt": time, "updatedAt": time, "updates": []}

    found = branches_of(
        tree(
            stored("root", "system"),
            stored("u1", "user", "root"),
            stored("a1", "assistant", "root", "u1", **run_at(900)),
            stored("u2", "user", "root", "u1", "a1"),
            stored("a2", "assistant", "root", "u1", "a1", "u2", content=""),
            stored("u3", "user", "root", "u1", "a1", "u2", "a2"),
            stored("a3", "assistant", "root", "u1", "a1", "u2", "a2", "u3", **run_at(800)),
            stored("u4", "user", "root", "u1", "a1"),
            stored("a4", "assistant", "root", "u1", "a1", "u4", **run_at(5)),
            None,
        ),
        NOW,
    )
    ids = [[([q["id"] for q in e.questions], e.answer["id"]) for e in branch] for branch in found]
    assert ids == [[(["u1"], "a1"), (["u2", "u3"], "a3")]]


def test_a_conversation_of_another_time_is_imported(user_path: pathlib.Path) -> None:
    """Old ones have neither runs nor times; a changed model leaves its name on the answer."""
    old = {"routerMetadata": {"route": "", "model": "old/Model"}}
    routed = {"routerMetadata": {"route": "code", "model": "some/Coder", "provider": "p"}}
    value = tree(
        stored("u1", "user", content="half \ud83d"),
        stored("a1", "assistant", "u1", **old),
        stored("u2", "user", "u1", "a1"),
        stored("a2", "assistant", "u1", "a1", "u2", **routed),
        model="omni",
    )
    with llm_huggingchat._logs() as store:
        importer = Importer(store, value.server)
        (imported,) = importer.add(value, branches_of(value, NOW))
        assert imported.turns == 2
        assert importer.knows(branches_of(value, NOW))
        rows = list(store.db.query("select model, resolved_model from turns order by rowid"))
        assert [tuple(row.values()) for row in rows] == [
            ("huggingchat/old/Model", "old/Model"),
            ("huggingchat/omni", "some/Coder"),
        ]
        parts = store.thread_messages(imported.thread_id)[-1].parts
        assert parts[-1].provider_metadata == {  # type: ignore[attr-defined]
            "huggingchat": {
                "conversation_id": "6" * 24,
                "message_id": "a2",
                "server": SERVICE,
                "model": "omni",
            }
        }
