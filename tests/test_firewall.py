"""A firewall in front of the server: what it says, its cookie, and looking like a browser."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator

import llm
import pytest
from chat_ui import ChatUI, Fault
from helpers import TurnRequest, ask_sync, both, failure, only_conversation, run, sends

import llm_huggingchat
from llm_huggingchat import BROWSER_VARIABLE, Server, browser_headers, form_boundary

PAGE = b"<!DOCTYPE html><title>Human Verification</title><script>x-secret</script>"
CHALLENGE = Fault(status=202, body=b"", headers=(("X-Amzn-Waf-Action", "challenge"),))
CAPTCHA = Fault(status=405, body=PAGE, headers=(("x-amzn-waf-action", "captcha"),))
NETWORK = Fault(status=403, body=PAGE)
WALLS = pytest.mark.parametrize("wall", [CHALLENGE, CAPTCHA, NETWORK], ids=lambda w: str(w.status))


# --- what it says -----------------------------------------------------------------------


@WALLS
@pytest.mark.parametrize("path", ["/conversation", "/conversation/?*"])
def test_refused_prompt_says_that_a_firewall_stands_there(
    server: ChatUI, wall: Fault, path: str
) -> None:
    server.faults["POST", path] = [wall]
    said = failure("-m", "hf-llama", "hello")
    assert "firewall" in said
    assert f"HTTP {wall.status}" in said
    assert f"{BROWSER_VARIABLE}, such as chrome" in said
    assert "aws-waf-token" in said
    assert "x-secret" not in said
    assert server.faults["POST", path] == []  # asked once: nothing is tried again


@WALLS
@both
@pytest.mark.parametrize(
    "call", [("POST", "/conversation/?*"), ("PATCH", "/api/v2/conversations/?*")]
)
def test_firewall_does_not_make_a_conversation_disappear(
    server: ChatUI, ask: TurnRequest, wall: Fault, call: tuple[str, str]
) -> None:
    first = ask("one")
    server.faults[call] = [wall]
    with pytest.raises(llm.ModelError, match="firewall"):
        ask("two", after=first, model="hf-qwen")
    assert len(server.conversations) == 1


@WALLS
def test_commands_say_it_as_well(server: ChatUI, wall: Fault) -> None:
    run("-m", "hf-llama", "hello")
    id = only_conversation(server).id
    server.faults["GET", "*"] = server.faults["PATCH", "*"] = [wall] * 50
    for command in (["status"], ["refresh"], ["conversations"], ["rename", id, "T"], ["login"]):
        assert "firewall" in failure("huggingchat", *command)


def test_another_browser_is_proposed(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, other in (("chrome", "firefox"), ("firefox", "chrome")):
        monkeypatch.setenv(BROWSER_VARIABLE, name)
        server.faults["POST", "/conversation"] = [CAPTCHA]
        said = failure("-m", "hf-llama", "hello")
        assert f"another browser than {name}" in said
        assert f"such as {other}" in said


# --- its cookie -------------------------------------------------------------------------


def test_cookie_goes_with_every_request_to_its_host_alone(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = json.dumps({"hf-chat": "s", "aws-waf-token": "waf:1/a"})
    run("keys", "set", f"huggingchat:127.0.0.1:{server.port}", "--value", value)
    run("-m", "hf-llama", "hello")
    run("huggingchat", "status")
    run("huggingchat", "refresh")
    assert {request.cookies.get("aws-waf-token") for request in server.log} == {"waf:1/a"}
    public = [r for r in server.log if re.search("models|feature-flags", r.path)]
    assert public
    assert all(set(request.cookies) == {"aws-waf-token"} for request in public)
    with ChatUI() as other:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", other.url)
        run("-m", "hf-llama", "hello")
        run("huggingchat", "refresh")
        assert not any("aws-waf-token" in request.cookies for request in other.log)


# --- looking like a browser -------------------------------------------------------------


def test_plugin_says_who_it_is(server: ChatUI) -> None:
    ask_sync("hello")
    assert {request.headers["user-agent"] for request in server.log} == {"llm-huggingchat"}
    assert not any("sec-fetch-mode" in request.headers for request in server.log)


@both
@pytest.mark.parametrize(
    ("name", "agent"), [("chrome", "Chrome/"), ("firefox", "Firefox/"), ("safari", "Version/")]
)
def test_requests_are_as_the_pages_own(
    server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch, name: str, agent: str
) -> None:
    monkeypatch.setenv(BROWSER_VARIABLE, name)
    assert ask("hello").text() == "You said: hello"
    assert len(server.log) >= 3
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
    (sent,) = sends(server)
    kind = "geckoform" if name == "firefox" else "WebKitForm"
    assert kind in sent.headers["content-type"]


def test_no_browser_is_an_error_that_lists_them(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BROWSER_VARIABLE, "mosaic")
    for command in (["-m", "hf-llama", "hello"], ["huggingchat", "status"]):
        said = failure(*command)
        assert "'mosaic'" in said
        assert "chrome, " in said
        assert "firefox147" in said
    assert server.log == []
    monkeypatch.setenv(BROWSER_VARIABLE, "")
    run("-m", "hf-llama", "hello")


def test_headers_and_boundaries_are_plain_values(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("https://chat.example.org/chat")
    assert browser_headers("chrome", server, "POST")["Origin"] == "https://chat.example.org"
    assert "Origin" not in browser_headers("chrome", server, "GET")
    assert browser_headers("firefox147", server, "GET")["Priority"] == "u=4"
    assert form_boundary() != form_boundary()
    assert re.fullmatch(r"llm-huggingchat-\w{32}", form_boundary())
    monkeypatch.setenv(BROWSER_VARIABLE, "chrome131")
    assert re.fullmatch(r"----WebKitFormBoundary\w{16}", form_boundary())


# --- the handshake ----------------------------------------------------------------------

ALPN, RECORD_SIZE, ALPS, ECH = 16, 28, 17613, 65037  # extensions of a ClientHello


class Ear:
    """A socket that hears the first words of TLS, and hangs up."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.hellos: list[bytes] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection = self._socket.accept()[0]
            except OSError:
                return
            with connection, connection.makefile("rb") as file:
                head = file.read(5)  # type, version, length
                self.hellos.append(file.read(int.from_bytes(head[3:], "big")))

    def close(self) -> None:
        self._socket.close()


def groups(data: bytes, width: int) -> list[bytes]:
    return [data[at : at + width] for at in range(0, len(data), width)]


def hello_of(hello: bytes) -> tuple[list[int], dict[int, bytes]]:
    """The ciphers and the extensions of a ClientHello (RFC 8446, 4.1.2)."""
    assert hello[0] == 1
    at = 4 + 2 + 32  # the message's head, the version, the random
    at += 1 + hello[at]  # the session
    size = int.from_bytes(hello[at : at + 2], "big")
    ciphers = [int.from_bytes(two, "big") for two in groups(hello[at + 2 : at + 2 + size], 2)]
    at += 2 + size
    at += 1 + hello[at] + 2  # compressions, the extensions' length
    extensions = {}
    while at < len(hello):
        kind, size = (int.from_bytes(two, "big") for two in groups(hello[at : at + 4], 2))
        extensions[kind] = hello[at + 4 : at + 4 + size]
        at += 4 + size
    return ciphers, extensions


def is_grease(value: int) -> bool:
    """One of the values that Chrome sprinkles in (RFC 8701)."""
    return value & 0x0F0F == 0x0A0A and value >> 8 == value & 0xFF


@pytest.fixture
def ear(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ear]:
    ear = Ear()
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", f"https://127.0.0.1:{ear.port}/chat")
    monkeypatch.setattr(
        llm_huggingchat.limits, "backoff", (0.01,) * len(llm_huggingchat.limits.backoff)
    )
    yield ear
    ear.close()


@pytest.mark.parametrize(
    ("name", "has", "has_not"),
    [
        ("", set(), {ECH, ALPS, RECORD_SIZE}),
        ("chrome", {ECH, ALPS}, {RECORD_SIZE}),
        ("firefox", {ECH, RECORD_SIZE}, {ALPS}),
    ],
)
def test_handshake_is_the_browsers(
    ear: Ear, monkeypatch: pytest.MonkeyPatch, name: str, has: set[int], has_not: set[int]
) -> None:
    monkeypatch.setenv(BROWSER_VARIABLE, name)
    assert "encrypted connection" in failure("-m", "hf-llama", "hello")
    assert "encrypted connection" in failure("huggingchat", "refresh")
    assert len(ear.hellos) >= 2
    for hello in ear.hellos:
        ciphers, extensions = hello_of(hello)
        assert is_grease(ciphers[0]) is (name == "chrome")
        assert has <= extensions.keys()
        assert not has_not & extensions.keys()
        assert b"\x02h2" in extensions[ALPN]
