"""Addresses of servers, and what the environment configures."""

import re

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llm_huggingchat as plugin

UNCHANGED = [
    *("https://chat.example.org:8443/a/b", "https://192.0.2.1/chat", "http://chat.localhost:3000"),
    *("https://[2001:db8::1]:8443/chat", "http://[::1]:3000/chat", "http://127.9.9.9"),
]


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (" https://huggingface.co/chat/ \n", "https://huggingface.co/chat"),
        ("https://HuggingFace.co:443/chat//", "https://huggingface.co/chat"),
        ("HTTPS://chat.example.org", "https://chat.example.org"),
        ("http://localhost:80/chat", "http://localhost/chat"),
        *zip(UNCHANGED, UNCHANGED, strict=True),
    ],
)
def test_address(text, url):
    assert plugin.parse_server(text) == plugin.Server(url)


@pytest.mark.parametrize(
    "text",
    [
        *("", "huggingface.co/chat", "ftp://huggingface.co/chat", "https:///chat", "https://[::1"),
        *("https://host:99999/", "https://bücher.example/chat", "https://host/cha t"),
        *("https://host/chat?x=1", "https://host/chat#x", "nonsense\x1b[31m\nsecond line"),
        *("http://192.168.0.1/chat", "http://127.0.0.1.example.org/", "https://a:secret@b/chat"),
    ],
)
def test_address_that_is_refused(text):
    says = "cannot be the chat server's address. Set LLM_HUGGINGCHAT_URL .*; use https"
    with pytest.raises(llm.ModelError, match=says) as raised:
        plugin.parse_server(text)
    assert str(raised.value).isprintable()
    assert "secret" not in str(raised.value)


PIECES = ["https", "http", "://", "/", ":", "@", "[", "]", "::1", "127.0.0.1", "localhost", "a.b"]


@given(st.lists(st.sampled_from([*PIECES, *"80?#%.\\é\n \uff19\ud83c"]), max_size=8))
def test_any_address_is_safe_or_told(pieces):
    try:
        server = plugin.parse_server("".join(pieces))
    except llm.ModelError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    assert plugin.parse_server(server.url) == server
    assert server.url.startswith("https://") or server.is_loopback
    assert re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", server.host)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (plugin.SERVICE, "huggingchat"),
        ("https://chat.example.org:8443", "huggingchat:chat.example.org:8443"),
        ("http://[::1]:3100/chat", "huggingchat:[::1]:3100"),
        ("https://huggingface.co:8443/chat", "huggingchat:huggingface.co:8443"),
        ("https://huggingface.co.example.org/chat", "huggingchat:huggingface.co.example.org"),
    ],
)
def test_every_host_has_a_key_of_its_own(url, name):
    server = plugin.parse_server(url)
    assert server.key_name == name
    assert server.is_service == (name == "huggingchat")


def test_origin_and_pages():
    server = plugin.parse_server("https://chat.example.org:8443/base/chat/")
    assert server.origin == "https://chat.example.org:8443"
    assert plugin.parse_server("http://[::1]:3100").origin == "http://[::1]:3100"
    assert server.page("../../x?y") == f"{server.url}/conversation/..%2F..%2Fx%3Fy"
    assert server.shared_page("aBc") == f"{server.url}/r/aBc"
    assert server.file_page("6b03", "0/f") == f"{server.url}/conversation/6b03/output/0%2Ff"


@pytest.mark.parametrize(
    ("location", "asks"),
    [
        ("", True),
        ("/chat/login", True),
        ("https://huggingface.co/oauth/authorize?x", True),
        ("https://id.example.org/realms/x?client_id=chat", True),
        ("https://id.example.org/saml2/start", True),
        ("/chat/loginless", False),
        ("https://[", False),
    ],
)
def test_redirect_to_a_login_is_known(location, asks):
    assert plugin.leads_to_login(location) is asks


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("callback?code=1", "https://a.example/chat/callback?code=1"),
        ("https://a.example/x", "https://a.example/x"),
        ("http://a.example/x", ""),
        ("https://a.example:8443/x", ""),
        ("//b.example/x", ""),
        ("https://a.example/\x00", ""),
        ("https://[", ""),
    ],
)
def test_redirect_is_followed_on_the_origin_alone(location, target):
    assert plugin.own_target("https://a.example/chat/login", location) == target


WAITS = {
    0: ["", "0"],
    60: ["60", " 60.0 "],
    "it takes a number of seconds, at least 60": ["10", "59.9", "soon", "-5", "inf", "nan"],
}


@pytest.mark.parametrize(("found", "value"), [(found, v) for found in WAITS for v in WAITS[found]])
def test_wait(monkeypatch, found, value):
    monkeypatch.setenv("LLM_HUGGINGCHAT_WAIT", value)
    if isinstance(found, str):
        with pytest.raises(llm.ModelError, match=f"LLM_HUGGINGCHAT_WAIT is '{value}'; {found}"):
            plugin.max_wait()
    else:
        assert plugin.max_wait() == found


def test_browser_that_curl_does_not_know_is_told_in_a_line(monkeypatch):
    monkeypatch.setenv("LLM_HUGGINGCHAT_IMPERSONATE", "netscape")
    with pytest.raises(llm.ModelError, match=r"'netscape'.*chrome, edge, firefox") as raised:
        plugin.impersonated_browser()
    assert len(str(raised.value)) < 250
    named = re.findall(r"\b(?:chrome|edge|firefox|safari|tor)\w*", str(raised.value))
    for name in named:
        monkeypatch.setenv("LLM_HUGGINGCHAT_IMPERSONATE", name)
        assert plugin.impersonated_browser() == name
