"""Certificates: which are trusted, and what is said when one is not; and redirects."""

from __future__ import annotations

import os
import pathlib
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import certifi
import pytest
from chat_ui import ChatUI, Fault
from curl_cffi.requests import AsyncSession
from helpers import failure, run

import llm_huggingchat
from llm_huggingchat import CERTIFICATE_VARIABLES, leads_to_login

TLS = pathlib.Path(__file__).parent / "tls"  # of 127.0.0.1, signed by itself
CERTIFICATE = str(TLS / "certificate.pem")


class Encrypted:
    """TLS in front of a server of this machine."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(CERTIFICATE, TLS / "key.pem")
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection = self._socket.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._forward, args=[connection], daemon=True).start()

    def _forward(self, connection: socket.socket) -> None:
        try:
            front = self._context.wrap_socket(connection, server_side=True)
        except OSError:
            return
        with front, socket.create_connection(("127.0.0.1", self._behind)) as behind:
            while True:
                ready = [front] if front.pending() else select.select([front, behind], [], [])[0]
                for source, sink in ((front, behind), (behind, front)):
                    if source in ready:
                        try:
                            data = source.recv(65_536)
                        except OSError:
                            return
                        if not data:
                            return
                        sink.sendall(data)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def encrypted(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> Iterator[Encrypted]:
    """The stand-in server behind TLS, with a certificate that nobody knows."""
    front = Encrypted(server.port)
    # chat-ui compares hosts, and a proxy in front of it passes on the one that was asked for.
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", f"https://127.0.0.1:{front.port}/chat")
    for name in CERTIFICATE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield front
    front.close()


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests that are made, whether or not they arrive."""
    made: list[str] = []
    request = AsyncSession.request

    async def counted(self: Any, method: Any, url: str, *args: Any, **options: Any) -> Any:
        made.append(url)
        return await request(self, method, url, *args, **options)

    monkeypatch.setattr(AsyncSession, "request", counted)
    return made


def test_certificate_that_is_not_trusted(encrypted: Encrypted, tries: list[str]) -> None:
    said = failure("-m", "hf-llama", "hello")
    assert "certificate is not trusted" in said
    for name in CERTIFICATE_VARIABLES:
        assert name in said
    assert len(tries) == 1


@pytest.mark.parametrize("name", CERTIFICATE_VARIABLES)
def test_certificate_is_trusted_by_a_variable(encrypted: Encrypted, name: str) -> None:
    # curl_cffi reads the last one when it is imported.
    command = [sys.executable, "-m", "llm", "-m", "hf-llama", "hello"]
    environment = os.environ | {name: CERTIFICATE}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.stdout == "You said: hello\n", result.stderr


def test_first_variable_counts(
    encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    other = tmp_path / "other.pem"
    other.write_text(pathlib.Path(certifi.where()).read_text())
    monkeypatch.setenv("CURL_CA_BUNDLE", CERTIFICATE)
    assert run("-m", "hf-llama", "hello").stdout == "You said: hello\n"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    llm_huggingchat._background.close()  # connections are kept for a while
    said = failure("-m", "hf-llama", "hello")
    assert f"REQUESTS_CA_BUNDLE names those to trust: {other}" in said


@pytest.mark.parametrize("name", CERTIFICATE_VARIABLES[:2])
def test_bundle_that_is_not_there(
    encrypted: Encrypted, tries: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "/no/such\x1b[31m.pem")
    said = failure("-m", "hf-llama", "hello")
    assert "certificates to trust cannot be read" in said
    assert f"{name} names those to trust: /no/such[31m.pem, which is not a file" in said
    assert "curl error" not in said
    assert len(tries) == 1


# --- redirects --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://new.example.org/chat/conversation?x-secret=1#x", "new.example.org/chat/conv"),
        ("/elsewhere", "/elsewhere"),
        ("https://x-secret@new.example.org/", "https://new.example.org/ "),
        ("http://[", "somewhere"),
    ],
)
def test_redirect_is_said_to_be_one(server: ChatUI, status: int, location: str, shown: str) -> None:
    fault = Fault(status=status, headers=(("location", location),))
    server.faults["POST", "/conversation"] = [fault]
    said = failure("-m", "hf-llama", "hello")
    assert "redirects to" in said
    assert shown in said
    assert f"HTTP {status}" in said
    assert "LLM_HUGGINGCHAT_URL" in said
    assert "Not logged in" not in said
    assert "expired" not in said
    assert "x-secret" not in said


@pytest.mark.parametrize(
    ("location", "login"),
    [
        ("", True),
        ("https://huggingface.co/oauth/authorize?client_id=x&state=y", True),
        ("https://id.example.org/realms/a/protocol/openid-connect?a=b&client_id=x", True),
        ("/chat/login", True),
        ("/login?next=%2F", True),
        ("/users/sign_in", True),
        ("/users/sign-in", True),
        ("https://sso.example.org/saml2/idp?SAMLRequest=x", True),
        ("https://example.org/auth", True),
        ("https://example.org/author", False),
        ("https://example.org/chat/conversation", False),
        ("https://login.example.org/chat", False),
        ("/chat/?client_idea=1", False),
        ("http://[", False),
    ],
)
def test_redirect_to_a_login(location: str, login: bool) -> None:
    assert leads_to_login(location) is login
