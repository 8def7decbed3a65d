"""A stand-in for a HuggingChat server: for the tests, and for trying the plugin without an account.

    python tests/chat_ui.py llm -m hf-llama "Hello"

starts it on a free port of this machine, runs the command with LLM_HUGGINGCHAT_URL set to its
address and LLM_USER_PATH to a temporary directory, and exits with the command's status. Use
`sh -c "…"` to run several commands against one server. Without a command it serves until Ctrl-C.

Options, before the command: `--login` rehearses a server that wants a login, and prints which token
to paste. `--log FILE` writes each request as a line of JSON, without cookie values.

The model answers "You said: …". Words in [[double brackets]] in a prompt steer it.

The answer: [[say]]TEXT[[/say]] says just TEXT; of several, the n-th answer of the conversation is
the n-th, and all later ones are the last; [[reason]] thinks first, inside the text; [[think]] does,
with the tags cut in two; [[reasoning_events]] does, with events of their own; [[tokens=N]] w0 w1 …;
[[delay=S]] seconds a token; [[wait=S]] seconds before the first; [[unicode]]; [[history]] the
messages the model sees, as JSON; [[images]] how many images it sees; [[tool]] one tool call,
[[tools]] two, [[tool_error]] one that fails, [[elicit]] one that asks the person something and
waits for `ChatUI.reply`, [[elicit_ends]] one that asks and the run ends (all five only if tools are
selected); [[file]] a picture in the middle; [[unstreamed]] the text comes only with the final
answer; [[router]] names a route and model, as `omni` does; [[title=T]], [[title_delay=S]].

The model fails: [[err=429]]; [[die=N]] stops after N tokens, without a final answer; [[empty]].

Sending fails (`*K`: the first K times): [[drop=before]] the connection closes and nothing is
stored, [[drop=after]] it closes but the message is stored (both once by default); [[status=502]] an
error instead (always by default); [[status_after=500]] an error though the message is stored and
its answer written (once by default); [[html]] a page instead.

The stream: [[noise]] lines to ignore; [[split]] a chunk for every byte, [[split=N]] for every N;
[[cut=N,M,…]] cut after N tokens, the first resumed stream after M events, and so on;
[[cut_bytes=N]]; [[end=N]] it ends after N tokens as if it were whole; [[stall=N]] silent after N
tokens; [[hold]] silent after the final answer.

The log: [[stall_resume=K]] the first K resumed streams are silent, without a heartbeat; [[churn=M]]
every resumed stream closes after M events; [[log_status=404]] or another error instead (`*K`: the
first K times); [[gone]] there is none, [[gone_incomplete]] and half an answer is stored.

The store: [[store=S]] seconds from the end of the answer until it is stored; [[nofetch]] the
conversation cannot be read, [[slowfetch=S]] only after S seconds; [[delete=N]] it is deleted after
N tokens.

A recording is heard as "I heard N bytes of TYPE.", or as what its bytes say: [[say]]TEXT[[/say]];
[[silence]] nothing; [[wait=S]] seconds before it is heard; [[slow]] it takes too long; [[err=429]]
the service that transcribes fails.

Faults of all other calls are set by tests: `ChatUI.faults`, and the attributes of a ChatUI.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import copy
import json
import math
import os
import pathlib
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler
from itertools import chain, cycle
from socketserver import ThreadingTCPServer
from typing import Any, TextIO
from urllib.parse import parse_qsl, quote, urlsplit

from chat_ui_runs import PICTURE as PICTURE
from chat_ui_runs import (
    SAY,
    Conversation,
    Event,
    File,
    Message,
    Pieces,
    Refusal,
    Run,
    Words,
    dumps,
    log_of,
    new_message,
    stored_title,
    stream_of,
)


def captured(name: str, number: int = 0) -> Any:
    """What a real server answered: the JSON of an exchange in tests/captures."""
    path = pathlib.Path(__file__).parent / "captures" / f"{name}.json"
    chunks = json.loads(path.read_text("utf-8"))["exchanges"][number]["response"]["chunks"]
    return json.loads("".join(text for _, text in chunks))


PAGE = b"<!doctype html>\n<html><head><title>HuggingChat</title></head><body></body></html>\n"
OMNI, LLAMA, *_ = captured("models")["json"]
PLAIN = {"description": None, "supportsArtifacts": False}
# As the service's, but one company's are gone since the plugin's own list was made.
SERVICE = captured("models_service")["json"][1:]
MODELS = [OMNI, *(each | PLAIN for each in SERVICE if not each["id"].startswith("nvidia/"))]
DEFAULTS = captured("settings")["json"]
SETTINGS = {name: value for name, value in DEFAULTS.items() if not name.startswith("welcome")}
TOO_LONG = "This conversation has more than {} messages. Start a new one to continue"
NO_ACCESS = (
    "You don't have access to this conversation. If someone gave you this link, ask them to use"
    " the 'share' feature instead."
)
TOO_MANY = "You have reached the maximum number of conversations. Delete some to continue."
TOOL_SERVERS = [
    {"name": "Web Search (Exa)", "url": "https://mcp.exa.example/mcp"},
    {"name": "Hugging Face", "url": "https://hf.example/mcp"},
]
FOR_A_MINUTE = ("cache-control", "private, max-age=60")
LOGIN_PAGE = "/oauth/authorize"  # of the login provider, which shares the service's origin
HEARTBEAT = 0.25  # seconds that a resumed stream is silent at most
STORE_DELAY = 0.3  # seconds from `finished` to the moment when the answer is stored
STOP_MARKER = 5.0  # seconds for which a stop also stops the *next* answer of its conversation


# --- requests and replies ------------------------------------------------------------------------


def parse_form(content_type: str, body: bytes) -> tuple[dict[str, Any] | None, list[File]]:
    """The message in a form, None if there is none, and its files."""
    data, files = None, []
    boundary = re.match(r'multipart/form-data.*boundary="?([^";]+)', content_type)
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary[1].encode()) if boundary else []
    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        text = head.decode(errors="replace")
        name = re.search(r'filename="base64;((?:\\.|[^"\\])*)"', text)
        mime = re.search(r"(?i)content-type: *([^\r\n]+)", text)
        if name and mime:
            plain = re.sub(r"\\(.)|%22", lambda match: match[1] or '"', name[1])
            files.append((plain, mime[1].strip(), base64.b64decode(content)))
        elif 'name="data"' in text:
            data = json.loads(content)
    return data, files


@dataclass
class Request:
    """A request that arrived whole."""

    method: str
    path: str  # without the base path; with "outside:" before it if it is not under that
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    cookies: dict[str, str]
    body: bytes
    data: dict[str, Any] | None  # of a message: its `data` part
    files: list[File]
    connection: int  # which connection it came over, counted from 1
    number: int  # which request it is, counted from 1 when its head had arrived
    session: str = ""  # the value of hf-chat to go on with
    user: str | None = None  # who is logged in

    @property
    def owner(self) -> str:
        """Whose conversations the one who asks sees."""
        return self.user or self.session

    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body or b"{}"))


@dataclass
class Reply:
    """What a request is answered."""

    body: bytes = b""
    content_type: str | None = "application/json"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0  # seconds before it, if the client does not leave
    pieces: Pieces | None = None  # of a stream: its body, a chunk for each
    faults: dict[int, str] = field(default_factory=dict)  # after how many events: cut, stall or end
    chunk: int = 0  # bytes of a smaller chunk
    limit: int = sys.maxsize  # the connection closes after so many bytes


def in_superjson(value: object, *headers: tuple[str, str]) -> Reply:
    """A reply in the envelope of the newer calls."""
    return Reply(dumps({"json": value}), headers=headers)


def redirect(location: str, *cookies: str) -> Reply:
    headers = (("location", location), *(("set-cookie", cookie) for cookie in cookies))
    return Reply(b"", None, 302, headers)


# --- faults of sending and of other calls --------------------------------------------------------


@dataclass
class Fault(Reply):
    """What goes wrong with one request: first the delay, then the first of the others that is set.

    Without drop, stall, flood or status, the request is answered as usual. With `done`, all that it
    asks for is done at once, and what goes wrong is its answer (messages have words for that).
    """

    body: bytes = PAGE
    content_type: str | None = "text/html"
    status: int = 0
    drop: bool = False  # the connection closes without an answer
    stall: bool = False  # no answer, until the client leaves
    flood: bytes = b""  # the body begins with `body`, and then this comes until the client leaves
    done: bool = False

    def __post_init__(self) -> None:
        if self.flood:
            self.status = self.status or 200
            endless = chain([self.body], cycle([self.flood, b""]))
            self.pieces = ((piece, False) for piece in endless)


# The words that are faults of sending, and how often they are, if they do not say that.
SENDING = {"drop": 1, "status": math.inf, "status_after": 1, "html": math.inf}


def fault_of(word: str, value: str) -> Fault:
    """What goes wrong with sending a message, by a word and its value."""
    done = value == "after" or word == "status_after"
    if word == "drop":
        return Fault(drop=True, done=done)
    status = int(value or 200)
    if status in (200, 502, 503, 504):  # these come from a server in front of it
        return Fault(status=status, done=done)
    body = dumps(Refusal(status).body)
    return Fault(status=status, body=body, content_type="application/json", done=done)


# --- the server ----------------------------------------------------------------------------------


@dataclass(repr=False)
class ChatUI:
    """The server, its state, and what it has seen. A context manager: leaving it closes it."""

    base_path: str = "/chat"
    login_required: bool = False
    # Who is logged in: the cookie `hf-chat` to the user's name and the cookie `token` (or None).
    sessions: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    models: list[dict[str, Any]] = field(default_factory=list)  # or else MODELS
    delay: float = 0.002  # seconds a token
    store_delay: float = STORE_DELAY  # seconds until an answer that has ended is stored
    uplink: int = sys.maxsize  # how many bytes of a request's body are read in a second

    def __post_init__(self) -> None:
        self.base_path = self.base_path.rstrip("/")
        self.models = [LLAMA | {"name": model["id"]} | model for model in self.models or MODELS]
        self.port = 0  # a free one
        self.latency = 0.0  # seconds after which a request is looked at
        self.mcp_servers: Sequence[dict[str, str]] = TOOL_SERVERS
        # USAGE_LIMITS: what came within `minute` seconds counts, refused or not.
        self.messages_per_minute = self.max_conversations = self.max_messages = sys.maxsize
        self.minute = 60.0
        # What the login provider knows: the tokens that make a session, and whose they are.
        self.tokens: dict[str, str] = {}
        self.login_wants = ""  # or "consent": it shows a page first
        self.logins: dict[str, str] = {}  # the code, or the provisional session: the verifier
        self.transcribes = True  # there is a TRANSCRIPTION_MODEL
        # What goes wrong with the next requests of a kind, one after another: by method and path
        # (without the base path; * and ? are wildcards). `spoil` changes the bodies of all answers.
        self.faults: dict[tuple[str, str], list[Fault]] = {}
        self.spoil: Callable[[Request, bytes], bytes] = lambda request, body: body
        self.may_speak = threading.Event()  # while cleared, no model says anything
        self.may_store = threading.Event()  # while cleared, no answer that has ended is stored
        self.log: list[Request] = []
        self.log_file: TextIO | None = None
        self.begun = self.connections = 0  # how many requests have begun, connections been made
        self.conversations: dict[str, Conversation] = {}
        self.shares: dict[str, Conversation] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.elicitations: list[Event] = []  # what became of each question of a tool
        self.stops: list[tuple[str, str | None]] = []
        self.all_runs: list[Run] = []
        self.sent_at: list[float] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.open_connections: set[socket.socket] = set()
        self._used: Counter[tuple[str, str, str]] = Counter()
        self._place = socket.socket()
        self._server: Server | None = None
        self.may_speak.set()
        self.may_store.set()
        self.up()

    def __enter__(self) -> ChatUI:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the server, and stop all runs."""
        for event in (self.closing, self.may_speak, self.may_store):
            event.set()
        for run in self.all_runs:
            run.stop()
        self.down()
        self._place.close()
        for run in self.all_runs:
            run.thread.join(1)

    @property
    def url(self) -> str:
        """The server's address, as LLM_HUGGINGCHAT_URL takes it."""
        return f"http://127.0.0.1:{self.port}{self.base_path}"

    @property
    def runs(self) -> dict[str, str]:
        """The state of every run, by generation id: running, completed, interrupted or error."""
        return {run.generation_id: run.state for run in list(self.all_runs)}

    def messages(self, conversation_id: str, role: str | None = None) -> list[Message]:
        """The stored messages of a conversation: all, or those of system, user or assistant.

        Answers that have ended are waited for until they are stored.
        """
        for run in list(self.all_runs):
            with run.changed:
                while run.conversation.id == conversation_id and run.ending:
                    run.changed.wait()
        with self.lock:
            messages = copy.deepcopy(self.conversations[conversation_id].messages)
        return [message for message in messages if role in (None, message["from"])]

    def reply(self, **content: Any) -> None:
        """Answer a tool's latest question, as the web page does."""
        self.elicitations[-1].update(action="accept", content=content, resolution="user")

    def down(self) -> None:
        """Stop listening and drop all connections. Runs go on, and nothing is forgotten."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            self._place = socket.socket()  # no other test's server must take the port meanwhile
            self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._place.bind(("127.0.0.1", self.port))
        with self.lock:
            for connection in self.open_connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def up(self) -> None:
        """Listen, on the same port as before."""
        self._place.close()
        self._server = self._server or Server(self)
        self.port = self._server.server_address[1]

    def record(self, request: Request) -> None:
        with self.lock:
            self.log.append(request)
            if self.log_file:
                line = vars(request) | {"cookies": sorted(request.cookies)}
                line["headers"] = {k: v for k, v in request.headers.items() if k != "cookie"}
                line["files"] = [[name, mime, len(file)] for name, mime, file in request.files]
                line["body"] = None if request.data else request.body.decode(errors="replace")
                print(json.dumps(line), file=self.log_file, flush=True)

    def next_fault(self, request: Request) -> Fault:
        """What goes wrong with this request, if anything."""
        with self.lock:
            for (method, pattern), faults in self.faults.items():
                if faults and method == request.method and fnmatchcase(request.path, pattern):
                    return faults.pop(0)
            text = (request.data or {}).get("inputs", "")
            words = Words(text)
            for word in SENDING.keys() & words.keys():
                value, times = words.times(word, SENDING[word])
                self._used[request.path, text, word] += 1
                if self._used[request.path, text, word] <= times:
                    return fault_of(word, value)
        return Fault()

    def model(self, model_id: object) -> dict[str, Any] | None:
        return next((model for model in self.models if model["id"] == model_id), None)

    def of(self, owner: str) -> list[Conversation]:
        return [each for each in list(self.conversations.values()) if each.session == owner]

    def add_conversation(self, owner: str, model: str, preprompt: str, **more: Any) -> Conversation:
        root = {"from": "system", "content": preprompt} | new_message([])
        conversation = Conversation(owner, model, preprompt, [root], **more)
        self.conversations[conversation.id] = conversation
        return conversation


class Server(ThreadingTCPServer):
    """The listening socket of a ChatUI."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 128

    def __init__(self, chat: ChatUI) -> None:
        self.chat = chat
        super().__init__(("127.0.0.1", chat.port), Handler)
        if chat.uplink < sys.maxsize:  # else the machine takes megabytes before they are read
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        threading.Thread(target=self.serve_forever, args=(0.002,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection: reads its requests and sends the replies."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        self.chat = self.server.chat
        with self.chat.lock:
            self.chat.connections += 1
            self.number = self.chat.connections
            self.chat.open_connections.add(self.connection)

    def finish(self) -> None:
        with self.chat.lock:
            self.chat.open_connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def serve(self) -> None:
        chat = self.chat
        try:
            request = self.read_request()
            chat.record(request)
            chat.closing.wait(chat.latency)
            fault = chat.next_fault(request)
            done = answer(chat, request) if fault.done else None
            chat.closing.wait(fault.delay)
            if fault.stall:
                self.linger()
            if fault.drop or fault.stall:
                raise ConnectionError
            reply = fault if fault.status else done or answer(chat, request)
            self.linger(0 if reply is fault else reply.delay)
            if reply.pieces:
                self.stream(reply, reply.pieces)
            else:
                body = chat.spoil(request, reply.body)
                self.send_head(reply, ("content-length", str(len(body))))
                self.wfile.write(body)
        except OSError:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = serve

    def read_request(self) -> Request:
        with self.chat.lock:
            self.chat.begun += 1
            begun = self.chat.begun
        headers = {name.lower(): value for name, value in self.headers.items()}
        size, uplink, body = int(headers.get("content-length", 0)), self.chat.uplink, b""
        while piece := self.rfile.read(min(uplink // 20, size - len(body))):
            body += piece
            self.chat.closing.wait(len(piece) / uplink)
        if len(body) < size:
            raise ConnectionError
        url = urlsplit(self.path)
        base_path = self.chat.base_path
        inside = url.path.startswith(base_path)
        path = url.path.removeprefix(base_path) if inside else f"outside:{url.path}"
        query = dict(parse_qsl(url.query))
        pairs = [part.strip().partition("=") for part in headers.get("cookie", "").split(";")]
        cookies = {name: value for name, _, value in pairs if name}
        message = (body, *parse_form(headers.get("content-type", ""), body))
        number = (self.number, begun)
        return Request(self.command, path, query, headers, cookies, *message, *number)

    def send_head(self, reply: Reply, *more: tuple[str, str]) -> None:
        self.send_response(reply.status)
        kind = [("content-type", reply.content_type)] if reply.content_type else []
        for name, value in (*kind, *reply.headers, *more):
            self.send_header(name, value)
        self.end_headers()

    def stream(self, reply: Reply, pieces: Pieces) -> None:
        """Send what comes, as it comes, up to a fault."""
        self.send_head(reply, ("transfer-encoding", "chunked"))
        sent, events, limit = b"", 0, reply.limit
        with contextlib.closing(pieces):
            for data, is_event in pieces:
                data = data[:limit]
                limit -= len(data)
                size = reply.chunk or len(data) or 1
                for chunk in (data[at : at + size] for at in range(0, len(data), size)):
                    sent += b"%x\r\n%b\r\n" % (len(chunk), chunk)
                events += is_event
                fault = "cut" if limit == 0 else reply.faults.get(events)
                if data and not fault:
                    continue
                self.wfile.write(sent)
                sent = b""
                if fault == "stall":
                    self.linger()
                if fault == "end":
                    self.wfile.write(b"0\r\n\r\n")
                if fault or self.linger(0):
                    raise ConnectionError
        self.wfile.write(sent + b"0\r\n\r\n")

    def linger(self, seconds: float | None = None) -> bool:
        """Say nothing until the client leaves, or the time is over. Whether it has left."""
        return bool(select.select([self.connection], [], [], seconds)[0])


# --- endpoints: what is common to them -----------------------------------------------------------


def answer(chat: ChatUI, request: Request) -> Reply:
    """Find out who asks, and let the endpoint answer."""
    path, kind = request.path, request.headers.get("content-type", "")
    if path.removeprefix("outside:") == LOGIN_PAGE:
        return authorize(chat, request)
    request.session = request.cookies.get("hf-chat") or str(uuid.uuid4())
    if chat.login_required and request.session in chat.sessions:
        user, token = chat.sessions[request.session]
        if request.cookies.get("token") == token:
            request.user = user
        else:  # the session is not to be trusted
            request.session = str(uuid.uuid4())
    refused = chat.login_required and not request.user
    if refused and not re.match("/(login|conversation/|api)", path):
        return begin_login(chat, request)
    if kind.startswith("multipart/form-data") and "origin" not in request.headers:
        return early_no(request, 403, "Non-JSON form requests need to have an origin")
    if refused and request.method != "GET":
        return early_no(request, 401, "You have to be logged in.")
    reply = Reply(PAGE, "text/html", 404)
    try:
        for method, pattern, endpoint in ENDPOINTS:
            if method == request.method and (match := re.fullmatch(pattern, path)):
                named: dict[str, Any] = match.groupdict()
                with chat.lock:
                    if "conversation" in named:
                        named["conversation"] = own(chat, request, named["conversation"])
                    reply = endpoint(chat, request, **named)
                break
    except Refusal as refusal:
        reply = Reply(dumps(refusal.body), status=refusal.status)
    if request.method == "POST":
        expires = formatdate(time.time() + 14 * 24 * 3600, usegmt=True)
        cookie = f"hf-chat={request.session}; Path=/; Expires={expires}; HttpOnly; SameSite=Lax"
        reply.headers += (("set-cookie", cookie),)
    return reply


def early_no(request: Request, status: int, message: str) -> Reply:
    """A refusal before the request is looked at: JSON only for those who speak it."""
    headers = request.headers
    if "application/json" in headers.get("accept", "") + headers.get("content-type", ""):
        return Reply(dumps({"error": message}), status=status)
    return Reply(message.encode(), "text/plain", status)


def own(chat: ChatUI, request: Request, conversation_id: str) -> Conversation:
    """A conversation of the one who asks; to be read, also one that somebody shared."""
    if request.method == "GET" and conversation_id in chat.shares:
        return chat.shares[conversation_id]
    newer = request.path.startswith("/api/")
    if not re.fullmatch(r"[0-9a-fA-F]{24}", conversation_id):
        raise Refusal(400, "Invalid conversation ID format") if newer else Refusal(500)
    conversation = chat.conversations.get(conversation_id)
    if conversation and conversation.session == request.owner:
        return conversation
    if conversation and newer and request.method == "GET":
        raise Refusal(403, NO_ACCESS)
    raise Refusal(404, "Conversation not found." if newer else None)


# --- endpoints: logins ---------------------------------------------------------------------------


def begin_login(chat: ChatUI, request: Request) -> Reply:
    """Send somebody to the login provider, with a provisional session."""
    chat.logins[request.session] = verifier = secrets.token_hex(16)
    back = quote(f"{chat.url}/login/callback", safe="")
    query = f"client_id=cid&redirect_uri={back}&state={request.session}"
    return redirect(
        f"http://127.0.0.1:{chat.port}{LOGIN_PAGE}?{query}",
        f"hf-chat={request.session}; Path=/; HttpOnly; SameSite=Lax",
        f"hfChat-codeVerifier={verifier}; Path=/",
    )


def authorize(chat: ChatUI, request: Request) -> Reply:
    """What the login provider does: a page, or straight back for those whom it knows."""
    if request.cookies.get("token") not in chat.tokens or chat.login_wants == "consent":
        return Reply(PAGE, "text/html")
    return redirect(f"{request.query['redirect_uri']}?code=c&state={request.query['state']}")


def end_login(chat: ChatUI, request: Request) -> Reply:
    """Back from the login provider: the session becomes somebody's."""
    verifier = chat.logins.pop(request.cookies.get("hf-chat", ""), None)
    if not verifier or request.cookies.get("hfChat-codeVerifier") != verifier:
        raise Refusal(403)
    session, token = str(uuid.uuid4()), request.cookies.get("token", "")
    chat.sessions[session] = (chat.tokens[token], token)
    return redirect(f"{chat.base_path}/", f"hf-chat={session}; Path=/; HttpOnly; SameSite=Lax")


# --- endpoints: what the server offers -----------------------------------------------------------


def show_model(chat: ChatUI, request: Request, model_id: str) -> Reply:
    """A model, and who can run it."""
    model = chat.model(model_id)
    if not model:
        raise Refusal(404, "Model not found")
    names = ("novita", "together", "fireworks-ai")
    providers = None if model["isRouter"] else [{"provider": name} for name in names]
    return in_superjson(model | {"providers": providers, "parameters": {}})


def show_user(chat: ChatUI, request: Request) -> Reply:
    user = captured("user_logged_in")["json"] | {"username": request.user}
    return in_superjson(user if request.user else None)


def feature_flags(chat: ChatUI, request: Request) -> Reply:
    flags = {"loginEnabled": chat.login_required, "transcriptionEnabled": chat.transcribes}
    return in_superjson(captured("feature_flags")["json"] | flags)


def list_tool_servers(chat: ChatUI, request: Request) -> Reply:
    entry = captured("mcp_servers")[0]
    servers = [entry | server | {"id": server["name"]} for server in chat.mcp_servers]
    return Reply(dumps(servers))


def transcribe(chat: ChatUI, request: Request) -> Reply:
    """What is said in a recording (`src/routes/api/transcribe/+server.ts`)."""
    mime = request.headers.get("content-type", "")
    content = request.body.decode(errors="replace")
    words, said = Words(content), SAY.search(content)
    if "slow" in words:
        raise Refusal(504, "Transcription took too long. Please try a shorter recording.")
    if "err" in words:
        why = dumps({"error": f"whisper says {words['err']}"}).decode()
        raise Refusal(int(words["err"]), f"Transcription failed: {why}")
    text = said[1] if said else f"I heard {len(request.body)} bytes of {mime}."
    heard = dumps({"text": "" if "silence" in words else text.strip()})
    return Reply(heard, delay=words.number("wait", 0))


def show_settings(chat: ChatUI, request: Request) -> Reply:
    return in_superjson(DEFAULTS | chat.settings.get(request.owner, {}))


def change_settings(chat: ChatUI, request: Request) -> Reply:
    """New settings: what is left out goes back to its default."""
    given = request.json()
    if None in given.values():
        raise Refusal(500)
    chat.settings[request.owner] = {name: given[name] for name in SETTINGS if name in given}
    return Reply(content_type=None)


# --- endpoints: conversations --------------------------------------------------------------------


def create(chat: ChatUI, request: Request) -> Reply:
    """Make a conversation."""
    body = request.json()
    model = chat.model(body.get("model"))
    if not model or not isinstance(body.get("preprompt", ""), str):
        raise Refusal(400)
    if len(chat.of(request.owner)) > chat.max_conversations:
        raise Refusal(429, TOO_MANY)
    preprompt = body.get("preprompt", model["preprompt"] or "")
    conversation = chat.add_conversation(request.owner, model["id"], preprompt)
    text = dumps({"json": conversation.as_json()}).decode()
    return Reply(dumps({"conversationId": conversation.id, "conversation": text}))


def list_conversations(chat: ChatUI, request: Request) -> Reply:
    page = request.query.get("p", "0")
    start = 30 * int(page) if page.isdecimal() else 0
    mine = sorted(chat.of(request.owner), key=lambda each: each.updated_at)[::-1]
    fields = ("id", "title", "updatedAt", "model", "modelId")
    shown = [conversation.as_json() for conversation in mine[start : start + 30]]
    shown = [{"_id": item["id"]} | {name: item[name] for name in fields} for item in shown]
    return in_superjson({"conversations": shown, "hasMore": len(mine) > start + 30})


def show_conversation(chat: ChatUI, request: Request, conversation: Conversation) -> Reply:
    if "nofetch" in conversation.words:
        raise Refusal(500)
    reply = in_superjson(conversation.as_json())
    reply.delay = conversation.words.number("slowfetch", 0)
    return reply


def change_conversation(chat: ChatUI, request: Request, conversation: Conversation) -> Reply:
    body = request.json()
    title, model = body.get("title"), body.get("model")
    if "model" in body and not chat.model(model):
        raise Refusal(400, "Invalid model ID")
    if isinstance(title, str):
        conversation.title = stored_title(title)
    if isinstance(model, str) and model != conversation.model:
        for message in conversation.messages:
            if message["from"] == "assistant":  # which model that was, from now on
                metadata = {"route": "", "model": ""} | message.get("routerMetadata", {})
                metadata["model"] = metadata["model"] or conversation.model
                message["routerMetadata"] = metadata
        conversation.model = model
    return in_superjson({"success": True})


def delete_conversation(chat: ChatUI, request: Request, conversation: Conversation) -> Reply:
    del chat.conversations[conversation.id]
    return in_superjson({"success": True})


def share(chat: ChatUI, request: Request, conversation: Conversation) -> Reply:
    """Give a conversation, as it is now, an address of its own."""
    share_id = secrets.token_urlsafe(6)[:7]
    chat.shares[share_id] = copy.deepcopy(replace(conversation, id=share_id, shared=True))
    return Reply(dumps({"shareId": share_id}))


def import_share(chat: ChatUI, request: Request) -> Reply:
    """The account's own copy of what somebody shared."""
    share_id = request.json()["shareId"]
    mine = [each for each in chat.of(request.owner) if each.from_share == share_id]
    if not mine:
        share = chat.shares[share_id]
        whose = (request.owner, share.model, share.preprompt)
        copied = chat.add_conversation(*whose, title=share.title, from_share=share_id)
        copied.messages, copied.files = copy.deepcopy((share.messages, share.files))
        mine = [copied]
    return in_superjson({"conversationId": mine[0].id})


def output(chat: ChatUI, request: Request, conversation: Conversation, sha: str) -> Reply:
    """A file of a conversation."""
    if sha not in conversation.files:
        raise Refusal(404, "File not found")
    mime, content = conversation.files[sha]
    name = f'attachment; filename="{sha[:8]}.{mime.partition("/")[2]}"'
    return Reply(content, mime, headers=(("content-disposition", name),))


# --- endpoints: messages and their runs ----------------------------------------------------------


def send_message(chat: ChatUI, request: Request, conversation: Conversation) -> Reply:
    """Take a message: the stream of the run that answers it."""
    data = request.data or {}
    time_now = time.monotonic()
    chat.sent_at = [at for at in chat.sent_at if at > time_now - chat.minute] + [time_now]
    if len(chat.sent_at) > chat.messages_per_minute:
        raise Refusal(429)
    if len(conversation.messages) > chat.max_messages:
        raise Refusal(429, TOO_LONG.format(chat.max_messages))
    if not (model := chat.model(conversation.model)):
        raise Refusal(410)
    listed = (*chat.mcp_servers, *data.get("selectedMcpServers", []))
    servers = [server["name"] for server in listed if model["supportsTools"]]
    tools = [name for name in servers if name in data.get("selectedMcpServerNames", servers)]
    if conversation.stop and time_now - conversation.stop[0] > STOP_MARKER:
        conversation.stop = None
    messages = conversation.grow(data, [file for file in request.files if file[2]])
    run = Run(chat, conversation, conversation.prompt(messages, model, tools), messages)
    chat.all_runs.append(run)
    words = run.words
    return Reply(
        content_type="application/jsonl",
        pieces=stream_of(run),
        faults={at: name for name in ("cut", "stall", "end") for at in words.numbers(name)[:1]},
        chunk=int(words.number("split", 1)) if "split" in words else 0,
        limit=int(words.number("cut_bytes", sys.maxsize)),
    )


def stop(chat: ChatUI, request: Request, conversation: Conversation) -> Reply:
    body = request.json()
    generation_id = body.get("generationId")
    chat.stops.append((conversation.id, generation_id))
    conversation.stop = (time.monotonic(), generation_id, body.get("seenContentLength"))
    for run in chat.all_runs:
        if run.conversation is conversation and run.state == "running":
            run.stop()
    return Reply(content_type=None)


def resume(chat: ChatUI, request: Request, conversation: Conversation) -> Reply:
    """Replay the log of a run, or of the newest one, and follow it to its end."""
    wanted = request.query.get("generationId")
    run, words, turn = None, Words(), 0
    for each in chat.all_runs:
        if each.conversation is conversation and wanted in (None, each.generation_id):
            run, words, turn = each, each.words, each.resumes
    if run:
        run.resumes += 1
    value, times = words.times("log_status", math.inf)
    if value and turn < times:
        raise Refusal(int(value))
    if {"gone", "gone_incomplete"} & words.keys():
        run = None
    faults = dict.fromkeys(words.numbers("churn"), "end")
    faults |= dict.fromkeys(words.numbers("cut")[turn + 1 : turn + 2], "cut")
    if turn < words.number("stall_resume", 0):
        faults[0] = "stall"
    start = request.headers.get("last-event-id") or request.query.get("fromSeq", "0")
    return Reply(
        content_type="text/event-stream",
        headers=(("cache-control", "no-cache, no-transform"),),
        pieces=log_of(run, int(start) if start.isdecimal() else 0, HEARTBEAT),
        faults=faults,
    )


CONVERSATION = r"/conversation/(?P<conversation>[^/]+)"
API_CONVERSATION = r"/api/v2/conversations/(?P<conversation>[^/]+)"
ENDPOINTS: list[tuple[str, str, Callable[..., Reply]]] = [
    ("GET", r"/login", begin_login),
    ("GET", r"/login/callback", end_login),
    ("GET", r"/api/v2/models", lambda chat, _: in_superjson(chat.models, FOR_A_MINUTE)),
    ("GET", r"/api/v2/models/(?P<model_id>[^/]+(?:/[^/]+)?)", show_model),
    ("GET", r"/api/v2/user", show_user),
    ("GET", r"/api/v2/feature-flags", feature_flags),
    ("POST", r"/api/transcribe", transcribe),
    ("GET", r"/api/mcp/servers", list_tool_servers),
    ("GET", r"/api/v2/user/settings", show_settings),
    ("POST", r"/api/v2/user/settings", change_settings),
    ("POST", r"/conversation", create),
    ("POST", CONVERSATION, send_message),
    ("POST", rf"{CONVERSATION}/share", share),
    ("POST", rf"{CONVERSATION}/stop-generating", stop),
    ("GET", rf"{CONVERSATION}/stream", resume),
    ("GET", rf"{CONVERSATION}/output/(?P<sha>[^/]+)", output),
    ("GET", r"/api/v2/conversations", list_conversations),
    ("POST", r"/api/v2/conversations/import-share", import_share),
    ("GET", API_CONVERSATION, show_conversation),
    ("PATCH", API_CONVERSATION, change_conversation),
    ("DELETE", API_CONVERSATION, delete_conversation),
]


# --- python tests/chat_ui.py COMMAND… ------------------------------------------------------------


def run_command(chat: ChatUI, command: list[str]) -> int:
    """Run a command against the server. Its exit status, as a shell gives it."""
    with tempfile.TemporaryDirectory(prefix="llm-") as user_path:
        environment = os.environ | {"LLM_HUGGINGCHAT_URL": chat.url, "LLM_USER_PATH": user_path}
        environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        environment.pop("LLM_HUGGINGCHAT_KEY", None)
        # Ctrl-C reaches the command by itself, since both are in the terminal's foreground group.
        signal.signal(signal.SIGINT, lambda *_: None)
        try:
            status = subprocess.run(command, env=environment).returncode
        except OSError as error:
            sys.exit(f"{command[0]}: {error.strerror}")
    return 128 - status if status < 0 else status


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run a command against a stand-in server.")
    parser.add_argument("--login", action="store_true", help="want a login, as the service does")
    parser.add_argument("--log", metavar="FILE", help="write the requests to this file")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        chat = stack.enter_context(ChatUI(delay=0.01))
        if options.log:
            chat.log_file = stack.enter_context(open(options.log, "w", encoding="utf-8"))
        print(f"{chat.url} is a stand-in for HuggingChat, not a real server.", file=sys.stderr)
        if options.login:
            chat.login_required, chat.tokens["stand-in-token"] = True, "ada"
            print("It wants a login. Token to paste: stand-in-token", file=sys.stderr)
        if options.command:
            return run_command(chat, options.command)
        print(chat.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
