"""Certificates: which are trusted, and what is said when one is not."""

import pathlib
import socketserver
import ssl
from typing import Any

import certifi
import pytest
from chat_ui import ChatUI
from helpers import command, failure, run

from llm_huggingchat import CERTIFICATE_VARIABLES as VARIABLES
from llm_huggingchat import reset

TLS = pathlib.Path(__file__).parent / "tls"  # of 127.0.0.1, signed by itself
CERTIFICATE = str(TLS / "certificate.pem")


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


def test_certificate_that_is_not_trusted_is_an_error_at_once(encrypted):
    said = failure("-m", "hf-llama", "hello")
    assert "certificate is not trusted" in said
    for name in VARIABLES:
        assert name in said
    assert len(encrypted) == 1


def test_certificate_is_trusted_by_a_variable_of_which_the_first_counts(encrypted, monkeypatch):
    for name in reversed(VARIABLES[:2]):
        monkeypatch.setenv(name, CERTIFICATE)
        assert run("-m", "hf-llama", "hello").stdout == "You said: hello\n"
        reset()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    said = failure("-m", "hf-llama", "hello")
    assert f"REQUESTS_CA_BUNDLE names the trusted ones: {certifi.where()}" in said


@pytest.mark.process
def test_certificate_is_trusted_by_openssls_variable(encrypted, monkeypatch):
    monkeypatch.setenv(VARIABLES[2], CERTIFICATE)  # it is read at the start
    assert command("-m", "hf-llama", "hello").communicate() == ("You said: hello\n", "")


def test_bundle_that_is_not_there_is_named(encrypted, monkeypatch):
    for name in VARIABLES:
        with monkeypatch.context() as patch:
            patch.setenv(name, "/no/such\x1b[31m.pem")
            said = failure("-m", "hf-llama", "hello")
        assert name in said
        assert "/no/such[31m.pem" in said
        assert "curl error" not in said
        reset()
    assert len(encrypted) <= 3
