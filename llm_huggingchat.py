"""HuggingChat for `llm`: one conversation in the terminal and on the web page.

The file reads from top to bottom; each part uses only what stands above it:

    text         what may be shown in a terminal
    server       addresses, configuration
    cookies      whatever people paste -> cookies
    protocol     what chat-ui says, as types; decoders of lines and server-sent events
    catalogue    models, aliases
    artifacts    tags in an answer's text -> fences; versions -> files
    prompting    schemas and local tools by instruction: words out, calls in
    history      llm's messages -> what to send, after which message
    answer       updates, each once -> llm's stream events
    files        replacing a file in one step, changing one under a lock
    keys         llm's key store -> the cookies for a server
    cache        the catalogue cache
    locks        one turn at a time in a conversation
    http         one exchange over curl_cffi
    sessions     made from `token`, renewed when they have expired
    client       calls to a chat server, tried again where that can help
    errors       what went wrong in a call, in words
    attachments  files -> what chat-ui takes of them; recordings -> their words
    run          one run: send, follow, look, until it is stored
    tools        llm's server-side tools -> what the server is to select
    turn         one turn: the conversation, whose turn it is, the run, a repair
    background   the models' event loop; sync and async iteration
    models       llm's classes
    logs         a conversation's tree -> llm's logs
    commands     llm huggingchat ...
    hooks        what llm calls when it starts

Facts about the protocol come from watching chat-ui 0.20.0, the server behind HuggingChat.
Nothing here touches the network, or imports `curl_cffi`, before a prompt or a command needs it.
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
import hashlib
import inspect
import io
import ipaddress
import itertools
import json
import locale
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
import sqlite3
import stat
import sys
import tempfile
import threading
import time
import uuid
import weakref
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Annotated, Any, Generic, TypeVar, assert_never, cast, get_args
from urllib.parse import quote, unquote, urljoin, urlsplit

import click
import llm
import msgspec
from llm import Message
from llm.parts import AttachmentPart, Part, StreamEvent, TextPart, ToolCallPart, ToolResultPart
from pydantic import Field

if TYPE_CHECKING:
    from concurrent.futures import Future

    from curl_cffi import CurlError
    from curl_cffi.requests import AsyncSession
    from filelock import FileLock
    from llm.logs import LogStore

T = TypeVar("T")
E = TypeVar("E")
M = TypeVar("M", bound="MessageIds")


class Limits(msgspec.Struct):
    """How long things may take, in seconds; the tests shorten them."""

    read_timeout: float = 9.0  # silence of a stream or a log: both have heartbeats
    call_timeout: float = 60.0  # silence of any other call, over all its attempts
    slowest_upload: int = 20_000  # bytes a second: an upload may be silent that much longer
    reconnect_timeout: float = 30.0  # without a sign of the server, before a turn gives up
    backoff: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # between attempts; last repeats
    max_attempts: int = 4  # at a call, or at sending a message
    look_again: float = 0.5  # before looking again for a message that is not there
    stop_timeout: float = 0.7  # for telling the server to stop
    id_timeout: float = 2.0  # for the answer's id, after its last character
    tail_timeout: float = 0.2  # for the answer to be stored, before the prompt ends
    store_timeout: float = 180.0  # for another turn's run to be stored, before it counts as dead
    arrival: float = 5.0  # for a message to arrive if the process that sent it was killed
    stop_marker: float = 5.5  # after a stop, in which it may also stop the next run
    settle_timeout: float = 10.0  # for an answer to be stored, before a conversation is read
    rate_window: float = 60.0  # for which chat-ui counts a message
    catalogue_age: float = 86_400.0  # after which the catalogue is refreshed
    paste_pause: float = 1.0  # without input after a line: then a paste is complete
    transcribe_timeout: float = 90.0  # for a recording: chat-ui gives up after 60


limits = Limits()

FILE_LIMIT = 10 * 1024 * 1024  # bytes; chat-ui refuses a larger file with 413
AUDIO_LIMIT = 25 * 1024 * 1024  # bytes of a recording; chat-ui transcribes no larger one
CONCURRENCY = 4  # calls at the same time, where there are many


# --- text: what may be shown in a terminal --------------------------------------------

# What can change a terminal's state or the order in which text is read: C0, DEL and C1
# controls; marks, overrides and isolates of direction; line and paragraph separators; and
# halves of surrogate pairs, which cannot be printed.
_HARMFUL = (
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f"
    "\ud800-\udfff\ufff9-\ufffb]"
)
_CONTROLS = "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"


def for_terminal(text: str) -> str:
    """Text that the plugin itself prints, of several lines, without what can harm a terminal."""
    return re.sub(_HARMFUL, "", text)


def for_logs(text: str) -> str:
    """A model's or tool's text without what cannot be logged, or what controls a terminal.

    All that llm prints and logs of an answer goes through here. Marks and overrides of direction
    stay, as languages need them.
    """
    return re.sub(_CONTROLS, "", join_surrogates(text))


def one_line(text: object, limit: int = 500) -> str:
    """`text` on one line of at most `limit` characters, without what can harm a terminal.

    Everything from the server that the plugin itself shows goes through here.
    """
    line = for_terminal(" ".join(str(text).split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def decode_text(content: bytes, charset: str = "", *, guess: bool = True) -> str | None:
    """The text that `content` holds, whatever its encoding; None if it holds none.

    A byte order mark decides. Otherwise it is UTF-8 if it can be, then the encoding that the
    sender (`charset`) or the text itself names. With `guess`, the system's encoding comes next,
    then cp1252, but only for text without three bytes beyond ASCII in a row: such a row is
    rare in Western European languages, and common in others.
    """
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
    marked = content.startswith(marks)  # that of UTF-32 LE begins as that of UTF-16 LE
    named = re.search(rb"(?:charset|coding)[=:]\s*[\"']?([\w.-]{1,40})", content[:1024])
    encodings = ["utf-32", "utf-16"] if marked else ["utf-8-sig"]
    encodings += [charset, named[1].decode("ascii") if named else ""]
    if guess and not re.search(rb"[\x00-\x08\x0e-\x1a\x7f]", content):
        system = locale.getencoding()
        encodings.append("" if system == "cp1252" else system)
        encodings.append("" if re.search(rb"[\x80-\xff]{3}", content) else "cp1252")
    for encoding in filter(None, encodings):
        with contextlib.suppress(LookupError, ValueError):
            text = str(content, encoding)
            if "\0" not in text:
                return text
    return None


def _string(value: object) -> str:
    """`value` if it is text, else no text: JSON from outside may hold anything."""
    return value if isinstance(value, str) else ""


def _mapping(value: object) -> dict[str, Any]:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _mappings(value: object) -> list[dict[str, Any]]:
    """The items of `value` if it is a list; those that are no objects become empty ones."""
    return [_mapping(item) for item in value] if isinstance(value, list) else []


def finite_number(text: str) -> float:
    """A number in JSON. Raises ValueError for what JSON does not have: NaN, Infinity, 1e400."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{one_line(text, 20)} is not a JSON value")
    return value


def utf16_length(text: str) -> int:
    """The length of `text` as JavaScript, and so chat-ui, counts it."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def join_surrogates(text: str) -> str:
    """`text` with surrogate pairs joined, and lone halves replaced: it can be encoded."""
    if text.isascii() or not re.search("[\ud800-\udfff]", text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def to_json(value: Any) -> str:
    """`value` as JSON that others can read: no escapes, no NaN, no halves of surrogate pairs."""
    return join_surrogates(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _overlap(text: str, tag: str) -> int:
    """The length of the longest end of `text` that begins `tag`."""
    return next((n for n in range(min(len(text), len(tag)), 0, -1) if tag.startswith(text[-n:])), 0)


def _synonyms(rows: str) -> dict[str, str]:
    """Word -> what it stands for: `"a: b c; d: e"` is {"b": "a", "c": "a", "e": "d"}."""
    pairs = (row.split(":") for row in rows.split(";"))
    return {word: meaning.strip() for meaning, words in pairs for word in words.split()}


class HuggingChatError(click.ClickException, llm.ModelError):
    """What went wrong and what to do next, in one or two lines.

    A `llm.ModelError` for callers of llm's API; a `click.ClickException` because that is what
    `llm chat` prints as one line instead of a traceback.
    """


class LoginRequired(HuggingChatError, llm.NeedsKeyException):
    """The server requires a login, and there is no key for it."""


class TooLarge(HuggingChatError):
    """A server sent more than any real answer has."""


def print_note(text: str) -> None:
    """Print a line on standard error: something to know that is not a failure."""
    click.echo(f"huggingchat: {one_line(text)}", err=True)


def on_command_line() -> bool:
    """Whether this thread works for llm's own command line: else standard error is not ours."""
    context = click.get_current_context(silent=True)
    cli = sys.modules.get("llm.cli")
    return bool(context and cli and context.find_root().command is cli.cli)


def attachment_name(attachment: llm.Attachment) -> str:
    """A name for people: the file's or the URL's last part, else what kind it is."""
    if attachment.path:
        return pathlib.PurePath(attachment.path).name
    if attachment.url:
        last = re.match(r"\w+://[^?#]*/([^/?#]*)", attachment.url)
        return (last and unquote(last[1])) or attachment.url
    kind = (attachment.type or "").partition(";")[0]
    return "attachment" + (mimetypes.guess_extension(kind) or "")


def shown_name(attachment: llm.Attachment) -> str:
    """The name of an attachment, as it may be shown."""
    return one_line(attachment_name(attachment), 100)


def attachment_id(attachment: llm.Attachment) -> str:
    """What llm's logs know an attachment by; "" if its file is not there any more."""
    with contextlib.suppress(OSError):
        return str(attachment.id())
    return ""


# --- server: an address -> where requests and cookies may go --------------------------

SERVICE = "https://huggingface.co/chat"
SERVER_VARIABLE = "LLM_HUGGINGCHAT_URL"
KEY_VARIABLE = "LLM_HUGGINGCHAT_KEY"
BROWSER_VARIABLE = "LLM_HUGGINGCHAT_IMPERSONATE"
WAIT_VARIABLE = "LLM_HUGGINGCHAT_WAIT"


def chat_path(conversation_id: str) -> str:
    """The path of a conversation's page, to which its messages are sent."""
    return f"/conversation/{quote(conversation_id, safe='')}"


def api_path(conversation_id: str) -> str:
    """The path at which a conversation is read, changed and deleted."""
    return f"/api/v2/conversations/{quote(conversation_id, safe='')}"


class Server(msgspec.Struct, frozen=True):
    """A chat-ui server. `url` is its base address, without a slash at the end."""

    url: str

    @property
    def origin(self) -> str:
        """Scheme, host and port: chat-ui answers 403 to an `Origin` other than this."""
        return self.url[: len(self.url) - len(urlsplit(self.url).path)]

    @property
    def host(self) -> str:
        """HOST or HOST:PORT."""
        return urlsplit(self.url).netloc

    @property
    def is_service(self) -> bool:
        """Whether this is HuggingChat itself, where every prompt requires a login."""
        return self.host == urlsplit(SERVICE).netloc

    @property
    def is_loopback(self) -> bool:
        """Whether this is a server on this machine, which may be reached over plain http."""
        return _is_loopback(urlsplit(self.url).hostname or "")

    @property
    def key_name(self) -> str:
        """The name in llm's key store, one for each host: cookies of one never go to another."""
        return "huggingchat" if self.is_service else f"huggingchat:{self.host}"

    def page(self, conversation_id: str) -> str:
        """The conversation's web page."""
        return self.url + chat_path(conversation_id)

    def shared_page(self, share_id: str) -> str:
        """The page of a shared conversation, which everybody can read."""
        return f"{self.url}/r/{quote(share_id, safe='')}"

    def file_page(self, conversation_id: str, sha: str) -> str:
        """The address of a file in a conversation; fetching it requires the cookies."""
        return f"{self.page(conversation_id)}/output/{quote(sha, safe='')}"


def leads_to_login(location: str) -> bool:
    """Whether a redirect to `location` asks for a login.

    The path says so, or an OpenID provider is told who asks (`client_id`). A redirect without
    a target counts as one: chat-ui has no other redirects.
    """
    words = r"\b(log[-_]?in|sign[-_]?in|o?auth2?|authorize|sso|saml2?|client_id|SAMLRequest)\b"
    return not location or bool(re.search(words, location, re.IGNORECASE))


def own_target(url: str, location: str) -> str:
    """The address that a redirect from `url` leads to, if it stays on the origin; else ""."""
    with contextlib.suppress(ValueError):
        target = urljoin(url, location)
        if urlsplit(url)[:2] == urlsplit(target)[:2] and re.fullmatch(r"[!-~]+", target):
            return target
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_private(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        name = host.rstrip(".")
        return "." not in name or name.endswith((".local", ".internal", ".localhost"))


def parse_server(text: str) -> Server:
    """The server at address `text`.

    Raises llm.ModelError for anything but https, or http on loopback, with a host and a path.
    """
    with contextlib.suppress(ValueError):
        parts = urlsplit(text.strip())
        host, port = parts.hostname or "", parts.port
        plain = re.fullmatch(
            r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]*)?(/[!$-&(-;=@-\[\]-~]*)?",
            text.strip(),
            re.IGNORECASE | re.ASCII,
        )
        if plain and (parts.scheme == "https" or _is_loopback(host)):
            netloc = f"[{host}]" if ":" in host else host
            if port and port != {"http": 80, "https": 443}[parts.scheme]:
                netloc += f":{port}"
            return Server(f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}")
    raise HuggingChatError(
        f"{one_line(text.rpartition('@')[2], 100)!r} cannot be the chat server's address. "
        f"Set {SERVER_VARIABLE} to one like {SERVICE}; use https, http is for loopback only."
    )


def current_server() -> Server:
    """The server that `LLM_HUGGINGCHAT_URL` names, or HuggingChat. Raises llm.ModelError."""
    return parse_server(os.environ.get(SERVER_VARIABLE) or SERVICE)


def max_wait() -> float:
    """How many seconds in all a prompt may wait when the server's limit is reached.

    `LLM_HUGGINGCHAT_WAIT`, or 0. Raises llm.ModelError for what is no number of seconds, or
    less than the minute for which chat-ui counts a message.
    """
    text = os.environ.get(WAIT_VARIABLE, "").strip() or "0"
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if seconds == 0 or limits.rate_window <= seconds < math.inf:
            return seconds
    raise HuggingChatError(
        f"{WAIT_VARIABLE} is {one_line(text, 60)!r}; it takes a number of seconds, at least 60 as "
        "the server counts messages per minute, or 0."
    )


def impersonated_browser() -> str | None:
    """The browser that `LLM_HUGGINGCHAT_IMPERSONATE` names for curl_cffi, or None.

    Raises llm.ModelError for one that curl_cffi does not know.
    """
    name = (os.environ.get(BROWSER_VARIABLE) or "").strip()
    if not name:
        return None
    from curl_cffi.requests.impersonate import REAL_TARGET_MAP, BrowserTypeLiteral

    if name not in {*get_args(BrowserTypeLiteral), *REAL_TARGET_MAP}:
        raise HuggingChatError(
            f"{BROWSER_VARIABLE} is {one_line(name, 60)!r}, which curl_cffi does not know. "
            "Set it to chrome, edge, firefox, safari or tor, "
            f"or to a version such as {REAL_TARGET_MAP['chrome']}."
        )
    return name


def browser_headers(server: Server, method: str) -> dict[str, str | None]:
    """What a page's `fetch()` sends beside what the browser always sends.

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
    return headers if method == "GET" else headers | {"Origin": server.origin}


# --- cookies: whatever people paste -> the cookies that count -------------------------

COOKIE_NAMES = ("hf-chat", "token", "aws-waf-token")
HTTP_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110: names of headers, cookies
_COOKIE_VALUE = r"[!#-+\--:<-\[\]-~]+"  # RFC 6265's cookie-octet
_UUID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_ACCESS_TOKEN = r"\b(hf|api_org)_[0-9A-Za-z_]{16,}"
# `name=value` of a header, and `name: "value"` and the like of browsers and programs.
_PAIR = (
    rf"""(?:^|[\s:;"',({{])({"|".join(COOKIE_NAMES)})["']?\s*[=:,]\s*"""
    r"""(?:"([^"]*)"|'([^']*)'|([^;\s"']*))"""
)
# What a text says its cookies are for: Firefox's copy of a cookie, and a curl command.
_SAID_HOST = r"""(?im)^[ \t]*(?:Domain:\s*"?|curl\b[^\n]*?https?://)([^\s"'/?#]+)"""
WHERE_TOKEN_IS = "Copy the value of the cookie named 'token' from your browser's developer tools."


class Cookies(msgspec.Struct, frozen=True):
    """`hf-chat` is the session; `token` is the huggingface.co login coupled with it.

    `token` alone is enough: the session is made from it. It opens the whole account, so no
    value is ever shown: not in `repr`. `anonymous` marks a session that this plugin made for
    a server without logins. `waf` is the firewall's `aws-waf-token`, `since` is when the
    session was made here (seconds since 1970). `passing` are cookies that a login needs while
    it goes on: they are sent, but never kept.
    """

    hf_chat: str | None
    token: str | None = None
    anonymous: bool = False
    waf: str | None = None
    since: float | None = None
    passing: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"Cookies(anonymous={self.anonymous})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # msgspec's own shows all
        return [("anonymous", self.anonymous)]

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
        kept = self.pairs() | {"anonymous": self.anonymous, "since": self.since}
        return json.dumps({name: value for name, value in kept.items() if value})


def _is_for(domain: object, host: str) -> bool:
    """Whether a cookie of `domain` may be sent to `host`: names such as `token` are common."""
    name, domain = (
        re.sub(r":\d+$", "", str(each or "")).strip("[].").lower() for each in (host, domain)
    )
    return not domain or name == domain or name.endswith("." + domain)


def _json_cookies(value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Name, value, domain: of a JSON object, or of the list that a browser extension exports."""
    entries = _mapping(value).get("cookies", value)
    for name, cookie in _mapping(entries).items():
        yield name, cookie, None
    for entry in _mappings(entries):
        yield entry.get("name"), entry.get("value"), entry.get("domain") or entry.get("host")


def _text_cookies(text: str) -> Iterator[tuple[Any, Any, Any]]:
    """Cookies in a header, a curl command, a cookies.txt, or a row of a browser's table."""
    if '^"' in text:  # a command for Windows' cmd
        text = re.sub(r"\^(.)", r"\1", text)
    text = re.sub(r"\\(?:u00|x)([0-9a-f]{2})", lambda code: chr(int(code[1], 16)), text)
    said = re.search(_SAID_HOST, text)
    for line in text.splitlines():
        columns = [column.strip() for column in line.strip().split("\t")]
        if len(columns) >= 7 and columns[1] in ("TRUE", "FALSE"):
            yield columns[5], columns[6].strip('"'), columns[0].removeprefix("#HttpOnly_")
        elif len(columns) > 1 and columns[0] in COOKIE_NAMES:
            yield columns[0], columns[1].strip('"'), "".join(columns[2:3])
        else:
            for name, *values in re.findall(_PAIR, line):
                yield name, "".join(values), said and said[1]


def parse_cookies(pasted: str | bytes, host: str = urlsplit(SERVICE).netloc) -> Cookies:
    """The cookies that count in whatever people can paste.

    `pasted`: a bare value (a UUID is the session `hf-chat`, anything else is `token`), a
    `Cookie` header, a curl command, JSON, a cookies.txt, or what a browser's cookie table
    copies. Where the form says a cookie's domain, only those of `host` count.
    Raises llm.ModelError, which never contains any part of `pasted`.
    """
    text = (pasted if isinstance(pasted, str) else decode_text(pasted) or "").strip()
    value: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
    if isinstance(value, str):
        text = value.strip()
    is_json = isinstance(value, (dict, list))
    found: dict[str, str] = {}
    for name, cookie, domain in _json_cookies(value) if is_json else _text_cookies(text):
        if name in COOKIE_NAMES and _string(cookie).strip() and _is_for(domain, host):
            found.setdefault(name, cookie.strip())
    bare = text.strip("\"'")
    is_word = bare.isalnum() and len(bare) < 16  # too short for a token
    if not (found or is_json or is_word) and re.fullmatch(r"[0-9A-Za-z_.~+/=%-]{5,}", bare):
        found["hf-chat" if re.fullmatch(_UUID, bare) else "token"] = bare
    token = found.get("token")
    if re.search(_ACCESS_TOKEN, token or ("" if found else text)):
        raise HuggingChatError(
            "That is an access token (hf_...), which the chat does not take; "
            f"it was not sent. What is needed is a cookie. {WHERE_TOKEN_IS}"
        )
    for name, cookie in found.items():
        if not re.fullmatch(_COOKIE_VALUE, cookie):
            raise HuggingChatError(
                f"The value of the cookie {name!r} has characters that no cookie has. "
                "Copy it again from the browser."
            )
    if not found.keys() & {"hf-chat", "token"}:
        why = "the cookie 'token' is missing" if text else "it is empty"
        raise HuggingChatError(
            f"That is no login for {one_line(host, 80)}: {why}. {WHERE_TOKEN_IS}"
        )
    kept = _mapping(value)  # a key of this plugin; 0.1 called `anonymous` `made_up`
    since = kept.get("since")
    return Cookies(
        found.get("hf-chat"),
        token,
        kept.get("anonymous") is True or kept.get("made_up") is True,
        found.get("aws-waf-token"),
        since if isinstance(since, float) and 0 < since < math.inf else None,
    )


# --- protocol: what chat-ui says, as types ----------------------------------------------

LINE_LIMIT = 8_000_000  # bytes of a line of a stream or a log: no update is so long

_ID = r"^[A-Za-z0-9_-]{1,200}\Z"

Id = Annotated[str, msgspec.Meta(pattern=_ID)]
"""An id of the server's. Ids end up in addresses, in the logs and in the terminal."""


def known_id(value: object) -> str:
    """`value` if it can be an id of the server's, else ""."""
    return value if isinstance(value, str) and re.search(_ID, value) else ""


class Wire(msgspec.Struct, rename="camel"):
    """An object in chat-ui's JSON, under chat-ui's own names. Unknown fields are skipped."""


class Envelope(Wire, Generic[T]):
    """superjson: the value is in `json`; what `meta` adds does not matter here."""

    json: T


@functools.cache
def _decoder(type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type)


def decode(data: bytes | str, type: Any, *, keep_halves: bool = False) -> Any:
    """The value in JSON text, checked against `type`.

    JavaScript can cut an emoji in two and send half a surrogate pair, which msgspec refuses:
    such a half becomes U+FFFD, or is left with `keep_halves`. Raises ValueError, also for NaN,
    Infinity and deep nesting.
    """
    decoder = _decoder(type)
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except (ValueError, RecursionError):
        text = data if isinstance(data, str) else bytes(data).decode("utf-8", "replace")
    try:
        value = json.loads(text, parse_float=finite_number, parse_constant=finite_number)
        if keep_halves:
            return msgspec.convert(value, type)
        return decoder.decode(to_json(value))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


# Updates: what a stream, a log and a stored answer consist of


class StreamUpdate(Wire, tag="stream"):
    """A piece of text. A stored one has no `token` but its length, `len`, in UTF-16 units."""

    token: str = ""
    len: int | None = None


class ReasoningUpdate(Wire, tag="reasoning"):
    """A piece of thinking, on configurations that send it apart."""

    subtype: str = ""
    token: str = ""


class StatusUpdate(Wire, tag="status"):
    """`status` is started, keepAlive, finished or error; a model can fail with HTTP 200."""

    status: str = ""
    message: str | None = None
    status_code: int | None = None


class TitleUpdate(Wire, tag="title"):
    """The conversation's title. It may come long after the final answer."""

    title: str = ""


class FileUpdate(Wire, tag="file"):
    """A file in the answer."""

    sha: Id
    name: str | None = None


class RouterMetadata(Wire, tag="routerMetadata"):
    """Which model and provider answer. An empty field says nothing."""

    route: str | None = None
    model: str | None = None
    provider: str | None = None


class ToolCallBody(Wire):
    """The call of a server-side tool."""

    name: str | None = None
    parameters: dict[str, Any] | None = None


class ToolResultBody(Wire):
    """What a server-side tool gave back, or why it failed."""

    status: str | None = None
    call: ToolCallBody | None = None
    outputs: list[dict[str, Any]] | None = None
    message: str | None = None


class ToolUpdate(Wire, tag="tool"):
    """A server-side tool: `subtype` is call, eta, progress, result or error."""

    subtype: str = ""
    uuid: Id | None = None
    call: ToolCallBody | None = None
    arguments_raw: str | None = None
    result: ToolResultBody | None = None
    message: str | None = None

    @property
    def name(self) -> str:
        """The tool's name, as far as this update says it."""
        call = self.call or (self.result and self.result.call)
        return (call and call.name) or ""

    @property
    def arguments(self) -> dict[str, Any]:
        """What a tool is called with. `parameters` lack nested values, the raw text has them."""
        try:
            return cast("dict[str, Any]", decode(self.arguments_raw or "", dict[str, Any]))
        except ValueError:
            return (self.call and self.call.parameters) or {}

    @property
    def error(self) -> str:
        """Why the tool failed; "" if it did not."""
        if self.subtype == "error":
            return self.message or "the tool failed"
        if self.result and self.result.status == "error":
            return self.result.message or "the tool failed"
        return ""

    @property
    def output(self) -> str:
        """What the tool gave back, as text; links to sources are kept."""
        outputs = (self.result and self.result.outputs) or []
        return "\n".join(filter(None, map(_output_text, outputs)))


class ElicitationUpdate(Wire, tag="elicitation"):
    """A tool's question (`subtype` request), or its end (resolved).

    `expires_at` is until when the run waits for the answer, in milliseconds since 1970; without
    it the run ends, and the answer resumes it.
    """

    subtype: str = ""
    request: dict[str, Any] | None = None
    elicitation_id: str | None = None
    expires_at: float | None = None

    @property
    def id(self) -> str:
        """What the question and its end have in common."""
        return self.elicitation_id or _string((self.request or {}).get("elicitationId"))

    @property
    def question(self) -> str:
        """Who asks what, in one line."""
        said = map((self.request or {}).get, ("server", "message", "url"))
        return ": ".join(one_line(text) for text in said if text)


class FinalAnswer(Wire, tag="finalAnswer"):
    """The answer as stored; with tools, only the part after the last one."""

    text: str | None = None
    interrupted: bool | None = None


Update = (
    StreamUpdate
    | ReasoningUpdate
    | StatusUpdate
    | TitleUpdate
    | FileUpdate
    | RouterMetadata
    | ToolUpdate
    | ElicitationUpdate
    | FinalAnswer
)
"""A new kind is a class here. mypy then names each `match` that has to say what it means:
whether it is content, what it says of the run (`RunProgress`), and what it adds to an `Answer`."""


def is_content(update: Update) -> bool:
    """Whether an update is a part of the answer itself."""
    match update:
        case StreamUpdate(token=token) | ReasoningUpdate(token=token):
            return bool(token.strip("\0"))
        case ToolUpdate() | FileUpdate():
            return True
        case StatusUpdate() | TitleUpdate() | RouterMetadata():
            return False
        case ElicitationUpdate() | FinalAnswer():
            return False
        case _:
            assert_never(update)


def decode_update(line: bytes | msgspec.Raw) -> Update | None:
    """The update in a line, or None for a kind that is unknown, or what is malformed."""
    try:  # the two halves of an emoji may come in two tokens
        return cast(Update, decode(line, Update, keep_halves=True))
    except ValueError:
        return None


def _output_text(output: dict[str, Any]) -> str:
    """One output of a tool as text (MCP's content blocks, and chat-ui's `sources`)."""
    pieces = [output.get("text")]
    for item in _mappings(output.get("content")):
        resource = _mapping(item.get("resource")) or item
        if item.get("type") == "image":
            pieces.append(f"[image: {item.get('mimeType') or 'unknown type'}]")
        elif link := resource.get("uri"):
            label = resource.get("title") or resource.get("name") or link
            pieces += [f"[{label}]({link})", resource.get("text")]
    for source in _mappings(output.get("sources")):
        if link := source.get("link") or source.get("url"):
            pieces.append(f"[{source.get('title') or link}]({link})")
    text = "\n".join(filter(None, map(_string, pieces)))
    return text or (json.dumps(output, ensure_ascii=False) if output else "")


# Streams and logs


class LogEnd(Wire):
    """The end of a run's log: completed, error, interrupted or gone."""

    status: str = ""


class JsonLinesDecoder:
    """The answer to a message: `application/jsonl`, one update a line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Update | LogEnd]:
        """What the lines that end in `data` say. Raises HuggingChatError for a line without end."""
        *lines, self._rest = (self._rest + data).split(b"\n")  # U+2028 ends no line
        if len(self._rest) > LINE_LIMIT:
            raise TooLarge(f"The server sent a line of more than {LINE_LIMIT:,} bytes.")
        return [update for line in lines if (update := self._read(line))]

    def end(self) -> list[Update | LogEnd]:
        """The update after the last line end: a cut may have taken only that."""
        return self.feed(b"\n")

    def _read(self, line: bytes) -> Update | LogEnd | None:
        return decode_update(line)


class EventStreamDecoder(JsonLinesDecoder):
    """A run's log: server-sent events. `seq` is the number of the last whole event."""

    def __init__(self, seq: int = 0) -> None:
        super().__init__()
        self.seq = seq
        self._fields: dict[bytes, bytes] = {}

    def _read(self, line: bytes) -> Update | LogEnd | None:
        name, _, value = line.removesuffix(b"\r").partition(b":")
        if name:
            self._fields[name] = value.removeprefix(b" ")
            return None
        if line.startswith(b":"):
            return StatusUpdate("keepAlive")  # a comment, which shows the run at work
        fields, self._fields = self._fields, {}
        if re.fullmatch(rb"[0-9]{1,15}", fields.get(b"id", b"")):
            self.seq = int(fields[b"id"])
        data = fields.get(b"data", b"")
        if fields.get(b"event") != b"end":
            return decode_update(data)
        try:
            return cast(LogEnd, decode(data, LogEnd))
        except ValueError:
            return LogEnd()


# Calls


class McpServer(Wire):
    """A tool server that the chat server offers."""

    name: str = ""
    url: str = ""


class StoredFile(Wire):
    """A file that was sent with a question; `value` is its SHA."""

    type: str | None = None
    value: str | None = None
    mime: str | None = None


class MessageIds(Wire):
    """What a stored message is found by. A long conversation is read in half the time with it."""

    id: Id
    generation_id: str | None = None


class StoredMessage(MessageIds):
    """A message as the server keeps it. `updates` are read when they are wanted."""

    sender: str = msgspec.field(default="", name="from")
    content: str = ""
    reasoning: str | None = None
    updates: list[msgspec.Raw] | None = None
    files: list[StoredFile] | None = None
    ancestors: list[str] | None = None
    interrupted: bool | None = None
    router_metadata: RouterMetadata | None = None
    created_at: str | None = None
    updated_at: str | None = None

    def replay(self) -> StoredAnswer:
        """The answer as its stream sent it.

        chat-ui keeps the text once, in `content`, and in `updates` a marker for each piece. A
        run that resumes the one before it begins with what became of the question.
        """
        text, at = self.content.encode("utf-16-le", "surrogatepass"), 0
        updates: list[Update] = []
        final: FinalAnswer | None = None
        finished = settled = False
        for raw in self.updates or ():
            match update := decode_update(raw):
                case None:
                    continue  # of an unknown kind
                case StreamUpdate(len=int(length)) if length >= 0:
                    piece = text[at : at + 2 * length]
                    at += len(piece)
                    update = StreamUpdate(piece.decode("utf-16-le", "surrogatepass"))
                case StreamUpdate():
                    continue  # without its length: its text is in what is left
                case FinalAnswer():
                    final = update
                    continue
                case StatusUpdate(status="finished"):
                    finished = settled = True
                    continue
                case StatusUpdate(status="error"):
                    settled = True
                case ElicitationUpdate(subtype="resolved"):
                    final, finished, settled = None, False, False
            updates.append(update)
        if rest := text[at:]:
            updates.append(StreamUpdate(rest.decode("utf-16-le", "surrogatepass")))
        if self.reasoning and not any(isinstance(each, ReasoningUpdate) for each in updates):
            updates.insert(0, ReasoningUpdate("stream", self.reasoning))
        complete = bool(final or finished or self.interrupted)
        if complete:
            # The stored text is whole. Without a final answer the model died on the way.
            cut = final is None or bool(final.interrupted or self.interrupted)
            updates.append(FinalAnswer("", cut))
        return StoredAnswer(updates, complete, settled)


class StoredAnswer(msgspec.Struct):
    """The updates of a stored answer.

    If it is `complete`, the last of them is its end. It is `settled` when its run is over:
    chat-ui stores `finished` or an error only then.
    """

    updates: list[Update]
    complete: bool
    settled: bool


class Conversation(Wire, Generic[M]):
    """A conversation with all its messages, each naming its ancestors: a tree."""

    messages: list[M]
    title: str = ""
    model: str = ""
    preprompt: str | None = None

    def answer_of(self, generation_id: str | None) -> M | None:
        """The message that a run wrote."""
        found = (each for each in self.messages if each.generation_id == generation_id)
        return next(found, None) if generation_id else None


class RootMessage(Wire):
    """The part of a new conversation that its first message needs."""

    root_message_id: Id


class CreatedConversation(Wire):
    """The answer to POST /conversation; `conversation` is superjson, as a string.

    POST /api/v2/conversations/import-share, which copies a shared one, answers without it.
    """

    conversation_id: Id
    conversation: str = ""


class ConversationSummary(Wire):
    """A conversation in the list."""

    id: Id
    title: str = ""
    model: str = ""
    updated_at: str = ""


class ConversationPage(Wire):
    """A page of the list of conversations, the newest first."""

    conversations: list[ConversationSummary]
    has_more: bool = False


class SharedConversation(Wire):
    """The answer to POST /conversation/ID/share."""

    share_id: Id


# --- catalogue: server JSON -> models, aliases ----------------------------------------

_WIRE_NAMES = {
    "tools": "supportsTools",
    "reasoning": "supportsReasoning",
    "artifacts": "supportsArtifacts",
    "router": "isRouter",
}


class ModelInfo(msgspec.Struct, frozen=True, omit_defaults=True, rename=_WIRE_NAMES):
    """A model as `GET api/v2/models` describes it, in JSON by chat-ui's own names.

    A `removed` one is not offered any more: only its conversations are left.
    """

    id: str
    multimodal: bool = False
    tools: bool = False
    reasoning: bool = False
    artifacts: bool = False
    router: bool = False
    unlisted: bool = False
    description: str = ""
    removed: bool = False

    @property
    def name(self) -> str:
        """What comes after the organisation."""
        return self.id.rpartition("/")[2] or self.id

    @property
    def organisation(self) -> str:
        """Who publishes it; "" for the router."""
        return self.id.rpartition("/")[0]

    @property
    def abilities(self) -> dict[str, bool]:
        """What it can do, by the names that people are told."""
        return {"images": self.multimodal} | {name: getattr(self, name) for name in _WIRE_NAMES}


def is_usable_id(id: str) -> bool:
    """Whether `id` can be a model's name on a command line and in a terminal."""
    return bool(id) and id == one_line(id, 200)


# The service's catalogue of August 2026, for the time before the first refresh. After the
# colon: takes (i)mages, takes (t)ools, (r)easons, writes (a)rtifacts, r(o)uter.
_BUILT_IN = """
omni:itao deepseek-ai/DeepSeek-V4-Pro-0813:tra zai-org/GLM-4.7-FP8:tra
CohereLabs/command-a-plus-05-2026-bf16:ita CohereLabs/command-a-plus-05-2026-fp8:ita
CohereLabs/command-a-plus-05-2026-w4a4:ita CohereLabs/command-a-vision-07-2025:ita
Qwen/Qwen3.8-2.4T-A95B:tra zai-org/GLM-4.5:tra meta-models/Muse-Glimmer-30B:itr
nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16:t CohereLabs/command-a-translate-08-2025:a
deepseek-ai/DeepSeek-V4-Flash-0731:tra thinkingmachines/Inkling-Small:itra
NousResearch/Hermes-3-Llama-3.1-70B:ta Qwen/Qwen3-30B-A3B:t moonshotai/Kimi-K3:itra tencent/Hy3:tra
XiaomiMiMo/MiMo-V2.5:ita zai-org/GLM-4.6-FP8:ta swiss-ai/Apertus-v1.5-70B:ita
swiss-ai/Apertus-v1.5-8B:it Qwen/Qwen2.5-VL-72B-Instruct:ita
deepseek-ai/DeepSeek-R1-Distill-Qwen-14B thinkingmachines/Inkling:itra
prism-ml/Ternary-Bonsai-27B-AWQ-4bit:it prism-ml/Ternary-Bonsai-27B-gguf:t CohereLabs/tiny-aya-fire
XiaomiMiMo/MiMo-V2.5-Pro:tra nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16:tra
stepfun-ai/Step-3.7-Flash:itra google/gemma-3-12b-it:it google/gemma-3-4b-it:it microsoft/phi-4:t
speakleash/Bielik-11B-v3.0-Instruct:t zai-org/GLM-5.2:tra zai-org/GLM-5.2-FP8:tra
moonshotai/Kimi-K2.7-Code:tra MiniMaxAI/MiniMax-M3:itra
nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4:tra Qwen/Qwen3.6-27B:tra
meta-llama/Llama-4-Scout-17B-16E-Instruct:it CohereLabs/c4ai-command-r7b-12-2024:t
pearl-ai/Gemma-4-31B-it-pearl:t inclusionAI/Ling-2.6-1T:ta deepseek-ai/DeepSeek-V4-Pro:tra
deepseek-ai/DeepSeek-V4-Flash:tra deepseek-ai/DeepSeek-V3.2:ta stepfun-ai/Step-3.5-Flash:ta
Qwen/Qwen3.6-35B-A3B:tra zai-org/GLM-4.7-Flash:tra moonshotai/Kimi-K2.6:ita
MiniMaxAI/MiniMax-M2.7:tra zai-org/GLM-5.1:tra google/gemma-4-31B-it:ita
google/gemma-4-26B-A4B-it:it Qwen/Qwen3.5-9B:it CohereLabs/tiny-aya-global CohereLabs/tiny-aya-earth
CohereLabs/tiny-aya-water Qwen/Qwen3.5-122B-A10B:ita Qwen/Qwen3.5-35B-A3B:ita Qwen/Qwen3.5-27B:it
Qwen/Qwen3.5-397B-A17B:it MiniMaxAI/MiniMax-M2.5:tr zai-org/GLM-5:t
Qwen/Qwen3-VL-235B-A22B-Instruct:it google/gemma-3n-E4B-it:it Qwen/Qwen3-Coder-Next:t
moonshotai/Kimi-K2.5:it zai-org/GLM-4.7:tr MiniMaxAI/MiniMax-M2.1:t
zai-org/AutoGLM-Phone-9B-Multilingual:t MiniMaxAI/MiniMax-M2:tr Qwen/Qwen3-VL-30B-A3B-Instruct:it
aisingapore/Qwen-SEA-LION-v4-32B-IT:t deepcogito/cogito-671b-v2.1:t
deepcogito/cogito-671b-v2.1-FP8:t openai/gpt-oss-safeguard-20b:tr zai-org/GLM-4.5V-FP8:it
deepseek-ai/DeepSeek-V3.2-Exp:t zai-org/GLM-4.6:t deepseek-ai/DeepSeek-V3.1-Terminus:t
Qwen/Qwen3-VL-235B-A22B-Thinking:it zai-org/GLM-4.6V:it zai-org/GLM-4.6V-Flash:it
zai-org/GLM-4.6V-FP8:it Qwen/Qwen3-235B-A22B-Thinking-2507:t Qwen/Qwen3-Next-80B-A3B-Instruct:t
moonshotai/Kimi-K2-Instruct-0905:t openai/gpt-oss-20b:tr swiss-ai/Apertus-8B-Instruct-2509:t
openai/gpt-oss-120b:tra Qwen/Qwen3-Coder-30B-A3B-Instruct:t meta-llama/Llama-3.1-8B-Instruct:t
deepseek-ai/DeepSeek-R1:t swiss-ai/Apertus-70B-Instruct-2509:t Qwen/Qwen3-4B-Instruct-2507:t
Qwen/Qwen3-Coder-480B-A35B-Instruct:t Qwen/Qwen3-4B-Thinking-2507:t moonshotai/Kimi-K2-Instruct:t
zai-org/GLM-4.5V:it deepseek-ai/DeepSeek-V3.1:t Qwen/Qwen3-8B:t google/gemma-3-27b-it:it
zai-org/GLM-4.5-Air:t Qwen/Qwen2.5-7B-Instruct:t Qwen/Qwen3-32B:t
Qwen/Qwen3-235B-A22B-Instruct-2507:t meta-llama/Llama-3.3-70B-Instruct:t Qwen/Qwen3-235B-A22B:t
Qwen/Qwen2.5-Coder-32B-Instruct:t deepseek-ai/DeepSeek-R1-Distill-Qwen-7B deepseek-ai/DeepSeek-V3:t
deepseek-ai/DeepSeek-V3-0324:t baidu/ERNIE-4.5-VL-424B-A47B-Base-PT:it
deepseek-ai/DeepSeek-R1-0528:t Qwen/Qwen3-14B:t MiniMaxAI/MiniMax-M1-80k:t
Qwen/Qwen2.5-Coder-7B-Instruct:t aisingapore/Gemma-SEA-LION-v4-27B-IT:t
meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8:it deepseek-ai/DeepSeek-R1-Distill-Llama-8B
Qwen/Qwen2.5-72B-Instruct:t meta-llama/Llama-Guard-4-12B Sao10K/L3-8B-Stheno-v3.2
CohereLabs/c4ai-command-r-08-2024:t CohereLabs/aya-expanse-32b:t CohereLabs/c4ai-command-a-03-2025:t
CohereLabs/command-a-reasoning-08-2025:t alpindale/WizardLM-2-8x22B:t
deepseek-ai/DeepSeek-R1-Distill-Llama-70B CohereLabs/aya-vision-32b:it
CohereLabs/c4ai-command-r7b-arabic-02-2025:t Sao10K/L3-8B-Lunaris-v1 zai-org/GLM-4-32B-0414:t
Qwen/Qwen2.5-Coder-3B-Instruct:t
"""


def _built_in(row: str) -> ModelInfo:
    id, _, flags = row.partition(":")
    images, tools, reasoning, artifacts, router = (flag in flags for flag in "itrao")
    return ModelInfo(id, images, tools, reasoning, artifacts, router)


BUILT_IN = tuple(map(_built_in, _BUILT_IN.split()))


class Catalogue(msgspec.Struct, frozen=True):
    """The models of a server.

    `time` is when they were fetched, in seconds since 1970, or None for the built-in list.
    `removed` are ids of models, of this or another server, that the server does not offer, but
    old conversations may name.
    """

    models: tuple[ModelInfo, ...] = BUILT_IN
    time: float | None = None
    removed: tuple[str, ...] = ()

    @property
    def is_old(self) -> bool:
        """Whether it should be refreshed. One from the future should, too."""
        return self.time is None or not 0 <= time.time() - self.time < limits.catalogue_age


def read_catalogue(value: Any) -> Catalogue:
    """The models in the server's answer to `GET api/v2/models`, without what is not usable.

    Raises ValueError when it contains no model that can be used.
    """
    models: dict[str, ModelInfo] = {}
    for entry in msgspec.convert(value, list[dict[str, Any]]):
        said = {name: value for name, value in entry.items() if value is not None}
        said["description"] = one_line(said.get("description", ""))
        with contextlib.suppress(msgspec.ValidationError):
            model = msgspec.convert(said, ModelInfo)
            if is_usable_id(model.id):
                models.setdefault(model.id, model)
    if not models:
        raise ValueError("no entry has a usable id")
    return Catalogue(tuple(models.values()))


# Who publishes a family: nobody but Meta makes `hf-llama`, and a DeepSeek that was distilled
# into a Llama is a DeepSeek. Others are published by who has most of their models.
PUBLISHERS = _synonyms(
    "swiss-ai: apertus; CohereLabs: aya command; deepseek-ai: deepseek; google: gemma;"
    "zai-org: glm; openai: gpt-oss; moonshotai: kimi; meta-llama: llama; XiaomiMiMo: mimo;"
    "MiniMaxAI: minimax; mistralai: mistral; nvidia: nemotron; microsoft: phi; Qwen: qwen"
)

# What a name says, in patterns for names in lower case.
_FAMILY = rf"(?<![a-z])({'|'.join(PUBLISHERS)})(?![a-z])"
_CODER = r"coder|codestral|devstral|(?<![a-z])code(?![a-z])"
_VISION = r"(?<![a-z])(?:vl|vision)(?![a-z])|\dv(?![a-z0-9])"
_SPECIAL = (
    rf"{_CODER}|{_VISION}|guard|shield|translat|embed|rerank|distill|"
    r"(?<![a-z])(?:arabic|asr|audio|base|exp|experimental|math|mt|ocr|phone|preview|prover|pt|"
    r"reward|tts)(?![a-z])"
)
_WHOLE_WORD = r"(?<![a-z0-9])(?:%s)(?![a-z0-9])"
_QUANTISED = _WHOLE_WORD % (
    r"(?:nv|mx)?fp[48]|int[48]|[2348]-?bits?|w\d+a\d+|i?q[2-8](?:_[a-z0-9]+)*|"
    r"awq|bnb|exl[23]|gguf|gptq|mlx|quantized|ternary"
)
_FULL = _WHOLE_WORD % r"bf16|fp16|fp32"
_LARGE = _WHOLE_WORD % r"large|max|plus|pro|ultra"
_SMALL = _WHOLE_WORD % r"air|flash|lightning|lite|micro|mini|nano|small|tiny"
_THINKS = _WHOLE_WORD % r"reasoning|thinking"
_MONTH = r"(?<!\d)(0[1-9]|1[0-2])-(20\d\d)(?!\d)"  # 05-2026
_DAY = r"(?<![\d.])(\d\d)(\d\d)(?![\d.a-z])"  # 0813 is August 13, 2507 July 2025
# 70B, 2.4T, 8x22B, r7b; but not A22B, the number of active parameters.
_SIZE = r"(?<![a-z0-9.])(?:(\d{1,3})x)?[e-z]?(\d{1,4}(?:\.\d{1,3})?)([bt])(?![a-z0-9])"
_EXPERTS = r"(?<![a-z0-9.])(\d{1,3})e(?![a-z0-9])"  # 17B-16E
_VERSION = r"(?<![\d.])(\d{1,2}(?:\.\d{1,2})*)[nov]?(?![a-z0-9.])"  # V4, 5.2, M3


@functools.cache
def is_general(model: ModelInfo) -> bool:
    """Whether a model is general-purpose, not specialised."""
    return not re.search(_SPECIAL, model.name.lower())


def _size(model: ModelInfo) -> float:
    """Billions of parameters, as a model's name says; 100 if it does not, which fits most."""
    name = model.name.lower()
    said, experts = re.search(_SIZE, name), re.search(_EXPERTS, name)
    if not said:
        return 100.0
    times = int(said[1] or (experts[1] if experts else 1))  # 8x22B, 17B-16E: once per expert
    return times * float(said[2]) * (1000 if said[3] == "t" else 1)


@functools.cache
def _rank(model: ModelInfo) -> tuple[Any, ...]:
    """The greatest of a family is the one that a person means by its name.

    General before special, full precision before less; then the highest version, what the name
    says of its size, its parameters, no thinking first, the latest date, the shortest id.
    """
    name = whole = model.name.lower()
    day = re.search(_DAY, name)
    date = day.groups() if day else ()
    if month := re.search(_MONTH, name):
        date = (month[2], month[1])
    for other in (_MONTH, _DAY, _SIZE, _EXPERTS, _QUANTISED, _FULL):
        name = re.sub(other, "", name)
    version = re.search(_VERSION, name)
    return (
        is_general(model),
        not re.search(_QUANTISED, whole),
        tuple(map(int, version[1].split("."))) if version else (),
        bool(re.search(_LARGE, whole)) - bool(re.search(_SMALL, whole)),
        _size(model),
        not re.search(_THINKS, whole),
        date,
        -len(model.id),
    )


def family(model: ModelInfo) -> str:
    """A model's family: `qwen` for Qwen/Qwen3-235B, `gemma` for any Gemma.

    The one that its organisation publishes, if the name contains it; else the first word that
    is not the organisation, a size or a number format.
    """
    name, organisation = model.name.lower(), model.organisation.lower()
    for known in re.findall(_FAMILY, name):
        if PUBLISHERS[known] == model.organisation:
            return str(known)
    for word in re.findall(r"(?<![a-z0-9])[a-z]{2,}", name):
        others = (re.fullmatch(kind, word) for kind in (_SMALL, _LARGE, _QUANTISED))
        if word != organisation and not any(others):
            return str(word)
    return organisation or name


def _published(models: Iterable[ModelInfo]) -> dict[str, list[ModelInfo]]:
    """Family -> its models from the organisation that publishes it.

    If that organisation has none in the list, the one with the most models takes its place.
    """
    families: dict[str, dict[str, list[ModelInfo]]] = {}
    for model in models:
        families.setdefault(family(model), {}).setdefault(model.organisation, []).append(model)
    found = {}
    for name, by in families.items():
        most = min(by, key=lambda organisation: (-len(by[organisation]), organisation))
        found[name] = by.get(PUBLISHERS.get(name, ""), by[most])
    return found


def aliases(models: Iterable[ModelInfo]) -> dict[str, str]:
    """Alias -> model id, by a rule that looks at the models alone, not at their order.

    Every model has one of its own; every family a short one for its newest and then largest
    general model; `hf-vision` and `hf-coder` are the largest of the families' best.
    """
    models = sorted(models, key=lambda model: (model.unlisted, model.id))
    listed = [model for model in models if not model.unlisted]
    chat = [model for model in listed if not model.router]
    found = {f"hf-{name}": max(its, key=_rank).id for name, its in _published(chat).items()}
    seeing = [model for model in chat if model.multimodal]
    special = {
        "hf-omni": [model for model in listed if model.router],
        "hf-vision": [model for model in seeing if is_general(model)]
        or [model for model in seeing if re.search(_VISION, model.name.lower())],
        "hf-coder": [model for model in chat if re.search(_CODER, model.name.lower())],
    }
    for alias, able in special.items():
        if best := [max(its, key=_rank) for its in _published(able).values()]:
            found[alias] = min(best, key=lambda model: (-_size(model), model.id)).id
    for model in models:
        found.setdefault("hf-" + "-".join(model.name.lower().split()), model.id)
    return found


def aliases_of(models: Iterable[ModelInfo]) -> dict[str, list[str]]:
    """Model id -> its aliases."""
    names: dict[str, list[str]] = {}
    for alias, id in aliases(models).items():
        names.setdefault(id, []).append(alias)
    return names


# --- artifacts: tags in an answer's text -> Markdown; versions -> files ----------------

UNNAMED = "untitled-artifact"  # the web page's name for an artifact without an identifier
FENCE = "`" * 16  # longer than the fences that models write inside an artifact

# What a model may give as type -> the kind that it is on the web page; others are code.
_ARTIFACT_KINDS = _synonyms(
    """
    html: html text/html; svg: svg image/svg+xml; markdown: markdown md text/markdown;
    react: react jsx tsx application/vnd.ant.react; mermaid: mermaid application/vnd.ant.mermaid;
    update: update
    """
)
_FILE_ENDINGS = _synonyms(
    """
    bat: bat batch; c: c; clj: clj clojure; cpp: cpp; cs: cs csharp; css: css; csv: csv; dart: dart;
    ex: ex elixir; fs: fs fsharp; go: go golang; hs: hs haskell; html: html; ini: ini; java: java;
    jl: jl julia; js: js javascript; json: json; jsx: jsx; kt: kt kotlin; lua: lua; md: md markdown;
    mmd: mermaid; php: php; pl: pl perl; ps1: ps1 powershell; py: py python; r: r; rb: rb ruby;
    rs: rs rust; scala: scala; scss: scss; sh: sh bash shell zsh; sql: sql; svg: svg; swift: swift;
    tex: tex latex; toml: toml; ts: ts typescript; tsx: tsx; xml: xml; yaml: yaml yml; zig: zig
    """
)


# A tag, or what a text may end with of one. Models double the bracket. A tag with more than
# 2,000 characters of attributes is text. The line end before a closing tag is no content.
_OPENING_TAG = r"(?<!<)<+artifact\b([^>]{0,2000}+)>"
_OPENING = (
    rf"(?ai){_OPENING_TAG}"
    r"|(?:(?<!<)<+(?:[a-z]{0,8}|artifact\b[^>]{0,2000}+))?\Z"
)
_CLOSING_BEGUN = "|".join("/artifact"[:length] for length in range(len("/artifact") + 1))
_CLOSING = (
    r"(?:\r?\n[ \t]*)?(?<!<)<+/artifact>"
    rf"|(?:\r?\n[ \t]*|\r)?(?:(?<!<)<+(?:{_CLOSING_BEGUN}))?\Z"
)
_ARTIFACT = rf"(?ais){_OPENING_TAG}(.*?)({_CLOSING})"
# Models swap the closing tags of a pair, so either will do.
# Neither text contains a tag of a pair, so that an update without end is read only once.
_UPDATE_TEXT = r"((?:(?!(?<!<)<+/?(?:old|new)_str>).)*+)"
_UPDATE_PAIR = (
    rf"(?s)(?<!<)<+old_str>{_UPDATE_TEXT}<+/(?:old|new)_str>\s*<+new_str>"
    rf"{_UPDATE_TEXT}<+/(?:old|new)_str>"
)
# A fence that a model put around an artifact, against its instructions. With no word after
# it, it could be the end of another.
_OWN_FENCE = r"(?:\A|\n) {0,3}(?:`{3,}|~{3,})[ \t]*[\w+#.-]+[ \t]*\n\s*\Z"


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
    found = re.findall(r'(?<![\w-])([\w-]+)\s*=\s*"([^"]*)"', attributes)
    given = {name.lower(): value for name, value in found}
    type = given.get("type", "").strip().lower()
    kind = _ARTIFACT_KINDS.get(type, "code")
    language = given.get("language", "").strip().lower()
    if kind == "code" and not language and type not in ("code", "application/vnd.ant.code"):
        language = type if re.fullmatch(r"[\w+#-]+", type) else ""  # type="python"
    identifier = given.get("identifier") or given.get("id") or UNNAMED
    return OpeningTag(identifier, kind, given.get("title", ""), language)


def _fence_word(kind: str, language: str) -> str:
    """The word after a fence: the kind, or the name of a language."""
    if kind != "code":
        return {"react": "jsx", "update": "diff"}.get(kind, kind)
    language = {"c++": "cpp", "c#": "csharp", "f#": "fsharp"}.get(language, language)
    return re.sub(r"(?a)\W", "", language)[:30]


def _without_start(content: str) -> str:
    """Content without the line end after the opening tag, or a doubled bracket (`<<svg`)."""
    content = re.sub(r"\A\r?\n", "", content)
    return re.sub(r"\A(\s*)<{2,}(?=[!/a-zA-Z])", r"\1<", content)


class Paragraphs:
    """Sets paragraphs apart by an empty line, in text that comes in pieces.

    chat-ui stores as one text what the web page shows before and after a tool or a file.
    """

    def __init__(self) -> None:
        self._missing = ""  # the line ends that make an empty line; none before the first word
        self._space: str | None = None  # white space that begins a new paragraph

    def feed(self, text: str) -> str:
        """`text`, with what is missing before it."""
        if self._space is not None:
            text = self._space + text
            if not text.strip():
                self._space = text
                return ""
            self._space = None
            text = self._missing + re.sub(r"\A(\s*\n|[ \t\r]+)", "", text)
        words = text.rstrip()
        missing = "\n\n" if words else self._missing
        self._missing = missing[text.count("\n", len(words)) :]
        return text

    def end(self) -> str:
        """What was held back of a paragraph: nothing. Text that follows begins another one."""
        self._space = self._space or ""
        return ""


class ArtifactFilter:
    """Shows artifacts in streamed text as Markdown: a line with the title, then a fence.

    Text may be cut anywhere. What may be the beginning of a tag is held back until more text
    comes, and an update until it closes.
    """

    def __init__(self) -> None:
        self._paragraphs = Paragraphs()
        self._held = ""  # may be the beginning of a tag
        self._outside_end = ""  # the last characters that were shown outside
        self._tag: OpeningTag | None = None  # the artifact that is open
        self._content: str | None = ""  # an update, or how content begins until that is shown
        self._is_fenced = False  # by the model itself

    def feed(self, text: str) -> str:
        """What to show of the next piece of the model's text."""
        shown, text, self._held = "", self._held + text, ""
        while tag := re.search(rf"(?ai){_CLOSING}" if self._tag else _OPENING, text):
            before, text = text[: tag.start()], text[tag.end() :]
            shown += self._inside(self._tag, before) if self._tag else self._outside(before)
            if not tag[0].endswith(">"):
                self._held = tag[0]
                break
            shown += self._close(self._tag) if self._tag else self._open(opening_tag(tag[1]))
        return shown

    def end(self) -> str:
        """The rest of a paragraph: a server-side tool is called, or the answer has ended.

        An artifact that is open ends, as on the web page. More text may be fed afterwards.
        """
        held, self._held = self._held, ""
        rest = self._close(self._tag) if self._tag else self._outside(held)
        return rest + self._paragraphs.end()

    def _outside(self, text: str) -> str:
        text = self._paragraphs.feed(text)
        self._outside_end = (self._outside_end + text)[-200:]
        return text

    def _open(self, tag: OpeningTag) -> str:
        """The title in a paragraph of its own, and the fence's first line."""
        self._is_fenced = bool(re.search(_OWN_FENCE, self._outside_end))
        self._tag, self._content, self._outside_end = tag, "", ""
        if self._is_fenced:
            return ""
        identifier = one_line(tag.identifier, 100).replace("`", "'")
        title = one_line(tag.title, 200) or identifier
        what = f"update of `{identifier}`" if tag.kind == "update" else f"`{identifier}`"
        self._paragraphs.end()
        word = _fence_word(tag.kind, tag.language)
        return self._paragraphs.feed(f"**{title}** ({what})\n\n{FENCE}{word}\n")

    def _inside(self, tag: OpeningTag, text: str) -> str:
        if self._content is None:
            return text
        self._content = begun = self._content + text
        if tag.kind == "update" or not re.search(r"[^\s<]", begun):
            return ""
        self._content = None
        return _without_start(begun)

    def _close(self, tag: OpeningTag) -> str:
        """The rest of the content and the fence's last line. The model ends its own fence."""
        self._tag, content = None, self._content or ""
        shown = _diff(content) if tag.kind == "update" else _without_start(content)
        if self._is_fenced:
            return shown
        if shown or self._content is None:
            shown += "\n"
        return shown + self._paragraphs.feed(FENCE) + self._paragraphs.end()


def _diff(update: str) -> str:
    """An update as a diff. Text outside any pair has no effect, and is shown as context lines."""
    pairs = re.findall(_UPDATE_PAIR, update)
    marked = [each for old, new in pairs for each in (("-", old), ("+", new))]
    rest = re.sub(_UPDATE_PAIR, "", update).strip("\r\n")
    if rest.strip():
        marked.append((" ", rest))
    return "\n".join(mark + line for mark, text in marked for line in text.splitlines())


class ArtifactVersion(msgspec.Struct, frozen=True):
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
    missed: tuple[str, ...]
    cut: bool = msgspec.field(name="interrupted")


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
        "(?<!<)<+".join(map(re.escape, re.split("<+", word)))
        for word in re.split(r"\s+", wanted.strip())
    ]
    match = re.search(r"\s+".join(words), content) if any(words) else None
    return match.span() if match else None


def apply_update(content: str, update: str) -> tuple[str, tuple[str, ...]]:
    """`content` with the first place of each old text replaced, and the old texts not in it.

    An update without a pair changes nothing, and misses the empty text.
    """
    missed = []
    for old, new in re.findall(_UPDATE_PAIR, update) or [("", "")]:
        found = find_in(content, old) if old else None
        if found:
            content = content[: found[0]] + new + content[found[1] :]
        else:
            missed.append(old)
    return content, tuple(missed)


def artifacts_of(answers: Iterable[str]) -> dict[str, list[ArtifactVersion]]:
    """The artifacts in a branch's answers, as the web page's panel has them, oldest first.

    Identifier -> versions. `answers` are texts as the server stores them. An update before any
    artifact does nothing.
    """
    made: dict[str, list[ArtifactVersion]] = {}
    # The web page's panel takes any <think> for reasoning, wherever it stands.
    texts = (re.sub(r"(?ais)<think>.*?(?:</think>|\Z)", "", answer) for answer in answers)
    for match in itertools.chain.from_iterable(re.finditer(_ARTIFACT, text) for text in texts):
        tag, inside, cut = opening_tag(match[1]), match[2], not match[3].endswith(">")
        source: OpeningTag | ArtifactVersion = tag
        missed: tuple[str, ...] = ()
        if tag.kind != "update":
            versions = made.setdefault(tag.identifier, [])
            operation = "rewrite" if versions else "create"
            title, content = tag.title or tag.identifier, _without_start(inside)
        elif made:  # models change names; else it is the one made last
            named = tag.identifier.strip().lower()
            alike = [each for name, each in made.items() if name.strip().lower() == named]
            versions = made.get(tag.identifier) or (alike or list(made.values()))[-1]
            source = latest = versions[-1]
            operation, title = "update", tag.title or latest.title
            content, missed = apply_update(latest.content, inside)
        else:
            continue
        state = (source.kind, title, source.language, content, missed, cut)
        versions.append(ArtifactVersion(len(versions) + 1, operation, *state))
    return made


def file_names(
    artifacts: dict[str, list[ArtifactVersion]], every: bool
) -> list[tuple[str, ArtifactVersion]]:
    """A safe file name for each latest version, or with `every` for all versions.

    No two names are the same, also where capitals do not count.
    """
    named: dict[str, tuple[str, ArtifactVersion]] = {}
    for identifier, versions in artifacts.items():
        stem = safe_stem(identifier)
        for version in versions if every else versions[-1:]:
            number = f".v{version.number}" if every else ""
            ending = _FILE_ENDINGS.get(_fence_word(version.kind, version.language), "txt")
            name, copies = f"{stem}{number}.{ending}", itertools.count(2)
            while name.lower() in named:
                name = f"{stem}-{next(copies)}{number}.{ending}"
            named[name.lower()] = name, version
    return list(named.values())


def safe_stem(identifier: str) -> str:
    """A file name without its ending: no path, nothing hidden, no option, no device."""
    stem = re.sub(r'[/\\:*?"<>|]+', "_", one_line(identifier)).strip(" .").lstrip("-. ")
    stem = stem.encode("utf-8", "replace")[:120].decode("utf-8", "ignore").rstrip(" .")
    if re.fullmatch(r"(?i)con|prn|aux|nul|(com|lpt)[0-9]", stem.partition(".")[0].rstrip()):
        stem = f"_{stem}"
    return stem or UNNAMED


# --- prompting: schemas and local tools, asked for and read as text --------------------

CALL, CALL_END = "<tool_call>", "</tool_call>"
MALFORMED = "malformed_tool_call"  # no tool has this name, so llm answers it with an error


class SentInstructions(msgspec.Struct, frozen=True):
    """The instructions that a conversation was last given, for llm's `provider_metadata`.

    `schema` is the schema itself; `tools` and `system` are digests of the local tools and of
    a system prompt that was sent with a later turn.
    """

    tools: str = ""
    schema: dict[str, Any] | None = None
    system: str = ""


class PromptedFeatures(msgspec.Struct, frozen=True):
    """What an answer may call, and the schema that it has to match.

    HuggingChat has neither local tools nor structured output, so both are asked for in the
    prompt. `tools` are definitions as `tool_definition` makes them; `schema` is a JSON schema.
    """

    tools: tuple[dict[str, Any], ...] = ()
    schema: dict[str, Any] | None = None

    @property
    def instructed(self) -> SentInstructions:
        """These features, as recorded once a conversation has been told of them."""
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
    now = features.instructed
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


def tool_response(result: ToolResultPart, call: ToolCallPart) -> str:
    """The message for the result of `call`, or for a call that could not be read."""
    content: Any = result.output or result.exception or ""
    if content.startswith(("{", "[")):
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(content)
    value = {"name": result.name, "content": content}
    if call.name == MALFORMED:
        problem = call.arguments.get("problem")
        form = f'{CALL}{{"name": "NAME", "arguments": {{}}}}{CALL_END}'
        value = {"error": f"This was no call: {problem}. Write it again, like this: {form}"}
    if result.attachments:
        value["attachments"] = list(map(attachment_name, result.attachments))
    # A result must not be able to end its own block.
    text = json.dumps(value, ensure_ascii=False).replace("</tool_response", "<\\/tool_response")
    return f"<tool_response>\n{text}\n</tool_response>"


def schema_checker(schema: dict[str, Any]) -> Callable[[Any], str]:
    """A function that says what is wrong with a value, "" if it matches `schema`.

    Raises HuggingChatError when `schema` is not a JSON schema.
    """
    from jsonschema.exceptions import best_match
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    def in_words(error: Any) -> str:
        path, message = getattr(error, "json_path", "$"), getattr(error, "message", error)
        return f"{one_line(path, 100)}: {one_line(message, 200)}"

    try:
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
    except Exception as error:  # jsonschema trips over what makes no sense at all
        raise HuggingChatError(f"That is not a JSON schema. {in_words(error)}") from None
    # With a registry of its own, jsonschema does not fetch references from the network.
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER, registry=cast(Any, Registry()))

    def problem_of(value: Any) -> str:
        if value == schema:
            return "it is the schema itself"
        try:
            errors = [best_match([error]) for error in validator.iter_errors(value)]
        except Exception as error:  # a reference to elsewhere, or one without end
            return f"the schema cannot be used to check it: {one_line(error, 200)}"
        return "; ".join(map(in_words, errors[:3]))

    return problem_of


# Models write line ends into strings. What is logged must be readable by others: no NaN.
_lenient_json = json.JSONDecoder(
    parse_float=finite_number, parse_constant=finite_number, strict=False
)


class ToolCallFilter:
    """Takes `<tool_call>...</tool_call>` out of streamed text, which may be cut anywhere.

    Models write one call or several in such a block, fence them, and forget the tag at the
    end. It is a block where it begins like one, with JSON or the name of a tool; elsewhere
    `<tool_call>` is a word that the answer uses.
    """

    def __init__(self, names: Iterable[str]) -> None:
        starts = "|".join(map(re.escape, ("{", "[", '"', "<function", *names)))
        # What may lead to a block is read once, whether one follows (the group) or not.
        self._block = rf"{CALL}(?:\s|```\w*|{CALL})*+((?={starts}))?"
        self._held = ""

    def feed(self, text: str) -> str:
        """The text before the first `<tool_call>`: what comes after it is read at the end."""
        text = self._held + text
        at = text.find(CALL)
        if at < 0:
            at = len(text) - _overlap(text, CALL)
        at = len(text[:at].rstrip())  # white space before a block may belong to it
        self._held = text[at:]
        return text[:at]

    def end(self, interrupted: bool = False) -> tuple[str, list[llm.ToolCall]]:
        """The rest of a piece of text, and the calls in it. More text may be fed afterwards.

        If the model was `interrupted`, it calls nothing: what it wrote is text.
        """
        text, self._held = self._held, ""
        words = ""
        calls: list[llm.ToolCall] = []
        while not interrupted and (block := self._next_block(text)):
            words += text[: block.start()]
            found, text = _read_block(text[block.end() :])
            calls += found
            if words[-1:].isspace():  # with white space on both sides, one side keeps it
                text = text.lstrip()
        if calls and not text.strip():
            return words.rstrip(), calls
        return words + text, calls

    def _next_block(self, text: str) -> re.Match[str] | None:
        return next((each for each in re.finditer(self._block, text) if each[1] is not None), None)


def _read_block(text: str) -> tuple[list[llm.ToolCall], str]:
    """The calls in a block, at least one, and the text after it."""
    calls: list[llm.ToolCall] = []
    while not calls or text.startswith(("{", "[")):
        try:
            value, end = _lenient_json.raw_decode(text)
        except (ValueError, RecursionError) as error:
            inside, _, text = text.partition(CALL_END)
            return [*calls, _malformed(inside, f"it is not valid JSON ({one_line(error)})")], text
        calls += map(_local_call, value if value and isinstance(value, list) else [value])
        text = re.sub(rf"\A(?:[\s,\]}}]|```\w*|{CALL})*+", "", text[end:])
    return calls, "" if CALL_END.startswith(text) else text.removeprefix(CALL_END)


def _local_call(value: Any) -> llm.ToolCall:
    """The call that a value means. Models are trained on more than one form of it."""
    call = _mapping(value)
    call = _mapping(call.get("function")) or call
    name, arguments = _string(call.get("name")), call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = _lenient_json.decode(arguments)
    if not name:
        return _malformed(to_json(value), 'it is not an object with a "name"')
    if arguments and not isinstance(arguments, dict):
        return _malformed(to_json(value), 'its "arguments" are not an object')
    arguments = json.loads(to_json(arguments or {}))
    return llm.ToolCall(one_line(join_surrogates(name)), arguments, new_call_id())


def _malformed(text: str, problem: str) -> llm.ToolCall:
    """A call that could not be read: the next turn tells the model why."""
    return llm.ToolCall(MALFORMED, {"text": text.strip(), "problem": problem}, new_call_id())


def new_call_id() -> str:
    """An id for a call that has none."""
    return f"call_{uuid.uuid4().hex}"


# What begins a document: any value that is all of the text, or a bracket with what makes it
# one; after `[` there may be words.
_DOCUMENT = (
    r'(?s)\A(?:"(?:[^"\\]|\\.)*+"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)\Z'
    r'|\{\s*(?:"(?:[^"\\]|\\.)*+"\s*:|\})'
    r'|\[\s*(?:[\[\]{"\d]|-\d|(?:true|false|null)\b)'
)
# A string without end goes on to the end of the text, so that it is read only once.
_STRING_OR_BRACKET = r'(?s)"(?:[^"\\]|\\.)*+"?|[{}\[\]]'


def find_document(text: str, problem_of: Callable[[Any], str]) -> tuple[str, str]:
    """The first JSON document in an answer's text that `problem_of` finds nothing wrong with.

    Words, a fence or an artifact's tags may stand around it; inside a broken one there is none.
    Returns the document and "", or "" and what is wrong with the longest candidate. The
    document is as the model wrote it, unless only a lenient reader could read it.
    """
    text = re.sub(r"\A```\w*\n|\n[ \t]*```\Z", "", text.strip()).strip()
    problems = [(-1, "there is no JSON document in it")]
    end = 0
    while match := re.compile(_DOCUMENT).search(text, end):
        start = match.start()
        try:
            value, end = _lenient_json.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            end = _end_of_broken(text, start)
            problems.append((end - start, f"it is not valid JSON ({one_line(error)})"))
            continue
        problem = problem_of(value)
        if not problem:
            with contextlib.suppress(ValueError):
                json.loads(text[start:end])
                return text[start:end], ""
            return to_json(value), ""
        problems.append((end - start, problem))
    return "", max(problems)[1]


def _end_of_broken(text: str, start: int) -> int:
    """Where the broken document that begins at `start` ends: at its last bracket or a fence."""
    end, depth = len(text), 0
    opening, closing = ("{", "}") if text[start] == "{" else ("[", "]")
    for token in re.compile(_STRING_OR_BRACKET).finditer(text, start):
        depth += (token[0] == opening) - (token[0] == closing)
        if depth == 0:
            end = token.end()
            break
    fence = re.compile(r"(?m)^[ \t]*```").search(text, start, end)
    return fence.start() if fence else end


# --- history: llm's messages -> what to send, and after which message -----------------

TRANSCRIBE = "transcribe"  # the tool name under which a transcription is logged


class Parent(msgspec.Struct, frozen=True):
    """The answer to continue after, as an earlier turn left it in `provider_metadata`.

    `message_id` is None if it could not be fetched; `generation_id` finds the answer then.
    `model` is the conversation's model at that turn, without `huggingchat/`. `instructed` are the
    instructions that the conversation had then.
    """

    conversation_id: Id
    message_id: Id | None = None
    generation_id: Id | None = None
    model: str | None = None
    instructed: SentInstructions = SentInstructions()


class Plan(msgspec.Struct, frozen=True):
    """What one turn sends: `text` and `attachments` after `parent`.

    Without a parent, a new conversation is made, with `system` as its `preprompt`. With
    `retry`, the answer `parent` gets a sibling, and nothing is sent. `instructed` are the
    instructions that the conversation has then, `features` what to look for in the answer.
    """

    parent: Parent | None
    system: str | None
    text: str
    attachments: tuple[llm.Attachment, ...] = ()
    instructed: SentInstructions = SentInstructions()
    features: PromptedFeatures = NO_FEATURES
    retry: bool = False


def _metadata(part: Part) -> dict[str, Any]:
    """What this plugin left on a part: logs may be old, or other people's."""
    return _mapping(_mapping(getattr(part, "provider_metadata", None)).get("huggingchat"))


def parent_of(message: Message, server_url: str) -> Parent | None:
    """The metadata that this plugin left on an assistant message of this server."""
    for metadata in map(_metadata, reversed(message.parts)):
        if message.role == "assistant" and metadata.get("server") == server_url:
            with contextlib.suppress(msgspec.ValidationError):
                instructed = msgspec.convert(metadata, SentInstructions)
                return msgspec.convert(metadata | {"instructed": instructed}, Parent)
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
    """Whether these are what llm adds after calling local tools: results and their attachments."""
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
    return parent.instructed.schema if parent and _only_results(after) else None


def earlier_transcripts(messages: Iterable[Message]) -> dict[str, str]:
    """The transcripts that earlier turns made of the chain's recordings, by attachment id."""
    return {
        _string(_metadata(part).get("heard")): part.output
        for message in messages
        for part in message.parts
        if isinstance(part, ToolResultPart) and _metadata(part).get("heard")
    }


def _attachments_of(part: Part) -> list[llm.Attachment]:
    if isinstance(part, ToolResultPart):
        return part.attachments
    return [part.attachment] if isinstance(part, AttachmentPart) and part.attachment else []


def _transcript_of(attachment: llm.Attachment, transcripts: dict[str, str] | None) -> str:
    """A recording as its transcript; "" for an attachment that has none."""
    text = transcripts.get(attachment_id(attachment)) if transcripts else None
    name = shown_name(attachment)
    return f"[Transcript of {name}]\n{text}\n[End of the transcript]" if text else ""


def _text_of(message: Message, transcripts: dict[str, str] | None = None) -> str:
    """A message as text: attachments and tools are named, reasoning is left out."""
    texts: list[str] = []
    for part in message.parts:
        if _metadata(part).get("heard"):
            continue  # the transcript stands where the attachment is
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, ToolCallPart):
            arguments = json.dumps(part.arguments, ensure_ascii=False)
            texts.append(f"[used the tool {part.name} with {arguments}]")
        elif isinstance(part, ToolResultPart):
            texts.append(f"[the tool {part.name} returned: {part.exception or part.output}]")
        for attachment in _attachments_of(part):
            name = f"[attachment: {attachment_name(attachment)}]"
            texts.append(_transcript_of(attachment, transcripts) or name)
    return "\n".join(filter(None, texts))


def render_history(messages: Iterable[Message], transcripts: dict[str, str] | None = None) -> str:
    """Messages as labelled text, for a model that has not seen them; "" for none.

    `transcripts` of recordings, by attachment id, stand where the recordings were.
    """
    turns = [f"{each.role.capitalize()}: {_text_of(each, transcripts)}" for each in messages]
    lines = ["[Earlier messages]", *turns, "[End of the earlier messages]"]
    return "\n\n".join(lines) if turns else ""


def make_plan(
    messages: list[Message],
    server_url: str | None,
    *,
    system: str | None = None,
    retry: bool = False,
    features: PromptedFeatures = NO_FEATURES,
    transcripts: dict[str, str] | None = None,
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
    instructed = parent.instructed if parent else SentInstructions()
    system = system or ""
    if instructed.system:
        is_known = instructed.system == _digest(system)
    else:
        is_known = any(system in _text_of(each) for each in messages if each.role == "system")
    new_system = "" if is_known else system
    if retry and not _only_results(after):
        return _plan_retry(parent, after, features, new_system)
    question = after.pop() if after and after[-1].role == "user" else Message("user")
    text = "\n".join(part.text for part in question.parts if isinstance(part, TextPart))
    responses, results, after = _tool_responses(answer, after)
    if after and after[-1].role == "tool":  # results of calls that this server has not seen
        results += [part for part in after[-1].parts if isinstance(part, ToolResultPart)]
        text = text or "Go on from there."
    attachments = [each for part in [*results, *question.parts] for each in _attachments_of(part)]
    if not (text or attachments or responses):
        raise HuggingChatError("There is nothing to send. Give a prompt or an attachment.")
    transcripts = {**earlier_transcripts(messages), **(transcripts or {})}
    spoken = [_transcript_of(attachment, transcripts) for attachment in attachments]
    told, preprompt = instructions(features, instructed), None
    if parent is None:
        leading = list(itertools.takewhile(lambda message: message.role == "system", after))
        preprompt = "\n\n".join(filter(None, [*map(_text_of, leading), new_system, told])) or None
        after, told = after[len(leading) :], ""
    else:
        after += [Message("system", [TextPart(new_system)])] if new_system else []
        told = f"[Instructions]\n{told}\n[End of instructions]" if told else ""
    texts = [*responses, render_history(after, transcripts), *spoken, told, text]
    return Plan(
        parent,
        preprompt,
        "\n\n".join(filter(None, texts)),
        tuple(each for each, said in zip(attachments, spoken, strict=True) if not said),
        msgspec.structs.replace(
            features.instructed, system=_digest(new_system) or instructed.system
        ),
        features,
    )


def _tool_responses(
    answer: Message | None, after: list[Message]
) -> tuple[list[str], list[ToolResultPart], list[Message]]:
    """What the model is told of the calls in `answer`; their results; the other messages."""
    calls = {
        part.tool_call_id: part
        for part in (answer.parts if answer else ())
        if isinstance(part, ToolCallPart) and not part.server_executed
    }
    results = [
        part
        for message in after
        for part in message.parts
        if isinstance(part, ToolResultPart) and part.tool_call_id in calls
    ]
    responses = [tool_response(result, calls[result.tool_call_id]) for result in results]
    rest = [(message, [p for p in message.parts if p not in results]) for message in after]
    return responses, results, [replace(message, parts=parts) for message, parts in rest if parts]


def _plan_retry(
    parent: Parent | None, after: list[Message], features: PromptedFeatures, new_system: str
) -> Plan:
    """Another answer to the same question: chat-ui takes no other text with it."""
    is_question = any(message.role == "user" for message in after)
    instructed = parent.instructed if parent else SentInstructions()
    if not is_question and (parent is None or after):
        raise HuggingChatError(
            "There is nothing to retry: the last answer did not come from this server."
        )
    if is_question or new_system or features.instructed.tools != instructed.tools:
        raise HuggingChatError(
            "-o retry true asks the last question again as it was, so it takes no words and no "
            "system prompt.\nGive the same -T and --functions as before: llm -c '' -o retry true"
        )
    features = msgspec.structs.replace(features, schema=features.schema or instructed.schema)
    return Plan(parent, None, "", instructed=instructed, features=features, retry=True)


# --- answer: updates, each once -> llm's stream events ------------------------------------

ANSWER_LIMIT = 4_000_000  # characters of an answer, with reasoning and tools
OPEN, CLOSE = "<think>", "</think>"


class ReplayedText:
    """Text that comes in pieces and, after `rewind`, once more from its start, cut elsewhere.

    A run's log has neither the NUL characters that pad a stream's tokens, nor an emoji in two
    halves; so these do not count, and the first half waits for the other. `whole` is all that
    came, once; `length` is its length in UTF-16 units.
    """

    def __init__(self) -> None:
        self.whole = io.StringIO()  # a string would be copied for each piece
        self.length = 0
        self._half = ""
        self._skip = 0

    def rewind(self) -> None:
        """From here on, all that came comes again."""
        self._half, self._skip = "", self.whole.tell()

    def feed(self, text: str, ends: bool = False) -> str:
        """What is new in the next piece. If it `ends`, half an emoji stands for itself."""
        text = self._half + text.replace("\0", "")
        self._half = text[-1:] if not ends and "\ud800" <= text[-1:] <= "\udbff" else ""
        text = join_surrogates(text.removesuffix(self._half))
        new = text[self._skip :]
        self._skip -= len(text) - len(new)
        self.whole.write(new)
        self.length += utf16_length(new)
        return new


class ThinkTags:
    """Splits `<think>...</think>` off text whose pieces may cut a tag anywhere.

    A tag opens reasoning only where a model begins to think: at the start, after a tool and
    after other reasoning. Elsewhere `<think>` is a word that the answer uses.
    """

    def __init__(self) -> None:
        self._state = "start"
        self._held = ""  # may be the beginning of a tag

    def feed(self, text: str) -> list[tuple[str, str]]:
        """The pieces of `text`, each with its kind: text or reasoning."""
        pieces: list[tuple[str, str]] = []
        text, self._held = self._held + text, ""
        while text and self._state != "text":
            kind, tag = ("reasoning", CLOSE) if self._state == "thinking" else ("text", OPEN)
            piece, found, rest = text.partition(tag)
            shown = piece if found else piece[: len(piece) - _overlap(piece, tag)]
            if kind == "text" and shown.strip():
                self._state = "text"
                break
            pieces.append((kind, shown))
            self._held, text = piece[len(shown) :], rest
            if found:
                self._state = "thinking" if tag == OPEN else "start"
        return [each for each in (*pieces, ("text", text)) if each[1]]

    def end(self) -> list[tuple[str, str]]:
        """What was held back. A tool was called, or a file came: the model may think again."""
        kind = "reasoning" if self._state == "thinking" else "text"
        held, self._held, self._state = self._held, "", "start"
        return [(kind, held)] if held else []


class Answer:
    """What an answer consists of, and what each further update of its run adds to it.

    `file_url` gives the address of a file by its SHA; `features` are those that the question was
    asked with; `artifacts` says whether the model writes them.

    The model's text goes through filters, one after the other: a replay's part that is known,
    reasoning, calls of local tools, artifacts. What they hold back comes out where a paragraph
    ends, as it does where the server calls a tool.
    """

    def __init__(
        self,
        file_url: Callable[[str], str],
        features: PromptedFeatures = NO_FEATURES,
        artifacts: bool = True,
    ) -> None:
        self._file_url = file_url
        self._schema = features.schema
        self._seen_text = ReplayedText()  # as the model wrote it, tags included
        self._seen_reasoning = ReplayedText()  # what came as updates of its own
        # Calls, results and files, by id and kind; the name of the tool.
        self._seen_others: dict[tuple[str | None, str], str] = {}
        self._think = ThinkTags()
        names = [tool["function"]["name"] for tool in features.tools]
        self._calls = ToolCallFilter(names) if names else None
        self._layout = ArtifactFilter() if artifacts and not self._schema else Paragraphs()
        self._after_tool = 0  # where the text after the last tool begins
        self._events: list[StreamEvent] = []  # what the last update adds
        self._size = 0
        self.document_text = ""  # with a schema, the text in which its document is looked for
        self._has_text = False
        self.calls: list[llm.ToolCall] = []
        self.problem = ""  # why there is no document, where a schema wants one
        self.title = ""
        self.router = RouterMetadata()
        self.final: FinalAnswer | None = None
        self.last_type = ""  # of the last event that was given

    @property
    def begun(self) -> bool:
        """Whether the model has said or done anything."""
        return bool(self._seen_text.length or self._seen_reasoning.length or self._seen_others)

    @property
    def is_reasoning_alone(self) -> bool:
        """Whether there is reasoning, and nothing else."""
        return self.begun and not (self._has_text or self.calls or self._seen_others)

    @property
    def seen_length(self) -> int:
        """Length of the text so far in UTF-16 units: chat-ui's `seenContentLength`."""
        return self._seen_text.length

    def rewind(self) -> None:
        """From here on, the run's updates come again from the first."""
        self._seen_text.rewind()
        self._seen_reasoning.rewind()

    def add(self, update: Update) -> list[StreamEvent]:
        """What `update` adds, as llm's stream events. Raises TooLarge beyond ANSWER_LIMIT."""
        match update:
            case StreamUpdate(token=token):
                self._add_text(self._seen_text.feed(token))
            case ReasoningUpdate(token=token):
                self._give("reasoning", self._seen_reasoning.feed(token))
            case ToolUpdate():
                self._add_tool(update)
            case FileUpdate():
                self._add_file(update)
            case FinalAnswer():
                self._add_final(update)
            case TitleUpdate(title=title):
                self.title = one_line(re.sub(r"</?think>", "", title), 200) or self.title
            case RouterMetadata():
                given = msgspec.structs.asdict(update).items()
                said = {name: one_line(value, 200) for name, value in given if value}
                self.router = msgspec.structs.replace(self.router, **said)
            case StatusUpdate() | ElicitationUpdate():
                pass  # they say what becomes of the run
            case _:
                assert_never(update)
        return self._take_events()

    def end(self) -> list[StreamEvent]:
        """What was held back when the run breaks off: an open fence is closed."""
        self._end_paragraph(interrupted=True)
        return self._take_events()

    def _take_events(self) -> list[StreamEvent]:
        events, self._events = self._events, []
        for event in events:
            self._size += len(event.chunk)
            if event.chunk or event.type == "tool_result":
                self.last_type = event.type
        if self._size > ANSWER_LIMIT:
            raise TooLarge(f"The answer has no end: {self._size:,} characters so far.")
        return events

    def _give(self, kind: str, text: str) -> None:
        """Add text or reasoning to what llm is given."""
        if text:
            self._events.append(StreamEvent(type=cast(Any, kind), chunk=for_logs(text)))

    def _add_text(self, text: str, ends: bool = False) -> None:
        """Add text of the model's, which may contain reasoning and calls."""
        pieces = self._think.feed(for_logs(text)) + (self._think.end() if ends else [])
        for kind, piece in pieces:
            if kind == "reasoning":
                self._give(kind, piece)
            else:
                self._add_words(self._calls.feed(piece) if self._calls else piece)

    def _add_words(self, words: str) -> None:
        """Add text without those: it is shown or, with a schema, kept to look for a document in."""
        self._has_text = self._has_text or bool(words)
        text = self._layout.feed(words)
        if self._schema:
            self.document_text += text
        else:
            self._give("text", text)

    def _end_paragraph(self, interrupted: bool = False) -> None:
        """A tool follows, or nothing: what was held back belongs to the text before it."""
        self._give("reasoning", self._seen_reasoning.feed("", ends=True))
        self._add_text(self._seen_text.feed("", ends=True), ends=True)
        words, calls = self._calls.end(interrupted) if self._calls else ("", [])
        self._add_words(words)
        self._give("text", self._layout.end())
        self.calls += calls
        for call in calls:
            self._events += tool_call_events(call.tool_call_id, call.name, call.arguments)

    def _add_tool(self, update: ToolUpdate) -> None:
        subtype = "result" if update.subtype == "error" else update.subtype
        if subtype not in ("call", "result") or (update.uuid, subtype) in self._seen_others:
            return
        self._end_paragraph()
        self._after_tool = self._seen_text.whole.tell()
        name = update.name or self._seen_others.get((update.uuid, "call"), "")
        self._seen_others[update.uuid, subtype] = name
        if subtype == "call":
            self._events += tool_call_events(update.uuid, name, update.arguments, executed=True)
        else:
            event = tool_result_event(update.uuid, name, update.output, update.error)
            self._events.append(event)

    def _add_file(self, update: FileUpdate) -> None:
        """A link to a file, in a paragraph of its own."""
        if (update.sha, "file") in self._seen_others:
            return
        self._seen_others[update.sha, "file"] = ""
        self._end_paragraph()
        if not self._schema:
            label = re.sub(r"[\[\]<>]", "", one_line(update.name or "file", 200))
            self._add_words(f"[{label}]({self._file_url(update.sha)})")
            self._give("text", self._layout.end())

    def _add_final(self, final: FinalAnswer) -> None:
        """The end of the answer; text that was never streamed is in the final answer alone."""
        everything = self._seen_text.whole.getvalue()
        # After a stop chat-ui gives the whole text, cut where the stop says.
        known = everything if final.interrupted else everything[self._after_tool :]
        text = join_surrogates((final.text or "").replace("\0", ""))
        if not everything.endswith(text) and text.startswith(known):
            self._seen_text.rewind()
            self._add_text(self._seen_text.feed(everything + text[len(known) :]))
        self._end_paragraph(bool(final.interrupted))
        self.final = final
        if self._schema and not self.calls:
            document, self.problem = find_document(self.document_text, schema_checker(self._schema))
            self._give("text", document)


def tool_call_events(
    id: str | None, name: str, arguments: dict[str, Any], *, executed: bool = False
) -> list[StreamEvent]:
    """A tool call as llm's stream events; `executed` says that it runs on the server."""
    text = to_json(arguments)
    if executed:  # JSON has escaped these; a local tool gets what the model wrote
        text = for_logs(re.sub(r'(\\["\\nrt])|\\(?:[bf]|u....)', r"\1", text))
    common: dict[str, Any] = {"tool_call_id": id, "server_executed": executed}
    return [
        StreamEvent(type="tool_call_name", chunk=one_line(name), **common),
        StreamEvent(type="tool_call_args", chunk=text, **common),
    ]


def tool_result_event(id: str | None, name: str, output: str, error: str = "") -> StreamEvent:
    """What a server-side tool gave back. llm has no field for a failure: it is in the output."""
    error = for_logs(error)
    return StreamEvent(
        type="tool_result",
        chunk=f"Error: {error}" if error else for_logs(output),
        tool_call_id=id,
        tool_name=one_line(name),
        server_executed=True,
        provider_metadata={"huggingchat": {"error": error}} if error else None,
    )


def transcription_events(name: str, id: str, text: str) -> list[StreamEvent]:
    """A transcription as llm logs it: the server's work, so a tool's call and result.

    `llm logs` shows it below the attachments, and later turns find it there. `name` and `id`
    are the attachment's.
    """
    call_id = new_call_id()
    events = tool_call_events(call_id, TRANSCRIBE, {"file": name}, executed=True)
    events.append(tool_result_event(call_id, TRANSCRIBE, text))
    return [replace(event, provider_metadata={"huggingchat": {"heard": id}}) for event in events]


# --- files: replacing one in one step, changing one under a lock ---------------------


def os_error_text(error: BaseException) -> str:
    """What went wrong with a file, without a byte of what is in it."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "it is not a JSON object"


@contextlib.contextmanager
def atomic_write(path: pathlib.Path, mode: int = 0o666) -> Iterator[io.BufferedWriter]:
    """Write a file that takes the place of `path` when it is whole, and is gone otherwise.

    A new file gets `mode` without the umask; one that is there keeps mode and owner, and links
    stay links. A pipe, a device or a file with several names is written in place. Raises OSError.
    """
    old = path.stat() if path.exists() else None
    if old and (not stat.S_ISREG(old.st_mode) or old.st_nlink > 1):
        with open(path, "wb") as file:
            yield file
        return
    target = pathlib.Path(os.path.realpath(path))
    new = target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}")
    opener = functools.partial(os.open, mode=0o600 if old else mode)
    try:
        with open(new, "xb", opener=opener) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if old:
            if os.name == "posix":
                with contextlib.suppress(OSError):
                    os.chown(new, old.st_uid, old.st_gid)
            os.chmod(new, stat.S_IMODE(old.st_mode))
        os.replace(new, target)
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def lock_of(path: pathlib.Path) -> FileLock:
    """A lock to be held while a file of llm's user directory is read and replaced."""
    from filelock import FileLock

    return FileLock(path.with_name(f".{path.name}.lock"), timeout=10)


# --- keys: llm's key store -> the cookies for a server -------------------------------

# llm's own first entry in keys.json
KEY_NOTE = {"// Note": "This file stores secret API credentials. Do not share!"}


def keep_key(name: str, value: str | None, *, anew: bool = False) -> str | None:
    """Set key `name` in llm's key store, or forget it with None; no other key changes.

    With `anew` a key that is there already stays. Returns the key that is there now.
    Raises llm.ModelError when the store cannot be read or written.
    """
    path = llm.user_dir() / "keys.json"
    with _key_store_errors("updated"), lock_of(path):
        keys = _stored_keys()
        if anew:
            value = _string(keys.get(name)) or value
        if value is None:
            keys.pop(name, None)
        else:
            keys = (keys or KEY_NOTE) | {name: value}
        with atomic_write(path, 0o600) as file:
            file.write(json.dumps(keys, indent=2).encode() + b"\n")
    return value


def stored_key(name: str) -> str | None:
    """The key kept under `name`, or None. Raises llm.ModelError for a broken key store."""
    return _string(_stored_keys().get(name)) or None


def _stored_keys() -> dict[str, Any]:
    with _key_store_errors("read"):
        return msgspec.convert(llm.load_keys(), dict[str, Any])


@contextlib.contextmanager
def _key_store_errors(done: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RecursionError) as error:
        what = f"llm's key store, {llm.user_dir() / 'keys.json'}, cannot be {done}"
        raise HuggingChatError(f"{what}: {os_error_text(error)}") from None


def replace_session(server: Server, cookies: Cookies, made: Cookies) -> None:
    """Keep the session that replaces the expired one of `cookies`, where that is possible.

    It goes to the server's own key, if that has the same `token`, and to keys that `--key` may
    name, if they have the same session too.
    """
    with contextlib.suppress(llm.ModelError):
        for name, value in _stored_keys().items():
            with contextlib.suppress(llm.ModelError):
                kept = parse_cookies(_string(value), server.host)
                named = not name.startswith("huggingchat") and kept.hf_chat == cookies.hf_chat
                if kept.token == cookies.token and (named or name == server.key_name):
                    new = msgspec.structs.replace(kept, hf_chat=made.hf_chat, since=made.since)
                    keep_key(name, new.to_key())


def is_anonymous(key: str | None) -> bool:
    """Whether this is the key of a session that this plugin made for a server without logins."""
    return bool(re.search(r'"(anonymous|made_up)": true', key or ""))


def login_error(server: Server, cookies: Cookies | None) -> HuggingChatError:
    """Why the server does not accept the cookies, and how to give it better ones."""
    again = f"Run: llm huggingchat login (or llm keys set {server.key_name})"
    if cookies is None or cookies.anonymous:
        return LoginRequired(f"{server.host} requires a login, and there is no key. {again}")
    why = "the cookie 'token' is missing beside 'hf-chat'."
    if cookies.token:
        why = (
            "the cookie 'token' is expired or wrong, or has to be confirmed first. "
            f"Open {server.url}/login in your browser."
        )
    return HuggingChatError(f"Not logged in on {server.host}: {why}\n{again}")


def find_key(server: Server, explicit: str | None = None) -> tuple[str | None, str]:
    """The key for a server, and where it comes from: --key, the store, or the environment.

    An anonymous session gives way to the environment. `LLM_HUGGINGCHAT_KEY` and the key
    `huggingchat` are for the service and for loopback. Raises llm.NeedsKeyException when the
    service has none, llm.ModelError when there are only cookies of another host.
    """
    near = server.is_service or server.is_loopback
    given = os.environ.get(KEY_VARIABLE)
    if explicit:
        ours = (server.key_name, "huggingchat") if near else (server.key_name,)
        if not re.match(r"huggingchat(:|$)", explicit) or explicit in ours:
            return stored_key(explicit) or explicit, "--key"
    else:
        stored = stored_key(server.key_name)
        if stored and not (given and near and is_anonymous(stored)):
            return stored, f"llm keys ({server.key_name})"
        if given and near:
            return given, KEY_VARIABLE
    if explicit or given:
        raise HuggingChatError(
            f"{'That key' if explicit else KEY_VARIABLE} is not for {server.host}: "
            "cookies of one host never go to another. "
            f"Run: llm keys set {server.key_name}"
        )
    if server.is_service:
        raise login_error(server, None)
    return None, "none"


def cookies_of_key(server: Server, key: str) -> Cookies:
    """The cookies in a key for a server. Raises llm.ModelError, which names `login`."""
    try:
        return parse_cookies(key, server.host)
    except llm.ModelError as error:
        raise HuggingChatError(f"{error} Run: llm huggingchat login") from None


_anonymous: dict[str, Cookies] = {}  # by the server's address, for this process


def anonymous_session(server: Server, tell: Callable[[str], None]) -> Cookies:
    """A session for a server without logins, which accepts any value.

    It is stored in llm's key store before it is used, so that prompts that begin at the same
    time share one. If it cannot be stored, `tell` says so, and this process uses it.
    """
    if server.url in _anonymous:
        return _anonymous[server.url]
    cookies = Cookies(str(uuid.uuid4()), anonymous=True)
    try:
        kept = keep_key(server.key_name, cookies.to_key(), anew=True)
        cookies = parse_cookies(kept or "", server.host)
    except llm.ModelError as error:
        tell(f"the session is not kept, so it cannot be continued later. {error}")
    return _anonymous.setdefault(server.url, cookies)


def forget_anonymous_session(server: Server) -> None:
    """Drop the session that was just made: the server requires a login."""
    _anonymous.pop(server.url, None)
    with contextlib.suppress(llm.ModelError):
        if is_anonymous(stored_key(server.key_name)):
            keep_key(server.key_name, None)


# --- cache: the catalogue cache ------------------------------------------------------

CACHE = "huggingchat_models.json"


class _CachedServer(msgspec.Struct, omit_defaults=True):
    """What is cached of a server. `known` are ids that it offered, or that llm's logs name."""

    time: float = 0.0
    models: tuple[ModelInfo, ...] = ()
    known: list[str] = msgspec.field(default_factory=list, name="former")

    def remember(self, ids: Iterable[str]) -> bool:
        """Add ids to `known`, and tell whether any is new."""
        new = [id for id in dict.fromkeys(ids) if id not in self.known and is_usable_id(id)]
        self.known.extend(new)
        return bool(new)


def _read_cache() -> dict[str, _CachedServer]:
    """What is cached, by the server's address; nothing if the file cannot be read."""
    try:
        content = (llm.user_dir() / CACHE).read_bytes()
        return msgspec.json.decode(content, type=dict[str, dict[str, _CachedServer]])["servers"]
    except (OSError, LookupError, ValueError, RecursionError):
        return {}


@contextlib.contextmanager
def _cached(server_url: str) -> Iterator[_CachedServer]:
    """What is cached of a server, to be changed. Raises OSError."""
    path = llm.user_dir() / CACHE
    with lock_of(path):
        servers = _read_cache()
        yield servers.setdefault(server_url, _CachedServer())
        content = msgspec.json.encode({"servers": servers})
        with atomic_write(path) as file:
            file.write(msgspec.json.format(content, indent=1) + b"\n")


def load_catalogue(server_url: str) -> Catalogue:
    """The cached models of a server, else the built-in ones. Raises nothing."""
    servers = _read_cache()
    here = servers.get(server_url, _CachedServer())
    models, when = (here.models, here.time) if here.models and here.time > 0 else (BUILT_IN, None)
    offered = {model.id for model in models}
    known = dict.fromkeys(itertools.chain(*(server.known for server in servers.values())))
    return Catalogue(models, when, tuple(id for id in known if id not in offered))


def keep_catalogue(server_url: str, models: Iterable[ModelInfo]) -> None:
    """Cache a server's models beside those of other servers. Raises llm.ModelError."""
    offered = {model.id: model for model in models}
    try:
        with _cached(server_url) as server:
            server.remember(model.id for model in server.models if model.id not in offered)
            server.time, server.models = time.time(), tuple(offered.values())
    except OSError as error:
        raise HuggingChatError(
            f"The catalogue cannot be kept in {llm.user_dir() / CACHE}: {os_error_text(error)}"
        ) from None


def remember_models(server_url: str, ids: Iterable[str]) -> None:
    """Remember models that llm's logs name, so that llm can resolve them after their removal.

    Raises nothing. Writes only if an id is new.
    """
    ids = list(ids)
    if _read_cache().get(server_url, _CachedServer()).remember(ids):
        with contextlib.suppress(OSError), _cached(server_url) as server:
            server.remember(ids)


# --- locks: one turn at a time in a conversation -------------------------------------

TURNS = "huggingchat_turns"  # a folder in llm's user directory
LOG_LIFETIME = 604_800.0  # seconds for which chat-ui keeps a run's log: then it is stored, or lost


def _turn_file(page: str) -> pathlib.Path:
    name = hashlib.sha256(page.encode()).hexdigest()[:32]
    return pathlib.Path(llm.user_dir(), TURNS, f"{name}.json")


@functools.cache
def _remove_abandoned(folder: pathlib.Path) -> None:
    """Remove the files of conversations that nobody continued, once in a process."""
    with contextlib.suppress(OSError):
        for file in folder.glob("[0-9a-f]*.[jl]*"):
            if file.stat().st_mtime < time.time() - LOG_LIFETIME:
                file.unlink()


def turn_is_pending(page: str) -> bool:
    """Whether a run of the conversation at `page` is not known to be stored."""
    return _turn_file(page).exists()


class TurnLock:
    """Lets one turn at a time into a conversation, in this process and in others.

    chat-ui can keep only one run at a time: a message that is sent before the previous run is
    stored loses that run's answer, or is lost itself. So a file exists from when a message
    is sent until its run is known to be stored; it says when the server was told to stop the
    run, or when a process that died had sent the message (seconds since 1970). A lock beside it
    is held while a turn goes on. Where no file can be made there is no lock, and every turn asks
    the server whether a run goes on.
    """

    def __init__(self, page: str) -> None:
        from filelock import FileLock

        self.pending = False
        self.stopped: float | None = None
        self.sent_at = 0.0
        self._file = _turn_file(page)
        self._lock = FileLock(self._file.with_suffix(".lock"), blocking=False)

    async def acquire(self) -> None:
        """Wait for the turn before; then `pending`, `stopped`, `sent_at` say what it has left."""
        from filelock import Timeout

        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            while not self._lock.is_locked:
                try:
                    self._lock.acquire()
                except Timeout:
                    await asyncio.sleep(0.05)
            self.pending = self._file.exists()
            times = decode(self._file.read_bytes() if self.pending else b"{}", dict[str, float])
            self.stopped = min(times.get("stopped", 0.0), time.time()) or None
            self.sent_at = min(times.get("sent", 0.0), time.time())
        except (OSError, NotImplementedError, ValueError):
            self.pending = True  # nobody knows, so the server is asked

    def begin(self) -> None:
        """A message is about to be sent."""
        _remove_abandoned(self._file.parent)
        self._write({"sent": time.time()})

    def release(self, stored: bool, stopped: float | None = None) -> None:
        """The turn is over. Unless its run is `stored`, the next turn waits for that."""
        if not stored:
            self._write({"stopped": stopped} if stopped else {})
        with contextlib.suppress(OSError):
            if stored:
                self._file.unlink(missing_ok=True)
            if self._lock.is_locked:
                pathlib.Path(self._lock.lock_file).unlink(missing_ok=True)  # safe while it is held
        self._lock.release()

    def _write(self, value: dict[str, float]) -> None:
        with contextlib.suppress(OSError):
            self._file.write_bytes(msgspec.json.encode(value))


# --- http: one exchange over curl_cffi -----------------------------------------------

CURL_WRITEFUNC_ERROR = 0xFFFFFFFF  # what a callback returns to make curl end the exchange
REDIRECTS = (301, 302, 303, 307, 308)


class ConnectionLost(Exception):
    """A connection could not be made, broke, or fell silent.

    `sent`: the whole request left, so it may have arrived. `silent`: nothing was heard, not
    even an end.
    """

    def __init__(self, why: str, *, sent: bool, silent: bool = False) -> None:
        super().__init__(why)
        self.sent = sent
        self.silent = silent


class HttpResponse(msgspec.Struct, frozen=True):
    """A whole HTTP response. `body` is decompressed."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def __repr__(self) -> str:
        return f"HttpResponse({self.status})"  # the rest may hold cookies

    def header(self, name: str) -> str:
        """The first header of that name (in lower case), or ""."""
        return next((value for known, value in self.headers if known.lower() == name), "")

    @property
    def set_cookies(self) -> dict[str, str]:
        """The cookies that the server sets, as far as they are valid."""
        found = {}
        for header, text in self.headers:
            name, _, value = text.partition(";")[0].partition("=")
            valid = re.fullmatch(HTTP_TOKEN, name.strip()) and re.fullmatch(_COOKIE_VALUE, value)
            if header.lower() == "set-cookie" and valid:
                found[name.strip()] = value
        return found

    @property
    def is_html(self) -> bool:
        """Whether this is an HTML page: no API of chat-ui's answers with one."""
        return "html" in self.header("content-type").lower()

    @property
    def wants_login(self) -> bool:
        """Whether chat-ui refuses this because nobody is logged in."""
        redirects = self.status in REDIRECTS and leads_to_login(self.header("location"))
        return self.status == 401 or redirects

    @property
    def is_hidden(self) -> bool:
        """Whether something is not there, or somebody else's."""
        return self.status in (403, 404) and not self.is_firewall

    @property
    def is_firewall(self) -> bool:
        """Whether a firewall in front of the server refused this client.

        It answers with a challenge (202) or a captcha (405), with a header that says so, or
        with a page.
        """
        page = self.status in (403, 405) and self.is_html
        return page or (self.status != 200 and bool(self.header("x-amzn-waf-action")))

    @property
    def is_rate_limit(self) -> bool:
        """Whether the same message will be taken after a pause.

        chat-ui has three reasons for 429. Too many messages in a conversation, or too many
        conversations, is not helped by waiting.
        """
        lasting = self.is_firewall or "conversation" in self.message.lower()
        return self.status == 429 and not lasting

    @property
    def message(self) -> str:
        """The server's own words for a refusal; nothing of an HTML page."""
        text = self.body[:10_000].decode("utf-8", "replace")
        try:
            said = decode(text, dict[str, Any])
        except ValueError:
            return "" if self.is_html or text.lstrip().startswith("<") else one_line(text, 300)
        return one_line(_string(said.get("message") or said.get("error")), 300)


class HttpError(Exception):
    """The server answered with a status other than 200, or with a page instead of updates."""

    def __init__(self, response: HttpResponse) -> None:
        super().__init__(f"HTTP {response.status}")
        self.response = response


# In the order in which curl_cffi looks at them.
CERTIFICATE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
# libcurl's errors before a request is sent.
_CURL_ERRORS = {
    3: "that is no address",
    5: "the proxy's name cannot be resolved",
    6: "the host's name cannot be resolved, or there is no network",
    7: "nobody is listening there",
    27: "that is no address",  # 3 again, as curl_cffi hands it on
    35: "the encrypted connection could not be set up",
    60: "its certificate is not trusted",
    77: "the certificates to trust cannot be read",
}


def connection_error(error: CurlError, sent: bool, url: str) -> Exception:
    """A libcurl error in words; HuggingChatError where trying again cannot help."""
    code = int(error.code or 0)
    refused = "CONNECT tunnel failed" in str(error)
    why = _CURL_ERRORS.get(code, f"the connection broke (curl error {code})")
    if code in (60, 77):
        hint = f"To trust another, name a file in {', '.join(CERTIFICATE_VARIABLES)}"
        if name := next(filter(os.environ.get, CERTIFICATE_VARIABLES), ""):
            hint = f"{name} names the trusted ones: {one_line(os.environ[name], 200)}"
        return HuggingChatError(f"No connection to {urlsplit(url).netloc}: {why}. {hint}")
    if (refused or code in (5, 7)) and (proxy := proxy_of(url)):
        what = "refused the connection" if refused else "cannot be reached"
        why = f"the proxy {one_line(proxy, 100)} {what}. A variable such as HTTPS_PROXY names it"
    return ConnectionLost(why, sent=sent and not refused and code not in _CURL_ERRORS)


def proxy_of(url: str) -> str:
    """HOST:PORT of the proxy that requests to `url` go through, or ""."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    if _is_loopback(parts.hostname or "") or proxy_bypass(parts.hostname or ""):
        return ""
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    return proxy.rpartition("://")[2].rpartition("@")[2].rstrip("/")


class Exchange:
    """One HTTP exchange, whose body is read as it comes.

    curl_cffi's own streams wait for the server when they are closed. A plain request with a
    callback for its body can be cancelled at any moment, and closes at once.
    """

    def __init__(
        self, session: AsyncSession[Any], url: str, body: bytes | None, limit: int, **options: Any
    ) -> None:
        self._url = url
        self._waiting = bytearray()  # what came and is not read yet
        self._news = asyncio.Event()
        self._received = 0
        self._limit = limit
        self._upload = len(body or b"") / limits.slowest_upload  # seconds that it may take
        self._head = bytearray()  # how the body begins: what a refusal says
        self.sent = body is None
        content: Any = None if body is None else self._once(body)
        self._task = asyncio.create_task(
            session.request(url=url, content=content, content_callback=self._receive, **options)
        )
        self._task.add_done_callback(lambda _: self._news.set())

    def _once(self, body: bytes) -> Iterator[bytes]:
        """The body, as an iterator, which curl cannot rewind.

        curl sends a POST again by itself when a kept connection turns out to be closed, even
        if the server had it already. What is sent again is decided here alone.
        """
        size = 65_536
        for start in range(0, len(body), size):
            self.sent = start + size >= len(body)
            yield body[start : start + size]

    def _receive(self, chunk: bytes) -> int:
        self._received += len(chunk)
        if self._received > self._limit:
            return CURL_WRITEFUNC_ERROR
        if len(self._head) < 10_000:
            self._head += chunk
        self._waiting += chunk
        self._news.set()
        return len(chunk)

    async def read(self, silence: float) -> bytes:
        """The bytes of the body that have come, or come within `silence` seconds; b"" at the end.

        Raises ConnectionLost, HuggingChatError.
        """
        if not (self._waiting or self._task.done()):
            self._news.clear()
            try:
                async with asyncio.timeout(silence if self._received else silence + self._upload):
                    await self._news.wait()
            except TimeoutError:
                why = "it did not answer in time"
                raise ConnectionLost(why, sent=self.sent, silent=True) from None
        chunk, self._waiting = bytes(self._waiting), bytearray()
        if not chunk:
            self._check()
        return chunk

    def _check(self) -> None:
        """Raise what the exchange ended with, if it failed."""
        from curl_cffi import CurlError

        try:
            self._task.result()
        except CurlError as error:
            if self._received > self._limit:
                raise TooLarge(
                    f"{urlsplit(self._url).netloc} sent more than {self._limit // 1_000_000} "
                    "MB, more than any real answer has. The connection was closed."
                ) from None
            raise connection_error(error, self.sent, self._url) from None
        except (ValueError, IndexError):  # curl_cffi's own, over a head that makes no sense
            raise ConnectionLost("its answer is not HTTP", sent=self.sent) from None

    async def whole(self, silence: float, into: IO[bytes] | None = None) -> HttpResponse:
        """The whole response; without its body, if that is written `into` a file.

        Raises what `read` does, and HttpError for any status but 200.
        """
        body = io.BytesIO()
        file = into or body
        file.seek(0)
        file.truncate()
        async with self:
            while chunk := await self.read(silence):
                file.write(chunk)
        response = self.response
        if response.status != 200:
            raise HttpError(response)
        return msgspec.structs.replace(response, body=body.getvalue())

    @property
    def response(self) -> HttpResponse:
        """Status and headers once the exchange has ended; of the body, how it begins."""
        got = self._task.result()
        return HttpResponse(got.status_code, tuple(got.headers.multi_items()), bytes(self._head))

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _open_session() -> AsyncSession[Any]:
    """curl_cffi's connections for one event loop."""
    from curl_cffi import CurlOpt
    from curl_cffi.requests import AsyncSession

    options: Any = {
        CurlOpt.QUICK_EXIT: 1,  # do not wait for a slow resolver
        # curl knows more protocols, some of which put chosen bytes on a raw socket.
        CurlOpt.PROTOCOLS_STR: "http,https",
        CurlOpt.REDIR_PROTOCOLS_STR: "http,https",
    }
    session: AsyncSession[Any] = AsyncSession(
        max_clients=1000,
        discard_cookies=True,
        allow_redirects=False,  # a redirect could take the cookies elsewhere
        curl_options=options,
    )
    release = session.release_curl

    def remove_first(curl: Any) -> None:
        # curl_cffi frees a request's callbacks before curl, which still calls them when the
        # request ends in the middle of a head: the process would abort.
        if not session._closed:
            session.acurl.remove_handle(curl)
        release(curl)

    cast(Any, session).release_curl = remove_first
    return session


# --- sessions: made from `token`, renewed when they have expired ---------------------

LOGIN_STEPS = 6  # redirects that a login may take; the service's takes three


class Credentials(msgspec.Struct, frozen=True):
    """A server, and the cookies for it."""

    server: Server
    cookies: Cookies | None = None

    def without_cookies(self, text: str) -> str:
        """`text` from outside, in which no value of a cookie is left."""
        for value in self.cookies.pairs().values() if self.cookies else ():
            text = text.replace(value, "(cookie)")
            if text.endswith("…"):  # where it was cut, a value may begin
                text = text[: len(text) - 1 - _overlap(text[:-1], value)] + "…"
        return text

    @property
    def public(self) -> Credentials:
        """For calls that need no login: nothing but what the firewall gave."""
        waf = self.cookies and self.cookies.waf
        return Credentials(self.server, Cookies(None, waf=waf) if waf else None)


def is_missing(path: str, response: HttpResponse) -> bool:
    """Whether a conversation, or a part of it, is not there for this account."""
    is_part = path.startswith(("/conversation/", "/api/v2/conversations/"))
    return is_part and response.is_hidden


class Sessions:
    """The sessions of logins: made from `token`, and renewed when they have expired.

    Each is made once for all who ask for it at the same time, and kept in llm's key store,
    where other processes find it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._latest: dict[tuple[str, str | None], Cookies] = {}  # by server's address and `token`
        self._renewing: dict[tuple[str, str | None], asyncio.Task[None]] = {}

    def current(self, credentials: Credentials) -> Credentials:
        """`credentials` with the latest session that is known of their login."""
        server, cookies = credentials.server, credentials.cookies
        latest = cookies and self._latest.get((server.url, cookies.token))
        if cookies and latest:
            cookies = msgspec.structs.replace(cookies, hf_chat=latest.hf_chat, since=latest.since)
        return Credentials(server, cookies)

    async def ready(self, credentials: Credentials) -> Credentials:
        """`credentials` with a session, which is made if there is only `token`."""
        credentials = self.current(credentials)
        cookies = credentials.cookies
        if cookies and cookies.token and cookies.hf_chat is None:
            return await self.renew(credentials)
        return credentials

    async def renew_after(self, error: HttpError, credentials: Credentials, path: str = "") -> bool:
        """Whether a call was refused because its session had expired, and there is a new one.

        Someone who is not logged in is told that a conversation is not there. Raises what
        `renew` does.
        """
        if error.response.is_firewall:
            return False
        has_token = bool(credentials.cookies and credentials.cookies.token)
        expired = has_token and error.response.wants_login
        if is_missing(path, error.response):
            client = self._client
            expired = await client.has_accounts(credentials) and not await client.user(credentials)
        if expired:
            await self.renew(credentials)
        return expired

    async def renew(self, credentials: Credentials) -> Credentials:
        """`credentials` with another session than theirs, made from `token`.

        Raises ConnectionLost, HttpError, and HuggingChatError where a person has to log in.
        """
        server, cookies = credentials.server, credentials.cookies
        if self.current(credentials) == credentials:
            if cookies is None or cookies.token is None:
                raise login_error(server, cookies)
            login = server.url, cookies.token
            if login not in self._renewing:
                self._renewing[login] = self._client.spawn(self._renew(server, cookies))
                self._renewing[login].add_done_callback(lambda _: self._renewing.pop(login))
            await asyncio.shield(self._renewing[login])  # if one leaves, the others get theirs
        return self.current(credentials)

    async def _renew(self, server: Server, cookies: Cookies) -> None:
        session = await self._log_in(server, cookies)
        made = msgspec.structs.replace(cookies, hf_chat=session, since=time.time())
        await asyncio.to_thread(replace_session, server, cookies, made)
        self._latest[server.url, cookies.token] = made

    async def _log_in(self, server: Server, cookies: Cookies) -> str:
        """A session made from `token`: GET BASE/login and where it leads.

        The service's login provider is on the service's own origin. Nothing else is followed:
        `token` opens the whole account. (captures/login_renewed.json)
        """
        jar = msgspec.structs.replace(cookies, hf_chat=None).pairs()
        url = f"{server.url}/login"
        for _ in range(LOGIN_STEPS):
            step = Credentials(Server(server.origin), Cookies(None, passing=tuple(jar.items())))
            try:
                path = url.removeprefix(server.origin)
                response = await self._client.call(step, "GET", path)
            except HttpError as error:
                response = error.response
                if response.is_firewall or response.status == 429 or response.status >= 500:
                    raise
            jar |= response.set_cookies
            if response.status not in REDIRECTS:
                break
            previous, url = url.partition("?")[0], own_target(url, response.header("location"))
            if not url:
                break
            called_back = previous == f"{server.url}/login/callback"
            if called_back and "hf-chat" in response.set_cookies:
                if url.partition("?")[0] == f"{server.url}/login":
                    continue  # it wants to begin again, once
                return jar["hf-chat"]
        if cookies.hf_chat is None:
            needed = await self._client.has_accounts(Credentials(server, cookies))
            if not needed:  # then any value is a session
                return str(uuid.uuid4())
        raise login_error(server, cookies)


# --- client: calls to a chat server, tried again where that can help -----------------

JSON_LIMIT = 8_000_000  # bytes of an answer in JSON: a catalogue of 140 models has 100,000
CONVERSATION_LIMIT = 64_000_000  # bytes of a conversation: one of 300 turns has 16 million
STREAM_LIMIT = 1_000_000_000  # bytes of a stream: a week of heartbeats is a quarter of it
PAST_END = 999_999_999  # no log is so long: from there it repeats nothing, and tells the end
SETTINGS_PATH = "/api/v2/user/settings"


class NotFound(Exception):
    """The conversation is not there for this account; or `answer`, the one to continue after."""

    def __init__(self, *, answer: bool = False) -> None:
        super().__init__()
        self.answer = answer


class IncompleteAnswer(Exception):
    """An answer is not whole, and the server has no more of it."""


class Backoff:
    """Pauses between attempts, which grow until there is a sign of life.

    With `attempts`, gives up after that many; without, after `limits.reconnect_timeout` seconds
    without a sign of life.
    """

    def __init__(self, attempts: int | None = None) -> None:
        self._attempts = attempts
        self.reset()

    def reset(self) -> None:
        """There is a sign of life: the next failure counts as the first."""
        self.failures = 0
        self._alive = time.monotonic()

    async def wait(self, error: Exception) -> None:
        """Pause after an attempt that failed. Raises its `error` to give up."""
        pause = limits.backoff[min(self.failures, len(limits.backoff) - 1)]
        self.failures += 1
        if self._attempts:
            is_last = self.failures >= self._attempts
        else:
            left = self._alive + limits.reconnect_timeout - time.monotonic()
            is_last, pause = left <= 0, min(pause, left)
        if is_last:
            raise error
        await asyncio.sleep(pause)


class Client:
    """Calls to chat servers: the connections, sessions and tasks of one event loop."""

    def __init__(self) -> None:
        self.sessions = Sessions(self)
        self.models: dict[str, str] = {}  # conversation id -> its model at the server
        self.stops: set[asyncio.Task[Any]] = set()  # which the end of the process waits for
        self._http = _open_session()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._refreshing: asyncio.Task[Catalogue] | None = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cancel what runs beside, and close the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.close()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` beside the turn. If nobody awaits it, its exception is discarded."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Seen, so asyncio does not report it.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return task

    def spawn_stop(self, stop: Coroutine[Any, Any, object]) -> None:
        """Tell the server to stop a run, also when the turn or the process ends meanwhile."""
        task = self.spawn(stop)
        self.stops.add(task)
        task.add_done_callback(self.stops.discard)

    def open(
        self,
        credentials: Credentials,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str = "application/json",
        *,
        stream: bool = True,
        max_bytes: int = STREAM_LIMIT,
    ) -> Exchange:
        """Begin an exchange, with the latest session. `path` follows the server's address."""
        server, cookies = credentials.server, self.sessions.current(credentials).cookies
        browser = impersonated_browser()
        headers: dict[str, str | None] = {
            "Accept": "*/*",  # one that prefers HTML gets 405 and a page
            "Origin": server.origin,  # another, or none, gets 403
            "User-Agent": "llm-huggingchat",
        }
        options: dict[str, Any] = {
            "method": method,
            "timeout": 0,  # curl's does not bound the silence between chunks
            # A compressor could hold the events of a stream back.
            "accept_encoding": "identity" if stream else "gzip, deflate, br",
        }
        if browser:
            headers = browser_headers(server, method)
            options["impersonate"] = browser
            if not stream:
                options["accept_encoding"] = None  # its own
            if server.url.startswith("http:"):
                options["http_version"] = "v1"  # no browser asks for HTTP/2 there
        if cookies:
            headers["Cookie"] = cookies.header()
        if body is not None:
            headers |= {"Content-Type": content_type, "Content-Length": str(len(body))}
        if server.is_loopback:
            options["proxies"] = {"all": ""}  # plain http must not leave this machine
        return Exchange(self._http, server.url + path, body, max_bytes, headers=headers, **options)

    def download(self, url: str, max_bytes: int) -> Exchange:
        """Begin to fetch a file of the web, wherever redirects lead. No cookies are sent."""
        options = {"method": "GET", "allow_redirects": True, "max_redirects": 3, "timeout": 0}
        browser = impersonated_browser()
        return Exchange(self._http, url, None, max_bytes, impersonate=browser, **options)

    async def call(
        self,
        credentials: Credentials,
        method: str,
        path: str,
        value: Any = None,
        *,
        content_type: str = "application/json",
        idempotent: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - for all attempts together
        max_bytes: int = JSON_LIMIT,
        into: IO[bytes] | None = None,
    ) -> HttpResponse:
        """One call, tried again where that can help.

        One that is not `idempotent` reaches the server once at most. `value` is sent as JSON,
        bytes as they are. `timeout` bounds the silence of all attempts together, by default
        `limits.call_timeout`; while a file is written `into`, that between two pieces of it.
        Raises ConnectionLost, HttpError for any status but 200, NotFound for a conversation that
        is not there, HuggingChatError.
        """
        timeout = timeout or limits.call_timeout
        deadline = time.monotonic() + timeout
        body = value
        if value is not None and not isinstance(value, bytes):
            body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        credentials = await self.sessions.ready(credentials)
        backoff, renewed = Backoff(limits.max_attempts), False
        while True:
            exchange = self.open(
                credentials, method, path, body, content_type, stream=False, max_bytes=max_bytes
            )
            try:
                silence = timeout if into else deadline - time.monotonic()
                return await exchange.whole(silence, into)
            except HttpError as error:
                if not renewed and await self.sessions.renew_after(error, credentials, path):
                    renewed = True
                    continue
                if is_missing(path, error.response):
                    raise NotFound from None
                if not idempotent or error.response.status not in (502, 503):
                    raise
                await backoff.wait(error)
            except ConnectionLost as lost:
                if lost.silent or (lost.sent and not idempotent):
                    raise
                await backoff.wait(lost)

    async def get(self, credentials: Credentials, path: str, type: Any, **options: Any) -> Any:
        """The superjson value at `path`, checked against `type`. Raises what `call` does."""
        response = await self.call(credentials, "GET", path, **options)
        return read_body(response, Envelope[type], credentials.server).json

    async def conversation(
        self, credentials: Credentials, id: str, type: Any = Conversation[StoredMessage]
    ) -> Any:
        """A conversation with its messages, or only the fields that `type` has.

        Raises NotFound, and what `get` does: 400 is a malformed id, 403 another account's
        conversation, 404 a deleted one.
        """
        try:
            return await self.get(credentials, api_path(id), type, max_bytes=CONVERSATION_LIMIT)
        except HttpError as error:
            if error.response.status == 400:
                raise NotFound from None
            raise

    async def user(self, credentials: Credentials) -> str:
        """The name of the account that is logged in, as it may be shown; "" if there is none."""
        user = await self.get(credentials, "/api/v2/user", dict[str, Any] | None) or {}
        return one_line(user.get("username") or user.get("email") or user.get("id") or "", 80)

    async def feature_flags(self, credentials: Credentials) -> dict[str, Any]:
        """What the server offers, by its own names; no login is needed."""
        path = "/api/v2/feature-flags"
        return cast("dict[str, Any]", await self.get(credentials.public, path, dict[str, Any]))

    async def mcp_servers(self, credentials: Credentials) -> list[McpServer]:
        """The tool servers that the chat server offers. This answer is plain JSON."""
        response = await self.call(credentials, "GET", "/api/mcp/servers")
        return cast("list[McpServer]", read_body(response, list[McpServer], credentials.server))

    async def has_accounts(self, credentials: Credentials) -> bool:
        """Whether the server has accounts at all."""
        return (await self.feature_flags(credentials)).get("loginEnabled") is not False

    def refresh_if_old(self, credentials: Credentials) -> None:
        """Refresh the cached catalogue beside what goes on, if that is due."""
        idle = self._refreshing is None or self._refreshing.done()
        if idle and load_catalogue(credentials.server.url).is_old:
            self._refreshing = self.spawn(refresh_catalogue(self, credentials))


async def refresh_catalogue(client: Client, credentials: Credentials) -> Catalogue:
    """Fetch the server's models and cache them; no login is needed, so none is sent."""
    url = credentials.server.url
    try:
        catalogue = read_catalogue(await client.get(credentials.public, "/api/v2/models", Any))
    except ValueError as error:
        raise HuggingChatError(
            f"{url} lists no model that can be used ({error}). "
            f"Is {SERVER_VARIABLE} the address of a chat-ui server?"
        ) from None
    await asyncio.to_thread(keep_catalogue, url, catalogue.models)
    return catalogue


async def wait_until_stored(client: Client, credentials: Credentials, id: str) -> str:
    """Wait until the conversation's newest run is stored: how its log says that it ended.

    chat-ui (src/routes/conversation/[id]/stream) follows the newest run when none is
    named. Beyond its last event nothing is repeated: there is a heartbeat, and the end.
    The wait ends with "" where the server refuses (3xx, 4xx), and after `limits.store_timeout`
    seconds: where chat-ui's last write has failed, the heartbeat never ends. Raises ConnectionLost.
    """
    path = f"{chat_path(id)}/stream?fromSeq={PAST_END}"
    credentials = await client.sessions.ready(credentials)
    backoff = Backoff()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.store_timeout):
            while True:
                try:
                    return await _log_end(client, credentials, path, backoff)
                except ConnectionLost as lost:
                    await backoff.wait(lost)
    return ""


async def _log_end(client: Client, credentials: Credentials, path: str, backoff: Backoff) -> str:
    """How a log says that its run ended; "" where the server refuses. Raises ConnectionLost."""
    decoder = EventStreamDecoder()
    async with client.open(credentials, "GET", path) as exchange:
        while chunk := await exchange.read(limits.read_timeout):
            for event in decoder.feed(chunk):
                backoff.reset()
                if isinstance(event, LogEnd):
                    return event.status
        error = HttpError(exchange.response)
    refused = 300 <= error.response.status < 500
    if refused and not await client.sessions.renew_after(error, credentials, path):
        return ""
    raise ConnectionLost("it does not answer", sent=True)


def read_body(response: HttpResponse, type: Any, server: Server) -> Any:
    """The JSON of a response. Raises HuggingChatError when it is not what chat-ui sends."""
    try:
        return decode(response.body, type)
    except ValueError as error:
        raise HuggingChatError(
            f"{server.host} gave an answer that is not a chat-ui server's: {one_line(error, 200)}. "
            f"Is {SERVER_VARIABLE} right?"
        ) from None


async def concurrently(work: Callable[[E], Coroutine[Any, Any, T]], items: Iterable[E]) -> list[T]:
    """What `work` gives for each item, a few at a time. Where one fails, the rest is cancelled."""
    free = asyncio.Semaphore(CONCURRENCY)

    async def work_at(item: E) -> T:
        async with free:
            return await work(item)

    tasks = [asyncio.create_task(work_at(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- errors: what went wrong in a call, in words -------------------------------------


def model_error(
    error: ConnectionLost | HttpError | NotFound | IncompleteAnswer,
    credentials: Credentials,
    *,
    model: str = "",
    page: str = "",
    what: str = "the request",
) -> HuggingChatError:
    """The error that tells a person what `error` means and what to do next.

    `page` is the conversation's address; `what` was sent, where it may be too large.
    """
    server, host = credentials.server, credentials.server.host
    where = f" The conversation is at {page}" if page else ""
    if isinstance(error, HttpError):
        return _http_error(error.response, credentials, model, where, what)
    if isinstance(error, IncompleteAnswer):
        return HuggingChatError(f"{error}{where}")
    if isinstance(error, NotFound):
        what = "answer to continue after" if error.answer else "conversation"
        return HuggingChatError(f"There is no such {what} on {host} for this account.")
    verb = "No answer from" if error.sent else "No connection to"
    hint = "" if server.is_service else f" {SERVER_VARIABLE} names that server."
    return HuggingChatError(f"{verb} {host}: {error}.{hint}{where}")


@contextlib.contextmanager
def model_errors(credentials: Credentials) -> Iterator[None]:
    """Raises what goes wrong in calls to the server as HuggingChatError."""
    try:
        yield
    except (ConnectionLost, HttpError, NotFound) as error:
        raise model_error(error, credentials) from None


def _http_error(
    response: HttpResponse, credentials: Credentials, model: str, where: str, what: str
) -> HuggingChatError:
    server, host, status = credentials.server, credentials.server.host, response.status
    if response.is_firewall:
        return HuggingChatError(
            f"A firewall in front of {host} refused this client (HTTP {status}). Name another "
            f"browser in {BROWSER_VARIABLE}, such as chrome or firefox;\nor open {server.url} in "
            "your browser and log in with its cookie 'aws-waf-token' too: llm huggingchat login"
        )
    if response.wants_login:
        return login_error(server, credentials.cookies)
    said = credentials.without_cookies(response.message).rstrip(".")
    reason = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    words = {
        200: f"{host} answered with a web page instead of a chat. Is there a proxy or a login page "
        f"in between, or is {SERVER_VARIABLE} wrong?",
        400: f"{host} refused {model or 'the request'} ({reason}). If it does not know the model, "
        "run: llm huggingchat refresh",
        404: f"{server.url} has no such page ({reason}). Is {SERVER_VARIABLE} the address of a "
        f"chat-ui server?{where}",
        410: f"The model {model or 'of this conversation'} is no longer offered. "
        "Run: llm huggingchat refresh, and continue with another: -m MODEL",
        413: f"{host} refused {what} as too large ({reason}). HuggingChat takes 15 MB a message"
        + (", of which some 11 MB of files, and 10 MB a file." if "files" in what else "."),
        429: f"{host} has reached a limit ({reason}).{where}",
    }
    text = words.get(status, f"{host} answered {reason}.{where}")
    if status in REDIRECTS:
        target = re.match(r"(https?://)(?:[^/?#]*@)?([^/?#]+)", response.header("location"))
        address = one_line(target[1] + target[2], 200) if target else "another page"
        text = (
            f"{host} redirects to {address} (HTTP {status}). Cookies go to the configured host "
            f"alone, so this is not followed. Is {SERVER_VARIABLE} right?"
        )
    elif response.is_rate_limit:
        wait = f", or let prompts wait: {WAIT_VARIABLE}=600 (seconds)" if model else ""
        text = f"{host} asks for a pause ({reason}). Try again later{wait}."
    elif status >= 500:
        text = f"{host} has a problem of its own ({reason}). Try again later.{where}"
    return HuggingChatError(text)


def failure_error(model: str, failure: StatusUpdate, credentials: Credentials) -> HuggingChatError:
    """The model did not answer: what it, or its provider, says."""
    message = credentials.without_cookies(one_line(failure.message or ""))
    if "no output was generated" in message.lower():
        return HuggingChatError(f"{model} gave an empty answer. Try again, or another model.")
    status = f" (HTTP {failure.status_code})" if failure.status_code else ""
    retry = " Try again later." if failure.status_code in (429, 500, 502, 503, 504) else ""
    return HuggingChatError(f"{model} failed{status}: {message or 'no reason given'}.{retry}")


# --- attachments: files -> what chat-ui takes of them --------------------------------


class UploadKind(msgspec.Struct, frozen=True):
    """A kind of file that may be attached, of at most `limit` bytes.

    `words` say for people what it is. `types`: type as llm or a server calls it -> type as
    chat-ui takes it.
    """

    words: str
    types: dict[str, str]
    limit: int = FILE_LIMIT


TEXTS = UploadKind(
    "text, JSON, XML, CSV",
    _synonyms(
        "text/plain: text/plain; text/markdown: text/markdown; text/html: text/html;"
        "text/csv: text/csv; text/xml: text/xml; application/json: application/json;"
        "application/xml: application/xml; application/csv: application/csv"
    ),
)
IMAGES = UploadKind(
    "images as png, jpeg, webp, gif",
    _synonyms(
        "image/png: image/png image/x-png; image/jpeg: image/jpeg image/jpg image/pjpeg;"
        "image/webp: image/webp; image/gif: image/gif"
    ),
)
# What chat-ui transcribes. In a container that may also hold a picture, it is the sound that
# counts; 3gpp is what the voice recorders of many telephones write.
RECORDINGS = UploadKind(
    "recordings as mp3, wav, flac, ogg, webm, mp4, m4a",
    _synonyms(
        """
        audio/flac: audio/flac audio/x-flac;
        audio/mp4: audio/mp4 audio/m4a audio/mp4a-latm audio/x-m4a audio/3gpp video/3gpp video/mp4;
        audio/mpeg: audio/mpeg audio/mp3 audio/mpeg3 audio/x-mp3 audio/x-mpeg;
        audio/ogg: audio/ogg audio/opus application/ogg video/ogg;
        audio/wav: audio/wav audio/vnd.wave audio/wave audio/x-wav;
        audio/webm: audio/webm video/webm
        """
    ),
    AUDIO_LIMIT,
)
UPLOAD_KINDS = (TEXTS, IMAGES, RECORDINGS)
_ENDINGS = {".m4a": "audio/mp4", ".oga": "audio/ogg", ".opus": "audio/ogg", ".weba": "audio/webm"}
BODY_LIMIT = 15 * 1024 * 1024  # bytes of a request: chat-ui's BODY_SIZE_LIMIT, as it is shipped

# Beginnings of text that `file-type` 21, the library that chat-ui asks for the type of a file,
# takes for something else; chat-ui then drops the file without a word.
_MISREAD = rb"""(?xs)
    BM|BZh|8BPS|070707|AC1|BLENDER|Cr24|Creative\ Voice\ File|DRACO|DSD\ |Extended\ Module:|FLIF
    |FLV\x01|FORM|FUJIFILMCCD-RAW|GIF|ID3|IMPM|ISc\(|ITSF|Kaydara|LZIP|MAC\ |MP\+|MPCK|MSCF|MThd
    |II\*|MZ|NES\x1a|Obj\x01|OggS|PAR[1E]|PK|REGEDIT4\r\n|RIFF|SQLi|[CF]WS|fLaC|gimp\ xcf\ |icns
    |regf|solid\ |ttcf|wOF[F2]|wvpk|!<arch>|!BDN|\#!AMR|\$FL[23]|%!|%PDF
    |-----BEGIN\ PGP\ MESSAGE-----|\.RMF|\{\\rtf
    |[\x01-\x08\x0b\x0c\x0e-\x1f]|\x7fELF|x\x01|`\xea|~[\x10\x18]\x04
    |..-l[hz][0-9sd]-|.{4}(?:free|ftyp|mdat|moov|wide)|.{7}\*\*ACE|.{36}acsp|.{44}SCRM
    |.{60}BOOKMOBI|.{128}DICM|.{257}ustar|G.{187}G|.{4}G.{191}G
"""


class Upload(msgspec.Struct, frozen=True):
    """A file to send, by its type as chat-ui takes it.

    `id` is what llm's logs know the attachment by.
    """

    name: str
    type: str
    content: bytes
    id: str = ""

    @property
    def is_recording(self) -> bool:
        """Whether it is to be transcribed, instead of sent."""
        return self.type in RECORDINGS.types


def multipart(data: dict[str, Any], uploads: Iterable[Upload]) -> tuple[bytes, str]:
    """A message's body and its content type: `data` as JSON, and each file in base64.

    Raises llm.ModelError for a body that chat-ui would refuse as too large.
    """
    boundary = uuid.uuid4().hex
    text = to_json(data).encode()
    parts = [('name="data"', text)]
    for upload in uploads:
        head = f'name="files"; filename="base64;{upload.name}"\r\nContent-Type: {upload.type}'
        parts.append((head, base64.b64encode(upload.content)))
    body = b""
    for head, content in parts:
        body += f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode()
        body += content + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    if len(body) > BODY_LIMIT:
        size = _megabytes(len(body) - len(text))
        files = f" and {size} of files (in base64)" if len(parts) > 1 else ""
        raise HuggingChatError(
            f"The message is too large: {_megabytes(len(text))} of text{files}, where the server "
            f"takes {_megabytes(BODY_LIMIT)} in all. Shorten it, or send it in several messages."
        )
    return body, f"multipart/form-data; boundary={boundary}"


def _megabytes(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MB"


def mime_type(content_type: str | None) -> str:
    """The type without parameters, in lower case; "" for what is no type."""
    type = (content_type or "").partition(";")[0].strip().lower()
    return type if re.fullmatch(r"[\w.+-]+/[\w.+-]+", type, re.ASCII) else ""


def upload_name(attachment: llm.Attachment, type: str) -> str:
    """A safe file name: no path, no control characters, nothing that ends a header."""
    name = re.split(r"[/\\]", attachment_name(attachment))[-1]
    name = re.sub(r'[";\r\n]', "_", one_line(name, 5_000)).strip(". ") or "attachment"
    if "." not in name:
        name += mimetypes.guess_extension(type) or ""
    return name[-100:]  # with its ending


def guessed_type(attachment: llm.Attachment, content: bytes) -> str:
    """The type that an attachment's name says, or its content."""
    name = upload_name(attachment, "")
    ending = pathlib.PurePath(name).suffix.lower()
    type = _ENDINGS.get(ending) or mimetypes.guess_type(name)[0]
    type = type or llm.Attachment(content=content).resolve_type()
    if not type and len(content) > 1 and content[0] == 0xFF and content[1] & 0xE6 == 0xE2:
        type = "audio/mpeg"  # a frame of MPEG's layer III: how an MP3 without an ID3 tag begins
    return type or "application/octet-stream"


def upload_of(
    attachment: llm.Attachment,
    content: bytes,
    content_type: str,
    kinds: tuple[UploadKind, ...],
    taker: str,
) -> Upload:
    """An attachment as chat-ui takes it. Raises HuggingChatError unless it is one of `kinds`.

    Text is text, whatever its type is said to be, and arrives as UTF-8. An empty line before
    it keeps chat-ui from taking it for something else. `taker` is named in errors.
    """
    type, name = mime_type(content_type), shown_name(attachment)
    charset = re.search(r";\s*charset=\"?([\w.-]+)", content_type, re.IGNORECASE)
    is_media = type.startswith(("image/", "audio/", "video/", "font/"))
    text = decode_text(content, charset[1] if charset else "", guess=not is_media)
    said_text = type.startswith("text/") or type in TEXTS.types
    kind = next((each for each in UPLOAD_KINDS if type in each.types), None)
    if text is not None and not content.startswith(b"%PDF-"):
        content = text.encode()
        while re.match(_MISREAD, content):
            content = b"\n" + content
        kind, type = TEXTS, type if said_text else "text/plain"
    elif said_text:
        raise HuggingChatError(
            f"{name} is {one_line(type, 60)}, but its encoding is unknown. Save it as UTF-8."
        )
    if kind is None or kind not in kinds:
        takes = "; ".join(each.words for each in kinds)
        words = f"{name} is {one_line(type, 60)}; {taker} takes {takes}."
        if kind is IMAGES and TEXTS in kinds:
            words = (
                f"{taker} takes no images ({name}). Try -m hf-vision, or see which models do: "
                "llm huggingchat models"
            )
        raise HuggingChatError(words)
    if len(content) > kind.limit:
        raise too_large(name, kind.limit)
    type = kind.types.get(type, type)
    return Upload(upload_name(attachment, type), type, content, attachment_id(attachment))


def too_large(name: str, most: int) -> llm.ModelError:
    """The error for a file of more than `most` bytes."""
    return HuggingChatError(f"{name} has more than {most >> 20} MB, the most that can be sent.")


def read_file(attachment: llm.Attachment) -> bytes:
    """What is in an attachment's file, up to AUDIO_LIMIT + 1 bytes: enough to see it is too large.

    Raises HuggingChatError, also for a pipe: what is read of it is gone, and llm reads it again.
    """
    path = pathlib.Path(attachment.path or "")
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is not a file")
        with open(path, "rb") as file:
            return file.read(AUDIO_LIMIT + 1)
    except OSError as error:
        why = os_error_text(error)
        raise HuggingChatError(f"{shown_name(attachment)} cannot be read: {why}") from None


async def download_attachment(client: Client, attachment: llm.Attachment) -> tuple[bytes, str]:
    """An attachment from the web, fetched without cookies, and its content type.

    Raises HuggingChatError.
    """
    url = attachment.url or ""
    shown = one_line(url, 200)
    if not re.fullmatch(r"(?is)https?://[^/\ud800-\udfff][^\ud800-\udfff]*", url):
        raise HuggingChatError(f"{shown!r} cannot be fetched: it is not a http or https address.")
    try:
        response = await client.download(url, AUDIO_LIMIT).whole(limits.call_timeout)
    except TooLarge:
        raise too_large(shown_name(attachment), AUDIO_LIMIT) from None
    except (ConnectionLost, HttpError) as error:
        raise HuggingChatError(f"{shown} cannot be fetched: {error}") from None
    return response.body, response.header("content-type")


async def read_attachment(client: Client, attachment: llm.Attachment) -> tuple[bytes, str]:
    """An attachment's bytes and content type, which is found out if nothing says it.

    Raises HuggingChatError for one that cannot be read or is empty.
    """
    content, content_type = attachment.content or b"", attachment.type or ""
    if not content and attachment.path:
        content = read_file(attachment)
    elif not content and attachment.url:
        content, sent_type = await download_attachment(client, attachment)
        same = mime_type(sent_type) == mime_type(content_type)  # it alone has the charset
        content_type = sent_type if same or not content_type else content_type
    if not content:
        raise HuggingChatError(f"{shown_name(attachment)} is empty.")
    if mime_type(content_type) in ("", "application/octet-stream", "binary/octet-stream"):
        content_type = guessed_type(attachment, content)
    return content, content_type


# Recordings


async def transcribe_all(
    client: Client, credentials: Credentials, recordings: list[Upload], note: Callable[[str], None]
) -> list[str]:
    """What is said in each recording; `note` says when that takes long.

    chat-ui (src/routes/api/transcribe) waits 60 seconds for the service that it asks, and hands
    on its status and its words. Raises what `client.call` does, and HuggingChatError when the
    server does not transcribe, or hears nothing.
    """
    server = credentials.server

    async def transcribe_one(recording: Upload) -> str:
        words = f"{recording.name} is being transcribed"
        noting = asyncio.get_running_loop().call_later(sum(limits.backoff[:4]), note, words)
        try:
            response = await client.call(
                credentials,
                "POST",
                "/api/transcribe",
                recording.content,
                content_type=recording.type,
                timeout=limits.transcribe_timeout,
            )
        except HttpError as error:
            said = credentials.without_cookies(error.response.message)
            if said.startswith("Transcription"):  # 401 is not the chat's then, but the service's
                words = f"{server.host} could not transcribe {recording.name} ({error}): {said}"
                raise HuggingChatError(words) from None
            raise
        finally:
            noting.cancel()
        said = read_body(response, dict[str, Any], server).get("text")
        if not (text := _string(said).strip()):
            raise HuggingChatError(f"{server.host} heard no words in {recording.name}.")
        return text

    flags = await client.feature_flags(credentials)
    if flags.get("transcriptionEnabled") is not True:
        why = "does not transcribe recordings: it has no model for that."
        raise HuggingChatError(f"{server.host} {why}")
    return await concurrently(transcribe_one, recordings)


# --- run: send a message and follow its run until it is stored ----------------------------

NO_OUTPUT = StatusUpdate("error", "No output was generated")


class RateLimiter:
    """When messages may go to a server that asks for a pause, for all runs of this process.

    chat-ui counts the messages of a minute, refused ones too. So after a refusal nobody sends
    for a minute; then one run tries, and the others follow one by one. Other processes are not
    known here, so pauses grow at random while attempts fail. Times come from a monotonic clock.
    """

    def __init__(self) -> None:
        self._opens = -math.inf
        self._trial = ""  # the generation id of the run that may try
        self._failures = 0
        self.refusal = HttpResponse(429)  # the latest

    def pause(self, id: str, now: float) -> float:
        """Seconds after which the run `id` is to ask again; 0 when it may send, now."""
        if now < self._opens:
            return self._opens - now
        if now < self._opens + limits.rate_window:
            if self._trial not in ("", id):
                return limits.backoff[0]
            self._trial = id
        return 0.0

    async def wait(self, target: RunTarget, since: float) -> None:
        """Wait until a message that has been waiting since `since` may be sent.

        Raises HttpError when that takes longer than the message may wait.
        """
        while pause := self.pause(target.generation_id, now := time.monotonic()):
            if now + pause > since + target.max_wait:
                raise HttpError(self.refusal)
            await asyncio.sleep(pause)

    def refused(self, id: str, refusal: HttpResponse, now: float) -> bool:
        """The server refused the message of the run `id`. Returns whether that is news."""
        news, pause = now >= self._opens and self._trial != id, limits.rate_window
        self.refusal = refusal
        if self._trial == id:
            self._failures += 1
            pause *= random.uniform(1, min(2 ** (self._failures - 1), 8))
            self._trial = ""
        self._opens = max(self._opens, now + pause)
        return news

    def accepted(self, id: str) -> None:
        """The server accepted the message of the run `id`."""
        self._failures = 0
        self.leave(id)

    def leave(self, id: str) -> None:
        """The run `id` has sent, or does not send any more."""
        if self._trial == id:
            self._trial = ""


# By the server's address, for all messages that may wait.
_rate_limiters: defaultdict[str, RateLimiter] = defaultdict(RateLimiter)


class RunProgress:
    """How far a run has come, read off its updates.

    `outcome` is a FinalAnswer, a failed StatusUpdate, or the question that ended the run; None
    until it is known. `answered` is set when it is, or when it never will be. `finished`: the
    end of the stream means that all is stored. `broke_off`: the model did not finish its answer.
    """

    def __init__(self) -> None:
        self.answered = asyncio.Event()
        self.outcome: FinalAnswer | StatusUpdate | ElicitationUpdate | None = None
        self.begun = False  # something of an answer came
        self.finished = False
        self.broke_off = False
        self._questions: dict[str, ElicitationUpdate] = {}  # that are open

    def observe(self, update: Update) -> Update | None:
        """What an update means for the answer; None if it means nothing."""
        ended = isinstance(update, StatusUpdate) and update.status in ("finished", "error")
        self.finished = self.finished or ended
        if self.outcome:
            return update if isinstance(update, TitleUpdate | RouterMetadata) else None
        match update:
            case FinalAnswer():
                # An empty answer is not the end: the reason follows as a failure.
                said = update.text or update.interrupted or self.begun
                return self.end(update) if said else None
            case StatusUpdate(status="error"):
                return self.end(update)
            case StatusUpdate(status="finished") if self._questions:
                return self.end(next(iter(self._questions.values())))
            case StatusUpdate(status="finished"):
                self.broke_off = self.begun
                return self.end(FinalAnswer("", True) if self.begun else NO_OUTPUT)
            case ElicitationUpdate(subtype="request"):
                self._questions[update.id] = update
            case ElicitationUpdate():
                self._questions.pop(update.id, None)
            case StreamUpdate() | ReasoningUpdate() | ToolUpdate() | FileUpdate():
                self.begun = self.begun or is_content(update)
            case StatusUpdate() | TitleUpdate() | RouterMetadata():
                pass
            case _:
                assert_never(update)
        return update

    def end(self, outcome: FinalAnswer | StatusUpdate | ElicitationUpdate) -> Update:
        """Nothing more comes of the answer."""
        self.outcome = outcome
        self.answered.set()
        return outcome


class RunTarget(msgspec.Struct, frozen=True):
    """A run's message, and where it goes."""

    credentials: Credentials
    conversation_id: str
    generation_id: str  # an idempotency key, by which the message is found
    parent_id: str | None  # the message that it continues after; None in a new conversation
    body: bytes
    content_type: str
    max_wait: float = 0.0  # seconds that it may wait when the server asks for a pause


class RunState(enum.Enum):
    """What is known of a run's message, and so what is to be done next."""

    UNSENT = enum.auto()  # the server does not have it: send it
    UNCERTAIN = enum.auto()  # the server may have it: look for it in the conversation
    ACCEPTED = enum.auto()  # the server has it: follow the run's log
    UNLOGGED = enum.auto()  # the log is of no use: read the answer in the conversation
    OVER = enum.auto()  # the answer is stored, or the conversation is gone


async def has_arrived(
    client: Client, target: RunTarget, problem: ConnectionLost | HttpError | None
) -> bool:
    """Whether the message is in the conversation, though `problem` came instead of an answer.

    It may still be on its way, so this looks twice, or longer after silence. Raises `problem`
    or NotFound where sending it again cannot help, else what `client.conversation` does.
    """
    silent = isinstance(problem, ConnectionLost) and problem.silent
    end = time.monotonic() + (limits.reconnect_timeout if silent else 0.0)
    found: Conversation[MessageIds]
    for looks in itertools.count(1):
        found = await client.conversation(
            target.credentials, target.conversation_id, Conversation[MessageIds]
        )
        if found.answer_of(target.generation_id):
            return True
        if looks >= 2 and time.monotonic() >= end:
            break
        await asyncio.sleep(limits.look_again)
    if isinstance(problem, HttpError) and problem.response.status == 500:
        # That is what chat-ui answers when the parent is missing.
        there = target.parent_id in (None, *(message.id for message in found.messages))
        raise problem if there else NotFound(answer=True)
    return False


class Run:
    """One run: its message is sent once, and followed until its answer is stored.

    Updates go to `on_update` as they come; `on_rewind` is called before they come again from
    the first. Notes go to `note`.
    """

    def __init__(
        self,
        client: Client,
        target: RunTarget,
        on_update: Callable[[Update], None],
        on_rewind: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self._client = client
        self._target = target
        self._on_update = on_update
        self._on_rewind = on_rewind
        self._note = note
        self.progress = RunProgress()
        self.state = RunState.UNSENT
        self._problem: ConnectionLost | HttpError | None = None  # of the last attempt to send
        self.attempts = Backoff(limits.max_attempts)  # to send
        self._backoff = Backoff()  # while following
        self._seq = 0  # of the log's last event
        self._stored_count = -1
        self._deadline = asyncio.timeout(None)
        self._started = time.monotonic()
        shared = _rate_limiters[target.credentials.server.url]
        self._limiter = shared if target.max_wait else RateLimiter()

    @property
    def may_send_next(self) -> bool:
        """Whether it is safe to send the conversation's next message."""
        return self.state in (RunState.UNSENT, RunState.OVER)

    async def drive(self) -> None:
        """Send the message and follow its run, until it is stored.

        Raises ConnectionLost, HttpError, NotFound, IncompleteAnswer, HuggingChatError. After the
        outcome is known, it waits for `limits.store_timeout` seconds at most.
        """
        with contextlib.suppress(TimeoutError):  # the next turn waits for it
            async with self._deadline:
                while (state := self.state) is not RunState.OVER:
                    await (self._send() if state is RunState.UNSENT else self._step())
                    if self.state is not state:
                        self._backoff.reset()

    async def _send(self) -> None:
        """Try to send the message. Raises what went wrong when another attempt is no use."""
        target, decoder = self._target, JsonLinesDecoder()
        if self._problem:
            await self.attempts.wait(self._problem)
        await self._limiter.wait(target, self._started)
        self.state = RunState.UNCERTAIN
        self._problem = ConnectionLost("it took no message", sent=True)
        try:
            await self._receive(decoder, "POST", "", target.body, target.content_type)
            self._take(decoder.end())
            if self.progress.outcome and self.progress.finished:
                self.state = RunState.OVER
        except ConnectionLost as lost:
            self._problem = lost
            if self.state is RunState.UNCERTAIN and not lost.sent:
                self.state = RunState.UNSENT
        except HttpError as error:
            self._problem = error
            # From 500 on it is a proxy's, or the server's after it has stored the message.
            if error.response.status < 500:
                self.state = RunState.UNSENT
                await self._refused(error)
        except HuggingChatError as error:
            # TooLarge means that the server answered; any other, that no connection was made.
            if self.state is RunState.UNCERTAIN and not isinstance(error, TooLarge):
                self.state = RunState.UNSENT
            raise
        finally:
            self._limiter.leave(target.generation_id)

    async def _refused(self, error: HttpError) -> None:
        """The server does not take the message: raise, unless it may after all."""
        target, response = self._target, error.response
        if response.is_rate_limit and target.max_wait:
            self._problem = None
            if self._limiter.refused(target.generation_id, response, time.monotonic()):
                host, most = target.credentials.server.host, target.max_wait
                self._note(f"{host} asks for a pause; waiting, for {most:.0f} seconds at most")
        elif not await self._client.sessions.renew_after(error, target.credentials):
            raise NotFound if response.is_hidden and target.parent_id else error

    async def _receive(self, decoder: JsonLinesDecoder, method: str, path: str, *body: Any) -> None:
        """Take the updates of a response. Raises HttpError if it is not a stream of updates."""
        credentials, path = self._target.credentials, chat_path(self._target.conversation_id) + path
        async with self._client.open(credentials, method, path, *body) as exchange:
            while chunk := await exchange.read(limits.read_timeout):
                self._take(decoder.feed(chunk))
                if self.state not in (RunState.UNCERTAIN, RunState.ACCEPTED):
                    return
            response = exchange.response
        if response.status != 200 or response.is_html:
            raise HttpError(response)

    def _take(self, updates: list[Update | LogEnd]) -> None:
        """Updates came: they show the run at work, and are passed on."""
        if updates:
            self._backoff.reset()
            if self.state is RunState.UNCERTAIN:
                self.state = RunState.ACCEPTED
                self._limiter.accepted(self._target.generation_id)
        for update in merge_tokens(updates):
            if isinstance(update, LogEnd):  # if it has not told the answer, the store may
                known = self.progress.outcome is not None
                self.state = RunState.OVER if known else RunState.UNLOGGED
            elif observed := self.progress.observe(update):
                self._on_update(observed)
        if self.progress.outcome and self._deadline.when() is None:
            self._deadline.reschedule(asyncio.get_running_loop().time() + limits.store_timeout)

    async def _step(self) -> None:
        """Take the next step after sending; pause if it led nowhere. Raises what ends the run."""
        state = self.state
        try:
            if state is RunState.UNCERTAIN:
                arrived = await has_arrived(self._client, self._target, self._problem)
                self.state = RunState.ACCEPTED if arrived else RunState.UNSENT
            elif state is RunState.ACCEPTED:
                await self._follow()
            else:
                await self._read_store()
        except ConnectionLost:
            pass
        except HttpError as error:
            status, credentials = error.response.status, self._target.credentials
            if error is self._problem:
                self.state = RunState.UNSENT
                raise
            if status == 404 and state is RunState.ACCEPTED:
                self.state = RunState.UNLOGGED  # a server without logs
            elif status < 500 and not await self._client.sessions.renew_after(error, credentials):
                raise
        except NotFound:
            self.state = RunState.UNSENT if state is RunState.UNCERTAIN else RunState.OVER
            raise
        if self.state is state:
            why = f"it did not come back within {limits.reconnect_timeout:.0f} seconds"
            end: Exception = ConnectionLost(why, sent=True)
            if state is RunState.UNLOGGED:
                end = IncompleteAnswer("The answer broke off, and the server has no end of it.")
            await self._backoff.wait(end)

    async def _follow(self) -> None:
        """Follow the run's log from where the last connection broke."""
        start = PAST_END if self.progress.outcome else self._seq
        if start == 0:
            self._on_rewind()
        decoder = EventStreamDecoder(self._seq)
        query = f"generationId={self._target.generation_id}&fromSeq={start}"
        try:
            await self._receive(decoder, "GET", f"/stream?{query}")
        finally:
            self._seq = decoder.seq

    async def _read_store(self) -> None:
        """Take the answer from the conversation, if it is complete there."""
        target, progress = self._target, self.progress
        conversation: Conversation[StoredMessage] = await self._client.conversation(
            target.credentials, target.conversation_id
        )
        stored = conversation.answer_of(target.generation_id)
        if stored is None:
            if progress.begun and not progress.outcome:
                raise IncompleteAnswer("The server lost the answer.")
            self.state = RunState.OVER if progress.outcome else RunState.UNSENT
            self._seq = 0  # a new run has a new log
            self._problem = ConnectionLost("it did not take the message", sent=True)
            return
        answer = stored.replay()
        if not answer.complete and not answer.settled:
            if len(answer.updates) > self._stored_count:
                self._stored_count = len(answer.updates)
                self._backoff.reset()
            return
        if not progress.outcome:
            self._on_rewind()
            self._take([*answer.updates])
        if not progress.outcome:
            self._on_update(progress.end(NO_OUTPUT))
        # chat-ui saves an answer on the way, the whole conversation only at the end.
        if answer.settled:
            self.state = RunState.OVER


def merge_tokens(updates: Iterable[Update | LogEnd]) -> Iterator[Update | LogEnd]:
    """Updates that came at once: tokens that follow each other become one piece of text."""
    for kind, alike in itertools.groupby(updates, key=type):
        if kind is StreamUpdate:
            yield StreamUpdate("".join(cast(StreamUpdate, each).token for each in alike))
        else:
            yield from alike


# --- tools: llm's server-side tools -> what the server is to select -------------------

NOT_LOGGED = "(not logged)"


class HuggingChatTool(llm.ServerSideTool):
    """A tool that runs on the chat server.

    llm logs what a tool's `__init__` gets, and creates the tool from it again for `llm -c`.
    What a header or a query holds may be a secret, so `__init__` gets only the name of one.
    """

    plugin = "llm-huggingchat"
    feature = ""  # what it is for, in words
    # Patterns for the name or the address of a tool server that has it, the surest first.
    patterns: tuple[str, ...] = ()
    arguments: dict[str, Any]  # as given, secrets included

    def __init__(self) -> None:
        super().__init__()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)  # type: ignore[no-untyped-call]
        create = cls.__init__
        # `llm tools` shows the signature: with types in it, not their names in quotes.
        parameters = list(inspect.signature(create, eval_str=True).parameters.values())[1:]
        signature = inspect.Signature(parameters)

        def __init__(self: HuggingChatTool, *args: Any, **kwargs: Any) -> None:
            try:
                self.arguments = signature.bind(*args, **kwargs).arguments
                for name, value in self.arguments.items():
                    msgspec.convert(value, signature.parameters[name].annotation)
            except (TypeError, msgspec.ValidationError) as error:
                usage = f"Usage: {cls.__name__}{signature}"
                raise HuggingChatError(f"{cls.__name__}: {one_line(error)}. {usage}") from None
            create(self, **cls.loggable(self.arguments))

        cls.__signature__ = signature  # type: ignore[attr-defined]
        cls.__init__ = __init__  # type: ignore[method-assign]

    @classmethod
    def loggable(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments without secrets."""
        return arguments


class WebSearch(HuggingChatTool):
    """Search the web, with the chat server's own search."""

    name = "web_search"
    feature = "web search"
    patterns = (r"web.?search", r"search", r"\b(exa|tavily|brave|serper|duckduckgo)\b")


class HuggingFace(HuggingChatTool):
    """Search models, datasets, papers and Spaces on Hugging Face."""

    name = "hugging_face"
    feature = "Hugging Face tools"
    patterns = (r"hugging.?face", r"\bhf\b|\bhf\.co\b")


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
        """The arguments, with only names of secrets."""
        headers = arguments.get("headers") or {}
        shown = {name: _only_names(value) for name, value in headers.items()}
        return arguments | {"url": _loggable_url(arguments["url"]), "headers": shown or None}

    def request(self, server: Server) -> dict[str, Any]:
        """The server for `selectedMcpServers`. Raises HuggingChatError."""
        url = _with_secrets("URL", self.arguments["url"])
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
        except ValueError:
            parts, host = urlsplit(""), ""
        local = server.is_loopback and _is_loopback(host) and parts.scheme in ("http", "https")
        public = host and not _is_private(host) and parts.scheme == "https"
        if "@" in parts.netloc or not (public or local):
            # The rest of the address may be a secret, or all of it.
            given = f", not {one_line(f'{parts.scheme}://{host}', 100)!r}" if host else ""
            raise HuggingChatError(
                "MCP wants the https address of a public server, like https://example.org/mcp"
                f"{given}. Put a user name or password into a header."
            )
        headers = [_header(*header) for header in (self.arguments.get("headers") or {}).items()]
        name = one_line(self.arguments.get("name") or "", 100) or host
        return {"name": name, "url": url, "headers": headers}


def _header(name: str, value: str) -> dict[str, str]:
    """A header for chat-ui, which drops the whole tool for one that HTTP cannot carry."""
    what = f"header {one_line(name, 60)!r}"
    value = _with_secrets(what, value)
    if not re.fullmatch(HTTP_TOKEN, name) or re.search(r"[^\t\x20-\x7e\x80-\xff]", value):
        raise HuggingChatError(
            f"HTTP cannot carry MCP's {what}: a name has letters, digits and hyphens, "
            "and a value is one line of Latin-1 characters."
        )
    return {"key": name, "value": value}


def _with_secrets(what: str, value: str) -> str:
    """`value` with each $NAME replaced by what it stands for. Raises HuggingChatError."""
    if NOT_LOGGED in value:
        raise HuggingChatError(
            f"The value of MCP's {what} is not kept in the logs. "
            "Give -T again, or write it as $NAME of an environment variable or llm key."
        )

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        own = name == KEY_VARIABLE or name.startswith("huggingchat")
        found = None if own else os.environ.get(name) or stored_key(name)
        if found is None:
            why = "the chat's own cookies go to no other server" if own else "there is none"
            raise HuggingChatError(
                f"MCP's {what} names the environment variable or llm key ${name}: {why}."
            )
        return found

    return re.sub(r"\$(\w+)", value_of, value)


def _only_names(value: str) -> str:
    """A value for the log: itself if it only names a secret."""
    return value if re.fullmatch(r"((Bearer |Basic |Token )?\$\w+)?", value) else NOT_LOGGED


def _loggable_url(url: str) -> str:
    """An address for the log: only names of secrets in its query; nothing if it is no address."""
    if not re.match(r"https?://[^/?#@\\]+([/?]|$)", url) or "#" in url:
        return _only_names(url)
    address, mark, query = url.partition("?")
    pairs = [p.partition("=") if "=" in p.rstrip("=") else ("", "", p) for p in query.split("&")]
    return address + mark + "&".join(name + equals + _only_names(v) for name, equals, v in pairs)


def select_tools(
    tools: Iterable[llm.ServerSideTool], offered: Iterable[McpServer], server: Server
) -> tuple[list[str], list[dict[str, Any]]]:
    """chat-ui's `selectedMcpServerNames` and `selectedMcpServers`.

    `offered` are the tool servers that `server` has itself. Of two servers with one name
    chat-ui keeps the last, and it drops a server given by address that is not among the names.
    Raises HuggingChatError for a tool that is not there, and for an MCP server that cannot be
    used.
    """
    names: list[str] = []
    servers: list[dict[str, Any]] = []
    for tool in tools:
        if isinstance(tool, MCP) and (request := tool.request(server)) not in servers:
            servers.append(request)
        elif isinstance(tool, WebSearch | HuggingFace):
            names.append(_offering(tool, [each for each in offered if each.name]))
    names = list(dict.fromkeys(names))
    for request in servers:
        name, numbers = request["name"], itertools.count(2)
        while request["name"] in names:
            request["name"] = f"{name} {next(numbers)}"
        names.append(request["name"])
    return names, servers


def _offering(tool: HuggingChatTool, offered: list[McpServer]) -> str:
    """The name of the server that has the tool. Raises HuggingChatError if there is none."""
    for attribute, pattern in itertools.product(("name", "url"), tool.patterns):
        for server in offered:
            if re.search(pattern, getattr(server, attribute), re.IGNORECASE):
                return server.name
    there = ", ".join(one_line(server.name, 60) for server in offered) or "none"
    raise HuggingChatError(f"This server offers no {tool.feature}. Its tool servers: {there}.")


# --- turn: one turn of a conversation --------------------------------------------------------


class TurnRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a turn needs."""

    credentials: Credentials
    model: ModelInfo
    plan: Plan
    fresh_plan: Callable[[], Plan] | None  # makes one for when the conversation is gone
    tools: tuple[llm.ServerSideTool, ...] = ()
    uploads: tuple[Upload, ...] = ()
    max_wait: float = 0.0  # seconds that it may wait when the server asks for a pause


class TurnResult(msgspec.Struct):
    """What became of a turn; filled while it runs."""

    server: str
    model: str
    conversation_id: str = ""
    message_id: str | None = None
    generation_id: str | None = None
    title: str = ""
    router: RouterMetadata = msgspec.field(default_factory=RouterMetadata)
    interrupted: bool = False
    instructed: SentInstructions = SentInstructions()
    calls: list[llm.ToolCall] = []

    @property
    def page(self) -> str:
        """The conversation's web page; "" before there is one."""
        return Server(self.server).page(self.conversation_id) if self.conversation_id else ""

    def metadata(self, **more: object) -> dict[str, Any]:
        """The answer's ids, under llm's name for this plugin; and of `more` what is known."""
        names = ("conversation_id", "message_id", "generation_id", "server", "model")
        known = {name: getattr(self, name) for name in names} | more
        return {"huggingchat": {name: value for name, value in known.items() if value}}

    def response_json(self) -> dict[str, Any]:
        """What llm logs of the response beside its parts."""
        return self.metadata(
            url=self.page,
            title=self.title,
            provider=self.router.provider,
            route=self.router.route,
            interrupted=self.interrupted,
        )


Item = tuple[StreamEvent, int] | str


class Channel:
    """From a turn on the background loop to the caller who takes its answer.

    An item is a note, or an event with the length of the answer's text up to and with it.
    `delivered` is the length that has reached the caller, in UTF-16 units: there a stop cuts the
    answer, so that what is stored is what was shown.
    """

    def __init__(self, put: Callable[[Item], object], on_note: Callable[[str], None]) -> None:
        self.delivered = 0
        self._put = put
        self._on_note = on_note

    def emit(self, event: StreamEvent, length: int) -> None:
        """A part of the answer, whose text has that length with it."""
        self._put((event, length))

    def note(self, text: str) -> None:
        """A line for the person at the terminal, or for the log."""
        self._put(text)

    def deliver(self, item: Item) -> StreamEvent | None:
        """In the caller's thread: the event of an item, or None for a note, which is told."""
        if isinstance(item, str):
            self._on_note(item)
            return None
        event, self.delivered = item
        return event


async def create_conversation(
    client: Client, credentials: Credentials, model: str, system: str | None
) -> tuple[str, str]:
    """Make a conversation: its id, and its root message's. Raises what `client.call` does.

    If the answer is lost it is made once more: an empty one that is left does no harm.
    """
    value = {"model": model}
    if system:
        value["preprompt"] = system  # chat-ui refuses null
    response = await client.call(credentials, "POST", "/conversation", value)
    if response.is_html:
        raise HttpError(response)
    created = read_body(response, CreatedConversation, credentials.server)
    inner = HttpResponse(200, (), created.conversation.encode())
    root = read_body(inner, Envelope[RootMessage], credentials.server).json
    return created.conversation_id, root.root_message_id


async def find_answer(client: Client, credentials: Credentials, parent: Parent, model: str) -> str:
    """The id of the answer to continue after; its conversation has `model` then.

    Raises NotFound if it is not there, and what `client.call` does.
    """
    id, message_id = parent.conversation_id, parent.message_id
    if not message_id:
        found = await client.conversation(credentials, id, Conversation[MessageIds])
        answer = found.answer_of(parent.generation_id)
        if answer is None:
            raise NotFound(answer=True)
        message_id = answer.id
    if client.models.get(id, parent.model) != model:
        await client.call(credentials, "PATCH", api_path(id), {"model": model})
    return message_id


async def wait_for_turn(
    client: Client, credentials: Credentials, id: str, note: Callable[[str], None]
) -> TurnLock:
    """Wait until no other run goes on in a conversation, here or in another process.

    A message has `limits.arrival` seconds to arrive if the process that sent it was killed. A stop
    that reached the server too late leaves a marker there, which stops the next run if that begins
    within `limits.stop_marker` seconds. Raises ConnectionLost.
    """
    words = "waiting for the end of another turn of this conversation"
    noting = asyncio.get_running_loop().call_later(sum(limits.backoff[:4]), note, words)
    lock = TurnLock(credentials.server.page(id))
    try:
        await lock.acquire()
        try:
            if lock.pending:
                await asyncio.sleep(lock.sent_at + limits.arrival - time.time())
                ended = await wait_until_stored(client, credentials, id)
                if lock.stopped and ended != "interrupted":
                    await asyncio.sleep(lock.stopped + limits.stop_marker - time.time())
        except BaseException:
            lock.release(False, lock.stopped)
            raise
    finally:
        noting.cancel()
    return lock


def local_timezone() -> str | None:
    """This machine's time zone by its IANA name, as a browser tells it; None if unknown."""
    import tzlocal

    with contextlib.suppress(Exception):  # a broken configuration raises errors of many kinds
        named = "TZ" in os.environ  # else it is looked for in files, once
        return str(tzlocal.reload_localzone() if named else tzlocal.get_localzone())
    return None


class Turn:
    """One turn: sends a message once and emits its whole answer, or raises."""

    def __init__(
        self, client: Client, request: TurnRequest, result: TurnResult, channel: Channel
    ) -> None:
        self._client = client
        self._request = request
        self._credentials = request.credentials
        self._plan = plan = request.plan
        self._result = result
        self._channel = channel
        server = request.credentials.server
        self.answer = Answer(
            lambda sha: server.file_page(result.conversation_id, sha),
            plan.features,
            request.model.artifacts,
        )
        self._lock: TurnLock | None = None
        self._run: Run | None = None
        self._stopped: float | None = None  # when the server is told to stop the run
        self._questions: set[str] = set()  # those that were shown
        self._fetching: asyncio.Task[None] | None = None
        result.message_id = result.generation_id = None

    async def run(self) -> None:
        """Send the message and emit the answer.

        Raises NotFound, before anything is sent, when there is no conversation to continue;
        else HuggingChatError.
        """
        try:
            run = self._run = await self._prepare()
            driving = self._client.spawn(self._drive(run))
            try:
                await run.progress.answered.wait()
            finally:
                if run.progress.outcome is None:
                    driving.cancel()  # unless it has failed
            if run.progress.outcome is None:
                await driving
            self._raise_for_outcome(run)
            await self._finish(driving)
        except asyncio.CancelledError:
            self._stop()
            raise
        except Exception as error:
            self._emit(self.answer.end())  # what was shown stays
            raise await self._error_of(error) from None
        finally:
            if self._run is None and self._lock:
                self._lock.release(stored=True)

    async def _error_of(self, error: Exception) -> Exception:
        """The error to raise for one that ended the turn: NotFound if nothing was sent."""
        run, result, request = self._run, self._result, self._request
        if isinstance(error, NotFound) and run and run.state is RunState.OVER:
            return HuggingChatError(f"The conversation was deleted: {result.page}")
        page = "" if await self._delete_unused(error) else result.page
        if not isinstance(error, ConnectionLost | HttpError | IncompleteAnswer):
            return error
        what = "the message and its files" if request.uploads else "the message"
        return model_error(error, self._credentials, model=request.model.id, page=page, what=what)

    async def _drive(self, run: Run) -> None:
        """Follow the run until it is stored, which may be after the prompt has ended."""
        try:
            await run.drive()
        except HuggingChatError:
            self._stop()  # if it is not over: an answer without end
            raise
        finally:
            if self._lock:
                self._lock.release(run.may_send_next, self._stopped)
            run.progress.answered.set()

    def _stop(self) -> None:
        """Nobody wants the answer any more: tell the server to stop the run.

        The call is a task of its own, so a second Ctrl-C does not interrupt it.
        """
        if self._fetching:
            self._fetching.cancel()
        run = self._run
        if run is None or run.may_send_next or run.progress.outcome:
            return
        self._stopped = time.time()
        path = f"{chat_path(self._result.conversation_id)}/stop-generating"
        generation_id, seen = self._result.generation_id, self._channel.delivered
        value = {"generationId": generation_id, "seenContentLength": seen}
        self._client.spawn_stop(self._client.call(self._credentials, "POST", path, value))

    async def _delete_unused(self, error: Exception) -> bool:
        """Delete the conversation if it was made for a message that the server does not get."""
        run, id = self._run, self._result.conversation_id
        refused = isinstance(error, HttpError) and error.response.status < 500
        unused = run is None or (refused and run.may_send_next and not run.attempts.failures)
        if not (unused and id and self._plan.parent is None):
            return False
        delete = self._client.call(self._credentials, "DELETE", api_path(id))
        await asyncio.wait([self._client.spawn(delete)], timeout=limits.stop_timeout)
        return True

    async def _prepare(self) -> Run:
        """Enter the conversation and write the message: the run to come."""
        client, request, plan, result = self._client, self._request, self._plan, self._result
        credentials, model = self._credentials, request.model.id
        needed = any(isinstance(tool, WebSearch | HuggingFace) for tool in request.tools)
        offered = await client.mcp_servers(credentials) if needed else []
        names, servers = select_tools(request.tools, offered, credentials.server)
        if plan.parent is None:
            created = await create_conversation(client, credentials, model, plan.system)
            result.conversation_id, message_id = created
        else:
            result.conversation_id = plan.parent.conversation_id
        id, note = result.conversation_id, self._channel.note
        self._lock = await wait_for_turn(client, credentials, id, note)
        if plan.parent:
            message_id = await find_answer(client, credentials, plan.parent, model)
        client.models[id] = model
        credentials = await client.sessions.ready(credentials)
        generation_id = result.generation_id = str(uuid.uuid4())
        data = {
            "id": message_id,
            "generationId": generation_id,
            "inputs": plan.text,
            "is_retry": plan.retry,
            "selectedMcpServerNames": names,  # left out, it would mean all of them
            "selectedMcpServers": servers,
            "timezone": local_timezone(),
        }
        given = {name: value for name, value in data.items() if value not in (None, "")}
        message = multipart(given, request.uploads)
        self._lock.begin()
        parent_id = message_id if plan.parent else None
        target = RunTarget(credentials, id, generation_id, parent_id, *message, request.max_wait)
        return Run(client, target, self._add, self.answer.rewind, note)

    # The answer

    def _emit(self, events: Iterable[StreamEvent]) -> None:
        for event in events:
            self._channel.emit(event, self.answer.seen_length)

    def _add(self, update: Update) -> None:
        """An update of the run came."""
        try:
            self._emit(self.answer.add(update))
        except RecursionError:
            raise TooLarge("The answer holds JSON that is nested too deeply.") from None
        if self._fetching is None and self.answer.begun:
            self._fetching = self._client.spawn(self._fetch_id())
            self._client.refresh_if_old(self._credentials)
        match update:  # a question that expires is one that the server waits for
            case ElicitationUpdate("request", expires_at=float()):
                if update.id not in self._questions:
                    self._questions.add(update.id)
                    page = self._result.page
                    self._channel.note(f"a tool asks: {update.question}. Answer it at {page}")

    async def _fetch_id(self) -> None:
        """Read the answer's id, and the conversation's model, while the answer streams."""
        result = self._result
        id, generation_id = result.conversation_id, result.generation_id
        found = await self._client.conversation(self._credentials, id, Conversation[MessageIds])
        if generation_id == result.generation_id:  # else a repair has begun
            answer = found.answer_of(generation_id)
            result.message_id = answer.id if answer else None
            result.model = one_line(found.model, 200) or result.model
            self._client.models[id] = result.model

    def _raise_for_outcome(self, run: Run) -> None:
        """Raise HuggingChatError when the run came to something other than an answer."""
        outcome, model = run.progress.outcome, self._request.model.id
        if isinstance(outcome, FinalAnswer) and not self.answer.begun:
            outcome = NO_OUTPUT
        if run.progress.broke_off:
            self._channel.note(f"the model {model} broke off its answer")
        if isinstance(outcome, StatusUpdate):
            raise failure_error(model, outcome, self._credentials)
        if isinstance(outcome, ElicitationUpdate):
            raise HuggingChatError(
                f"A tool asks: {outcome.question}. Answer it at {self._result.page}\n"
                f"Then bring the rest here: llm huggingchat import {self._result.conversation_id}"
            )

    async def _finish(self, driving: asyncio.Task[None]) -> None:
        """The answer is there: wait a little for its id, and for it to be stored."""
        result, answer = self._result, self.answer
        fetching = self._fetching or self._client.spawn(self._fetch_id())
        await asyncio.wait([fetching], timeout=limits.id_timeout)
        await asyncio.wait([driving], timeout=limits.tail_timeout)
        if result.model != self._request.model.id:
            self._channel.note(f"{result.model} answered: it was chosen on the web page")
        if answer.is_reasoning_alone:
            self._channel.note("the answer consists of reasoning alone")
        result.title, result.router = answer.title, answer.router
        result.interrupted = bool(answer.final and answer.final.interrupted)
        result.instructed = self._plan.instructed
        result.calls = answer.calls


async def run_turn(
    client: Client, request: TurnRequest, result: TurnResult, channel: Channel
) -> None:
    """Run a turn, with at most one new start and one repair. Raises HuggingChatError.

    It starts over if its conversation is gone; it asks once more for a document that does not
    match the schema.
    """
    repairing = False
    while True:
        plan, turn = request.plan, Turn(client, request, result, channel)
        try:
            await turn.run()
        except NotFound as error:
            if plan.parent is None or request.fresh_plan is None:
                missing = NotFound(answer=error.answer or plan.retry)
                raise model_error(missing, request.credentials) from None
            page = request.credentials.server.page(plan.parent.conversation_id)
            what = f"{page} is not there for this account"
            if error.answer:
                what = f"the answer to continue after is no longer in {page}"
            channel.note(f"{what}; going on in a new conversation")
            request = msgspec.structs.replace(request, plan=request.fresh_plan())
            result.conversation_id = ""
            continue
        problem = turn.answer.problem
        if not problem:
            channel.emit(last_event(turn.answer, result), turn.answer.seen_length)
            return
        if repairing or result.interrupted:
            # People see what there is instead of a document.
            said = one_line(turn.answer.document_text, 1000) or "nothing"
            when = "does not match the schema, asked twice"
            when = "was broken off" if result.interrupted else when
            raise HuggingChatError(f"The answer {when}: {problem}. {result.page}\nIt was: {said}")
        repairing = True
        ids = result.conversation_id, result.message_id, result.generation_id
        plan = Plan(
            Parent(*ids, result.model, result.instructed),
            None,
            repair_request(plan.features, problem),
            instructed=msgspec.structs.replace(plan.instructed, schema=plan.features.schema),
            features=plan.features,
        )
        request = msgspec.structs.replace(request, plan=plan, fresh_plan=None, tools=(), uploads=())


def last_event(answer: Answer, result: TurnResult) -> StreamEvent:
    """An event without text that carries what the next turn needs.

    llm drops the metadata of a text part without text, so unless the answer ends in text, a
    part of its own carries it.
    """
    kind = "text" if answer.last_type == "text" else "reasoning"
    metadata = result.metadata(**msgspec.structs.asdict(result.instructed))
    return StreamEvent(type=kind, chunk="", provider_metadata=metadata)


# --- background: the models' event loop ---------------------------------------------------


class Background:
    """One event loop in a daemon thread, with one client, for the turns of all models.

    Sync and async models alike take their answers from here: Ctrl-C comes up in the caller's
    thread at once, and the server is told to stop from this one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client: Client | None = None
        self._work: set[asyncio.Task[Any]] = set()
        self._process = 0

    def submit(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run `work` on the loop, with its client."""

        async def run() -> T:
            task = cast("asyncio.Task[T]", asyncio.current_task())
            self._work.add(task)
            task.add_done_callback(self._work.discard)
            # Once the caller has left, nobody sees a failure: asyncio is not to report it.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            if self._client is None:
                self._client = Client()
            return await work(self._client)

        with self._lock:
            if self._loop is None or self._process != os.getpid():  # a fork has no threads
                self._loop = self._start()
            return asyncio.run_coroutine_threadsafe(run(), self._loop)

    def _start(self) -> asyncio.AbstractEventLoop:
        self._process, self._client, self._work = os.getpid(), None, set()
        loop = asyncio.SelectorEventLoop()  # Windows' own loop cannot watch sockets
        self._thread = threading.Thread(
            target=loop.run_forever, name="llm-huggingchat", daemon=True
        )
        self._thread.start()
        return loop

    def close(self) -> None:
        """Stop what runs, close what is open, within a second or so. It can begin again."""
        with self._lock:
            loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None or self._process != os.getpid():
            return
        asyncio.run_coroutine_threadsafe(self._finish(), loop)
        with contextlib.suppress(KeyboardInterrupt):  # once more: nobody waits any longer
            thread.join(limits.stop_timeout + 0.5)
            if not thread.is_alive():
                loop.close()

    async def _finish(self) -> None:
        """Stop the turns, let stops that are under way reach the server, end the loop."""
        client, self._client = self._client, None
        for task in self._work:
            task.cancel()  # a turn tells the server to stop its run
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.stop_timeout):
                while tasks := self._work | (client.stops if client else set()):
                    await asyncio.wait(tasks)
        if client:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(0.2), client:
                    pass
        asyncio.get_running_loop().stop()


background = Background()
atexit.register(background.close)


def reset() -> None:
    """Close connections and forget sessions: what a new process would not have."""
    background.close()
    _anonymous.clear()
    _rate_limiters.clear()


def run_in_background(work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """The result of `work`, which runs on the models' loop: also where a loop runs already."""
    future = background.submit(work)
    try:
        return future.result()
    finally:
        future.cancel()


TurnWork = Callable[["Client", Channel], Coroutine[Any, Any, TurnResult]]


def _next(items: queue.SimpleQueue[Any]) -> Any:
    """The next item. Ctrl-C comes up between two waits, if another thread gets the signal.

    A function of its own: where it comes up here, the caller's `finally` is sure to run.
    """
    while True:
        with contextlib.suppress(queue.Empty):
            return items.get(timeout=0.25)


def stream_turn(
    work: TurnWork, on_note: Callable[[str], None], on_result: Callable[[TurnResult], None]
) -> Generator[StreamEvent, None, None]:
    """A turn's events as they come. Left early or interrupted, the turn is cancelled.

    `on_note` is called with each note, and `on_result` with what became of the turn.
    """
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    channel = Channel(items.put, on_note)
    future = background.submit(lambda client: work(client, channel))
    future.add_done_callback(items.put)  # when it is done, it is the last item
    try:
        while (item := _next(items)) is not future:
            if event := channel.deliver(item):
                yield event
        on_result(future.result())
    finally:
        future.cancel()


async def stream_turn_async(
    work: TurnWork, on_note: Callable[[str], None], on_result: Callable[[TurnResult], None]
) -> AsyncGenerator[StreamEvent, None]:
    """`stream_turn` for asyncio.

    However many events have piled up, the caller's loop is woken up once.
    """
    loop = asyncio.get_running_loop()
    items: deque[Any] = deque()
    arrived = asyncio.Event()

    def put(item: Any) -> None:
        items.append(item)
        if len(items) == 1:
            with contextlib.suppress(RuntimeError):  # the caller's loop is closed
                loop.call_soon_threadsafe(arrived.set)

    channel = Channel(put, on_note)
    future = background.submit(lambda client: work(client, channel))
    future.add_done_callback(put)
    try:
        while True:
            await arrived.wait()
            arrived.clear()
            while items:
                item = items.popleft()
                if item is future:
                    on_result(future.result())
                    return
                if event := channel.deliver(item):
                    yield event
    finally:
        future.cancel()


# --- models: llm's classes ------------------------------------------------------------------


class HuggingChatOptions(llm.Options):
    """What `-o` takes."""

    web_search: bool | None = Field(
        default=None, description="Let the model search the web: short for -T WebSearch"
    )
    retry: bool | None = Field(
        default=None, description="Another answer to the last question: llm -c '' -o retry true"
    )


class Display(contextlib.AbstractContextManager["Display"]):
    """What a person sees on llm's command line beside the answer: notes, and tools at work.

    They go to standard error, a line each; a line that the answer has begun there is ended
    first. A tool's line stays open, as the text after a tool begins with line ends.
    """

    def __init__(self, prompt: llm.Prompt, stream: bool) -> None:
        self._on_command_line = on_command_line()
        terminal = self._on_command_line and sys.stderr.isatty()
        self._tools = terminal and not getattr(prompt, "hide_reasoning", False)
        self._text = self._on_command_line and stream
        self._one_output = False  # whether standard output and error go to the same place
        with contextlib.suppress(OSError, ValueError):
            self._one_output = os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
        self._open = ""  # what has not ended its line: "text" or "tool"
        self._names: dict[str | None, str] = {}

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if self._open == "text" and isinstance(error, llm.ModelError):
            click.echo()  # the error begins a line
        elif self._open == "tool":
            self._end_line()

    def note(self, text: str) -> None:
        """Something to know that is not a failure: without the command line, it is logged."""
        if self._on_command_line:
            self._end_line()
            print_note(text)
        else:
            logging.getLogger(__name__).warning("%s", one_line(text))

    def event(self, event: StreamEvent) -> StreamEvent:
        """llm is about to print this."""
        shown = {"text": self._text, "reasoning": self._tools}.get(event.type, False)
        if shown and event.chunk:
            if self._open == "tool" and not (self._one_output and event.chunk.startswith("\n")):
                self._end_line()
            self._open = "" if event.chunk.endswith("\n") else "text"
        elif self._tools and event.server_executed:
            self._tool(event)
        return event

    def _tool(self, event: StreamEvent) -> None:
        line = ""
        if event.type == "tool_call_name":
            self._names[event.tool_call_id] = event.chunk
        elif event.type == "tool_call_args":
            arguments = "" if event.chunk == "{}" else event.chunk
            line = f"Tool: {self._names[event.tool_call_id]} {arguments}"
        elif event.type == "tool_result" and event.chunk.startswith("Error: "):
            line = f"Tool: {event.tool_name} failed: {event.chunk[7:]}"
        if line:
            self._end_line()
            width = max(shutil.get_terminal_size().columns - 1, 20)
            click.secho(one_line(line, width), dim=True, err=True, nl=False)
            self._open = "tool"

    def _end_line(self) -> None:
        if self._open == "tool" or (self._open and self._one_output):
            sys.stdout.flush()
            click.echo(err=True)
            self._open = ""


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
        self.supports_schema = self.supports_tools = is_general(info)
        self._remembered_on: set[str] = set()  # addresses of servers

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
    def _kinds(self) -> tuple[UploadKind, ...]:
        return tuple(kind for kind in UPLOAD_KINDS if kind is not IMAGES or self.info.multimodal)

    @property
    def attachment_types(self) -> frozenset[str]:
        return frozenset(itertools.chain(*(kind.types for kind in self._kinds)))

    @property
    def supported_server_side_tools(self) -> tuple[type[llm.ServerSideTool], ...]:
        return (WebSearch, HuggingFace, MCP) if self.info.tools else ()

    def get_key(self, explicit_key: str | None = None) -> str | None:
        """The cookies for the current server, as pasted; None where none are needed.

        Raises LoginRequired on the service, HuggingChatError for a bad address.
        """
        return self.key or find_key(current_server(), explicit_key)[0]

    def _validate_attachments(self, attachments: list[llm.Attachment] | None = None) -> None:
        """Skip llm's check: the type is known once the file is read, before anything is sent."""

    async def _turn(
        self, prompt: llm.Prompt, key: str | None, client: Client, channel: Channel
    ) -> TurnResult:
        """The turn that answers `prompt`. Raises HuggingChatError."""
        server = current_server()
        result = TurnResult(server.url, self.info.id)
        try:
            request = await self._request(prompt, key, client, channel, server)
            await run_turn(client, request, result, channel)
        except llm.NeedsKeyException:
            if not key:
                forget_anonymous_session(server)
            raise
        return result

    async def _request(
        self, prompt: llm.Prompt, key: str | None, client: Client, channel: Channel, server: Server
    ) -> TurnRequest:
        """What `prompt` asks of the server. Its files are read, its recordings transcribed."""
        if self.info.removed:
            raise HuggingChatError(
                f"huggingchat/{self.info.id} is no longer offered by {server.host}. "
                "Continue with another model: -m MODEL"
            )
        if server.url not in self._remembered_on:  # in a thread, as it may wait for a lock
            await asyncio.to_thread(remember_models, server.url, [self.info.id])
            self._remembered_on.add(server.url)
        tools, features = self._server_side_tools(prompt), self._features(prompt, server)
        retry = bool(cast(HuggingChatOptions, prompt.options).retry)
        planned = functools.partial(
            make_plan, prompt.messages, system=prompt.system, features=features
        )
        plan = planned(server.url, retry=retry)
        uploads = [
            upload_of(each, *await read_attachment(client, each), self._kinds, self.model_id)
            for each in plan.attachments
        ]
        if key:
            cookies = cookies_of_key(server, key)
        else:
            cookies = await asyncio.to_thread(anonymous_session, server, channel.note)
        credentials = Credentials(server, cookies)
        heard: dict[str, str] = {}
        if recordings := [upload for upload in uploads if upload.is_recording]:
            with model_errors(credentials):
                texts = await transcribe_all(client, credentials, recordings, channel.note)
            for recording, text in zip(recordings, texts, strict=True):
                heard[recording.id] = text
                for event in transcription_events(recording.name, recording.id, text):
                    channel.emit(event, 0)
            plan = planned(server.url, retry=retry, transcripts=heard)
        return TurnRequest(
            credentials=credentials,
            model=self.info,
            plan=plan,
            fresh_plan=None if retry else functools.partial(planned, None, transcripts=heard),
            tools=tuple(tools),
            uploads=tuple(upload for upload in uploads if not upload.is_recording),
            max_wait=max_wait(),
        )

    def _features(self, prompt: llm.Prompt, server: Server) -> PromptedFeatures:
        """What the answer may call and has to match. Raises HuggingChatError."""
        schema = cast("dict[str, Any] | None", prompt.schema)
        features = PromptedFeatures(
            tuple(tool_definition(tool) for tool in prompt.tools if isinstance(tool, llm.Tool)),
            schema or pending_schema(prompt.messages, server.url),
        )
        if features.schema:
            schema_checker(features.schema)  # refused before anything is sent
        return features

    def _server_side_tools(self, prompt: llm.Prompt) -> list[llm.ServerSideTool]:
        tools = [tool for tool in prompt.tools if isinstance(tool, llm.ServerSideTool)]
        if cast(HuggingChatOptions, prompt.options).web_search:
            tools.append(WebSearch())
        if tools and not self.info.tools:
            raise HuggingChatError(f"{self.model_id} cannot use tools. See: llm huggingchat models")
        return tools


def _fill(response: weakref.ref[Any], result: TurnResult) -> None:
    """Tell llm's response what became of the turn, if anyone still holds it."""
    filled = response()
    if filled is None:
        return
    filled.set_resolved_model(result.router.model or result.model)
    filled.response_json = result.response_json()
    for call in result.calls:
        filled.add_tool_call(call)


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
        """The answer, as llm asks for it. Raises HuggingChatError while iterated over."""
        work = functools.partial(self._turn, prompt, key)
        fill = functools.partial(_fill, weakref.ref(response))
        display = Display(prompt, stream)
        with display, contextlib.closing(stream_turn(work, display.note, fill)) as events:
            for event in events:
                yield display.event(event)


class AsyncHuggingChat(_HuggingChat, llm.AsyncKeyModel):  # type: ignore[misc]
    """A model of HuggingChat, or of another chat-ui server, for asyncio."""

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
        key: str | None = None,
    ) -> AsyncGenerator[StreamEvent, None]:
        """The answer, as llm asks for it. Raises HuggingChatError while iterated over.

        llm's async responses own the iterator over this. Were the response held here, an
        abandoned one would be noticed only by the garbage collector, much later.
        """
        work = functools.partial(self._turn, prompt, key)
        fill = functools.partial(_fill, weakref.ref(response))
        del response
        display = Display(prompt, stream)
        with display:
            turn = stream_turn_async(work, display.note, fill)
            async with contextlib.aclosing(turn) as events:
                async for event in events:
                    yield display.event(event)


# --- logs: a server's conversations, and llm's logs ---------------------------------------

WRITING = datetime.timedelta(minutes=1)  # an answer is saved more often while it is written


@contextlib.contextmanager
def open_logs() -> Iterator[LogStore]:
    """llm's logs, migrated to llm's current schema. Raises sqlite3.Error."""
    import sqlite_utils
    from llm.logs import LogStore

    with contextlib.closing(sqlite_utils.Database(llm.user_dir() / "logs.db")) as db:
        # Half an emoji in one row must not keep the other rows from being read.
        db.conn.text_factory = lambda text: text.decode("utf-8", "replace")
        yield LogStore(db)


class LoggedAnswer(msgspec.Struct, frozen=True):
    """An answer of a server in llm's logs. `thread_id` is None if it ends no turn."""

    hash: str
    thread_id: str | None
    conversation_id: str
    message_id: str
    generation_id: str


def logged_answers(store: LogStore, server: Server) -> list[LoggedAnswer]:
    """The server's answers in llm's logs, in the order of their turns. Raises sqlite3.Error."""
    rows = store.db.execute(
        """
        select parts.message_hash, turns.thread_id, parts.payload
        from parts left join turns on turns.tip_message_hash = parts.message_hash
        where parts.payload like '%"huggingchat"%'
        order by turns.id, parts.position
        """
    )
    found = []
    for hash, thread_id, payload in rows:
        with contextlib.suppress(KeyError, TypeError, ValueError, RecursionError):
            about = json.loads(payload)["provider_metadata"]["huggingchat"]
            if about["server"] == server.url:
                ids = map(about.get, ("conversation_id", "message_id", "generation_id"))
                found.append(LoggedAnswer(hash, thread_id, *map(known_id, ids)))
    return found


# Conversations as a server stores them


class ConversationRef(msgspec.Struct, frozen=True):
    """A conversation that somebody names. A `shared` one is somebody else's: it is only read."""

    server: Server
    id: str
    shared: bool = False

    @property
    def page(self) -> str:
        """The address of its web page."""
        return (self.server.shared_page if self.shared else self.server.page)(self.id)


Branch = list[StoredMessage]  # from a conversation's first question to its last answer


class ConversationTree(msgspec.Struct, frozen=True):
    """A conversation, its texts as they may be shown, and its branches, the newest one first."""

    ref: ConversationRef
    title: str
    model: str  # the id of the one that the next turn would use
    preprompt: str  # may be ""
    branches: list[Branch]


def parse_time(text: str | None) -> datetime.datetime | None:
    """The time in a server's JSON, or None."""
    with contextlib.suppress(ValueError, OverflowError):
        return datetime.datetime.fromisoformat(text or "").astimezone(datetime.UTC)
    return None


def branches_of(conversation: Conversation[StoredMessage]) -> list[Branch]:
    """Every branch of a conversation, the newest one first.

    Empty answers, answers that are still being written, and questions without an answer are
    left out.
    """
    said = {message.id: message for message in conversation.messages if _is_said(message)}
    answers = [message for message in said.values() if message.sender == "assistant"]
    inner = {id for answer in answers for id in answer.ancestors or ()}
    leaves = [answer for answer in answers if answer.id not in inner]
    leaves.sort(key=lambda leaf: leaf.created_at or "", reverse=True)
    branches = (dict.fromkeys([*(leaf.ancestors or ()), leaf.id]) for leaf in leaves)
    return [[said[id] for id in branch if id in said] for branch in branches]


def _is_said(message: StoredMessage) -> bool:
    """Whether a message is a person's, or an answer that is no longer being written."""
    if message.sender != "assistant":
        return message.sender == "user"
    answer, saved = message.replay(), parse_time(message.updated_at)
    running = message.generation_id and not (answer.complete or answer.settled)
    if running and saved and datetime.datetime.now(datetime.UTC) - saved < WRITING:
        return False
    return any(map(is_content, answer.updates))


# Stored messages as llm's


def question_of(tree: ConversationTree, message: StoredMessage) -> Message:
    """A stored question as llm's message; its files become the addresses they have."""
    text = for_logs(message.content)
    files: list[Part] = [
        AttachmentPart(
            attachment=llm.Attachment(
                # Without a type, llm asks the server for it.
                type=one_line(file.mime or "", 100) or "application/octet-stream",
                url=tree.ref.server.file_page(tree.ref.id, file.value),
            )
        )
        for file in message.files or ()
        if file.type == "hash" and file.value
    ]
    return Message("user", [TextPart(text=text), *files] if text or not files else files)


def response_of(
    tree: ConversationTree, message: StoredMessage, history: list[Message]
) -> llm.Response:
    """A stored answer as llm would have logged it; `history` ends with the question."""
    server, ref = tree.ref.server, tree.ref
    answer = Answer(functools.partial(server.file_page, ref.id))
    stored = message.replay()
    answer.add(message.router_metadata or RouterMetadata())
    # When a conversation changes its model, earlier answers keep their model's name here.
    model = tree.model if answer.router.route else answer.router.model or tree.model
    asked = HuggingChat(ModelInfo(model))
    response = llm.Response(llm.Prompt(None, cast(Any, asked), messages=history), asked, True)
    if not stored.complete:
        stored.updates.append(FinalAnswer("", True))
    for event in itertools.chain.from_iterable(map(answer.add, stored.updates)):
        response._process_chunk(event)
    result = TurnResult(
        server.url,
        tree.model,
        conversation_id="" if ref.shared else ref.id,  # nobody else can continue it
        message_id=message.id,
        generation_id=message.generation_id,
        title=tree.title,
        router=answer.router,
        interrupted=bool(answer.final and answer.final.interrupted)
        and (stored.complete or bool(message.generation_id)),
    )
    response._process_chunk(last_event(answer, result))
    response.response_json = result.response_json()
    response.response_json["huggingchat"]["url"] = ref.page
    response.set_resolved_model(answer.router.model or model)
    begun, ended = parse_time(message.created_at), parse_time(message.updated_at)
    response._start_utcnow = begun
    response._start = 0.0
    response._end = max((ended - begun).total_seconds(), 0.0) if begun and ended else 0.0
    response._done = True
    response.id = ulid_of(begun, "turn", server.url, ref.id, message.id)
    return response


def ulid_of(time: datetime.datetime | None, *names: str) -> str:
    """An id that sorts by its time, as llm's do, and is always the same for the same names.

    So two imports at the same time cannot both log an answer.
    """
    from ulid import ULID

    now = datetime.datetime.now(datetime.UTC)  # a later time would come after all that follows
    milliseconds = max(int(min(time or now, now).timestamp() * 1000), 0)
    digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=10).digest()
    return str(ULID(milliseconds.to_bytes(6, "big") + digest)).lower()


def to_markdown(tree: ConversationTree, *, for_model: bool = False) -> str:
    """The newest branch of a conversation, for people to read, or for a model.

    A model does not see what others thought, as in llm's own histories, and the person is not
    called "You" there: that would be the model.
    """
    pieces = [f"# {tree.title}", f"<{tree.ref.page}>"]
    if tree.preprompt:
        pieces += ["## System", tree.preprompt]
    for message in itertools.chain(*tree.branches[:1]):
        if message.sender == "user":
            name, said = "User" if for_model else "You", [question_of(tree, message)]
        else:
            response = response_of(tree, message, [])
            name, said = str(response.resolved_model), response.messages()
        parts = itertools.chain.from_iterable(each.parts for each in said)
        pieces += [f"## {name}", *_markdown(parts, reasoning=not for_model)]
    return "\n\n".join(pieces) + "\n"


def _markdown(parts: Iterable[Part], reasoning: bool) -> Iterator[str]:
    for part in parts:
        match part:
            case TextPart():
                yield part.text.strip("\n")
            case llm.parts.ReasoningPart() if part.text and reasoning:
                text = part.text.strip()
                yield f"<details><summary>Reasoning</summary>\n\n{text}\n\n</details>"
            case ToolCallPart():
                arguments = json.dumps(part.arguments, ensure_ascii=False)
                yield f"Tool `{part.name}`: `{arguments}`"
            case ToolResultPart():
                yield "\n".join(f"> {line}" for line in part.output.split("\n"))
            case AttachmentPart() if part.attachment:
                yield f"[{part.attachment.type}]({part.attachment.url})"


# Conversations into llm's logs


class Importer:
    """Writes conversations of one server to llm's logs, and nothing twice.

    An answer is known by its message id or generation id, whoever logged it. A branch goes on
    where the logs end: in the thread that ends there, or in a new one that forks off.
    """

    def __init__(self, store: LogStore, server: Server) -> None:
        self._store = store
        self._models: set[str] = set()  # that have answered
        self._hashes: dict[str, str] = {}  # message or generation id -> logged message
        for logged in logged_answers(store, server):
            self._remember(logged.hash, logged.message_id, logged.generation_id)

    def _remember(self, hash: str, *ids: str | None) -> None:
        self._hashes |= dict.fromkeys(filter(None, ids), hash)

    def _logged(self, message: StoredMessage) -> str:
        """The logged answer that this is, or ""."""
        ids = message.id, message.generation_id or ""
        return next((self._hashes[id] for id in ids if id in self._hashes), "")

    def knows(self, branches: list[Branch]) -> bool:
        """Whether everything in these branches is logged."""
        return all(self._logged(branch[-1]) for branch in branches)

    def add(self, tree: ConversationTree, branches: list[Branch]) -> list[tuple[str, int]]:
        """Log what is new in these branches, all of it or nothing: threads and numbers of turns.

        Raises sqlite3.Error.
        """
        with self._store.db.atomic():
            added = [self._add(tree, branch) for branch in branches]
        remember_models(tree.ref.server.url, self._models)
        return added

    def _add(self, tree: ConversationTree, branch: Branch) -> tuple[str, int]:
        logged = [self._logged(message) for message in branch]
        start = max((number for number, hash in enumerate(logged, 1) if hash), default=0)
        tip, turns = logged[start - 1] if start else None, 0
        thread_id = self._find("select max(id) from threads where tip_message_hash = ?", tip)
        fork_of = self._find("select max(thread_id) from turns where tip_message_hash = ?", tip)
        if start == len(branch):
            return thread_id or fork_of or "", 0
        if thread_id is None:
            ref, leaf = tree.ref, branch[-1]
            id = ulid_of(parse_time(leaf.created_at), "thread", ref.server.url, ref.id, leaf.id)
            thread_id = self._store.create_thread(tree.title, tip, fork_of, id)
        history = self._history(tree, tip)
        for message in branch[start:]:
            if message.sender == "user":
                history.append(question_of(tree, message))
                continue
            response = response_of(tree, message, history)
            self._store.log(response, thread_id)
            history += response.messages()
            self._models.add(response.model.model_id.removeprefix("huggingchat/"))
            tip, turns = str(self._store.thread_tip(thread_id)), turns + 1
            self._remember(tip, message.id, message.generation_id)
        return thread_id, turns

    def _find(self, sql: str, tip: str | None) -> str | None:
        """The one id that a query finds for a logged message."""
        return cast("str | None", self._store.db.execute(sql, [tip]).fetchone()[0])

    def _history(self, tree: ConversationTree, tip: str | None) -> list[Message]:
        """The logged messages up to `tip`; at the start of a conversation, its system prompt."""
        if not tip:
            preprompt = for_logs(tree.preprompt)
            return [Message("system", [TextPart(text=preprompt)])] if preprompt else []
        try:
            return list(self._store.load_chain(tip))
        except (KeyError, TypeError, ValueError, RecursionError):
            why = f"a part of {tree.title!r} cannot be read, so nothing can be added to it"
            raise sqlite3.DatabaseError(why) from None


# --- commands: llm huggingchat … ---------------------------------------------------------

DASH = pathlib.Path("-")  # standard output, where a file is named
FILE_SIZE_LIMIT = 1_000_000_000  # bytes of a file in an answer
CONVERSATION_HELP = (
    "[ID|URL] is a conversation's id, the address of its page or its id in llm's logs; "
    "by default it is the latest conversation in llm's logs."
)


class _Commands(click.Group):
    """Turns what can go wrong into one or two lines, and lists commands as they stand here."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        takes_one = any(param.metavar == "[ID|URL]" for param in cmd.params)
        about = f"{CONVERSATION_HELP}\n\n" if takes_one else ""
        # \b keeps the lines of the examples as they are.
        examples = f"{about}\b\nExamples:"
        cmd.help = inspect.cleandoc(cmd.help or "").replace("Examples:", examples, 1)
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except sqlite3.Error as error:
            what = f"llm's logs, {llm.user_dir() / 'logs.db'}, cannot be used"
            raise click.ClickException(f"{what}: {one_line(error)}") from None
        except BrokenPipeError:
            raise  # the reader has had enough: click knows
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{name}{os_error_text(error)}") from None


@click.group(name="huggingchat", cls=_Commands)
def huggingchat() -> None:
    """Your HuggingChat account: log in, list models, use your conversations.

    \b
    Examples:
        llm huggingchat login
        llm huggingchat conversations
    """


json_option = click.option("json_", "--json", is_flag=True, help="Output as JSON")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation")
conversation_argument = click.argument("name", required=False, metavar="[ID|URL]")
names_argument = click.argument("names", nargs=-1, metavar="[ID|URL]...")


def output_option(help: str, *, file_okay: bool = True, **options: Any) -> Callable[..., Any]:
    """The option -o, for a file or directory to write."""
    type = click.Path(path_type=pathlib.Path, file_okay=file_okay)
    return click.option("-o", "--output", type=type, help=help, **options)


def current_credentials() -> Credentials:
    """The current server and the cookies for it. Raises HuggingChatError."""
    server = current_server()
    key = find_key(server)[0]
    return Credentials(server, cookies_of_key(server, key) if key else None)


def call_server(
    work: Callable[..., Coroutine[Any, Any, T]], *args: Any, credentials: Credentials | None = None
) -> T:
    """The result of `work(client, credentials, *args)`. Raises HuggingChatError.

    The credentials are by default those for the current server.
    """
    mine = credentials or current_credentials()

    async def run() -> T:
        async with Client() as client:
            return await work(client, mine, *args)

    # Windows' own event loop cannot watch sockets, which curl_cffi needs.
    loop = asyncio.SelectorEventLoop
    with model_errors(mine), asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(run())


async def find_user(client: Client, credentials: Credentials) -> tuple[bool, str]:
    """Whether the server wants a login, and who is logged in. Renews an expired session."""
    login_needed = await client.has_accounts(credentials)
    for new_session in (client.sessions.ready, client.sessions.renew):
        try:
            credentials = await new_session(credentials)
        except HuggingChatError:  # there is no session, and none can be made
            break
        user = await client.user(credentials)
        if user or not login_needed:
            return login_needed, user
    return login_needed, ""


async def require_login(client: Client, credentials: Credentials) -> None:
    """Renew the session if it has expired. Raises HuggingChatError if a login is missing."""
    login_needed, user = await find_user(client, credentials)
    if login_needed and not user:
        raise login_error(credentials.server, credentials.cookies)


def write_files(files: dict[pathlib.Path, IO[bytes]]) -> None:
    """Write files, after asking about those that are there. Raises click.Abort, OSError."""
    for path in files:
        if path.is_file() or (path.is_symlink() and not path.exists()):
            click.confirm(f"{path} exists. Overwrite it?", abort=True, err=True)
    for path, content in files.items():
        with atomic_write(path) as file:
            shutil.copyfileobj(content, file)


def open_in_browser(url: str) -> bool:
    """Open a page. False without a screen: a text browser would take over the terminal."""
    screen = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    if not screen and sys.platform not in ("darwin", "win32"):
        return False
    import webbrowser

    webbrowser.open(url)
    return True


def age(since: float) -> str:
    """How long ago a time was (seconds since 1970), in the largest unit that fits."""
    seconds = time.time() - since
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            return f"{count_of(int(seconds // length), unit)} ago"
    return "just now"


def count_of(number: int, what: str) -> str:
    """`1 turn`, `2 turns`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def echo_json(value: Any) -> None:
    """Print a value as JSON for other programs."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def echo_text(text: str) -> None:
    """Print text of a server's: as it is, but on a terminal without what could harm it."""
    click.echo(for_terminal(text) if sys.stdout.isatty() else text, nl=False)


# Log in

BROWSERS = (
    *("arc", "brave", "chrome", "chromium", "edge", "firefox"),
    *("librewolf", "opera", "opera_gx", "safari", "vivaldi"),
)
PASTE_LIMIT = 1_000_000  # bytes: an extension's export of all sites has a tenth of it
PASTE_HELP = """\
1. Log in at {url} with your browser.
2. Open its developer tools (F12): Application or Storage, then Cookies.
3. Copy the value of the cookie 'token' of {host}, paste it here and press Enter.
   A whole Cookie header or what a cookie extension exports will do as well.
What you paste is not shown. 'token' opens your whole account: give it to nobody."""


@huggingchat.command()
@click.option(
    "--browser",
    type=click.Choice(BROWSERS),
    help="Take the cookies from this browser; needs the extra 'browser'",
)
def login(browser: str | None) -> None:
    """Log in with a cookie of your browser.

    Reads the cookie `token`, as the browser or a cookie extension shows it, makes a chat
    session from it, stores both in llm's key store and refreshes the list of models. On a
    terminal it asks for the cookie and does not show it; otherwise it reads standard input.

    Examples:
        llm huggingchat login
        llm huggingchat login --browser firefox
        llm huggingchat login < cookies.txt
    """
    server = current_server()
    source: contextlib.AbstractContextManager[Cookies] = paste_cookies(server)
    if browser:
        source = contextlib.nullcontext(browser_cookies(browser, server))
    elif not sys.stdin.isatty():
        given = sys.stdin.buffer.read(PASTE_LIMIT)
        source = contextlib.nullcontext(parse_cookies(given, server.host))
    if not call_server(Client.has_accounts, credentials=Credentials(server)):
        click.echo(f"{server.host} needs no login. Try: llm -m hf-llama 'Say hello'")
        return
    with source as cookies:
        user = call_server(log_in, credentials=Credentials(server, cookies))
    click.echo(f"Logged in on {server.host} as {user}. The cookies are in llm's key store.")


async def log_in(client: Client, credentials: Credentials) -> str:
    """Keep cookies, and refresh the models: the account's name. Raises HuggingChatError."""
    server = credentials.server
    _, user = await find_user(client, credentials)
    cookies = client.sessions.current(credentials).cookies
    if not user or cookies is None:
        raise HuggingChatError(
            f"Not logged in on {server.host}: the cookie 'token' is missing, expired or wrong, or "
            "has to be confirmed first. These cookies are not kept.\n"
            f"Open {server.url}/login in your browser, then copy the cookie again."
        )
    keep_key(server.key_name, cookies.to_key())
    with contextlib.suppress(ConnectionLost, HttpError, HuggingChatError):
        await refresh_catalogue(client, credentials)
    return user


@contextlib.contextmanager
def paste_cookies(server: Server) -> Iterator[Cookies]:
    """The cookies that a person pastes on the terminal, which shows nothing meanwhile.

    A paste ends with Ctrl-D, or with a line after which `limits.paste_pause` seconds pass. What
    arrives later is thrown away before a shell can read it.
    """
    click.echo(PASTE_HELP.format(url=server.url, host=server.host), err=True)
    open_in_browser(server.url)
    try:
        import select
        import termios
    except ImportError:  # Windows
        typed = click.prompt("token", "", hide_input=True, show_default=False, err=True)
        yield parse_cookies(typed, server.host)
        return
    terminal = sys.stdin.fileno()
    before, hidden = termios.tcgetattr(terminal), termios.tcgetattr(terminal)
    hidden[3] &= ~(termios.ECHO | termios.ICANON)  # ICANON cuts lines after 4,095 characters
    pasted = b""
    try:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, hidden)
        click.echo("token: ", nl=False, err=True)
        while b"\x04" not in pasted and len(pasted) < PASTE_LIMIT:
            # Bounded: a Ctrl-C just before a wait without end would not be noticed.
            if select.select([terminal], [], [], limits.paste_pause)[0]:
                pasted += os.read(terminal, 65_536) or b"\x04"
            elif pasted.endswith(b"\n"):
                break
        click.echo(err=True)
        yield parse_cookies(pasted.partition(b"\x04")[0], server.host)
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


def browser_cookies(browser: str, server: Server) -> Cookies:
    """The cookies that `browser` has for the server's domain. Raises HuggingChatError."""
    name = browser.replace("_", " ").title()
    host = urlsplit(server.url).hostname or ""
    config = pathlib.Path(os.environ.get("XDG_CONFIG_HOME") or pathlib.Path.home() / ".config")
    stores = config.glob("mozilla/firefox/*/cookies.sqlite") if browser == "firefox" else ()
    # The new place of Firefox, which browser-cookie3 0.20 does not know.
    newest = max(stores, key=lambda path: path.stat().st_mtime, default=None)
    options = {"domain_name": host} | ({"cookie_file": str(newest)} if newest else {})
    try:
        import browser_cookie3  # type: ignore[import-untyped]

        load = getattr(browser_cookie3, browser)
        with contextlib.redirect_stdout(io.StringIO()):
            jar = sorted(load(**options), key=lambda each: len(each.domain))
        exported = [{"domain": each.domain, "name": each.name, "value": each.value} for each in jar]
        return parse_cookies(json.dumps(exported), server.host)
    except ImportError:
        words = "Reading a browser's cookies needs browser-cookie3"
        raise HuggingChatError(f"{words}. Run: llm install browser-cookie3") from None
    except Exception:  # browser-cookie3's own errors are many, and may show what is in the store
        raise HuggingChatError(
            f"No login for {host} can be read from {name}. Log in at {server.url} with it, close "
            "it and try again; or paste the cookie, without --browser."
        ) from None


@huggingchat.command()
@yes_option
def logout(yes: bool) -> None:
    """Forget the cookies for the current server.

    Where there are no logins, your conversations cannot be found without them, so it asks.

    Examples:
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


@huggingchat.command()
@json_option
@click.pass_context
def status(ctx: click.Context, json_: bool) -> None:
    """Show whether prompts would work: server, login, models.

    The exit status is 1 if they would fail.

    Examples:
        llm huggingchat status
        llm huggingchat status --json
    """
    names = ("ok", "server", "user", "login_needed", "cookies", "session_time", "models")
    state: dict[str, Any] = dict.fromkeys((*names, "catalogue_time", "reason"))
    state |= {"ok": False, "cookies": "none", "models": 0}
    try:
        server = current_server()
        catalogue = load_catalogue(server.url)
        state |= {"server": server.url, "models": len(catalogue.models)}
        state |= {"catalogue_time": catalogue.time, "cookies": find_key(server)[1]}
        state["login_needed"], user = call_server(find_user)
        cookies = current_credentials().cookies  # with a session that was just made
        state |= {"user": user or None, "session_time": cookies and cookies.since}
        if state["login_needed"] and not user:
            raise login_error(server, cookies)
        state["ok"] = True
    except llm.ModelError as error:
        state["reason"] = str(error)
    if json_:
        echo_json(state)
        ctx.exit(0 if state["ok"] else 1)
    nobody = "nobody; no login is needed" if state["login_needed"] is False else "nobody"
    made, fetched = state["session_time"], state["catalogue_time"]
    session = f", session made {age(made)}" if made else ""
    refreshed = f"refreshed {age(fetched)}" if fetched else "built in, never refreshed"
    click.echo(f"Server: {state['server'] or 'none'}")
    click.echo(f"Logged in: {state['user'] or nobody}")
    click.echo(f"Cookies: {state['cookies']}{session}")
    click.echo(f"Models: {state['models']} ({refreshed})")
    if not state["ok"]:
        raise click.ClickException(state["reason"])


# Models


@huggingchat.command()
def refresh() -> None:
    """Fetch the list of models, and show what was added and removed.

    Examples:
        llm huggingchat refresh
    """
    server = current_server()
    credentials = Credentials(server)
    with contextlib.suppress(llm.ModelError):
        credentials = current_credentials()  # a firewall may want its cookie
    before = {model.id for model in load_catalogue(server.url).models}
    catalogue = call_server(refresh_catalogue, credentials=credentials)
    after = {model.id for model in catalogue.models}
    for what, ids in (("Added", after - before), ("Removed", before - after)):
        for id in sorted(ids):
            click.echo(f"{what}: huggingchat/{id}")
    changed = "" if after != before else ", nothing changed"
    click.echo(f"{len(after)} models on {server.host}{changed}.")


@huggingchat.command(name="models")
@click.option("queries", "-q", "--query", multiple=True, help="Only those that match this string")
@json_option
def models_(queries: tuple[str, ...], json_: bool) -> None:
    """List the models, their aliases and what they can do.

    Each -q, as for `llm models`, has to be a part of the id or of an alias.

    Examples:
        llm huggingchat models
        llm huggingchat models -q qwen -q coder
        llm huggingchat models --json
    """
    catalogue = load_catalogue(current_server().url)
    aliases = aliases_of(catalogue.models)
    found = []
    for model in catalogue.models:
        names = [str(HuggingChat(model)), *aliases.get(model.id, [])]
        if not all(any(query.lower() in name.lower() for name in names) for query in queries):
            continue
        about = {"unlisted": model.unlisted, "description": model.description}
        head = {"id": f"huggingchat/{model.id}", "aliases": names[1:]}
        found.append({**head, **model.abilities, **about})
        if not json_:
            abilities = ", ".join(name for name, able in model.abilities.items() if able)
            line = f"huggingchat/{model.id} ({', '.join(names[1:])})"
            click.echo(f"{line}: {abilities}" if abilities else line)
    if json_:
        echo_json(found)
    elif catalogue.time is None:
        print_note("this is the built-in list; for the server's own run: llm huggingchat refresh")


# Settings

POLICIES = ("auto", "fastest", "cheapest")  # instead of a provider's name
# A setting -> where the account keeps it: an object by model id.
OVERRIDES = {
    "reasoning_effort": "reasoningEffortOverrides",
    "provider": "providerOverrides",
    "artifacts": "artifactsOverrides",
}


def settings_of(account: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each model that has any, by their names; None is the default."""
    found: dict[str, dict[str, Any]] = {}
    for name, key in OVERRIDES.items():
        for id, value in _mapping(account.get(key)).items():
            if isinstance(value, bool | str) and value != "auto":
                found.setdefault(id, dict.fromkeys(OVERRIDES))[name] = value
    return dict(sorted(found.items()))


async def account_settings(client: Client, credentials: Credentials) -> dict[str, Any]:
    """The account's settings, by the server's names. Raises HuggingChatError."""
    # Who is not logged in gets the defaults. Sent back later, they would replace the account's.
    await require_login(client, credentials)
    return cast("dict[str, Any]", await client.get(credentials, SETTINGS_PATH, dict[str, Any]))


async def change_settings(
    client: Client, credentials: Credentials, id: str, changes: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Change a model's settings, if at all; None restores a default. The settings afterwards.

    The rest goes back as it came: what is left out would go back to its default. But a null
    is superjson's undefined, and refused (captures/settings.json). Raises HuggingChatError.
    """
    provider = changes.get("provider")
    if provider and provider not in POLICIES:
        path = f"/api/v2/models/{quote(id)}"
        details = await client.get(credentials.public, path, dict[str, Any])
        entries = _mappings(details.get("providers"))
        offered = [one_line(entry.get("provider", ""), 80) for entry in entries]
        if provider not in offered:
            choices = ", ".join([*offered, *POLICIES])
            raise HuggingChatError(f"{id} has no provider {provider!r}. Choose from: {choices}")
    account = await account_settings(client, credentials)
    if not changes:
        return settings_of(account)
    changed = {key: value for key, value in account.items() if value is not None}
    for name, value in changes.items():
        kept = _mapping(account.get(OVERRIDES[name])) | {id: value}
        changed[OVERRIDES[name]] = {key: each for key, each in kept.items() if each is not None}
    # Without a session, nobody would have these settings.
    cookies = credentials.cookies or anonymous_session(credentials.server, print_note)
    credentials = Credentials(credentials.server, cookies)
    await client.call(credentials, "POST", SETTINGS_PATH, changed)
    return settings_of(await account_settings(client, credentials))


def model_named(name: str) -> ModelInfo:
    """The model with this id or alias. Raises HuggingChatError."""
    models = llm.get_model_aliases()
    model = models.get(name) or models.get(f"huggingchat/{name}")
    if isinstance(model, HuggingChat):
        return model.info
    what = f"{one_line(name, 100)!r} is not a model of {current_server().host}"
    raise HuggingChatError(f"{what}. See: llm huggingchat models")


@huggingchat.command(name="settings")
@click.argument("name", required=False, metavar="[MODEL]")
@click.option(
    "--reasoning-effort",
    type=click.Choice(["low", "medium", "high", "default"]),
    help="How much a model that reasons thinks",
)
@click.option(
    "--provider",
    metavar="NAME|auto|fastest|cheapest",
    help="Who runs it: an inference provider, or how one is chosen",
)
@click.option("--artifacts/--no-artifacts", default=None, help="Whether it writes artifacts")
@json_option
def settings_(name: str | None, json_: bool, **options: Any) -> None:
    """Show or change how models answer: reasoning effort, provider, artifacts.

    MODEL is an alias or an id. Without options its settings are shown; without MODEL, those
    of all models that have any. They are settings of your account: they apply from the next
    message on, here and on the web page.

    Examples:
        llm huggingchat settings
        llm huggingchat settings hf-deepseek --reasoning-effort low
        llm huggingchat settings hf-deepseek --provider fastest --no-artifacts
        llm huggingchat settings hf-deepseek --reasoning-effort default --provider auto
    """
    changes = {
        setting: None if value in ("default", "auto") else value
        for setting, value in options.items()
        if value is not None
    }
    if changes and not name:
        raise click.UsageError("Which model? Give an alias or an id.")
    id = model_named(name).id if name else ""
    server = current_server()
    found = call_server(change_settings, id, changes)
    if id:
        found = {id: found.get(id, dict.fromkeys(OVERRIDES))}
        if not changes.items() <= found[id].items():
            what = f"{server.host} did not save the settings"
            raise HuggingChatError(f"{what}: it may not support them.")
    if json_:
        shown = [{"model": f"huggingchat/{each}", **kept} for each, kept in found.items()]
        echo_json(shown[0] if id else shown)
        return
    models = {model.id: model for model in load_catalogue(server.url).models}
    on = {True: "on", False: "off"}
    for each, kept in found.items():
        info = models.get(each)
        default = f"default ({on[info.artifacts]})" if info else "default"
        click.echo(f"huggingchat/{one_line(each, 200)}" + ("" if info else " (no longer offered)"))
        click.echo(f"  reasoning effort: {one_line(kept['reasoning_effort'] or 'default')}")
        click.echo(f"  provider: {one_line(kept['provider'] or 'auto')}")
        click.echo(f"  artifacts: {on.get(kept['artifacts'], default)}")
    if found:
        click.echo("These are settings of your account: they apply on the web page too.")
    else:
        print_note("no model has settings of its own")


# Conversations


def find_conversation(name: str | None, *, shared: bool = True) -> ConversationRef:
    """The conversation that `name` means; without a name, the latest one in llm's logs.

    A name is an id, an address, or an id of llm's logs. Raises HuggingChatError if there is
    none, or if it is a `shared` link where that is not accepted.
    """
    server, text = current_server(), (name or "").strip()
    if re.fullmatch(r"[0-9a-fA-F]{24}", text):
        return ConversationRef(server, text.lower())
    if "://" not in text:
        with open_logs() as store:
            logged = [each for each in logged_answers(store, server) if each.conversation_id]
        named = [each for each in logged if name is None or each.thread_id == text.lower()]
        if named:
            return ConversationRef(server, named[-1].conversation_id)
    if name is None:
        what = f"llm's logs hold no conversation of {server.host}"
        raise HuggingChatError(f"{what}. Give an id or an address.")
    if server.is_service:
        text = re.sub(r"^https?://hf\.co/", f"{server.origin}/", text)  # as its shared links say
    pattern = re.escape(server.url) + r"/(conversation|r)/([A-Za-z0-9_-]+)/?([?#].*)?"
    match = re.fullmatch(pattern, text)
    if not match:
        what = f"{one_line(name, 200)!r} names no conversation on {server.url}"
        raise HuggingChatError(f"{what}. Give its id, its address or its id in llm's logs.")
    # Ids of shared conversations have 7 characters, and are accepted in either place.
    ref = ConversationRef(server, match[2], match[1] == "r" or len(match[2]) == 7)
    if ref.shared and not shared:
        raise HuggingChatError(f"{ref.page} is a shared link. First run: llm huggingchat import")
    return ref


async def settle(client: Client, credentials: Credentials, ref: ConversationRef) -> None:
    """Wait, though not long, until an answer that llm has just got is stored.

    Until then the server has an older conversation, and overwrites what is changed in it.
    """
    if not ref.shared and turn_is_pending(ref.page):
        with contextlib.suppress(TimeoutError, ConnectionLost, NotFound):
            async with asyncio.timeout(limits.settle_timeout):
                await wait_until_stored(client, credentials, ref.id)


async def call_settled(
    client: Client, credentials: Credentials, ref: ConversationRef, *call: Any
) -> HttpResponse:
    """A call that changes a conversation, once its latest answer is stored."""
    await settle(client, credentials, ref)
    return await client.call(credentials, *call)


async def read_settled(
    client: Client, credentials: Credentials, ref: ConversationRef, *type: Any
) -> Any:
    """A conversation as `client.conversation` reads it, with its latest answer."""
    await settle(client, credentials, ref)
    return await client.conversation(credentials, ref.id, *type)


async def read_tree(
    client: Client, credentials: Credentials, ref: ConversationRef
) -> ConversationTree:
    """A conversation's branches, with its latest answer. Raises NotFound."""
    found: Conversation[StoredMessage] = await read_settled(client, credentials, ref)
    title, preprompt = one_line(found.title, 200), join_surrogates(found.preprompt or "")
    model, branches = one_line(found.model, 200), branches_of(found)
    return ConversationTree(ref, title or "Untitled", model, preprompt, branches)


async def list_conversations(
    client: Client, credentials: Credentials, number: int = 0, query: str = ""
) -> list[ConversationSummary]:
    """The first `number` conversations, or all, whose title contains `query`, newest first."""
    listed: dict[str, ConversationSummary] = {}  # each once, even if pages shift meanwhile
    number, page = number if number > 0 else sys.maxsize, 0
    while True:
        path = f"/api/v2/conversations?p={page}"
        got = await client.get(credentials, path, ConversationPage)
        if not listed and not got.conversations:  # as for somebody who is not logged in
            await require_login(client, credentials)
            got = await client.get(credentials, path, ConversationPage)
        before = len(listed)
        listed |= {entry.id: entry for entry in got.conversations}
        found = [e for e in listed.values() if query.casefold() in e.title.casefold()]
        if len(listed) == before or not got.has_more or len(found) >= number:
            return found[:number]
        page += 1


def find_conversations(
    names: Iterable[str | None], *, every: bool, shared: bool = True
) -> list[ConversationRef]:
    """The conversations that `names` mean, each once, or every one of the account's."""
    if every:
        server, listed = current_server(), call_server(list_conversations)
        return [ConversationRef(server, entry.id) for entry in listed]
    return list(dict.fromkeys(find_conversation(name, shared=shared) for name in names))


def call_for_each(
    refs: list[ConversationRef],
    work: Callable[[Client, Credentials, ConversationRef], Coroutine[Any, Any, None]],
    label: str,
) -> None:
    """Do `work` for conversations, a few at a time, with a progress bar if there is a `label`.

    Raises HuggingChatError, at the end if some conversations were not there.
    """
    missing = []

    async def run(client: Client, credentials: Credentials) -> None:
        async def work_if_there(ref: ConversationRef) -> None:
            try:
                await work(client, credentials, ref)
            except NotFound:
                missing.append(ref.id)
            bar.update(1)

        await concurrently(work_if_there, refs)

    file = sys.stderr if label and sys.stderr.isatty() else io.StringIO()
    with click.progressbar(length=len(refs), label=label, show_pos=True, file=file) as bar:
        call_server(run)
    if missing:
        host, ids = current_server().host, ", ".join(missing)
        raise HuggingChatError(f"No such conversation on {host} for this account: {ids}")


@huggingchat.command()
@click.option("-n", "--number", default=20, show_default=True, help="How many to list; 0 is all")
@click.option("-q", "--query", default="", help="Only those with this string in their title")
@json_option
def conversations(number: int, query: str, json_: bool) -> None:
    """List your conversations, the newest first.

    Shows id, age, title and model. Those in llm's logs are marked with a star.

    Examples:
        llm huggingchat conversations
        llm huggingchat conversations -n 5 -q poem
    """
    server = current_server()
    found = call_server(list_conversations, number, query)
    with open_logs() as store:
        answers = logged_answers(store, server)
    threads = {each.conversation_id: each.thread_id for each in answers if each.thread_id}
    shown = []
    for entry in found:
        about = {name: one_line(text, 200) for name, text in msgspec.structs.asdict(entry).items()}
        here = {"url": server.page(entry.id), "thread_id": threads.get(entry.id)}
        shown.append({**about, **here})
        if not json_:
            updated = parse_time(entry.updated_at)
            when = age(updated.timestamp()) if updated else ""
            mark = "*" if entry.id in threads else " "
            click.echo(f"{entry.id} {mark} {when:>14}  {about['title']} ({about['model']})")
    if json_:
        echo_json(shown)
    elif not found:
        print_note("no conversation" + (f" with {query!r} in its title" if query else ""))


@huggingchat.command(name="import")
@names_argument
@click.option("every", "--all", is_flag=True, help="Import all your conversations")
@click.option(
    "every_branch", "--branches", is_flag=True, help="Import every branch, as a thread of its own"
)
def import_(names: tuple[str, ...], every: bool, every_branch: bool) -> None:
    """Import conversations from the web into llm's logs.

    There they can be read, searched and continued. [ID|URL] is a conversation's id, the
    address of its page or its id in llm's logs; by default it is the latest conversation in
    llm's logs. The newest branch of a conversation becomes a thread. Importing again adds
    only what is new. A shared conversation is copied into your account first, as the web
    page does.

    Examples:
        llm huggingchat import 6b039392759aa03066f1190f
        llm huggingchat import https://huggingface.co/chat/r/aBcD123
        llm huggingchat import --all
    """
    if names and every:
        raise click.UsageError("Give either conversations or --all.")
    refs = find_conversations(names or [None], every=every)
    wanted = slice(None if every_branch else 1)

    async def import_one(client: Client, credentials: Credentials, ref: ConversationRef) -> None:
        tree = await read_tree(client, credentials, ref)
        if ref.shared and credentials.cookies and not importer.knows(tree.branches[wanted]):
            # Only a copy in the account can be continued there.
            path, value = "/api/v2/conversations/import-share", {"shareId": ref.id}
            response = await client.call(credentials, "POST", path, value, idempotent=False)
            copy = read_body(response, Envelope[CreatedConversation], ref.server).json
            ref = ConversationRef(ref.server, copy.conversation_id)
            tree = await read_tree(client, credentials, ref)
        added = importer.add(tree, tree.branches[wanted])
        for thread_id, turns in [entry for entry in added if entry[1]] or added[:1]:
            click.echo(f"{thread_id}  {count_of(turns, 'turn')} added: {tree.title}")
        if not added:
            click.echo(f"{'-':26}  no answer in it yet: {tree.title}")

    label = "" if sys.stdout.isatty() else "Conversations imported"
    with open_logs() as store:
        importer = Importer(store, current_server())
        call_for_each(refs, import_one, label)


@huggingchat.command(name="open")
@conversation_argument
@click.option("only_print", "--print", is_flag=True, help="Print the address, open nothing")
def open_(name: str | None, only_print: bool) -> None:
    """Open the page of a conversation in the browser, and print its address.

    Examples:
        llm huggingchat open
        llm huggingchat open 6b039392759aa03066f1190f --print
    """
    page = find_conversation(name).page
    click.echo(page)
    if not only_print:
        open_in_browser(page)


@huggingchat.command()
@conversation_argument
@click.argument("title", required=False, metavar="TITLE")
def rename(name: str | None, title: str | None) -> None:
    """Give a conversation another title.

    Examples:
        llm huggingchat rename 'A poem'
        llm huggingchat rename 6b039392759aa03066f1190f 'A poem'
    """
    if title is None:  # one argument is the title
        name, title = None, name or ""
    title = title.strip()
    if not 0 < utf16_length(title) <= 100:
        raise click.UsageError("A title has 1 to 100 characters.")
    ref = find_conversation(name, shared=False)
    call_server(call_settled, ref, "PATCH", api_path(ref.id), {"title": title})
    click.echo(f"Renamed {ref.id}: {one_line(title)}")


@huggingchat.command()
@conversation_argument
def share(name: str | None) -> None:
    """Print a link with which everybody can read a conversation, as it is now.

    Examples:
        llm huggingchat share
        llm huggingchat share 6b039392759aa03066f1190f
    """
    ref = find_conversation(name, shared=False)
    response = call_server(call_settled, ref, "POST", f"{chat_path(ref.id)}/share", {})
    shared = read_body(response, SharedConversation, ref.server)
    click.echo(ref.server.shared_page(shared.share_id))


@huggingchat.command()
@names_argument
@click.option("every", "--all", is_flag=True, help="Delete all your conversations")
@yes_option
def delete(names: tuple[str, ...], every: bool, yes: bool) -> None:
    """Delete conversations on the server.

    [ID|URL] is a conversation's id, the address of its page or its id in llm's logs. What
    llm's logs hold of a conversation stays there.

    Examples:
        llm huggingchat delete 6b039392759aa03066f1190f
        llm huggingchat delete --all --yes
    """
    if bool(names) == every:
        raise click.UsageError("Give ids or addresses of conversations, or --all.")
    host, refs = current_server().host, find_conversations(names, every=every, shared=False)

    async def delete_one(client: Client, credentials: Credentials, ref: ConversationRef) -> None:
        path = api_path(ref.id)
        try:
            await client.call(credentials, "DELETE", path, idempotent=False)
        except (ConnectionLost, HttpError):
            with contextlib.suppress(NotFound):  # it was deleted, but the answer was lost
                await client.call(credentials, "DELETE", path)

    what = count_of(len(refs), "conversation")
    if len(refs) == 1:
        title = "conversation" if yes else repr(call_server(read_tree, refs[0]).title)
        what = f"{title} ({refs[0].id})"
    if refs and not yes:
        click.confirm(f"Delete {what} on {host}?", abort=True, err=True)
    call_for_each(refs, delete_one, "Conversations deleted")
    click.echo(f"Deleted {what} on {host}.")


@huggingchat.command()
@conversation_argument
@click.option(
    "format_",
    "--format",
    type=click.Choice(["markdown", "json"]),
    default="markdown",
    show_default=True,
    help="markdown: the newest branch, to read; json: everything that the server stores",
)
@output_option("The file to write; - is standard output", default=DASH, show_default=True)
def export(name: str | None, format_: str, output: pathlib.Path) -> None:
    """Write a conversation as Markdown or JSON.

    Examples:
        llm huggingchat export
        llm huggingchat export 6b039392759aa03066f1190f --format json -o poem.json
    """
    ref = find_conversation(name)
    if format_ == "markdown":
        text = to_markdown(call_server(read_tree, ref))
    else:
        raw = bytes(call_server(read_settled, ref, msgspec.Raw))
        text = msgspec.json.format(raw, indent=2).decode("utf-8", "replace") + "\n"
    if output == DASH:
        echo_text(text)
    else:
        write_files({output: io.BytesIO(text.encode())})


def load_conversation(name: str) -> llm.Fragment:
    """
    The newest branch of a HuggingChat conversation, as Markdown, without reasoning

    It is named by its id, the address of its page, a shared link, or its id in llm's logs.

    Example usage:
      llm -f huggingchat:6b039392759aa03066f1190f 'What was decided?'
      llm -f huggingchat:https://huggingface.co/chat/r/aBcD123 'Is that true?'
    """
    credentials, ref = current_credentials(), find_conversation(name)
    # On the models' loop: it works where another runs, and a prompt then uses the connection.
    with model_errors(credentials):
        tree = run_in_background(lambda client: read_tree(client, credentials, ref))
    if not tree.branches:
        raise HuggingChatError(f"{tree.ref.page} holds no answer yet.")
    text = for_logs(to_markdown(tree, for_model=True))
    return llm.Fragment(text, source=tree.ref.page)


# Artifacts

BROWSER_KINDS = ("html", "svg")  # artifacts that a browser can show by itself


@huggingchat.command()
@conversation_argument
@output_option(
    "Write the latest version of each to a file in this directory", file_okay=False, metavar="DIR"
)
@click.option("every", "--all", is_flag=True, help="Every version, not only the latest")
@click.option("show", "--open", is_flag=True, help="Show HTML and SVG in the browser")
@json_option
def artifacts(
    name: str | None, output: pathlib.Path | None, every: bool, show: bool, json_: bool
) -> None:
    """List the artifacts of a conversation, or write them to files.

    Artifacts are the pages, scripts and documents that the web page shows in a panel; here
    they are as in that panel, with the updates of later answers applied. Shows identifier,
    kind, title and versions of those in the newest branch.

    Examples:
        llm huggingchat artifacts
        llm huggingchat artifacts 6b039392759aa03066f1190f -o pages
        llm huggingchat artifacts --open
    """
    tree = call_server(read_tree, find_conversation(name))
    newest = itertools.chain(*tree.branches[:1])
    answers = (message.content for message in newest if message.sender == "assistant")
    found = artifacts_of(map(join_surrogates, answers))
    names = file_names(found, every)
    if output is None:
        names = [(name, each) for name, each in names if show and each.kind in BROWSER_KINDS]
    files: dict[pathlib.Path, ArtifactVersion] = {}
    if names:
        folder = output or pathlib.Path(tempfile.mkdtemp(prefix="huggingchat-"))
        folder.mkdir(parents=True, exist_ok=True)
        files = {folder / name: version for name, version in names}
        write_files({path: io.BytesIO(each.content.encode()) for path, each in files.items()})
    if json_:
        echo_json(list(itertools.starmap(_artifact_json, found.items())))
    elif output:
        for path, version in files.items():
            click.echo(f"{path} ({len(version.content.encode())} bytes)")
    if not found:
        print_note("there are no artifacts in this conversation")
    for identifier, versions in found.items():
        if not (json_ or output):
            _echo_artifact(identifier, versions, every)
        _note_problems(identifier, versions)
    pages = [path for path, version in files.items() if version.kind in BROWSER_KINDS]
    if show and not pages:
        print_note("there is no HTML or SVG to show")
    for path in pages if show else ():
        if not open_in_browser(path.resolve().as_uri()):
            print_note(f"there is no browser here to open {path}")


def _artifact_json(identifier: str, versions: list[ArtifactVersion]) -> dict[str, Any]:
    values = msgspec.to_builtins(versions)
    latest = {name: values[-1][name] or None for name in ("kind", "title", "language")}
    return {"identifier": identifier, **latest, "versions": values}


def _echo_artifact(identifier: str, versions: list[ArtifactVersion], every: bool) -> None:
    """Print what an artifact is: a line, and with `every` one for each of its versions."""
    latest = versions[-1]
    name, title = one_line(identifier, 100), one_line(latest.title, 200)
    kind = one_line(latest.language or latest.kind, 30)
    click.echo(f"{name}  {kind}  {title} ({count_of(len(versions), 'version')})")
    for version in versions if every else ():
        size, title = len(version.content.encode()), one_line(version.title, 200)
        click.echo(f"  {version.number}: {version.operation}, {size} bytes: {title}")


def _note_problems(identifier: str, versions: list[ArtifactVersion]) -> None:
    """Tell what did not go as the model meant it."""
    for version in versions:
        which = f"version {version.number} of {one_line(identifier, 100)}"
        for text in version.missed:
            print_note(f"{which} did not match: it replaces {one_line(text, 60)!r}")
        if version.cut:
            print_note(f"{which} was never closed")


# Recordings, and files in answers


@huggingchat.command()
@click.argument("file")
def transcribe(file: str) -> None:
    """Print what is said in a recording.

    FILE is mp3, wav, flac, ogg, webm, mp4 or m4a, of at most 25 MB. It can be an address on
    the web; - is standard input.

    Examples:
        llm huggingchat transcribe memo.mp3
    """
    attachment = llm.Attachment(url=file) if "://" in file else llm.Attachment(path=file)
    if file == "-":
        attachment = llm.Attachment(content=sys.stdin.buffer.read(AUDIO_LIMIT + 1))

    async def work(client: Client, credentials: Credentials) -> str:
        command = "llm huggingchat transcribe"
        recording = upload_of(
            attachment, *await read_attachment(client, attachment), (RECORDINGS,), command
        )
        (text,) = await transcribe_all(client, credentials, [recording], print_note)
        return f"{text}\n"

    echo_text(call_server(work))


@huggingchat.command()
@click.argument("url")
@output_option(
    "The file or directory to write; - is standard output  [default: the file's own name]"
)
def download(url: str, output: pathlib.Path | None) -> None:
    """Download a file of an answer, by its link.

    Examples:
        llm huggingchat download URL
        llm huggingchat download URL -o picture.png
    """
    server = current_server()
    # Nothing but a file's address may get the cookies: no other page, and no way around.
    pattern = re.escape(server.url) + r"(/conversation/[A-Za-z0-9_-]+/output/[A-Za-z0-9_-]+)"
    match = re.fullmatch(pattern, url.strip())
    if not match:
        raise HuggingChatError(f"{one_line(url, 200)} is not the link of a file on {server.url}.")
    if output == DASH and sys.stdout.isatty():
        raise click.UsageError("Standard output is a terminal: name a file.")
    path = match[1]

    async def fetch(client: Client, credentials: Credentials) -> HttpResponse:
        with contextlib.suppress(NotFound):
            return await client.call(credentials, "GET", path, max_bytes=FILE_SIZE_LIMIT, into=file)
        raise HuggingChatError(f"{server.host} has no such file for this account.")

    # What comes may be a refusal, or half a file: only a whole one replaces what is there.
    with tempfile.TemporaryFile() as file:
        response = call_server(fetch)
        size = file.tell()
        file.seek(0)
        if output == DASH:
            shutil.copyfileobj(file, sys.stdout.buffer)
            return
        if output is None or output.is_dir():
            output = (output or pathlib.Path()) / _file_name(response, path)
        write_files({output: file})
    click.echo(f"{output} ({size} bytes)")


def _file_name(response: HttpResponse, path: str) -> str:
    """A safe name for a downloaded file: the server's own, else the end of its link."""
    from email.message import Message as Headers

    headers = Headers()
    headers["content-disposition"] = re.sub(r"[\r\n]", "", response.header("content-disposition"))
    name = None
    with contextlib.suppress(Exception):  # it trips over what makes no sense at all
        name = headers.get_filename()
    name = (name or path).replace("\\", "/")
    type = response.header("content-type").partition(";")[0]
    return safe_stem(upload_name(llm.Attachment(path=name), type))


# --- hooks: what llm calls when it starts ------------------------------------------------


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Register every model of the current server, from the cached catalogue.

    Models that are no longer offered come last, without aliases: llm looks up the model of
    a logged conversation before it looks at `-m`.
    """
    try:
        catalogue = load_catalogue(current_server().url)
    except llm.ModelError:
        catalogue = Catalogue()  # a prompt says what is wrong with the address
    names = aliases_of(catalogue.models)
    removed = (ModelInfo(id, removed=True) for id in catalogue.removed)
    for info in (*catalogue.models, *removed):
        register(HuggingChat(info), AsyncHuggingChat(info), aliases=tuple(names.get(info.id, ())))


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """Register `llm huggingchat`."""
    cli.add_command(huggingchat)


@llm.hookimpl
def register_fragment_loaders(register: Callable[..., None]) -> None:
    """Register `-f huggingchat:ID`."""
    register("huggingchat", load_conversation)
