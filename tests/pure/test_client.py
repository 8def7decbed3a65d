"""Answers and errors in words, pauses and proxies: the client without a network."""

from itertools import pairwise

import llm
import pytest
from curl_cffi import CurlECode
from curl_cffi.requests.exceptions import RequestException
from hypothesis import given
from hypothesis import strategies as st

import llm_huggingchat as plugin
from llm_huggingchat import ConnectionLost, Credentials, HttpError, HttpResponse, RateLimiter

SERVICE = Credentials(
    plugin.parse_server("https://huggingface.co/chat"), plugin.Cookies("s-value", "t-value")
)
OTHER = Credentials(plugin.parse_server("https://chat.example"))
LIMIT = "You are sending too many messages. Try again later."
TOO_LONG = "This conversation has more than 500 messages. Start a new one to continue"
LOGIN = "https://huggingface.co/oauth/authorize?client_id=x"
CUT, UNSENT = (ConnectionLost("it broke", sent=sent) for sent in (True, False))
ELSEWHERE = "https://u:p@elsewhere.example/x?y=z"


def response(status: int, body: bytes | str = b"", **headers: str) -> HttpResponse:
    pairs = tuple((name.replace("_", "-").title(), value) for name, value in headers.items())
    return HttpResponse(status, pairs, body.encode() if isinstance(body, str) else body)


def refusal(status: int, message: str = "", **headers: str) -> HttpError:
    return HttpError(response(status, f'{{"message": "{message}"}}' if message else "", **headers))


PAGE = {"content_type": "text/html; charset=utf-8"}
WAF = {"x_amzn_waf_action": "captcha"}


@pytest.mark.parametrize(
    ("got", "meant"),
    [
        (response(200, "<p>", **PAGE), ""),
        (response(202, **WAF), "firewall"),
        (response(405, "<html>", **PAGE, **WAF), "firewall"),
        (response(403, "<html>", **PAGE), "firewall"),
        (response(403, '{"message": "no"}'), "hidden"),
        (response(404), "hidden"),
        (response(401), "login"),
        (response(302, location=LOGIN), "login"),
        (refusal(429, LIMIT).response, "limit"),
        (refusal(429, TOO_LONG).response, ""),
        (refusal(429, "You have reached the maximum number of conversations").response, ""),
        (response(429, "<html>", **PAGE), "limit"),
        (response(429, **WAF), "firewall"),
        (response(500), ""),
    ],
)
def test_response_is_one_kind_of_refusal(got, meant):
    kinds = {"firewall": got.is_firewall, "hidden": got.is_hidden}
    kinds |= {"login": got.wants_login, "limit": got.is_rate_limit}
    assert [kind for kind, holds in kinds.items() if holds] == ([meant] if meant else [])


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        ('{"message": "no\\u001b[2J\\nway\\ud83c"}', {}, "no[2J way\ufffd"),
        ('{"error": "no"}', {}, "no"),
        ('{"message": {"a": 1}}', {}, ""),
        (b"\xff\xfe", {}, "\ufffd\ufffd"),
        ("<!doctype html><p>Oops", {}, ""),
        ("Oops", PAGE, ""),
        ("x" * 20_000, {}, "x" * 299 + "…"),
    ],
)
def test_words_of_a_refusal_are_the_servers_own_on_one_line(body, headers, message):
    assert response(400, body, **headers).message == message


def test_response_shows_no_cookie_and_takes_only_valid_ones():
    pairs = ("hf-chat=new; HttpOnly", "token=a b", "odd", " x =y;", "hf-chat=last", "näme=a")
    got = HttpResponse(200, tuple(("Set-Cookie", pair) for pair in pairs), b"secret")
    assert got.set_cookies == {"hf-chat": "last", "x": "y"}
    assert repr(got) == "HttpResponse(200)"
    assert got.header("set-cookie") == pairs[0]
    assert "value" not in repr(SERVICE)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CUT, "No answer from huggingface.co: it broke. The conversation is at https://page"),
        (UNSENT, "No connection to huggingface.co: it broke."),
        (plugin.NotFound(), "There is no such conversation on huggingface.co for this account."),
        (
            plugin.NotFound(answer=True),
            "There is no such answer to continue after on huggingface.co",
        ),
        (plugin.IncompleteAnswer("Broken off."), "Broken off. The conversation is at https://page"),
        (refusal(200, **PAGE), "answered with a web page instead of a chat."),
        (refusal(302, location=LOGIN), "the cookie 'token' is expired or wrong"),
        (refusal(302, location=ELSEWHERE), "redirects to https://elsewhere.example (HTTP 302)"),
        (refusal(302, location="/other"), "redirects to another page (HTTP 302)"),
        (refusal(400, "Invalid"), "refused a/b (HTTP 400: Invalid). If it does not know the mod"),
        (refusal(403, "no"), "answered HTTP 403: no. The conversation is at https://page"),
        (refusal(404), "https://huggingface.co/chat has no such page (HTTP 404)"),
        (refusal(413), "refused files as too large (HTTP 413). HuggingChat takes 15 MB a message"),
        (refusal(429, LIMIT), "asks for a pause (HTTP 429: You are"),
        (refusal(429, LIMIT), "let prompts wait: LLM_HUGGINGCHAT_WAIT=600"),
        (refusal(429, TOO_LONG), "has reached a limit (HTTP 429: This conversation has more"),
        (refusal(500, "An error occurred"), "has a problem of its own (HTTP 500: An error occ"),
        (refusal(503), "has a problem of its own (HTTP 503). Try again later. The conversation"),
        (refusal(405, **PAGE), "A firewall in front of huggingface.co refused this client"),
        (refusal(202, **WAF), "such as chrome or firefox;\nor open https://huggingface.co/chat"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_error_says_what_happened_and_what_to_do(error, words):
    said = plugin.model_error(error, SERVICE, model="a/b", page="https://page", what="files")
    assert isinstance(said, llm.ModelError)
    assert words in str(said)
    assert len(str(said).splitlines()) <= 2
    assert not any(secret in str(said) for secret in ("s-value", "t-value", "y=z", "u:p"))


@pytest.mark.parametrize("error", [UNSENT, refusal(404), refusal(200)], ids=str)
def test_other_servers_variable_is_named_where_it_may_be_wrong(error):
    assert "LLM_HUGGINGCHAT_URL" in str(plugin.model_error(error, OTHER))


def failed(code: int, url: str, words: str = "", sent: bool = True) -> Exception:
    return plugin.connection_error(RequestException(words, CurlECode(code)), sent, url)


@pytest.mark.parametrize(
    ("code", "sent", "words"),
    [
        (6, False, "no network"),
        (7, False, "nobody is listening"),
        (56, True, "curl error 56"),
    ],
)
def test_curls_error_says_whether_the_request_can_have_arrived(code, sent, words):
    for begun in (True, False):
        error = failed(code, "https://chat.example/x", sent=begun)
        assert isinstance(error, ConnectionLost)
        assert (error.sent, error.silent) == (sent and begun, False)
        assert words in str(error)


HTTPS = "https://chat.example"


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, HTTPS, ""),
        ({"HTTPS_PROXY": "http://u:p@proxy:31"}, HTTPS, "proxy:31"),
        ({"HTTP_PROXY": "http://p:1"}, HTTPS, ""),
        ({"https_proxy": "p:1", "no_proxy": "chat.example"}, HTTPS, ""),
        ({"ALL_PROXY": "p:1", "HTTPS_PROXY": "q:2"}, HTTPS, "q:2"),
        ({"ALL_PROXY": "p:1", "HTTP_PROXY": "p:1"}, "http://127.0.0.1:1234/x", ""),
    ],
)
def test_dead_proxy_is_named_without_its_password(monkeypatch, variables, url, proxy):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert plugin.proxy_of(url) == proxy
    refused = failed(56, url, "CONNECT tunnel failed, response 407")
    assert isinstance(refused, ConnectionLost)
    assert not refused.sent
    for error in (refused, failed(7, url)):
        assert bool(proxy) == (f"the proxy {proxy} " in str(error))
        assert "u:p" not in str(error)


# --- pauses ---

WINDOW = plugin.limits.rate_window
REFUSED = refusal(429, LIMIT).response


def test_nobody_sends_for_a_minute_after_a_refusal_then_one_tries():
    limiter = RateLimiter()
    assert limiter.pause("a", 0) == limiter.pause("b", 0) == 0
    limiter.refused("a", REFUSED, 0)
    limiter.refused("b", REFUSED, 1)
    assert limiter.refusal is REFUSED
    assert limiter.pause("a", 1) == WINDOW
    now = WINDOW + 1
    assert limiter.pause("c", now) == 0  # one tries
    assert 0 < limiter.pause("a", now) <= 1  # the others look again soon
    limiter.accepted("c")
    assert limiter.pause("a", now) == 0
    assert limiter.pause("b", now) > 0
    limiter.leave("a")  # without having sent
    assert limiter.pause("b", now) == 0


def test_pauses_grow_while_attempts_are_in_vain():
    limiter, now, pauses = RateLimiter(), 0.0, list[float]()
    for _ in range(8):
        now += limiter.pause("a", now) + 1e-6
        assert limiter.pause("a", now) == 0
        limiter.refused("a", REFUSED, now)
        pauses.append(round(limiter.pause("a", now), 3))
    assert pauses[0] == WINDOW == min(pauses)
    assert WINDOW < max(pauses) <= 8 * WINDOW
    now += limiter.pause("a", now)
    assert limiter.pause("a", now) == 0
    limiter.accepted("a")
    for _ in range(2):  # a refusal, and an attempt in vain: as if it were the first
        limiter.refused("a", REFUSED, now)
        assert limiter.pause("a", now) == pytest.approx(WINDOW)
        now += limiter.pause("a", now)
        assert limiter.pause("a", now) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100), st.booleans()), max_size=30))
def test_at_most_one_message_a_minute_is_refused(steps):
    """Each run asks now and then and sends when it may: a server that is full refuses them all."""
    limiter, now, refusals = RateLimiter(), 0.0, list[float]()
    for run, seconds, leaves in steps:
        now += seconds
        pause = limiter.pause(run, now)
        assert 0 <= pause <= 8 * WINDOW
        if not pause and leaves:
            limiter.leave(run)
        elif not pause:
            limiter.refused(run, REFUSED, now)
            refusals.append(now)
    assert all(b - a >= WINDOW for a, b in pairwise(refusals))
