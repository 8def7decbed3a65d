"""What people are told when something is wrong, and what never leaves the machine."""

from __future__ import annotations

import json
import pathlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import llm
import pytest
from chat_ui import ChatUI, Fault
from click.testing import CliRunner
from helpers import (
    NEVER,
    TurnRequest,
    ask_async,
    both,
    failure,
    only_conversation,
    run,
    sends,
    soon,
    tree,
)

import llm_huggingchat

SESSION, LOGIN = "ann-session-value", "ann-token-value"
BOTH_COOKIES = f"hf-chat={SESSION}; token={LOGIN}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, so that what is given up is given up soon."""
    monkeypatch.setattr("llm_huggingchat.limits.backoff", (0.01,) * 6)
    monkeypatch.setattr("llm_huggingchat.limits.look_again", 0.05)
    monkeypatch.setattr("llm_huggingchat.limits.reconnect_timeout", 1.0)
    monkeypatch.setattr("llm_huggingchat.limits.read_timeout", 0.5)


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatUI]:
    """A server on which only Ann may do anything."""
    with ChatUI(login_required=True, sessions={SESSION: ("ann", LOGIN)}) as chat:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", chat.url)
        yield chat


def host(server: ChatUI) -> str:
    return server.url.split("/")[2]


def use(server: ChatUI, key: str) -> None:
    """Keep a key for the server."""
    run("keys", "set", f"huggingchat:{host(server)}", "--value", key)


def stored(user_path: pathlib.Path) -> dict[str, Any]:
    """llm's key store."""
    path = user_path / "keys.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


# --- logged in, and out ---------------------------------------------------------------


@pytest.mark.parametrize("way", [(), ("--async",)])
def test_both_cookies_let_in(guarded: ChatUI, way: tuple[str, ...]) -> None:
    use(guarded, BOTH_COOKIES)
    assert run("-m", "hf-llama", "hello", *way).stdout == "You said: hello\n"
    run("-c", "two", *way)
    assert tree(guarded, only_conversation(guarded).id) == {"hello": {"two": {}}}


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (f"hf-chat={SESSION}", "'token' is missing"),
        ("token=stale", "expired"),
        ("aws-waf-token=stale", "'token' is missing"),
        ("hf-chat=stale; token=stale", "expired"),
        ("some words that are no cookie", "'token' is missing"),
        ('{"cookies": []}', "'token' is missing"),
        ("hf-chat=a\x01b; token=x", "characters that no cookie has"),
    ],
)
@pytest.mark.parametrize("way", [(), ("--async",)])
def test_cookies_that_do_not_let_in(
    guarded: ChatUI, key: str, says: str, way: tuple[str, ...]
) -> None:
    use(guarded, key)
    said = failure("-m", "hf-llama", "hello", *way)
    assert says in said
    assert re.search(r"llm huggingchat login|Copy it again", said)
    for secret in (SESSION, LOGIN, "stale", "no cookie\n"):
        assert secret not in said
    assert not sends(guarded)


def test_no_key_at_all(guarded: ChatUI, user_path: pathlib.Path) -> None:
    said = failure("-m", "hf-llama", "hello")
    assert "there is no key" in said
    assert f"llm keys set huggingchat:{host(guarded)}" in said
    assert stored(user_path) == {}


def test_service_wants_a_key_before_anything_is_asked() -> None:
    said = failure("-m", "hf-llama", "hello")
    assert "llm huggingchat login" in said
    assert "llm keys set huggingchat" in said


@both
def test_login_that_ends_in_the_middle_of_a_conversation(guarded: ChatUI, ask: TurnRequest) -> None:
    first = ask("one", key=BOTH_COOKIES)
    guarded.sessions.clear()
    with pytest.raises(llm.ModelError, match="Not logged in"):
        ask("two", after=first, key=BOTH_COOKIES)
    assert len(guarded.conversations) == 1
    guarded.sessions[SESSION] = ("ann", LOGIN)
    ask("two", after=first, key=BOTH_COOKIES)
    assert tree(guarded, only_conversation(guarded).id) == {"one": {"two": {}}}


# --- refusals -------------------------------------------------------------------------


def refusal(status: int, message: str) -> Fault:
    body = json.dumps({"message": message}).encode()
    return Fault(status=status, body=body, content_type="application/json")


@pytest.mark.parametrize("path", ["/conversation", "/conversation/*"], ids=["create", "send"])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (refusal(400, "Invalid request"), "llm huggingchat refresh"),
        (refusal(400, "Message too long."), "too long"),
        (Fault(status=401, body=b"You have to be logged in.", content_type="text/plain"), "login"),
        (Fault(status=302, headers=(("location", "https://sso.example/login"),)), "Not logged in"),
        (Fault(status=302, headers=(("location", "https://new.example/"),)), "redirects to"),
        (refusal(403, "Invalid referer"), "403"),
        (refusal(404, "Not there"), "LLM_HUGGINGCHAT_URL"),
        (refusal(410, "Model not available anymore"), "llm huggingchat refresh"),
        (refusal(413, "File too large, should be <10MB"), "10 MB"),
        (refusal(429, "You are sending too many messages."), "Try again later"),
        (refusal(500, "An error occurred"), "Try again later"),
        (Fault(status=405), "405"),
        (Fault(status=418, body=b"\x1b[31mteapot\x07", content_type="text/plain"), "teapot"),
    ],
)
@both
def test_refusal_is_told_in_words(
    server: ChatUI, ask: TurnRequest, path: str, fault: Fault, says: str
) -> None:
    server.faults["POST", path] = [fault] * 9
    with pytest.raises(llm.ModelError, match=re.escape(says)) as caught:
        ask("hello", key=BOTH_COOKIES)
    check_told(str(caught.value))
    assert server.stops == []


def check_told(said: str) -> None:
    """One or two lines, without HTML, control characters or cookies."""
    assert 0 < len(said.splitlines()) <= 2
    assert not re.search("<(!doctype|html)", said, re.IGNORECASE)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", said)
    assert SESSION not in said
    assert LOGIN not in said


@pytest.mark.parametrize("path", ["/conversation", "/conversation/*"], ids=["create", "send"])
@pytest.mark.parametrize("status", [200, 503])
def test_page_instead_of_an_answer_is_told(server: ChatUI, path: str, status: int) -> None:
    server.faults["POST", path] = [Fault(status=status)] * 9
    with pytest.raises(llm.ModelError) as caught:
        ask_async("hello")
    check_told(str(caught.value))
    assert ("web page" in str(caught.value)) == (status == 200)


@both
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("[[err=429]]", "HTTP 429"),
        ("[[err=500]]", "Try again later"),
        ("[[err=402]]", "402 upstream says 402"),
        ("[[err=429]] [[cut_bytes=30]]", "HTTP 429"),
        ("[[empty]]", "empty answer"),
        ("[[empty]] [[cut_bytes=30]]", "empty answer"),
        ("[[die=0]]", "empty answer"),
    ],
)
def test_failure_of_the_model_is_told(
    server: ChatUI, ask: TurnRequest, words: str, says: str
) -> None:
    with pytest.raises(llm.ModelError, match=says) as caught:
        ask(f"hello {words}")
    check_told(str(caught.value))
    assert server.stops == []


@pytest.mark.parametrize("words", ["[[err=429]]", "[[empty]]", "[[status=429]]", "[[html]]"])
@pytest.mark.parametrize("way", [(), ("--async",), ("--no-stream",)])
def test_command_fails_in_words(server: ChatUI, words: str, way: tuple[str, ...]) -> None:
    failure("-m", "hf-llama", f"hello {words}", *way)
    assert run("logs", "--json").stdout.strip() == "[]"


def test_conversation_goes_on_after_a_failure(server: ChatUI) -> None:
    run("-m", "hf-llama", "one")
    failure("-c", "two [[err=500]]")
    run("-c", "three")
    questions = tree(server, only_conversation(server).id)["one"]
    assert set(questions) == {"two [[err=500]]", "three"}


def test_model_that_is_gone_is_told(server: ChatUI) -> None:
    run("-m", "hf-llama", "one")
    server.models = [model for model in server.models if "Llama-4" not in model["id"]]
    assert "llm huggingchat refresh" in failure("-c", "two")
    assert "llm huggingchat refresh" in failure("-m", "hf-llama", "three")


# --- notes ----------------------------------------------------------------------------

BREAKS_OFF = "[[tokens=9]] [[die=3]]"


@both
def test_library_notes_in_the_log(
    server: ChatUI,
    ask: TurnRequest,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert ask(BREAKS_OFF).text() == "w0 w1 w2 "
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("llm_huggingchat", "WARNING")
    assert "broke off its answer" in record.getMessage()
    assert capfd.readouterr().err == ""


@both
def test_other_programs_of_click_are_no_command_line_of_llms(
    server: ChatUI, ask: TurnRequest, caplog: pytest.LogCaptureFixture
) -> None:
    @click.command()
    def program() -> None:
        ask(BREAKS_OFF)

    result = CliRunner().invoke(program, catch_exceptions=False)
    assert (result.exit_code, result.output) == (0, "")
    assert "broke off its answer" in caplog.text


@pytest.mark.parametrize("way", [(), ("--async",)])
def test_command_line_notes_on_standard_error(
    server: ChatUI, caplog: pytest.LogCaptureFixture, way: tuple[str, ...]
) -> None:
    shown = run("-m", "hf-llama", BREAKS_OFF, *way)
    assert re.fullmatch(r"huggingchat: the model \S+ broke off its answer\n", shown.stderr)
    assert shown.stdout == "w0 w1 w2 \n"
    assert caplog.records == []


# --- addresses ------------------------------------------------------------------------


def test_nobody_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", f"http://{address}/chat")
    monkeypatch.setattr(
        "llm_huggingchat.limits.reconnect_timeout", NEVER
    )  # a few attempts are enough
    with soon():
        said = failure("-m", "hf-llama", "hello")
    assert address in said
    assert "nobody is listening" in said
    assert "LLM_HUGGINGCHAT_URL" in said


def test_no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", "https://nosuch.invalid/chat")
    run("keys", "set", "huggingchat:nosuch.invalid", "--value", BOTH_COOKIES)
    said = failure("-m", "hf-llama", "hello")
    assert "nosuch.invalid" in said
    assert "no such host" in said
    check_told(said)


@pytest.mark.parametrize(
    "address",
    [
        "nonsense",
        "ftp://example.org",
        "http://example.org/chat",
        "http://127.0.0.1.example.org",
        "https://ann:sesame@example.org/chat",
        "https://example.org/chat?x=1",
        "https://example.org:99999/",
        "https://exa mple.org/",
        "https://[::1",
        "https://",
    ],
)
def test_address_that_is_none(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", address)
    monkeypatch.setenv("LLM_HUGGINGCHAT_KEY", BOTH_COOKIES)
    said = failure("-m", "hf-llama", "hello")
    assert "LLM_HUGGINGCHAT_URL" in said
    assert "sesame" not in said
    check_told(said)


def test_server_that_is_no_chat_ui(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", server.url.removesuffix("/chat") + "/other")
    assert "LLM_HUGGINGCHAT_URL" in failure("-m", "hf-llama", "hello")


# --- files of llm ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"servers": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"servers": {"URL": {"time": "soon", "models": [1, {"id": 2}]}}}',
        b'{"servers": {"URL": {"time": 1e999, "models": []}}}',
    ],
)
def test_broken_cache_is_mended(server: ChatUI, user_path: pathlib.Path, content: bytes) -> None:
    cache = user_path / llm_huggingchat.CACHE
    cache.write_bytes(content.replace(b"URL", server.url.encode()))
    shown = run("-m", "hf-llama", "hello")
    assert (shown.stdout, shown.stderr) == ("You said: hello\n", "")
    run("huggingchat", "refresh")
    assert "servers" in json.loads(cache.read_text())
    assert run("-m", "hf-llama", "hello").stdout == "You said: hello\n"


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_broken_key_store_is_told(server: ChatUI, user_path: pathlib.Path, content: bytes) -> None:
    (user_path / "keys.json").write_bytes(content)
    assert "keys.json" in failure("-m", "hf-llama", "hello")
    assert (user_path / "keys.json").read_bytes() == content


def test_cache_is_refreshed_beside_a_prompt_once_a_day(server: ChatUI) -> None:
    def fetched() -> int:
        return [request.path for request in server.log].count("/api/v2/models")

    for _ in range(3):
        run("-m", "hf-llama", "hello [[delay=0.05]]")
    assert fetched() == 1
    assert {model.id for model in llm_huggingchat.load_catalogue(server.url).models} == {
        model["id"] for model in server.models
    }


# --- cookies --------------------------------------------------------------------------


def test_cookies_stay_out_of_what_is_kept_and_shown(
    guarded: ChatUI, user_path: pathlib.Path
) -> None:
    use(guarded, BOTH_COOKIES)
    shown = [run("-m", "hf-llama", "hello"), run("-c", "two"), run("logs", "--json")]
    guarded.sessions.clear()
    shown.append(run("-c", "three", status=1))
    texts = [result.output + repr(result.exception) for result in shown]
    for path in user_path.iterdir():
        texts.append("" if path.name == "keys.json" else path.read_bytes().decode("latin-1"))
    model = llm.get_model("hf-llama")
    cookies = llm_huggingchat.parse_cookies(BOTH_COOKIES)
    texts += [repr(model), str(vars(model)), repr(cookies), str(cookies)]
    for text in texts:
        assert SESSION not in text
        assert LOGIN not in text


@both
def test_no_cookie_in_a_traceback(guarded: ChatUI, ask: TurnRequest) -> None:
    import traceback

    guarded.sessions.clear()
    with pytest.raises(llm.ModelError) as caught:
        ask("hello", key=BOTH_COOKIES)
    text = "".join(traceback.format_exception(caught.value))
    assert SESSION not in text.replace(f'key="{BOTH_COOKIES}"', "")
    assert LOGIN not in text


@both
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/conversation"), ("POST", "/conversation/*"), ("GET", "/api/mcp/servers")],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(
    server: ChatUI, ask: TurnRequest, method: str, path: str, status: int
) -> None:
    with ChatUI() as other:
        location = (("location", f"{other.url}/conversation"),)
        server.faults[method, path] = [Fault(status=status, headers=location)] * 9
        with pytest.raises(llm.ModelError):
            ask("hello", key=BOTH_COOKIES, web_search=True)
        assert other.log == []
        assert other.connections == 0


def test_cookies_set_by_the_server_are_not_taken(server: ChatUI) -> None:
    header = (("set-cookie", "hf-chat=new; Path=/"), ("set-cookie", "evil=1; Path=/"))
    server.faults["POST", "/conversation"] = [Fault(status=502, headers=header)]
    conversation = llm.get_model("hf-llama").conversation()
    conversation.prompt("one", key=BOTH_COOKIES).text()
    conversation.prompt("two", key=BOTH_COOKIES).text()
    sent = [request.cookies for request in server.log if request.cookies]
    assert all(cookies == {"hf-chat": SESSION, "token": LOGIN} for cookies in sent)


def test_made_up_session_is_kept_for_the_next_command(
    server: ChatUI, user_path: pathlib.Path
) -> None:
    run("-m", "hf-llama", "one")
    (name,) = (name for name in stored(user_path) if not name.startswith("//"))
    assert name == f"huggingchat:{host(server)}"
    assert json.loads(stored(user_path)[name])["anonymous"] is True
    assert (user_path / "keys.json").stat().st_mode & 0o077 == 0
    llm_huggingchat._anonymous.clear()  # as in a process of its own
    run("-c", "two")
    assert tree(server, only_conversation(server).id) == {"one": {"two": {}}}


def test_worthless_session_is_not_kept(guarded: ChatUI, user_path: pathlib.Path) -> None:
    for _ in range(2):
        failure("-m", "hf-llama", "hello")
    assert stored(user_path) == {}
    use(guarded, f"hf-chat={SESSION}")
    before = stored(user_path)
    failure("-m", "hf-llama", "hello")
    assert stored(user_path) == before


def test_key_of_one_server_is_not_sent_to_another(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(server, BOTH_COOKIES)
    run("keys", "set", "huggingchat", "--value", "hf-chat=of-the-service")
    with ChatUI() as other:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", other.url)
        run("-m", "hf-llama", "hello")
        for request in other.log:
            assert not re.search(f"{SESSION}|{LOGIN}|of-the-service", str(request.headers))


# --- two processes at once ------------------------------------------------------------


def at_once(*scripts: str) -> None:
    """Run pieces of Python, each in a process of its own, all at the same time."""
    processes = [subprocess.Popen([sys.executable, "-c", script]) for script in scripts]
    assert [process.wait(30) for process in processes] == [0] * len(scripts)


def test_two_processes_write_the_key_store(user_path: pathlib.Path) -> None:
    (user_path / "keys.json").write_text('{"openai": "sk-mine", "other": "kept"}')
    at_once(
        *(
            "import llm_huggingchat as h\n"
            f"for number in range(40): h.keep_key(f'huggingchat:{name}{{number}}', 'x' * 500)\n"
            f"for number in range(39): h.keep_key(f'huggingchat:{name}{{number}}', None)"
            for name in "ab"
        )
    )
    assert stored(user_path) == {
        "openai": "sk-mine",
        "other": "kept",
        "huggingchat:a39": "x" * 500,
        "huggingchat:b39": "x" * 500,
    }


def test_two_processes_write_the_cache(user_path: pathlib.Path) -> None:
    at_once(
        *(
            "import llm_huggingchat as h\n"
            f"for number in range(20): h.keep_catalogue(f'http://{name}/{{number}}', h.BUILT_IN)"
            for name in "ab"
        )
    )
    for name in "ab":
        for number in range(20):
            catalogue = llm_huggingchat.load_catalogue(f"http://{name}/{number}")
            assert catalogue.models == llm_huggingchat.BUILT_IN
            assert catalogue.time


# --- start-up, and the stand-in as a command ------------------------------------------


def test_start_up_touches_no_network_and_imports_no_curl(server: ChatUI) -> None:
    script = (
        "import sys, llm\n"
        "assert any(m.model_id.startswith('huggingchat/') for m in llm.get_models())\n"
        "assert 'curl_cffi' not in sys.modules"
    )
    at_once(script)
    assert server.connections == 0
