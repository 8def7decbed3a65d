"""What the plugin costs: measured beside other ways to the same answers, as a Markdown table.

    python tests/benchmark.py

Every row is measured in one run, on the stand-in of `chat_ui.py`, which runs in a process of its
own. What is compared takes turns, and the median counts, so that a busy machine is busy for all.
`g4f` and `hugchat` are measured too where they are installed:

    pip install g4f hugchat

They know only huggingface.co, so their requests are turned to the stand-in on the way. "Bare" is
the least that llm can do: a model that yields what a curl_cffi loop reads, line by line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

MODEL = "meta-llama/Llama-3.3-70B-Instruct"
PLUGIN = "llm-huggingchat"
LATENCY = 0.05  # seconds from a request to its answer, where round trips are measured
PACE = 0.005  # seconds between two tokens of a fast model


# --- the server, in a process of its own ----------------------------------------------


def serve() -> None:
    """Serve until standard input ends; answer each line there, a command, with one of JSON."""
    import chat_ui

    count = {"up": 0, "down": 0, "requests": 0}

    class Counted:
        """A connection's file: its bytes are counted."""

        def __init__(self, file: Any, way: str) -> None:
            self._file, self._way = file, way

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: bytes) -> Any:
            count[self._way] += len(data)
            return self._file.write(data)

        def read(self, size: int = -1) -> bytes:
            return self._got(self._file.read(size))

        def readline(self, size: int = -1) -> bytes:
            return self._got(self._file.readline(size))

        def _got(self, data: bytes) -> bytes:
            count[self._way] += len(data)
            return data

    class Handler(chat_ui.Handler):
        def setup(self) -> None:
            super().setup()
            self.rfile = Counted(self.rfile, "up")  # type: ignore[assignment]
            self.wfile = Counted(self.wfile, "down")  # type: ignore[assignment]

        def stream_to_end(self, run: chat_ui.Run) -> None:
            count["requests"] = self.chat.begun  # so many came before the first token
            super().stream_to_end(run)

    def grown(chat: chat_ui.ChatUI, turns: int) -> dict[str, str]:
        """Make the newest conversation so many turns long, by its last turn again and again."""
        conversation = list(chat.conversations.values())[-1]
        messages = conversation.messages
        while sum(message["from"] == "assistant" for message in messages) < turns:
            for last in messages[-2:]:
                above = [*messages[-1]["ancestors"], messages[-1]["id"]]
                again = {"id": str(uuid.uuid4()), "ancestors": above, "children": []}
                messages[-1]["children"].append(again["id"])
                messages.append(last | again)
        return {"conversation": conversation.id, "message": messages[-1]["id"]}

    chat_ui.Handler = Handler  # type: ignore[misc]
    with chat_ui.ChatUI(delay=0.0, store_delay=0.0) as chat:
        print(json.dumps(chat.url), flush=True)
        for line in sys.stdin:
            command, value = json.loads(line)
            said: Any = None
            if command == "count":
                said = dict(count)
                count.update(up=0, down=0, requests=0)
                chat.begun = 0
                chat.log.clear()
            elif command == "latency":
                chat.latency = value
            elif command == "grow":
                said = grown(chat, value)
            print(json.dumps(said), flush=True)


class Server:
    """The server, seen from here. A context manager: leaving it ends the server."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = str(self._read())

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def _read(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def ask(self, command: str, value: object = None) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps([command, value]) + "\n")
        self._process.stdin.flush()
        return self._read()

    @contextlib.contextmanager
    def far(self, latency: float) -> Iterator[None]:
        """Every request is looked at so many seconds late."""
        self.ask("latency", latency)
        try:
            yield
        finally:
            self.ask("latency", 0.0)


# --- the ways to an answer ------------------------------------------------------------


@dataclass
class Chat:
    """One conversation with one client. `turn` takes an answer, and says when it begins."""

    url: str

    async def turn(self, words: str, begun: Callable[[], object]) -> None:
        async for _ in self.pieces(words):
            begun()
            begun = _nothing

    def pieces(self, words: str) -> AsyncIterator[str]:
        raise NotImplementedError

    def continue_at(self, place: dict[str, str], turns: int) -> None:
        """Go on in a conversation of so many turns; those that ask for its end need nothing."""


def model_of(getter: str) -> Any:
    """The plugin's model; to find one by its name, llm asks for all that there are."""
    import llm

    return getattr(llm, getter)(f"huggingchat/{MODEL}")


def _nothing(*_: object) -> None:
    pass


@dataclass
class ThePlugin(Chat):
    """As asyncio programs use it."""

    history: list[Any] = field(default_factory=list)
    model: Any = field(default_factory=lambda: model_of("get_async_model"))

    async def pieces(self, words: str) -> AsyncIterator[str]:
        import llm

        asked = llm.user(words)
        response = self.model.prompt(messages=[*self.history, asked])
        async for piece in response:
            yield piece
        self.history += [asked, *(await response.to_sync_response()).messages()]

    def continue_at(self, place: dict[str, str], turns: int) -> None:
        question, answer = self.history[-2:]
        *parts, last = answer.parts
        kept = last.provider_metadata["huggingchat"] | {"message_id": place["message"]}
        last = replace(last, provider_metadata={"huggingchat": kept})
        self.history = [
            *[question, replace(answer, parts=parts)] * (turns - 1),
            question,
            replace(answer, parts=[*parts, last]),
        ]


@dataclass
class ThePluginSync(Chat):
    """As llm's command line uses it."""

    model: Any = field(default_factory=lambda: model_of("get_model"))

    async def pieces(self, words: str) -> AsyncIterator[str]:
        for piece in self.model.prompt(words):
            yield piece


def bare_request(url: str, words: str) -> tuple[str, bytes, dict[str, str]]:
    """Where the message goes, its body and its headers, after a conversation was made."""
    from curl_cffi import requests

    import llm_huggingchat

    cookie = {"Cookie": "hf-chat=bare"}
    made = requests.post(f"{url}/conversation", json={"model": MODEL}, headers=cookie).json()
    root = json.loads(made["conversation"])["json"]["rootMessageId"]
    data = {"id": root, "inputs": words, "selectedMcpServerNames": []}
    body, content_type = llm_huggingchat.multipart(data, ())
    origin = llm_huggingchat.Server(url).origin
    head = {**cookie, "Content-Type": content_type, "Origin": origin, "Accept": "*/*"}
    return f"{url}/conversation/{made['conversationId']}", body, head


def token(line: bytes) -> str:
    event = json.loads(line)
    return str(event["token"]).rstrip("\0") if event["type"] == "stream" else ""


@dataclass
class Bare(Chat):
    """A model of llm's that yields what curl_cffi's asynchronous session reads."""

    async def pieces(self, words: str) -> AsyncIterator[str]:
        import llm
        from curl_cffi.requests import AsyncSession

        class Model(llm.AsyncModel):
            model_id = "bare"

            async def execute(self, *_: Any, url: str = self.url, **__: Any) -> Any:
                address, body, head = await asyncio.to_thread(bare_request, url, words)
                async with AsyncSession[Any]() as session:
                    reply = await session.post(address, data=body, headers=head, stream=True)
                    async for line in reply.aiter_lines():
                        if text := token(line):
                            yield text

        async for piece in Model().prompt(words):
            yield piece


@dataclass
class BareSync(Chat):
    """A model of llm's that yields what curl_cffi's session reads."""

    async def pieces(self, words: str) -> AsyncIterator[str]:
        import llm
        from curl_cffi.requests import Session

        class Model(llm.Model):
            model_id = "bare"

            def execute(self, *_: Any, url: str = self.url, **__: Any) -> Iterator[str]:
                address, body, head = bare_request(url, words)
                with Session[Any]() as session:
                    reply = session.post(address, data=body, headers=head, stream=True)
                    for line in reply.iter_lines():
                        if text := token(line):
                            yield text

        for piece in Model().prompt(words):
            yield piece


@dataclass
class G4F(Chat):
    """g4f's provider, given cookies: by itself it would open a browser for them."""

    conversation: Any = None

    async def pieces(self, words: str) -> AsyncIterator[str]:
        provider = imported("g4f.Provider").HuggingChat
        provider.url, provider.origin = self.url, self.url.removesuffix("/chat")
        access = imported("g4f.providers.response").AuthResult(
            cookies={"hf-chat": "g4f"}, impersonate="chrome", headers={}
        )
        said = [{"role": "user", "content": words}]
        given = provider.create_authed(MODEL, said, access, conversation=self.conversation)
        async for piece in given:
            if isinstance(piece, str):
                yield piece
            elif type(piece).__name__ == "Conversation":
                self.conversation = piece


@dataclass
class HugChat(Chat):
    """hugchat, which is not asynchronous."""

    bot: Any = None

    async def pieces(self, words: str) -> AsyncIterator[str]:
        if self.bot is None:
            self.bot = await asyncio.to_thread(self._made)
        answer = self.bot.chat(words, stream=True)
        while piece := await asyncio.to_thread(next, answer, None):
            if piece["type"] == "stream":
                yield piece["token"]

    async def turn(self, words: str, begun: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(_threads, self._turn, words, begun)

    def _turn(self, words: str, begun: Callable[[], object]) -> None:
        self.bot = self.bot or self._made()
        for piece in self.bot.chat(words, stream=True):
            if piece and piece["type"] == "stream":
                begun()
                begun = _nothing

    def _made(self) -> Any:
        requests, hugchat = imported("requests"), imported("hugchat.hugchat")
        here = self.url.removesuffix("/chat")
        session: Any = requests.Session

        class Turned(session):
            def request(self, method: Any, url: Any, **options: Any) -> Any:
                heads = options.pop("headers", None) or {}
                heads = {name: _turned(value, here) for name, value in heads.items()}
                return super().request(method, _turned(url, here), headers=heads, **options)

        hugchat.Session = requests.Session = requests.session = Turned
        hugchat.print = _nothing
        return hugchat.ChatBot(cookies={"hf-chat": "hugchat", "token": "t"})


def imported(name: str) -> Any:
    """A module that may not be installed."""
    return importlib.import_module(name)


def _turned(text: Any, here: str) -> Any:
    return text.replace("https://huggingface.co", here) if isinstance(text, str) else text


_threads = ThreadPoolExecutor(200)
KINDS: dict[str, type[Chat]] = {
    PLUGIN: ThePlugin,
    f"{PLUGIN}, sync": ThePluginSync,
    "bare": Bare,
    "bare, sync": BareSync,
    "g4f": G4F,
    "hugchat": HugChat,
}
OTHERS = [name for name in ("g4f", "hugchat") if importlib.util.find_spec(name)]


# --- measuring ------------------------------------------------------------------------


def medians(
    rounds: int, ways: Iterable[str], measure: Callable[..., dict[str, float]], *arguments: Any
) -> dict[str, dict[str, float]]:
    """What is measured, the ways taking turns: way -> name of a value -> its median.

    A round more comes first, for warming up: it imports what is needed, and does not count.
    """
    found: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    for number in range(rounds + 1):
        for way, values in found.items():
            for name, value in measure(way, *arguments).items():
                if number or not rounds:
                    values.setdefault(name, []).append(value)
    return {
        way: {name: statistics.median(each) for name, each in values.items()}
        for way, values in found.items()
    }


def run(work: Awaitable[Any]) -> Any:
    """Do it in a new event loop: a new client."""

    async def done() -> Any:
        return await work

    return asyncio.run(done())


class Busy:
    """How long an event loop can do nothing else: in all, and at once. In seconds."""

    def __enter__(self) -> Busy:
        self.total = self.longest = 0.0
        self._real = asyncio.events.Handle._run

        def timed(handle: Any) -> None:
            begun = time.perf_counter()
            self._real(handle)
            spent = time.perf_counter() - begun
            self.total += spent
            self.longest = max(self.longest, spent)

        asyncio.events.Handle._run = timed  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.events.Handle._run = self._real  # type: ignore[method-assign]


class Moment:
    """When something happened, by time.perf_counter()."""

    at = 0.0

    def come(self) -> None:
        self.at = time.perf_counter()


def first_token(server: Server, way: str) -> dict[str, float]:
    """Requests, and time, to the first token: of a first turn, and of a later one."""

    async def turns() -> dict[str, float]:
        chat = KINDS[way](server.url)
        found: dict[str, float] = {}
        for turn in ("first", "later"):
            server.ask("count")
            begun = time.perf_counter()
            first = Moment()
            await chat.turn("[[tokens=5]]", first.come)
            found[f"{turn} requests"] = server.ask("count")["requests"]
            found[turn] = first.at - begun
        return found

    with server.far(LATENCY):
        return dict(run(turns()))


def token_cost(server: Server, way: str, tokens: int, pace: float = 0.0) -> dict[str, float]:
    """Processor time a token, in seconds, of a long answer: of all that this process does.

    A token comes every `pace` seconds; else they come as fast as they are taken.
    """

    async def turn() -> float:
        chat = KINDS[way](server.url)
        await chat.turn("[[tokens=1]]", _nothing)
        begun = time.process_time()
        await chat.turn(f"[[tokens={tokens}]][[delay={pace}]]", _nothing)
        return time.process_time() - begun

    return {"cost": run(turn()) / tokens}


def many(server: Server, way: str, counts: Iterable[int], seconds: float) -> dict[str, float]:
    """How long so many answers take at the same time, each of so many seconds by itself."""
    tokens = max(int(seconds / 0.02), 1)

    async def together(count: int) -> float:
        chats = [KINDS[way](server.url) for _ in range(count)]
        begun = time.perf_counter()
        words = f"[[tokens={tokens}]][[delay=0.02]]"
        await asyncio.gather(*(chat.turn(words, _nothing) for chat in chats))
        return time.perf_counter() - begun

    return {str(count): run(together(count)) for count in counts}


def long_conversation(server: Server, way: str, turns: Iterable[int]) -> dict[str, float]:
    """Bytes up and down of a turn, and how long it keeps the loop busy, by its number."""

    async def measured() -> dict[str, float]:
        chat = KINDS[way](server.url)
        await chat.turn("[[tokens=200]]", _nothing)
        found: dict[str, float] = {}
        for turn in turns:
            chat.continue_at(server.ask("grow", turn - 1), turn - 1)
            await asyncio.sleep(0.3)
            server.ask("count")
            with Busy() as busy:
                await asyncio.sleep(0)  # what is under way began unseen
                await chat.turn("[[tokens=200]]", _nothing)
                await asyncio.sleep(0.3)  # what goes on beside it counts too
            count = server.ask("count")
            found |= {f"{turn} up": count["up"], f"{turn} down": count["down"]}
            found |= {f"{turn} busy": busy.total, f"{turn} longest": busy.longest}
        return found

    return dict(run(measured()))


def child(*arguments: str, **environment: str) -> dict[str, float]:
    """What a new process of this script prints: JSON."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(done.stdout))


def memory(way: str, url: str, tokens: int) -> None:
    """In a process of its own: take a long answer; the most memory that there was, in bytes."""
    import llm

    if way not in OTHERS:
        llm.get_models()  # as llm does for each command
    run(KINDS[way](url).turn(f"[[tokens={tokens}]]", _nothing))
    status = pathlib.Path("/proc/self/status").read_text()
    (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"bytes": int(peak.split()[1]) * 1024}))


def importing(what: str) -> None:
    """In a process of its own: processor time that an import takes, in seconds."""
    import llm.cli
    import llm.parts  # noqa: F401 - the plugin's import counts from here

    begun = time.process_time()
    module = imported(what)
    found = {"import": time.process_time() - begun}
    if what == "llm_huggingchat":
        begun = time.process_time()
        module.register_models(lambda *_, **__: None)
        found["register"] = time.process_time() - begun
    print(json.dumps(found))


def version(plugins: str) -> dict[str, float]:
    """`llm --version`, in seconds of the clock."""
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "llm", "--version"],
        env=os.environ | {"LLM_LOAD_PLUGINS": plugins},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return {"time": time.perf_counter() - begun}


# --- the table ------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What was measured: of the plugin, of what it is compared with, and of the others."""

    what: str
    shown: Callable[[float], str]
    plugin: float
    beside: float | None = None
    others: dict[str, float] = field(default_factory=dict)

    def cells(self) -> list[str]:
        cells = [self.what, self.shown(self.plugin)]
        cells.append("" if self.beside is None else self._compared(self.beside))
        return [*cells, *(self._other(name) for name in OTHERS)]

    def _compared(self, beside: float) -> str:
        ratio = f"**{self.plugin / beside:.2f}×** " if beside else ""
        return f"{ratio}{self.shown(beside)}"

    def _other(self, name: str) -> str:
        if name not in self.others:
            return "–"
        ratio = f" ({self.others[name] / self.plugin:.1f}×)" if self.plugin else ""
        return f"{self.shown(self.others[name])}{ratio}"


def micro(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs"


def milli(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"


def size(number: float) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"


def whole(number: float) -> str:
    return f"{number:.0f}"


def others_of(found: dict[str, dict[str, float]], name: str) -> dict[str, float]:
    return {way: found[way][name] for way in OTHERS if way in found}


def rows(server: Server, options: argparse.Namespace) -> Iterator[Row]:
    rounds, tokens = options.rounds, options.tokens
    ways = [PLUGIN, *OTHERS]

    found = medians(rounds, ways, lambda way: first_token(server, way))
    for turn in ("first", "later"):
        mine = found[PLUGIN]
        name = f"{turn} requests"
        what = f"requests to the first token, {turn} turn"
        yield Row(what, whole, mine[name], others=others_of(found, name))
        trip = mine[f"{turn} requests"] * LATENCY
        what = f"time to the first token, {turn} turn, each request {LATENCY * 1000:.0f} ms away"
        yield Row(what, milli, mine[turn], trip, others_of(found, turn))

    kinds = [*ways, f"{PLUGIN}, sync", "bare", "bare, sync"]
    for count, pace in ((tokens, 0.0), (max(tokens // 10, 1), PACE)):
        found = medians(rounds, kinds, functools.partial(token_cost, server), count, pace)
        when = f"{1 / pace:.0f} tokens a second" if pace else f"{count} tokens at once"
        for kind in (", sync", ""):
            yield Row(
                f"processor time a token, {when}{kind or ', async'}",
                micro,
                found[f"{PLUGIN}{kind}"]["cost"],
                found[f"bare{kind}"]["cost"],
                others_of(found, "cost") if not kind else {},
            )

    if sys.platform == "linux":
        sizes = medians(
            max(rounds // 2, 1),
            [*ways, "bare"],
            lambda way: child(
                *("--memory", way, "--url", server.url, "--tokens", str(tokens)),
                LLM_LOAD_PLUGINS="" if way == "bare" else PLUGIN,
            ),
        )
        yield Row(
            f"memory, after an answer of {tokens} tokens",
            size,
            sizes[PLUGIN]["bytes"],
            sizes["bare"]["bytes"],
            others_of(sizes, "bytes"),
        )

    counts = [1, *options.together]
    found = medians(
        max(rounds // 2, 1), ways, lambda way: many(server, way, counts, options.seconds)
    )
    for count in options.together:
        name, mine = str(count), found[PLUGIN]
        what = f"{count} answers at the same time, beside one alone"
        yield Row(what, milli, mine[name], mine["1"], others_of(found, name))

    found = medians(
        max(rounds // 2, 1), ways, lambda way: long_conversation(server, way, options.turns)
    )
    for turn in options.turns:
        mine = found[PLUGIN]
        for name, what in (("up", "upload"), ("down", "download")):
            key = f"{turn} {name}"
            yield Row(f"{what} of turn {turn}", size, mine[key], others=others_of(found, key))
        for name, what in (("busy", "in all"), ("longest", "at once")):
            key = f"{turn} {name}"
            told = {way: value for way, value in others_of(found, key).items() if way != "hugchat"}
            yield Row(f"turn {turn} keeps the loop busy, {what}", milli, mine[key], others=told)

    plugins = {"with": PLUGIN, "without": ""}
    times = medians(rounds, plugins, lambda way: version(plugins[way]))
    yield Row(
        "`llm --version`, with and without", milli, times["with"]["time"], times["without"]["time"]
    )
    modules = {PLUGIN: "llm_huggingchat"} | {name: name for name in OTHERS}
    modules = {way: {"hugchat": "hugchat.hugchat"}.get(name, name) for way, name in modules.items()}
    found = medians(
        rounds, modules, lambda way: child("--import", modules[way], LLM_LOAD_PLUGINS="")
    )
    yield Row(
        "import, beyond llm's own", milli, found[PLUGIN]["import"], None, others_of(found, "import")
    )
    yield Row("registering 137 models", milli, found[PLUGIN]["register"])


def keep_service() -> None:
    """The catalogue of the service, as the server under test lists fewer."""
    from recorded import capture

    import llm_huggingchat

    (exchange,) = capture("models_service")
    models = llm_huggingchat.read_catalogue(exchange.json())
    llm_huggingchat.keep_catalogue(llm_huggingchat.current_server().url, models.models)


def versions() -> str:
    """What was measured, and on what."""
    names = [PLUGIN, "llm", "curl_cffi", *OTHERS]
    told = [f"{name} {importlib.metadata.version(name)}" for name in names]
    system = f"{platform.python_implementation()} {platform.python_version()}, {platform.system()}"
    return f"{', '.join(told)}; {system}, {os.cpu_count()} processors"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what the plugin costs.")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured")
    parser.add_argument("--tokens", type=int, default=5000, help="of a long answer")
    parser.add_argument("--together", type=int, nargs="*", default=[20, 100])
    parser.add_argument("--seconds", type=float, default=0.5, help="that one of those takes")
    parser.add_argument("--turns", type=int, nargs="*", default=[2, 20, 200])
    parser.add_argument("--alone", action="store_true", help="without g4f and hugchat")
    for name in ("--serve", "--memory", "--import", "--url"):
        parser.add_argument(name, nargs="?", const=name, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        return serve()
    if options.memory:
        return memory(options.memory, options.url, options.tokens)
    if what := getattr(options, "import"):
        return importing(what)
    if options.alone:
        OTHERS.clear()
    with Server() as server, tempfile.TemporaryDirectory(prefix="llm-") as user_path:
        os.environ |= {"LLM_HUGGINGCHAT_URL": server.url, "LLM_USER_PATH": user_path}
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every import would compile
        keep_service()
        print(f"{versions()}\n")
        print("\n".join(_line(cells) for cells in _head()), flush=True)
        for row in rows(server, options):
            print(_line(row.cells()), flush=True)
    return None


def _head() -> list[list[str]]:
    names = ["", PLUGIN, "beside", *OTHERS]
    return [names, ["---"] * len(names)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
