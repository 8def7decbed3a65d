"""Words for a terminal, addresses of servers, and cookies in every form people paste."""

from __future__ import annotations

import json

import llm
import pytest

from llm_huggingchat import (
    SERVICE,
    Cookies,
    Server,
    current_server,
    parse_cookies,
    parse_server,
    plain,
)

SESSION, TOKEN = "5e551017-aaaa-4bbb-8ccc-123456789abc", "hf_tOkEnOfAdA"
BOTH = Cookies(SESSION, TOKEN)


# --- words ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\tand  spaces ", "two lines and spaces"),
        ("\x1b[31mred\x1b[0m\x07\x9b", "[31mred[0m"),
        ("a\u202eb\u200fc\ufeffd\ue000e", "abcde"),
        ("a\u2028b\x85c", "a b c"),
        ("half \ud83c of one", "half of one"),
        ("日本 é 🎉", "日本 é 🎉"),
        (None, "None"),
        ("", ""),
    ],
)
def test_text_for_a_terminal_is_one_line_that_controls_nothing(text, shown):
    assert plain(text) == shown


def test_long_text_is_cut():
    assert plain("x" * 500) == "x" * 500
    assert plain("x" * 501) == "x" * 499 + "…"
    assert plain("abc", 2) == "a…"


# --- addresses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://huggingface.co/chat", "https://huggingface.co/chat"),
        (" https://huggingface.co/chat/ \n", "https://huggingface.co/chat"),
        ("https://HuggingFace.co:443/chat//", "https://huggingface.co/chat"),
        ("HTTPS://chat.example.org", "https://chat.example.org"),
        ("https://chat.example.org/", "https://chat.example.org"),
        ("https://chat.example.org:8443/a/b", "https://chat.example.org:8443/a/b"),
        ("https://192.0.2.1/chat", "https://192.0.2.1/chat"),
        ("https://[2001:db8::1]:8443/chat", "https://[2001:db8::1]:8443/chat"),
        ("http://127.0.0.1:3100/chat", "http://127.0.0.1:3100/chat"),
        ("http://127.9.9.9", "http://127.9.9.9"),
        ("http://localhost:80/chat", "http://localhost/chat"),
        ("http://chat.localhost:3000", "http://chat.localhost:3000"),
        ("http://[::1]:3000/chat", "http://[::1]:3000/chat"),
    ],
)
def test_address(text, url):
    assert parse_server(text) == Server(url)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is not a URL"),
        ("huggingface.co/chat", "it is not a URL"),
        ("ftp://huggingface.co/chat", "it is not a URL"),
        ("file:///etc/passwd", "it is not a URL"),
        ("https://", "it is not a URL"),
        ("https:///chat", "it is not a URL"),
        ("https://[::1", "it is not a URL"),
        ("https://host:port/", "it is not a URL"),
        ("https://host:99999/", "it is not a URL"),
        ("https://a b/chat", "its host is not a name"),
        ("https://bücher.example/chat", "its host is not a name"),
        ("https://a\u2024b/chat", "its host is not a name"),
        ("https://host/cha t", "its path is not a URL's"),
        ("https://host/ch\u00e4t", "its path is not a URL's"),
        ("https://host/chat?x=1", "it has more than a path"),
        ("https://host/chat#x", "it has more than a path"),
        ("http://huggingface.co/chat", "plain http is for loopback only, use https"),
        ("http://192.168.0.1/chat", "plain http is for loopback only, use https"),
        ("http://0.0.0.0/chat", "plain http is for loopback only, use https"),
        ("http://localhost.example.org/", "plain http is for loopback only, use https"),
        ("http://127.0.0.1.example.org/", "plain http is for loopback only, use https"),
    ],
)
def test_address_that_is_refused(text, why):
    with pytest.raises(llm.ModelError) as raised:
        parse_server(text)
    assert f"cannot be the chat server's address: {why}. Set LLM_HUGGINGCHAT_URL" in str(
        raised.value
    )


@pytest.mark.parametrize(
    "text",
    [
        "https://ada:s3cret@huggingface.co/chat",
        "https://s3cret@huggingface.co/chat",
        "https://:s3cret@huggingface.co/chat",
        "http://127.0.0.1:s3cret@huggingface.co/chat",
    ],
)
def test_address_with_a_password_is_refused_without_repeating_it(text):
    with pytest.raises(llm.ModelError) as raised:
        parse_server(text)
    assert "s3cret" not in str(raised.value)
    assert "ada" not in str(raised.value)


def test_address_that_is_refused_is_shown_without_control_characters():
    with pytest.raises(llm.ModelError) as raised:
        parse_server("nonsense\x1b[31m\nsecond line")
    assert "'nonsense[31m second line'" in str(raised.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (SERVICE, "huggingchat"),
        ("https://chat.example.org/chat", "huggingchat:chat.example.org"),
        ("https://chat.example.org:8443", "huggingchat:chat.example.org:8443"),
        ("http://127.0.0.1:3100/chat", "huggingchat:127.0.0.1:3100"),
        ("http://[::1]:3100/chat", "huggingchat:[::1]:3100"),
        ("https://huggingface.co:8443/chat", "huggingchat:huggingface.co:8443"),
        ("https://huggingface.co.example.org/chat", "huggingchat:huggingface.co.example.org"),
    ],
)
def test_every_host_has_a_key_of_its_own(url, name):
    server = parse_server(url)
    assert server.key_name == name
    assert server.is_service == (name == "huggingchat")


def test_origin_and_pages():
    server = parse_server("https://chat.example.org:8443/base/chat/")
    assert server.origin == "https://chat.example.org:8443"
    assert server.page("6b03") == "https://chat.example.org:8443/base/chat/conversation/6b03"
    assert server.page("../../x?y") == f"{server.url}/conversation/..%2F..%2Fx%3Fy"
    assert server.shared_page("aBc") == f"{server.url}/r/aBc"
    assert server.file_page("6b03", "0/f") == f"{server.url}/conversation/6b03/output/0%2Ff"


def test_server_comes_from_the_environment(monkeypatch):
    assert current_server() == Server(SERVICE)
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", "http://localhost:3000/chat")
    assert current_server() == Server("http://localhost:3000/chat")
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", "")
    assert current_server() == Server(SERVICE)


# --- cookies --------------------------------------------------------------------------


def exported(*cookies: tuple[str, str, str]) -> str:
    """What a browser extension exports: domain, name, value."""
    entries = [
        {"domain": domain, "name": name, "value": value, "path": "/", "secure": True}
        for domain, name, value in cookies
    ]
    return json.dumps(entries, indent=4)


def cookies_txt(*cookies: tuple[str, str, str]) -> str:
    """The same in a cookies.txt."""
    lines = [
        f"{domain}\tTRUE\t/\tTRUE\t1800000000\t{name}\t{value}" for domain, name, value in cookies
    ]
    return "# Netscape HTTP Cookie File\n# https://curl.se/docs/http-cookies.html\n\n" + "\n".join(
        lines
    )


OWN = [("huggingface.co", "hf-chat", SESSION), (".huggingface.co", "token", TOKEN)]
OTHERS = [
    (".example.org", "token", "their-token"),
    ("nothuggingface.co", "hf-chat", "their-session"),
    ("evil-huggingface.co", "token", "their-token"),
    ("chat.huggingface.co", "hf-chat", "another-session"),
    (".huggingface.co", "_ga", "GA1.1.1"),
]


@pytest.mark.parametrize(
    "text",
    [
        f"hf-chat={SESSION}; token={TOKEN}",
        f"Cookie: token={TOKEN}; hf-chat={SESSION}",
        f"cookie:hf-chat={SESSION};token={TOKEN};",
        f"COOKIE:  _ga=GA1.1; hf-chat={SESSION} ; x=y; token={TOKEN}",
        f"'Cookie: hf-chat={SESSION}; token={TOKEN}",
        f'hf-chat="{SESSION}"; token="{TOKEN}"',
        f"hf-chat={SESSION}\ntoken={TOKEN}\n",
        f"  hf-chat = {SESSION} ;  token = {TOKEN}  ",
        f"hf-chat={SESSION}; token={TOKEN}; hf-chat=later; token=later",
        json.dumps({"hf-chat": SESSION, "token": TOKEN}),
        json.dumps({"hf-chat": SESSION, "token": TOKEN, "_ga": "GA1.1", "n": 5}, indent=2),
        json.dumps(f"hf-chat={SESSION}; token={TOKEN}"),
        exported(*OWN),
        exported(*OTHERS, *OWN),
        json.dumps({"url": "https://huggingface.co", "cookies": json.loads(exported(*OWN))}),
        cookies_txt(*OWN),
        cookies_txt(*OTHERS, *OWN),
        cookies_txt(("#HttpOnly_huggingface.co", "hf-chat", SESSION), OWN[1]),
        cookies_txt(*OWN).replace("\n", "\r\n"),
    ],
)
def test_both_cookies_in_any_form(text):
    assert parse_cookies(text) == BOTH


@pytest.mark.parametrize(
    "text",
    [
        SESSION,
        f"\n {SESSION}\t",
        json.dumps(SESSION),
        f"hf-chat={SESSION}",
        f"Cookie: hf-chat={SESSION}; token=",
        json.dumps({"hf-chat": SESSION, "token": None}),
        exported(OWN[0], *OTHERS),
        cookies_txt(OWN[0], *OTHERS),
    ],
)
def test_session_alone(text):
    assert parse_cookies(text) == Cookies(SESSION, None)


@pytest.mark.parametrize(
    "text",
    [
        f"token={TOKEN}",
        f"Cookie: _ga=GA1; token={TOKEN};",
        json.dumps({"token": TOKEN, "hf-chat": None}),
        exported(OWN[1], *OTHERS[:3]),
        cookies_txt(OWN[1], *OTHERS[:3]),
    ],
)
def test_token_alone(text):
    assert parse_cookies(text) == Cookies(None, TOKEN)


@pytest.mark.parametrize(
    "text",
    [
        f"token={TOKEN}; aws-waf-token=w:1/a==",
        json.dumps({"token": TOKEN, "aws-waf-token": "w:1/a=="}),
        exported(OWN[1], (".huggingface.co", "aws-waf-token", "w:1/a==")),
        cookies_txt(
            (".example.org", "aws-waf-token", "their-waf"),
            OWN[1],
            (".huggingface.co", "aws-waf-token", "w:1/a=="),
        ),
    ],
)
def test_what_the_firewall_gave_comes_along(text):
    cookies = parse_cookies(text)
    assert cookies == Cookies(None, TOKEN, waf="w:1/a==")
    assert cookies.header() == f"token={TOKEN}; aws-waf-token=w:1/a=="


@pytest.mark.parametrize("since", [None, "x", True, -1, 1e12, float("nan"), float("inf"), [1]])
def test_session_of_no_sensible_age_is_of_unknown_age(since):
    assert parse_cookies(json.dumps({"hf-chat": SESSION, "since": since})).since is None


def test_value_with_equals_signs_is_whole():
    assert parse_cookies("hf-chat=a==; token=b=c") == Cookies("a==", "b=c")


def test_entries_without_a_domain_are_taken():
    entries = [{"name": "hf-chat", "value": SESSION}, {"name": "token", "value": TOKEN}]
    assert parse_cookies(json.dumps(entries)) == BOTH


@pytest.mark.parametrize(
    ("domain", "host"),
    [
        ("chat.example.org", "chat.example.org:8443"),
        (".example.org", "chat.example.org"),
        ("Chat.Example.org", "chat.example.org"),
        ("127.0.0.1", "127.0.0.1:3100"),
        ("::1", "[::1]:3100"),
    ],
)
def test_domain_of_another_host(domain, host):
    assert parse_cookies(exported((domain, "hf-chat", SESSION)), host).hf_chat == SESSION
    with pytest.raises(llm.ModelError):
        parse_cookies(exported((domain, "hf-chat", SESSION)))


@pytest.mark.parametrize("host", ["evil-huggingface.co", "huggingface.co.example.org", "co"])
def test_the_services_cookies_are_for_no_host_with_a_name_like_it(host):
    for text in (exported(*OWN), cookies_txt(*OWN)):
        with pytest.raises(llm.ModelError, match="holds neither 'hf-chat' nor 'token'"):
            parse_cookies(text, host)


@pytest.mark.parametrize(
    "cookies",
    [
        BOTH,
        Cookies(SESSION),
        Cookies(SESSION, None, made_up=True),
        Cookies("a=!~"),
        Cookies(None, TOKEN),
        Cookies(SESSION, TOKEN, waf="w", since=1_790_000_000.5),
    ],
)
def test_kept_key_is_read_back(cookies):
    assert parse_cookies(cookies.to_key()) == cookies
    assert "\n" not in cookies.to_key()


def test_made_up_is_only_what_this_plugin_made_up():
    assert not parse_cookies(json.dumps({"hf-chat": SESSION, "made_up": "yes"})).made_up
    assert not parse_cookies(f"hf-chat={SESSION}; made_up=true").made_up


def test_header():
    assert BOTH.header() == f"hf-chat={SESSION}; token={TOKEN}"
    assert Cookies(SESSION).header() == f"hf-chat={SESSION}"


def test_values_are_never_shown():
    every = Cookies(SESSION, TOKEN, waf="w", since=1.5, passing=(("a", "b"),))
    assert repr(BOTH) == str(BOTH) == repr(every) == "Cookies(made_up=False)"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds neither 'hf-chat' nor 'token'"),
        (f"aws-waf-token={TOKEN}", "holds neither 'hf-chat' nor 'token'"),
        (json.dumps({"aws-waf-token": TOKEN}), "holds neither"),
        (json.dumps({"hf-chat": 5}), "holds neither"),
        (json.dumps({"cookies": "x-secret"}), "holds neither"),
        (json.dumps([TOKEN, None, 5, {"name": "hf-chat"}]), "holds neither"),
        (exported(*OTHERS), "holds neither"),
        (cookies_txt(*OTHERS), "holds neither"),
        ("x-secret=1; y-secret=2", "holds neither"),
        ("two x-secret words", "holds neither"),
        ('{"hf-chat": "x-secret"', "holds neither"),
        ("[" * 100_000 + '"x-secret"', "holds neither"),
        (f"hf-chat=x-secret\x00; token={TOKEN}", "'hf-chat' has characters that no cookie has"),
        (f"hf-chat={SESSION}; token=x-secret\u00e9", "'token' has characters that no cookie has"),
        (json.dumps({"hf-chat": "x-secret\r\nEvil: 1"}), "'hf-chat' has characters"),
        (json.dumps({"hf-chat": "x-secret, y"}), "'hf-chat' has characters"),
        (json.dumps({"hf-chat": "a;b=x-secret"}), "'hf-chat' has characters"),
        (json.dumps({"hf-chat": 'x-"secret'}), "'hf-chat' has characters"),
    ],
)
def test_broken_cookies_are_told_without_any_part_of_them(text, told):
    with pytest.raises(llm.ModelError) as raised:
        parse_cookies(text)
    message = str(raised.value)
    assert told in message
    for secret in (SESSION, TOKEN, "secret", "their-", "Evil"):
        assert secret not in message
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
