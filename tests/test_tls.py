"""Certificates: which are trusted, and what is said when one is not; and redirects."""

from __future__ import annotations

import os
import pathlib
import socketserver
import ssl
import subprocess
import sys
from typing import Any

import certifi
import pytest
from chat_ui import ChatUI, Fault
from helpers import failure, run

from llm_huggingchat import reset

TLS = pathlib.Path(__file__).parent / "tls"  # of 127.0.0.1, signed by itself
CERTIFICATE = str(TLS / "certificate.pem")
VARIABLES = (
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
)  # the first that is set counts


class Connection(ssl.SSLSocket):
    """A connection at whose next byte the stand-in can look."""

    def recv(self, size: int = 1024, flags: int = 0) -> bytes:
        return b"" if flags else super().recv(size)


@pytest.fixture
def encrypted(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have the stand-in speak TLS, with a certificate that nobody knows. Its connections."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = Connection
    context.load_cert_chain(CERTIFICATE, TLS / "key.pem")
    accept, made = socketserver.TCPServer.get_request, list[Any]()

    def get_request(self: Any) -> Any:
        connection, address = accept(self)
        made.append(address)
        return context.wrap_socket(connection, server_side=True), address

    monkeypatch.setattr(socketserver.TCPServer, "get_request", get_request)
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", server.url.replace("http:", "https:"))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return made


def test_certificate_that_is_not_trusted_is_an_error_at_once(encrypted: list[Any]) -> None:
    said = failure("-m", "hf-llama", "hello")
    assert "certificate is not trusted" in said
    for name in VARIABLES:
        assert name in said
    assert len(encrypted) == 1


def test_certificate_is_trusted_by_a_variable_of_which_the_first_counts(
    encrypted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in reversed(VARIABLES[:2]):
        monkeypatch.setenv(name, CERTIFICATE)
        assert run("-m", "hf-llama", "hello").stdout == "You said: hello\n"
        reset()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    said = failure("-m", "hf-llama", "hello")
    assert f"REQUESTS_CA_BUNDLE names the trusted ones: {certifi.where()}" in said


def test_certificate_is_trusted_by_openssls_variable(encrypted: list[Any]) -> None:
    command = [sys.executable, "-m", "llm", "-m", "hf-llama", "hello"]  # it is read at the start
    environment = os.environ | {VARIABLES[2]: CERTIFICATE}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.stdout == "You said: hello\n", result.stderr


def test_bundle_that_is_not_there_is_named(
    encrypted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        with monkeypatch.context() as patch:
            patch.setenv(name, "/no/such\x1b[31m.pem")
            said = failure("-m", "hf-llama", "hello")
        assert name in said
        assert "/no/such[31m.pem" in said
        assert "curl error" not in said
        reset()
    assert len(encrypted) <= 3


def test_redirect_is_not_followed_and_said_to_be_one(server: ChatUI) -> None:
    for status, location, shown in (
        (301, "https://new.example.org/chat/x-secret?x-secret=1#x", "https://new.example.org ("),
        (303, "https://x-secret@new.example.org/", "https://new.example.org ("),
        (308, "/elsewhere", "another page"),
    ):
        fault = Fault(status=status, headers=(("location", location),))
        server.faults["POST", "/conversation"] = [fault]
        said = failure("-m", "hf-llama", "hello")
        for words in ("redirects to", shown, f"HTTP {status}", "LLM_HUGGINGCHAT_URL"):
            assert words in said
        assert "Not logged in" not in said
        assert "x-secret" not in said
