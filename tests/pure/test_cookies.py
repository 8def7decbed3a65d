"""Cookies in every form that people paste."""

import json
import re
from itertools import count
from typing import Any

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_huggingchat import Cookies, parse_cookies
from pure.cuts import SMALL, any_json

SESSION, TOKEN = "5e551017-aaaa-4bbb-8ccc-123456789abc", "the-token-of-nobody"
BOTH = Cookies(SESSION, TOKEN)
PAIRS = f"_ga=GA1.1; hf-chat={SESSION}; token={TOKEN}"


def exported(*cookies: tuple[str, str, str]) -> str:
    """What a browser extension exports: domain, name, value."""
    names = ("domain", "name", "value")
    return json.dumps([dict(zip(names, cookie, strict=True)) for cookie in cookies], indent=4)


def cookies_txt(*cookies: tuple[str, str, str]) -> str:
    """The same in a cookies.txt."""
    lines = [f"{domain}\tTRUE\t/\tTRUE\t1800000000\t{name}\t{v}" for domain, name, v in cookies]
    return "\n".join(["# Netscape HTTP Cookie File\n# https://curl.se\n", *lines])


OWN = [("huggingface.co", "hf-chat", SESSION), (".huggingface.co", "token", TOKEN)]
OTHERS = [
    (".example.org", "token", "their-token"),
    ("nothuggingface.co", "hf-chat", "their-session"),
    ("chat.huggingface.co", "hf-chat", "another-session"),
    (".huggingface.co", "_ga", "GA1.1.1"),
]
FORMS = {
    "header": f"Cookie: {PAIRS}",
    "half of a curl option": f"'Cookie: {PAIRS}",
    "quoted": f"hf-chat='{SESSION}'; token=\"{TOKEN}\"",
    "spaces, and none": f"cookie:hf-chat = {SESSION} ;token={TOKEN};  ",
    "twice": f"{PAIRS}; hf-chat=later; token=later",
    "colons": f"hf-chat: {SESSION}\ntoken: {TOKEN}",
    "set-cookie": f"set-cookie: hf-chat={SESSION}; Path=/\nset-cookie: token={TOKEN}; Secure",
    "object": json.dumps({"hf-chat": SESSION, "token": TOKEN, "_ga": "GA1.1", "n": 5}, indent=2),
    "half of an object": f'"hf-chat": "{SESSION}",\n  "token": "{TOKEN}"}}',
    "extension": exported(*OTHERS, *OWN),
    "extension's object": json.dumps({"url": "x", "cookies": json.loads(exported(*OWN))}),
    "cookies.txt": cookies_txt(*OTHERS, *OWN),
    "cookies.txt of Windows": cookies_txt(*OWN).replace("\n", "\r\n"),
    "cookies.txt, http only": cookies_txt(("#HttpOnly_huggingface.co", *OWN[0][1:]), OWN[1]),
    "Chrome's table": (
        f"hf-chat\t{SESSION}\thuggingface.co\t/chat\t2026-09-01T10:00:00.000Z\t43\t✓\t✓\tLax\t\n"
        f"token\t{TOKEN}\t.huggingface.co\t/\t2027-08-01T10:00:00.000Z\t44\t✓\t✓\tLax\t\tMedium"
    ),
    "Firefox's table": (
        f'hf-chat\t"{SESSION}"\thuggingface.co\t/chat\tTue, 01 Sep 2026 10:00:00 GMT\n'
        f"token\t{TOKEN}\t.huggingface.co\t/\tSession"
    ),
    "Firefox's copy": (
        f'hf-chat:"{SESSION}"\ntoken:"{TOKEN}"\nCreated:"Mon, 03 Aug 2026"\n'
        'Domain:".huggingface.co"\nSecure:true'
    ),
    "curl -b": f"curl 'https://huggingface.co/chat/' \\\n  -H 'accept: */*' \\\n  -b '{PAIRS}' -v",
    "curl --cookie": f'curl https://huggingface.co:443/chat?x=1 --cookie "{PAIRS}" -v',
    "curl with escapes": f"curl 'https://huggingface.co/chat/' -b $'a=\\u0021; {PAIRS}'",
    "curl of Windows": (
        'curl ^"https://huggingface.co/chat/^" ^\r\n  -H ^"sec-ch-ua: ^\\^"Chromium^\\^"^" ^\r\n'
        f'  -b ^"a=^%^20b; {PAIRS}^" ^\r\n  -H ^"accept: */*^"'
    ),
    "fetch": f'fetch("https://huggingface.co/chat/", {{"headers": {{"cookie": "{PAIRS}"}}}});',
    "PowerShell": (
        f'$session.Cookies.Add((New-Object System.Net.Cookie("hf-chat", "{SESSION}", "/")))\n'
        f'$session.Cookies.Add((New-Object System.Net.Cookie("token", "{TOKEN}", "/")))'
    ),
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_both_cookies_in_any_form(text):
    assert parse_cookies(text) == BOTH


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_cookies_in_a_file_of_any_encoding(encoding):
    assert parse_cookies(cookies_txt(*OWN).encode(encoding)) == BOTH
    assert parse_cookies(TOKEN.encode(encoding)) == Cookies(None, TOKEN)


@pytest.mark.parametrize("form", ["{}", "\n {}\t", "'{}'", '"{}"', "  {}\r\n"])
def test_bare_value_is_a_session_if_it_is_a_uuid_and_else_a_token(form):
    for session in (SESSION, SESSION.upper()):
        assert parse_cookies(form.format(session)) == Cookies(session)
    for token in (TOKEN, TOKEN + "=="):
        assert parse_cookies(form.format(token)) == Cookies(None, token)


@pytest.mark.parametrize(
    ("text", "cookies"),
    [
        (f"hf-chat={SESSION}; token=", Cookies(SESSION)),
        (json.dumps({"hf-chat": SESSION, "token": None}), Cookies(SESSION)),
        (exported(OWN[1], *OTHERS[:3]), Cookies(None, TOKEN)),
        (f"csrf-token=x; token={TOKEN}; x-token=y", Cookies(None, TOKEN)),
        (f"token={TOKEN}; aws-waf-token=w:1/a==", Cookies(None, TOKEN, waf="w:1/a==")),
        ("hf-chat=a==; token=b=c", Cookies("a==", "b=c")),
    ],
)
def test_one_cookie_is_enough_and_no_other_is_taken_for_it(text, cookies):
    assert parse_cookies(text) == cookies


@pytest.mark.parametrize(
    ("domain", "host"),
    [
        ("chat.example.org", "chat.example.org:8443"),
        (".example.org", "chat.example.org"),
        ("Chat.Example.org", "chat.example.org"),
        ("[::1]", "[::1]:3100"),
    ],
)
def test_domain_of_another_host(domain, host):
    text = exported((domain, "hf-chat", SESSION))
    assert parse_cookies(text, host) == Cookies(SESSION)
    with pytest.raises(llm.ModelError):
        parse_cookies(text)


# Not what a program does with it.
NAMING_A_HOST = [v for k, v in FORMS.items() if "huggingface.co" in v and k != "fetch"]


@pytest.mark.parametrize("host", ["evil-huggingface.co", "huggingface.co.example.net", "co"])
def test_cookies_of_one_host_are_for_no_other(host):
    for text in NAMING_A_HOST:
        with pytest.raises(llm.ModelError, match="cookie 'token' is missing"):
            parse_cookies(text, host)


@pytest.mark.parametrize("form", ["{}", "token={}", '{{"token": "{}"}}', "X: Bearer {}"])
@pytest.mark.parametrize("value", ["hf_" + "x" * 34, "api_org_" + "x" * 34])
def test_access_token_is_told_from_the_cookie(form, value):
    with pytest.raises(llm.ModelError, match=r"access token.*cookie named 'token'") as raised:
        parse_cookies(form.format(value))
    assert value not in str(raised.value)


NONE: dict[str, list[Any]] = {
    "is empty": ["", " \n", b"\xff\xfe"],
    "the cookie 'token' is missing": [
        *("yes", "{", "https://huggingface.co/chat", "two x-secret words", "x-secret=1; y=2"),
        *(f"aws-waf-token={TOKEN}", cookies_txt(*OTHERS), "[" * 100_000 + '"x-secret"'),
        *('{"hf-chat": 5}', json.dumps([TOKEN, None, 5, {"name": "hf-chat"}])),
    ],
    "'token' has characters that no cookie has": [f"hf-chat={SESSION}; token=x-secretä"],
    "'hf-chat' has characters that no cookie has": [
        f"hf-chat=x-secret\x00; token={TOKEN}",
        *(f'{{"hf-chat": "{v}"}}' for v in (r"x-secret\r\nEvil: 1", "x-secret, y", "a;b=secret")),
    ],
}


@pytest.mark.parametrize(
    ("says", "text"), [(says, text) for says in NONE for text in NONE[says]], ids=count()
)
def test_what_holds_no_cookie_is_told_without_any_part_of_it(says, text):
    with pytest.raises(llm.ModelError, match=says) as raised:
        parse_cookies(text)
    message = str(raised.value)
    assert "llm huggingchat login" not in message, "it is told inside login"
    assert not re.search(f"{SESSION}|{TOKEN}|secret|their-|Evil", message)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    "cookies",
    [
        *(BOTH, Cookies(SESSION), Cookies(SESSION, anonymous=True), Cookies("a=!~")),
        Cookies(SESSION, TOKEN, waf="w", since=1_790_000_000.5),
    ],
)
def test_kept_key_is_read_back(cookies):
    assert parse_cookies(cookies.to_key()) == cookies
    assert "\n" not in cookies.to_key()


def test_values_are_never_shown():
    every = Cookies(SESSION, TOKEN, waf="w-secret", passing=(("a", "b-secret"),))
    for shown in (repr(every), str(every), f"{every}", repr(list(every.__rich_repr__()))):
        assert not re.search(rf"secret|{SESSION}|{TOKEN}", shown)


WORDS = ["hf-chat", "token", "aws-waf-token", "Cookie:", "curl -b", "TRUE", ".example.org"]
PASTED = st.one_of(
    st.text(st.characters(), max_size=30),
    st.binary(max_size=60),
    st.lists(st.sampled_from([*WORDS, *"=:;\"'{[x1 \t\n"]), max_size=20).map("".join),
    any_json(SMALL | st.text(), st.text()).map(json.dumps),
)


@given(PASTED)
def test_anything_pasted_is_cookies_or_told(pasted):
    try:
        cookies = parse_cookies(pasted)
    except llm.ModelError as error:
        assert str(error).startswith(  # noqa: PT017
            ("That is no login for", "The value of the cookie", "That is an access token")
        )
    else:
        assert re.fullmatch(r"[!-~ ]+", cookies.header())
        assert parse_cookies(cookies.to_key()) == cookies


@pytest.mark.parametrize("since", ["NaN", "1e999", "-1.5", '"then"'])
def test_time_that_is_none_is_not_kept(since):
    cookies = parse_cookies(f'{{"hf-chat": "{SESSION}", "since": {since}}}')
    assert (cookies.hf_chat, cookies.since) == (SESSION, None)
