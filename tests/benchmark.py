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
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

MODEL = "meta-llama/Llama-3.3-70B-Instruct"
PLUGIN = "llm-huggingchat"
LATENCY = 0.05  # seconds from a request to its answer, where round trips are measured
PACE = 0.005  # seconds between two tokens of a fast model
TOKENS = 5000  # of a long answer
TOGETHER = (20, 100)  # so many answers at the same time
TURNS = (2, 20, 200)  # of a conversation, that are measured


# --- the server, in a process of its own ----------------------------------------------


def serve() -> None:
    """Serve until standard input ends; answer each line there, a command, with one of JSON."""
    import chat_ui

    down = 0

    class Handler(chat_ui.Handler):
        def setup(self) -> None:
            super().setup()
            write = self.wfile.write

            def counted(data: Any) -> int:
                nonlocal down
                down += len(data)
                return write(data)

            self.wfile.write = counted  # type: ignore[method-assign]

    def size_of(request: chat_ui.Request) -> int:
        names = sum(len(name) + len(value) + 4 for name, value in request.headers.items())
        return len(f"{request.method} {request.path} HTTP/1.1") + 4 + names + len(request.body)

    def grown(turns: int) -> str:
        """Make the newest conversation so many turns long, by its last turn again and again."""
        messages = list(chat.conversations.values())[-1].messages
        while sum(message["from"] == "assistant" for message in messages) < turns:
            for last in messages[-2:]:
                above = [*messages[-1]["ancestors"], messages[-1]["id"]]
                again = {"id": str(uuid.uuid4()), "ancestors": above, "children": []}
                messages[-1]["children"].append(again["id"])
                messages.append(last | again)
        return str(messages[-1]["id"])

    chat_ui.Handler = Handler  # type: ignore[misc]
    models = chat_ui.captured("models_service")["json"]  # as many as the service has
    with chat_ui.ChatUI(delay=0.0, store_delay=0.0, models=models) as chat:
        print(json.dumps(chat.url), flush=True)
        for line in sys.stdin:
            command, value = json.loads(line)
            said: Any = None
            if command == "count":
                up = sum(map(size_of, chat.log))
                # So many were begun when the last message came: before its first token.
                requests = max((sent.number for sent in chat.log if sent.data), default=0)
                said = {"up": up, "down": down, "requests": requests}
                down = chat.begun = 0
                chat.log.clear()
            elif command == "latency":
                chat.latency = value
            elif command == "grow":
                said = grown(value)
            print(json.dumps(said), flush=True)


class Server:
    """The server, seen from here."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--serve"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.url = str(self._read())

    def _read(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def ask(self, command: str, value: object = None) -> Any:
        print(json.dumps([command, value]), file=self.process.stdin, flush=True)
        return self._read()


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

    def continue_at(self, message_id: str, turns: int) -> None:
        """Go on after so many turns; those that ask for the conversation's end need nothing."""


def _nothing(*_: object) -> None:
    pass


@functools.cache
def model_of(getter: str) -> Any:
    """The plugin's model. Imports are left to those who need them: they are measured too."""
    return getattr(importlib.import_module("llm"), getter)(f"huggingchat/{MODEL}")


@dataclass
class ThePlugin(Chat):
    """As asyncio programs use it."""

    history: list[Any] = field(default_factory=list)

    async def pieces(self, words: str) -> AsyncIterator[str]:
        import llm

        asked = llm.user(words)
        response = model_of("get_async_model").prompt(messages=[*self.history, asked])
        async for piece in response:
            yield piece
        self.history += [asked, *(await response.to_sync_response()).messages()]

    def continue_at(self, message_id: str, turns: int) -> None:
        question, answer = self.history[-2:]
        *parts, last = answer.parts
        kept = last.provider_metadata["huggingchat"] | {"message_id": message_id}
        last = replace(last, provider_metadata={"huggingchat": kept})
        earlier = [question, replace(answer, parts=parts)] * (turns - 1)
        self.history = [*earlier, question, replace(answer, parts=[*parts, last])]


class ThePluginSync(Chat):
    """As llm's command line uses it."""

    async def pieces(self, words: str) -> AsyncIterator[str]:
        for piece in model_of("get_model").prompt(words):
            yield piece


def bare_request(url: str, words: str) -> dict[str, Any]:
    """How the message is sent, after a conversation was made."""
    from curl_cffi import requests as curl

    cookie = {"Cookie": "hf-chat=bare"}
    made = curl.post(f"{url}/conversation", json={"model": MODEL}, headers=cookie).json()
    root = json.loads(made["conversation"])["json"]["rootMessageId"]
    data = json.dumps({"id": root, "inputs": words, "selectedMcpServerNames": []})
    part = 'Content-Disposition: form-data; name="data"'
    head = {**cookie, "Content-Type": "multipart/form-data; boundary=bare", "Accept": "*/*"}
    return {
        "url": f"{url}/conversation/{made['conversationId']}",
        "data": f"--bare\r\n{part}\r\n\r\n{data}\r\n--bare--\r\n".encode(),
        "headers": head | {"Origin": url.removesuffix("/chat")},
        "stream": True,
    }


def token(line: bytes) -> str:
    event = json.loads(line)
    return str(event["token"]).rstrip("\0") if event["type"] == "stream" else ""


class Bare(Chat):
    """A model of llm's that yields what curl_cffi's asynchronous session reads."""

    async def pieces(self, words: str) -> AsyncIterator[str]:
        import llm
        from curl_cffi import requests as curl

        class Model(llm.AsyncModel):
            model_id = "bare"

            async def execute(self, *_: Any, url: str = self.url, **__: Any) -> Any:
                request = await asyncio.to_thread(bare_request, url, words)
                async with curl.AsyncSession[Any]() as session:
                    async for line in (await session.post(**request)).aiter_lines():
                        if text := token(line):
                            yield text

        async for piece in Model().prompt(words):
            yield piece


class BareSync(Chat):
    """A model of llm's that yields what curl_cffi's session reads."""

    async def pieces(self, words: str) -> AsyncIterator[str]:
        import llm
        from curl_cffi import requests as curl

        class Model(llm.Model):
            model_id = "bare"

            def execute(self, *_: Any, url: str = self.url, **__: Any) -> Iterator[str]:
                with curl.Session[Any]() as session:
                    for line in session.post(**bare_request(url, words)).iter_lines():
                        if text := token(line):
                            yield text

        for piece in Model().prompt(words):
            yield piece


@dataclass
class G4F(Chat):
    """g4f's provider, given cookies: by itself it would open a browser for them."""

    conversation: Any = None

    async def pieces(self, words: str) -> AsyncIterator[str]:
        provider = importlib.import_module("g4f.Provider").HuggingChat
        provider.url, provider.origin = self.url, self.url.removesuffix("/chat")
        access = importlib.import_module("g4f.providers.response").AuthResult(
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

    async def turn(self, words: str, begun: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(_threads, self._turn, words, begun)

    def _turn(self, words: str, begun: Callable[[], object]) -> None:
        self.bot = self.bot or self._made()
        for piece in self.bot.chat(words, stream=True):
            if piece and piece["type"] == "stream":
                begun()
                begun = _nothing

    def _made(self) -> Any:
        requests: Any = importlib.import_module("requests")
        hugchat: Any = importlib.import_module("hugchat.hugchat")
        here = self.url.removesuffix("/chat")

        def turned(text: Any) -> Any:
            return text.replace("https://huggingface.co", here) if isinstance(text, str) else text

        class Turned(requests.Session):
            def request(self, method: Any, url: Any, **options: Any) -> Any:
                heads = options.pop("headers", None) or {}
                heads = {name: turned(value) for name, value in heads.items()}
                return super().request(method, turned(url), headers=heads, **options)

        hugchat.Session = requests.Session = requests.session = Turned
        hugchat.print = _nothing
        return hugchat.ChatBot(cookies={"hf-chat": "hugchat", "token": "t"})


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

Values = dict[str, float]


def medians(
    rounds: int, ways: Iterable[str], measure: Callable[[str], Values]
) -> dict[str, Values]:
    """What is measured, the ways taking turns: way -> name of a value -> its median.

    A round more comes first, for warming up: it imports what is needed, and does not count.
    """
    measured = [{way: measure(way) for way in ways} for _ in range(rounds + 1)][-rounds or -1 :]
    return {
        way: {name: statistics.median(each[way][name] for each in measured) for name in values}
        for way, values in measured[0].items()
    }


class Busy:
    """How long event loops can do nothing else: in all, and at once. In seconds."""

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


def first_token(server: Server, way: str) -> Values:
    """Requests, and time, to the first token: of a first turn, and of a later one."""

    async def turns() -> Values:
        chat = KINDS[way](server.url)
        found: Values = {}
        for turn in ("first", "later"):
            server.ask("count")
            begun, came = time.perf_counter(), list[float]()
            await chat.turn("[[tokens=5]]", lambda came=came: came.append(time.perf_counter()))  # type: ignore[misc]
            found[f"{turn} requests"] = server.ask("count")["requests"]
            found[turn] = came[0] - begun
        return found

    server.ask("latency", LATENCY)
    try:
        return asyncio.run(turns())
    finally:
        server.ask("latency", 0.0)


def token_cost(server: Server, way: str, tokens: int, pace: float) -> Values:
    """Processor time a token, in seconds; a token comes every `pace` seconds, or all at once."""

    async def turn() -> float:
        chat = KINDS[way](server.url)
        await chat.turn("[[tokens=1]]", _nothing)
        begun = time.process_time()
        await chat.turn(f"[[tokens={tokens}]][[delay={pace}]]", _nothing)
        return time.process_time() - begun

    return {"cost": asyncio.run(turn()) / tokens}


def many(server: Server, way: str) -> Values:
    """How long so many answers take at the same time, each of half a second by itself."""
    words = "[[tokens=25]][[delay=0.02]]"

    async def together(count: int) -> float:
        chats = [KINDS[way](server.url) for _ in range(count)]
        begun = time.perf_counter()
        await asyncio.gather(*(chat.turn(words, _nothing) for chat in chats))
        return time.perf_counter() - begun

    return {str(count): asyncio.run(together(count)) for count in (1, *TOGETHER)}


def long_conversation(server: Server, way: str) -> Values:
    """Bytes up and down of a turn, and how long it keeps loops busy, by its number."""

    async def measured() -> Values:
        chat = KINDS[way](server.url)
        await chat.turn("[[tokens=200]]", _nothing)
        found: Values = {}
        for turn in TURNS:
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

    return asyncio.run(measured())


def child(*arguments: str, plugins: str = "") -> Values:
    """What a new process of this script prints: JSON."""
    command, environment = [sys.executable, __file__, *arguments], {"LLM_LOAD_PLUGINS": plugins}
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def memory(way: str, url: str) -> None:
    """In a process of its own: take a long answer; the most memory that there was, in bytes."""
    if way not in OTHERS:
        importlib.import_module("llm").get_models()  # as llm does for each command
    asyncio.run(KINDS[way](url).turn(f"[[tokens={TOKENS}]]", _nothing))
    status = pathlib.Path("/proc/self/status").read_text()
    (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"bytes": int(peak.split()[1]) * 1024}))


def importing(what: str) -> None:
    """In a process of its own: processor time that an import takes, in seconds."""
    import llm.cli
    import llm.parts  # noqa: F401 - the plugin's import counts from here

    begun = time.process_time()
    module = importlib.import_module(what)
    found = {"import": time.process_time() - begun}
    if what == "llm_huggingchat":
        begun = time.process_time()
        module.register_models(lambda *_, **__: None)
        found["register"] = time.process_time() - begun
    print(json.dumps(found))


def version(plugins: str) -> Values:
    """`llm --version`, in seconds of the clock."""
    begun, environment = time.perf_counter(), os.environ | {"LLM_LOAD_PLUGINS": plugins}
    command = [sys.executable, "-m", "llm", "--version"]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return {"time": time.perf_counter() - begun}


# --- the table ------------------------------------------------------------------------


def micro(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs"


def milli(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"


def size(number: float) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def row(
    what: str,
    shown: Callable[[float], str],
    found: dict[str, Values],
    name: str,
    beside: float | None = None,
) -> str:
    """A line: the plugin, what it is compared with, and the others that were measured."""
    plugin = found[PLUGIN][name]
    cells = [what, shown(plugin), ""]
    if beside is not None:
        cells[2] = f"**{plugin / beside:.2f}×** {shown(beside)}" if beside else shown(beside)
    for other in OTHERS:
        value = found.get(other, {}).get(name)
        ratio = f" ({value / plugin:.1f}×)" if value is not None and plugin else ""
        cells.append("–" if value is None else f"{shown(value)}{ratio}")
    return line(cells)


def rows(server: Server, rounds: int) -> Iterator[str]:
    some = max(rounds // 2, 1)
    ways = [PLUGIN, *OTHERS]

    found = medians(rounds, ways, functools.partial(first_token, server))
    for turn in ("first", "later"):
        name = f"{turn} requests"
        yield row(f"requests to the first token, {turn} turn", "{:.0f}".format, found, name)
        what = f"time to the first token, {turn} turn, each request {LATENCY * 1000:.0f} ms away"
        yield row(what, milli, found, turn, found[PLUGIN][name] * LATENCY)

    kinds = [*ways, f"{PLUGIN}, sync", "bare", "bare, sync"]
    for count, pace in ((TOKENS, 0.0), (TOKENS // 10, PACE)):
        measure = functools.partial(token_cost, server, tokens=count, pace=pace)
        found = medians(rounds, kinds, measure)
        when = f"{1 / pace:.0f} tokens a second" if pace else f"{count} tokens at once"
        sync = {PLUGIN: found[f"{PLUGIN}, sync"]}
        what = f"processor time a token, {when}"
        yield row(f"{what}, sync", micro, sync, "cost", found["bare, sync"]["cost"])
        yield row(f"{what}, async", micro, found, "cost", found["bare"]["cost"])

    if sys.platform == "linux":

        def peak(way: str) -> Values:
            plugins = "" if way == "bare" else PLUGIN
            return child("--memory", way, "--url", server.url, plugins=plugins)

        found = medians(some, [*ways, "bare"], peak)
        what = f"memory, after an answer of {TOKENS} tokens"
        yield row(what, size, found, "bytes", found["bare"]["bytes"])

    found = medians(some, ways, functools.partial(many, server))
    for count in TOGETHER:
        what = f"{count} answers at the same time, beside one alone"
        yield row(what, milli, found, str(count), found[PLUGIN]["1"])

    found = medians(some, ways, functools.partial(long_conversation, server))
    loops = {way: values for way, values in found.items() if way != "hugchat"}
    for number in TURNS:
        yield row(f"upload of turn {number}", size, found, f"{number} up")
        yield row(f"download of turn {number}", size, found, f"{number} down")
        yield row(f"turn {number} keeps the loop busy, in all", milli, loops, f"{number} busy")
        yield row(f"turn {number} keeps the loop busy, at once", milli, loops, f"{number} longest")

    found = medians(rounds, [PLUGIN, ""], version)
    yield row("`llm --version`, with and without", milli, found, "time", found[""]["time"])
    modules = {PLUGIN: "llm_huggingchat", "g4f": "g4f", "hugchat": "hugchat.hugchat"}
    found = medians(rounds, ways, lambda way: child("--import", modules[way]))
    yield row("import, beyond llm's own", milli, found, "import")
    yield row("registering 137 models", milli, found, "register")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the plugin costs.")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured")
    for name in ("--serve", "--memory", "--import", "--url"):
        parser.add_argument(name, nargs="?", const=name, help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    if options["serve"]:
        return serve()
    if options["memory"]:
        return memory(options["memory"], options["url"])
    if options["import"]:
        return importing(options["import"])
    server = Server()
    with server.process, tempfile.TemporaryDirectory(prefix="llm-") as user_path:
        os.environ |= {"LLM_HUGGINGCHAT_URL": server.url, "LLM_USER_PATH": user_path}
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every import would compile
        command = [sys.executable, "-m", "llm", "huggingchat", "refresh"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        names = [PLUGIN, "llm", "curl_cffi", *OTHERS]
        told = [f"{name} {importlib.metadata.version(name)}" for name in names]
        told += [f"Python {platform.python_version()}", f"{os.cpu_count()} processors"]
        print(f"{', '.join(told)}; {platform.system()}\n")
        print(line(["", PLUGIN, "beside", *OTHERS]))
        print(line(["---"] * (3 + len(OTHERS))), flush=True)
        for each in rows(server, options["rounds"]):
            print(each, flush=True)
    return None


if __name__ == "__main__":
    main()
