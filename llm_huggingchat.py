"""HuggingChat for `llm`: one conversation in the terminal and on the web page.

The file reads from top to bottom; each part uses only what stands above it:

    words       text that may be shown in a terminal
    server      an address -> where requests and cookies may go
    cookies     text -> the cookies that count
    catalogue   server JSON -> models, aliases
    artifacts   tags in an answer's text -> Markdown; versions -> files
    prompting   schemas and local tools, asked for and read as text
    history     llm's messages -> what to send, and after which message
    decoder     bytes, cut anywhere -> events
    stages      events, perhaps replayed -> the answer's events, each once
    answer      a run's events -> llm's stream events
    questions   what a tool asks -> words; what is typed -> values, checked
    terminal    where a person sees tools at work, and answers their questions
    run         one run's states, no sockets: what happened in, what to do next out
    files       the key store, the catalogue cache, and which runs go on
    client      one coroutine a server call; errors in words
    tools       llm's server-side tools -> what the server is to select
    turn        does what the run says: create or find, send, follow, look, wait, stop
    models      llm's classes, thin
    commands    llm huggingchat ...
    hooks       register_models, register_commands, register_fragment_loaders

Facts about the protocol come from watching chat-ui 0.20.0, the server behind
HuggingChat. Nothing here touches the network, or imports `curl_cffi`, before a
prompt or a command needs it.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import codecs
import contextlib
import datetime
import enum
import errno
import functools
import glob
import hashlib
import inspect
import io
import ipaddress
import itertools
import json
import logging
import math
import mimetypes
import os
import pathlib
import queue
import random
import re
import secrets
import shutil
import signal
import sqlite3
import stat
import sys
import tempfile
import threading
import time
import unicodedata
import uuid
import weakref
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeGuard, TypeVar, cast, get_args
from urllib.parse import quote, unquote, urljoin, urlsplit

import click
import llm
import msgspec
from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from pydantic import Field
from typing_extensions import dataclass_transform

if TYPE_CHECKING:
    from curl_cffi.requests import AsyncSession
    from curl_cffi.requests.exceptions import RequestException
    from llm.logs import LogStore

T = TypeVar("T")
E = TypeVar("E")
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """A dataclass of values that never change, which can be compared and be keys.

    mypy sees to it that they do not. What `dataclass(frozen=True)` writes and compiles for
    each class, so that they cannot, would take a third of this module's import.
    """

    def equal(self: T, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def digest(self: T) -> int:
        return hash(tuple(vars(self).values()))

    cls.__eq__, cls.__hash__ = equal, digest  # type: ignore[method-assign,assignment]
    return dataclass(eq=False)(cls)


@dataclass
class Limits:
    """How long things may take, in seconds. The tests shorten them.

    `read_timeout` is how long a stream or a log may be silent: both send a sign of life all the
    time. `call_timeout` is for any other call, all in all. An upload may take longer, at
    `slowest_upload` bytes a second. A turn is given up when the server was not heard of for
    `reconnect_timeout`. `backoff` are the pauses between attempts, of which the last repeats;
    `max_attempts` is how often a call, or a message, is tried. `look_again`: when to look once
    more for a message that is not there. `stop_timeout` is for telling the server to stop,
    `id_timeout` for the answer's id after its last character, `tail_timeout` for its storing.
    A run without a turn is waited for during `store_timeout`: chat-ui ends dead ones.
    `stop_marker`: chat-ui lets a stop also stop the conversation's next run for so long.
    `settle_timeout` is how long reading a conversation waits for an answer to be stored.
    `rate_window`: chat-ui counts a message for so long, also one that it refused with 429.
    Unused connections are kept for `keep_alive`; the catalogue is refreshed after `catalogue_age`;
    transcribing may take `transcribe_timeout`, as chat-ui gives up after 60 seconds.
    """

    read_timeout: float = 9.0
    call_timeout: float = 60.0
    slowest_upload: int = 20_000
    reconnect_timeout: float = 30.0
    backoff: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    max_attempts: int = 4
    look_again: float = 0.5
    stop_timeout: float = 0.7
    id_timeout: float = 2.0
    tail_timeout: float = 0.2
    store_timeout: float = 180.0
    stop_marker: float = 5.5
    settle_timeout: float = 10.0
    rate_window: float = 60.0
    keep_alive: float = 60.0
    catalogue_age: float = 86_400.0
    transcribe_timeout: float = 90.0


limits = Limits()

CLOSE_GRACE = 1.0  # seconds that a question which is closed may take to leave the screen
LONGEST_PAUSE = 8  # times MINUTE, while tries are in vain
HELD_LIMIT = 3_600.0  # seconds ahead that a message is noted as waiting: more is another clock's
RUN_LIMIT = 604_800.0  # seconds for which chat-ui keeps a run's log, and a run is noted here
LARGE = 200_000  # bytes of JSON from which on it is read beside the loop
JSON_LIMIT = 8_000_000  # bytes of an answer in JSON: a real one, with all models, has 100,000
TREE_LIMIT = 64_000_000  # bytes of a conversation: 300 turns are 16 million
ANSWER_LIMIT = 4_000_000  # characters of an answer, with reasoning and tools: a model has a tenth
DESCRIBED_LIMIT = 700_000  # the same, up to which llm can log `response_json`: see Outcome
MANY = 20_000  # pieces of an answer after which they are made larger
CHATTER = 100  # events a second with nothing new in them: a server at work sends ten
STREAM_LIMIT = 1_000_000_000  # bytes of a stream or a log: a week of signs of life is a quarter
JSON_MEMORY = 110_000_000  # bytes of memory that reading JSON may take, with its text
LINE_LIMIT = 8_000_000  # bytes of a stream or a log that may come without an event in them
SAVED_LIMIT = 1_000_000_000  # bytes of a file of an answer
MODELS_LIMIT = 5_000  # models of one server, which every `llm` command reads: the service has 140
LIST_LIMIT = 30_000  # conversations of one account
LIST_TIME = 600.0  # seconds that listing them may take
CURL_WRITEFUNC_ERROR = 0xFFFFFFFF  # what a callback gives to curl to have the exchange ended
FILE_LIMIT = 10 * 1024 * 1024  # bytes; chat-ui refuses a larger file with 413
AUDIO_LIMIT = 25 * 1024 * 1024  # bytes of a recording; chat-ui transcribes no larger one
TRANSCRIPT_LIMIT = 1_000_000  # bytes of a transcript: who speaks for ten hours says less
AHEAD = 4  # calls of a kind that are made at once: what is fetched, deleted, transcribed
AHEAD_LIMIT = 4_000_000  # bytes of a conversation that is fetched so: a larger one, by itself


# --- words: text that may be shown in a terminal --------------------------------------


def plain(text: object, limit: int = 500) -> str:
    """One line of `text` without control or direction characters, at most `limit` long.

    Everything from the server that this plugin itself shows goes through here. Of a very long
    text only how it begins is looked at: to take it apart is a hundred times its memory.
    """
    kept = str(text)[: 100 * limit]
    if not kept.isprintable():
        shown = (char for char in kept if char.isspace() or char.isprintable())
        kept = "".join(" " if char.isspace() else char for char in shown)
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def printable(text: str) -> str:
    """Longer text as it may be shown in a terminal: its lines, tabs and spaces are kept."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) == "Zs" else plain(char)
        for char in text
    )


def _string(value: object) -> str:
    """`value` if it is text, else no text: JSON from outside may hold anything."""
    return value if isinstance(value, str) else ""


def _mapping(value: object) -> dict[str, Any]:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def _mappings(value: object) -> list[dict[str, Any]]:
    """The items of `value` if it is a list; what is no object there is an empty one."""
    return [_mapping(item) for item in _list(value)]


def _number(value: object) -> float | None:
    """`value` if it is a number that can be counted with, else none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < 1e300 else None


def utf16_length(text: str) -> int:
    """The length of `text` as JavaScript, and so chat-ui, counts it."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


_SURROGATE = re.compile("[\ud800-\udfff]")


def join_surrogates(text: str) -> str:
    """`text` with surrogate pairs joined, and lone halves replaced: it can be printed."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _overlap(text: str, tag: str) -> int:
    """The length of the longest end of `text` that begins `tag`."""
    return next((n for n in range(min(len(text), len(tag)), 0, -1) if tag.startswith(text[-n:])), 0)


def known_id(value: object) -> str:
    """`value` if it can be an id of the server's, of whatever kind, else none.

    Ids end up in addresses, in the logs and in the terminal.
    """
    text = _string(value)
    return text if re.fullmatch(r"[A-Za-z0-9_-]{1,200}", text) else ""


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _table(rows: str) -> dict[str, str]:
    """Name -> what it stands for. Each row, up to a semicolon, begins with that."""
    return {name: meant for meant, *names in map(str.split, rows.split(";")) for name in names}


class HuggingChatError(click.ClickException, llm.ModelError):
    """What went wrong and what to do next, in one or two lines.

    A `llm.ModelError` for callers of llm's API; a `click.ClickException` because that is what
    `llm chat` prints as one line instead of a traceback.
    """


class LoginRequired(HuggingChatError, llm.NeedsKeyException):
    """The server requires a login, and there is no key for it."""


def protocol_error(host: str, what: str) -> llm.ModelError:
    """The error for an answer of `host` that is well-formed, but not chat-ui's: `what` it is."""
    return HuggingChatError(f"{host} gave an answer that makes no sense: {what}.")


class TooLarge(HuggingChatError):
    """A server sent more than any real answer has. It is not asked again."""


def note(text: str) -> None:
    """A line on standard error: something to know that is not a failure."""
    click.echo(f"huggingchat: {plain(text)}", err=True)


_log = logging.getLogger(__name__)


def on_command_line() -> bool:
    """Is this thread at work for llm's own command line? Else standard error is not ours."""
    context = click.get_current_context(silent=True)
    cli = sys.modules.get("llm.cli")
    return bool(context and cli and context.find_root().command is cli.cli)


def noting() -> Callable[[str], None]:
    """How what is worth knowing is told to who calls: `note` on llm's command line, else
    the log `llm_huggingchat`."""
    return note if on_command_line() else lambda text: _log.warning("%s", plain(text))


# --- server: an address -> where requests and cookies may go --------------------------

SERVICE = "https://huggingface.co/chat"
SERVER_VARIABLE = "LLM_HUGGINGCHAT_URL"
KEY_VARIABLE = "LLM_HUGGINGCHAT_KEY"
BROWSER_VARIABLE = "LLM_HUGGINGCHAT_IMPERSONATE"
WAIT_VARIABLE = "LLM_HUGGINGCHAT_WAIT"


def chat_path(conversation_id: str) -> str:
    """Where a conversation's page is, and where its messages are sent."""
    return f"/conversation/{quote(conversation_id, safe='')}"


def api_path(conversation_id: str) -> str:
    """Where a conversation can be read, changed and deleted."""
    return f"/api/v2/conversations/{quote(conversation_id, safe='')}"


@frozen
class Server:
    """A chat-ui server. `url` is its base address, without a slash at the end."""

    url: str

    @property
    def origin(self) -> str:
        """Scheme, host and port: what chat-ui wants as `Origin`, or it answers 403."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def host(self) -> str:
        """HOST or HOST:PORT."""
        return urlsplit(self.url).netloc

    @property
    def is_service(self) -> bool:
        """Is this HuggingChat itself, where every prompt needs a login?"""
        return self.host == urlsplit(SERVICE).netloc

    @property
    def is_loopback(self) -> bool:
        """Is this a server on this machine, to which plain http may be spoken?"""
        return _is_loopback(urlsplit(self.url).hostname or "")

    @property
    def key_name(self) -> str:
        """The name in llm's key store, one a host: cookies of one never go to another."""
        return "huggingchat" if self.is_service else f"huggingchat:{self.host}"

    def page(self, conversation_id: str) -> str:
        """The conversation's web page."""
        return self.url + chat_path(conversation_id)

    def shared_page(self, share_id: str) -> str:
        """The page of a shared conversation, which everybody can read."""
        return f"{self.url}/r/{quote(share_id, safe='')}"

    def file_page(self, conversation_id: str, sha: str) -> str:
        """Where a file of a conversation is; fetching it needs the cookies."""
        return f"{self.page(conversation_id)}/output/{quote(sha, safe='')}"


def leads_to_login(location: str) -> bool:
    """Does a redirect to `location` ask for a login?

    An OpenID provider is told who asks (`client_id`); others have a path that says it. One that
    does not say where it leads is taken for one: chat-ui has no other redirects.
    """
    try:
        parts = urlsplit(location)
    except ValueError:
        return False
    asks = re.search(r"(^|&)(client_id|SAMLRequest)=", parts.query)
    words = r"(^|/)(log[-_]?in|sign[-_]?in|o?auth2?|authorize|sso|saml2?)(?![A-Za-z0-9])"
    return not location or bool(asks or re.search(words, parts.path, re.IGNORECASE))


def own_target(url: str, location: str) -> str:
    """Where a redirect from `url` to `location` leads, if it stays on the origin; else ""."""
    try:
        target = urljoin(url, location)
        origins = {urlsplit(each)[:2] for each in (url, target)}
    except ValueError:
        return ""
    return target if len(origins) == 1 and re.fullmatch(r"[!-~]+", target) else ""


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_private(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # A browser takes 127.1, 0x7f000001 and 017700000001 for addresses as well.
        number = re.search(r"(^|\.)([0-9]+|0x[0-9a-f]*)\.?$", host)
        name = host.rstrip(".")
        local = "." not in name or name.endswith((".local", ".internal", ".localhost"))
        return bool(number) or local
    return not address.is_global


def leads_to(address: str) -> str:
    """The host, and port, that a web address leads to; none if it is no plain http(s) address."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    sound = re.fullmatch(r"https?://[!-~]+", address) and re.fullmatch(r"[a-z0-9._:-]+", host)
    return (host + (f":{port}" if port else "")) if sound and "\\" not in address else ""


def parse_server(text: str) -> Server:
    """The server at address `text`.

    Raises llm.ModelError for anything but https, or http on loopback.
    """

    def bad(why: str) -> llm.ModelError:
        shown = plain(text.rpartition("@")[2], 100)
        return HuggingChatError(
            f"{shown!r} cannot be the chat server's address: {why}. "
            f"Set {SERVER_VARIABLE} to one like {SERVICE}"
        )

    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise bad("it is not a URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise bad("it is not a URL")
    if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9a-fA-F:.]+", host):
        raise bad("its host is not a name")
    if re.search(r"[\s\\<>\"'\x00-\x20\x7f]", parts.path) or not parts.path.isascii():
        raise bad("its path is not a URL's")
    if parts.username or parts.password or "@" in parts.netloc:
        raise bad("it holds a user name or password")
    if parts.query or parts.fragment:
        raise bad("it has more than a path")
    if parts.scheme == "http" and not _is_loopback(host):
        raise bad("plain http is for loopback only, use https")
    netloc = f"[{host}]" if ":" in host else host
    if port and port != {"http": 80, "https": 443}[parts.scheme]:
        netloc += f":{port}"
    return Server(f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}")


def current_server() -> Server:
    """The server that `LLM_HUGGINGCHAT_URL` names, or HuggingChat. Raises llm.ModelError."""
    return parse_server(os.environ.get(SERVER_VARIABLE) or SERVICE)


def max_wait() -> float:
    """How many seconds a prompt may wait, in all, when the server wants a pause; 0 unless set.

    Raises llm.ModelError for a value that is no such number.
    """
    text = os.environ.get(WAIT_VARIABLE, "").strip() or "0"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise HuggingChatError(
            f"{WAIT_VARIABLE} is {plain(text, 60)!r}; it takes a number of seconds, such as 600."
        )
    return seconds


def impersonated_browser() -> str | None:
    """The browser that every request is to look like, or None: then it says who it is.

    Raises llm.ModelError for one that curl_cffi cannot be.
    """
    name = (os.environ.get(BROWSER_VARIABLE) or "").strip()
    if not name:
        return None
    from curl_cffi.requests.impersonate import REAL_TARGET_MAP, BrowserTypeLiteral

    known = sorted({*get_args(BrowserTypeLiteral), *REAL_TARGET_MAP})
    if name not in known:
        raise HuggingChatError(
            f"{BROWSER_VARIABLE} is {plain(name, 60)!r}, which is no browser that curl_cffi can "
            f"look like. These are: {', '.join(known)}"
        )
    return name


def browser_headers(browser: str, server: Server, method: str) -> dict[str, str | None]:
    """What a page's `fetch()` sends beside what `browser` always sends.

    curl_cffi's own headers are those of a page that is opened; None takes one away.
    """
    headers: dict[str, str | None] = {
        "Accept": "*/*",
        "Sec-Fetch-Site": "same-origin",
        "Sec-Fetch-Mode": "cors",
        "Sec-Fetch-Dest": "empty",
        "Sec-Fetch-User": None,
        "Upgrade-Insecure-Requests": None,
        "Referer": f"{server.url}/",
    }
    if method != "GET":
        headers["Origin"] = server.origin
    if browser.startswith(("firefox", "tor")):
        headers["Priority"] = "u=4"
    return headers


def form_boundary() -> str:
    """What separates the parts of a form, as the browser would write it."""
    browser = impersonated_browser() or ""
    if not browser:
        return f"llm-huggingchat-{uuid.uuid4().hex}"
    if browser.startswith(("firefox", "tor")):
        return f"----geckoformboundary{uuid.uuid4().hex}"
    return f"----WebKitFormBoundary{uuid.uuid4().hex[:16]}"


# --- cookies: text -> the cookies that count ------------------------------------------

COOKIE_NAMES = ("hf-chat", "token", "aws-waf-token")
_COOKIE_VALUE = re.compile(r"[!#-+\--:<-\[\]-~]+")  # RFC 6265's cookie-octet


@frozen
class Cookies:
    """`hf-chat` is the session; `token` is the huggingface.co login coupled with it.

    `token` alone is enough: the session is made from it. It opens the whole account, so no
    value is ever shown: not in `repr`. `made_up` marks a session that this plugin made for a
    server without logins, `since` is when a session was made here (seconds since 1970).
    `waf` is the firewall's `aws-waf-token`; `passing` are cookies that a login needs while it
    goes on: they are sent, but never kept.
    """

    hf_chat: str | None = field(repr=False)
    token: str | None = field(default=None, repr=False)
    made_up: bool = False
    waf: str | None = field(default=None, repr=False, kw_only=True)
    since: float | None = field(default=None, repr=False, kw_only=True)
    passing: tuple[tuple[str, str], ...] = field(default=(), repr=False, kw_only=True)

    def pairs(self) -> dict[str, str]:
        """Cookie name -> value, of those that count and are there."""
        values = zip(COOKIE_NAMES, (self.hf_chat, self.token, self.waf), strict=True)
        return {name: value for name, value in values if value}

    def header(self) -> str:
        """The `Cookie` header's value."""
        pairs = [*self.pairs().items(), *self.passing]
        return "; ".join(f"{name}={value}" for name, value in pairs)

    def to_key(self) -> str:
        """The value kept in llm's key store: one line of JSON."""
        pairs: dict[str, object] = {**self.pairs()}
        if self.made_up:
            pairs["made_up"] = True
        if self.since is not None:
            pairs["since"] = self.since
        return json.dumps(pairs)


def _pairs_of_json(value: Any, host: str) -> Iterator[tuple[str, str]]:
    """Cookies in a JSON object, or in the list that a browser extension exports."""
    if isinstance(value, dict) and isinstance(value.get("cookies"), list):
        value = value["cookies"]
    if isinstance(value, dict):
        for name in COOKIE_NAMES:
            if isinstance(value.get(name), str):
                yield name, value[name]
    for entry in _mappings(value):
        covered = _domain_covers(entry.get("domain") or entry.get("host"), host)
        if covered and isinstance(entry.get("value"), str):
            yield str(entry.get("name")), entry["value"]


def _pairs_of_text(text: str, host: str) -> Iterator[tuple[str, str]]:
    """Cookies in a cookies.txt (Netscape) or in a `Cookie:` header."""
    for line in text.splitlines():
        columns = line.removeprefix("#HttpOnly_").split("\t")
        if len(columns) >= 7:
            if _domain_covers(columns[0], host):
                yield columns[5], columns[6]
            continue
        line = re.sub(r"^\W*cookie\s*:", "", line.strip(), flags=re.IGNORECASE)
        for pair in line.split(";"):
            name, equals, value = pair.partition("=")
            if equals:
                yield name.strip(), value


def _domain_covers(domain: object, host: str) -> bool:
    """May a cookie of `domain` be sent to `host`? Names such as `token` are common."""
    if not domain or not isinstance(domain, str):
        return True
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    domain = domain.lstrip(".").lower()
    return name == domain or name.endswith("." + domain)


def parse_cookies(text: str, host: str = urlsplit(SERVICE).netloc) -> Cookies:
    """The cookies in whatever people can paste, of which only those that count are kept.

    `text`: the bare `hf-chat` value, a `Cookie:` header, a JSON object or list, or a
    cookies.txt; where the form says a cookie's domain, only those of `host` count.
    Raises llm.ModelError, which never holds any part of `text`.
    """
    text = text.strip()
    pairs: list[tuple[str, str]]
    try:
        value = json.loads(text) if text[:1] in ("{", "[", '"') else None
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, str):
        text = value.strip()
    made_up = _mapping(value).get("made_up") is True
    since = _number(_mapping(value).get("since"))
    if isinstance(value, (dict, list)):
        pairs = list(_pairs_of_json(value, host))
    else:
        pairs = list(_pairs_of_text(text, host))
        if not any(name in COOKIE_NAMES for name, _ in pairs) and _COOKIE_VALUE.fullmatch(text):
            pairs = [("hf-chat", text)]
    found: dict[str, str] = {}
    for name, cookie in pairs:
        cookie = cookie.strip().strip('"')
        if name not in COOKIE_NAMES or not cookie:
            continue
        if not _COOKIE_VALUE.fullmatch(cookie):
            raise HuggingChatError(
                f"The value of the cookie {name!r} has characters that no cookie has. "
                "Copy it again from the browser."
            )
        found.setdefault(name, cookie)
    if "hf-chat" not in found and "token" not in found:
        raise HuggingChatError(
            f"The key for {plain(host, 80)} holds neither 'hf-chat' nor 'token': "
            "the cookie 'token' is missing. Run: llm huggingchat login"
        )
    return Cookies(
        found.get("hf-chat"),
        found.get("token"),
        made_up,
        waf=found.get("aws-waf-token"),
        since=since if since is not None and 0 <= since < 1e12 else None,
    )


# --- catalogue: server JSON -> models, aliases ----------------------------------------

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
TEXT_TYPES = (
    *("text/plain", "text/markdown", "text/html", "text/csv", "text/xml"),
    *("application/json", "application/xml", "application/csv"),
)
# Recordings, by the types that llm and others know them by, as chat-ui transcribes them.
# In a container that may also hold a picture, it is the sound that counts; 3gpp is what the
# voice recorders of many telephones write.
AUDIO_TYPES = _table(
    """
    audio/flac audio/flac audio/x-flac;
    audio/mp4 audio/mp4 audio/m4a audio/mp4a-latm audio/x-m4a audio/3gpp video/3gpp video/mp4;
    audio/mpeg audio/mpeg audio/mp3 audio/mpeg3 audio/x-mp3 audio/x-mpeg;
    audio/ogg audio/ogg audio/opus application/ogg video/ogg;
    audio/wav audio/wav audio/vnd.wave audio/wave audio/x-wav;
    audio/webm audio/webm video/webm
    """
)
AUDIO_ENDINGS = _table("audio/mp4 .m4a; audio/ogg .oga .opus; audio/webm .weba")


@frozen
class ModelInfo:
    """A model as `GET api/v2/models` describes it."""

    id: str
    multimodal: bool = False
    tools: bool = False
    reasoning: bool = False
    artifacts: bool = False
    router: bool = False
    unlisted: bool = False
    description: str = ""

    @property
    def name(self) -> str:
        """What comes after the organisation."""
        return self.id.rpartition("/")[2]

    @property
    def organisation(self) -> str:
        """Who publishes it; none for the router."""
        return self.id.rpartition("/")[0]

    @property
    def abilities(self) -> dict[str, bool]:
        """What it can do, by the names that people are told."""
        return {
            "images": self.multimodal,
            "tools": self.tools,
            "reasoning": self.reasoning,
            "artifacts": self.artifacts,
            "router": self.router,
        }

    def to_json(self) -> dict[str, Any]:
        """The catalogue's own names, so that what is cached reads like what was sent."""
        return {
            "id": self.id,
            "multimodal": self.multimodal,
            "supportsTools": self.tools,
            "supportsReasoning": self.reasoning,
            "supportsArtifacts": self.artifacts,
            "isRouter": self.router,
            "unlisted": self.unlisted,
            "description": self.description,
        }


def unwrap(value: Any) -> Any:
    """The value inside superjson: `{"json": VALUE, "meta": ...}`."""
    return value["json"] if isinstance(value, dict) and "json" in value else value


def read_catalogue(value: Any) -> tuple[ModelInfo, ...]:
    """The models in the server's answer; entries that make no sense are passed over.

    Raises ValueError when there is no model in it at all.
    """
    models: dict[str, ModelInfo] = {}
    for entry in _mappings(unwrap(value))[:MODELS_LIMIT]:
        id = _string(entry.get("id"))
        if len(id) > 200 or not re.fullmatch(r"[\w.:+-]+(/[\w.:+-]+)*", id, re.ASCII):
            continue
        models.setdefault(
            id,
            ModelInfo(
                id=id,
                multimodal=entry.get("multimodal") is True,
                tools=entry.get("supportsTools") is True,
                reasoning=entry.get("supportsReasoning") is True,
                artifacts=entry.get("supportsArtifacts") is True,
                router=entry.get("isRouter") is True,
                unlisted=entry.get("unlisted") is True,
                description=plain(_string(entry.get("description"))),
            ),
        )
    if not models:
        raise ValueError("no model in the catalogue")
    return tuple(models.values())


def _built_in(rows: str) -> tuple[ModelInfo, ...]:
    models = []
    for row in rows.split():
        id, _, flags = row.partition(":")
        i, t, r, a, o = (flag in flags for flag in "itrao")
        models.append(ModelInfo(id, i, t, r, a, router=o))
    return tuple(models)


# The service's catalogue of August 2026, for the time before the first refresh. After the
# colon: takes (i)mages, takes (t)ools, (r)easons, writes (a)rtifacts, r(o)uter.
BUILT_IN = _built_in(
    """
    omni:itao deepseek-ai/DeepSeek-V4-Pro-0813:tra zai-org/GLM-4.7-FP8:tra
    CohereLabs/command-a-plus-05-2026-bf16:ita CohereLabs/command-a-plus-05-2026-fp8:ita
    CohereLabs/command-a-plus-05-2026-w4a4:ita CohereLabs/command-a-vision-07-2025:ita
    Qwen/Qwen3.8-2.4T-A95B:tra zai-org/GLM-4.5:tra meta-models/Muse-Glimmer-30B:itr
    nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16:t CohereLabs/command-a-translate-08-2025:a
    deepseek-ai/DeepSeek-V4-Flash-0731:tra thinkingmachines/Inkling-Small:itra
    NousResearch/Hermes-3-Llama-3.1-70B:ta Qwen/Qwen3-30B-A3B:t moonshotai/Kimi-K3:itra
    tencent/Hy3:tra XiaomiMiMo/MiMo-V2.5:ita zai-org/GLM-4.6-FP8:ta
    swiss-ai/Apertus-v1.5-70B:ita swiss-ai/Apertus-v1.5-8B:it Qwen/Qwen2.5-VL-72B-Instruct:ita
    deepseek-ai/DeepSeek-R1-Distill-Qwen-14B thinkingmachines/Inkling:itra
    prism-ml/Ternary-Bonsai-27B-AWQ-4bit:it prism-ml/Ternary-Bonsai-27B-gguf:t
    CohereLabs/tiny-aya-fire XiaomiMiMo/MiMo-V2.5-Pro:tra
    nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16:tra stepfun-ai/Step-3.7-Flash:itra
    google/gemma-3-12b-it:it google/gemma-3-4b-it:it microsoft/phi-4:t
    speakleash/Bielik-11B-v3.0-Instruct:t zai-org/GLM-5.2:tra zai-org/GLM-5.2-FP8:tra
    moonshotai/Kimi-K2.7-Code:tra MiniMaxAI/MiniMax-M3:itra
    nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4:tra Qwen/Qwen3.6-27B:tra
    meta-llama/Llama-4-Scout-17B-16E-Instruct:it CohereLabs/c4ai-command-r7b-12-2024:t
    pearl-ai/Gemma-4-31B-it-pearl:t inclusionAI/Ling-2.6-1T:ta deepseek-ai/DeepSeek-V4-Pro:tra
    deepseek-ai/DeepSeek-V4-Flash:tra deepseek-ai/DeepSeek-V3.2:ta stepfun-ai/Step-3.5-Flash:ta
    Qwen/Qwen3.6-35B-A3B:tra zai-org/GLM-4.7-Flash:tra moonshotai/Kimi-K2.6:ita
    MiniMaxAI/MiniMax-M2.7:tra zai-org/GLM-5.1:tra google/gemma-4-31B-it:ita
    google/gemma-4-26B-A4B-it:it Qwen/Qwen3.5-9B:it CohereLabs/tiny-aya-global
    CohereLabs/tiny-aya-earth CohereLabs/tiny-aya-water Qwen/Qwen3.5-122B-A10B:ita
    Qwen/Qwen3.5-35B-A3B:ita Qwen/Qwen3.5-27B:it Qwen/Qwen3.5-397B-A17B:it
    MiniMaxAI/MiniMax-M2.5:tr zai-org/GLM-5:t Qwen/Qwen3-VL-235B-A22B-Instruct:it
    google/gemma-3n-E4B-it:it Qwen/Qwen3-Coder-Next:t moonshotai/Kimi-K2.5:it zai-org/GLM-4.7:tr
    MiniMaxAI/MiniMax-M2.1:t zai-org/AutoGLM-Phone-9B-Multilingual:t MiniMaxAI/MiniMax-M2:tr
    Qwen/Qwen3-VL-30B-A3B-Instruct:it aisingapore/Qwen-SEA-LION-v4-32B-IT:t
    deepcogito/cogito-671b-v2.1:t deepcogito/cogito-671b-v2.1-FP8:t
    openai/gpt-oss-safeguard-20b:tr zai-org/GLM-4.5V-FP8:it deepseek-ai/DeepSeek-V3.2-Exp:t
    zai-org/GLM-4.6:t deepseek-ai/DeepSeek-V3.1-Terminus:t Qwen/Qwen3-VL-235B-A22B-Thinking:it
    zai-org/GLM-4.6V:it zai-org/GLM-4.6V-Flash:it zai-org/GLM-4.6V-FP8:it
    Qwen/Qwen3-235B-A22B-Thinking-2507:t Qwen/Qwen3-Next-80B-A3B-Instruct:t
    moonshotai/Kimi-K2-Instruct-0905:t openai/gpt-oss-20b:tr swiss-ai/Apertus-8B-Instruct-2509:t
    openai/gpt-oss-120b:tra Qwen/Qwen3-Coder-30B-A3B-Instruct:t
    meta-llama/Llama-3.1-8B-Instruct:t deepseek-ai/DeepSeek-R1:t
    swiss-ai/Apertus-70B-Instruct-2509:t Qwen/Qwen3-4B-Instruct-2507:t
    Qwen/Qwen3-Coder-480B-A35B-Instruct:t Qwen/Qwen3-4B-Thinking-2507:t
    moonshotai/Kimi-K2-Instruct:t zai-org/GLM-4.5V:it deepseek-ai/DeepSeek-V3.1:t
    Qwen/Qwen3-8B:t google/gemma-3-27b-it:it zai-org/GLM-4.5-Air:t Qwen/Qwen2.5-7B-Instruct:t
    Qwen/Qwen3-32B:t Qwen/Qwen3-235B-A22B-Instruct-2507:t meta-llama/Llama-3.3-70B-Instruct:t
    Qwen/Qwen3-235B-A22B:t Qwen/Qwen2.5-Coder-32B-Instruct:t
    deepseek-ai/DeepSeek-R1-Distill-Qwen-7B deepseek-ai/DeepSeek-V3:t
    deepseek-ai/DeepSeek-V3-0324:t baidu/ERNIE-4.5-VL-424B-A47B-Base-PT:it
    deepseek-ai/DeepSeek-R1-0528:t Qwen/Qwen3-14B:t MiniMaxAI/MiniMax-M1-80k:t
    Qwen/Qwen2.5-Coder-7B-Instruct:t aisingapore/Gemma-SEA-LION-v4-27B-IT:t
    meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8:it
    deepseek-ai/DeepSeek-R1-Distill-Llama-8B Qwen/Qwen2.5-72B-Instruct:t
    meta-llama/Llama-Guard-4-12B Sao10K/L3-8B-Stheno-v3.2 CohereLabs/c4ai-command-r-08-2024:t
    CohereLabs/aya-expanse-32b:t CohereLabs/c4ai-command-a-03-2025:t
    CohereLabs/command-a-reasoning-08-2025:t alpindale/WizardLM-2-8x22B:t
    deepseek-ai/DeepSeek-R1-Distill-Llama-70B CohereLabs/aya-vision-32b:it
    CohereLabs/c4ai-command-r7b-arabic-02-2025:t Sao10K/L3-8B-Lunaris-v1
    zai-org/GLM-4-32B-0414:t Qwen/Qwen2.5-Coder-3B-Instruct:t
    """
)

# The home of a family: nobody but Meta makes `hf-llama`, and a DeepSeek that was distilled
# into a Llama is a DeepSeek. Other families are at home where most of their models are.
HOMES = {
    "apertus": "swiss-ai",
    "aya": "CohereLabs",
    "command": "CohereLabs",
    "deepseek": "deepseek-ai",
    "gemma": "google",
    "glm": "zai-org",
    "gpt-oss": "openai",
    "kimi": "moonshotai",
    "llama": "meta-llama",
    "mimo": "XiaomiMiMo",
    "minimax": "MiniMaxAI",
    "mistral": "mistralai",
    "nemotron": "nvidia",
    "phi": "microsoft",
    "qwen": "Qwen",
}


def _words(words: str) -> re.Pattern[str]:
    """Finds one of `words` (a pattern) as a whole word of a model's name in lower case."""
    return re.compile(rf"(?<![a-z0-9])(?:{words})(?![a-z0-9])")


_CODER = re.compile(r"coder|codestral|devstral|(?<![a-z])code(?![a-z])")
_VISION = re.compile(r"(?<![a-z])(?:vl|vision)(?![a-z])|\dv(?![a-z0-9])")
_SPECIAL = re.compile(
    rf"{_CODER.pattern}|{_VISION.pattern}|guard|shield|translat|embed|rerank|distill|"
    r"(?<![a-z])(?:arabic|asr|audio|base|exp|experimental|math|mt|ocr|phone|preview|prover|pt|"
    r"reward|tts)(?![a-z])"
)
_QUANTISED = _words(
    r"(?:nv|mx)?fp[48]|int[48]|[2348]-?bits?|w\d+a\d+|i?q[2-8](?:_[a-z0-9]+)*|"
    r"awq|bnb|exl[23]|gguf|gptq|mlx|quantized|ternary"
)
_FULL = _words(r"bf16|fp16|fp32")
_LARGE = _words(r"large|max|plus|pro|ultra")
_SMALL = _words(r"air|flash|lightning|lite|micro|mini|nano|small|tiny")
_THINKS = _words(r"reasoning|thinking")
_MONTH = re.compile(r"(?<!\d)(0[1-9]|1[0-2])-(20\d\d)(?!\d)")  # 05-2026
_DAY = re.compile(r"(?<![\d.])(\d\d)(\d\d)(?![\d.a-z])")  # 0813 is August 13, 2507 July 2025
# 70B, 2.4T, 8x22B, r7b; but not A22B, which is how many of them are active.
_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d{1,3})x)?[e-z]?(\d{1,4}(?:\.\d{1,3})?)([bt])(?![a-z0-9])")
_EXPERTS = re.compile(r"(?<![a-z0-9.])(\d{1,3})e(?![a-z0-9])")  # 17B-16E
_VERSION = re.compile(r"(?<![\d.])(\d{1,2}(?:\.\d{1,2})*)[nov]?(?![a-z0-9.])")  # V4, 5.2, M3


@frozen
class _Traits:
    """What a model's name says of it. `size` is in billions of parameters, 0 if unsaid."""

    general: bool
    precise: bool
    version: tuple[int, ...]
    size: float
    grade: int  # -1 for a flash, mini or air; 1 for a pro, max or ultra
    direct: bool  # it answers without having to think first
    date: tuple[int, ...]


def _traits(name: str) -> _Traits:
    name = name.lower()
    size = 0.0
    if said := _SIZE.search(name):
        experts = _EXPERTS.search(name)  # 8x22B, 17B-16E: as many times as there are experts
        times = int(said[1] or (experts[1] if experts else 1))
        size = times * float(said[2]) * (1000 if said[3] == "t" else 1)
    date: tuple[int, ...] = ()
    if month := _MONTH.search(name):
        date = (int(month[2]), int(month[1]))
    elif day := _DAY.search(name):
        date = (int(day[1]), int(day[2]))
    bare = name
    for other in (_MONTH, _DAY, _SIZE, _EXPERTS, _QUANTISED, _FULL):
        bare = other.sub("", bare)
    version = _VERSION.search(bare)
    return _Traits(
        general=not _SPECIAL.search(name),
        precise=not _QUANTISED.search(name),
        version=tuple(map(int, version[1].split("."))) if version else (),
        size=size,
        grade=bool(_LARGE.search(name)) - bool(_SMALL.search(name)),
        direct=not _THINKS.search(name),
        date=date,
    )


def is_general(model: ModelInfo) -> bool:
    """Is this a model for anything that can be said, not for one purpose?"""
    return not _SPECIAL.search(model.name.lower())


def family(model: ModelInfo) -> str:
    """The short name of a model's kin: `qwen` for Qwen/Qwen3-235B, `gemma` for any Gemma.

    The family at home with its organisation, if that is in its name; else the first word
    that says more than who made it, how large it is or how it is stored.
    """
    name, home = model.name.lower(), model.organisation.lower()
    for known, organisation in HOMES.items():
        if organisation == model.organisation and re.search(rf"(?<![a-z]){known}(?![a-z])", name):
            return known
    for word in re.findall(r"(?<![a-z0-9])[a-z]{2,}", name):
        if word != home and not any(kind.fullmatch(word) for kind in (_SMALL, _LARGE, _QUANTISED)):
            return str(word)
    return home or name


def _best(models: Iterable[ModelInfo], traits: dict[str, _Traits]) -> ModelInfo:
    """The one of a family that a person means by its name, whatever the order of `models`.

    General before special, full precision before less, then the newest, then the largest.
    """
    left = [(traits[model.id], model) for model in models]

    def keep(rank: Callable[[_Traits], Any]) -> None:
        nonlocal left
        top = max(rank(its) for its, _ in left)
        left = [(its, model) for its, model in left if rank(its) == top]

    keep(lambda its: its.general)
    keep(lambda its: its.precise)
    keep(lambda its: its.version)
    if all(its.size for its, _ in left):
        keep(lambda its: its.size)
    keep(lambda its: (its.grade, its.direct, its.date, its.size))
    return min((model for _, model in left), key=lambda model: (len(model.id), model.id))


def _kin(models: Iterable[ModelInfo]) -> dict[str, list[ModelInfo]]:
    """Family -> those of `models` that the organisation at its home publishes.

    Those of others stand in where the home has none: a server of one's own lists what it likes.
    """
    families: dict[str, dict[str, list[ModelInfo]]] = {}
    for model in models:
        families.setdefault(family(model), {}).setdefault(model.organisation, []).append(model)
    found = {}
    for name, by in families.items():
        most = min(by, key=lambda organisation: (-len(by[organisation]), organisation))
        found[name] = by.get(HOMES.get(name, ""), by[most])
    return found


def aliases(models: Iterable[ModelInfo]) -> dict[str, str]:
    """Alias -> model id, by a rule that looks at the models alone, not at their order.

    Every model has one of its own; every family a short one for its newest and then largest
    general model; `hf-vision` and `hf-coder` are the largest of the families' best.
    """
    models = sorted(models, key=lambda model: (model.unlisted, model.id))
    listed = [model for model in models if not model.unlisted]
    chat = [model for model in listed if not model.router]
    traits = {model.id: _traits(model.name) for model in listed}
    found = {f"hf-{name}": _best(kin, traits).id for name, kin in _kin(chat).items()}
    seeing = [model for model in chat if model.multimodal]
    special = {
        "hf-omni": [model for model in listed if model.router],
        "hf-vision": [model for model in seeing if traits[model.id].general]
        or [model for model in seeing if _VISION.search(model.name.lower())],
        "hf-coder": [model for model in chat if _CODER.search(model.name.lower())],
    }
    for alias, able in special.items():
        best = [_best(kin, traits) for kin in _kin(able).values()]
        for model in sorted(best, key=lambda model: (-traits[model.id].size, model.id))[:1]:
            found[alias] = model.id
    for model in models:
        found.setdefault(f"hf-{model.name.lower()}", model.id)
    return found


def aliases_of(models: Iterable[ModelInfo]) -> dict[str, list[str]]:
    """Model id -> its aliases."""
    names: dict[str, list[str]] = {}
    for alias, id in aliases(models).items():
        names.setdefault(id, []).append(alias)
    return names


# --- artifacts: tags in an answer's text -> Markdown; versions -> files ----------------

UNNAMED = "untitled-artifact"  # the web page's name for an artifact without an identifier
TAG_LIMIT = 2000  # characters of attributes; a longer `<artifact ...` is text
FENCE = "`" * 16  # longer than the fences that models write inside an artifact

# What a model may give as type -> the kind that it is on the web page; others are code.
_KINDS = _table(
    """
    html html text/html; svg svg image/svg+xml; markdown markdown md text/markdown;
    react react jsx tsx application/vnd.ant.react; mermaid mermaid application/vnd.ant.mermaid;
    update update
    """
)
_CODE_TYPES = ("code", "application/vnd.ant.code")
# The kind -> the word after a fence. Code has the name of its language there.
_FENCE_WORDS = _table("html html; svg svg; jsx react; mermaid mermaid; markdown markdown")
_LANGUAGE_WORDS = _table("cpp c++; csharp c#; fsharp f#")
_FILE_ENDINGS = _table(
    """
    bat bat batch; c c; clj clj clojure; cpp cpp; cs cs csharp; css css; csv csv; dart dart;
    ex ex elixir; fs fs fsharp; go go golang; hs hs haskell; html html; ini ini; java java;
    jl jl julia; js js javascript; json json; jsx jsx; kt kt kotlin; lua lua; md md markdown;
    mmd mermaid; php php; pl pl perl; ps1 ps1 powershell; py py python; r r; rb rb ruby;
    rs rs rust; scala scala; scss scss; sh sh bash shell zsh; sql sql; svg svg; swift swift;
    tex tex latex; toml toml; ts ts typescript; tsx tsx; xml xml; yaml yaml yml; zig zig
    """
)

_TAG_FLAGS = re.IGNORECASE | re.ASCII


def _beginning_of(word: str) -> str:
    """A pattern for any beginning of `word`, from none of it to all of it."""
    pattern = ""
    for char in reversed(word):
        pattern = f"(?:{re.escape(char)}{pattern})?"
    return pattern


# Models double the bracket of a tag. The line end before a closing tag is not content.
_OPENING = re.compile(rf"(?<!<)<+artifact\b([^>]{{0,{TAG_LIMIT}}})>", _TAG_FLAGS)
_OPENING_BEGUN = re.compile(
    rf"(?<!<)<+(?:{_beginning_of('artifact')}|artifact\b[^>]{{0,{TAG_LIMIT}}})\Z", _TAG_FLAGS
)
_CLOSING = re.compile(r"(?:\r?\n[ \t]*)?(?<!<)<+/artifact>", _TAG_FLAGS)
_CLOSING_BEGUN = re.compile(
    rf"(\r?\n[ \t]*|\r)?(?:(?<!<)<+{_beginning_of('/artifact')})?\Z", _TAG_FLAGS
)
_ATTRIBUTE = re.compile(r'([\w-]+)\s*=\s*"([^"]*)"')
# Models swap the closing tags of a pair, so either will do.
_PAIR = re.compile(
    r"(?<!<)<+old_str>(.*?)(?<!<)<+/(?:old|new)_str>\s*<+new_str>"
    r"(.*?)(?<!<)<+/(?:old|new)_str>",
    re.DOTALL,
)
# A fence that a model put around an artifact, against its instructions. With no word after
# it, it could be the end of another.
_WRAPPING_FENCE = re.compile(r"(?:\A|\n) {0,3}(`{3,}|~{3,})[ \t]*[\w+#.-]+[ \t]*\n\s*\Z")


class OpeningTag(msgspec.Struct, frozen=True):
    """An artifact's opening tag. `kind` is html, svg, react, mermaid, markdown, code or update.

    `title` may be empty; `language` is set for code only, in lower case, and may be empty.
    """

    identifier: str
    kind: str
    title: str
    language: str


def opening_tag(attributes: str) -> OpeningTag:
    """The opening tag with these attributes, as they stand in it."""
    given = {name.lower(): value for name, value in _ATTRIBUTE.findall(attributes)}
    type = given.get("type", "").strip().lower()
    kind = _KINDS.get(type, "code")
    language = given.get("language", "").strip().lower()
    if kind == "code" and not language and type not in _CODE_TYPES:
        language = type if re.fullmatch(r"[\w+#-]+", type) else ""  # type="python"
    identifier = given.get("identifier") or given.get("id") or UNNAMED
    return OpeningTag(identifier, kind, given.get("title", ""), language)


def _fence_word(kind: str, language: str) -> str:
    language = _LANGUAGE_WORDS.get(language, language)
    return _FENCE_WORDS.get(kind) or re.sub(r"\W", "", language, flags=re.ASCII)[:30]


def _without_start(content: str) -> str:
    """Content without the line end after the opening tag, or a doubled bracket (`<<svg`)."""
    content = re.sub(r"\A\r?\n", "", content)
    return re.sub(r"\A(\s*)<{2,}(?=[!/a-zA-Z])", r"\1<", content)


class ArtifactFilter:
    """Shows artifacts in streamed text as Markdown: a line with the title, then a fence.

    Text may be cut anywhere. What may be the beginning of a tag is held back until more text
    comes, and an update until it closes.
    """

    def __init__(self) -> None:
        self._held = ""  # may be the beginning of a tag
        self._tag: OpeningTag | None = None  # the artifact that is open
        self._wrapping_fence = ""  # the model's own fence around it
        self._content: list[str] = []  # an update, or how content begins
        self._content_begun = False
        self._links: list[str] = []  # inserted inside an artifact
        self._tail = ""  # the end of what was shown
        self._after_fence = False  # an artifact ended, and no text followed yet

    def feed(self, text: str) -> str:
        """What to show of the next piece of the model's text."""
        shown: list[str] = []
        text = self._held + text
        while True:
            whole, begun = (_CLOSING, _CLOSING_BEGUN) if self._tag else (_OPENING, _OPENING_BEGUN)
            tag = whole.search(text) if ">" in text else None
            found = tag or begun.search(text)
            before = text[: found.start()] if found else text
            shown.append(self._inside(before) if self._tag else self._outside(before))
            if tag is None:
                self._held = text[len(before) :]
                return "".join(shown)
            shown.append(self._close(self._tag) if self._tag else self._open(tag[1]))
            text = text[tag.end() :]

    def insert(self, link: str) -> str:
        """What to show where text that is not the model's comes, with line ends of its own.

        Inside an artifact nothing: a later call shows it after the artifact's fence.
        """
        if self._tag:
            self._links.append(link)
            return ""
        held, self._held = self._outside(self._held), ""
        self._tail, self._after_fence = link, False
        return held + link

    def end(self) -> str:
        """The rest of a piece of text: a server-side tool is called, or the answer has ended.

        An artifact that is open ends, as on the web page. More text may be fed afterwards.
        """
        held, self._held = self._held, ""
        if self._tag is None:
            return self._outside(held)
        return self._inside(held.partition("<")[0]) + self._close(self._tag, cut=True)

    def _open(self, attributes: str) -> str:
        """The title in a paragraph of its own, and the fence's first line."""
        self._tag = tag = opening_tag(attributes)
        self._content, self._content_begun = [], False
        wrapping = _WRAPPING_FENCE.search(self._tail)
        self._wrapping_fence = wrapping[1] if wrapping else ""
        self._after_fence = False
        if wrapping:
            return ""
        words = self._tail.rstrip()
        space = self._tail[len(words) :]
        line_ends = max((2 if words else 0) - space.count("\n"), 0)
        if space and not space.endswith("\n"):
            line_ends = max(line_ends, 1)
        identifier = plain(tag.identifier, 100).replace("`", "'")
        title = plain(tag.title, 200) or identifier
        what, word = f"`{identifier}`", _fence_word(tag.kind, tag.language)
        if tag.kind == "update":
            what, word = f"update of {what}", "diff"
        return "\n" * line_ends + f"**{title}** ({what})\n\n{FENCE}{word}\n"

    def _inside(self, text: str) -> str:
        if self._content_begun:
            return text
        self._content.append(text)
        is_update = self._tag is not None and self._tag.kind == "update"
        if is_update or not re.search(r"[^\s<]", text):
            return ""
        self._content_begun = True
        return _without_start("".join(self._content))

    def _close(self, tag: OpeningTag, cut: bool = False) -> str:
        """The rest of the content, the fence's last line, and the links inserted meanwhile.

        The model ends its own fence, unless the artifact was cut.
        """
        if tag.kind == "update":
            shown = _diff("".join(self._content))
        elif self._content_begun:
            shown = "\n"
        else:
            shown = _without_start("".join(self._content))
            shown += "\n" if shown else ""
        if cut or not self._wrapping_fence:
            shown += self._wrapping_fence or FENCE
            self._wrapping_fence = ""
        links = "".join(self._links)
        self._tag, self._links = None, []
        self._tail, self._after_fence = links or FENCE, not links
        return shown + links

    def _outside(self, text: str) -> str:
        if self._after_fence:
            text = text.lstrip(" \t\r")
            if not text:
                return ""
            self._after_fence = False
            if self._wrapping_fence:
                text = text.removeprefix("\n")
            elif text[0] != "\n":
                text = f"\n\n{text}"
        self._tail = (self._tail + text)[-200:]
        return text


def read_pairs(update: str) -> list[tuple[str, str]]:
    """The changes in an update: in each, the first text is to become the second."""
    return _PAIR.findall(update)


def _diff(update: str) -> str:
    """An update as a diff. What is in no pair changes nothing: it is shown as lines that stay."""
    lines = "".join(_marked("-", old) + _marked("+", new) for old, new in read_pairs(update))
    rest = _PAIR.sub("", update).strip("\r\n")
    return lines + (_marked(" ", rest) if rest.strip() else "")


def _marked(mark: str, text: str) -> str:
    lines = re.split(r"\r\n?|\n", text)
    if lines[-1] == "":
        lines.pop()
    return "".join(f"{mark}{line}\n" for line in lines)


class Version(msgspec.Struct, frozen=True):
    """An artifact as one answer left it.

    `operation` is create, rewrite or update; `cut` says that it was never closed, as where
    an answer breaks off. `missed` are the texts of an update that were not found, and so not
    replaced; an empty one stands for an update that changes nothing.
    """

    number: int
    operation: str
    kind: str
    title: str
    language: str
    content: str
    cut: bool
    missed: tuple[str, ...] = ()


class Artifact(msgspec.Struct, frozen=True):
    """What a conversation's answers made of one artifact; the latest version is the last."""

    identifier: str
    versions: tuple[Version, ...]

    @property
    def latest(self) -> Version:
        """The newest version."""
        return self.versions[-1]


# Kinds of quotes and dashes, which do not matter.
_ALIKE = str.maketrans(
    "\u2018\u2019\u201a\u201b\u2032\u201c\u201d\u201e\u201f\u2033"
    "\u2010\u2011\u2012\u2013\u2014\u2015\u2212",
    5 * "'" + 5 * '"' + 7 * "-",
)


def find_in(content: str, wanted: str) -> tuple[int, int] | None:
    """Where `wanted` first stands in `content`: from, to.

    As on the web page: kinds of quotes and dashes do not matter. Where it is not found as it
    is, amounts of white space and doubled brackets do not matter either.
    """
    content, wanted = content.translate(_ALIKE), wanted.translate(_ALIKE)
    if (at := content.find(wanted)) >= 0:
        return at, at + len(wanted)
    words = [
        "<+".join(map(re.escape, re.split("<+", word))) for word in re.split(r"\s+", wanted.strip())
    ]
    match = re.search(r"\s+".join(words), content) if any(words) else None
    return match.span() if match else None


def apply_pairs(content: str, pairs: Iterable[tuple[str, str]]) -> tuple[str, tuple[str, ...]]:
    """`content` with the first place of each old text replaced, and the old texts not in it."""
    missed = []
    for old, new in pairs:
        found = find_in(content, old) if old else None
        if found:
            content = content[: found[0]] + new + content[found[1] :]
        else:
            missed.append(old)
    return content, tuple(missed)


def artifacts_of(answers: Iterable[str]) -> tuple[list[Artifact], list[str]]:
    """The artifacts in a branch's answers, as the web page's panel has them, oldest first.

    `answers` are texts as the server stores them. The second list has the identifiers of
    updates that came before any artifact, and so change nothing.
    """
    made: dict[str, list[Version]] = {}
    lost: list[str] = []
    for tag, inside, cut in itertools.chain.from_iterable(map(_written_artifacts, answers)):
        if tag.kind == "update":
            identifier = _updated_artifact(tag.identifier, list(made))
            if not identifier:
                lost.append(tag.identifier)
                continue
            base, pairs = made[identifier][-1], read_pairs(inside)
            content, missed = apply_pairs(base.content, pairs)
            version = msgspec.structs.replace(
                base,
                operation="update",
                title=tag.title or base.title,
                content=content,
                cut=cut,
                missed=missed if pairs else ("",),
            )
        else:
            identifier = tag.identifier
            operation = "rewrite" if identifier in made else "create"
            title, content = tag.title or identifier, _without_start(inside)
            version = Version(0, operation, tag.kind, title, tag.language, content, cut)
        versions = made.setdefault(identifier, [])
        versions.append(msgspec.structs.replace(version, number=len(versions) + 1))
    return [Artifact(name, tuple(versions)) for name, versions in made.items()], lost


def _written_artifacts(answer: str) -> Iterator[tuple[OpeningTag, str, bool]]:
    """Each artifact's opening tag, what is inside, and whether it was never closed."""
    # The web page's panel takes any <think> for reasoning, wherever it stands.
    text = re.sub(r"<think>.*?(?:</think>|\Z)", "", answer, flags=_TAG_FLAGS | re.DOTALL)
    while opening := _OPENING.search(text):
        text = text[opening.end() :]
        if closing := _CLOSING.search(text):
            yield opening_tag(opening[1]), text[: closing.start()], False
            text = text[closing.end() :]
        else:
            inside = re.sub(rf"<+{_beginning_of('/artifact')}\Z", "", text, flags=_TAG_FLAGS)
            yield opening_tag(opening[1]), inside, True
            return


def _updated_artifact(identifier: str, names: list[str]) -> str:
    """The artifact that an update is about: models change names, so else the one made last."""
    if identifier in names:
        return identifier
    wanted = identifier.strip().lower()
    alike = [name for name in names if name.strip().lower() == wanted]
    return alike[0] if len(alike) == 1 else next(reversed(names), "")


def artifact_names(artifacts: Iterable[Artifact], every: bool) -> list[tuple[Version, str]]:
    """Each latest version with a safe file name, or with `every` all versions.

    No two names are the same, also where capitals do not count.
    """
    names: list[tuple[Version, str]] = []
    taken: set[str] = set()
    for artifact in artifacts:
        stem = _safe_stem(artifact.identifier)
        for version in artifact.versions if every else artifact.versions[-1:]:
            number = f".v{version.number}" if every else ""
            ending = _FILE_ENDINGS.get(_fence_word(version.kind, version.language), "txt")
            name, copies = f"{stem}{number}.{ending}", itertools.count(2)
            while name.lower() in taken:
                name = f"{stem}-{next(copies)}{number}.{ending}"
            taken.add(name.lower())
            names.append((version, name))
    return names


def _safe_stem(identifier: str) -> str:
    """A file name without its ending: no path, nothing hidden, no option, no device."""
    stem = re.sub(r'[/\\:*?"<>|]+', "_", plain(identifier)).strip(" .").lstrip("-. ")
    stem = stem.encode("utf-8", "replace")[:120].decode("utf-8", "ignore").rstrip(" .")
    if re.fullmatch(r"(?i)con|prn|aux|nul|(com|lpt)[0-9]", stem.partition(".")[0]):
        stem = f"_{stem}"
    return stem or UNNAMED


# --- prompting: schemas and local tools, asked for and read as text --------------------

CALL, CALL_END = "<tool_call>", "</tool_call>"
MALFORMED = "malformed_tool_call"  # no tool has this name, so llm answers it with an error


class SentInstructions(msgspec.Struct, frozen=True):
    """The instructions that a conversation has had last.

    `schema` is the schema itself; `tools` and `system` are digests of the local tools and of
    a system prompt that was sent with a later turn.
    """

    tools: str = ""
    schema: dict[str, Any] | None = None
    system: str = ""

    def metadata(self) -> dict[str, Any]:
        """What the next turn needs to know of them, for llm's `provider_metadata`."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value}


class PromptedFeatures(msgspec.Struct, frozen=True):
    """What an answer may call, and the schema that it has to match.

    HuggingChat has neither local tools nor structured output, so both are asked for in the
    prompt. `tools` are definitions as `tool_definition` makes them; `schema` is a JSON schema.
    """

    tools: tuple[dict[str, Any], ...] = ()
    schema: dict[str, Any] | None = None

    @property
    def tool_names(self) -> list[str]:
        """The names of the local tools."""
        return [str(tool["function"]["name"]) for tool in self.tools]

    @property
    def sent(self) -> SentInstructions:
        """These features, as a conversation has been instructed about them."""
        tools = json.dumps(self.tools, sort_keys=True) if self.tools else ""
        return SentInstructions(_digest(tools), self.schema)


NO_FEATURES = PromptedFeatures()


def _digest(text: str) -> str:
    """A short hash of `text`; empty for no text."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16] if text else ""


def tool_definition(tool: llm.Tool) -> dict[str, Any]:
    """A tool in the JSON form that models are trained on."""
    description = {"description": inspect.cleandoc(tool.description)} if tool.description else {}
    parameters = tool.input_schema or {"type": "object", "properties": {}}
    function = {"name": tool.name, **description, "parameters": parameters}
    return {"type": "function", "function": function}


def instructions(features: PromptedFeatures, before: SentInstructions) -> str:
    """The instructions for `features` that differ from those sent `before`; often none."""
    now = features.sent
    texts: list[str] = []
    if now.tools != before.tools:
        texts.append(_tool_instructions(features.tools, again=bool(before.tools)))
    if now.schema != before.schema:
        texts.append(_schema_instructions(features))
    return "\n\n".join(texts)


def _tool_instructions(tools: tuple[dict[str, Any], ...], again: bool) -> str:
    """The Hermes form, which open models are trained on."""
    if not tools:
        return "The functions that you were told of cannot be called any more."
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    these = "Now you can call these functions, and no others" if again else "You can call functions"
    return f"""{these}; they run on the user's computer. Their signatures:
<tools>
{listed}
</tools>
To call one, write a JSON object with its name and arguments between these tags:
{CALL}
{{"name": "NAME", "arguments": {{"ARGUMENT": "VALUE"}}}}
{CALL_END}
Write one such block for each call, then end your answer. The next message brings the results, a \
<tool_response> for each call, in their order; never write one yourself. These functions can be \
called in no other way. Where none is needed, answer as usual."""


def _schema_instructions(features: PromptedFeatures) -> str:
    if not features.schema:
        return "From here on no JSON is wanted: answer in words again."
    calls = " Call the functions that you need first; the document is the answer after that."
    return f"""A program reads your answer. It must be exactly one JSON document that is valid \
against the JSON schema below, and nothing else: no words before or after it, no code fence, no \
artifact.{calls if features.tools else ""}
The schema:
{json.dumps(features.schema, ensure_ascii=False)}"""


def repair_request(features: PromptedFeatures, problem: str) -> str:
    """The message after an answer that does not match the schema."""
    return f"That answer cannot be used: {problem}.\n\n{_schema_instructions(features)}"


def attachment_name(attachment: llm.Attachment | None) -> str:
    """A name for people: the file's or the URL's last part, else what kind it is."""
    if attachment is None:
        return "attachment"
    if attachment.path:
        return pathlib.PurePath(attachment.path).name
    if attachment.url:
        return unquote(urlsplit(attachment.url).path.rpartition("/")[2]) or attachment.url
    kind = (attachment.type or "").partition(";")[0]
    return "attachment" + (mimetypes.guess_extension(kind) or "")


def shown_name(attachment: llm.Attachment | None) -> str:
    """The same, as it may be shown."""
    return plain(attachment_name(attachment), 100)


def tool_response(result: ToolResultPart, problem: str = "") -> str:
    """The message for a local tool's result.

    `problem` says what was wrong with a call that could not be read.
    """
    value: dict[str, Any]
    if problem:
        value = {"error": f"This was no call: {problem}. Write it again, like this: "}
        value["error"] += f'{CALL}{{"name": "NAME", "arguments": {{}}}}{CALL_END}'
    else:
        value = {"name": result.name, "content": _value_of(result.output or result.exception or "")}
    if names := [attachment_name(attachment) for attachment in result.attachments]:
        value["attachments"] = names
    # A result must not be able to end its own block.
    text = json.dumps(value, ensure_ascii=False).replace("</tool_response", "<\\/tool_response")
    return f"<tool_response>\n{text}\n</tool_response>"


def _value_of(output: str) -> Any:
    """A tool's output: as JSON where it is an object or a list, else the text."""
    try:
        value = json.loads(output)
    except (ValueError, RecursionError):
        return output
    return value if isinstance(value, (dict, list)) else output


def schema_checker(schema: dict[str, Any]) -> Callable[[Any], str]:
    """A function that says what is wrong with a value, "" if it matches `schema`.

    Raises HuggingChatError when `schema` is not a JSON schema.
    """
    from jsonschema.exceptions import SchemaError, best_match
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
    except SchemaError as error:
        why = f"{error.json_path}: {plain(error.message, 200)}"
        raise HuggingChatError(f"That is not a JSON schema. {why}") from None
    except Exception as error:  # jsonschema trips over what makes no sense at all
        raise HuggingChatError(f"That is not a JSON schema. {plain(error, 200)}") from None
    # With a registry of its own, jsonschema does not fetch references from the network.
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER, registry=cast(Any, Registry()))

    def problem_of(value: Any) -> str:
        try:
            if value == schema:
                return "it is the schema itself"
            errors = [best_match([error]) for error in validator.iter_errors(value)]
        except Unresolvable as error:
            return f"the schema refers to something that is not in it: {plain(error, 200)}"
        except RecursionError:
            return "it is nested too deeply"
        except Exception as error:
            return f"the schema cannot be used to check it: {plain(error, 200)}"
        return "; ".join(
            f"{plain(error.json_path, 100)}: {plain(error.message, 200)}"
            for error in errors[:3]
            if error
        )

    return problem_of


class LocalToolCall(msgspec.Struct, frozen=True):
    """A call of a tool on this side, which the model wrote into its text.

    `problem` says why a call could not be read; `arguments` hold its text then.
    """

    id: str
    name: str
    arguments: dict[str, Any]
    problem: str = ""


def _finite_number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number that is too large for JSON")
    return value


def _not_json(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value")


# Models write line ends into strings. What is logged must be readable by others: no NaN.
_lenient_json = json.JSONDecoder(parse_float=_finite_number, parse_constant=_not_json, strict=False)
_CALL_FENCE = re.compile(r"\s*(?:```\w*\s*)?")
# What a block of calls contains up to its closing tag: a tag in a string is part of it.
_CALL_BLOCK = re.compile(
    rf'((?:[^"<]++|"(?:[^"\\]|\\.)*+"|<(?!{CALL_END[1:]}))*+){CALL_END}', re.DOTALL
)
_BETWEEN_CALLS = re.compile(r"\A(?:[\s,]|```\w*|</?tool_call>)*+")


class ToolCallFilter:
    """Takes `<tool_call>...</tool_call>` out of streamed text, which may be cut anywhere.

    Models write one call or several in such a block, fence them, and forget the tag at the
    end. It is a block where it begins like one, with JSON or the name of a tool; elsewhere
    `<tool_call>` is a word that the answer uses.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._starts = ("{", "[", '"', "<function", CALL, *names)
        self._held = ""
        self._pieces: list[str] = []  # a block, and all that comes after it

    def feed(self, text: str) -> str:
        """The text before the first block; what may begin a block is held back."""
        if self._pieces:
            self._pieces.append(text)
            return ""
        held = self._held + text
        at, begins = self._find_block(held, 0)
        if begins is False:
            at = len(held) - _overlap(held, CALL)
        at = len(held[:at].rstrip())  # white space before a block belongs to it
        self._held = held[at:]
        if begins:
            self._pieces, self._held = [self._held], ""
        return held[:at]

    def end(self, interrupted: bool = False) -> tuple[str, list[LocalToolCall]]:
        """The rest of a piece of text, and the calls in it. More text may be fed afterwards.

        If the model was `interrupted`, the call that it was writing is text.
        """
        text = self._held + "".join(self._pieces)
        self._held, self._pieces = "", []
        words: list[str | None] = []  # None stands for a block
        calls: list[LocalToolCall] = []
        while True:
            at, begins = self._find_block(text, 0)
            if not begins:
                return _joined([*words, text]), calls
            words.append(text[:at])
            block, text = text[at + len(CALL) :], ""
            if whole := _CALL_BLOCK.match(block):
                found, text = read_calls(whole[1])
                text += block[whole.end() :]
            else:
                found, text = _read_unclosed(block, interrupted)
            calls += found
            words.append(None if found else CALL)

    def _find_block(self, text: str, at: int) -> tuple[int, bool | None]:
        """Where a block begins, or may begin if more text comes (None); else False."""
        while (at := text.find(CALL, at)) >= 0:
            inside = _CALL_FENCE.sub("", text[at + len(CALL) :], count=1)
            if inside.startswith(self._starts):
                return at, True
            if any(start.startswith(inside) for start in ("```", *self._starts)):
                return at, None
            at += len(CALL)
        return len(text), False


def _joined(pieces: list[str | None]) -> str:
    """Text without the blocks in it, which are None.

    White space around blocks belongs to them, but not all of it where text is on both sides.
    """
    joined = space = ""
    before: str | None = None  # white space before the blocks, if no text followed them yet
    for piece in pieces:
        if piece is None:
            before, space = before or space, ""
        elif words := piece.strip():
            start = piece.index(words)
            joined += (space + piece[:start] or before or "") + words
            space, before = piece[start + len(words) :], None
        else:
            space += piece
    return joined + space if before is None else joined


def read_calls(text: str) -> tuple[list[LocalToolCall], str]:
    """The calls in a block, at least one, and the words that stand after them."""
    calls: list[LocalToolCall] = []
    rest = _BETWEEN_CALLS.sub("", text, count=1)
    while rest and (not calls or rest[0] in "{["):
        try:
            value, end = _lenient_json.raw_decode(rest)
            calls += map(_local_call, value if isinstance(value, list) else [value])
        except (ValueError, RecursionError) as error:
            return [*calls, _malformed(rest, f"it is not valid JSON ({plain(error)})")], ""
        rest = _BETWEEN_CALLS.sub("", rest[end:], count=1)
    return calls or [_malformed(text, "it is empty")], rest if rest.strip("]} \n`") else ""


def _read_unclosed(block: str, interrupted: bool) -> tuple[list[LocalToolCall], str]:
    """The calls in a block whose end was not found, and the text after them."""
    inside, tag, after = block.partition(CALL_END)
    if tag:  # in a string that is never closed
        calls, rest = read_calls(inside)
        return calls, rest + after
    calls, rest = read_calls(block[: len(block) - _overlap(block, CALL_END)])
    return ([], block) if interrupted and calls[-1].problem else (calls, rest)


def _local_call(value: Any) -> LocalToolCall:
    """The call that a value means. Models are trained on more than one form of it."""
    call = _mapping(value)
    call = _mapping(call.get("function")) or call
    name, arguments = _string(call.get("name")), call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = _lenient_json.decode(arguments)
    arguments = arguments or {}
    if not name:
        return _malformed(_printable_json(value), 'it is not an object with a "name"')
    if not isinstance(arguments, dict):
        return _malformed(_printable_json(value), 'its "arguments" are not an object')
    arguments = json.loads(_printable_json(arguments))
    return LocalToolCall(_new_id(), join_surrogates(name), arguments)


def _malformed(text: str, problem: str) -> LocalToolCall:
    return LocalToolCall(_new_id(), MALFORMED, {"text": text.strip()}, problem)


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex}"


def _printable_json(value: Any) -> str:
    return join_surrogates(json.dumps(value, ensure_ascii=False))


# A bracket that begins a document, and not words in brackets.
_DOCUMENT_START = re.compile(r'\{\s*(?=["}])|\[\s*(?=[\[\]{"0-9tfn-])')
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[{}\[\]]', re.DOTALL)
_PARTNERS = {"}": "{", "]": "["}
_FENCED = re.compile(r"\s*```\w*\n(.*)\n\s*```\s*", re.DOTALL)


class Document(msgspec.Struct, frozen=True):
    """The JSON document of an answer; without one, `problem` says why."""

    text: str | None
    problem: str = ""


def find_document(text: str, problem_of: Callable[[Any], str]) -> Document:
    """The first JSON document in an answer's text that `problem_of` finds nothing wrong with.

    Words, a fence or an artifact's tags may stand around it. It is returned as the model wrote
    it, unless only a lenient reader could read it. The problem is that of the longest candidate.
    """
    problem, longest, at = "there is no JSON document in it", 0, 0
    fenced = _FENCED.fullmatch(text)
    whole = (fenced[1] if fenced else text).strip()
    if not whole.startswith(("{", "[")):
        with contextlib.suppress(ValueError):  # it need not be JSON; a string or a number is
            value = _lenient_json.decode(whole)
            problem, longest = problem_of(value), len(whole)
            if not problem:
                return Document(_as_strict_json(whole, value))
    while start := _DOCUMENT_START.search(text, at):
        end = _closing_bracket(text, start.start())
        candidate = text[start.start() : end]
        if end is None:
            incomplete = len(candidate) > longest
            return Document(None, "the document is not complete" if incomplete else problem)
        at = end
        try:
            value = _lenient_json.decode(candidate)
        except RecursionError:
            wrong = "it is nested too deeply"
        except ValueError as error:
            if candidate[0] == "[" and not candidate[1 : getattr(error, "pos", end)].strip():
                at = start.start() + 1  # words in brackets
                continue
            wrong = f"it is not valid JSON ({plain(error)})"
        else:
            wrong = problem_of(value)
            if not wrong:
                return Document(_as_strict_json(candidate, value))
        if len(candidate) >= longest:
            problem, longest = wrong, len(candidate)
    return Document(None, problem)


def _closing_bracket(text: str, at: int) -> int | None:
    """The end of what the bracket at `at` opens, or of the bracket that cannot close it."""
    opened: list[str] = []
    for match in _STRING_OR_BRACKET.finditer(text, at):
        if match[0] in "{[":
            opened.append(match[0])
        elif match[0] in "}]" and (opened.pop() != _PARTNERS[match[0]] or not opened):
            return match.end()
    return None


def _as_strict_json(text: str, value: Any) -> str:
    """A document as the model wrote it, or anew if only a lenient reader could read that."""
    try:
        json.loads(text)
    except ValueError:
        return _printable_json(value)
    return text


# --- history: llm's messages -> what to send, and after which message -----------------

TRANSCRIBE = "transcribe"  # the tool name under which a transcription is logged


class Parent(msgspec.Struct, frozen=True):
    """The answer to continue after, as an earlier turn left it in `provider_metadata`.

    `message_id` is None if it could not be fetched; `generation_id` finds the answer then.
    `model` is the conversation's model at that turn, without `huggingchat/`. `sent` are the
    instructions that the conversation had then.
    """

    conversation_id: str
    message_id: str | None = None
    generation_id: str | None = None
    model: str | None = None
    sent: SentInstructions = SentInstructions()


class Plan(msgspec.Struct, frozen=True):
    """What one turn sends: `text` and `attachments` after `parent`.

    Without a parent, a new conversation is made, with `system` as its `preprompt`. With
    `retry`, the answer `parent` gets a sibling, and nothing is sent. `sent` are the
    instructions that the conversation has then, `features` what the answer is read for.
    """

    parent: Parent | None
    system: str | None
    text: str
    attachments: tuple[llm.Attachment, ...] = ()
    sent: SentInstructions = SentInstructions()
    features: PromptedFeatures = NO_FEATURES
    retry: bool = False


def _metadata(part: Part) -> dict[str, Any]:
    """What this plugin left on a part: logs may be old, or other people's."""
    return _mapping(_mapping(getattr(part, "provider_metadata", None)).get("huggingchat"))


def parent_of(message: Message, server_url: str) -> Parent | None:
    """The metadata that this plugin left on an assistant message of this server."""
    if message.role != "assistant":
        return None
    for metadata in map(_metadata, reversed(message.parts)):
        conversation_id = known_id(metadata.get("conversation_id"))
        if metadata.get("server") == server_url and conversation_id:
            return Parent(
                conversation_id,
                known_id(metadata.get("message_id")) or None,
                known_id(metadata.get("generation_id")) or None,
                _string(metadata.get("model")) or None,
                SentInstructions(
                    _string(metadata.get("tools")),
                    _mapping(metadata.get("schema")) or None,
                    _string(metadata.get("system")),
                ),
            )
    return None


def _split(
    messages: list[Message], server_url: str | None
) -> tuple[Parent | None, Message | None, list[Message]]:
    """The parent, the message that it was read from, and the messages after it."""
    for index in range(len(messages) - 1, -1, -1):
        if server_url and (parent := parent_of(messages[index], server_url)):
            return parent, messages[index], messages[index + 1 :]
    return None, None, list(messages)


def _only_results(messages: list[Message]) -> bool:
    """Is this what llm adds after local tools were called: results, and their attachments?"""
    return any(message.role == "tool" for message in messages) and all(
        isinstance(part, AttachmentPart)
        for message in messages
        for part in message.parts
        if message.role != "tool"
    )


def pending_schema(messages: list[Message], server_url: str) -> dict[str, Any] | None:
    """The schema that a question was asked with, while its local tools are being called.

    llm passes the schema with the question alone, not with the results of tools.
    """
    parent, _, after = _split(messages, server_url)
    return parent.sent.schema if parent and _only_results(after) else None


def attachment_id(attachment: llm.Attachment | None) -> str:
    """The id of an attachment in llm's logs; "" if its file does not exist any more."""
    with contextlib.suppress(OSError):
        return str(attachment.id()) if attachment else ""
    return ""


def _transcribed_attachment(part: Part) -> str:
    """The id of the attachment that a part is the transcription of, if it is one."""
    return _string(_metadata(part).get("heard"))


def earlier_transcripts(messages: Iterable[Message]) -> dict[str, str]:
    """The transcripts that earlier turns made of the chain's recordings, by attachment id."""
    return {
        _transcribed_attachment(part): part.output
        for message in messages
        for part in message.parts
        if isinstance(part, ToolResultPart) and _transcribed_attachment(part)
    }


def _labelled_transcript(attachment: llm.Attachment | None, transcripts: Mapping[str, str]) -> str:
    """A recording as its transcript; "" for an attachment that has none."""
    text = transcripts.get(attachment_id(attachment)) if transcripts else None
    name = shown_name(attachment)
    return f"[Transcript of {name}]\n{text}\n[End of the transcript]" if text else ""


def _text_of(message: Message, transcripts: Mapping[str, str] = NOTHING) -> str:
    """A message as text: attachments and tools are named, reasoning is left out."""
    texts: list[str] = []
    for part in message.parts:
        if _transcribed_attachment(part):
            continue  # it stands where the attachment is
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, AttachmentPart):
            name = f"[attachment: {attachment_name(part.attachment)}]"
            texts.append(_labelled_transcript(part.attachment, transcripts) or name)
        elif isinstance(part, ToolCallPart):
            arguments = json.dumps(part.arguments, ensure_ascii=False)
            texts.append(f"[used the tool {part.name} with {arguments}]")
        elif isinstance(part, ToolResultPart):
            names = "".join(f" [attachment: {attachment_name(a)}]" for a in part.attachments)
            output = part.exception or part.output
            texts.append(f"[the tool {part.name} returned: {output}{names}]")
            texts += [_labelled_transcript(a, transcripts) for a in part.attachments]
    return "\n".join(filter(None, texts))


def transcript(messages: Iterable[Message], transcripts: Mapping[str, str] = NOTHING) -> str:
    """Messages as labelled text, for a model that has not seen them.

    `transcripts` of recordings, by attachment id, stand where the recordings were.
    """
    turns = [
        f"{message.role.capitalize()}: {_text_of(message, transcripts)}" for message in messages
    ]
    if not turns:
        return ""
    return "\n\n".join(["[Earlier messages]", *turns, "[End of the earlier messages]"])


def make_plan(
    messages: list[Message],
    server_url: str | None,
    *,
    system: str | None = None,
    retry: bool = False,
    features: PromptedFeatures = NO_FEATURES,
    transcripts: Mapping[str, str] = NOTHING,
) -> Plan:
    """Plan a turn from llm's chain of messages.

    `server_url` None makes a plan without a parent: a new conversation with everything.
    `system` is this turn's own system prompt, which llm leaves out of the chain on later
    turns. With `retry`, the last answer is asked for again; where llm sends the results of
    the tools that the new answer called, `retry` is ignored. `transcripts`, by attachment id,
    are sent instead of recordings, as are those of earlier turns.
    Raises HuggingChatError when there is nothing to send, or nothing to retry.
    """
    parent, answer, after = _split(messages, server_url)
    is_new_system = bool(system) and not _knows_system(str(system), parent, messages)
    if retry and not _only_results(after):
        return _plan_retry(parent, after, features, is_new_system)
    question = after.pop() if after and after[-1].role == "user" else Message("user")
    text = "\n".join(part.text for part in question.parts if isinstance(part, TextPart))
    responses, attachments, after = _tool_responses(answer, after)
    if after and after[-1].role == "tool":  # results of calls that this server has not seen
        results = [part for part in after[-1].parts if isinstance(part, ToolResultPart)]
        attachments += [attachment for part in results for attachment in part.attachments]
        text = text or ("Go on from there." if results else "")
    attachments += [
        part.attachment
        for part in question.parts
        if isinstance(part, AttachmentPart) and part.attachment
    ]
    if not (text or attachments or responses):
        raise HuggingChatError("There is nothing to send. Give a prompt or an attachment.")
    transcripts = {**earlier_transcripts(messages), **transcripts}
    spoken = [_labelled_transcript(attachment, transcripts) for attachment in attachments]
    sent_system = parent.sent.system if parent else ""
    if is_new_system:
        new = Message("system", [TextPart(str(system))])
        if parent or any(message.role == "system" for message in messages):
            after, sent_system = [*after, new], _digest(str(system))
        else:
            after.insert(0, new)
    preprompt, changes = None, ""
    if parent is None:
        preprompt, after = _preprompt(after, features)
    elif changes := instructions(features, parent.sent):
        changes = f"[Instructions]\n{changes}\n[End of instructions]"
    texts = [*responses, transcript(after, transcripts), *spoken, changes, text]
    return Plan(
        parent,
        preprompt,
        "\n\n".join(filter(None, texts)),
        tuple(each for each, said in zip(attachments, spoken, strict=True) if not said),
        msgspec.structs.replace(features.sent, system=sent_system),
        features,
    )


def _preprompt(
    messages: list[Message], features: PromptedFeatures
) -> tuple[str | None, list[Message]]:
    """A new conversation's system prompt, and the messages that are not part of it."""
    leading = list(itertools.takewhile(lambda message: message.role == "system", messages))
    texts = [*map(_text_of, leading), instructions(features, SentInstructions())]
    return "\n\n".join(filter(None, texts)) or None, messages[len(leading) :]


def _knows_system(system: str, parent: Parent | None, messages: list[Message]) -> bool:
    """Has the model been given this system prompt already, or is it in the chain?"""
    if parent and parent.sent.system:
        return parent.sent.system == _digest(system)
    return any(system in _text_of(message) for message in messages if message.role == "system")


def _tool_responses(
    answer: Message | None, after: list[Message]
) -> tuple[list[str], list[llm.Attachment], list[Message]]:
    """Results of the calls in `answer`, for its model; their attachments; other messages."""
    calls = [
        part
        for part in (answer.parts if answer else ())
        if isinstance(part, ToolCallPart) and not part.server_executed
    ]
    responses: list[str] = []
    attachments: list[llm.Attachment] = []
    messages = list(after)
    for message in itertools.takewhile(lambda message: message.role == "tool", after):
        others: list[Part] = []
        for part in message.parts:
            call = next((each for each in calls if _is_result(part, each)), None)
            if call is None or not isinstance(part, ToolResultPart):
                others.append(part)
                continue
            calls.remove(call)
            responses.append(tool_response(part, _string(_metadata(call).get("problem"))))
            attachments += part.attachments
        if others != message.parts:
            index = messages.index(message)
            messages[index : index + 1] = [Message("tool", others)] if others else []
    return responses, attachments, messages


def _is_result(part: Part, call: ToolCallPart) -> bool:
    """Is a part the result of this call: by its id, or by its name if it has none?"""
    if not isinstance(part, ToolResultPart) or part.tool_call_id != call.tool_call_id:
        return False
    return bool(call.tool_call_id) or part.name == call.name


def _plan_retry(
    parent: Parent | None, after: list[Message], features: PromptedFeatures, new_system: bool
) -> Plan:
    """Another answer to the same question: chat-ui takes no other text with it."""
    if any(message.role == "user" for message in after):
        raise HuggingChatError(
            "-o retry true asks again for the last answer, so it takes no words of its own. "
            "Run: llm -c '' -o retry true"
        )
    if parent is None or after:
        raise HuggingChatError(
            "There is nothing to retry: the last answer did not come from this server."
        )
    if new_system:
        raise HuggingChatError(
            "-o retry true asks the last question again as it was, so it takes no system prompt."
        )
    if features.sent.tools != parent.sent.tools:
        given = "the same -T and --functions" if parent.sent.tools else "no -T and no --functions"
        raise HuggingChatError(
            "-o retry true asks the last question again as it was, with the same local tools. "
            f"Give {given}."
        )
    schema = features.schema or parent.sent.schema
    features = msgspec.structs.replace(features, schema=schema)
    return Plan(parent, None, "", sent=parent.sent, features=features, retry=True)


# --- decoder: bytes, cut anywhere -> events -------------------------------------------


@frozen
class Text:
    """A piece of the answer, with its `<think>` tags if it has any."""

    text: str


@frozen
class Reasoning:
    """A piece of thinking that came as an event of its own."""

    text: str


@frozen
class ToolCall:
    """The model called a tool on the server."""

    id: str
    name: str
    arguments: dict[str, Any]


@frozen
class ToolResult:
    """What a tool gave back: its output as text, or why it failed."""

    id: str
    name: str
    output: str
    error: str | None = None


@frozen
class File:
    """A file in the answer."""

    name: str
    sha: str


@frozen
class Title:
    """The conversation's title; it may change it, and may come after the final answer."""

    title: str


@frozen
class RouterMetadata:
    """Who answered. An empty field says nothing: it is unknown, not gone."""

    route: str
    model: str
    provider: str


@frozen
class FinalAnswer:
    """The answer as stored; with tools, only the part after the last one."""

    text: str
    interrupted: bool


@frozen
class Failed:
    """The model failed, with HTTP status 200 around it."""

    message: str
    status: int | None = None


@frozen
class Progress:
    """How far a tool has come: `done`, of `total` if that is known, and its own words."""

    id: str
    done: float
    total: float | None = None
    message: str = ""


@frozen
class Choice:
    """One of those that a field is chosen from: what is sent, and what is shown."""

    value: str
    label: str


@frozen
class AskedField:
    """A field of a tool's form, as chat-ui makes it of MCP's schemas (McpElicitation.ts).

    `kind` is string, number, boolean or select; `format` a string's: email, uri, date or
    date-time. `least` and `most` are limits: of a string's length in UTF-16 units, of a
    number, or of how many are selected. `default` is a value of the field's kind.
    """

    kind: str
    name: str
    title: str = ""
    description: str = ""
    required: bool = False
    least: float | None = None
    most: float | None = None
    format: str = ""
    integer: bool = False
    multiple: bool = False
    choices: tuple[Choice, ...] = ()
    default: str | float | bool | tuple[str, ...] | None = None


@frozen
class Elicitation:
    """A tool asks the person something: to fill in a form, or to open an address.

    `mode` is form or url, and empty where the question makes no sense here. `until` is when
    the server stops to wait, in seconds since 1970; None if it does not wait at all, but
    ends the run, which the answer resumes.
    """

    id: str
    server: str
    message: str
    mode: str = ""
    fields: tuple[AskedField, ...] = ()
    url: str = ""
    until: float | None = None

    @property
    def question(self) -> str:
        """Who asks what, in one line."""
        return ": ".join(filter(None, (self.server, self.message, self.url)))


@frozen
class ElicitationResolved:
    """A question is closed. `resolution` says by whom or what: user, expired, aborted (the
    run was stopped) or withdrawn (the tool did not wait any longer)."""

    id: str
    resolution: str


@frozen
class Parked:
    """Not from the server: the run has ended with questions open; their answers resume it."""

    questions: tuple[Elicitation, ...]


@frozen
class Resumed:
    """Not from the server: what follows is another run, which goes on with the same answer.

    `length` is that of the stored text before it, in UTF-16 units.
    """

    length: int


@frozen
class Finished:
    """The run is over, and stored. After a model that died, no final answer came before."""


@frozen
class KeepAlive:
    """Anything else that shows a run at work."""


@frozen
class Replay:
    """Not from the server: what follows repeats the run from its start."""


@frozen
class LogEnd:
    """The end of an event log: completed, error, interrupted or gone."""

    status: str


Event = (
    Text
    | Reasoning
    | ToolCall
    | LocalToolCall
    | ToolResult
    | File
    | Title
    | RouterMetadata
    | FinalAnswer
    | Failed
    | Progress
    | Elicitation
    | ElicitationResolved
    | Parked
    | Finished
    | KeepAlive
    | Replay
    | Resumed
)
"""What a run's stream and its log tell."""
# Events after which no text continues a piece.
ENDS_TEXT = (ToolCall, ToolResult, LocalToolCall, File, FinalAnswer)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number that JSON cannot say")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value")


_strict = json.JSONDecoder(parse_float=_finite, parse_constant=_no_number)
# Models write line ends into strings.
_lenient = json.JSONDecoder(parse_float=_finite, parse_constant=_no_number, strict=False)
_MESSAGES = re.compile(rb'"messages"[ \t\n\r]*:[ \t\n\r]*\[')
_BLANK = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,")
_LIST_END = re.compile(r"[ \t\n\r]*\]")
# chat-ui keeps a mark for every token of an answer.
_MARK = '{"type":"stream","token":"","len":'
_WHOLE_MARK = re.compile(rf"{re.escape(_MARK)}[0-9]{{1,9}}\}},?")
_IN_QUOTES = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
WINDOW = 500_000  # bytes of a long conversation that are looked at together


class TooRich(ValueError):
    """JSON whose values would take more memory than those of any real answer."""


def read_json(text: str | bytes | bytearray) -> Any:
    """The value in JSON text. Raises ValueError, also for text that is nested too deeply.

    NaN and Infinity are none, and neither is a number too large for a float: logged, they
    would make rows that SQLite cannot read. TooRich, before it is read, for a little text
    that would become very much: an empty list has two bytes there, and 88 in memory.

    While JSON is being read no other thread is at work. A long conversation takes a quarter
    of a second, so in what is large the items of `messages` are read one by one.
    """
    try:
        if not isinstance(text, str):
            found = _MESSAGES.search(text) if len(text) > LARGE else None
            if found:
                return _read_sliced(text, found.end())
            if _width(text) > JSON_MEMORY:
                raise TooRich("too much of it")
            text = text.decode("utf-8-sig")
        return _decoder().decode(_affordable(text)) if len(text) > LARGE else _strict.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _read_sliced(data: bytes | bytearray, start: int) -> Any:
    """The value in `data`, the items of a list that begins at `start` read one by one."""
    decoder, items, cost, begin = _decoder(), list[Any](), len(data), start
    text, here, size = "", 0, 0  # a window: the text from byte `start` on, in `size` bytes
    while True:
        here = _end_of(_BLANK, text, here)
        try:
            item, end = decoder.raw_decode(text, here)
            comma = _COMMA.match(text, end)
            last = _LIST_END.match(text, end)
        except TooRich:
            raise
        except ValueError:
            comma = last = None
            if not items and _LIST_END.match(text, here):
                break
        if comma or last:
            cost += 160 + json_cost(text[here:end])
            if cost + _width(text) > JSON_MEMORY:
                raise TooRich("too much of it")
            items.append(item)
            here = comma.end() if comma else end
            if last:
                break
        elif start + size >= len(data):
            raise ValueError("it has no end")
        else:  # the window ends in the middle of the item
            passed = len(text[:here].encode("utf-8"))
            start += passed
            size = WINDOW if passed or not size else 2 * size
            final = start + size >= len(data)
            text, _ = codecs.utf_8_decode(data[start : start + size], "strict", final)
            here = 0
    start += len(text[:here].encode("utf-8"))
    mark = uuid.uuid4().hex
    around = data[:begin] + f'"{mark}"'.encode() + data[start:]
    if cost + _width(around) > JSON_MEMORY:
        raise TooRich("too much of it")
    value = decoder.decode(_affordable(around.decode("utf-8-sig"), cost))
    holder = _mapping(unwrap(value))
    if holder.get("messages") != [mark]:  # they are somewhere else
        del items, value
        return read_json(data.decode("utf-8-sig")) if _width(data) < JSON_MEMORY else None
    holder["messages"] = items
    return value


def _decoder() -> json.JSONDecoder:
    """Reads a long text: the marks in it, which nobody changes, are one object each length."""
    marks: dict[int, dict[str, Any]] = {}

    def shared(value: dict[str, Any]) -> dict[str, Any]:
        if len(value) == 3 and value.get("token") == "" and value.get("type") == "stream":
            length = value.get("len")
            if type(length) is int:
                if len(marks) > 10_000:
                    raise TooRich("too many kinds of marks")
                return marks.setdefault(length, value)
        return value

    return json.JSONDecoder(parse_float=_finite, parse_constant=_no_number, object_hook=shared)


def _width(text: str | bytes | bytearray) -> int:
    """Bytes that text takes in memory, at most."""
    return len(text) if text.isascii() else 4 * len(text)


def json_cost(text: str) -> int:
    """Bytes that the values in JSON text take in memory, at most. Marks are shared.

    It is what CPython 3.10 to 3.14 need for what a bracket, a comma or a colon can stand
    for, and for the characters. Those in strings are counted as well, unless they make much
    of it.
    """
    marks, bare = text.count(_MARK), text
    if len(text) < 2 * WINDOW:  # else this itself would take too much
        bare = _WHOLE_MARK.sub("", text) if marks else text
        if _structure(bare) > 2 * len(bare):
            return 8 * marks + _width(bare) + _structure(_IN_QUOTES.sub('""', bare))
        return 8 * marks + _width(bare) + _structure(bare)
    return 8 * marks + _width(text) + max(0, _structure(text) - marks * _structure(_MARK + "},"))


def _structure(text: str) -> int:
    """The part of it that is not for characters."""
    n = text.count
    return 160 * n("[") + 190 * n("{") + 96 * n(",") + 160 * n(":")


def _affordable(text: str, spent: int = 0) -> str:
    """`text`, when it fits into memory with its values. Raises TooRich."""
    if spent + _width(text) + json_cost(text) > JSON_MEMORY:
        raise TooRich("too much of it")
    return text


def event_of(update: Any) -> Event | None:
    """The event in one decoded line, or None for what is unknown or makes no sense."""
    if not isinstance(update, dict):
        return None
    kind, subtype = update.get("type"), update.get("subtype")
    if kind == "stream":
        # chat-ui pads tokens with NUL characters to hide their length on the wire.
        token = _string(update.get("token")).rstrip("\0")
        return Text(token) if token else KeepAlive()
    if kind == "reasoning" and subtype == "stream":
        token = _string(update.get("token")).rstrip("\0")
        return Reasoning(token) if token else KeepAlive()
    if kind == "tool":
        return _tool_event(update)
    if kind == "file" and (sha := known_id(update.get("sha"))):
        return File(_string(update.get("name")) or "file", sha)
    if kind == "title":
        return Title(plain(re.sub(r"</?think>", "", _string(update.get("title"))), 200))
    if kind == "routerMetadata":
        return router_metadata(update)
    if kind == "finalAnswer":
        return FinalAnswer(_string(update.get("text")), update.get("interrupted") is True)
    if kind == "status" and update.get("status") == "error":
        status = update.get("statusCode")
        message = plain(_string(update.get("message")))
        return Failed(message, status if isinstance(status, int) else None)
    if kind == "status" and update.get("status") == "finished":
        return Finished()
    if kind == "elicitation" and subtype == "request":
        return _asked(update)
    if (
        kind == "elicitation"
        and subtype == "resolved"
        and (id := known_id(update.get("elicitationId")))
    ):
        return ElicitationResolved(id, plain(_string(update.get("resolution")), 50))
    return KeepAlive() if kind in ("status", "reasoning") else None


def router_metadata(value: dict[str, Any]) -> RouterMetadata:
    """Who answered, as an event or a stored answer says it."""
    return RouterMetadata(
        *(plain(_string(value.get(x)), 200) for x in ("route", "model", "provider"))
    )


def _tool_event(update: dict[str, Any]) -> Event | None:
    subtype, id = update.get("subtype"), known_id(update.get("uuid"))
    if update.get("uuid") and not id:
        return None
    if subtype == "call":
        call = _mapping(update.get("call"))
        arguments = _mapping(call.get("parameters"))
        try:
            # The raw string keeps what chat-ui drops from `parameters`: nested values.
            raw = read_json(_string(update.get("argumentsRaw")) or "null")
        except ValueError:
            raw = None
        return ToolCall(id, _string(call.get("name")), raw if isinstance(raw, dict) else arguments)
    if subtype == "error":
        return ToolResult(id, "", "", _string(update.get("message")) or "the tool failed")
    if subtype == "result":
        result = _mapping(update.get("result"))
        name = _string(_mapping(result.get("call")).get("name"))
        if result.get("status") == "error":
            return ToolResult(id, name, "", _string(result.get("message")) or "the tool failed")
        outputs = map(_output_text, _mappings(result.get("outputs")))
        return ToolResult(id, name, "\n".join(filter(None, outputs)))
    done = _number(update.get("progress"))
    if subtype == "progress" and done is not None:
        return Progress(
            id, done, _number(update.get("total")), plain(_string(update.get("message")))
        )
    return KeepAlive()


FIELDS = 100  # fields that a form may have here, and choices ten times as many; chat-ui: 32, 100
FORM_LIMIT = 200_000  # characters in all fields of a form, a choice having 50 more
DEFAULT_LIMIT = 2000  # characters of a text that is there already: the formats are slow to check
QUESTIONS = 50  # that tools may ask in one answer


def _asked(update: dict[str, Any]) -> Elicitation:
    """A tool's question. Whatever makes no sense leaves it without a `mode`."""
    request = _mapping(update.get("request"))
    id, mode = known_id(request.get("elicitationId")), _string(request.get("mode"))
    address, until = _string(request.get("url")), _number(update.get("expiresAt"))
    read = [_asked_field(each) for each in _mappings(request.get("fields"))[: FIELDS + 1]]
    fields = tuple(each for each in read if each)
    apart = len({each.name for each in fields}) == len(read) <= FIELDS
    small = sum(map(_size_of_field, fields)) <= FORM_LIMIT
    whole = len(address) <= 2000  # what is opened is what is shown
    sound = apart and small if mode == "form" else mode == "url" and whole and leads_to(address)
    return Elicitation(
        id,
        plain(_string(request.get("server")), 100),
        plain(_string(request.get("message")), 2000),
        mode if id and sound else "",
        fields if sound else (),
        plain(address, 2000),
        until and until / 1000,
    )


def _asked_field(told: dict[str, Any]) -> AskedField | None:
    """A field of a form, or None for one that makes no sense."""
    kind, name, multiple = told.get("kind"), told.get("name"), told.get("multiple") is True
    listed = _list(told.get("options"))
    if len(listed) > 10 * FIELDS:
        return None
    choices = tuple(
        Choice(option["value"], plain(_string(option.get("label")) or option["value"], 200))
        for option in _mappings(listed)
        if isinstance(option.get("value"), str)
    )
    limits = {"string": "Length", "number": "imum", "select": "Items"}
    if not (isinstance(name, str) and name) or kind not in (*limits, "boolean"):
        return None
    if kind == "select" and not 0 < len(choices) == len(listed):
        return None
    default = told.get("default")
    if isinstance(default, list) and all(isinstance(each, str) for each in default):
        default = tuple(default) if len(default) <= len(choices) else None
    elif isinstance(default, str) and len(default) > DEFAULT_LIMIT:
        default = None
    return AskedField(
        kind,
        name,
        plain(_string(told.get("title")), 200) or plain(name, 200),
        plain(_string(told.get("description")), 1000),
        told.get("required") is True,
        _number(told.get(f"min{limits.get(kind)}")),
        _number(told.get(f"max{limits.get(kind)}")),
        _string(told.get("format")),
        told.get("integer") is True,
        multiple,
        choices,
        default if isinstance(default, (str, bool, tuple)) else _number(default),
    )


def _size_of_field(asked: AskedField) -> int:
    """How many characters of a field are kept, more or less."""
    default = asked.default if isinstance(asked.default, tuple) else ()
    chosen = sum(50 + len(choice.value) + len(choice.label) for choice in asked.choices)
    return len(asked.name) + len(asked.format) + chosen + sum(map(len, default))


def _output_text(output: dict[str, Any]) -> str:
    """One output of a tool as text; links to sources are kept."""
    said = [_string(output.get("text"))]
    for item in _mappings(output.get("content")):
        inner = _mapping(item.get("resource")) or item
        link = _string(inner.get("uri"))
        if item.get("type") == "image":
            said.append(f"[image: {_string(item.get('mimeType')) or 'unknown type'}]")
        elif link:
            label = _string(inner.get("title")) or _string(inner.get("name")) or link
            said.append(f"[{label}]({link})")
            said.append(_string(inner.get("text")))
    for source in _mappings(output.get("sources")):
        link = _string(source.get("link")) or _string(source.get("url"))
        if link:
            said.append(f"[{_string(source.get('title')) or link}]({link})")
    if not any(said) and output:
        return json.dumps(output, ensure_ascii=False)
    return "\n".join(filter(None, said))


class Lines:
    """Bytes, cut anywhere, to whole lines. Only `\\n` ends a line: U+2028 does not."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in `data`, without their ends."""
        if b"\n" not in data:
            self._rest += data
            return []
        *lines, rest = (bytes(self._rest) + data).split(b"\n")
        self._rest = bytearray(rest)
        return lines

    def end(self) -> bytes:
        """What stands after the last line end; a cut may have taken only that."""
        rest, self._rest = bytes(self._rest), bytearray()
        return rest


def _decoded(line: bytes) -> Event | None:
    try:
        # 4,096 spaces without a line end follow a final answer; json ignores them.
        return event_of(read_json(line.decode("utf-8", "replace")))
    except ValueError:
        return None


class JsonLinesDecoder:
    """The answer to a message: `application/jsonl`, an event a line. They have no numbers."""

    seq = 0

    def __init__(self) -> None:
        self._lines = Lines()

    def feed(self, data: bytes) -> list[Event]:
        """The events that end in `data`. Raises nothing."""
        return [event for line in self._lines.feed(data) if (event := _decoded(line))]

    def end(self) -> list[Event]:
        """The event that stands after the last line end, if it is whole."""
        event = _decoded(self._lines.end())
        return [event] if event else []


def joined(events: Iterable[Event | LogEnd]) -> Iterator[Event | LogEnd]:
    """`events` that came at the same moment: text that is cut among them is one piece.

    A model may be faster than its reader. What has piled up then costs little more than one.
    """
    for kind, alike in itertools.groupby(events, key=type):
        if kind is Text:
            yield Text("".join(cast(Text, event).text for event in alike))
        else:
            yield from alike


class EventStreamDecoder:
    """A run's event log: server-sent events. `seq` is the number of the last whole one."""

    def __init__(self) -> None:
        self.seq = 0
        self._lines = Lines()
        self._id = ""
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[Event | LogEnd]:
        """The events that end in `data`, and the log's own end. Raises nothing."""
        events: list[Event | LogEnd] = []
        for line in self._lines.feed(data):
            line = line.removesuffix(b"\r")
            name, _, value = line.partition(b":")
            if name == b"event":
                self._name = value.strip().decode("utf-8", "replace")
            elif name == b"id":
                self._id = value.strip().decode("utf-8", "replace")
            elif name == b"data":
                self._data.append(value.removeprefix(b" "))
            elif line.startswith(b":") and not self._data:  # else no end of it would count
                events.append(KeepAlive())
            elif not line:
                events += self._dispatch()
        return events

    def _dispatch(self) -> list[Event | LogEnd]:
        line, name, id = b"\n".join(self._data), self._name, self._id
        self._data, self._name, self._id = [], "", ""
        if re.fullmatch(r"[0-9]{1,15}", id, re.ASCII):
            self.seq = int(id)
        if name != "end":
            event = _decoded(line)
            return [event] if event else []
        try:
            return [LogEnd(_string(_mapping(read_json(line)).get("status")))]
        except ValueError:
            return [LogEnd("")]

    def end(self) -> list[Event]:
        """Nothing: an event that did not come whole comes again."""
        return []


def messages_of(conversation: Any) -> list[dict[str, Any]]:
    """The messages in what `GET api/v2/conversations/ID` says, with or without an id."""
    return _mappings(_mapping(unwrap(conversation)).get("messages"))


def stored_answer(conversation: Any, generation_id: str | None) -> dict[str, Any] | None:
    """The message that a run wrote, in what `GET api/v2/conversations/ID` says."""
    for message in messages_of(conversation):
        if generation_id and message.get("generationId") == generation_id:
            return message
    return None


def updates_of(message: dict[str, Any] | None) -> list[Any]:
    """The events that are stored with an answer."""
    return _list(_mapping(message).get("updates"))


def stored_events(message: dict[str, Any], after: int = 0) -> tuple[list[Event], bool]:
    """The events of a stored answer, and whether it is complete.

    chat-ui keeps an answer's text once, in `content`, and in `updates` a marker with
    the length, in UTF-16 units, of each piece in its place among the other events.
    The first `after` updates are left out with their text: an earlier run made them.
    """
    content = _string(message.get("content")).encode("utf-16-le", "surrogatepass")
    at, events, finished, reasoned = 0, list[Event](), False, bool(after)
    final: FinalAnswer | None = None
    open_questions: dict[str, Elicitation] = {}
    for number, update in enumerate(updates_of(message)):
        if _mapping(update).get("type") == "stream":
            length = update.get("len")
            if isinstance(length, int) and length >= 0:
                piece = content[at : at + 2 * length]
                at += len(piece)
                if number >= after:
                    events.append(Text(piece.decode("utf-16-le", "surrogatepass")))
            continue
        if number < after:
            continue
        event = event_of(update)
        if isinstance(event, FinalAnswer):
            final = event
            continue
        if isinstance(event, Finished):
            finished = True
            continue
        if isinstance(event, Elicitation):
            open_questions[event.id] = event
        elif isinstance(event, ElicitationResolved):
            if finished:  # this is how a run begins that resumes the one before
                final, finished = None, False
            open_questions.pop(event.id, None)
        reasoned = reasoned or isinstance(event, Reasoning)
        if event:
            events.append(event)
    if content[at:]:
        events.append(Text(content[at:].decode("utf-16-le", "surrogatepass")))
    if not reasoned and isinstance(message.get("reasoning"), str):
        events.insert(0, Reasoning(message["reasoning"]))
    over = bool(final or finished or message.get("interrupted") is True)
    if finished and not final and open_questions:
        events.append(Finished())
    elif over:
        # The stored text is whole, so the final answer has nothing to add to it. Without
        # one, the model died on the way, or the server did.
        cut = final is None or final.interrupted or message.get("interrupted") is True
        events.append(FinalAnswer("", cut))
    return events, over


def is_settled(message: dict[str, Any] | None, after: int = 0) -> bool:
    """Is a stored answer's run over, the one that made the updates beyond the first `after`?

    chat-ui stores a run's messages only then, with its own copy of all the others: a
    message that is sent earlier loses the answer before it, or is lost itself. One that
    resumes the run before it begins with what became of the question.
    """
    settled = False
    for update in map(_mapping, updates_of(message)[after:]):
        if update.get("type") == "elicitation" and update.get("subtype") == "resolved":
            settled = False
        elif update.get("type") == "status" and update.get("status") in ("finished", "error"):
            settled = True
    return settled


# --- stages: events, perhaps replayed -> the answer's events, each once ---------------

OPEN, CLOSE = "<think>", "</think>"


class Filter(Protocol):
    """A part of the way from what a run tells to what is given of it.

    Text may be cut anywhere. A stage holds back what it cannot judge yet, and gives it
    before an event that ends a piece of text, or when it is told that there is no more.
    """

    def feed(self, event: Event) -> list[Event]:
        """What the next event is for the stage after this one."""

    def end(self) -> list[Event]:
        """What was held back."""


class Replayed:
    """Text that comes in pieces, and after `rewind` once more from its start.

    `pieces` is what came, each part once. NUL characters are padding, which the log leaves
    out, so they do not count; neither does the first half of a surrogate pair, till the
    other half comes.
    """

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._half = ""
        self._skip = 0

    def rewind(self) -> None:
        """All that came comes once more from here on."""
        self._half, self._skip = "", sum(map(len, self.pieces))

    def take(self, text: str) -> str:
        """What is new in the next piece."""
        text = self._half + text.replace("\0", "")
        self._half = ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return self._new(text)

    def end(self) -> str:
        """What is new when no further piece belongs to the last one: a half is a character."""
        half, self._half = self._half, ""
        return self._new(half)

    def all_new(self) -> None:
        """Nothing is repeated from here on."""
        self._skip = 0

    def _new(self, text: str) -> str:
        text = join_surrogates(text)
        passed = min(self._skip, len(text))
        self._skip -= passed
        if text := text[passed:]:
            self.pieces.append(text)
        return text


class Deduplicator:
    """Passes each event of a run on once.

    A run's log repeats it from the start, its text in other pieces; `Again` says that this
    begins. What was already given is then passed over: text and reasoning by their
    length, tool events by their id, files by their number.
    """

    def __init__(self) -> None:
        self._text = Replayed()  # as it came, tags included
        self._segment: list[str] = []  # the part of it after the last tool
        self._reasoning = Replayed()  # what came as events of its own
        self._tools: dict[tuple[str, type], str] = {}  # given tool events -> the tool's name
        self._files = self._skip_files = 0
        self._earlier = 0  # length of the text that earlier runs gave

    @property
    def begun(self) -> bool:
        """Has anything been given?"""
        now = self._text.pieces or self._reasoning.pieces or self._tools or self._files
        return bool(now or self._earlier)

    @property
    def seen_length(self) -> int:
        """Length of the text given, in UTF-16 units: chat-ui's `seenContentLength`."""
        return self._earlier + utf16_length("".join(self._text.pieces))

    def feed(self, event: Event) -> list[Event]:
        if isinstance(event, Text):
            return self._said(self._text.take(event.text))
        if isinstance(event, Reasoning):
            thought = self._reasoning.take(event.text)
            return [Reasoning(thought)] if thought else []
        if isinstance(event, Replay):
            self._text.rewind()
            self._reasoning.rewind()
            self._skip_files = self._files
            return []
        if isinstance(event, Resumed):
            held, self._earlier = self.end(), event.length
            self._text, self._segment, self._reasoning = Replayed(), [], Replayed()
            self._files = self._skip_files = 0
            return held
        held = self.end() if isinstance(event, ENDS_TEXT) else []
        if isinstance(event, (ToolCall, ToolResult)):
            return [*held, *self._tool(event)]
        if isinstance(event, File):
            self._files += not self._skip_files
            if self._skip_files:
                self._skip_files -= 1
                return held
        if isinstance(event, FinalAnswer):
            return [*held, *self._rest(event), event]
        return [*held, event]

    def end(self) -> list[Event]:
        reasoning = self._reasoning.end()
        held: list[Event] = [Reasoning(reasoning)] if reasoning else []
        return held + self._said(self._text.end())

    def _said(self, text: str) -> list[Event]:
        if not text:
            return []
        self._segment.append(text)
        return [Text(text)]

    def _tool(self, event: ToolCall | ToolResult) -> list[Event]:
        key = (event.id, type(event))
        if key in self._tools:
            return []
        self._tools[key] = name = event.name or self._tools.get((event.id, ToolCall), "")
        self._segment = []
        return [replace(event, name=name)]

    def _rest(self, final: FinalAnswer) -> list[Event]:
        """Text that was never streamed: it is in the final answer alone."""
        everything = "".join(self._text.pieces)
        # Of a run that was stopped, chat-ui tells the whole text, cut where the stop says.
        segment = everything if final.interrupted else "".join(self._segment)
        text = join_surrogates(final.text.replace("\0", ""))
        if everything.endswith(text) or not text.startswith(segment):
            return []
        self._text.all_new()
        return self._said(self._text.take(text[len(segment) :])) + self.end()


class ThinkTags:
    """Splits `<think>...</think>` off text whose pieces may cut a tag anywhere.

    A tag opens reasoning only where a model starts to think: at the beginning, after a
    tool, and after other reasoning. Elsewhere `<think>` is a word that the answer uses.
    """

    def __init__(self) -> None:
        self._state = "start"
        self._held = ""

    def feed(self, event: Event) -> list[Event]:
        if isinstance(event, Text):
            return self._split(event.text)
        held = self.end() if isinstance(event, ENDS_TEXT) else []
        if isinstance(event, (ToolCall, ToolResult)):
            self._state = "start"
        return [*held, event]

    def end(self) -> list[Event]:
        held, kind = self._held, Reasoning if self._state == "thinking" else Text
        self._held = ""
        return [kind(held)] if held else []

    def _split(self, text: str) -> list[Event]:
        if self._state == "text":
            return [Text(text)]
        pieces: list[Event] = []
        self._held += text
        while self._held:
            if self._state == "start":
                body = self._held.lstrip()
                if space := self._held[: len(self._held) - len(body)]:
                    pieces.append(Text(space))
                self._held = body
                if body.startswith(OPEN):
                    self._state, self._held = "thinking", body[len(OPEN) :]
                elif OPEN.startswith(body):
                    break
                else:
                    self._state = "text"
            elif self._state == "thinking":
                inside, closed, rest = self._held.partition(CLOSE)
                kept = 0 if closed else _overlap(inside, CLOSE)
                if shown := inside[: len(inside) - kept]:
                    pieces.append(Reasoning(shown))
                self._held = rest if closed else inside[len(inside) - kept :]
                if not closed:
                    break
                self._state = "start"
            else:
                pieces.append(Text(self._held))
                self._held = ""
        return pieces


class Paragraphs:
    """Sets the text before a tool and the text after it apart by an empty line.

    The web page shows a tool between them; as chat-ui stores them, they are one word after
    the other. What the model writes of line ends itself counts.
    """

    def __init__(self) -> None:
        self._said = False  # something that is no space was given
        self._lines = 0  # line ends at the end of what was given
        self._after_tool = False  # no text followed yet
        self._space = ""  # how the text after a tool begins

    def feed(self, event: Event) -> list[Event]:
        if isinstance(event, Text):
            return self._text(event.text)
        if isinstance(event, File):  # its link will stand in a line of its own
            missing = 1 - self._lines if self._after_tool and self._said else 0
            held: list[Event] = [*self.end(), *([Text("\n")] if missing > 0 else [])]
            self._said, self._lines, self._after_tool = True, 1, False
            return [*held, event]
        held = self.end() if isinstance(event, ENDS_TEXT) else []
        if isinstance(event, (ToolCall, ToolResult)):
            self._after_tool = True
        return [*held, event]

    def end(self) -> list[Event]:
        space, self._space = self._space, ""
        self._lines += space.count("\n")
        return [Text(space)] if space else []

    def _text(self, text: str) -> list[Event]:
        if not self._after_tool:
            return self._given(text)
        self._space += text
        if not self._space.strip():
            return []
        text, self._space, self._after_tool = self._space, "", False
        begun = text[: len(text) - len(text.lstrip())].count("\n")
        missing = 2 - self._lines - begun if self._said else 0
        return self._given("\n" * max(missing, 0) + text)

    def _given(self, text: str) -> list[Event]:
        words = text.rstrip()
        lines = text[len(words) :].count("\n")
        self._lines = lines if words else self._lines + lines
        self._said = self._said or bool(words)
        return [Text(text)]


# old
class Artifacts:
    """ArtifactFilter between events."""

    def __init__(self, link: Callable[[File], str]) -> None:
        self._filter = ArtifactFilter()
        self._link = link

    def feed(self, event: Event) -> list[Event]:
        if isinstance(event, Text | File):
            text = (
                self._filter.feed(event.text)
                if isinstance(event, Text)
                else self._filter.insert(self._link(event))
            )
            return [Text(text)] if text else []
        return [*(self.end() if isinstance(event, ENDS_TEXT) else []), event]

    def end(self) -> list[Event]:
        text = self._filter.end()
        return [Text(text)] if text else []


# old
class CallStage:
    """ToolCallFilter between events."""

    def __init__(self, names: Iterable[str]) -> None:
        self._filter = ToolCallFilter(names)

    def feed(self, event: Event) -> list[Event]:
        if isinstance(event, Text):
            text = self._filter.feed(event.text)
            return [Text(text)] if text else []
        cut = isinstance(event, FinalAnswer) and event.interrupted
        return [*(self.end(cut) if isinstance(event, ENDS_TEXT) else []), event]

    def end(self, cut: bool = False) -> list[Event]:
        text, calls = self._filter.end(cut)
        return [*([Text(text)] if text else []), *calls]


# old
class DocumentStage:
    """find_document at the end of an answer."""

    def __init__(self, problem_of: Callable[[Any], str]) -> None:
        self.done = False
        self.problem = self.said = ""
        self._problem_of = problem_of

    def feed(self, event: Event) -> list[Event]:
        if isinstance(event, Text):
            self.said += event.text
            return []
        self.done = self.done or isinstance(event, LocalToolCall)
        shown = [] if isinstance(event, File) else [event]
        return [*(self.end() if isinstance(event, FinalAnswer) else []), *shown]

    def end(self) -> list[Event]:
        if self.done:
            return []
        document = find_document(self.said, self._problem_of)
        self.problem, self.done = document.problem, document.text is not None
        return [Text(document.text)] if document.text is not None else []


# old
class Measured:
    """Passes events on. Raises TooMuch when an answer is longer than any real one."""

    def __init__(self) -> None:
        self.size = 0  # characters

    def feed(self, event: Event) -> list[Event]:
        self.size += _size_of(event)
        if self.size > ANSWER_LIMIT:
            raise TooLarge(
                f"The answer does not end: it has {self.size:,} characters, more than any real one."
            )
        return [event]

    def end(self) -> list[Event]:
        return []


class Gathered:
    """Gives the text of a long answer in larger pieces: for each, llm keeps half a kilobyte.

    What else comes is given at once, and so is what was held back before it; a server at
    work says something every tenth of a second. Raises TooMuch for an answer without end.
    """

    def __init__(self) -> None:
        self._given = 0
        self._held = ""
        self._kind: type[Text] | type[Reasoning] = Text

    def feed(self, event: Event) -> list[Event]:
        if self._given > 5 * MANY:
            raise TooLarge(
                f"The answer does not end: it has {self._given:,} pieces, more than any real one."
            )
        if not isinstance(event, Text | Reasoning):
            self._given += isinstance(event, ENDS_TEXT)  # llm keeps no others
            return [*self.end(), event]
        before = self.end() if not isinstance(event, self._kind) else []
        self._kind = type(event)
        self._held += event.text
        enough = 1000 if self._given > MANY else 1
        return [*before, *(self.end() if len(self._held) >= enough else ())]

    def end(self) -> list[Event]:
        held, self._held = self._held, ""
        self._given += bool(held)
        return [self._kind(held)] if held else []


def _size_of(event: Event) -> int:
    """How many characters of an event are kept."""
    if isinstance(event, Text | Reasoning):
        return len(event.text)
    if isinstance(event, ToolCall | LocalToolCall):
        return 100 + len(event.name) + len(json.dumps(event.arguments))
    if isinstance(event, ToolResult):
        return 100 + len(event.name) + len(event.output) + len(event.error or "")
    if isinstance(event, File):
        return 100 + min(len(event.name), 200)
    return 0


# --- answer: a run's events -> llm's stream events ------------------------------------


class Answer:
    """What an answer consists of, and what a further event of its run adds to it.

    `file_link` gives the address of a file. `calls` are stages that take calls out of the
    text as the model wrote it: an artifact in an argument is no fence. `documents` are
    stages after those that every answer goes through.
    """

    def __init__(
        self,
        file_link: Callable[[File], str],
        calls: Iterable[Filter] = (),
        documents: Iterable[Filter] = (),
    ) -> None:
        self._file_link = file_link
        self._once = Deduplicator()
        self._measured = Measured()
        self._artifacts = Artifacts(self._link)
        self._stages: tuple[Filter, ...] = (
            self._once,
            self._measured,
            ThinkTags(),
            Paragraphs(),
            *calls,
            *(documents or [self._artifacts]),
            Gathered(),
        )
        self.title = ""
        self.router = RouterMetadata("", "", "")
        self.final: FinalAnswer | None = None
        self.calls: list[LocalToolCall] = []
        self.last_is_text = False

    @property
    def begun(self) -> bool:
        """Has anything been given?"""
        return self._once.begun

    @property
    def size(self) -> int:
        """How many characters it has, with reasoning, and what tools were given and gave."""
        return self._measured.size

    @property
    def seen_length(self) -> int:
        """Length of the text given, in UTF-16 units: chat-ui's `seenContentLength`."""
        return self._once.seen_length

    def take(self, event: Event) -> list[StreamEvent]:
        """What `event` adds, as llm's stream events. Raises TooMuch for an endless answer."""
        events = [event]
        for stage in self._stages:
            events = [out for each in events for out in stage.feed(each)]
        return self._noted(events)

    def end(self) -> list[StreamEvent]:
        """What was held back, when the run breaks off: a fence that was begun ends."""
        events: list[Event] = []
        for stage in self._stages:
            events = [out for each in events for out in stage.feed(each)] + stage.end()
        return self._noted(events)

    def _noted(self, events: Iterable[Event]) -> list[StreamEvent]:
        given = [out for each in events for out in self._given(each)]
        for out in given:
            if out.chunk or out.type == "tool_result":
                self.last_is_text = out.type == "text"
        return given

    def _link(self, file: File) -> str:
        label = re.sub(r"[\[\]]", "", plain(file.name, 200))
        return f"\n[{label}]({self._file_link(file)})\n"

    def _given(self, event: Event) -> list[StreamEvent]:
        if isinstance(event, Text):
            return [StreamEvent(type="text", chunk=event.text)]
        if isinstance(event, Reasoning):
            return [StreamEvent(type="reasoning", chunk=event.text)]
        if isinstance(event, ToolCall):
            return _call_events(event)
        if isinstance(event, LocalToolCall):
            self.calls.append(event)
            return _call_events(event)
        if isinstance(event, ToolResult):
            return [_result_event(event)]
        if isinstance(event, Title):
            self.title = event.title or self.title
        elif isinstance(event, RouterMetadata):
            # An empty field never overwrites a known one.
            known = self.router
            self.router = RouterMetadata(
                event.route or known.route,
                event.model or known.model,
                event.provider or known.provider,
            )
        elif isinstance(event, FinalAnswer):
            self.final = event
        return []


def _call_events(called: ToolCall | LocalToolCall) -> list[StreamEvent]:
    problem = called.problem if isinstance(called, LocalToolCall) else ""
    common: dict[str, Any] = {
        "tool_call_id": called.id or None,
        "server_executed": isinstance(called, ToolCall),
    }
    arguments = json.dumps(called.arguments, ensure_ascii=False, allow_nan=False)
    metadata = {"huggingchat": {"problem": problem}} if problem else None
    return [
        StreamEvent(type="tool_call_name", chunk=join_surrogates(called.name), **common),
        StreamEvent(
            type="tool_call_args",
            chunk=join_surrogates(arguments),
            provider_metadata=metadata,
            **common,
        ),
    ]


def hearing_events(name: str, id: str, text: str) -> list[StreamEvent]:
    """A transcription, as llm logs it: the server's work, so a tool's call and result.

    It stands right below the attachments in `llm logs`, and the next turns find it there.
    `name` and `id` are the attachment's.
    """
    called = ToolCall(_new_id(), TRANSCRIBE, {"file": name})
    events = [*_call_events(called), _result_event(ToolResult(called.id, TRANSCRIBE, text))]
    return [replace(event, provider_metadata={"huggingchat": {"heard": id}}) for event in events]


def _result_event(returned: ToolResult) -> StreamEvent:
    # llm's stream events have no field for a tool's failure, so it is in the output.
    error = returned.error and join_surrogates(returned.error)
    return StreamEvent(
        type="tool_result",
        chunk=f"Error: {error}" if error else join_surrogates(returned.output),
        tool_call_id=returned.id or None,
        tool_name=join_surrogates(returned.name),
        server_executed=True,
        provider_metadata={"huggingchat": {"error": error}} if error else None,
    )


# --- questions: what a tool asks -> words; what is typed -> values, checked -----------

_FORMATS = {
    "email": "an e-mail address",
    "uri": "an address like https://example.org",
    "date": "a date like 2026-11-26",
    "date-time": "date and time like 2026-11-26 09:30",
}
TypedValue = str | float | bool | list[str]


@frozen
class Answered:
    """What a person says to a question: `action` is accept, decline or cancel, as in MCP."""

    action: str
    content: dict[str, TypedValue] | None = None


def typed_value(asked: AskedField, typed: str) -> TypedValue | None:
    """The value that `typed` stands for in a field; None leaves the field out.

    Nothing typed is the default, if there is one. Raises ValueError: what is wrong, in words.
    """
    text = typed.strip()
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise ValueError("it holds control characters, as the arrow keys leave them")
    if not text:
        default = default_of(asked)
        if default is None and asked.required:
            raise ValueError("it has to be filled in; Ctrl-D declines instead")
        return default
    if asked.kind == "boolean":
        if (word := text.casefold()) not in ("y", "yes", "true", "n", "no", "false"):
            raise ValueError("type y or n")
        return word[0] in "yt"
    if asked.kind == "number":
        return _number_typed(asked, text)
    if asked.kind == "select":
        return _selected(asked, text)
    return _checked_text(asked, text)


def default_of(asked: AskedField) -> TypedValue | None:
    """The default of a field if it is one that the field itself allows, else none."""
    default = asked.default
    try:
        if asked.kind == "boolean":
            return default if isinstance(default, bool) else None
        if asked.kind == "number":
            number = _number(default)
            return None if number is None else _within(asked, number)
        if asked.kind == "string":
            return _checked_text(asked, default) if isinstance(default, str) and default else None
        known = [choice.value for choice in asked.choices]
        if asked.multiple:
            picked = default if isinstance(default, tuple) else ()
            return _enough(asked, [each for each in picked if each in known]) if picked else None
        return default if isinstance(default, str) and default in known else None
    except ValueError:
        return None


def _number_typed(asked: AskedField, text: str) -> float:
    whole = re.fullmatch(r"[+-]?[0-9]{1,20}", text, re.ASCII)
    if asked.integer and not whole:
        raise ValueError("it is no whole number")
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text, re.ASCII):
        raise ValueError("it is no number")
    number = _number(int(text) if whole else float(text))
    if number is None or (asked.integer and abs(number) > 2**53):  # JavaScript's limit
        raise ValueError("it is too large")
    return _within(asked, number)


def _within(asked: AskedField, number: float) -> float:
    too_small = asked.least is not None and number < asked.least
    if too_small or (asked.most is not None and number > asked.most):
        raise ValueError(f"it has to be {_limits(asked)}")
    if asked.integer and number != int(number):
        raise ValueError("it is no whole number")
    return number


def _checked_text(asked: AskedField, text: str) -> str:
    """Text as the field's format has it: chat-ui's own rules (elicitationSchema.ts)."""
    wanted = f"it is not {_FORMATS.get(asked.format, 'text')}"
    try:
        if asked.format == "date":
            with contextlib.suppress(ValueError):
                return datetime.date.fromisoformat(text).isoformat()
            text = _point_in_time(text).date().isoformat()
        elif asked.format == "date-time":
            text = _point_in_time(text).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        raise ValueError(wanted) from None
    if asked.format == "email" and not re.fullmatch(r"[^\s@]+@[^\s@]+\.[^\s@]+", text):
        raise ValueError(wanted)
    if asked.format == "uri" and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s]+", text):
        raise ValueError(wanted)
    length = utf16_length(text)
    if length < (asked.least or 0) or (asked.most is not None and length > asked.most):
        raise ValueError(f"it is {length} long, and has to have {_limits(asked)}")
    return text


def _point_in_time(text: str) -> datetime.datetime:
    """Date and time, in this machine's time zone unless it says which. Raises ValueError."""
    if ":" not in text:
        raise ValueError("no time of day")
    return datetime.datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text)).astimezone()


def _selected(asked: AskedField, text: str) -> str | list[str]:
    if not asked.multiple:
        return _choice(asked, text)
    with contextlib.suppress(ValueError):
        return _enough(asked, [_choice(asked, text)])  # its name may hold a comma
    words = filter(None, map(str.strip, text.split(",")))
    return _enough(asked, list(dict.fromkeys(_choice(asked, word) for word in words)))


def _choice(asked: AskedField, word: str) -> str:
    """The value of the choice that has this name, or else this number."""
    for same in (str, str.casefold):
        named = [c for c in asked.choices if same(word) in (same(c.label), same(c.value))]
        if len(named) == 1:
            return named[0].value
    if re.fullmatch(r"[0-9]{1,4}", word, re.ASCII) and 0 < int(word) <= len(asked.choices):
        return asked.choices[int(word) - 1].value
    raise ValueError(f"{plain(word, 60)!r} is none of them; give a number or a name")


def _enough(asked: AskedField, values: list[str]) -> list[str]:
    if len(values) < (asked.least or 0) or (asked.most is not None and len(values) > asked.most):
        raise ValueError(f"it has to be {_limits(asked)} of them")
    return values


def _limits(asked: AskedField) -> str:
    """A field's limits in words; none if it has none."""
    least, most = asked.least, asked.most
    unit = " characters" if asked.kind == "string" else ""
    if least is not None and most is not None:
        return f"{json.dumps(least)} to {json.dumps(most)}{unit}"
    if most is not None:
        return f"at most {json.dumps(most)}{unit}"
    told = least is not None and (least or asked.kind == "number")
    return f"at least {json.dumps(least)}{unit}" if told else ""


def field_words(asked: AskedField) -> tuple[list[str], str]:
    """What is shown for a field: lines above, and the words before what is typed."""
    kinds = {
        "string": _FORMATS.get(asked.format, "text"),
        "number": "a whole number" if asked.integer else "a number",
        "boolean": "y or n",
        "select": "some of them, with commas between" if asked.multiple else "one of them",
    }
    hints = [kinds[asked.kind], _limits(asked), "" if asked.required else "optional"]
    above = [asked.description] if asked.description else []
    above += [f"{number}. {c.label}" for number, c in enumerate(asked.choices, 1)]
    default = default_of(asked)
    shown = ""
    if isinstance(default, bool):
        shown = "y" if default else "n"
    elif asked.kind == "select" and default is not None:
        picked = default if isinstance(default, list) else [default]
        shown = ", ".join(c.label for c in asked.choices if c.value in picked)
    elif default is not None:
        shown = plain(default, 200)
    ending = f" [{shown}]" if shown else ""
    return above, f"{asked.title} ({', '.join(filter(None, hints))}){ending}: "


def about_address(url: str) -> str:
    """Where an address leads, and what is doubtful about it."""
    host = leads_to(url)
    name = host.rpartition(":")[0] or host if re.search(r":[0-9]+$", host) else host
    doubts = [
        "the connection is not encrypted" if url.lower().startswith("http:") else "",
        "its name may imitate another one" if re.search(r"(^|\.)xn--", name) else "",
        "it is in a private network" if _is_private(name) else "",
    ]
    return f"It leads to {host}" + "".join(f"; {doubt}" for doubt in doubts if doubt) + "."


# --- terminal: where a person sees tools at work, and answers their questions ---------


def _can_open() -> bool:
    """Is there a browser to open a page in?"""
    shown = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return shown or sys.platform in ("darwin", "win32")


def _open(url: str) -> None:
    import webbrowser

    webbrowser.open(url)


class Keyboard:
    """What is typed on the terminal that shows standard error, also where input is a pipe.

    The terminal is left as it is: it edits and echoes a line, and gives it when it is whole.
    Reading is left at any moment, as no thread waits for it where the loop can.
    """

    def __init__(self) -> None:
        """Raises OSError if there is no terminal to read from, or it is somebody else's."""
        self._file = self._opened()
        try:
            ours = os.tcgetpgrp(self._file.fileno()) == os.getpgrp()
        except (OSError, AttributeError):  # a terminal without jobs, or Windows
            ours = True
        if not ours:
            self.close()
            raise OSError("this process is in the background")

    def _opened(self) -> io.FileIO:
        names = ["CONIN$"] if os.name == "nt" else ["/dev/tty"]
        with contextlib.suppress(OSError, AttributeError):
            names.insert(0, os.ttyname(sys.stderr.fileno()))
        for name in names:
            with contextlib.suppress(OSError):
                return open(name, "rb", buffering=0, opener=_no_control)
        raise OSError("no terminal")

    def close(self) -> None:
        self._file.close()

    def forget(self) -> None:
        """Forget what was typed before it was asked for."""
        with contextlib.suppress(Exception):  # not on Windows, and not where it is no terminal
            import termios

            termios.tcflush(self._file.fileno(), termios.TCIFLUSH)

    async def line(self) -> str | None:
        """A line, without its end; None at the end of input (Ctrl-D). Raises ValueError
        when it is not text."""
        typed = b""
        while not typed.endswith((b"\n", b"\r")):
            piece = await self._piece()
            if not piece:
                if typed:
                    break
                return None
            typed += piece
        return typed.decode().rstrip("\r\n")

    async def _piece(self) -> bytes:
        loop = asyncio.get_running_loop()
        piece: asyncio.Future[bytes] = loop.create_future()

        def take(data: bytes) -> None:
            if not piece.done():
                piece.set_result(data)

        def read() -> None:
            try:
                data = self._file.read(4096) or b""
            except (OSError, ValueError):  # hung up
                data = b""
            with contextlib.suppress(RuntimeError):  # the loop is over
                loop.call_soon_threadsafe(take, data)

        try:
            loop.add_reader(self._file.fileno(), read)
        except (NotImplementedError, OSError):  # Windows; macOS for some terminals
            threading.Thread(target=read, daemon=True).start()
            return await piece
        try:
            return await piece
        finally:
            loop.remove_reader(self._file.fileno())


def _no_control(path: str, flags: int) -> int:
    """Open a terminal without becoming its process."""
    return os.open(path, flags | getattr(os, "O_NOCTTY", 0))


def fit(text: str, columns: int) -> str:
    """The beginning of a line that `columns` of a terminal have room for."""
    width, kept = 0, ""
    for char in text[: 4 * columns]:  # what has no width has an end as well
        wide = unicodedata.east_asian_width(char) in ("W", "F")
        width += 0 if unicodedata.combining(char) else 1 + wide
        if width > columns:
            return kept[:-1] + "…"
        kept += char
    return kept


AtWork = ToolCall | Progress | ToolResult  # what tells of a tool on the server


@frozen
class Aside:
    """Not for llm: `act` is to be called where the answer is taken, after all before it."""

    act: Callable[[], object]


Given = StreamEvent | Aside
REWRITE = "\r\x1b[2K"  # back to the beginning of the line, which is empty then
PROGRESS = " "  # no tool's id: a line that several share
AT_ONCE = 100  # tools whose progress is shown at a time


class Screen:
    """Standard error where a person sees it: tools at work, and their questions.

    Tools are shown dim, as llm shows reasoning. The last line stays open, without its end:
    progress can be written over it, text that begins with an empty line does not make two,
    and text that does not gets a line of its own. What is told here comes from the thread that
    takes the answer, so it stands in its place; a question is put from the loop's, when that
    thread has come to it.

    `tools`: are tools to be shown? `mixed`: does the answer's text come to the terminal, as it
    is made? `piped`: may it come there in the end? `fresh`: is the terminal at the beginning
    of a line?
    """

    def __init__(
        self, tools: bool = True, mixed: bool = True, piped: bool = False, fresh: bool = True
    ) -> None:
        self._tools = tools
        self._mixed = mixed
        self._piped = piped
        self._fresh = fresh
        self._open = ""  # what stands in the open line
        self._owner = ""  # which tool's it is
        self._known: dict[str, str] = {}  # a tool's call's id -> its name
        self._running: dict[str, tuple[float, str]] = {}  # id -> how far, and that in words
        self._asking = 0  # questions that are on the screen
        self._later: dict[tuple[type, str], AtWork] = {}  # what happened meanwhile
        self._latest: dict[str, Progress] = {}  # what is about to be told
        self._lock = threading.RLock()

    @classmethod
    def of(cls, prompt: llm.Prompt, stream: bool) -> Screen | None:
        """The screen for an answer, if a person looks at one on llm's command line."""
        if not (on_command_line() and sys.stderr.isatty()):
            return None
        hidden = bool(getattr(prompt, "hide_reasoning", False))
        piped = False
        with contextlib.suppress(OSError, ValueError):
            piped = stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)
        fresh = not prompt.tool_results
        return cls(not hidden, stream and sys.stdout.isatty(), stream and piped, fresh)

    def _write(self, text: str) -> None:
        click.echo(text, nl=False, err=True)

    def _new_line(self) -> None:
        if self._open or not self._fresh:
            self._write("\n")
        self._open, self._fresh = "", True

    def note(self, text: str) -> None:
        """A line of its own: something to know."""
        with self._lock:
            self._new_line()
            note(text)

    def gives(self, event: StreamEvent) -> None:
        """llm is about to print this."""
        shown = event.type == "text" or (event.type == "reasoning" and self._tools)
        if not (shown and event.chunk):
            return
        with self._lock:
            here = self._mixed or event.type == "reasoning"
            if self._open and not (here and event.chunk.startswith("\n")):
                self._write("\n")
            if here or self._piped:
                self._fresh = event.chunk.endswith("\n")
            self._open = ""

    def __enter__(self) -> None:
        """An answer begins."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """It is over: what comes next has a line for itself, an error too.

        Click gives one to Ctrl-C.
        """
        with self._lock:
            failed = kind is not None and issubclass(kind, Exception)
            if self._open or (failed and not self._fresh):
                self._write("\n")
            self._open = ""

    # Tools

    def tell(self, event: AtWork) -> None:
        """Show what a tool on the server does."""
        with self._lock:
            if self._asking:
                key = type(event), event.id
                full = key not in self._later and len(self._later) >= AT_ONCE
                if not (full and isinstance(event, Progress)):
                    self._later[key] = event
            elif self._tools:
                self._told(event)

    def telling(self, event: AtWork) -> Aside | None:
        """What tells of it when its turn comes; None if that is on its way already.

        Of progress, the latest is enough: a terminal may be slower than a tool.
        """
        if not isinstance(event, Progress):
            return Aside(functools.partial(self.tell, event))
        with self._lock:
            waits = event.id in self._latest
            if not waits and len(self._latest) >= AT_ONCE:
                return None
            self._latest[event.id] = event
        return None if waits else Aside(functools.partial(self._tell_latest, event.id))

    def _tell_latest(self, id: str) -> None:
        with self._lock:
            self.tell(self._latest.pop(id))

    def _told(self, event: AtWork) -> None:
        if isinstance(event, ToolCall):
            if event.id in self._known:
                return  # a log tells it again
            name = self._known[event.id] = plain(event.name, 100)
            if len(self._running) < AT_ONCE:
                self._running[event.id] = -math.inf, ""
            arguments = json.dumps(event.arguments, ensure_ascii=False) if event.arguments else ""
            self._line(f"Tool: {name} {plain(arguments, 1000)}".rstrip(), event.id)
        elif event.id not in self._running:
            return
        elif isinstance(event, ToolResult):
            del self._running[event.id]
            if event.error:
                self._line(f"Tool: {self._known[event.id]} failed: {plain(event.error, 1000)}")
        elif event.done > self._running[event.id][0]:
            total = "" if event.total is None else f"/{event.total:g}"
            self._running[event.id] = event.done, f"{event.done:g}{total} {event.message}".rstrip()
            self._progressed(event.id)

    def _progressed(self, id: str) -> None:
        """Write progress over the tool's own line; that of several has a line for itself."""
        if os.environ.get("TERM") == "dumb":
            return
        said = [(self._known[id], words) for id, (_, words) in self._running.items() if words]
        if self._open and self._owner == id and len(self._running) == 1:
            # What the tool was asked gives way to how far it is.
            words = said[0][1]
            asked = fit(self._open, max(self._columns() - len(words) - 2, 20))
            self._write(REWRITE + self._dim(f"{asked}  {words}"))
        else:
            listed = ", ".join(f"{name} {words}" for name, words in said)
            self._line(f"{'Tools' if len(self._running) > 1 else 'Tool'}: {listed}", PROGRESS)

    def _line(self, text: str, owner: str = "") -> None:
        if self._open and self._owner == PROGRESS:
            self._write(REWRITE)
        else:
            self._new_line()
        self._open, self._owner = text, owner
        self._write(self._dim(text))

    def _dim(self, text: str) -> str:
        return click.style(fit(text, self._columns()), dim=True)

    def _columns(self) -> int:
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return max((columns or 80) - 1, 20)  # 0 is said by those that do not know

    # Questions

    def can_ask(self, asked: Elicitation) -> bool:
        """Can a person answer this here and now?"""
        try:
            Keyboard().close()
        except OSError:
            return False
        return bool(asked.mode)

    def make_room(self) -> None:
        """A question comes next."""
        with self._lock:
            sys.stdout.flush()
            self._new_line()
            self._asking += 1

    def closed(self, words: str) -> None:
        """A question is over; why, if there is somebody to tell it to."""
        with self._lock:
            self._asking -= 1
            if words:
                self._line(words)
            later, self._later = self._later, {}
            for event in later.values():
                self.tell(event)

    async def answer(self, asked: Elicitation, problem: str = "") -> Answered:
        """Have a person answer. `problem` is why the server did not take the answer before.

        Cancelled at any moment, it leaves the terminal as it was. Raises OSError if there is
        no terminal any more.
        """
        keyboard = Keyboard()
        try:
            keyboard.forget()
            if problem:
                self._say(f"{asked.server or 'The server'} does not take that: {problem}")
            else:
                self._introduce(asked)
            if asked.mode == "url":
                choice = "o opens it in your browser, " if _can_open() else ""
                words = f"{choice}y says that you have done it"
                agreed = await self._agreed(keyboard, words, asked.url if choice else "")
            else:
                agreed = bool(problem) or await self._agreed(keyboard, "Answer? y begins")
            if not agreed:
                return Answered("decline")
            content: dict[str, TypedValue] = {}
            for each in asked.fields if asked.mode == "form" else ():
                value = await self._filled(keyboard, each)
                if value is None:
                    return Answered("decline")
                content |= value
            return Answered("accept", content if asked.mode == "form" else None)
        except asyncio.CancelledError:
            keyboard.forget()  # half an answer is nothing for who reads next
            raise
        finally:
            keyboard.close()

    def _say(self, text: str, dim: bool = False) -> None:
        wrapped = click.wrap_text(text, self._columns(), subsequent_indent="  ")
        self._write(click.style(wrapped, dim=dim) + "\n")

    def _introduce(self, asked: Elicitation) -> None:
        what = "asks you to open an address" if asked.mode == "url" else "asks"
        heading = f"The tool server {asked.server or 'without a name'} {what}:"
        self._write(click.style(heading, bold=True) + "\n")
        self._say(f"  {asked.message}")
        if asked.mode == "url":
            self._write(f"  {asked.url}\n")
            self._say(f"  {about_address(asked.url)}", dim=True)
            return
        needed = sum(each.required for each in asked.fields)
        count = len(asked.fields)
        some = f"{count} fields, of which {needed} must be filled in" if count > 1 else "One field"
        self._say(f"  {some if count else 'Nothing to fill in'}. {self._goes_to(asked)}", dim=True)

    def _goes_to(self, asked: Elicitation) -> str:
        until = ""
        if asked.until is not None:
            with contextlib.suppress(ValueError, OverflowError, OSError):
                moment = datetime.datetime.fromtimestamp(asked.until)
                until = f" It waits until {moment:%H:%M}."
        return f"What you type goes to that server.{until}"

    async def _typed(self, keyboard: Keyboard, words: str) -> str | None:
        """What is typed after some words; None for Ctrl-D."""
        self._write(words)
        self._fresh = False
        try:
            typed = await keyboard.line()
        except ValueError:
            typed = "\0"  # no text: no field takes it
        if typed is None:
            self._write("\n")
        self._fresh = True
        return typed

    async def _agreed(self, keyboard: Keyboard, words: str, url: str = "") -> bool:
        """Does the person say yes? What `words` mean by o is to open `url`."""
        while True:
            typed = await self._typed(keyboard, f"{words}, Enter declines, Ctrl-C stops: ")
            word = (typed or "").strip().casefold()
            if word in ("", "n", "no"):
                return False
            if word in ("y", "yes"):
                return True
            if word == "o" and url:
                await asyncio.to_thread(_open, url)

    async def _filled(self, keyboard: Keyboard, each: AskedField) -> dict[str, TypedValue] | None:
        """What is typed into a field, if anything; None when the person declines after all."""
        above, words = field_words(each)
        for line in above:
            self._say(f"  {line}")
        while True:
            typed = await self._typed(keyboard, words)
            if typed is None:
                return None
            try:
                value = typed_value(each, typed)
            except ValueError as error:
                self._say(f"  {error}.", dim=True)
                continue
            return {} if value is None else {each.name: value}


# --- run: one run's states, no sockets: what happened in, what to do next out ---------


REDIRECTS = (301, 302, 303, 307, 308)


class ConnectionLost(Exception):
    """A connection could not be made, broke, or fell silent.

    `sent` says whether the whole request had left, so that it may have arrived; `silent`
    that nothing was heard, not even an end; `final` that trying again cannot help.
    """

    def __init__(self, why: str, *, sent: bool, final: bool = False, silent: bool = False) -> None:
        super().__init__(why)
        self.sent = sent
        self.final = final
        self.silent = silent


@frozen
class HttpResponse:
    """A whole HTTP answer. `body` is decompressed; of a refusal, only how it begins is kept."""

    status: int
    content_type: str
    body: bytes = field(repr=False)
    disposition: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def header(self, name: str) -> str:
        """The first header of that name (in lower case), or no text."""
        return next((value for known, value in self.headers if known.lower() == name), "")

    def set_cookies(self) -> dict[str, str]:
        """The cookies that the server sets, as far as their values are a cookie's."""
        pairs = (
            value.partition(";")[0].partition("=")
            for name, value in self.headers
            if name.lower() == "set-cookie"
        )
        return {name.strip(): value for name, _, value in pairs if _COOKIE_VALUE.fullmatch(value)}

    def json(self) -> Any:
        """The value in the body. Raises llm.ModelError when it is not JSON."""
        try:
            return read_json(self.body)
        except TooRich:
            raise TooLarge(
                "The server answered with JSON that takes more memory than any real answer."
            ) from None
        except ValueError:
            raise HuggingChatError(
                f"The server answered with something that is not JSON. "
                f"Is {SERVER_VARIABLE} the address of a chat-ui server?"
            ) from None

    @property
    def wants_login(self) -> bool:
        """Is this how chat-ui refuses those who are not logged in?"""
        location = self.header("location")
        return self.status == 401 or (self.status in REDIRECTS and leads_to_login(location))

    @property
    def is_hidden(self) -> bool:
        """Is this how chat-ui tells that something is not there, or is somebody else's?"""
        return self.status in (403, 404) and not self.is_firewall

    @property
    def is_firewall(self) -> bool:
        """Did a firewall in front of the server refuse this client? chat-ui has no such answers.

        Seen with a challenge (202, empty) or a captcha (405, a page), both with a header that
        says so, or with a page of the network's own (403).
        """
        page = self.status in (403, 405) and "html" in self.content_type
        return page or (self.status != 200 and bool(self.header("x-amzn-waf-action")))

    @property
    def wants_pause(self) -> bool:
        """Will the same message be taken after a pause?

        chat-ui refuses with 429 for three reasons: too many messages in a minute, too many
        messages in this conversation, and too many conversations. The last two stay.
        """
        stays = self.is_firewall or "conversation" in self.message.lower()
        return self.status == 429 and not stays

    @property
    def message(self) -> str:
        """The server's own words for a refusal; nothing of an HTML page."""
        text = self.body[:10_000].decode("utf-8", "replace")
        try:
            value = _mapping(read_json(text))
            return plain(_string(value.get("message")) or _string(value.get("error")), 300)
        except ValueError:
            html = "html" in self.content_type or text.lstrip().startswith("<")
            return "" if html else plain(text, 300)


class HttpError(Exception):
    """The server answered, with a status other than 200.

    `waited` is how many seconds were spent on the pause that it wanted, if any were allowed.
    `again`: an earlier try of the same call may have arrived.
    """

    def __init__(self, reply: HttpResponse, waited: float | None = None) -> None:
        super().__init__(f"HTTP {reply.status}")
        self.reply = reply
        self.waited = waited
        self.again = False


class NotFound(Exception):
    """The conversation is not there for this account; or `answer`, the one to continue after."""

    def __init__(self, *, answer: bool = False) -> None:
        super().__init__()
        self.answer = answer


class IncompleteAnswer(Exception):
    """An answer is not whole, and the server has no more of it."""


@dataclass
class Backoff:
    """When to try again, for all calls: pauses grow until there is a sign of life.

    `tries` is how often in all, or None for as long as PATIENCE allows. `life` is when the
    last sign came, in seconds of a clock that only goes forward.
    """

    life: float
    tries: int | None = None
    failed: int = 0

    def alive(self, now: float) -> None:
        """There is a sign of life: the next failure is the first one again."""
        self.life, self.failed = now, 0

    def pause(self, now: float) -> float | None:
        """Seconds until the next attempt, after one that failed; None to give up."""
        pause = limits.backoff[min(self.failed, len(limits.backoff) - 1)]
        self.failed += 1
        if self.tries is not None:
            return pause if self.failed < self.tries else None
        left = self.life + limits.reconnect_timeout - now
        return min(pause, left) if left > 0 else None


class RateLimiter:
    """When messages may go to a server that wants a pause, for all runs of this process.

    chat-ui counts what was sent within a minute, also what it refused. So after a refusal
    nobody sends for a minute; then one does, and once that is taken the next, until one is
    refused again: one refused try a minute at most, and as many messages as the server takes.
    When nobody had to wait for a minute, all may send at once again.

    Other processes are not known of here. If several wait, each refused try of one may be
    what the others are refused for: so pauses grow, by chance, while tries are in vain.

    Runs of several loops use it, each in its thread. `now` is seconds of a clock that only
    goes forward, and is the same in all threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opens = -math.inf
        self._held = -math.inf  # when a run was last told to wait
        self._trying = ""  # the run that may send, until it tells what came of it, or for
        self._until = -math.inf  # so long: it may have ended without a word
        self._vain = 0  # tries that were refused, one after another
        self._told = False
        self.refusal = HttpError(HttpResponse(429, "", b""))  # the latest

    def pause(self, run: str, now: float) -> float:
        """Seconds after which `run` is to ask again; 0 when it may send, now."""
        with self._lock:
            wait = max(self._opens - now, 0.0)
            if not wait and now - max(self._held, self._opens) < limits.rate_window:
                if self._trying not in ("", run) and now < self._until:
                    wait = limits.backoff[0]
                else:
                    self._trying, self._until = run, now + limits.rate_window
            self._held = now if wait else self._held
            return wait

    def refused(self, run: str, refusal: HttpError, now: float) -> None:
        """The server wants a pause: it refused the message of `run`."""
        with self._lock:
            self.refusal = refusal
            self._told = self._told and now < self._opens
            pause = limits.rate_window
            if self._trying == run:
                self._vain += 1
                pause *= random.uniform(1, min(2 ** (self._vain - 1), LONGEST_PAUSE))
                self._trying = ""
            self._opens = max(self._opens, now + pause)

    def passed(self, run: str) -> None:
        """The server took the message of `run`."""
        with self._lock:
            self._vain = 0
            self._trying = "" if self._trying == run else self._trying

    def leave(self, run: str) -> None:
        """`run` is not about to send any more."""
        with self._lock:
            self._trying = "" if self._trying == run else self._trying

    def to_be_told(self) -> bool:
        """Has nobody been told of this pause yet? One is enough."""
        with self._lock:
            told, self._told = self._told, True
            return not told


class State(enum.IntEnum):
    """How far a run is known to have come.

    | from     | what happens                                           | to       |
    | -------- | ------------------------------------------------------ | -------- |
    | NEW      | its message is being sent                              | SENT     |
    | SENT     | it had not left, was refused, or is not to be found     | NEW      |
    | SENT     | an event came, or it is in the conversation             | TAKEN    |
    | TAKEN    | final answer, failure, or its end with questions open  | ANSWERED |
    | TAKEN    | the server knows nothing of it after all                | NEW      |
    | ANSWERED | its stream ended after `finished`, or its log said `end` | STORED   |

    chat-ui stores a run between `finished` and the end of its stream, as a copy of all the
    conversation's messages that the run began with. A message that is sent before that
    loses the answer before it, or is lost itself.
    """

    NEW = 0
    SENT = 1
    TAKEN = 2
    ANSWERED = 3
    STORED = 4


@frozen
class Send:
    """Send the message."""


@frozen
class Look:
    """Read the conversation: is the message there, and what is stored of its answer?"""


@frozen
class Follow:
    """Follow the run's log, from the event after number `after`."""

    after: int


@frozen
class Wait:
    """Do nothing for so many seconds."""

    seconds: float


@frozen
class Done:
    """There is nothing more to do: the run is over, and stored."""


@frozen
class Fail:
    """There is nothing more that could be done."""

    why: ConnectionLost | HttpError | NotFound | IncompleteAnswer


Step = Send | Look | Follow | Wait | Done | Fail
BEYOND = 999_999_999  # no log is so long: from there it repeats nothing, and tells the end
NO_OUTPUT = Failed("No output was generated")


class Run:
    """One run: from its message to its stored answer. It knows no sockets.

    It is told what happens (`took`, `ended`, `looked`, `lost`, `refused`), and says what
    to do `next`. `now` is seconds of a clock that only goes forward. A run that another
    turn began starts as ANSWERED: all that is wanted of it is that it be stored. Of one
    that goes on with an answer, `after` is the number of updates stored before it.

    While a tool waits for an answer to its question, the run goes on, and tells when it is
    closed. A tool that does not wait ends it: that is its outcome, which another run resumes.

    When the server wants a pause, the message may wait for it: for `wait` seconds in all, at
    the `gate` that it shares with other runs.
    """

    def __init__(
        self,
        generation_id: str,
        now: float,
        state: State = State.NEW,
        after: int = 0,
        *,
        gate: RateLimiter | None = None,
        wait: float = 0.0,
    ) -> None:
        self.generation_id = generation_id
        self.state = state
        self._gate = gate or RateLimiter()
        self._wait = wait
        self._held: float | None = None  # since when the message waits
        self.outcome: FinalAnswer | Failed | Parked | None = None
        self._after = after
        self._asked: dict[str, Elicitation | None] = {}  # by id; None once it is closed
        self.died = False  # the model broke off: no final answer came before the end
        self.end = ""  # how the log says that it ended
        self._trouble: ConnectionLost | HttpError | NotFound | IncompleteAnswer | None = None
        self._refusal: HttpError | None = None  # of a message that may have been taken
        self._step: Step = Done()
        self._pause = 0.0
        self._since = now
        self._chatter = 0  # events that came with nothing new in them
        self._backoff = Backoff(now)
        self._sending = Backoff(now, limits.max_attempts)
        self._looking = Backoff(now, 2)
        self._look_until = 0.0
        self._begun = False  # something of an answer came
        self._finished = False  # the end of the stream will mean that all is stored
        self._seq = 0
        self._logless = False  # the log is no use: only the store can tell
        self._stored_length = -1

    @property
    def is_settled(self) -> bool:
        """Does nothing go on at the server that a further message could spoil?"""
        return self.state in (State.NEW, State.STORED)

    @property
    def is_untaken(self) -> bool:
        """Has no try of the message been taken, nor may one still be on its way?"""
        return self.state is State.NEW and not self._sending.failed

    @property
    def is_held(self) -> bool:
        """Does the message wait, as the server wants a pause?"""
        return self.state is State.NEW and self._held is not None

    def next(self, now: float) -> Step:
        """What to do now. Whatever comes of it is to be told before this is asked again."""
        if isinstance(self._step, Send):
            self.leave()
        if self._trouble:
            return Fail(self._trouble)
        if self._pause:
            pause, self._pause = self._pause, 0.0
            return Wait(pause)
        if self.state is State.NEW:
            if pause := self._gate.pause(self.generation_id, now):
                return self._hold(pause, now)
            self.state, self._step = State.SENT, Send()
        elif self.state is State.STORED:
            self._step = Done()
        elif self.state is State.SENT or self._logless:
            self._step = Look()
        else:
            self._step = Follow(self._seq if self.state is State.TAKEN else BEYOND)
            self._chatted(now, CHATTER)  # one that ends at once, and often, has an end as well
        return self._step

    # What happened

    def took(self, event: Event | LogEnd, now: float, seq: int = 0) -> list[Event]:
        """An event came, the log's number `seq`. Returns what is to be made of it.

        Raises TooMuch when what comes is nothing new, for ever.
        """
        self._backoff.alive(now)
        if not (isinstance(event, (Text, Reasoning)) and event.text.strip("\0")):
            self._chatted(now)
        if isinstance(event, LogEnd):
            self._log_ended(event)
            return []
        if self.state is State.SENT:
            self._gate.passed(self.generation_id)
        self.state = max(self.state, State.TAKEN)
        if self.state is State.ANSWERED:
            self._finished = self._finished or isinstance(event, (Finished, Failed))
            return [event] if isinstance(event, (Title, RouterMetadata)) else []
        # The log of a run that says nothing begins with a heartbeat, which has no number.
        self._seq = max(seq, self._seq) if isinstance(self._step, Follow) else seq
        if isinstance(event, FinalAnswer):
            # An empty answer is not the end: the reason follows as a failure.
            if not (event.text or event.interrupted or self._begun):
                return []
            self._answered(event)
        elif isinstance(event, Finished):
            self._finished = True
            if questions := tuple(filter(None, self._asked.values())):
                event = Parked(questions)
            else:
                # The model died on the way. What it said is stored, and can be continued.
                self.died = self._begun
                event = FinalAnswer("", True) if self._begun else NO_OUTPUT
            self._answered(event)
        elif isinstance(event, Failed):
            self._finished = True
            self._answered(event)
        elif isinstance(event, Elicitation):
            if event.id in self._asked:
                return []  # told again
            self._asked[event.id] = event
        elif isinstance(event, ElicitationResolved):
            if self._asked.get(event.id, event) is None:
                return []
            self._asked[event.id] = None
        elif isinstance(event, (Text, Reasoning)):
            self._begun = self._begun or bool(event.text.strip("\0"))
        elif isinstance(event, (ToolCall, ToolResult, File)):
            self._begun = True
        over = isinstance(self.outcome, (FinalAnswer, Failed))
        # chat-ui does not tell that a stop has closed a question.
        left = filter(None, self._asked.values() if over else ())
        return [*(ElicitationResolved(asked.id, "aborted") for asked in left), event]

    def ended(self, now: float) -> None:
        """The connection ended, as it should."""
        if isinstance(self._step, Send):
            if self.state is State.ANSWERED and self._finished:
                self.state = State.STORED
        else:
            self._again(now)

    def lost(self, lost: ConnectionLost, now: float) -> None:
        """The connection could not be made, or broke."""
        if lost.final:
            self._trouble = lost
        elif not isinstance(self._step, Send):
            self._again(now)
        elif self.state is State.SENT and not lost.sent:
            self._send_again(lost, now)
        elif lost.silent:
            # It may be slow, or on its way. To send again would be to say it twice.
            self._look_until = now + limits.reconnect_timeout

    def refused(self, refused: HttpError, now: float, *, first: bool = False) -> None:
        """The server answered with another status than 200.

        `first`: the message was to be the first in its conversation.
        """
        status = refused.reply.status
        if isinstance(self._step, Follow) and status == 404:
            self._logless = True  # a server without logs
        elif isinstance(self._step, Send) and status >= 500:
            # A proxy, or the server after it had stored the message: only a look can tell.
            self._refusal = refused
        elif isinstance(self._step, Send) and refused.reply.wants_pause and self._wait:
            self.state = State.NEW
            self._gate.refused(self.generation_id, refused, now)
        elif isinstance(self._step, Send):
            self.state = State.NEW
            self._trouble = NotFound() if refused.reply.is_hidden and not first else refused
        elif status >= 500:
            self._again(now)
        else:
            self._trouble = refused

    def not_taken(self) -> None:
        """The message was refused for a reason that will not be there again."""
        if isinstance(self._step, Send):
            self.state = State.NEW

    def leave(self) -> None:
        """Nobody drives the run any more: other messages need not wait for this one."""
        self._gate.leave(self.generation_id)

    def gone(self) -> None:
        """The conversation is not there any more, and the run with it."""
        self.state = State.NEW if self.state is State.SENT else State.STORED
        self._trouble = NotFound()

    def looked(
        self, stored: dict[str, Any] | None, now: float, *, parent: bool = True
    ) -> list[Event]:
        """The conversation was read. `stored` is the run's answer as far as it is there;
        `parent` says whether the message is that it was to go after.

        Returns the events of an answer that is complete.
        """
        if self.state is State.SENT:
            if stored:
                self._backoff.alive(now)
                self.state = State.TAKEN
            else:
                self._not_found(now, parent)
            return []
        if stored is None:
            self._vanished(now)
            return []
        events, complete = stored_events(stored, self._after)
        if not (complete or is_settled(stored, self._after)):
            self._still_grows(len(events), now)
            return []
        given = [Replay(), *(out for event in events for out in self.took(event, now))]
        if self.state is State.TAKEN:
            self._answered(NO_OUTPUT)
            given.append(NO_OUTPUT)
        self.state = State.STORED
        return given

    # What to make of it

    def _hold(self, pause: float, now: float) -> Step:
        """The message has to wait, unless that would be longer than it may."""
        self._held = now if self._held is None else self._held
        waited = now - self._held
        if waited + pause <= self._wait:
            return Wait(pause)
        self._trouble = HttpError(self._gate.refusal.reply, waited)
        return Fail(self._trouble)

    def _chatted(self, now: float, events: int = 1) -> None:
        """Words are counted where they are given; all else is here, also what is told again.

        A server at work says so ten times a second, for hours; and a log repeats what was.
        """
        self._chatter += events
        if self._chatter > 5 * MANY + CHATTER * (now - self._since):
            raise TooLarge(
                f"The answer does not end: {self._chatter:,} events came with nothing new in them, "
                "more than from any server at work."
            )

    def _answered(self, outcome: FinalAnswer | Failed | Parked) -> None:
        self.state, self.outcome = State.ANSWERED, outcome

    def _log_ended(self, end: LogEnd) -> None:
        self.end = end.status
        if self.state is State.ANSWERED:
            self.state = State.STORED
        else:
            self._logless = True  # it did not tell the answer, so it is taken from the store

    def _again(self, now: float) -> None:
        pause = self._backoff.pause(now)
        if pause is None:
            self._trouble = ConnectionLost(
                f"it did not come back within {limits.reconnect_timeout:.0f} seconds", sent=True
            )
        self._pause = pause or 0.0

    def _send_again(self, why: ConnectionLost | HttpError, now: float) -> None:
        self.state = State.NEW
        pause = self._sending.pause(now)
        if pause is None:
            self._trouble = why
        self._pause = pause or 0.0
        self._looking = Backoff(now, 2)

    def _not_found(self, now: float, parent: bool) -> None:
        """Looked for twice, as the message may still be on its way, or for longer."""
        pause = self._looking.pause(now)
        if pause is not None or now < self._look_until:
            self._pause = limits.look_again
        elif self._refusal and self._refusal.reply.status == 500:
            # An unknown parent is a 500 as well.
            self.state = State.NEW
            self._trouble = self._refusal if parent else NotFound(answer=True)
        else:
            self._send_again(
                self._refusal or ConnectionLost("it did not take the message", sent=True), now
            )

    def _vanished(self, now: float) -> None:
        if self.state is State.ANSWERED:
            self.state = State.STORED
        elif self._begun:
            self._trouble = IncompleteAnswer("The server lost the answer.")
        else:
            self._logless = False
            self._send_again(ConnectionLost("it did not take the message", sent=True), now)

    def _still_grows(self, length: int, now: float) -> None:
        """The answer is not complete: does the run go on without a log?"""
        if length > self._stored_length:
            self._stored_length = length
            self._backoff.alive(now)
        pause = self._backoff.pause(now)
        if pause is None and self.state is State.ANSWERED:
            self.state = State.STORED  # nothing comes of it any more
        elif pause is None:
            self._trouble = IncompleteAnswer(
                "The answer broke off, and the server has no end of it."
            )
        self._pause = pause or 0.0


# --- files: the key store, the catalogue cache, and which runs go on -------------------


def write_whole(path: pathlib.Path, content: str | bytes, mode: int = 0o600) -> None:
    """Replace a file of our own at `path` in one step, so that no reader sees half of it.

    A link stays one. The caller has locked the file, so what is left of a write that was
    killed, perhaps with keys in it, can go. The file outlives a crash of the machine as well.
    Raises OSError.
    """
    path = pathlib.Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        left.unlink(missing_ok=True)
    with _replacing(path, mode) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _replacing(
    path: pathlib.Path, mode: int, like: os.stat_result | None = None
) -> Iterator[BinaryIO]:
    """A new file, which takes the place of `path` when it is written, or is gone.

    Its mode is `mode` without what the umask takes; or mode and owner are those of `like`.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = os.open(new, flags, 0o600 if like else mode)
    try:
        with open(descriptor, "wb") as file:
            if like:
                made = os.stat(new)
                if (made.st_uid, made.st_gid) != (like.st_uid, like.st_gid):
                    os.chown(new, like.st_uid, like.st_gid)
                os.chmod(new, stat.S_IMODE(like.st_mode))
            yield file
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Write a file for a person, into what is there: links, pipes and devices stay such.

    A file is replaced when the new one is whole, and keeps mode and owner. Where it has more
    than one name, or nothing can be made beside it, it is written in its place. Raises OSError.
    """
    try:
        there = path.stat()
    except FileNotFoundError:
        there = None
    with contextlib.ExitStack() as stack:
        file: BinaryIO | None = None
        if there is None or (stat.S_ISREG(there.st_mode) and there.st_nlink == 1):
            real = pathlib.Path(os.path.realpath(path))
            with contextlib.suppress(OSError):
                file = stack.enter_context(_replacing(real, 0o666, there))
        yield file or stack.enter_context(open(path, "wb"))


def _unnamed(folder: pathlib.Path) -> BinaryIO:
    """A file without a name, which is gone when it is closed, or the process ends.

    It is in `folder`, as elsewhere it could be in memory, unless nothing can be made there.
    """
    try:
        return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))
    except OSError:
        return cast(BinaryIO, tempfile.TemporaryFile())


@contextlib.contextmanager
def _updating(name: str) -> Iterator[pathlib.Path]:
    """A file of llm's user directory, ours alone while it is read, changed and written."""
    from filelock import FileLock

    path = llm.user_dir() / name
    with FileLock(path.with_name(f".{name}.lock"), timeout=10):
        yield path


# llm's own first entry in keys.json
KEY_NOTE = {"// Note": "This file stores secret API credentials. Do not share!"}


def keep_key(name: str, value: str | None, *, anew: bool = False) -> str | None:
    """Set key `name` in llm's key store, or forget it with None; no other key changes.

    With `anew` a key that is there already stays. Gives the key that is there now.
    Raises llm.ModelError when the store cannot be read or written.
    """
    try:
        with _updating("keys.json") as path:
            try:
                keys = read_json(path.read_bytes())
            except FileNotFoundError:
                keys = {}
            if not isinstance(keys, dict):
                raise ValueError("not an object")
            if anew and (kept := _string(keys.get(name))):
                return kept
            if value is None:
                keys.pop(name, None)
                keys = {} if keys == KEY_NOTE else keys
            else:
                keys = (keys or KEY_NOTE) | {name: value}
            write_whole(path, json.dumps(keys, indent=2) + "\n")
            return value
    except (OSError, ValueError) as error:
        raise HuggingChatError(
            f"llm's key store, {llm.user_dir() / 'keys.json'}, cannot be updated: {_why(error)}"
        ) from None


def stored_key(name: str) -> str | None:
    """The key kept under `name`, or None. Raises llm.ModelError for a broken key store."""
    try:
        keys = llm.load_keys()
        if not isinstance(keys, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise HuggingChatError(
            f"llm's key store, {llm.user_dir() / 'keys.json'}, cannot be read: {_why(error)}"
        ) from None
    return _string(keys.get(name)) or None


def keys_of(server: Server, cookies: Cookies) -> dict[str, Cookies]:
    """Name -> cookies: what llm's key store has for this login on this server.

    That is the server's own key if it has the same `token`, and those that `--key` may have
    named: with the same session too. Raises nothing.
    """
    found: dict[str, Cookies] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        for name, value in llm.load_keys().items():
            if not isinstance(value, str) or not cookies.token or cookies.token not in value:
                continue
            with contextlib.suppress(llm.ModelError):
                kept = parse_cookies(value, server.host)
                own = name == server.key_name
                alias = not name.startswith("huggingchat") and kept.hf_chat == cookies.hf_chat
                if kept.token == cookies.token and (own or alias):
                    found[name] = kept
    return found


@contextlib.asynccontextmanager
async def one_login() -> AsyncIterator[None]:
    """Held by the one process that makes a session; the others wait, but not for ever.

    Where no lock can be had they go on without: two sessions are no harm.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(llm.user_dir() / ".huggingchat_login.lock", timeout=0)
    end = time.monotonic() + limits.reconnect_timeout
    while time.monotonic() < end:
        try:
            lock.acquire()
            break
        except Timeout:
            await asyncio.sleep(0.05)
        except OSError:
            break
    try:
        yield
    finally:
        lock.release()


def _why(error: BaseException) -> str:
    """What went wrong with a file, without a byte of what is in it."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "it is not a JSON object"


@frozen
class Catalogue:
    """The models of a server. `time` is seconds since 1970, or None for the built-in list."""

    models: tuple[ModelInfo, ...] = BUILT_IN
    time: float | None = None

    @property
    def is_old(self) -> bool:
        """Should it be refreshed? One from the future should, too."""
        return self.time is None or not 0 <= time.time() - self.time < limits.catalogue_age


CACHE = "huggingchat_models.json"


def _read_cache(path: pathlib.Path) -> dict[str, Any]:
    """What is cached, by the server's address. Raises OSError, ValueError.

    Every `llm` command does this: it waits for no pipe, and reads no file that is not ours.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > JSON_LIMIT:
        raise ValueError("no cache")
    return _mapping(_mapping(read_json(path.read_bytes())).get("servers"))


def load_catalogue(server_url: str) -> Catalogue:
    """The cached models of a server, else the built-in ones. Raises nothing."""
    try:
        entry = _mapping(_read_cache(llm.user_dir() / CACHE).get(server_url))
        seconds = _number(entry.get("time"))
        if seconds is None or seconds < 0:
            return Catalogue()
        return Catalogue(read_catalogue(entry.get("models")), seconds)
    except (OSError, ValueError):
        return Catalogue()


def keep_catalogue(server_url: str, models: Iterable[ModelInfo]) -> None:
    """Cache a server's models beside those of other servers. Raises llm.ModelError."""
    try:
        with _updating(CACHE) as path:
            try:
                servers = _read_cache(path)
            except (OSError, ValueError):
                servers = {}
            entry = {"time": time.time(), "models": [model.to_json() for model in models]}
            servers[server_url] = entry
            write_whole(path, json.dumps({"servers": servers}, indent=1) + "\n", mode=0o644)
    except OSError as error:
        raise HuggingChatError(
            f"The catalogue cannot be kept in {llm.user_dir() / CACHE}: {_why(error)}"
        ) from None


RUNS = "huggingchat_runs.db"


@frozen
class Noted:
    """A run that is not known to be stored. Times are seconds since 1970.

    `since` is 0 and `process` None when the turn that began it is over. It may lie ahead: then
    the message is still to be sent.
    """

    generation_id: str
    process: int | None = None
    since: float = 0.0
    stopped: float | None = None

    def has_a_turn(self, within: float) -> bool:
        """Is a turn at it, which began `within` seconds, as far as can be told from here?"""
        age = time.time() - self.since
        if self.process is None or age > within or -age > HELD_LIMIT:
            return False
        try:
            if os.name == "posix":  # elsewhere, to ask would be to end it
                os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # somebody else's
        return True


_NOTED = "generation_id, process, since, stopped"  # the columns of a Noted


def _noted(rows: Iterable[tuple[Any, ...]]) -> list[Noted]:
    """The runs in these rows; one that makes no sense is none. A stop is not still to come."""
    found = []
    for id, process, since, stopped in rows:
        whole = process is None or (isinstance(process, int) and 0 < process < 2**31)
        if known_id(id) and whole and isinstance(since, float) and math.isfinite(since):
            told = min(stopped, time.time()) if isinstance(stopped, float) else None
            found.append(Noted(id, process, since, told))
    return found


@contextlib.contextmanager
def _runs() -> Iterator[sqlite3.Connection]:
    """The runs of this user's processes that are not known to be stored.

    Nothing in it is worth a wait for the disk. Raises sqlite3.Error.
    """
    path = llm.user_dir() / RUNS
    connection = sqlite3.connect(path, timeout=2, isolation_level=None)
    try:
        connection.execute("pragma synchronous = off")
        connection.execute("pragma journal_mode = truncate")
        connection.execute(
            "create table if not exists runs "
            "(id integer primary key, generation_id text unique, page text, process integer, "
            "begun real, since real, stopped real)"
        )
        yield connection
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:  # it is none: a new one is as good
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    finally:
        connection.close()


def claim_run(page: str, generation_id: str) -> list[Noted] | None:
    """Note that a run is about to begin in the conversation at `page`.

    Returns those that were noted there before, which have to be stored first; None when
    they cannot be known. Raises nothing.
    """
    now = time.time()
    with contextlib.suppress(sqlite3.Error), _runs() as db:
        db.execute("delete from runs where begun < ?", [now - RUN_LIMIT])
        db.execute(
            "insert into runs (generation_id, page, process, begun, since) values (?, ?, ?, ?, ?)",
            [generation_id, page, os.getpid(), now, now],
        )
        rows = db.execute(
            f"select {_NOTED} from runs where page = ? and id < "
            "(select id from runs where generation_id = ?) order by id",
            [page, generation_id],
        )
        return _noted(rows)
    return None


def keep_run(generation_id: str, later: float = 0.0) -> None:
    """A run that had to wait is sent only now, or `later`, in seconds. Raises nothing."""
    with contextlib.suppress(sqlite3.Error), _runs() as db:
        db.execute(
            "update runs set since = ? where generation_id = ?",
            [time.time() + later, generation_id],
        )


def leave_run(generation_id: str, stopped: float | None) -> None:
    """A turn is over before its run is stored. Raises nothing.

    `stopped` is when the server was told to stop it, in seconds since 1970.
    """
    with contextlib.suppress(sqlite3.Error), _runs() as db:
        db.execute(
            "update runs set process = null, since = 0, stopped = ? where generation_id = ?",
            [stopped, generation_id],
        )


def still_noted(generation_id: str) -> Noted | None:
    """What is noted of a run now; None if nothing is. Raises nothing."""
    with contextlib.suppress(sqlite3.Error), _runs() as db:
        rows = db.execute(f"select {_NOTED} from runs where generation_id = ?", [generation_id])
        return next(iter(_noted(rows)), None)
    return None


def forget_run(generation_id: str) -> None:
    """A run is stored, or never was. Raises nothing."""
    with contextlib.suppress(sqlite3.Error), _runs() as db:
        db.execute("delete from runs where generation_id = ?", [generation_id])


def local_timezone(variable: str | None, root: pathlib.Path = pathlib.Path("/")) -> str | None:
    """This machine's time zone by its IANA name, as a browser tells it; None if it has none.

    `variable` is the value of TZ: if it is set, it rules the clock, even where it holds no
    name. Else the link /etc/localtime, or /etc/timezone, says which. `root` is the directory
    that both are looked for in.
    """
    from zoneinfo import ZoneInfo

    if not variable:
        with contextlib.suppress(OSError, ValueError):
            variable = (root / "etc/timezone").read_text("ascii").strip()
        with contextlib.suppress(OSError):
            variable = os.readlink(root / "etc/localtime")
    name = (variable or "").lstrip(":").rpartition("zoneinfo/")[2]
    name = re.sub(r"^(posix|right)/", "", name)
    if not re.fullmatch(r"[A-Za-z0-9_+/-]+", name) or name in ("localtime", "Factory"):
        return None
    try:
        return str(ZoneInfo(name))
    except (OSError, ValueError, KeyError):
        return None


# --- client: one coroutine a server call; errors in words -----------------------------


PIECE = 48 * 1024  # bytes of a file that are read at once: a multiple of three, for base64


@frozen
class Upload:
    """A file to send. `content` is its bytes, or the path of a file that has `size` of them.

    `id` is what llm's logs know the attachment by. As a body of its own it is sent as it is.
    """

    name: str
    type: str
    content: bytes | str = field(repr=False)
    id: str = ""
    size: int = -1

    @property
    def content_type(self) -> str:
        return self.type

    @property
    def is_recording(self) -> bool:
        """Is it to be transcribed, instead of sent?"""
        return self.type in AUDIO_TYPES.values()

    def __len__(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.size

    def __iter__(self) -> Iterator[bytes]:
        """The content, read piece by piece.

        Raises llm.ModelError when the file is not any more what it was.
        """
        left, content = len(self), self.content
        try:
            with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as file:
                while left and (piece := file.read(min(left, PIECE))):
                    left -= len(piece)
                    yield piece
        except OSError as error:
            raise HuggingChatError(f"{self.name} cannot be read: {_why(error)}") from None
        if left:
            raise HuggingChatError(f"{self.name} has become shorter while it was sent.")


@frozen
class Form:
    """A message's body. Files are encoded while they are sent: base64 is a third longer."""

    boundary: str
    parts: tuple[tuple[bytes, Upload | None], ...]  # how each begins, and its file

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self.boundary}"

    def __len__(self) -> int:
        heads = sum(len(head) + 2 for head, _ in self.parts)
        files = sum(4 * -(-len(upload) // 3) for _, upload in self.parts if upload is not None)
        return heads + files + len(self._mark) * (len(self.parts) + 1) + 2 * len(self.parts) + 4

    @property
    def _mark(self) -> bytes:
        return f"--{self.boundary}".encode()

    def __iter__(self) -> Iterator[bytes]:
        for head, upload in self.parts:
            yield self._mark + b"\r\n" + head
            if upload is not None:
                yield from map(base64.b64encode, upload)
            yield b"\r\n"
        yield self._mark + b"--\r\n"


def multipart(data: dict[str, Any], uploads: Iterable[Upload]) -> Form:
    """A message's body: a part `data` (JSON), a part `files` each file."""
    said = json.dumps(data, allow_nan=False).encode("utf-8")
    parts: list[tuple[bytes, Upload | None]] = [
        (b'Content-Disposition: form-data; name="data"\r\n\r\n' + said, None)
    ]
    for upload in uploads:
        head = (
            f'Content-Disposition: form-data; name="files"; filename="base64;{upload.name}"\r\n'
            f"Content-Type: {upload.type}\r\n\r\n"
        )
        parts.append((head.encode("utf-8"), upload))
    return Form(form_boundary(), tuple(parts))


class _Body:
    """A request body that curl can read once.

    curl sends a POST again by itself when a kept connection turns out to be closed, even
    if the server had it already. A body that cannot be rewound stops that: what may be sent
    again, and when, is decided here alone. It also tells how far sending came.
    """

    def __init__(self, body: bytes | Form | Upload) -> None:
        self._pieces = iter([body] if isinstance(body, bytes) else body)
        self._piece = memoryview(b"")
        self._left = len(body)

    def read(self, size: int) -> bytes:
        while not self._piece and self._left:
            self._piece = memoryview(next(self._pieces))
        piece, self._piece = self._piece[:size], self._piece[size:]
        self._left -= len(piece)
        return bytes(piece)

    @property
    def sent(self) -> bool:
        return not self._left


class Exchange:
    """One HTTP exchange whose body is read as it comes, and which ends when told to.

    curl_cffi's own streams wait for the server when they are closed; a plain request
    with a callback for its body can be cancelled at any moment, and then closes at once.

    A connection is dead after `silence` seconds without a byte, of a `stream` without what
    makes sense (see `alive`), and after `limit` in all.
    What is uploaded may take its time on top of that: what curl has read of it may still
    be on this machine, so it says nothing. With `file`, so may what comes.

    At most `most` bytes may come; with `stream`, so many may be unread at a time. They are
    counted when they are decompressed, as a little can become very much then.
    """

    def __init__(
        self,
        session: AsyncSession[Any],
        method: str,
        url: str,
        *,
        body: bytes | Form | Upload | None,
        silence: float,
        limit: float,
        most: int,
        stream: bool = False,
        file: bool = False,
        **options: Any,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._host = urlsplit(url).netloc
        self._pieces: list[bytes] = []
        self._news = asyncio.Event()
        self._silence = silence
        upload = len(body or b"") / limits.slowest_upload
        self._end = self._loop.time() + limit + upload
        self._beat = self._loop.time() + upload
        self._late = False
        self._most = most
        self._count = 0  # bytes that came, or that are unread
        self._all = 0  # bytes that came
        self._is_stream = stream
        self._is_file = file
        self._body = None if body is None else _Body(body)
        self._request = functools.partial(
            session.request,
            cast(Any, method),
            url,
            content=cast(Any, self._body),
            content_callback=self._take,
            allow_redirects=False,  # a redirect could take the cookies elsewhere
            verify=True,
            timeout=0,  # deadlines are kept here: curl's do not bound silence
            **options,
        )
        self.task = asyncio.create_task(self._run())
        self._watch = self._loop.call_at(self._deadline, self._look)
        self.reply = HttpResponse(0, "", b"")
        self.head = bytearray()  # how the body begins: what a refusal says

    @property
    def _sent(self) -> bool:
        return self._body.sent if self._body else True

    @property
    def _deadline(self) -> float:
        return min(self._beat + self._silence, self._end)

    def alive(self) -> None:
        """Something came over a stream that shows the server at work."""
        self._beat = max(self._beat, self._loop.time())

    def _take(self, piece: bytes) -> int:
        if self._is_stream:  # a byte now and then is no sign of life, but a long line takes time
            self._beat = min(
                max(self._beat, self._loop.time()), self._beat + len(piece) / limits.slowest_upload
            )
        else:
            self._beat = self._loop.time()
        if len(self.head) < 10_000:
            self.head += piece
        self._count += len(piece)
        self._all += len(piece)
        if self._count > self._most or self._is_endless:
            self._pieces.clear()
            return CURL_WRITEFUNC_ERROR
        if self._is_file:
            self._end += len(piece) / limits.slowest_upload
        self._pieces.append(piece)
        self._news.set()
        return len(piece)

    def _look(self) -> None:
        if self._loop.time() < self._deadline:
            self._watch = self._loop.call_at(self._deadline, self._look)
        else:
            self._late = True
            self.task.cancel()

    async def _run(self) -> None:
        from curl_cffi.requests.exceptions import RequestException

        try:
            response = await self._request()
            kind = str(response.headers.get("content-type") or "").lower()
            disposition = str(response.headers.get("content-disposition") or "")
            headers = tuple(response.headers.multi_items())
            self.reply = HttpResponse(response.status_code, kind, b"", disposition, headers)
        except RequestException as error:
            if self._count > self._most or self._is_endless:
                raise self.too_much() from None
            raise _lost(error, self._sent) from None
        except asyncio.CancelledError:
            if not self._late:
                raise
            waited = f"{self._silence:.0f} seconds"
            why = f"the server said nothing for {waited}"
            if self._loop.time() >= self._end:
                why = f"it did not answer within {waited}"
            raise ConnectionLost(why, sent=self._sent, silent=True) from None
        finally:
            self._watch.cancel()
            self._news.set()

    @property
    def _is_endless(self) -> bool:
        return self._is_stream and self._all > STREAM_LIMIT

    def too_much(self) -> TooLarge:
        """The error for a body that is longer than any real one."""
        most = STREAM_LIMIT if self._is_endless else self._most
        return TooLarge(
            f"{self._host} sent more than {most // 1_000_000:,} MB, which is more than any real "
            "answer has. The connection was closed."
        )

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, what came meanwhile in one piece.

        Raises Lost or TooMuch; `reply` is there at its end.
        """
        while True:
            if self._pieces:
                piece, self._pieces = b"".join(self._pieces), []
                if self._is_stream:
                    self._count -= len(piece)
                yield piece
                continue
            if self.task.done():
                await self.task
                return
            self._news.clear()
            await self._news.wait()

    async def whole(self, into: BinaryIO | None = None) -> HttpResponse:
        """The exchange's answer once it is all there; its body is in `into` if that is given.

        Raises Lost, TooMuch, or Refused for any status but 200.
        """
        body = bytearray()
        try:
            async for piece in self.pieces():
                if into:
                    into.write(piece)
                else:
                    body += piece
        finally:
            self.drop()
        reply = replace(self.reply, body=cast(bytes, body))  # not copied: it may be large
        if reply.status != 200:
            raise HttpError(replace(reply, body=bytes(self.head)))
        return reply

    def drop(self) -> None:
        """End it now; what is under way is closed."""
        self._watch.cancel()
        self.task.cancel()


def _heard(task: asyncio.Future[Any]) -> None:
    """Take note of a task's failure, so that asyncio does not report it."""
    if not task.cancelled():
        task.exception()


CERTIFICATE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def _lost(error: RequestException, sent: bool) -> ConnectionLost:
    """A libcurl error in words, as far as a person can act on it."""
    code = 97 if "tunnel failed" in str(error) else int(error.code or 0)
    words = {
        3: "the address is not one that a connection can be made to",
        5: "the proxy's name is not known",
        6: "there is no such host, or no network",
        7: "nobody is listening there",
        28: "it took too long",
        35: "the encrypted connection could not be set up",
        60: "its certificate is not trusted",
        77: "the certificates to trust cannot be read",
        97: "the proxy refused",
    }
    if code in (3, 5, 6, 7, 35, 60, 77, 97):
        sent = False
    why = words.get(code, f"the connection broke (curl error {code})")
    if code in (60, 77):
        why += certificate_hint()
    return ConnectionLost(why, sent=sent, final=code in (3, 60, 77))


def certificate_hint() -> str:
    """Where the certificates to trust are taken from: curl_cffi's order of variables."""
    for name in CERTIFICATE_VARIABLES:
        if path := os.environ.get(name):
            there = "" if os.path.isfile(path) else ", which is not a file that is there"
            return f". {name} names those to trust: {plain(path, 200)}{there}"
    names = f"{', '.join(CERTIFICATE_VARIABLES[:-1])} or {CERTIFICATE_VARIABLES[-1]}"
    return f". To trust a company's own, name a file that has it in {names}"


@frozen
class Credentials:
    """A server, and the cookies for it."""

    server: Server
    cookies: Cookies | None

    @property
    def public(self) -> Credentials:
        """For calls that need no login: with nothing but what the firewall gave."""
        waf = self.cookies and self.cookies.waf
        return Credentials(self.server, Cookies(None, waf=waf) if waf else None)


@dataclass
class _Known:
    """What is known of a conversation, and of its last run, without asking."""

    model: str = ""
    generation_id: str = ""
    message_id: str = ""  # of the answer
    stored: bool = False


def _may_help(trouble: ConnectionLost | HttpError, twice: bool) -> bool:
    """May trying again help? `twice` says that the server may have had the call already."""
    if isinstance(trouble, HttpError):
        return twice and trouble.reply.status in (502, 503, 504)
    return not (trouble.final or trouble.silent) and (twice or not trouble.sent)


# (Key name, hf-chat, token) of a session that has ended -> the one that was made after it.
_successors: dict[tuple[str, str | None, str | None], Cookies] = {}


def latest(access: Credentials) -> Credentials:
    """`access` with the session that was made after its own had ended, if one was."""
    cookies = access.cookies
    while cookies:
        name = access.server.key_name, cookies.hf_chat, cookies.token
        if name not in _successors:
            break
        newer = _successors[name]
        cookies = replace(cookies, hf_chat=newer.hf_chat, since=newer.since)
    return replace(access, cookies=cookies)


def _succeeds(access: Credentials, newer: Cookies) -> None:
    """Remember that `newer` goes on where the session of `access` has ended."""
    key_name, old = access.server.key_name, cast(Cookies, access.cookies)
    _successors.pop((key_name, newer.hf_chat, newer.token), None)  # no session after itself
    if newer.hf_chat != old.hf_chat:
        _successors[key_name, old.hf_chat, old.token] = newer


LOGIN_STEPS = 6  # redirects that a login may take; the service's takes three


class Client:
    """The connections of one event loop, kept between turns and closed when unused."""

    def __init__(self) -> None:
        from curl_cffi import CurlOpt
        from curl_cffi.requests import AsyncSession

        self._session: AsyncSession[Any] = AsyncSession(
            max_clients=1000,
            discard_cookies=True,
            curl_options=cast(Any, {CurlOpt.QUICK_EXIT: 1}),  # no waiting for a slow resolver
        )
        # curl_cffi frees a request's callbacks before curl, which calls them with the head that
        # has come so far when the request ends in the middle of it: the process would abort.
        session, release = self._session, self._session.release_curl

        def remove_first(curl: Any) -> None:
            if not session._closed:
                session.acurl.remove_handle(curl)
            release(curl)

        cast(Any, session).release_curl = remove_first
        self._known: dict[str, _Known] = {}  # by conversation id, the latest last
        # conversation id -> held while a run goes on
        self._busy: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._renewing: dict[tuple[str, str], asyncio.Task[None]] = {}
        self.turns: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._used = time.monotonic()
        self._keeper = asyncio.create_task(self._keep())

    @staticmethod
    def here() -> Client:
        """The running loop's client, made when it is first asked for."""
        loop = asyncio.get_running_loop()
        if loop not in _clients:
            _clients[loop] = Client()
            _close_with(loop)
        _clients[loop]._used = time.monotonic()
        return _clients[loop]

    async def _keep(self) -> None:
        """Close when unused for a while, or with the loop: its last act is to cancel this."""
        loop = asyncio.get_running_loop()
        try:
            while self._is_used():  # noqa: ASYNC110 - it waits for a time, not for an event
                await asyncio.sleep(limits.keep_alive / 4)
        finally:
            if _clients.get(loop) is self:
                del _clients[loop]
            if self.turns:  # they are being cancelled too, and have to tell the server
                await asyncio.wait(list(self.turns), timeout=limits.stop_timeout)
            for task in list(self._tasks):
                task.cancel()
            if self._tasks:
                await asyncio.wait(list(self._tasks), timeout=limits.stop_timeout)
            await self._session.close()

    async def close(self) -> None:
        """Stop what goes on, close what is open, within a second or two."""
        for turn in list(self.turns):
            turn.cancel()
        self._keeper.cancel()
        await asyncio.wait([self._keeper])

    def _is_used(self) -> bool:
        at_work = self._tasks or any(not turn.done() for turn in self.turns)
        return bool(at_work) or time.monotonic() - self._used < limits.keep_alive

    def busy(self, conversation_id: str) -> asyncio.Lock:
        """Held by the run that goes on in a conversation: chat-ui can keep only one."""
        lock = self._busy.get(conversation_id) or asyncio.Lock()
        self._busy[conversation_id] = lock
        return lock

    def known(self, conversation_id: str) -> _Known:
        """What is known of a conversation."""
        return self._known.get(conversation_id) or _Known()

    def know(self, conversation_id: str, known: _Known) -> None:
        """Remember it, for the 1,000 conversations that were used last."""
        self._known.pop(conversation_id, None)
        self._known[conversation_id] = known
        if len(self._known) > 1000:
            del self._known[next(iter(self._known))]

    def beside(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` beside the turn; its failure is nobody's, and the loop's end ends it."""
        task = asyncio.create_task(work)
        self._watch(task)
        return task

    def _watch(self, task: asyncio.Task[Any]) -> None:
        """Connections are not unused as long as `task` goes on."""
        self._tasks.add(task)
        task.add_done_callback(self._unwatch)

    def _unwatch(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._used = time.monotonic()
        _heard(task)

    def open(
        self,
        access: Credentials,
        method: str,
        path: str,
        *,
        body: bytes | Form | Upload | None = None,
        beats: bool = False,
        limit: float = math.inf,
        most: int | None = None,
        file: bool = False,
    ) -> Exchange:
        """Begin an exchange. `path` follows the server's address.

        `beats`: the server gives a sign of life all the time. `limit` is seconds in all,
        `most` bytes of the answer. `file`: the more of it comes the longer it may take.
        """
        server = access.server
        self._used = time.monotonic()
        headers: dict[str, str | None] = {
            "Accept": "*/*",  # one that prefers HTML gets 405 and a page
            "Origin": server.origin,  # another, or none, gets 403
            "User-Agent": "llm-huggingchat",
        }
        browser = impersonated_browser()
        if browser:
            headers = browser_headers(browser, server, method)
        if cookies := latest(access).cookies:
            headers["Cookie"] = cookies.header()
        if body is not None:
            kind = "application/json" if isinstance(body, bytes) else body.content_type
            headers |= {"Content-Type": kind, "Content-Length": str(len(body))}
        options: dict[str, Any] = {"headers": headers, "accept_encoding": "gzip, deflate, br"}
        if beats:
            options["accept_encoding"] = "identity"  # a compressor could hold events back
        if browser:
            options |= {"impersonate": browser, "accept_encoding": None}
            if server.url.startswith("http:"):
                options["http_version"] = "v1"  # no browser asks for HTTP/2 there
        if server.is_loopback:
            options["proxies"] = {"all": ""}  # plain http must not leave this machine
        exchange = Exchange(
            self._session,
            method,
            server.url + path,
            body=body,
            silence=limits.read_timeout
            if beats
            else max(limits.call_timeout, min(limit, limits.transcribe_timeout)),
            limit=limit,
            most=most or LINE_LIMIT,
            stream=beats,
            file=file,
            **options,
        )
        self._watch(exchange.task)
        return exchange

    async def call(
        self,
        access: Credentials,
        method: str,
        path: str,
        value: Any = None,
        *,
        tries: int = limits.max_attempts,
        twice: bool = True,
        body: bytes | Upload | None = None,
        limit: float | None = None,
        most: int | None = None,
        into: BinaryIO | None = None,
    ) -> HttpResponse:
        """One whole exchange, tried again when the connection fails or the server is away.

        `value` is sent as JSON, or `body` as it is. `twice`: the call may safely be made
        twice; else it is tried again only when it was not sent. It takes `limit` seconds in
        all, or CALL_LIMIT. `most` is how many bytes may come, else JSON_LIMIT; with `into`, a
        file, they become all that is in it. Raises Lost, TooMuch, or Refused for any status
        but 200. A session that has ended is renewed, once; llm.ModelError where it cannot be.
        """
        most = most or JSON_LIMIT
        if value is not None:
            body = json.dumps(value, allow_nan=False).encode()
            most += 8 * len(body)  # what was sent may be in the answer, quoted, and twice
        access = await self.with_session(access)
        begun = time.monotonic()
        end = begun + (limits.call_timeout if limit is None else limit)
        backoff = Backoff(begun, tries)
        renewed = arrived = False
        while True:
            try:
                exchange = self.open(
                    access,
                    method,
                    path,
                    body=body,
                    limit=end - time.monotonic(),
                    most=most,
                    file=into is not None,
                )
                if into:
                    into.seek(0)
                    into.truncate()
                return await exchange.whole(into)
            except (ConnectionLost, HttpError) as trouble:
                if not renewed and await self.has_ended(access, trouble, path):
                    access, renewed = await self.renew(access), True
                    continue
                again = _may_help(trouble, twice)
                pause = backoff.pause(time.monotonic()) if again else None
                if isinstance(trouble, HttpError):
                    trouble.again = arrived
                if pause is None:
                    raise
                arrived = arrived or isinstance(trouble, HttpError) or trouble.sent
            await asyncio.sleep(pause)

    async def change(
        self, access: Credentials, method: str, path: str, value: Any = None, **options: Any
    ) -> HttpResponse:
        """`call` for something of a conversation. Raises Gone when that is not there."""
        try:
            return await self.call(access, method, path, value, **options)
        except HttpError as refused:
            if refused.reply.is_hidden:
                raise NotFound from None
            raise

    async def get(
        self,
        access: Credentials,
        path: str,
        tries: int = limits.max_attempts,
        most: int | None = None,
    ) -> Any:
        """The JSON at `path`, of at most `most` bytes. Raises Lost, Refused, llm.ModelError."""
        reply = await self.call(access, "GET", path, tries=tries, most=most)
        return await asyncio.to_thread(reply.json) if len(reply.body) > LARGE else reply.json()

    async def user(self, access: Credentials) -> dict[str, Any]:
        """The account that is logged in; empty for nobody."""
        return _mapping(unwrap(await self.get(access, "/api/v2/user")))

    async def flags(self, access: Credentials) -> dict[str, Any]:
        """What the server offers, by chat-ui's names; no login is needed."""
        return _mapping(unwrap(await self.get(access.public, "/api/v2/feature-flags")))

    async def wants_login(self, access: Credentials) -> bool:
        """Has the server accounts at all?"""
        return (await self.flags(access)).get("loginEnabled") is not False

    async def transcribe(self, access: Credentials, recording: Upload) -> str:
        """What is said in a recording; "" for silence. Its type is one of AUDIO_TYPES' values.

        chat-ui (src/routes/api/transcribe) waits 60 seconds for the service that it asks. It
        changes nothing, so it is asked for once more when the connection breaks; but not when
        it takes too long. Raises Lost, Refused, llm.ModelError.
        """
        ask = functools.partial(
            self.call,
            access,
            "POST",
            "/api/transcribe",
            body=recording,
            limit=limits.transcribe_timeout,
            most=TRANSCRIPT_LIMIT,
            twice=False,
        )
        try:
            reply = await ask()
        except ConnectionLost as lost:
            if not lost.sent or lost.silent:
                raise
            reply = await ask()
        text = _mapping(reply.json()).get("text")
        if not isinstance(text, str):
            raise protocol_error(access.server.host, "a transcript without a text")
        return join_surrogates(text).strip()

    async def with_session(self, access: Credentials) -> Credentials:
        """`access` with its latest session, which is made if `token` is all there is."""
        access = latest(access)
        if access.cookies and access.cookies.token and access.cookies.hf_chat is None:
            return await self.renew(access)
        return access

    async def has_ended(
        self, access: Credentials, trouble: ConnectionLost | HttpError, path: str = ""
    ) -> bool:
        """Was a call refused because the session of `access` has ended, and can it be renewed?

        To read a stranger's conversation is refused as if there were none.
        """
        can = access.cookies and access.cookies.token
        if not can or isinstance(trouble, ConnectionLost) or trouble.reply.is_firewall:
            return False
        private = path.startswith(("/conversation/", "/api/v2/conversations/"))
        if private and trouble.reply.is_hidden:
            return await self.wants_login(access) and not await self.user(access)
        return trouble.reply.wants_login

    async def renew(self, access: Credentials) -> Credentials:
        """`access` with a new session, as its own has ended, or as it has none.

        The session is made from `token`, once for all who ask at the same time, in this
        process and others. Raises llm.ModelError where that wants a person; Lost, Refused.
        """
        newer, cookies = latest(access), access.cookies
        if newer != access:
            return newer
        if cookies is None or cookies.token is None:
            raise login_error(access.server, cookies)
        name = access.server.key_name, cookies.token
        task = self._renewing.get(name)
        if task is None:
            task = self._renewing[name] = self.beside(self._renew(access))
            task.add_done_callback(lambda _: self._renewing.pop(name, None))
        await asyncio.shield(task)  # of one who leaves, the others still get theirs
        return latest(access)

    async def _renew(self, access: Credentials) -> None:
        server, cookies = access.server, cast(Cookies, access.cookies)
        async with one_login():
            kept = keys_of(server, cookies).get(server.key_name)
            if kept and kept.hf_chat not in (None, cookies.hf_chat):
                # Somebody made one meanwhile, unless that has ended as well.
                theirs = replace(cookies, hf_chat=kept.hf_chat).pairs()
                with contextlib.suppress(HttpError):
                    if await self.user(
                        Credentials(server, Cookies(None, passing=tuple(theirs.items())))
                    ):
                        return _succeeds(access, kept)
            try:
                made = await self._log_in(access)
            except (HttpError, llm.ModelError):
                if cookies.hf_chat or await self.wants_login(access):
                    raise
                made = replace(cookies, hf_chat=str(uuid.uuid4()))  # any will do
            for name, kept in keys_of(server, cookies).items():
                value = replace(kept, hf_chat=made.hf_chat, since=made.since).to_key()
                try:
                    keep_key(name, value)
                except llm.ModelError as error:
                    note(f"{error} The new session is for this process alone.")
        return _succeeds(access, made)

    async def _log_in(self, access: Credentials) -> Cookies:
        """A session from `token`: GET BASE/login, and where it leads (login_renewed.json).

        The login provider of the service shares its origin. Nothing else is followed, as
        `token` would go there: it opens the whole account.
        """
        server, cookies = access.server, cast(Cookies, access.cookies)
        jar, url = replace(cookies, hf_chat=None).pairs(), f"{server.url}/login"
        for _ in range(LOGIN_STEPS):
            step = Credentials(Server(server.origin), Cookies(None, passing=tuple(jar.items())))
            try:
                reply = await self.call(step, "GET", url.removeprefix(server.origin))
            except HttpError as refused:
                reply = refused.reply
                if reply.is_firewall or reply.status == 429 or reply.status >= 500:
                    raise
            jar |= reply.set_cookies()
            if reply.status not in REDIRECTS:
                break
            was, url = url.partition("?")[0], own_target(url, reply.header("location"))
            if not url:
                break
            if was == f"{server.url}/login/callback" and "hf-chat" in reply.set_cookies():
                if url.partition("?")[0] == f"{server.url}/login":
                    continue  # it wants to begin again, once
                return replace(cookies, hf_chat=jar["hf-chat"], since=time.time())
        raise login_error(server, cookies)

    async def catalogue(self, access: Credentials) -> tuple[ModelInfo, ...]:
        """The server's models; no login is needed, so none is sent."""
        try:
            return read_catalogue(await self.get(access.public, "/api/v2/models"))
        except ValueError:
            raise HuggingChatError(
                f"{access.server.url} gave a catalogue without models. "
                f"Is {SERVER_VARIABLE} the address of a chat-ui server?"
            ) from None

    async def conversation(
        self,
        access: Credentials,
        id: str,
        tries: int = limits.max_attempts,
        most: int | None = None,
    ) -> dict[str, Any]:
        """A conversation with its messages. Raises Lost, Refused, Gone, llm.ModelError."""
        try:
            value = await self.get(access, api_path(id), tries, most or TREE_LIMIT)
            conversation = _mapping(unwrap(value))
        except HttpError as refused:
            # 400 is a malformed id, 403 another account's, 404 a deleted one.
            if refused.reply.is_hidden or refused.reply.status == 400:
                raise NotFound from None
            raise
        if not isinstance(conversation.get("messages"), list):
            raise protocol_error(access.server.host, "a conversation without messages")
        if isinstance(conversation.get("model"), str):
            self.known(id).model = conversation["model"]
        return conversation

    async def stop(self, access: Credentials, id: str, generation_id: str, seen: int) -> None:
        """End a run. `seen` is the length in UTF-16 units at which its text is cut."""
        value = {"generationId": generation_id, "seenContentLength": seen}
        with contextlib.suppress(ConnectionLost, HttpError):
            await self.call(access, "POST", f"{chat_path(id)}/stop-generating", value)


_clients: dict[asyncio.AbstractEventLoop, Client] = {}
_gates: dict[str, RateLimiter] = {}  # by the server's address, for all loops


_closing: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


def _close_with(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop's client with the loop, also when nobody cancels its tasks before."""
    if loop in _closing:
        return
    _closing.add(loop)
    close = loop.close

    def closing() -> None:
        client = _clients.get(loop)
        if client and not loop.is_closed():
            loop.run_until_complete(client.close())
        close()

    with contextlib.suppress(AttributeError):  # a loop that is not written in Python
        loop.close = closing  # type: ignore[method-assign]


def _close_all() -> None:
    """At the end of the process: loops that nobody closed, as after Ctrl-C."""
    for loop, client in list(_clients.items()):
        if loop.is_running() or loop.is_closed():
            continue
        closing = loop.create_task(client.close())
        for _ in range(3):  # what Ctrl-C left behind may come up first
            with contextlib.suppress(BaseException):
                loop.run_until_complete(closing)
                break


atexit.register(_close_all)


def model_error(
    error: ConnectionLost | HttpError | NotFound | IncompleteAnswer,
    access: Credentials,
    *,
    model: str = "",
    page: str = "",
) -> llm.ModelError:
    """The llm.ModelError that tells a person what `error` means and what to do next."""
    server, cookies = access.server, access.cookies
    where = f" The conversation is at {page}" if page else ""
    if isinstance(error, ConnectionLost):
        told = "" if server.is_service else f" {SERVER_VARIABLE} names that server."
        verb = "No connection to" if not error.sent else "No answer from"
        return HuggingChatError(f"{verb} {server.host}: {error}.{told}{where}")
    if isinstance(error, IncompleteAnswer):
        return HuggingChatError(f"{error}{where}")
    if isinstance(error, NotFound):
        what = "answer to go on from" if error.answer else "conversation"
        return HuggingChatError(f"There is no such {what} on {server.host} for this account.")
    status, said = error.reply.status, error.reply.message
    quoted = f": {said}" if said else ""
    if error.reply.is_firewall:
        return firewall_error(server, status)
    if error.reply.wants_login:
        return login_error(server, cookies)
    if status in REDIRECTS:
        address = "somewhere"
        with contextlib.suppress(ValueError):
            target = urlsplit(urljoin(server.url, error.reply.header("location")))
            address = f"{target.scheme}://{target.netloc.rpartition('@')[2]}{target.path}"
        return HuggingChatError(
            f"{server.host} redirects to {plain(address, 200)} (HTTP {status}), which is not "
            f"followed: cookies go to the configured host alone. Is {SERVER_VARIABLE} right? "
            "If that page wants a login, run: llm huggingchat login"
        )
    if status == 400 and "too long" in said.lower():
        return HuggingChatError("The server refused the message: it is too long. Shorten it.")
    if status == 400:
        about = f"{model!r}" if model else "the request"
        return HuggingChatError(
            f"{server.host} refused {about} (HTTP 400{quoted}). "
            "If it does not know the model, run: llm huggingchat refresh"
        )
    if status == 403:
        return HuggingChatError(f"{server.host} refused access (HTTP 403{quoted}).{where}")
    if status == 404:
        return HuggingChatError(
            f"{server.url} knows no such page (HTTP 404{quoted}). "
            f"Is {SERVER_VARIABLE} the address of a chat-ui server?{where}"
        )
    if status == 410:
        return HuggingChatError(
            f"The model {model or 'of this conversation'} is not available anymore. "
            "Run: llm huggingchat refresh"
        )
    if status == 413:
        return HuggingChatError(
            f"The server refused the attachments: too large (HTTP 413{quoted}). "
            "A file may have 10 MB, and all files of a message some 11 MB together."
        )
    if status == 429 and not error.reply.wants_pause:
        return HuggingChatError(f"{server.host} has a limit (HTTP 429{quoted}).{where}")
    if status == 429:
        later = "Try again later."
        if model:
            later = f"Try again later, or let prompts wait: {WAIT_VARIABLE}=600 (seconds)."
        if error.waited is not None:
            later = (
                f"The message waited for {error.waited:.0f} seconds, and the next try is later "
                f"than {WAIT_VARIABLE} allows."
            )
        return HuggingChatError(f"{server.host} wants a pause (HTTP 429{quoted}). {later}")
    if status == 200:
        return HuggingChatError(
            f"{server.host} answered with a web page, not with a chat. Is there a proxy or a "
            f"login page in between, or is {SERVER_VARIABLE} wrong?"
        )
    if status >= 500:
        return HuggingChatError(
            f"{server.host} has a problem of its own (HTTP {status}{quoted}). "
            f"Try again later.{where}"
        )
    return HuggingChatError(f"{server.host} answered HTTP {status}{quoted}.{where}")


def failed(model: str, failure: Failed) -> llm.ModelError:
    """The model did not answer: what it, or its provider, says."""
    if "no output was generated" in failure.message.lower():
        return HuggingChatError(
            f"The model {model} gave an empty answer. Try again, or another model."
        )
    status = f" (HTTP {failure.status})" if failure.status else ""
    later = " Try again later." if failure.status in (429, 500, 502, 503, 504) else ""
    said = failure.message or "it did not say why"
    return HuggingChatError(f"The model {model} failed{status}: {said}.{later}")


def firewall_error(server: Server, status: int) -> llm.ModelError:
    """A firewall lets browsers pass, and not this client: what helps."""
    browser = impersonated_browser() or ""
    other = f"another browser than {browser}" if browser else "a browser"
    example = "firefox" if browser.startswith("chrome") else "chrome"
    return HuggingChatError(
        f"A firewall before {server.host} refused this client (HTTP {status}): it asks for a "
        f"browser. Name {other} in {BROWSER_VARIABLE}, such as {example};\nor open {server.url} in "
        "your browser, and give its cookie 'aws-waf-token' with the others: llm huggingchat login"
    )


def login_error(server: Server, cookies: Cookies | None) -> llm.ModelError:
    """Why the server does not take the cookies, and how to give it better ones."""
    again = f"Run: llm huggingchat login (or llm keys set {server.key_name})"
    if cookies is None or cookies.made_up:
        return LoginRequired(f"{server.host} wants a login, and there is no key. {again}")
    if cookies.token is None:
        return HuggingChatError(
            f"Not logged in on {server.host}: the cookie 'token' is missing beside 'hf-chat'. "
            f"{again}"
        )
    return HuggingChatError(
        f"Not logged in on {server.host}: the cookie 'token' is expired or wrong, or a person has "
        f"to agree first. Open {server.url}/login in your browser.\n{again}"
    )


# --- tools: llm's server-side tools -> what the server is to select -------------------

NOT_LOGGED = "(not logged)"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110: what a header's name may be
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class _ToolType(type):
    """Creates a tool with the arguments that may be logged, and then tells it all of them.

    llm logs what a tool's __init__ gets, and creates the tool from it again for `llm -c`.
    What a header or a query holds may be a secret, so __init__ gets only the name of one.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            arguments = inspect.signature(cls).bind(*args, **kwargs).arguments
        except TypeError as error:
            usage = f"{cls.__name__}{inspect.signature(cls)}"
            raise HuggingChatError(f"{cls.__name__}: {plain(error)}. It is {usage}.") from None
        tool = super().__call__(**cls.loggable(arguments))  # type: ignore[attr-defined]
        tool.arguments = arguments
        return tool


class HuggingChatTool(llm.ServerSideTool, metaclass=_ToolType):
    """A tool that runs on the chat server."""

    plugin = "llm-huggingchat"
    feature = ""  # what it is for, in words
    # Patterns for the name or the address of a tool server that has it, the surest first.
    patterns: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = NOTHING

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)  # type: ignore[no-untyped-call]
        # `llm tools` shows the signature: with types in it, not their names in quotes.
        shown = inspect.signature(cls.__init__, eval_str=True)
        parameters = list(shown.parameters.values())[1:]
        cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]

    @classmethod
    def loggable(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments without secrets. Raises HuggingChatError for one of a wrong type."""
        return arguments


class WebSearch(HuggingChatTool):
    """Search the web, with the chat server's own search."""

    name = "web_search"
    feature = "web search"
    patterns = (r"web.?search", r"search", r"\b(exa|tavily|brave|serper|duckduckgo)\b")

    def __init__(self) -> None:
        super().__init__()


class HuggingFace(HuggingChatTool):
    """Search models, datasets, papers and Spaces on Hugging Face."""

    name = "hugging_face"
    feature = "Hugging Face tools"
    patterns = (r"hugging.?face", r"\bhf\b|\bhf\.co\b")

    def __init__(self) -> None:
        super().__init__()


class MCP(HuggingChatTool):
    """Use the tools of a public https MCP server. A $NAME in a header or the URL stands
    for that environment variable, or key in llm's key store: only the name is logged."""

    name = "mcp"

    def __init__(
        self, url: str, name: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__()

    @classmethod
    def loggable(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments, with only names of secrets. Raises HuggingChatError for a wrong type."""
        url, headers = arguments["url"], arguments.get("headers") or {}
        if not isinstance(url, str):
            raise HuggingChatError('MCP\'s url is text, like "https://example.org/mcp".')
        if not isinstance(arguments.get("name") or "", str):
            raise HuggingChatError("MCP's name is text.")
        if not isinstance(headers, dict) or not all(
            isinstance(value, str) for value in headers.values()
        ):
            raise HuggingChatError('MCP\'s headers are names with values, like {"X-Team": "docs"}.')
        shown = {name: _only_names(value) for name, value in headers.items()}
        return arguments | {"url": _loggable_url(url), "headers": shown or None}

    def request(self, server: Server) -> dict[str, Any]:
        """The server for `selectedMcpServers`. Raises HuggingChatError."""
        url = _filled("URL", self.arguments["url"])
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
        except ValueError:
            parts, host = urlsplit(""), ""
        if "@" in parts.netloc:
            raise HuggingChatError(
                "MCP's URL holds a user name or a password. Put them into a header, "
                'like {"Authorization": "Basic $NAME"}.'
            )
        local = server.is_loopback and _is_loopback(host) and parts.scheme in ("http", "https")
        public = host and not _is_private(host) and parts.scheme == "https"
        if not (public or local):
            # The rest of the address may be a secret, or all of it.
            given = f", not {plain(f'{parts.scheme}://{host}', 100)!r}" if host else ""
            raise HuggingChatError(
                "MCP wants the https address of a public server, "
                f"like https://example.org/mcp{given}."
            )
        headers = [_header(*header) for header in (self.arguments.get("headers") or {}).items()]
        name = plain(self.arguments.get("name") or "", 100) or host
        return {"name": name, "url": url, "headers": headers}


def _header(name: str, value: str) -> dict[str, str]:
    """A header for chat-ui, which drops the whole tool for one that HTTP cannot carry."""
    what = f"header {plain(name, 60)!r}"
    if not _TOKEN.fullmatch(name):
        raise HuggingChatError(
            f"MCP's {what} is not a valid header name: use letters, digits and hyphens."
        )
    value = _filled(what, value)
    if not _FIELD_VALUE.fullmatch(value):
        raise HuggingChatError(
            f"The value of MCP's {what} has a line end or a character beyond Latin-1, "
            "which HTTP cannot carry."
        )
    return {"key": name, "value": value}


def _filled(what: str, value: str) -> str:
    """`value` with each $NAME replaced by what it stands for."""
    if NOT_LOGGED in value:
        raise HuggingChatError(
            f"The value of MCP's {what} is not kept in the logs. "
            "Give -T again, or write it as $NAME of an environment variable or llm key."
        )

    def value_of(match: re.Match[str]) -> str:
        if match[1] == KEY_VARIABLE or match[1].startswith("huggingchat"):
            raise HuggingChatError(
                f"MCP's {what} names ${match[1]}: the chat's own cookies go to no other server."
            )
        found = os.environ.get(match[1]) or stored_key(match[1])
        if found is None:
            raise HuggingChatError(
                f"MCP's {what} names ${match[1]}, which is neither an environment variable "
                "nor a key of llm."
            )
        return found

    return re.sub(r"\$(\w+)", value_of, value)


def _only_names(value: str) -> str:
    """A value for the log: itself if it only names a secret."""
    return value if re.fullmatch(r"(?:(?:Bearer |Basic |Token )?\$\w+)?", value) else NOT_LOGGED


def _loggable_url(url: str) -> str:
    """An address for the log: only names of secrets in its query; nothing if it is no address."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return NOT_LOGGED
    if not parts.netloc or "@" in parts.netloc:
        return NOT_LOGGED
    pairs = [pair.rpartition("=") for pair in parts.query.split("&")]
    query = "&".join(name + equals + _only_names(value) for name, equals, value in pairs)
    return parts._replace(query=query, fragment=_only_names(parts.fragment)).geturl()


def mcp_servers(tools: Iterable[llm.ServerSideTool], server: Server) -> list[dict[str, Any]]:
    """The MCP servers given by address, each once, for chat-ui's `selectedMcpServers`.

    Raises HuggingChatError for an address or a header that cannot be used.
    """
    servers: list[dict[str, Any]] = []
    for tool in tools:
        if isinstance(tool, MCP) and (request := tool.request(server)) not in servers:
            servers.append(request)
    return servers


def with_unique_names(
    servers: Iterable[dict[str, Any]], taken: Iterable[str]
) -> list[dict[str, Any]]:
    """MCP servers with names that differ from each other and from those `taken`.

    Of two servers with one name, chat-ui keeps the last. Each name must be among the
    `selectedMcpServerNames` as well, or chat-ui drops the server.
    """
    used, unique = set(taken), list[dict[str, Any]]()
    for server in servers:
        name, numbers = server["name"], itertools.count(2)
        while name in used:
            name = f"{server['name']} {next(numbers)}"
        used.add(name)
        unique.append(server | {"name": name})
    return unique


def tool_server_name(offered: Iterable[tuple[str, str]], tool: HuggingChatTool) -> str:
    """The name of the server among those `offered` that has such a tool.

    `offered` are names and addresses, as GET api/mcp/servers lists them.
    Raises HuggingChatError when there is none.
    """
    servers = [server for server in offered if server[0]]
    for by_name_or_address in (0, 1):
        for pattern in tool.patterns:
            for server in servers:
                if re.search(pattern, server[by_name_or_address], re.IGNORECASE):
                    return server[0]
    there = ", ".join(plain(name, 60) for name, _ in servers) or "none"
    raise HuggingChatError(f"This server offers no {tool.feature}. Its tool servers: {there}.")


# --- turn: does what the run says: create or find, send, follow, look, wait, stop -----


@frozen
class TurnRequest:
    """All that one turn needs. `anew` is the plan for when the conversation is gone."""

    access: Credentials
    model: str
    plan: Plan
    anew: Plan | None
    retry: bool = False
    tools: tuple[llm.ServerSideTool, ...] = ()
    uploads: tuple[Upload, ...] = ()
    note: Callable[[str], None] = note
    wait: float = 0.0  # seconds that the message may wait when the server wants a pause
    screen: Screen | None = None


@dataclass
class TurnResult:
    """What became of a turn; filled while it runs."""

    server: str
    model: str
    conversation_id: str | None = None
    message_id: str | None = None
    generation_id: str | None = None
    title: str = ""
    router: RouterMetadata = RouterMetadata("", "", "")
    interrupted: bool = False
    sent: SentInstructions = SentInstructions()
    calls: list[LocalToolCall] = field(default_factory=list)
    size: int = 0  # characters of the answer

    @property
    def parent(self) -> Parent:
        """The answer, to continue after."""
        id = self.conversation_id or ""
        return Parent(id, self.message_id, self.generation_id, self.model, self.sent)

    @property
    def resolved_model(self) -> str:
        """The model that answered: with the router, the one that it chose."""
        return self.router.model or self.model

    def _known(self) -> dict[str, Any]:
        known = {
            "conversation_id": self.conversation_id,
            "message_id": self.message_id,
            "generation_id": self.generation_id,
            "server": self.server,
            "model": self.model,
        }
        return {name: value for name, value in known.items() if value}

    def metadata(self) -> dict[str, Any]:
        """What the next turn needs, as llm's `provider_metadata`."""
        return {"huggingchat": self._known() | self.sent.metadata()}

    def response_json(self) -> dict[str, Any] | None:
        """What `response.json()` says of the turn; None when its answer is very long.

        llm 0.36 looks for each text of the answer in it, with a regular expression that
        takes a hundred times the memory of the text.
        """
        if self.size > DESCRIBED_LIMIT:
            return None
        known = self._known()
        if self.conversation_id:
            known["url"] = Server(self.server).page(self.conversation_id)
        more = {
            "title": self.title,
            "provider": self.router.provider,
            "route": self.router.route,
            "interrupted": self.interrupted,
        }
        return {"huggingchat": known | {name: value for name, value in more.items() if value}}


# How a question was closed, in words.
_CLOSED = {
    "user": "Answered elsewhere.",
    "expired": "The time to answer is over.",
    "withdrawn": "The tool did not wait any longer.",
    "aborted": "Stopped.",
}


class Questions:
    """The questions of an answer's tools: each is put to a person, after the one before it."""

    def __init__(self, client: Client, ask: TurnRequest) -> None:
        self._client = client
        self._ask = ask
        self._count = 0
        self._last: asyncio.Task[None] | None = None
        # By the questions' ids:
        self._puttings: dict[str, asyncio.Task[None]] = {}
        self._typing: dict[str, asyncio.Task[Answered]] = {}
        self._closed: dict[str, str] = {}  # why, where no answer had been typed yet

    def put(self, asked: Elicitation, conversation_id: str) -> Aside:
        """Have a person answer, once all that was given before is on the screen.

        Raises llm.ModelError where there is nobody to ask.
        """
        screen = self._ask.screen
        if screen is None or not screen.can_ask(asked):
            page = self._ask.access.server.page(conversation_id)
            raise HuggingChatError(
                f"A tool asks something. {plain(asked.question)}\nAnswer it at {page}"
            )
        self._count += 1
        if self._count > QUESTIONS:
            raise TooLarge(f"The answer does not end: tools ask more than {QUESTIONS} questions.")
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        self._closed.pop(asked.id, None)  # a resumed run may ask again
        put = self._put(asked, conversation_id, screen, ready, self._last)
        self._puttings[asked.id] = self._last = putting = self._client.beside(put)
        if asked.until is not None:  # else the run ends, and `answered` tells
            putting.add_done_callback(self._tell_of_trouble)
        return Aside(lambda: loop.call_soon_threadsafe(ready.set))

    async def answered(self, asked: Elicitation) -> None:
        """Wait until a question is. Raises llm.ModelError when it cannot be."""
        await self._puttings[asked.id]

    async def close(self, resolved: ElicitationResolved) -> None:
        """A question is closed: whoever is still typing an answer comes too late.

        What is said of it on the screen comes before the answer goes on.
        """
        typing = self._typing.get(resolved.id)
        if resolved.id in self._puttings and (typing is None or not typing.done()):
            self._closed[resolved.id] = resolved.resolution
        if typing:
            typing.cancel()
            await asyncio.wait([self._puttings[resolved.id]], timeout=CLOSE_GRACE)

    def end(self) -> None:
        """Nobody wants an answer any more."""
        for putting in self._puttings.values():
            putting.cancel()

    async def _put(
        self,
        asked: Elicitation,
        conversation_id: str,
        screen: Screen,
        ready: asyncio.Event,
        earlier: asyncio.Task[None] | None,
    ) -> None:
        await ready.wait()
        if earlier:
            await asyncio.wait([earlier])
        if asked.id in self._closed:
            return
        screen.make_room()
        words = problem = ""
        try:
            while not words:
                typing = asyncio.ensure_future(screen.answer(asked, problem))
                self._typing[asked.id] = typing
                answered = await typing
                problem = await self._send(asked, answered, conversation_id)
                if not problem:
                    words = "Declined." if answered.action == "decline" else "Answered."
        except asyncio.CancelledError:
            if asked.id not in self._closed:
                raise
            words = _CLOSED.get(self._closed[asked.id], "The question was closed.")
        except OSError:
            why = "there is no terminal any more"
            raise self._not_answered(why, conversation_id) from None
        finally:
            screen.closed(words)

    async def _send(self, asked: Elicitation, answered: Answered, conversation_id: str) -> str:
        """Give the server the answer to a question; what is wrong with it, if anything.

        Raises llm.ModelError when it cannot be given.
        """
        value: dict[str, Any] = {"elicitationId": asked.id, "action": answered.action}
        if answered.content is not None:
            value["content"] = answered.content
        access, path = self._ask.access, f"{chat_path(conversation_id)}/elicitation"
        try:
            await self._client.call(access, "POST", path, value)
        except (ConnectionLost, HttpError) as trouble:
            reply = trouble.reply if isinstance(trouble, HttpError) else HttpResponse(0, "", b"")
            if reply.status == 409 and cast(HttpError, trouble).again:
                return ""  # it had arrived
            if reply.status == 400 and answered.content:
                return reply.message or "no reason given"
            if reply.status in (404, 409):
                why = reply.message or "it is not open any more"
                raise self._not_answered(why, conversation_id) from None
            told = model_error(trouble, access, page=access.server.page(conversation_id))
            raise HuggingChatError(f"The answer was not given. {told}") from None
        return ""

    def _not_answered(self, why: str, conversation_id: str) -> llm.ModelError:
        page = self._ask.access.server.page(conversation_id)
        return HuggingChatError(
            f"The question could not be answered: {why.rstrip('.')}. See {page}"
        )

    def _tell_of_trouble(self, putting: asyncio.Task[None]) -> None:
        """The run waits for an answer, and goes on without."""
        if not putting.cancelled() and (error := putting.exception()):
            self._ask.note(str(error))


class Turn:
    """One exchange: the message is sent once, and its answer given whole, or an error.

    What to do when is the Run's to say; this does it.
    """

    def __init__(
        self,
        client: Client,
        ask: TurnRequest,
        plan: Plan,
        outcome: TurnResult,
        calls: Iterable[Filter] = (),
        documents: Iterable[Filter] = (),
    ) -> None:
        self._client = client
        self._ask = ask
        self._access = ask.access
        self._plan = plan
        self._outcome = outcome
        self.answer = Answer(self._file_link, calls, documents)
        self._gate = (
            _gates.setdefault(ask.access.server.url, RateLimiter()) if ask.wait else RateLimiter()
        )
        self._run = self._new_run()
        self._driven = self._driving(self._run)
        self._said: dict[str, Any] = {}  # with every message of this turn
        self._form = Form("", ())
        self._questions = Questions(client, ask)
        self._parked: list[Elicitation] = []  # questions whose answers resume the answer
        self._resumed = False
        self._renewed = False  # the session, for this turn
        self._kept_until = 0.0  # when its note has to be renewed, while the message waits
        self._fetch: asyncio.Task[None] | None = None
        self._tail: asyncio.Task[None] | None = None  # sees the run stored, after the answer
        self._lock: asyncio.Lock | None = None  # the conversation, until it is

    def _new_run(self, after: int = 0) -> Run:
        now, wait = time.monotonic(), self._ask.wait
        return Run(str(uuid.uuid4()), now, after=after, gate=self._gate, wait=wait)

    def _file_link(self, file: File) -> str:
        return self._access.server.file_page(self._id, file.sha)

    @property
    def _id(self) -> str:
        return self._outcome.conversation_id or ""

    @property
    def _page(self) -> str:
        return self._access.server.page(self._id) if self._id else ""

    async def events(self) -> AsyncGenerator[Given, None]:
        """The answer as llm's stream events.

        Raises Gone, before anything is sent, when there is no conversation to continue;
        else llm.ModelError.
        """
        wanted = True
        try:
            await self._prepare()
            try:
                while True:
                    async for event in self._driven:
                        for given in self.answer.take(event):
                            yield given
                        if aside := await self._see_to(event):
                            yield aside
                        if event is self._run.outcome:
                            break
                    self._tail = self._client.beside(self._until_stored(self._driven))
                    resumed = await self._resume()
                    if not resumed:
                        break
                    for given in self.answer.take(resumed):
                        yield given
                self._judge()
            except (ConnectionLost, HttpError, NotFound, IncompleteAnswer, llm.ModelError):
                for given in self.answer.end():  # what was printed stays
                    yield given
                raise
            await self._finish()
        except (ConnectionLost, HttpError, IncompleteAnswer) as error:
            page = "" if await self._unmade(error) else self._page
            raise model_error(error, self._access, model=self._ask.model, page=page) from None
        except NotFound:
            if self._run.state is not State.STORED and not self._resumed:
                raise
            raise HuggingChatError(f"The conversation was deleted: {self._page}") from None
        except (asyncio.CancelledError, GeneratorExit, TooLarge):
            wanted = False
            raise
        finally:
            self._questions.end()
            if not self._tail:
                await self._driven.aclose()
                await self._leave(wanted)

    async def _see_to(self, event: Event) -> Aside | None:
        """What else an event means: a question to put or close, a tool to show, an id to fetch."""
        if self._fetch is None and self.answer.begun:
            self._begin_beside()
        if isinstance(event, Elicitation):
            return self._questions.put(event, self._id)
        if isinstance(event, ElicitationResolved):
            await self._questions.close(event)
        elif isinstance(event, AtWork) and self._ask.screen:
            return self._ask.screen.telling(event)
        return None

    async def _unmade(self, error: ConnectionLost | HttpError | IncompleteAnswer) -> bool:
        """Delete the conversation if it was made for a message that the server does not take."""
        refused = isinstance(error, HttpError) and error.reply.status < 500
        first = bool(self._id) and self._plan.parent is None and not self._resumed
        unused = first and refused and self._run.is_untaken
        if unused:
            delete = self._client.change(self._access, "DELETE", api_path(self._id))
            await asyncio.wait([self._client.beside(delete)], timeout=limits.stop_timeout)
        return unused

    async def _leave(self, wanted: bool) -> None:
        """The turn ends without an answer; its run goes on if one is still `wanted`.

        After an error it can be read on the conversation's page.
        """
        self._run.leave()
        if self._fetch:
            self._fetch.cancel()
        if wanted or self._run.is_settled:
            await self._release()
            return
        id, seen = self._run.generation_id, self.answer.seen_length
        telling = self._client.beside(self._client.stop(self._access, self._id, id, seen))
        releasing = self._client.beside(self._release(stopped=time.time()))
        await asyncio.wait([telling, releasing], timeout=limits.stop_timeout)

    # Before the message

    async def _prepare(self) -> None:
        """Find or make the conversation, and write the message.

        Raises Gone when there is none to continue; Lost, Refused, llm.ModelError.
        """
        parent, model = self._plan.parent, self._ask.model
        names, servers = await self._select_tools(self._ask.tools)
        message_id = await (self._find(parent) if parent else self._create())
        self._said = {
            "selectedMcpServerNames": names,  # left out, it would mean all of them
            "selectedMcpServers": servers,
        }
        if zone := local_timezone(os.environ.get("TZ")):
            self._said["timezone"] = zone
        data = {
            "id": message_id,
            "is_retry": self._ask.retry,
            "generationId": self._run.generation_id,
            **self._said,
        }
        if self._plan.text:
            data["inputs"] = self._plan.text
        self._form = multipart(data, self._ask.uploads)
        self._client.know(self._id, _Known(model, self._run.generation_id))

    async def _select_tools(
        self, tools: Iterable[llm.ServerSideTool]
    ) -> tuple[list[str], list[dict[str, Any]]]:
        """`selectedMcpServerNames` and `selectedMcpServers`. Raises llm.ModelError."""
        added, names = mcp_servers(tools, self._access.server), list[str]()
        ready = [tool for tool in tools if isinstance(tool, HuggingChatTool) and tool.patterns]
        if ready:
            servers = _mappings(await self._client.get(self._access, "/api/mcp/servers"))
            offered = [(_string(each.get("name")), _string(each.get("url"))) for each in servers]
            names = [tool_server_name(offered, tool) for tool in ready]
        added = with_unique_names(added, names)
        return list(dict.fromkeys([*names, *(server["name"] for server in added)])), added

    async def _create(self) -> str:
        """Make the conversation: its root message. chat-ui refuses a null `preprompt`."""
        value = {"model": self._ask.model}
        if self._plan.system:
            value["preprompt"] = self._plan.system
        backoff = Backoff(time.monotonic(), limits.max_attempts)
        conversation: dict[str, str] | None = None
        while conversation is None:
            call = self._client.call(self._access, "POST", "/conversation", value, twice=False)
            try:
                conversation = self._made(await call)
            except (ConnectionLost, HttpError) as trouble:
                # What was not sent has been tried again already.
                pause = backoff.pause(time.monotonic()) if _may_help(trouble, True) else None
                if pause is None:
                    raise
                await asyncio.sleep(pause)
                conversation = await self._made_unseen()
        self._outcome.conversation_id = conversation["id"]
        await self._take_conversation(None)
        return conversation["rootMessageId"]

    def _made(self, reply: HttpResponse) -> dict[str, str]:
        """The conversation in the answer to its making."""
        if "html" in reply.content_type:
            raise HttpError(reply)
        made = _mapping(reply.json())
        try:
            conversation = _mapping(unwrap(read_json(_string(made.get("conversation")))))
        except ValueError:
            conversation = {}
        id = known_id(made.get("conversationId"))
        root = known_id(conversation.get("rootMessageId"))
        if not (id and root):
            raise HuggingChatError(
                f"{self._access.server.host} made a conversation but did not name it. "
                f"Is {SERVER_VARIABLE} the address of a chat-ui server?"
            )
        return {"id": id, "rootMessageId": root}

    async def _made_unseen(self) -> dict[str, str] | None:
        """A conversation whose making was not answered: a new one, empty, and like it."""
        listed = _mapping(unwrap(await self._client.get(self._access, "/api/v2/conversations?p=0")))
        for entry in _mappings(listed.get("conversations"))[:3]:
            id = known_id(entry.get("id"))
            if not id or entry.get("model") != self._ask.model:
                continue
            conversation = await self._client.conversation(self._access, id)
            alike = (conversation.get("preprompt") or None) == (self._plan.system or None)
            taken = self._client.busy(id).locked()  # by another turn that looked for its own
            if alike and not taken and len(messages_of(conversation)) <= 1:
                root = known_id(conversation.get("rootMessageId"))
                return {"id": id, "rootMessageId": root} if root else None
        return None

    async def _find(self, parent: Parent) -> str:
        """The conversation to continue: the message to go after. Raises Gone."""
        id = self._outcome.conversation_id = parent.conversation_id
        await self._take_conversation(parent)
        known = self._client.known(id)
        message_id = parent.message_id
        if message_id is None and known.generation_id == parent.generation_id:
            message_id = known.message_id
        if not message_id:
            conversation = await self._client.conversation(self._access, id)
            stored = _mapping(stored_answer(conversation, parent.generation_id))
            message_id = known_id(stored.get("id"))
        if not message_id:
            raise NotFound(answer=True)
        if (known.model or parent.model) != self._ask.model:
            value = {"model": self._ask.model}
            await self._client.change(self._access, "PATCH", api_path(id), value)
        return message_id

    async def _take_conversation(self, parent: Parent | None) -> None:
        """Wait until no other run goes on in the conversation, here or in another process."""
        lock = self._client.busy(self._id)
        await lock.acquire()
        self._lock = lock
        noted = await _beside_loop(claim_run, self._page, self._run.generation_id)
        if noted is None:
            # Nothing can be noted here. The last run that is known of can be asked about.
            known = self._client.known(self._id)
            last = known.generation_id or (parent and parent.generation_id)
            noted = [Noted(last)] if last and not known.stored else []
        for other in noted:
            await self._wait_for(other)
        if noted:
            await _beside_loop(keep_run, self._run.generation_id)

    async def _wait_for(self, noted: Noted) -> None:
        """Wait until a run that another turn began is stored. Raises Lost, Refused, Gone."""
        told = self._client.beside(self._tell_of_waiting())
        try:
            while True:
                run = Run(noted.generation_id, time.monotonic(), State.ANSWERED)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(_exhaust(self._driving(run)), limits.store_timeout)
                # Of a run that a turn is about to send, the server knows nothing yet. One
                # that goes on has its turn; without, it is one that could not be stored.
                if run.end not in ("gone", ""):
                    break
                still = await _beside_loop(still_noted, noted.generation_id)
                noted = still or noted
                within = limits.call_timeout if run.is_settled else math.inf
                if not still or not noted.has_a_turn(within):
                    break
                # One that is to be sent at a known time is not asked about before.
                ahead = noted.since - time.time()
                await asyncio.sleep(min(max(ahead, limits.backoff[0]), limits.backoff[3]))
            if run.end != "interrupted" and noted.stopped:  # the stop came too late for it
                await asyncio.sleep(noted.stopped + limits.stop_marker - time.time())
        finally:
            told.cancel()
        await _beside_loop(forget_run, noted.generation_id)

    async def _tell_of_waiting(self) -> None:
        await asyncio.sleep(sum(limits.backoff[:4]))
        self._ask.note("waiting for the end of another turn of this conversation")

    # The answer

    async def _driving(self, run: Run) -> AsyncGenerator[Event, None]:
        """Do what `run` says until it is stored; what comes of it.

        Raises what it fails with: Lost, Refused, Gone or Broken; llm.ModelError.
        """
        while not isinstance(step := run.next(time.monotonic()), Done):
            access = latest(self._access)
            if isinstance(step, Fail):
                raise step.why
            if isinstance(step, Wait):
                if run.is_held:
                    await self._keep_waiting(step.seconds)
                await asyncio.sleep(step.seconds)
                continue
            try:
                if isinstance(step, Look):
                    for event in await self._look(run):
                        yield event
                else:
                    async with contextlib.aclosing(self._read(run, step)) as events:
                        async for event in events:
                            yield event
            except ConnectionLost as lost:
                run.lost(lost, time.monotonic())
            except HttpError as refused:
                if not self._renewed and await self._client.has_ended(access, refused):
                    self._renewed = True
                    run.not_taken()
                    await self._client.renew(access)
                else:
                    first = self._plan.parent is None or self._resumed
                    run.refused(refused, time.monotonic(), first=first)
            except NotFound:
                run.gone()

    async def _keep_waiting(self, seconds: float) -> None:
        """The server wants a pause: say so, once, and let turns in other processes know."""
        now = time.monotonic()
        if not self._kept_until and self._gate.to_be_told():
            host = self._access.server.host
            self._ask.note(
                f"{host} wants a pause; waiting, for {self._ask.wait:.0f} seconds at most"
            )
        if now + seconds > self._kept_until:
            later = max(seconds, limits.call_timeout / 2)
            self._kept_until = now + later
            await _beside_loop(keep_run, self._run.generation_id, later)

    async def _read(self, run: Run, step: Send | Follow) -> AsyncGenerator[Event, None]:
        """One connection: the answer to the message, or the run's log."""
        path = chat_path(self._id)
        decoder: JsonLinesDecoder | EventStreamDecoder
        if isinstance(step, Send):
            decoder = JsonLinesDecoder()
            exchange = self._client.open(
                self._access,
                "POST",
                path,
                body=self._form,
                beats=True,
            )
        else:
            decoder = EventStreamDecoder()
            query = f"generationId={run.generation_id}&fromSeq={step.after}"
            exchange = self._client.open(self._access, "GET", f"{path}/stream?{query}", beats=True)
            if step.after == 0:
                yield Replay()
        quiet = 0  # bytes since the last event
        try:
            async for piece in exchange.pieces():
                found = decoder.feed(piece)
                if found:
                    exchange.alive()
                quiet = 0 if found else quiet + len(piece) + 50 * piece.count(b"\n")
                if quiet > LINE_LIMIT:
                    raise exchange.too_much()
                for event in joined(found):
                    for taken in run.took(event, time.monotonic(), decoder.seq):
                        yield taken
                    if run.state is State.STORED:
                        return
            if exchange.reply.status != 200 or "html" in exchange.reply.content_type:
                raise HttpError(replace(exchange.reply, body=bytes(exchange.head)))
            for event in decoder.end():
                for taken in run.took(event, time.monotonic()):
                    yield taken
            run.ended(time.monotonic())
        finally:
            exchange.drop()

    async def _look(self, run: Run) -> list[Event]:
        """Read the conversation, for what is stored of the run."""
        conversation = await self._client.conversation(self._access, self._id, tries=1)
        stored = stored_answer(conversation, run.generation_id)
        if stored and run is self._run:
            self._found(conversation, stored)
        parent = self._plan.parent and self._plan.parent.message_id
        ids = [message.get("id") for message in messages_of(conversation)]
        return run.looked(stored, time.monotonic(), parent=not parent or parent in ids)

    def _found(self, conversation: dict[str, Any], stored: dict[str, Any]) -> None:
        """The answer is in the conversation: it has an id."""
        id, known = known_id(stored.get("id")), self._client.known(self._id)
        self._outcome.message_id = id or None
        if known.generation_id == self._run.generation_id:
            known.message_id = id
        model = conversation.get("model")
        if isinstance(model, str) and model != self._ask.model:
            # Somebody changed it on the web page, between the turns.
            self._outcome.model = model

    def _judge(self) -> None:
        """Raises llm.ModelError when the run came to something else than an answer."""
        outcome, model = self._run.outcome, self._ask.model
        if not self.answer.begun and isinstance(outcome, FinalAnswer):
            outcome = NO_OUTPUT
        if self._run.died:
            self._ask.note(f"the model {model} broke off its answer")
        if isinstance(outcome, Failed):
            raise failed(model, outcome)

    async def _resume(self) -> Resumed | None:
        """Go on where the run ended with a question, once that is answered, by another run.

        None when there was no such question. Raises llm.ModelError, Broken, Lost, Refused,
        Gone.
        """
        if isinstance(self._run.outcome, Parked):
            for asked in self._run.outcome.questions:
                self._parked.append(asked)
                await self._questions.answered(asked)
        if not self._parked:
            return None
        asked, last = self._parked.pop(0), self._run
        if isinstance(last.outcome, Failed):  # of two questions, the other one goes on
            self._ask.note(str(failed(self._ask.model, last.outcome)))
        await asyncio.wait([cast("asyncio.Task[None]", self._tail)])
        conversation = await self._client.conversation(self._access, self._id)
        stored = stored_answer(conversation, last.generation_id)
        if stored is None or not last.is_settled:
            raise IncompleteAnswer(
                "The answer cannot be resumed: it goes on elsewhere, or is not stored."
            )
        self._found(conversation, stored)
        self._run, self._kept_until = self._new_run(len(updates_of(stored))), 0.0
        self._driven, self._resumed, self._tail = self._driving(self._run), True, None
        await self._take_conversation(None)
        data = {
            "id": known_id(stored.get("id")),
            "resumeElicitationId": asked.id,
            "generationId": self._run.generation_id,
            **self._said,
        }
        self._form = multipart(data, ())
        id = self._outcome.message_id or ""
        self._client.know(self._id, _Known(self._ask.model, self._run.generation_id, id))
        return Resumed(utf16_length(_string(stored.get("content"))))

    # Beside the answer, and after it

    def _begin_beside(self) -> None:
        """Fetch the answer's id while it streams, and refresh the catalogue if it is old."""
        self._fetch = self._client.beside(self._fetch_id())
        if load_catalogue(self._access.server.url).is_old:
            self._client.beside(self._refresh())

    async def _fetch_id(self) -> None:
        if self._outcome.message_id:
            return  # it was found while healing
        conversation = await self._client.conversation(self._access, self._id)
        if stored := stored_answer(conversation, self._run.generation_id):
            self._found(conversation, stored)

    async def _refresh(self) -> None:
        with contextlib.suppress(ConnectionLost, HttpError, llm.ModelError):
            keep_catalogue(self._access.server.url, await self._client.catalogue(self._access))

    async def _finish(self) -> None:
        """The answer is there. Its id is worth a little time, and so is its storing."""
        if self._fetch is None:
            self._begin_beside()
        for task, grace in ((self._fetch, limits.id_timeout), (self._tail, limits.tail_timeout)):
            await asyncio.wait([cast("asyncio.Task[None]", task)], timeout=grace)
        outcome, answer = self._outcome, self.answer
        if outcome.model != self._ask.model:
            self._ask.note(f"{outcome.model} answered: it was chosen on the web page")
        outcome.generation_id = self._run.generation_id
        outcome.title, outcome.router = answer.title, answer.router
        outcome.interrupted = bool(answer.final and answer.final.interrupted)
        outcome.size += answer.size

    async def _until_stored(self, events: AsyncGenerator[Event, None]) -> None:
        """See the run stored. What comes meanwhile: who answered, a title."""
        try:
            await asyncio.wait_for(_exhaust(events, self.answer.take), limits.store_timeout)
        except (
            ConnectionLost,
            HttpError,
            NotFound,
            IncompleteAnswer,
            llm.ModelError,
            asyncio.TimeoutError,
        ):
            pass  # it stays noted, and the next turn asks
        finally:
            await self._release()

    async def _release(self, stopped: float | None = None) -> None:
        """Let the conversation's next turn go ahead; if need be, it waits for this run.

        `stopped` is when the server is told to stop it, in seconds since 1970.
        """
        if self._lock is None:
            return
        lock, self._lock, run = self._lock, None, self._run
        known = self._client.known(self._id)
        if known.generation_id == run.generation_id:
            known.stored = run.is_settled
        try:
            if run.is_settled:
                await _beside_loop(forget_run, run.generation_id)
            else:
                await _beside_loop(leave_run, run.generation_id, stopped)
        finally:
            lock.release()


async def _exhaust(
    events: AsyncGenerator[T, None], take: Callable[[T], object] = lambda _: None
) -> None:
    """Take all that is to come."""
    async with contextlib.aclosing(events):
        async for event in events:
            take(event)


async def _beside_loop(work: Callable[..., T], *arguments: Any) -> T:
    """Do what waits for a file in a thread, as long as the process has any to give.

    It is done even if the loop ends before there is a thread for it.
    """
    try:
        done = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    except RuntimeError:  # the process is about to end
        return work(*arguments)
    return await asyncio.shield(done)


async def _ahead(
    work: Callable[[E], Coroutine[Any, Any, T]], items: Iterable[E]
) -> AsyncGenerator[tuple[E, T], None]:
    """What `work` gives for each, in order, a few being worked at in advance."""
    begun: deque[tuple[E, asyncio.Task[T]]] = deque()
    waiting = iter(items)
    try:
        while True:
            for item in itertools.islice(waiting, AHEAD - len(begun)):
                begun.append((item, asyncio.create_task(work(item))))
            if not begun:
                return
            item, task = begun.popleft()
            begun.appendleft((item, task))
            result = await task
            begun.popleft()
            yield item, result
    finally:
        for _, task in begun:
            task.cancel()
            task.add_done_callback(_heard)


def last_event(answer: Answer, outcome: TurnResult) -> StreamEvent:
    """An event without text that carries what the next turn needs.

    llm drops the metadata of a text part without text, so a part of its own is made
    unless the answer ends in text.
    """
    kind = "text" if answer.last_is_text else "reasoning"
    return StreamEvent(type=kind, chunk="", provider_metadata=outcome.metadata())


async def converse(ask: TurnRequest, outcome: TurnResult) -> AsyncGenerator[Given, None]:
    """One turn, in the conversation it belongs to, or in a new one when that is gone.

    An answer that is not what the schema wants is asked for once more.
    """
    client = Client.here()
    client.turns.add(cast("asyncio.Task[Any]", asyncio.current_task()))
    plan, repairing = ask.plan, False
    while True:
        calls, document = _forms(plan.features)
        turn = Turn(client, ask, plan, outcome, calls, document)
        try:
            async with contextlib.aclosing(turn.events()) as events:
                async for event in events:
                    yield event
        except NotFound as gone:
            if plan.parent is None or ask.anew is None:
                raise model_error(NotFound(answer=gone.answer or ask.retry), ask.access) from None
            page = ask.access.server.page(plan.parent.conversation_id)
            what = f"{page} is not there for this account"
            if gone.answer:
                what = f"the answer to go on from is not in {page} any more"
            ask.note(f"{what}; going on in a new conversation")
            plan, outcome.conversation_id, outcome.message_id = ask.anew, None, None
            continue
        outcome.sent = plan.sent
        outcome.calls += turn.answer.calls
        wrong = [form for form in document if not form.done]
        if not wrong:
            yield last_event(turn.answer, outcome)
            return
        if repairing or outcome.interrupted:
            raise _unusable(wrong[0], outcome)
        features = plan.features
        sent = msgspec.structs.replace(plan.sent, schema=features.schema)
        text = repair_request(features, wrong[0].problem)
        plan = Plan(outcome.parent, None, text, sent=sent, features=features)
        ask = replace(ask, anew=None, retry=False, tools=(), uploads=())
        outcome.message_id = outcome.generation_id = None
        repairing = True


def _forms(features: PromptedFeatures) -> tuple[list[CallStage], list[DocumentStage]]:
    """The stages that take out of an answer what was asked for. Raises llm.ModelError."""
    names, schema = features.tool_names, features.schema
    return (
        [CallStage(names)] if names else [],
        [DocumentStage(schema_checker(schema))] if schema else [],
    )


def _unusable(document: DocumentStage, outcome: TurnResult) -> llm.ModelError:
    """There is no document, and none will come: people are shown what there is."""
    when = "was broken off" if outcome.interrupted else "is not what the schema wants, asked twice"
    said = plain(document.said, 1000) or "nothing"
    page = Server(outcome.server).page(outcome.conversation_id or "")
    return HuggingChatError(f"The answer {when}: {document.problem}. {page}\nIt was: {said}")


# --- models: llm's classes, thin ------------------------------------------------------


class HuggingChatOptions(llm.Options):
    """What `-o` takes."""

    web_search: bool | None = Field(
        default=None, description="Let the model search the web: short for -T WebSearch"
    )
    retry: bool | None = Field(
        default=None, description="Another answer to the last question: llm -c '' -o retry true"
    )


def _mime(text: str | None) -> str:
    """The type that `text` names, without parameters; none if it is no type."""
    type = (text or "").partition(";")[0].strip().lower()
    return type if re.fullmatch(r"[\w.+-]+/[\w.+-]+", type, re.ASCII) else ""


def _telling(text: str | None) -> str:
    """The same, but none for a type that says nothing."""
    type = _mime(text)
    return "" if type.endswith("/octet-stream") else type


def _cut(text: str, size: int) -> str:
    """The beginning of `text` that has at most `size` bytes."""
    return text.encode("utf-8")[:size].decode("utf-8", "ignore")


def upload_name(attachment: llm.Attachment, type: str) -> str:
    """A safe file name: no path, no control characters, nothing that ends a header."""
    name = re.split(r"[/\\]", attachment_name(attachment))[-1]
    name = re.sub(r'[";\r\n]', "_", plain(name, 200)).strip(". ") or "attachment"
    stem, dot, ending = name.rpartition(".")
    if not dot:
        return _cut(name, 100) + (mimetypes.guess_extension(type) or "")
    ending = _cut(ending, 20)
    return f"{_cut(stem, 99 - len(ending.encode()))}.{ending}"


TAKES = (
    "HuggingChat takes text, JSON, XML, CSV, images, "
    "and recordings as mp3, wav, flac, ogg, webm, mp4 or m4a."
)


def guessed_type(attachment: llm.Attachment, content: bytes) -> str:
    """The type that an attachment's name says, or its content."""
    name = upload_name(attachment, "")
    ending = pathlib.PurePath(name).suffix.lower()
    type = AUDIO_ENDINGS.get(ending) or mimetypes.guess_type(name)[0]
    type = type or llm.Attachment(content=content).resolve_type()
    if not type and len(content) > 1 and content[0] == 0xFF and content[1] & 0xE6 == 0xE2:
        type = "audio/mpeg"  # a frame of MPEG's layer III: what has no ID3 tag begins so
    return type or "application/octet-stream"


async def read_attachment(attachment: llm.Attachment) -> tuple[bytes, str]:
    """An attachment's bytes and its type, which is found out if nothing says it.

    Raises llm.ModelError for one that cannot be read, is empty or too large.
    """
    name = shown_name(attachment)

    def most(type: str) -> int:
        return AUDIO_LIMIT if type in AUDIO_TYPES or not type else FILE_LIMIT

    def too_large(type: str) -> llm.ModelError:
        return HuggingChatError(
            f"{name} has more than {most(type) >> 20} MB, the most that HuggingChat "
            + ("transcribes." if type in AUDIO_TYPES else "takes.")
        )

    type = _telling(attachment.type)
    content = attachment.content or b""
    if not content and attachment.path:
        try:
            content = _read_some(attachment.path, most(type))
        except OSError as error:
            raise HuggingChatError(f"{name} cannot be read: {_why(error)}") from None
    elif not content and attachment.url:
        content, sent_type = await _download(attachment.url, most(type), too_large(type))
        type = type or _telling(sent_type)
    if not content:
        raise HuggingChatError(f"{name} is empty.")
    type = type or guessed_type(attachment, content)
    if len(content) > most(type):
        raise too_large(type)
    return content, type


def recording_of(attachment: llm.Attachment, type: str, content: bytes) -> Upload:
    """A recording to transcribe. Raises llm.ModelError when it is none."""
    if type not in AUDIO_TYPES:
        name = shown_name(attachment)
        raise HuggingChatError(
            f"{name} is {plain(type, 60)}; "
            "HuggingChat transcribes mp3, wav, flac, ogg, webm, mp4 and m4a."
        )
    sent = AUDIO_TYPES[type]
    return upload_of(attachment, sent, content, attachment_id(attachment))


def upload_of(attachment: llm.Attachment, type: str, content: bytes, id: str = "") -> Upload:
    """An attachment to send; one that is a file is read again then, and not kept."""
    source = content if attachment.content or not attachment.path else attachment.path
    return Upload(upload_name(attachment, type), type, source, id, len(content))


async def transcribed(
    client: Client, access: Credentials, recordings: Iterable[Upload], tell: Callable[[str], None]
) -> AsyncGenerator[tuple[Upload, str], None]:
    """What is said in each recording, in their order; a few are transcribed at once.

    `tell` is called with words when that takes long. Raises llm.ModelError when the server
    does not transcribe, cannot, or hears nothing.
    """

    async def say_so(name: str) -> None:
        await asyncio.sleep(sum(limits.backoff[:4]))
        tell(f"{name} is being transcribed")

    async def hear(recording: Upload) -> str:
        told = client.beside(say_so(recording.name))
        try:
            text = await client.transcribe(access, recording)
        except (ConnectionLost, HttpError) as error:
            raise unheard(error, access, recording, flags) from None
        finally:
            told.cancel()
        if not text:
            raise HuggingChatError(f"{access.server.host} heard no words in {recording.name}.")
        return text

    try:
        flags = await client.flags(access)
    except (ConnectionLost, HttpError) as error:
        raise model_error(error, access) from None
    if flags.get("transcriptionEnabled") is not True:
        raise HuggingChatError(
            f"{access.server.host} does not transcribe recordings: it has no model for that."
        )
    async with contextlib.aclosing(_ahead(hear, recordings)) as texts:
        async for recording, text in texts:
            yield recording, text


def unheard(
    error: ConnectionLost | HttpError, access: Credentials, recording: Upload, flags: dict[str, Any]
) -> llm.ModelError:
    """Why a recording was not transcribed. `flags` is what the server offers.

    chat-ui hands on the status of the service that it asks, with words before its answer.
    """
    host, name = access.server.host, recording.name
    if isinstance(error, HttpError) and not error.reply.is_firewall:
        status, said = error.reply.status, error.reply.message
        if said.startswith("Transcription failed:"):
            why = said.partition(":")[2].strip() or "its transcription service did not say why"
            return HuggingChatError(f"{host} could not transcribe {name} (HTTP {status}): {why}")
        if status == 413:
            size = f"{len(recording) / 1_000_000:.1f} MB"
            return HuggingChatError(
                f"{name} is too large for {host}, with {size}. Many servers take no more than 15."
            )
        if status == 504:
            return HuggingChatError(
                f"{name} takes {host} too long to transcribe. Cut it into shorter pieces."
            )
        if status == 401 and flags.get("loginEnabled") is False:
            return HuggingChatError(f"{host} has no key for the service that transcribes.")
    if isinstance(error, ConnectionLost) and error.silent:
        return HuggingChatError(f"{name} was not transcribed by {host}: {error}.")
    return model_error(error, access)


class _HuggingChat:
    """What the sync and the async model share."""

    can_stream = True
    key_env_var = KEY_VARIABLE
    Options = HuggingChatOptions
    key: str | None
    model_id: str

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.model_id = f"huggingchat/{info.id}"
        types = (*TEXT_TYPES, *AUDIO_TYPES, *(IMAGE_TYPES if info.multimodal else ()))
        self.attachment_types = frozenset(types)
        self.supports_schema = self.supports_tools = is_general(info)

    def __str__(self) -> str:
        kind = " (async)" if isinstance(self, llm.AsyncKeyModel) else ""
        return f"HuggingChat{kind}: {self.model_id}"

    @property
    def needs_key(self) -> str:
        try:
            return current_server().key_name
        except llm.ModelError:
            return "huggingchat"

    @property
    def supported_server_side_tools(self) -> tuple[type[llm.ServerSideTool], ...]:
        return (WebSearch, HuggingFace, MCP) if self.info.tools else ()

    def get_key(self, explicit_key: str | None = None) -> str | None:
        """The cookies for the current server, as pasted; None where none are needed.

        Raises llm.NeedsKeyException on the service, llm.ModelError for a bad address.
        """
        return self.key or find_key(current_server(), explicit_key)[0]

    def _validate_attachments(self, attachments: list[llm.Attachment] | None = None) -> None:
        """Refuse what can be refused without reading it; the rest is looked at later."""
        for attachment in attachments or ():
            self._check_type(attachment, _mime(attachment.type))

    def _check_type(self, attachment: llm.Attachment, type: str) -> None:
        name = shown_name(attachment)
        if type.startswith("image/"):
            if not self.info.multimodal:
                raise HuggingChatError(
                    f"{self.model_id} takes no images ({name}). These do: {_image_models()}"
                )
            if type not in IMAGE_TYPES:
                raise HuggingChatError(f"{name} is {plain(type, 60)}; send png, jpeg, webp or gif.")
        elif type in AUDIO_TYPES:
            pass  # whether the server transcribes is asked for later
        elif type.startswith(("audio/", "video/", "font/")) or type == "application/pdf":
            raise HuggingChatError(f"{name} is {plain(type, 60)}; {TAKES}")

    async def _upload(self, attachment: llm.Attachment) -> Upload:
        """Read an attachment, and refuse it before anything is sent. Raises llm.ModelError."""
        content, type = await read_attachment(attachment)
        self._check_type(attachment, type)
        if type in AUDIO_TYPES:
            return recording_of(attachment, type, content)
        if not type.startswith(("image/", "text/")) and type not in TEXT_TYPES:
            # Source code and the like: whatever its name, text is text.
            try:
                if "\0" in content.decode("utf-8"):
                    raise ValueError
            except ValueError:
                name = shown_name(attachment)
                raise HuggingChatError(f"{name} is {plain(type, 60)}; {TAKES}") from None
            type = "text/plain"
        return upload_of(attachment, type, content)

    async def _events(
        self,
        prompt: llm.Prompt,
        response: weakref.ref[Any],
        key: str | None,
        tell: Callable[[str], None],
        screen: Screen | None = None,
    ) -> AsyncGenerator[Given, None]:
        """One turn: read the prompt, have it answered, fill the response.

        llm's async responses own the iterator over this. Were the response held here, an
        abandoned one would be noticed only by the garbage collector, much later.
        """
        server = current_server()
        options = cast(HuggingChatOptions, prompt.options)
        retry = bool(options.retry)
        tools = [tool for tool in prompt.tools if isinstance(tool, llm.ServerSideTool)]
        if options.web_search and not any(isinstance(tool, WebSearch) for tool in tools):
            tools.append(WebSearch())
        if tools and not self.info.tools:
            raise HuggingChatError(f"{self.model_id} cannot use tools. See: llm huggingchat models")
        messages, system = prompt.messages, prompt.system
        features = PromptedFeatures(
            tuple(tool_definition(tool) for tool in prompt.tools if isinstance(tool, llm.Tool)),
            cast("dict[str, Any] | None", prompt.schema) or pending_schema(messages, server.url),
        )

        def plans(transcripts: Mapping[str, str] = NOTHING) -> tuple[Plan, Plan | None]:
            plan = functools.partial(
                make_plan, messages, system=system, features=features, transcripts=transcripts
            )
            planned = plan(server.url, retry=retry)
            return planned, None if planned.retry else plan(None)

        plan, anew = plans()
        uploads = [await self._upload(attachment) for attachment in plan.attachments]
        if key:
            cookies = parse_cookies(key, server.host)
        else:
            cookies = await _beside_loop(anonymous_session, server, tell)
        access = Credentials(server, cookies)
        outcome = TurnResult(server.url, self.info.id)
        wait = max_wait()
        recordings = {upload.id: upload for upload in uploads if upload.is_recording}
        said: dict[str, str] = {}
        try:
            if recordings:
                hearing = transcribed(Client.here(), access, recordings.values(), tell)
                async with contextlib.aclosing(hearing) as texts:
                    async for recording, text in texts:
                        said[recording.id] = text
                        for heard in hearing_events(recording.name, recording.id, text):
                            yield heard
                plan, anew = plans(said)
            ask = TurnRequest(
                access,
                self.info.id,
                plan,
                anew,
                plan.retry,
                tuple(tools),
                tuple(upload for upload in uploads if not upload.is_recording),
                screen.note if screen else tell,
                wait,
                screen,
            )
            async with contextlib.aclosing(converse(ask, outcome)) as events:
                async for event in events:
                    yield event
        except llm.NeedsKeyException:
            await _beside_loop(forget_session, server)
            raise
        filled = response()
        if filled is not None:
            filled.set_resolved_model(outcome.resolved_model)
            filled.response_json = outcome.response_json()
            for call in outcome.calls:
                filled.add_tool_call(llm.ToolCall(call.name, call.arguments, call.id))


def is_anonymous(key: str | None) -> bool:
    """Is this the key of a session that was made up for a server without logins?"""
    return bool(key and '"made_up": true' in key)


def find_key(server: Server, explicit: str | None = None) -> tuple[str | None, str]:
    """The key for a server, and where it comes from: --key, the store, or the environment.

    A session that was made up for a server without logins gives way to the environment.
    `LLM_HUGGINGCHAT_KEY` and the key `huggingchat` are for the service and for loopback.
    Raises llm.NeedsKeyException when the service has none, llm.ModelError when there are
    only cookies of another host.
    """
    near = server.is_service or server.is_loopback

    def foreign(what: str) -> llm.ModelError:
        return HuggingChatError(
            f"{what} is not for {server.host}: cookies of one host never go to another. "
            f"Run: llm keys set {server.key_name}"
        )

    if explicit:
        ours = (server.key_name, "huggingchat") if near else (server.key_name,)
        if re.match(r"huggingchat(:|$)", explicit) and explicit not in ours:
            raise foreign("That key")
        return stored_key(explicit) or explicit, "--key"
    stored, given = stored_key(server.key_name), os.environ.get(KEY_VARIABLE) or None
    if stored and not (given and near and is_anonymous(stored)):
        return stored, f"llm keys ({server.key_name})"
    if given and not near:
        raise foreign(KEY_VARIABLE)
    if given:
        return given, KEY_VARIABLE
    if server.is_service:
        raise LoginRequired(
            "HuggingChat wants a login, and there is no key. Run: llm huggingchat login "
            f"(or llm keys set {server.key_name}, or set {KEY_VARIABLE})"
        )
    return None, "none"


_made_up: dict[str, Cookies] = {}


def anonymous_session(server: Server, tell: Callable[[str], None]) -> Cookies:
    """A session for a server without logins, which takes any value.

    It goes into llm's key store before it is used, so that prompts that begin at the same
    time share one. Where it cannot be kept, it is good for this process, and `tell` is
    called with words that say so.
    """
    if server.url not in _made_up:
        cookies = Cookies(str(uuid.uuid4()), None, made_up=True)
        try:
            kept = keep_key(server.key_name, cookies.to_key(), anew=True)
            cookies = parse_cookies(kept or "", server.host)
        except llm.ModelError as error:
            tell(f"the session is not kept, so it cannot be continued later. {error}")
        _made_up.setdefault(server.url, cookies)
    return _made_up[server.url]


def forget_session(server: Server) -> None:
    """The server wants a login: a session that was just made up for it is worth nothing."""
    cookies = _made_up.pop(server.url, None)
    with contextlib.suppress(llm.ModelError):
        if cookies and cookies.to_key() == stored_key(server.key_name):
            keep_key(server.key_name, None)


def _image_models() -> str:
    try:
        catalogue = load_catalogue(current_server().url)
    except llm.ModelError:
        catalogue = Catalogue()
    names = [model.id for model in catalogue.models if model.multimodal and not model.unlisted]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"huggingchat/{name}" for name in names[:5]) + more


def _read_some(path: str, most: int) -> bytes:
    """How a file begins. Raises OSError, also for a pipe: it would be waited for, for ever, and
    what is read of it is gone, where llm and the upload read it again."""
    if not (os.path.isfile(path) or os.path.isdir(path)) and os.path.exists(path):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")
    with open(path, "rb") as file:
        return file.read(most + 1)


async def _download(url: str, most: int, too_large: llm.ModelError) -> tuple[bytes, str]:
    """An attachment from the web, without cookies: at most so many bytes, and content type."""
    from curl_cffi import CurlOpt
    from curl_cffi.requests import AsyncSession
    from curl_cffi.requests.exceptions import RequestException

    shown = plain(url, 200)
    if not re.match(r"https?://[^/]", url, re.IGNORECASE):
        raise HuggingChatError(f"{shown!r} cannot be fetched: it is not a http or https address.")
    # curl knows more protocols, some of which put chosen bytes on a raw socket.
    only = {CurlOpt.PROTOCOLS_STR: "http,https", CurlOpt.REDIR_PROTOCOLS_STR: "http,https"}
    content = bytearray()

    def take(piece: bytes) -> int:
        content.extend(piece)
        return len(piece) if len(content) <= most else CURL_WRITEFUNC_ERROR

    try:
        async with AsyncSession[Any](
            timeout=60, max_redirects=3, curl_options=cast(Any, only)
        ) as session:
            response = await session.get(
                url,
                content_callback=take,
                verify=True,
                impersonate=cast(Any, impersonated_browser()),
            )
    except RequestException as error:
        if len(content) > most:
            raise too_large from None
        why = _lost(error, True)
        raise HuggingChatError(f"{shown} cannot be fetched: {why}") from None
    if response.status_code != 200:
        raise HuggingChatError(f"{shown} cannot be fetched: HTTP {response.status_code}")
    return bytes(content), _mime(response.headers.get("content-type"))


class _Background:
    """One event loop in a thread, for the sync models: it works where a loop already runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._process != os.getpid():  # a fork has no threads
                self._process = os.getpid()
                self._loop = asyncio.SelectorEventLoop()  # Windows' own cannot watch sockets
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="llm-huggingchat", daemon=True
                )
                self._thread.start()
                atexit.unregister(self.close)
                atexit.register(self.close)
            return self._loop

    def is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """At the end of the process: stop what runs, close what is open, within a second."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or self._process != os.getpid():
            return

        async def end() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=limits.stop_timeout)
            loop.stop()

        asyncio.run_coroutine_threadsafe(end(), loop)
        thread.join(timeout=limits.stop_timeout + 0.2)
        self._loop = None


_background = _Background()


@frozen
class _Ended:
    """What follows the last event: nothing, or the error that ended them."""

    error: BaseException | None = None


async def _pump(events: AsyncGenerator[T, None], put: Callable[[T | _Ended], object]) -> None:
    """Hand on `events`, and how they ended."""
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                put(event)
        put(_Ended())
    except BaseException as error:
        put(_Ended(error))
        if not isinstance(error, Exception):
            raise


# What ends a process when nobody has seen to it otherwise; SIGHUP when its terminal closes.
ENDING = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]


def _in_main_thread() -> bool:
    """Signals are handled there alone."""
    return threading.current_thread() is threading.main_thread()


def _end_by(number: int) -> None:
    """End the process by a signal, as if it had not been handled."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class _Guard:
    """While sync prompts are iterated over, what ends the process stops their runs first.

    Ctrl-C needs no guard: KeyboardInterrupt comes up in the iterator.
    """

    def __init__(self) -> None:
        self._inside = 0

    def __enter__(self) -> None:
        self._inside += 1
        if self._inside == 1:
            self._replace(signal.SIG_DFL, self._end)

    def __exit__(self, *_: object) -> None:
        self._inside -= 1
        if not self._inside:
            self._replace(self._end, signal.SIG_DFL)

    def _replace(self, old: Any, new: Any) -> None:
        if _in_main_thread():
            for number in ENDING:
                if signal.getsignal(number) == old:
                    signal.signal(number, new)

    def _end(self, number: int, frame: object) -> None:
        _background.close()
        _end_by(number)


_guard = _Guard()


def _next(results: queue.SimpleQueue[T]) -> T:
    """The next result. On Windows, Ctrl-C is seen only between two waits that end by themselves."""
    while True:
        with contextlib.suppress(queue.Empty):
            return results.get(timeout=0.25)


def _is_for_llm(item: Given, screen: Screen | None) -> TypeGuard[StreamEvent]:
    """See to what is not, and tell the screen of what is."""
    if isinstance(item, Aside):
        item.act()
        return False
    if screen:
        screen.gives(item)
    return True


def in_background(events: AsyncGenerator[T, None]) -> Iterator[T]:
    """Iterate over `events`, which run on the background loop.

    A queue carries each from loop to caller: 16 microseconds, where a future for each
    costs 130. Left early, or interrupted, the run is cancelled, and waited for briefly.
    """
    results: queue.SimpleQueue[T | _Ended] = queue.SimpleQueue()
    done = threading.Event()

    async def pump() -> None:
        try:
            await _pump(events, results.put)
        finally:
            done.set()

    running = asyncio.run_coroutine_threadsafe(pump(), _background.loop())
    with _guard:
        try:
            while not isinstance(item := _next(results), _Ended):
                yield item
            if item.error:
                raise item.error
        finally:
            if not done.is_set():
                running.cancel()
                if not _background.is_here():
                    done.wait(limits.stop_timeout + 0.15)


class _Signals:
    """While async prompts go on in the main thread, what ends the process stops them first.

    Ctrl-C is among it unless asyncio.run sees to it, as from Python 3.11 on: there it
    cancels the main task. Elsewhere KeyboardInterrupt would come up wherever the loop is,
    in the middle of telling the server to stop too. So the runs are stopped, and then it
    comes up where an answer is waited for; else in the loop, whatever goes on there.
    """

    def __init__(self) -> None:
        self._runs: set[asyncio.Task[None]] = set()
        self._taken: list[int] = []
        self.ending = 0  # the signal that came

    @classmethod
    def guard(cls, run: asyncio.Task[None]) -> _Signals:
        """Stop `run`, a task of this loop, when the process is to end."""
        signals = _signals.setdefault(asyncio.get_running_loop(), cls())
        if not signals._runs:
            signals._take()
        signals._runs.add(run)
        run.add_done_callback(signals._done)
        return signals

    def _take(self) -> None:
        defaults: dict[int, Any] = dict.fromkeys(ENDING, signal.SIG_DFL)
        defaults[signal.SIGINT] = signal.default_int_handler
        loop = asyncio.get_running_loop()
        self.ending = 0
        for number, default in defaults.items():
            if _in_main_thread() and signal.getsignal(number) == default:
                with contextlib.suppress(NotImplementedError):  # Windows
                    loop.add_signal_handler(number, self._come, loop, number)
                    self._taken.append(number)

    def _give_back(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in self._taken:
            loop.remove_signal_handler(number)
        self._taken = []

    def _done(self, run: asyncio.Task[None]) -> None:
        self._runs.discard(run)
        if not self._runs:
            self._give_back(run.get_loop())
            if self.ending:
                self._end(run.get_loop())

    def told(self, loop: asyncio.AbstractEventLoop) -> None:
        """KeyboardInterrupt comes up where an answer is waited for."""
        self._give_back(loop)
        self.ending = 0

    def _come(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        if self.ending:  # again: at once
            self._end(loop)
        self.ending = number
        for run in self._runs:
            run.cancel()

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        self._give_back(loop)
        if self.ending != signal.SIGINT:
            _end_by(self.ending)
        raise KeyboardInterrupt


_signals: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Signals] = (
    weakref.WeakKeyDictionary()
)


async def in_task(
    events: AsyncGenerator[Given, None], screen: Screen | None = None
) -> AsyncGenerator[StreamEvent, None]:
    """Iterate over `events`, which run in a task of their own.

    An iterator that is abandoned becomes garbage, and Python then closes every generator
    in it at once, those inside others too. In a task they are not garbage: only this one
    is closed, and it ends the task.
    """
    results: asyncio.Queue[Given | _Ended] = asyncio.Queue()

    def put(item: Given | _Ended) -> None:
        if signals.ending == signal.SIGINT:
            results.put_nowait(_Ended(KeyboardInterrupt()))
        elif not signals.ending:  # else the process ends, and with it who waits here
            results.put_nowait(item)

    task = asyncio.create_task(_pump(events, put))
    task.add_done_callback(_heard)
    signals = _Signals.guard(task)
    try:
        with screen or contextlib.nullcontext():
            while not isinstance(item := await results.get(), _Ended):
                if _is_for_llm(item, screen):
                    yield item
        if isinstance(item.error, KeyboardInterrupt):
            signals.told(task.get_loop())
        if item.error:
            raise item.error
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=limits.stop_timeout + 0.15)


class HuggingChat(_HuggingChat, llm.KeyModel):  # type: ignore[misc]
    """A model of HuggingChat, or of another chat-ui server."""

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
        key: str | None = None,
    ) -> Iterator[StreamEvent]:
        """The answer, as llm asks for it. Raises llm.ModelError while iterated over."""
        screen = Screen.of(prompt, stream)
        events = self._events(prompt, weakref.ref(response), key, noting(), screen)
        given = cast("Generator[Given, None, None]", in_background(events))
        with contextlib.closing(given), screen or contextlib.nullcontext():
            for item in given:
                if _is_for_llm(item, screen):
                    yield item


class AsyncHuggingChat(_HuggingChat, llm.AsyncKeyModel):  # type: ignore[misc]
    """The same, for asyncio."""

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
        key: str | None = None,
    ) -> AsyncGenerator[StreamEvent, None]:
        """The answer, as llm asks for it. Raises llm.ModelError while iterated over."""
        screen = Screen.of(prompt, stream)
        events = self._events(prompt, weakref.ref(response), key, noting(), screen)
        return in_task(events, screen)


# --- commands: llm huggingchat ... ----------------------------------------------------

BROWSERS = (
    *("arc", "brave", "chrome", "chromium", "edge", "firefox"),
    *("librewolf", "opera", "opera_gx", "safari", "vivaldi"),
)


class _Commands(click.Group):
    """The one place where what went wrong is told: a line or two, never a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # as they stand here: what comes first is used first

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except llm.ModelError as error:
            raise click.ClickException(str(error)) from None
        except sqlite3.Error as error:
            path = llm.user_dir() / "logs.db"
            raise click.ClickException(
                f"llm's logs, {path}, cannot be used: {plain(error)}"
            ) from None
        except BrokenPipeError:
            raise  # the reader has had enough: click knows
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{name}{_why(error)}") from None


@click.group(name="huggingchat", cls=_Commands)
def huggingchat() -> None:
    """Your HuggingChat account: log in, see the models, use your conversations.

    \b
    Example:
        llm huggingchat login
        llm huggingchat conversations
    """


def current_credentials() -> Credentials:
    """The current server, with the cookies for it. Raises llm.ModelError."""
    server = current_server()
    key = find_key(server)[0]
    return Credentials(server, parse_cookies(key, server.host) if key else None)


async def _told(access: Credentials, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """Make calls to the server. Raises llm.ModelError for all that goes wrong."""
    client = Client.here()
    try:
        try:
            return await work(client)
        except NotFound:
            await _demand_login(client, access)
            raise
    except (ConnectionLost, HttpError, NotFound) as error:
        raise model_error(error, access) from None


def _run(access: Credentials, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """Run a command's calls to the server. Raises llm.ModelError for all that goes wrong."""
    return _run_alone(_told(access, work))


def _run_alone(work: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, on a loop that can watch sockets for curl: Windows' own cannot."""
    if sys.version_info >= (3, 12):
        return asyncio.run(work, loop_factory=asyncio.SelectorEventLoop)
    if sys.platform == "win32":
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    return asyncio.run(work)


async def _who(client: Client, access: Credentials) -> tuple[bool, str]:
    """Does the server want a login, and who is logged in? "" for nobody.

    A session that has ended is renewed.
    """
    wanted, user = await client.wants_login(access), dict[str, Any]()
    access = latest(access)
    has_token = bool(access.cookies and access.cookies.token)
    if not has_token or (access.cookies and access.cookies.hf_chat):
        user = await client.user(access)
    if wanted and has_token and not user:
        try:
            access = await client.renew(access)
        except llm.ModelError:
            return wanted, ""
        user = await client.user(access)
    names = (_string(user.get(name)) for name in ("username", "email", "id"))
    return wanted, plain(next(filter(None, names), ""), 80)


async def _demand_login(client: Client, access: Credentials) -> bool:
    """Raises llm.ModelError when nobody is logged in: a stranger is told of no conversations.

    Returns whether the session has ended, and was renewed.
    """
    before = latest(access)
    wanted, user = await _who(client, access)
    if wanted and not user:
        raise login_error(access.server, access.cookies)
    return latest(access) != before


def _bar(what: str, length: int | None = None, shown: bool = True) -> Any:
    """A progress bar on standard error, as long as that is a terminal; without a length it counts.

    On one that also shows the output, the output is progress enough: it is not `shown`.
    """
    file = sys.stderr if shown and sys.stderr.isatty() else io.StringIO()
    endless = itertools.count() if length is None else None
    return click.progressbar(endless, length, label=what, show_pos=True, file=file)


DASH = pathlib.Path("-")  # standard output, where a file is asked for


def _may_write(path: pathlib.Path) -> None:
    """Asks before a file is overwritten. Raises click.Abort, or click.ClickException."""
    if path == DASH:
        return
    if not path.parent.is_dir():
        raise click.ClickException(f"There is no directory {path.parent}")
    if path.is_dir():
        raise click.ClickException(f"{path} is a directory")
    if path.is_file() or (path.is_symlink() and not path.exists()):
        click.confirm(f"{path} exists. Overwrite it?", abort=True, err=True)


def _age(seconds: float) -> str:
    """How long ago, in the largest unit that fits."""
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _moment(value: object) -> datetime.datetime | None:
    """The time in a server's JSON, or None."""
    try:
        moment = datetime.datetime.fromisoformat(re.sub("Z$", "+00:00", _string(value)))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)


def _echo_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, allow_nan=False))


# Log in


@huggingchat.command()
@click.option(
    "--browser",
    type=click.Choice(BROWSERS),
    help="Take the cookies from this browser; needs the extra 'browser'",
)
def login(browser: str | None) -> None:
    """Log in with a cookie of your browser.

    Reads the cookie `token`, as the browser or one of its extensions shows it, makes a chat
    session from it and keeps both in llm's key store. The session's own cookie, `hf-chat`,
    may come with it, or alone where there is no `token`. On a terminal it is asked for,
    without echo; otherwise it is read from standard input.

    \b
    Example:
        llm huggingchat login
        llm huggingchat login --browser firefox
        llm huggingchat login < cookies.txt
    """
    server = current_server()
    stranger = Credentials(server, None)
    if not _run(stranger, lambda client: _who(client, stranger))[0]:
        click.echo(f"{server.host} needs no login. Try: llm -m hf-llama 'Say hello'")
        return
    meant = [browser_cookies(browser, server)] if browser else _asked_cookies(server)
    for access in [Credentials(server, cookies) for cookies in meant]:
        user = _run(access, functools.partial(_who, access=access))[1]
        if user:
            keep_key(server.key_name, cast(Cookies, latest(access).cookies).to_key())
            click.echo(
                f"Logged in on {server.host} as {user}. The cookies are kept in llm's key store."
            )
            return
    raise HuggingChatError(f"{login_error(server, meant[-1])} These cookies are not kept.")


def _asked_cookies(server: Server) -> list[Cookies]:
    """What a person pastes, or standard input holds, and may mean: the likeliest comes last.

    A bare value does not say its name; a session's is a UUID, as far as seen.
    """
    asked = sys.stdin.isatty()
    given = _asked_text(server) if asked else sys.stdin.buffer.read(1_000_000)
    text = given if isinstance(given, str) else given.decode("utf-8-sig", "replace")
    cookies = parse_cookies(text, server.host)
    bare = cookies.hf_chat or ""
    is_bare = text.strip().strip("\"'") == bare
    if not is_bare or re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bare):
        return [cookies]
    return sorted([cookies, Cookies(None, bare)], key=lambda meant: bool(meant.token) is asked)


def _asked_text(server: Server) -> str:
    click.echo(
        f"1. Log in at {server.url} with your browser.\n"
        "2. Open its developer tools (F12): Application or Storage, then Cookies.\n"
        f"3. Copy the value of the cookie 'token' of {server.host}, or of 'hf-chat' without it.\n"
        "   A whole Cookie header, or what a cookie extension exports, will do as well.\n"
        "What you paste is not shown. 'token' opens your whole account: give it to nobody.",
        err=True,
    )
    if _can_open():
        _open(server.url)
    return str(click.prompt("token", hide_input=True, err=True))


def browser_cookies(browser: str, server: Server) -> Cookies:
    """The cookies that `browser` keeps for the server. Raises llm.ModelError.

    Only those of the server's own domain are asked for.
    """
    import importlib

    name = browser.replace("_", " ").title()
    try:
        store = importlib.import_module("browser_cookie3")
    except ImportError:
        raise HuggingChatError(
            "Reading a browser's cookies needs browser-cookie3. "
            "Run: llm install 'llm-huggingchat[browser]'"
        ) from None
    host = urlsplit(server.url).hostname or ""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            jar = list(getattr(store, browser)(domain_name=host, **_place(browser)))
    except Exception as error:  # its own errors are many, and not all of one kind
        raise HuggingChatError(
            f"The cookies of {name} cannot be read: {_browser_trouble(error)}"
        ) from None
    found = {
        cookie.name: str(cookie.value)
        for cookie in sorted(jar, key=lambda cookie: len(cookie.domain))
        if cookie.name in COOKIE_NAMES and cookie.value and _domain_covers(cookie.domain, host)
    }
    if not found.keys() & {"hf-chat", "token"}:
        raise HuggingChatError(
            f"{name} has no cookie 'token' of {host}. "
            f"Log in at {server.url} with {name}, and run this again."
        )
    return parse_cookies(json.dumps(found), server.host)


def _place(browser: str) -> dict[str, str]:
    """Where a new Firefox keeps its cookies: browser-cookie3 0.20 knows the old place alone."""
    home = pathlib.Path.home()
    if browser != "firefox" or (home / ".mozilla" / "firefox").is_dir():
        return {}
    config = pathlib.Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    stores = sorted(
        config.glob("mozilla/firefox/*/cookies.sqlite"), key=lambda path: path.stat().st_mtime
    )
    return {"cookie_file": str(stores[-1])} if stores else {}


def _browser_trouble(error: Exception) -> str:
    """Why a browser's store cannot be read, without a byte of what is in it."""
    said = str(error).lower()
    if isinstance(error, sqlite3.Error):
        return "its database is locked or broken. Close the browser and try again."
    if "not find" in said or "to find" in said:
        return "no profile of it was found. Paste them instead: llm huggingchat login"
    if "unable to read" in said:
        return "its database is locked or not readable. Close the browser and try again."
    if "dbus" in said or "d-bus" in said:
        return "they are encrypted, and no desktop session has the key. Paste them instead."
    if "key" in said or "decrypt" in said:
        return "they are encrypted, and the key is not to be had. Paste them instead."
    return f"browser-cookie3 failed ({type(error).__name__}). Paste them instead."


@huggingchat.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask")
def logout(yes: bool) -> None:
    """Forget the cookies of the current server.

    Where there are no logins, they are all that your conversations there are known by: it asks.

    \b
    Example:
        llm huggingchat logout
    """
    server = current_server()
    known = stored_key(server.key_name)
    if is_anonymous(known) and not yes:
        lost = f"{server.host} has no logins: your conversations there cannot be reached again."
        click.confirm(f"{lost} Forget the cookies?", abort=True, err=True)
    if known:
        keep_key(server.key_name, None)
        click.echo(f"The cookies for {server.host} are forgotten.")
    else:
        click.echo(f"There were no cookies for {server.host}.")
    if os.environ.get(KEY_VARIABLE):
        click.echo(f"{KEY_VARIABLE} is still set.", err=True)


@dataclass
class _Status:
    """What `status` tells. `reason` says why prompts would fail, if they would."""

    server: str = ""
    user: str = ""
    login_needed: bool | None = None
    cookies: str = "none"
    session_time: float | None = None
    models: int = 0
    catalogue_time: float | None = None
    reason: str = ""

    def lines(self) -> Iterator[str]:
        yield f"Server: {self.server or 'none'}"
        nobody = "nobody; no login is needed" if self.login_needed is False else "nobody"
        yield f"Logged in: {self.user or nobody}"
        made = "" if self.session_time is None else _age(time.time() - self.session_time)
        yield f"Cookies: {self.cookies}" + (f", session made {made}" if made else "")
        age = "built in, never refreshed"
        if self.catalogue_time is not None:
            age = f"refreshed {_age(time.time() - self.catalogue_time)}"
        yield f"Models: {self.models} ({age})"


@huggingchat.command()
@click.option("json_", "--json", is_flag=True, help="Output as JSON")
@click.pass_context
def status(ctx: click.Context, json_: bool) -> None:
    """Say whether prompts would work: server, login, models.

    The exit status is 1 when they would fail.

    \b
    Example:
        llm huggingchat status
        llm huggingchat status --json
    """
    state = _Status()
    try:
        server = current_server()
        state.server = server.url
        catalogue = load_catalogue(server.url)
        state.models, state.catalogue_time = len(catalogue.models), catalogue.time
        key, source = find_key(server)
        if key:
            state.cookies = source
        access = Credentials(server, parse_cookies(key, server.host) if key else None)
        state.login_needed, state.user = _run(access, lambda client: _who(client, access))
        if access.cookies:
            state.session_time = cast(Cookies, latest(access).cookies).since
        if state.login_needed and not state.user:
            raise login_error(server, access.cookies)
    except llm.ModelError as error:
        state.reason = str(error)
    if json_:
        known = {name: None if value == "" else value for name, value in vars(state).items()}
        _echo_json({"ok": not state.reason, **known})
    else:
        for line in state.lines():
            click.echo(line)
        if state.reason:
            raise click.ClickException(state.reason)
    ctx.exit(1 if state.reason else 0)


# Models


@huggingchat.command()
def refresh() -> None:
    """Fetch the list of models, and say what was added and removed.

    \b
    Example:
        llm huggingchat refresh
    """
    access = Credentials(current_server(), None)
    with contextlib.suppress(llm.ModelError):
        access = current_credentials()  # for the firewall; without a key it may do as well
    before = {model.id for model in load_catalogue(access.server.url).models}
    models = _run(access, lambda client: client.catalogue(access))
    keep_catalogue(access.server.url, models)
    after = {model.id for model in models}
    for what, ids in (("Added", after - before), ("Removed", before - after)):
        for id in sorted(ids):
            click.echo(f"{what}: huggingchat/{id}")
    changed = "" if after != before else ", nothing changed"
    click.echo(f"{len(after)} models on {access.server.host}{changed}.")


@huggingchat.command(name="models")
@click.option("json_", "--json", is_flag=True, help="Output as JSON")
def models_(json_: bool) -> None:
    """List the models, their aliases and what they can do.

    \b
    Example:
        llm huggingchat models
        llm huggingchat models --json
    """
    catalogue = load_catalogue(current_server().url)
    names = aliases_of(catalogue.models)
    if json_:
        _echo_json(
            [
                {
                    "id": f"huggingchat/{model.id}",
                    "aliases": names.get(model.id, []),
                    **model.abilities,
                    "unlisted": model.unlisted,
                    "description": model.description,
                }
                for model in catalogue.models
            ]
        )
        return
    for model in catalogue.models:
        able = ", ".join(name for name, has in model.abilities.items() if has)
        aka = ", ".join(names.get(model.id, []))
        click.echo(f"huggingchat/{model.id} ({aka})" + (f": {able}" if able else ""))
    if catalogue.time is None:
        note("this is the built-in list; for the server's own run: llm huggingchat refresh")


# Settings

EFFORTS = ("low", "medium", "high")
POLICIES = ("auto", "fastest", "cheapest")  # instead of a provider's name
# A setting -> where the account keeps it: an object by model id.
OVERRIDES = {
    "reasoning_effort": "reasoningEffortOverrides",
    "provider": "providerOverrides",
    "artifacts": "artifactsOverrides",
}
SETTINGS_PATH = "/api/v2/user/settings"


@frozen
class ModelSettings:
    """A model's settings. None is what the model, or the server, does by itself."""

    reasoning_effort: str | None = None
    provider: str | None = None
    artifacts: bool | None = None

    @classmethod
    def of(cls, id: str, account: dict[str, Any]) -> ModelSettings:
        """Those of model `id` in the account's, as `GET api/v2/user/settings` says them."""
        kept = {name: _mapping(account.get(key)).get(id) for name, key in OVERRIDES.items()}
        effort, provider, artifacts = kept.values()
        return cls(
            plain(_string(effort), 40) or None,
            None if provider == "auto" else plain(_string(provider), 80) or None,
            artifacts if isinstance(artifacts, bool) else None,
        )

    def lines(self, id: str, info: ModelInfo | None) -> Iterator[str]:
        """For people. `info` is None for a model that the server has no more."""
        yield f"huggingchat/{plain(id, 200)}" + ("" if info else " (not there any more)")
        default = "default" if info is None or info.reasoning else "none, it does not reason"
        yield f"  reasoning effort: {self.reasoning_effort or default}"
        yield f"  provider: {self.provider or 'auto'}"
        default = "default" if info is None else f"default ({_on(info.artifacts)})"
        yield f"  artifacts: {default if self.artifacts is None else _on(self.artifacts)}"

    def to_json(self, id: str) -> dict[str, Any]:
        """For `--json`."""
        return {"model": f"huggingchat/{id}", **vars(self)}


def _on(value: bool) -> str:
    return "on" if value else "off"


def changed_account(
    account: dict[str, Any], id: str, changes: dict[str, str | bool | None]
) -> dict[str, Any]:
    """The account's settings to send back, with a model's changed; None takes one away.

    The rest goes back as it came: what is left out would go back to its default. But a null
    is superjson's undefined, and refused (captures/settings.json).
    """
    kept = {name: value for name, value in account.items() if value is not None}
    for name, value in changes.items():
        others = dict(_mapping(kept.get(OVERRIDES[name])))
        others.pop(id, None)
        kept[OVERRIDES[name]] = others if value is None else others | {id: value}
    return kept


def _model_named(text: str) -> str:
    """The server's id of a model that is named by an alias or an id of llm's, or its own."""
    with contextlib.suppress(llm.UnknownModelError):
        model = llm.get_model(text)
        if isinstance(model, HuggingChat):
            return model.info.id
    return text.removeprefix("huggingchat/")


async def _account_settings(client: Client, access: Credentials) -> dict[str, Any]:
    """The account's settings. Raises llm.ModelError, also when nobody is logged in."""
    # A stranger gets the defaults. Sent back later, they would replace the account's own.
    await _demand_login(client, access)
    account = _mapping(unwrap(await client.get(access, SETTINGS_PATH)))
    if not any(isinstance(account.get(key), dict) for key in OVERRIDES.values()):
        raise HuggingChatError(f"{access.server.host} keeps no settings for models.")
    return account


async def _offered_provider(
    client: Client, access: Credentials, info: ModelInfo, provider: str
) -> str | None:
    """A provider as the server spells it; None for auto. Raises llm.ModelError if the server
    says that it would not use it."""
    wanted = provider.lower()
    if wanted == "auto":
        return None
    if info.router:
        raise HuggingChatError(
            f"{info.id} chooses a model for each message, so no provider can be set for it."
        )
    config = _mapping(unwrap(await client.get(access.public, "/api/v2/public-config")))
    if config.get("PUBLIC_APP_ASSETS") not in (None, "huggingchat"):
        raise HuggingChatError(
            f"{access.server.host} has no choice of providers: only HuggingChat has one."
        )
    if wanted in POLICIES:
        return wanted
    path = f"/api/v2/models/{quote(info.id)}"
    listed = _mapping(unwrap(await client.get(access.public, path))).get("providers")
    names = [_string(entry.get("provider")) for entry in _mappings(listed)]
    if any(names) and wanted not in map(str.lower, names):
        there = ", ".join(plain(name, 80) for name in filter(None, names))
        raise HuggingChatError(
            f"{info.id} has no provider {plain(provider, 80)!r}. It has: {there}; "
            f"or choose {', '.join(POLICIES)}."
        )
    return next((name for name in names if name.lower() == wanted), provider)


@huggingchat.command(name="settings")
@click.argument("name", required=False, metavar="[MODEL]")
@click.option(
    "--reasoning-effort",
    "effort",
    type=click.Choice([*EFFORTS, "default"]),
    help="How much a model thinks that reasons",
)
@click.option(
    "--provider",
    metavar="NAME|auto|fastest|cheapest",
    help="Who runs it: an inference provider's name, or how one is chosen",
)
@click.option(
    "artifacts_",
    "--artifacts/--no-artifacts",
    default=None,
    help="May it write artifacts, or are they part of the text?",
)
@click.option("json_", "--json", is_flag=True, help="Output as JSON")
def settings_(
    name: str | None, effort: str | None, provider: str | None, artifacts_: bool | None, json_: bool
) -> None:
    """Show or change how models answer: reasoning effort, provider, artifacts.

    MODEL is any alias or id. Without options its settings are shown; without MODEL, those of
    all models that have any. They are your account's: they hold from the next message on,
    here and on the web page, whose page of the model shows them too.

    \b
    Example:
        llm huggingchat settings
        llm huggingchat settings hf-deepseek --reasoning-effort low
        llm huggingchat settings hf-deepseek --provider fastest --no-artifacts
        llm huggingchat settings hf-deepseek --reasoning-effort default --provider auto
    """
    wanted = bool(effort or provider) or artifacts_ is not None
    if wanted and not name:
        raise click.UsageError("Which model? Give an alias or an id.")
    if provider is not None and not re.fullmatch(r"[\w.-]+", provider, re.ASCII):
        raise click.UsageError("A provider's name has letters, digits, dots and dashes.")
    access = current_credentials()
    id = _model_named(name) if name else None

    async def work(client: Client) -> tuple[dict[str, Any], dict[str, ModelInfo]]:
        account = await _account_settings(client, access)
        models = {info.id: info for info in await client.catalogue(access)}
        if id and id not in models:
            raise HuggingChatError(
                f"{plain(name, 100)!r} names no model of {access.server.host}. "
                "See: llm huggingchat models"
            )
        if not id or not wanted:
            return account, models
        changes: dict[str, str | bool | None] = {}
        if effort:
            reasons = _mapping(account.get("reasoningOverrides")).get(id, models[id].reasoning)
            if effort != "default" and reasons is not True:
                raise HuggingChatError(
                    f"{id} does not reason, so it has no reasoning effort. "
                    "See: llm huggingchat models"
                )
            changes["reasoning_effort"] = None if effort == "default" else effort
        if provider:
            changes["provider"] = await _offered_provider(client, access, models[id], provider)
        if artifacts_ is not None:
            changes["artifacts"] = artifacts_
        for setting in changes:
            if not isinstance(account.get(OVERRIDES[setting]), dict):
                raise HuggingChatError(f"{access.server.host} has no such setting: {setting}")
        own = access
        if own.cookies is None:  # without a session of its own, nobody would have them
            cookies = await _beside_loop(anonymous_session, access.server, note)
            own = replace(access, cookies=cookies)
        await client.call(own, "POST", SETTINGS_PATH, changed_account(account, id, changes))
        return await _account_settings(client, own), models

    account, models = _run(access, work)
    ids = (
        [id]
        if id
        else sorted({key for x in OVERRIDES.values() for key in _mapping(account.get(x))})
    )
    found = {each: ModelSettings.of(each, account) for each in ids}
    if not id:
        found = {each: kept for each, kept in found.items() if kept != ModelSettings()}
    if json_:
        shown = [kept.to_json(each) for each, kept in found.items()]
        _echo_json(shown[0] if id else shown)
        return
    for each, kept in found.items():
        for line in kept.lines(each, models.get(each)):
            click.echo(line)
    if found:
        click.echo("These are settings of your account: they hold on the web page too.")
    else:
        note("no model has settings of its own")


# Conversations: which one is meant


@frozen
class ConversationRef:
    """A conversation that somebody named; `shared` when by the link it was shared with."""

    id: str
    shared: bool = False

    def page(self, server: Server) -> str:
        """Its web page."""
        return server.shared_page(self.id) if self.shared else server.page(self.id)


def parse_conversation_ref(text: str, server: Server) -> ConversationRef | None:
    """A conversation by its id or address; None for anything else.

    Raises llm.ModelError for an address that is not a conversation of this server.
    """
    text = text.strip()
    if re.fullmatch(r"[0-9a-fA-F]{24}", text):
        return ConversationRef(text.lower())
    if "://" not in text:
        return None
    if server.is_service:
        text = re.sub(r"^https?://hf\.co/", f"{server.origin}/", text)  # as its shared links say
    pattern = re.escape(server.url) + r"/(conversation|r)/([A-Za-z0-9_-]+)/?([?#].*)?"
    match = re.fullmatch(pattern, text)
    if not match:
        raise HuggingChatError(
            f"{plain(text, 200)} is not the address of a conversation on {server.url}. "
            f"For another server, set {SERVER_VARIABLE}."
        )
    # Ids of shared conversations have 7 characters, and are taken in either place.
    return ConversationRef(match[2], match[1] == "r" or len(match[2]) == 7)


def find_conversation(text: str, server: Server, *, shared: bool = False) -> ConversationRef:
    """The conversation that `text` names: also by the id that llm's logs know it by.

    Raises llm.ModelError when there is none, or it is shared and must not be.
    """
    named = parse_conversation_ref(text, server)
    if named is None:
        with _logs() as store:
            kept = _latest_kept(store, text.strip().lower())
        if kept is None or kept[0] != server.url:
            raise HuggingChatError(
                f"{plain(text, 100)!r} names no conversation on {server.host}. It takes an id "
                "of 24 hexadecimal digits, a page's address, or an id of llm logs."
            )
        named = ConversationRef(kept[1])
    if named.shared and not shared:
        raise HuggingChatError(
            f"{plain(text, 200)} is a shared link. This takes a conversation of your own; "
            "import makes it one."
        )
    return named


@contextlib.contextmanager
def _logs() -> Iterator[LogStore]:
    """llm's logs, brought up to date."""
    import sqlite_utils
    from llm.logs import LogStore

    with contextlib.closing(sqlite_utils.Database(llm.user_dir() / "logs.db")) as db:
        # Half an emoji in one row must not keep all the others from being read.
        db.conn.text_factory = lambda text: text.decode("utf-8", "replace")
        yield LogStore(db)


# SQLite looks at no row whose payload is no JSON, in its own sense: it would fail for all.
_KEPT = (
    "case when json_valid(parts.payload) "
    "then json_extract(parts.payload, '$.provider_metadata.huggingchat.{}') end"
)


def _latest_kept(
    store: LogStore, thread_id: str | None = None, server_url: str | None = None
) -> tuple[str, str] | None:
    """Server and conversation id of the latest logged turn, in all or in one thread, server."""
    server, conversation = _KEPT.format("server"), _KEPT.format("conversation_id")
    row = store.db.execute(
        f"""
        select {server}, {conversation}
        from turns join parts on parts.message_hash = turns.tip_message_hash
        where parts.payload like '%"huggingchat"%' and {conversation} is not null
            and (:thread is null or turns.thread_id = :thread)
            and (:server is null or {server} = :server)
        order by turns.id desc, parts.position desc limit 1
        """,
        {"thread": thread_id, "server": server_url},
    ).fetchone()
    return (str(row[0]), str(row[1])) if row and known_id(row[1]) else None


def _latest_named(server: Server | None = None) -> tuple[Server, ConversationRef]:
    """The latest conversation in llm's logs, and its server. Raises llm.ModelError."""
    with _logs() as store:
        kept = _latest_kept(store, server_url=server.url if server else None)
    if kept is None:
        where = server.host if server else "HuggingChat"
        raise HuggingChatError(f"llm's logs hold no conversation of {where}. Give an id.")
    return parse_server(kept[0]), ConversationRef(kept[1])


def logged_threads(store: LogStore, server: Server) -> dict[str, str]:
    """Conversation id -> the latest thread in llm's logs that holds something of it."""
    rows = store.db.execute(
        f"""
        select {_KEPT.format("conversation_id")}, max(turns.thread_id)
        from parts join turns on turns.tip_message_hash = parts.message_hash
        where parts.payload like '%"huggingchat"%' and {_KEPT.format("server")} = ?
        group by 1
        """,
        [server.url],
    )
    return {str(id): str(thread) for id, thread in rows if id}


# Conversations: the list


@frozen
class ConversationSummary:
    """A conversation in the server's list."""

    id: str
    title: str
    model: str
    updated_at: str


async def list_conversations(
    client: Client, access: Credentials
) -> AsyncGenerator[ConversationSummary, None]:
    """All conversations, newest first, each once, however the pages shift meanwhile.

    Raises TooMuch for a list that seems to have no end: no account has so many.
    """
    seen: set[str] = set()
    page, end = 0, time.monotonic() + LIST_TIME
    while True:
        # A page has 30. Were there fewer on each, the pages would be the measure.
        if max(len(seen), 30 * page) > LIST_LIMIT or time.monotonic() > end:
            raise TooLarge(
                f"{access.server.host} does not come to the end of its list of conversations: "
                f"it has told {len(seen):,} on {page:,} pages."
            )
        path = f"/api/v2/conversations?p={page}"
        answer = _mapping(unwrap(await client.get(access, path)))
        fresh = {
            _string(entry.get("id")): entry
            for entry in _mappings(answer.get("conversations"))
            if re.fullmatch(r"[0-9a-fA-F]{24}", _string(entry.get("id")))
            and entry["id"] not in seen
        }
        if not (seen or fresh) and await _demand_login(client, access):
            continue  # now it is the account that is asked
        seen.update(fresh)
        page += 1
        for id, entry in fresh.items():
            yield ConversationSummary(
                id,
                plain(_string(entry.get("title")), 200),
                plain(_string(entry.get("model")), 200),
                plain(_string(entry.get("updatedAt")), 60),
            )
        if answer.get("hasMore") is not True or not fresh:
            return


async def _collect(
    client: Client, access: Credentials, number: int = 0, text: str = ""
) -> list[ConversationSummary]:
    """The first `number` conversations, or all, whose title holds `text`."""
    found: list[ConversationSummary] = []
    entries = list_conversations(client, access)
    async with contextlib.aclosing(entries):
        with _bar("Conversations found", shown=not number) as bar:
            async for entry in entries:
                if text.casefold() in entry.title.casefold():
                    found.append(entry)
                    bar.update(1)
                if number and len(found) == number:
                    break
    return found


@huggingchat.command()
@click.option("-n", "--number", type=click.IntRange(0), default=20, help="How many; 0 for all")
@click.option("-q", "--query", default="", help="Only those with this text in their title")
@click.option("json_", "--json", is_flag=True, help="Output as JSON")
def conversations(number: int, query: str, json_: bool) -> None:
    """List your conversations, newest first.

    Shows id, age, title and model. Those that llm's logs know are marked with a star.

    \b
    Example:
        llm huggingchat conversations
        llm huggingchat conversations -n 5 -q poem
    """
    access = current_credentials()
    found = _run(access, lambda client: _collect(client, access, number, query))
    with _logs() as store:
        threads = logged_threads(store, access.server)
    if json_:
        _echo_json(
            [
                {
                    "id": entry.id,
                    "title": entry.title,
                    "model": entry.model,
                    "updated_at": entry.updated_at,
                    "url": access.server.page(entry.id),
                    "thread_id": threads.get(entry.id),
                }
                for entry in found
            ]
        )
        return
    for entry in found:
        moment = _moment(entry.updated_at)
        age = _age((_now() - moment).total_seconds()) if moment else ""
        mark = "*" if entry.id in threads else " "
        click.echo(f"{entry.id} {mark} {age:>14}  {entry.title} ({entry.model})")
    if not found:
        note("no conversation" + (f" with {query!r} in its title" if query else ""))


# Conversations: into llm's logs


@frozen
class ConversationTree:
    """A conversation with its messages, as the server keeps it; each names its ancestors.

    A `shared` one is somebody else's: it can be read, but not continued. The value is not in
    `repr`, as asyncio makes that of what its tasks return, and it is ten times the size.
    """

    server: Server
    id: str
    value: dict[str, Any] = field(repr=False)
    shared: bool = False

    @property
    def title(self) -> str:
        """The title, as it may be shown."""
        return plain(_string(self.value.get("title")), 200) or "Untitled"

    @property
    def model(self) -> str:
        """The id of the model that the next turn would have."""
        return plain(_string(self.value.get("model")), 200)

    def messages(self) -> dict[str, dict[str, Any]]:
        """By id; what has none is passed over."""
        return {id: m for m in messages_of(self.value) if (id := known_id(m.get("id")))}


@frozen
class StoredTurn:
    """A stored answer, and what was said by the person since the answer before it."""

    questions: tuple[dict[str, Any], ...]
    answer: dict[str, Any]


def branches_of(tree: ConversationTree, now: datetime.datetime) -> list[list[StoredTurn]]:
    """Every branch, from its first question to its last answer; the newest one first.

    Passed over are answers that hold nothing, that are still being written, and questions
    that nothing answers.
    """
    messages = tree.messages()
    answers = {
        id: message
        for id, message in messages.items()
        if message.get("from") == "assistant" and _is_answer(message, now)
    }
    inner = {id for message in answers.values() for id in _ancestors(message)}
    leaves = [(_string(answers[id].get("createdAt")), id) for id in answers if id not in inner]
    found = []
    for _, leaf in sorted(leaves, key=lambda leaf: leaf[0], reverse=True):
        branch: list[StoredTurn] = []
        questions: list[dict[str, Any]] = []
        for id in [*_ancestors(answers[leaf]), leaf]:
            if id in answers:
                branch.append(StoredTurn(tuple(questions), answers[id]))
                questions = []
            elif messages.get(id, {}).get("from") == "user":
                questions.append(messages[id])
        found.append(branch)
    return found


def _ancestors(message: dict[str, Any]) -> list[str]:
    known = map(known_id, _list(message.get("ancestors")))
    return list(dict.fromkeys(filter(None, known)))


def _is_answer(message: dict[str, Any], now: datetime.datetime) -> bool:
    events, complete = stored_events(message)
    updated = _moment(message.get("updatedAt"))
    if not complete and message.get("generationId") and updated:
        # chat-ui saves what there is of an answer every few seconds.
        under_way = (now - updated).total_seconds() < 60
        failed = any(isinstance(event, (Failed, Elicitation)) for event in events)
        if under_way and not failed:
            return False
    return any(isinstance(event, (Text, Reasoning, ToolCall, File)) for event in events)


def question_of(tree: ConversationTree, message: dict[str, Any]) -> Message:
    """A stored question as llm's message; its files are named by their addresses."""
    text = join_surrogates(_string(message.get("content")))
    attachments = [
        llm.Attachment(
            # Without a type, llm would ask the server for it.
            type=plain(_string(file.get("mime")), 100) or "application/octet-stream",
            url=tree.server.file_page(tree.id, file["value"]),
        )
        for file in _mappings(message.get("files"))
        if file.get("type") == "hash" and known_id(file.get("value"))
    ]
    parts: list[Any] = [TextPart(text=text)] if text or not attachments else []
    return Message("user", [*parts, *(AttachmentPart(attachment=file) for file in attachments)])


def response_of(
    tree: ConversationTree, answer: dict[str, Any], history: list[Message]
) -> llm.Response:
    """A stored answer as the response that llm would have logged, had it asked.

    `history` is all that was said before, the question included.
    """
    given = Answer(lambda file: tree.server.file_page(tree.id, file.sha))
    events, complete = stored_events(answer)
    router = router_metadata(_mapping(answer.get("routerMetadata")))
    # When a conversation changes its model, earlier answers get the old one's name here.
    model = router.model if router.model and not router.route else tree.model
    asked = HuggingChat(ModelInfo(model))
    response = llm.Response(llm.Prompt(None, cast(Any, asked), messages=history), asked, True)
    for event in [*events, *(() if complete else (FinalAnswer("", True),))]:
        for out in given.take(event):
            response._process_chunk(out)
    generation_id = known_id(answer.get("generationId"))
    outcome = TurnResult(
        tree.server.url,
        tree.model,
        None if tree.shared else tree.id,
        _string(answer.get("id")),
        generation_id or None,
        tree.title,
        router,
        bool(given.final and given.final.interrupted) and (complete or bool(generation_id)),
    )
    # As at the end of a turn: without a conversation's id, nothing can be continued.
    response._process_chunk(last_event(given, outcome))
    outcome.size = given.size
    response.response_json = outcome.response_json()
    if tree.shared and response.response_json:
        response.response_json["huggingchat"]["url"] = tree.server.shared_page(tree.id)
    response.set_resolved_model(router.model or model)
    begun, ended = _moment(answer.get("createdAt")), _moment(answer.get("updatedAt"))
    response._start_utcnow = begun
    response._start = 0.0
    response._end = max((ended - begun).total_seconds(), 0.0) if begun and ended else 0.0
    response._done = True
    response.id = ulid_of(begun, "turn", tree.server.url, tree.id, _string(answer.get("id")))
    return response


def ulid_of(moment: datetime.datetime | None, *names: str) -> str:
    """An id that sorts by its time, as llm's do, and is the same for the same things."""
    from ulid import ULID

    now = int(time.time() * 1000)
    milliseconds = min(max(int(moment.timestamp() * 1000), 0), now) if moment else now
    digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=10).digest()
    return str(ULID(milliseconds.to_bytes(6, "big") + digest)).lower()


@frozen
class Imported:
    """A thread of llm's logs that a conversation is in, and how many turns were added to it."""

    thread_id: str
    turns: int


class Importer:
    """Writes conversations of one server to llm's logs, and nothing twice.

    An answer is known by its message id or generation id, whoever logged it. So a branch
    goes on where the logs end: in the thread that ends there, or in one that forks off.
    """

    def __init__(self, store: LogStore, server: Server) -> None:
        self._store = store
        self._hashes: dict[str, list[str]] = {}  # message or generation id -> logged messages
        self._tips = {
            str(tip): str(id)
            for id, tip in store.db.execute("select id, tip_message_hash from threads order by id")
            if tip
        }
        rows = store.db.execute(
            f"""
            select message_hash, {_KEPT.format("message_id")}, {_KEPT.format("generation_id")}
            from parts
            where payload like '%"huggingchat"%' and {_KEPT.format("server")} = ?
            """,
            [server.url],
        )
        for hash, *ids in rows:
            self._remember(str(hash), ids)

    def _remember(self, hash: str, ids: Iterable[object]) -> None:
        for id in filter(None, map(known_id, ids)):
            self._hashes.setdefault(id, []).append(hash)

    def knows(self, found: list[list[StoredTurn]]) -> bool:
        """Is all of these branches logged?"""
        return all(self._logged(branch[-1].answer) for branch in found)

    def add(self, tree: ConversationTree, found: list[list[StoredTurn]]) -> list[Imported]:
        """Log what is new in these branches, all of it or nothing. Raises sqlite3.Error."""
        with self._store.db.atomic():
            return [self._add(tree, branch) for branch in found]

    def _logged(self, answer: dict[str, Any]) -> str | None:
        """The logged message that is this answer; best the one that a thread ends with."""
        ids = [known_id(answer.get(name)) for name in ("id", "generationId")]
        hashes = [hash for id in ids for hash in self._hashes.get(id, ())]
        return next((hash for hash in hashes if hash in self._tips), next(iter(hashes), None))

    def _owner(self, tip: str) -> str | None:
        row = self._store.db.execute(
            "select thread_id from turns where tip_message_hash = ? order by id desc", [tip]
        ).fetchone()
        return str(row[0]) if row and row[0] else None

    def _add(self, tree: ConversationTree, branch: list[StoredTurn]) -> Imported:
        tip, start = None, 0
        for index in range(len(branch), 0, -1):
            if tip := self._logged(branch[index - 1].answer):
                start = index
                break
        thread_id = self._tips.get(tip or "") or (self._owner(tip) if tip else None)
        if tip and start == len(branch):
            return Imported(thread_id or "", 0)
        if tip is None or tip not in self._tips:
            leaf = branch[-1].answer
            names = (tree.server.url, tree.id, _string(leaf.get("id")))
            thread_id = self._store.create_thread(
                name=tree.title,
                tip=tip,
                forked_from=thread_id,
                id=ulid_of(_moment(leaf.get("createdAt")), "thread", *names),
            )
        self._tips.pop(tip or "", None)
        try:
            history = self._store.load_chain(tip)
        except (KeyError, TypeError, ValueError, RecursionError):  # not as llm wrote them
            raise HuggingChatError(
                f"llm's logs, {llm.user_dir() / 'logs.db'}, hold a part of {tree.title!r} that "
                "cannot be read, so nothing can be added to it."
            ) from None
        preprompt = join_surrogates(_string(tree.value.get("preprompt")))
        if tip is None and preprompt:
            history = [Message("system", [TextPart(text=preprompt)])]
        for exchanged in branch[start:]:
            history += [question_of(tree, message) for message in exchanged.questions]
            response = response_of(tree, exchanged.answer, history)
            self._store.log(response, thread_id)
            history += response.messages()
            tip = self._store.thread_tip(cast(str, thread_id))
            answer = exchanged.answer
            self._remember(cast(str, tip), (answer.get("id"), answer.get("generationId")))
        self._tips[cast(str, tip)] = cast(str, thread_id)
        return Imported(cast(str, thread_id), len(branch) - start)


async def read_tree(
    client: Client, access: Credentials, named: ConversationRef, most: int | None = None
) -> ConversationTree:
    """A conversation with its messages; a shared one as it is. Raises Gone.

    A server stores an answer some time after it was given. One that a turn of this user's
    llm has just given is waited for, though not long.
    """
    end = time.monotonic() + limits.settle_timeout
    while True:
        value = await client.conversation(access, named.id, most=most)
        tree = ConversationTree(access.server, named.id, value)
        unsettled = [m for m in tree.messages().values() if not is_settled(m)]
        runs = filter(None, (known_id(message.get("generationId")) for message in unsettled))
        if time.monotonic() > end or not any(map(still_noted, runs)):
            return replace(tree, shared=named.shared)
        await asyncio.sleep(0.2)


async def _tree_to_import(
    client: Client,
    access: Credentials,
    named: ConversationRef,
    known: Callable[[ConversationTree], bool],
    most: int | None = None,
) -> ConversationTree | None:
    """A conversation to import; None when it is not there for this account.

    A shared one that the logs do not know is first copied into the account, as the web
    page does: only what is the account's own can be continued there.
    """
    try:
        tree = await read_tree(client, access, named, most)
        if not named.shared or not access.cookies or known(tree):
            return tree
        path = "/api/v2/conversations/import-share"
        reply = await client.change(access, "POST", path, {"shareId": named.id})
        copy = known_id(_mapping(unwrap(reply.json())).get("conversationId"))
        if not copy:
            raise protocol_error(access.server.host, "a copy of the conversation without an id")
        return await read_tree(client, access, ConversationRef(copy), most)
    except NotFound:
        return None


async def _missing(client: Client, access: Credentials, missing: list[ConversationRef]) -> None:
    """Raises llm.ModelError when some of the conversations were not there."""
    if missing:
        await _demand_login(client, access)
        ids = ", ".join(named.id for named in missing)
        raise HuggingChatError(
            f"No such conversation on {access.server.host} for this account: {ids}"
        )


@huggingchat.command(name="import")
@click.argument("names", nargs=-1, metavar="[ID|URL]...")
@click.option("every", "--all", is_flag=True, help="All your conversations")
@click.option(
    "every_branch", "--branches", is_flag=True, help="Every branch, each a thread of its own"
)
def import_(names: tuple[str, ...], every: bool, every_branch: bool) -> None:
    """Bring conversations from the web into llm's logs.

    There they can be read, searched and continued. A conversation's newest branch
    becomes a thread; with --branches the others do too, each from where it forks off.
    Importing again adds only what is new. A shared link is copied into your account
    first, as the web page does.

    \b
    Example:
        llm huggingchat import 6b039392759aa03066f1190f
        llm huggingchat import https://huggingface.co/chat/r/aBcD123
        llm huggingchat import --all
    """
    if bool(names) == every:
        raise click.UsageError("Give ids or addresses of conversations, or --all.")
    access = current_credentials()
    asked = [find_conversation(name, access.server, shared=True) for name in names]

    def branches(tree: ConversationTree) -> list[list[StoredTurn]]:
        return branches_of(tree, _now())[: None if every_branch else 1]

    async def work(client: Client) -> None:
        wanted = dict.fromkeys(asked)
        if every:
            wanted = dict.fromkeys(
                ConversationRef(entry.id) for entry in await _collect(client, access)
            )
        shown = not sys.stdout.isatty()
        with _logs() as store, _bar("Conversations imported", len(wanted), shown) as bar:
            importer = Importer(store, access.server)
            missing: list[ConversationRef] = []

            def known(tree: ConversationTree) -> bool:
                return importer.knows(branches(tree))

            async def small(named: ConversationRef) -> ConversationTree | TooLarge | None:
                most = AHEAD_LIMIT if len(wanted) > 1 else None
                try:
                    return await _tree_to_import(client, access, named, known, most)
                except TooLarge as error:
                    if most:
                        return error
                    raise

            trees = _ahead(small, wanted)
            async with contextlib.aclosing(trees):
                async for named, tree in trees:
                    bar.update(1)
                    if isinstance(tree, TooLarge):  # for one of several
                        tree = await _tree_to_import(client, access, named, known)
                    if tree is None:
                        missing.append(named)
                        continue
                    added = importer.add(tree, branches(tree))
                    for line in _import_lines(tree, added):
                        click.echo(line)
        await _missing(client, access, missing)

    _run(access, work)


def _import_lines(tree: ConversationTree, added: list[Imported]) -> Iterator[str]:
    """What was added from a conversation: thread, number of turns, title."""
    for imported in [imported for imported in added if imported.turns] or added[:1]:
        turns = f"{imported.turns} turn{'' if imported.turns == 1 else 's'} added"
        yield f"{imported.thread_id}  {turns}: {tree.title}"
    if not added:
        yield f"{'-':26}  no answer in it yet: {tree.title}"
    if odd := len(tree.value["messages"]) - len(tree.messages()):
        yield f"{'-':26}  {odd} of its messages make no sense: {tree.title}"


# Conversations: one of them


@huggingchat.command(name="open")
@click.argument("name", required=False, metavar="[ID]")
@click.option("only_print", "--print", is_flag=True, help="Only print the address")
def open_(name: str | None, only_print: bool) -> None:
    """Open the page of a conversation in the browser.

    Its address is printed. Without an ID, it is the latest conversation in llm's logs.

    \b
    Example:
        llm huggingchat open
        llm huggingchat open 6b039392759aa03066f1190f --print
    """
    if name:
        server = current_server()
        page = find_conversation(name, server, shared=True).page(server)
    else:
        server, named = _latest_named()
        page = named.page(server)
    click.echo(page)
    if not only_print and _can_open():
        _open(page)


@huggingchat.command()
@click.argument("name", metavar="ID")
@click.argument("title")
def rename(name: str, title: str) -> None:
    """Give a conversation another title.

    \b
    Example:
        llm huggingchat rename 6b039392759aa03066f1190f 'A poem'
    """
    access = current_credentials()
    id, title = find_conversation(name, access.server).id, title.strip()
    if not 0 < len(title) <= 100:
        raise click.UsageError("A title has 1 to 100 characters.")
    _run(access, lambda client: client.change(access, "PATCH", api_path(id), {"title": title}))
    click.echo(f"Renamed {id}: {plain(title)}")


@huggingchat.command()
@click.argument("name", metavar="ID")
def share(name: str) -> None:
    """Print a link by which everybody can read a conversation.

    It shows the conversation as it is now.

    \b
    Example:
        llm huggingchat share 6b039392759aa03066f1190f
    """
    access = current_credentials()
    path = f"{chat_path(find_conversation(name, access.server).id)}/share"
    reply = _run(access, lambda client: client.change(access, "POST", path, {}))
    share_id = known_id(_mapping(reply.json()).get("shareId"))
    if not share_id:
        raise HuggingChatError(f"{access.server.host} did not say where the shared page is.")
    click.echo(access.server.shared_page(share_id))


@huggingchat.command()
@click.argument("names", nargs=-1, metavar="[ID]...")
@click.option("every", "--all", is_flag=True, help="All your conversations")
@click.option("-y", "--yes", is_flag=True, help="Do not ask")
def delete(names: tuple[str, ...], every: bool, yes: bool) -> None:
    """Delete conversations on the server.

    What llm's logs hold of them stays there.

    \b
    Example:
        llm huggingchat delete 6b039392759aa03066f1190f
        llm huggingchat delete --all --yes
    """
    if bool(names) == every:
        raise click.UsageError("Give ids of conversations, or --all.")
    access = current_credentials()
    wanted = list(dict.fromkeys(find_conversation(name, access.server) for name in names))
    if every:
        found = _run(access, lambda client: _collect(client, access))
        wanted = [ConversationRef(entry.id) for entry in found]
    what = f"{len(wanted)} conversations" if len(wanted) != 1 else f"conversation {wanted[0].id}"
    if wanted and not yes:
        click.confirm(f"Delete {what} on {access.server.host}?", abort=True, err=True)

    async def delete_one(client: Client, named: ConversationRef) -> bool:
        try:
            await client.change(access, "DELETE", api_path(named.id))
        except NotFound:
            return False
        return True

    async def work(client: Client) -> None:
        missing: list[ConversationRef] = []
        deleted = _ahead(lambda named: delete_one(client, named), wanted)
        with _bar("Conversations deleted", len(wanted)) as bar:
            async with contextlib.aclosing(deleted):
                async for named, was_there in deleted:
                    bar.update(1)
                    if not was_there:
                        missing.append(named)
        await _missing(client, access, missing)

    _run(access, work)
    click.echo(f"Deleted {what} on {access.server.host}.")


@huggingchat.command()
@click.argument("name", metavar="ID|URL")
@click.option(
    "format_",
    "--format",
    type=click.Choice(["markdown", "json"]),
    default="markdown",
    show_default=True,
    help="markdown: the newest branch, to read; json: all that the server keeps",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=pathlib.Path),
    help="Write to this file; default: -, standard output",
)
def export(name: str, format_: str, output: pathlib.Path | None) -> None:
    """Write a conversation as Markdown or JSON.

    \b
    Example:
        llm huggingchat export 6b039392759aa03066f1190f
        llm huggingchat export 6b039392759aa03066f1190f --format json -o poem.json
    """
    access = current_credentials()
    named = find_conversation(name, access.server, shared=True)
    if output:
        _may_write(output)
    tree = _run(access, lambda client: read_tree(client, access, named))
    text = to_json(tree) if format_ == "json" else iter([to_markdown(tree, _now())])
    if output and output != DASH:
        with writing(output) as file:
            for piece in text:
                file.write(piece.encode("utf-8"))
        return
    for piece in text:
        click.echo(printable(piece) if sys.stdout.isatty() else piece, nl=False)


def to_json(tree: ConversationTree) -> Iterator[str]:
    """A conversation as the server gave it, in pieces: all at once it is ten times the size."""
    pieces = json.JSONEncoder(indent=2, allow_nan=False).iterencode(tree.value)
    while some := "".join(itertools.islice(pieces, 10_000)):
        yield some
    yield "\n"


def to_markdown(tree: ConversationTree, now: datetime.datetime, *, for_model: bool = False) -> str:
    """A conversation's newest branch, for people to read, or for a model.

    A model is not told what others thought, as in llm's own histories: it was not said, and it
    is long. Nor is it told that it said itself ("You") what the user did.
    """
    page = ConversationRef(tree.id, tree.shared).page(tree.server)
    pieces = [f"# {tree.title}", f"<{page}>"]
    preprompt = join_surrogates(_string(tree.value.get("preprompt")))
    if preprompt:
        pieces += ["## System", preprompt]
    for exchanged in next(iter(branches_of(tree, now)), []):
        for message in exchanged.questions:
            asker = "User" if for_model else "You"
            pieces += [f"## {asker}", *_markdown(question_of(tree, message))]
        response = response_of(tree, exchanged.answer, [])
        pieces.append(f"## {response.resolved_model}")
        for message in response.messages():
            pieces += _markdown(message, reasoning=not for_model)
    return "\n\n".join(pieces) + "\n"


def _markdown(message: Message, *, reasoning: bool = True) -> Iterator[str]:
    for part in message.parts:
        if isinstance(part, TextPart):
            yield part.text.strip("\n")
        elif isinstance(part, ReasoningPart) and part.text and reasoning:
            text = part.text.strip()
            yield f"<details><summary>Reasoning</summary>\n\n{text}\n\n</details>"
        elif isinstance(part, ToolCallPart):
            arguments = json.dumps(part.arguments, ensure_ascii=False)
            yield f"Tool `{part.name}`: `{arguments}`"
        elif isinstance(part, ToolResultPart):
            yield "\n".join(f"> {line}" for line in part.output.split("\n"))
        elif isinstance(part, AttachmentPart) and part.attachment:
            yield f"[{part.attachment.type}]({part.attachment.url})"


def load_conversation(name: str) -> llm.Fragment:
    """
    The newest branch of a HuggingChat conversation, as Markdown, without reasoning

    It is named by its id, its page's address, a shared link, or its id in llm logs.

    Example usage:
      llm -f huggingchat:6b039392759aa03066f1190f 'What was decided?'
      llm -f huggingchat:https://huggingface.co/chat/r/aBcD123 'Is that true?'
    """
    access = current_credentials()
    named = find_conversation(name, access.server, shared=True)

    async def work() -> AsyncGenerator[ConversationTree, None]:
        yield await _told(access, lambda client: read_tree(client, access, named))

    # On the models' loop: it works where another runs, and a prompt then finds the connection.
    (tree,) = in_background(work())
    if not branches_of(tree, _now()):
        raise HuggingChatError(f"{named.page(access.server)} holds no answer yet.")
    text = to_markdown(tree, _now(), for_model=True)
    return llm.Fragment(text, source=named.page(access.server))


# Artifacts

SHOWN_KINDS = ("html", "svg")  # what a browser shows by itself


@huggingchat.command()
@click.argument("name", required=False, metavar="[ID|URL]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=pathlib.Path, file_okay=False),
    metavar="DIR",
    help="Write each one's latest version to a file in this directory",
)
@click.option("every", "--all", is_flag=True, help="Every version, not only the latest")
@click.option("show", "--open", is_flag=True, help="Show HTML and SVG in the browser")
@click.option("json_", "--json", is_flag=True, help="Output as JSON, with their content")
def artifacts(
    name: str | None, output: pathlib.Path | None, every: bool, show: bool, json_: bool
) -> None:
    """List the artifacts of a conversation, or write them to files.

    Artifacts are the pages, scripts and documents that the web page shows in a panel; here
    they are as that panel has them, with the updates of later answers applied. Shows
    identifier, kind, title and versions. They are those of the newest branch; without an ID,
    of the latest conversation in llm's logs.

    \b
    Example:
        llm huggingchat artifacts
        llm huggingchat artifacts 6b039392759aa03066f1190f -o pages
        llm huggingchat artifacts --open
    """
    access = current_credentials()
    if name:
        named = find_conversation(name, access.server, shared=True)
    else:
        _, named = _latest_named(access.server)
    tree = _run(access, lambda client: read_tree(client, access, named))
    branch = next(iter(branches_of(tree, _now())), [])
    found, lost = artifacts_of(
        join_surrogates(_string(exchanged.answer.get("content"))) for exchanged in branch
    )
    names = artifact_names(found, every)
    files: dict[str, pathlib.Path] = {}
    if output:
        if names:
            output.mkdir(parents=True, exist_ok=True)
        files = {file: output / file for _, file in names}
        for path in files.values():
            _may_write(path)
    elif show:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="huggingchat-"))
        files = {file: folder / file for version, file in names if version.kind in SHOWN_KINDS}
    for version, file in names:
        if file in files:
            with writing(files[file]) as written:
                written.write(version.content.encode("utf-8"))
    if json_:
        _echo_json([_artifact_json(artifact) for artifact in found])
    elif output:
        for version, file in names:
            click.echo(f"{files[file]} ({len(version.content.encode())} bytes)")
    else:
        for line in itertools.chain.from_iterable(_artifact_lines(each, every) for each in found):
            click.echo(line)
    for line in _artifact_notes(found, lost):
        note(line)
    shown = [files[file] for version, file in names if show and version.kind in SHOWN_KINDS]
    if show and not shown:
        note("there is no HTML or SVG to show")
    for path in shown:
        if _can_open():
            _open(path.resolve().as_uri())
        else:
            note(f"there is no browser here to open {path}")


def _artifact_lines(artifact: Artifact, every: bool) -> Iterator[str]:
    """What an artifact is: a line, and with `every` one for each of its versions."""
    latest, count = artifact.latest, len(artifact.versions)
    kind = latest.language if latest.kind == "code" and latest.language else latest.kind
    versions = f"{count} version{'' if count == 1 else 's'}"
    name, title = plain(artifact.identifier, 100), plain(latest.title, 200)
    yield f"{name}  {plain(kind, 30)}  {title} ({versions})"
    for version in artifact.versions if every else ():
        about = plain(version.title, 200) + (", never closed" if version.cut else "")
        size = len(version.content.encode())
        yield f"  {version.number}: {version.operation}, {size} bytes: {about}"


def _artifact_notes(found: list[Artifact], lost: list[str]) -> Iterator[str]:
    """What did not go as the model meant it."""
    if not found:
        yield "there are no artifacts in this conversation"
    for artifact in found:
        for version in artifact.versions:
            which = f"version {version.number} of {plain(artifact.identifier, 100)}"
            for text in version.missed:
                why = f"it replaces {plain(text, 60)!r}, which is not there" if text else ""
                yield f"{which} is an update that did not match: {why or 'it replaces nothing'}"
            if version.cut:
                yield f"{which} was never closed"
    for identifier in lost:
        yield f"an update of {plain(identifier, 100)} has nothing to change"


def _artifact_json(artifact: Artifact) -> dict[str, Any]:
    latest = artifact.latest
    return {
        "identifier": artifact.identifier,
        "kind": latest.kind,
        "language": latest.language or None,
        "title": latest.title,
        "versions": [
            {
                "number": version.number,
                "operation": version.operation,
                "kind": version.kind,
                "title": version.title,
                "interrupted": version.cut,
                "missed": list(version.missed),
                "content": version.content,
            }
            for version in artifact.versions
        ],
    }


# Recordings


@huggingchat.command()
@click.argument("file")
def transcribe(file: str) -> None:
    """Print what is said in a recording.

    FILE is mp3, wav, flac, ogg, webm, mp4 or m4a, of at most 25 MB; - is standard input, and
    an address on the web is fetched first.

    \b
    Example:
        llm huggingchat transcribe memo.mp3
    """
    access = current_credentials()
    if file == "-":
        content = sys.stdin.buffer.read(AUDIO_LIMIT + 1)
        attachment = llm.Attachment(content=content)
    elif "://" in file:
        attachment = llm.Attachment(url=file)
    else:
        attachment = llm.Attachment(path=file)

    async def work(client: Client) -> str:
        content, type = await read_attachment(attachment)
        recording = recording_of(attachment, type, content)
        async with contextlib.aclosing(transcribed(client, access, [recording], note)) as texts:
            return "\n".join([text async for _, text in texts])

    text = _run(access, work)
    click.echo(printable(text) if sys.stdout.isatty() else text)


# Files in answers


def file_name(disposition: str, link: str, type: str) -> str:
    """A safe name for a downloaded file: the server's own, else the end of its link."""
    from email.message import Message as Headers

    headers = Headers()
    headers["content-disposition"] = re.sub(r"[\r\n]", "", disposition)
    path = headers.get_filename() or link.rpartition("/")[2]
    return upload_name(llm.Attachment(path=path.replace("\\", "/")), type)


@huggingchat.command()
@click.argument("url")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=pathlib.Path),
    help="Where to; default: its name; - is standard output",
)
def download(url: str, output: pathlib.Path | None) -> None:
    """Download a file of an answer, by its link.

    \b
    Example:
        llm huggingchat download URL
        llm huggingchat download URL -o picture.png
    """
    access = current_credentials()
    server = access.server
    # Nothing but a file's address may get the cookies: no other page, and no way around.
    pattern = re.escape(server.url) + r"(/conversation/[A-Za-z0-9_-]+/output/[A-Za-z0-9_-]+)"
    match = re.fullmatch(pattern, url.strip())
    if not match:
        raise HuggingChatError(
            f"{plain(url, 200)} is not the link of a file on {server.url}. "
            f"One looks like {server.url}/conversation/ID/output/NAME"
        )
    if output and not output.is_dir():
        _may_write(output)
    if output == DASH and sys.stdout.isatty():
        raise click.UsageError("Standard output is a terminal: name a file.")
    path, folder = match[1], pathlib.Path()
    if output:
        folder = output if output.is_dir() else output.parent

    async def work(client: Client) -> HttpResponse:
        try:
            return await client.change(access, "GET", path, most=SAVED_LIMIT, into=file)
        except NotFound:
            await _demand_login(client, access)
            raise HuggingChatError(f"{server.host} has no such file for this account.") from None

    # What comes may be a refusal, or half a file: only when it is there is it known what it is.
    with _unnamed(folder) as file:
        reply = _run(access, work)
        size = file.tell()
        file.seek(0)
        if output == DASH:
            shutil.copyfileobj(file, sys.stdout.buffer)
            return
        if output is None or output.is_dir():
            name = file_name(reply.disposition, path, reply.content_type.partition(";")[0])
            output = folder / name
            _may_write(output)
        with writing(output) as place:
            shutil.copyfileobj(file, place)
    click.echo(f"{output} ({size} bytes)")


# --- hooks ----------------------------------------------------------------------------


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """llm's hook: every model of the current server, from what is cached of its catalogue."""
    try:
        catalogue = load_catalogue(current_server().url)
    except llm.ModelError:
        catalogue = Catalogue()  # a bad address is told when a prompt needs it
    names = aliases_of(catalogue.models)
    for info in catalogue.models:
        register(HuggingChat(info), AsyncHuggingChat(info), aliases=tuple(names.get(info.id, ())))


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """llm's hook: `llm huggingchat`."""
    cli.add_command(huggingchat)


@llm.hookimpl
def register_fragment_loaders(register: Callable[..., None]) -> None:
    """llm's hook: `-f huggingchat:ID`."""
    register("huggingchat", load_conversation)
