"""What the plugin costs: measured beside other ways to the same answers, as a Markdown table.

    python tests/benchmark.py
    python tests/benchmark.py --python ../before/.venv/bin/python --json medians.json

The second compares this plugin with the one of another virtual environment, and keeps the medians.
Every row is measured in one run, on the stand-in of `chat_ui.py`; it and each way to an answer are
processes of their own. What is compared takes turns, and the median counts, so that a busy machine
is busy for all. `g4f` and `hugchat` are measured too where they are installed:

    pip install g4f hugchat

They know only huggingface.co, so their requests are turned to the stand-in on the way. "Bare" is
the least that llm can do: a model that yields what a curl_cffi loop reads, line by line.
"""

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
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

MODEL = "meta-llama/Llama-3.3-70B-Instruct"
PLUGIN = "llm-huggingchat"
OTHER = "the other one"  # the plugin of another virtual environment
BESIDE = "the least of "  # before a row's name: what it is compared with, if that is not "bare"
LATENCY = 0.05  # seconds from a request to its answer, where round trips are measured
PACE = 0.005  # seconds between two tokens of a fast model
TOKENS = 5000  # of a long answer
TOGETHER = (20, 50, 100)  # so many answers at the same time
TURNS = (2, 20, 200)  # of a conversation, that are measured
LONG = 300  # turns of a conversation, of 5 kB each

Values = dict[str, float]


# --- processes that are told what to do -----------------------------------------------


def obey(commands: object) -> None:
    """Do what each line of standard input says, until it ends; answer each with one of JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr  # other people's code prints too
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(commands, name)(**arguments)), file=answers, flush=True)


class Process(subprocess.Popen[str]):
    """This script as `Server` or `Client`, seen from the one that measures."""

    def ask(self, command: str, **arguments: Any) -> Any:
        assert self.stdout
        print(json.dumps([command, arguments]), file=self.stdin, flush=True)
        return json.loads(self.stdout.readline())


class Server:
    """The stand-in, which counts."""

    def __init__(self) -> None:
        import chat_ui

        server = self
        self.down = 0

        class Handler(chat_ui.Handler):
            def setup(self) -> None:
                super().setup()
                write = self.wfile.write

                def counted(data: Any) -> int:
                    server.down += len(data)
                    return write(data)

                self.wfile.write = counted  # type: ignore[method-assign]

        chat_ui.Handler = Handler  # type: ignore[misc]
        models = chat_ui.captured("models_service")["json"]  # as many as the service has
        self.chat = chat_ui.ChatUI(delay=0.0, store_delay=0.0, models=models).__enter__()

    def url(self) -> str:
        return self.chat.url

    def delay(self, latency: float) -> None:
        self.chat.latency = latency

    def count(self) -> Values:
        """Bytes up and down since the last count, and requests to the first token."""
        counted: Values = {"up": 0, "down": self.down}
        for sent in self.chat.log:
            head = [f"{sent.method} {sent.path} HTTP/1.1\r\n"]
            head += [f"{name}: {value}\r\n" for name, value in sent.headers.items()]
            counted["up"] += len("".join(head)) + 2 + len(sent.body)
            if sent.data:  # a message: what came later did not delay its first token
                counted["requests"] = sent.number
        self.down = self.chat.begun = 0
        self.chat.log.clear()
        return counted

    def grow(self, turns: int) -> dict[str, Any]:
        """Make the newest conversation so many turns long, by its last turn again and again."""
        messages = list(self.chat.conversations.values())[-1].messages
        while sum(message["from"] == "assistant" for message in messages) < turns:
            for last in messages[-2:]:
                above = [*messages[-1]["ancestors"], messages[-1]["id"]]
                again = {"id": str(uuid.uuid4()), "ancestors": above, "children": []}
                messages[-1]["children"].append(again["id"])
                messages.append(last | again)
        return {"message_id": messages[-1]["id"], "turns": turns}


# --- the ways to an answer ------------------------------------------------------------

URL = os.environ.get("LLM_HUGGINGCHAT_URL", "")


class Chat:
    """One conversation with one client. A turn takes an answer, and says when it began."""

    async def turn(self, words: str) -> float:
        begun = 0.0
        async for _ in self.pieces(words):
            begun = begun or time.perf_counter()
        return begun

    def sync_turn(self, words: str) -> float:
        begun = 0.0
        for _ in self.sync_pieces(words):
            begun = begun or time.perf_counter()
        return begun

    def pieces(self, words: str) -> AsyncIterator[str]:
        raise NotImplementedError

    def sync_pieces(self, words: str) -> Iterator[str]:
        raise NotImplementedError

    def continue_at(self, message_id: str, turns: int) -> None:
        """Go on after so many turns; those that ask for the conversation's end need nothing."""


@functools.cache
def model_of(getter: str) -> Any:
    """The plugin's model. Imports are left to those who need them: they are measured too."""
    return getattr(importlib.import_module("llm"), getter)(f"huggingchat/{MODEL}")


@dataclass
class ThePlugin(Chat):
    """As asyncio programs and, in a new conversation each time, llm's command line use it."""

    history: list[Any] = field(default_factory=list)

    async def pieces(self, words: str) -> AsyncIterator[str]:
        import llm

        asked = llm.user(words)
        response = model_of("get_async_model").prompt(messages=[*self.history, asked])
        async for piece in response:
            yield piece
        self.history += [asked, *(await response.to_sync_response()).messages()]

    def sync_pieces(self, words: str) -> Iterator[str]:
        return iter(model_of("get_model").prompt(words))

    def continue_at(self, message_id: str, turns: int) -> None:
        question, answer = self.history[-2:]
        *parts, last = answer.parts
        kept = last.provider_metadata["huggingchat"] | {"message_id": message_id}
        last = replace(last, provider_metadata={"huggingchat": kept})
        earlier = [question, replace(answer, parts=parts)] * (turns - 1)
        self.history = [*earlier, question, replace(answer, parts=[*parts, last])]


def bare_request(words: str) -> dict[str, Any]:
    """How the message is sent, after a conversation was made."""
    import curl_cffi

    head = {"Cookie": "hf-chat=bare", "Origin": URL.removesuffix("/chat")}
    made = curl_cffi.post(f"{URL}/conversation", json={"model": MODEL}, headers=head).json()
    root = json.loads(made["conversation"])["json"]["rootMessageId"]
    data = json.dumps({"id": root, "inputs": words, "selectedMcpServerNames": []})
    form = curl_cffi.CurlMime.from_list([{"name": "data", "data": data.encode()}])
    address = f"{URL}/conversation/{made['conversationId']}"
    return {"url": address, "multipart": form, "headers": head, "stream": True}


def token(line: bytes) -> str:
    event = json.loads(line)
    return str(event["token"]).rstrip("\0") if event["type"] == "stream" else ""


class Bare(Chat):
    """Models of llm's that yield what curl_cffi's sessions read."""

    async def pieces(self, words: str) -> AsyncIterator[str]:
        import curl_cffi
        import llm

        class Model(llm.AsyncModel):
            model_id = "bare"

            async def execute(self, *_: Any, **__: Any) -> Any:
                request = await asyncio.to_thread(bare_request, words)
                async with curl_cffi.AsyncSession[Any]() as session:
                    async for line in (await session.post(**request)).aiter_lines():
                        if text := token(line):
                            yield text

        async for piece in Model().prompt(words):
            yield piece

    def sync_pieces(self, words: str) -> Iterator[str]:
        import curl_cffi
        import llm

        class Model(llm.Model):
            model_id = "bare"

            def execute(self, *_: Any, **__: Any) -> Iterator[str]:
                with curl_cffi.Session[Any]() as session:
                    for line in session.post(**bare_request(words)).iter_lines():
                        if text := token(line):
                            yield text

        return iter(Model().prompt(words))


@dataclass
class G4F(Chat):
    """g4f's provider, given cookies: by itself it would open a browser for them."""

    conversation: Any = None

    async def pieces(self, words: str) -> AsyncIterator[str]:
        provider = importlib.import_module("g4f.Provider").HuggingChat
        provider.url, provider.origin = URL, URL.removesuffix("/chat")
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

    async def turn(self, words: str) -> float:
        return await asyncio.get_running_loop().run_in_executor(_threads, self.sync_turn, words)

    def sync_pieces(self, words: str) -> Iterator[str]:
        self.bot = self.bot or self._made()
        for piece in self.bot.chat(words, stream=True):
            if piece and piece["type"] == "stream":
                yield piece["token"]

    def _made(self) -> Any:
        requests: Any = importlib.import_module("requests")
        hugchat: Any = importlib.import_module("hugchat.hugchat")
        here = URL.removesuffix("/chat")

        def turned(text: Any) -> Any:
            return text.replace("https://huggingface.co", here) if isinstance(text, str) else text

        class Turned(requests.Session):
            def request(self, method: Any, url: Any, **options: Any) -> Any:
                heads = options.pop("headers", None) or {}
                heads = {name: turned(value) for name, value in heads.items()}
                return super().request(method, turned(url), headers=heads, **options)

        hugchat.Session = requests.Session = requests.session = Turned
        hugchat.print = lambda *_: None
        return hugchat.ChatBot(cookies={"hf-chat": "hugchat", "token": "t"})


_threads = ThreadPoolExecutor(200)
KINDS = {PLUGIN: ThePlugin, OTHER: ThePlugin, "bare": Bare, "g4f": G4F, "hugchat": HugChat}
MODULES = {PLUGIN: "llm_huggingchat", OTHER: "llm_huggingchat", "hugchat": "hugchat.hugchat"}


class Client:
    """One way to answers."""

    def __init__(self, way: str) -> None:
        self.way, self.runner = way, asyncio.Runner()
        self.chats: list[Chat] = []

    def load(self) -> None:
        """Import what each llm command does."""
        if KINDS[self.way] in (ThePlugin, Bare):
            importlib.import_module("llm").get_models()

    def importing(self) -> Values:
        """Processor time that an import takes, and then the registering, in seconds."""
        os.environ["LLM_LOAD_PLUGINS"] = ""
        importlib.import_module("llm.cli")
        importlib.import_module("llm.parts")  # what comes after is the plugin's own
        begun = time.process_time()
        module = importlib.import_module(MODULES.get(self.way, self.way))
        found = {"import, beyond llm's own": time.process_time() - begun}
        if KINDS[self.way] is ThePlugin:
            begun = time.process_time()
            module.register_models(lambda *_, **__: None)
            found["registering 137 models"] = time.process_time() - begun
        return found

    def continue_at(self, message_id: str, turns: int) -> None:
        self.chats[0].continue_at(message_id, turns)

    def turn(self, words: str, new: int = 0, sync: bool = False) -> Values:
        """Seconds to the first token, of the clock, of the processor; `new` chats, or the old."""
        self.chats = [KINDS[self.way]() for _ in range(new)] or self.chats
        begun, processor = time.perf_counter(), time.process_time()
        first = self.chats[0].sync_turn(words) if sync else self.runner.run(self._turns(words))
        return {
            "first": first - begun,
            "clock": time.perf_counter() - begun,
            "processor": time.process_time() - processor,
        }

    async def _turns(self, words: str) -> float:
        return min(await asyncio.gather(*(chat.turn(words) for chat in self.chats)))

    def busy_turn(self, words: str) -> list[float]:
        """How long a turn keeps event loops busy, each time, in seconds."""
        spans, run = list[float](), asyncio.events.Handle._run

        def timed(handle: Any) -> None:
            begun = time.perf_counter()
            run(handle)
            spans.append(time.perf_counter() - begun)

        asyncio.events.Handle._run = timed  # type: ignore[method-assign, assignment]
        self.turn(words)
        self.runner.run(asyncio.sleep(0.3))  # what goes on beside it counts too
        asyncio.events.Handle._run = run  # type: ignore[method-assign]
        return spans

    def memory(self) -> int:
        """The most that there was, in bytes. On Linux."""
        status = pathlib.Path("/proc/self/status").read_text()
        (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024


# --- measuring ------------------------------------------------------------------------


class Benchmark:
    """All that is measured, by the names of the table's rows.

    Each way has a directory for llm, and a client that stays.
    """

    def __init__(self, python: str | None, rounds: int, folder: str) -> None:
        self.python, self.rounds, self.folder = python, rounds, folder
        self.url = ""
        self.server = self.process("server")
        self.url = self.server.ask("url")
        self.plugins = [PLUGIN, OTHER] if python else [PLUGIN]
        others = [name for name in ("g4f", "hugchat") if importlib.util.find_spec(name)]
        self.ways = [*self.plugins, *others]
        for way in self.plugins:
            self.llm(way, "huggingchat", "refresh")
        self.clients = {way: self.process(way) for way in (*self.ways, "bare")}

    def command(self, way: str, *arguments: str) -> dict[str, Any]:
        """How a way's Python is started."""
        environment = {
            "LLM_HUGGINGCHAT_URL": self.url,
            "LLM_LOAD_PLUGINS": "" if way == "bare" else PLUGIN,
            "LLM_USER_PATH": f"{self.folder}/{way}",
        }
        if way == OTHER:
            environment["PYTHONPATH"] = ""  # it names a checkout of this plugin, if anything
        python = self.python if way == OTHER else sys.executable
        return {"args": [python, *arguments], "env": os.environ | environment}

    def process(self, way: str) -> Process:
        command, pipe = self.command(way, __file__, "--as", way), subprocess.PIPE
        return Process(**command, stdin=pipe, stdout=pipe, text=True)

    def llm(self, way: str, *arguments: str) -> float:
        """Seconds of the clock that a command takes."""
        begun = time.perf_counter()
        command = self.command(way, "-m", "llm", *arguments)
        subprocess.run(**command, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - begun

    def first_token(self, way: str) -> Values:
        """Of a first turn, and of a later one."""
        found: Values = {}
        self.server.ask("delay", latency=LATENCY)
        for turn, new in (("first turn", 1), ("later turn", 0)):
            self.server.ask("count")
            took = self.clients[way].ask("turn", words="[[tokens=5]]", new=new)["first"]
            requests = self.server.ask("count")["requests"]
            what = f"time to the first token, {turn}, each request {LATENCY * 1000:.0f} ms away"
            found[f"requests to the first token, {turn}"] = requests
            found |= {BESIDE + what: requests * LATENCY, what: took}
        self.server.ask("delay", latency=0.0)
        return found

    def token_cost(self, way: str) -> Values:
        """A token comes every `PACE` seconds, or all at once. The others have no sync way."""
        found: Values = {}
        client = self.clients[way]
        for tokens, pace in ((TOKENS, 0.0), (TOKENS // 10, PACE)):
            when = f"{1 / pace:.0f} tokens a second" if pace else f"{tokens} tokens at once"
            for kind in ("sync", "async") if KINDS[way] in (ThePlugin, Bare) else ("async",):
                client.ask("turn", words="[[tokens=1]]", new=1, sync=kind == "sync")
                words = f"[[tokens={tokens}]][[delay={pace}]]"
                took = client.ask("turn", words=words, sync=kind == "sync")
                found[f"processor time a token, {when}, {kind}"] = took["processor"] / tokens
        return found

    def memory(self, way: str) -> Values:
        """The most of a process with a long answer, and of one in a long conversation."""
        found: Values = {}
        echo = f"[[say]]{'so many bytes, back and forth; ' * 80}[[/say]]"  # 2.5 kB each way
        for what, words, turns in (
            (f"memory, after an answer of {TOKENS} tokens", f"[[tokens={TOKENS}]]", 0),
            (f"memory, after {LONG} turns of 5 kB", echo, LONG),
        ):
            if turns and way == "bare":
                continue
            with self.process(way) as client:
                client.ask("load")
                client.ask("turn", words=words, new=1)
                if turns:
                    client.ask("continue_at", **self.server.ask("grow", turns=turns))
                    client.ask("turn", words=words)
                found[what] = client.ask("memory")
        return found

    def many(self, way: str) -> Values:
        """So many answers at the same time, each of half a second by itself."""
        found: Values = {}
        alone, *others = (
            self.clients[way].ask("turn", words="[[tokens=25]][[delay=0.02]]", new=count)
            for count in (1, *TOGETHER)
        )
        for count, took in zip(TOGETHER, others, strict=True):
            what = f"{count} answers at the same time"
            found[f"{BESIDE}{what}, beside one alone"] = alone["clock"]
            found[f"{what}, beside one alone"] = took["clock"]
            found[f"{what}, processor time"] = took["processor"]
        return found

    def long_conversation(self, way: str) -> Values:
        """What a turn costs, by its number."""
        found: Values = {}
        client, words = self.clients[way], "[[tokens=200]]"
        client.ask("turn", words=words, new=1)
        for turn in TURNS:
            client.ask("continue_at", **self.server.ask("grow", turns=turn - 1))
            time.sleep(0.3)
            self.server.ask("count")
            spans = client.ask("busy_turn", words=words)
            count = self.server.ask("count")
            found |= {
                f"upload of turn {turn}": count["up"],
                f"download of turn {turn}": count["down"],
            }
            if way != "hugchat":
                found[f"turn {turn} keeps the loop busy, in all"] = sum(spans)
                found[f"turn {turn} keeps the loop busy, at once"] = max(spans)
        return found

    def start(self, way: str) -> Values:
        found: Values = {}
        if KINDS[way] in (ThePlugin, Bare):
            found["`llm --version`, with and without"] = self.llm(way, "--version")
        if way != "bare":
            with self.process(way) as client:
                found |= client.ask("importing")
        return found

    def rows(self) -> Iterator[tuple[str, Values]]:
        """The name of each row, and each way's median. The ways take turns."""
        everything = [*self.ways, "bare"]
        for measure, ways in (
            (self.first_token, self.ways),
            (self.token_cost, everything),
            *([(self.memory, everything)] if sys.platform == "linux" else []),
            (self.many, self.ways),
            (self.long_conversation, self.ways),
            (self.start, everything),
        ):
            # A round more comes first, which imports what is needed, and does not count.
            rounds = [{way: measure(way) for way in ways} for _ in range(self.rounds + 1)][1:]
            for what in rounds[0][PLUGIN]:
                found = [way for way in ways if what in rounds[0][way]]
                yield what, {way: statistics.median(r[way][what] for r in rounds) for way in found}


# --- the table ------------------------------------------------------------------------


def shown(what: str, value: float) -> str:
    if what.startswith("requests"):
        return f"{value:.0f}"
    if what.startswith(("memory", "upload", "download")):
        return f"{value / 1e6:.1f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"
    if value < 0.001:
        return f"{value * 1e6:.1f} µs"
    return f"{value * 1e3:.0f} ms" if value >= 0.01 else f"{value * 1e3:.1f} ms"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def row(what: str, values: Values, beside: float | None, others: list[str]) -> str:
    """A line: the plugin, what it is compared with, and the others that were measured."""
    plugin = values[PLUGIN]
    ratio = f"**{plugin / beside:.2f}×** {shown(what, beside)}" if beside else ""
    cells = [shown(what, plugin), ratio]
    for value in map(values.get, others):
        cells.append("–" if value is None else f"{shown(what, value)} ({value / plugin:.1f}×)")
    return line(what, *cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the plugin costs.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--python", help="also measure the plugin of this Python's environment")
    parser.add_argument("--json", type=pathlib.Path, help="write the medians to this file")
    parser.add_argument("--as", dest="way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return obey(Server() if options.way == "server" else Client(options.way))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every import would compile
    with tempfile.TemporaryDirectory(prefix="llm-", ignore_cleanup_errors=True) as folder:
        benchmark = Benchmark(options.python, options.rounds, folder)
        others = benchmark.ways[1:]
        names = [PLUGIN, "llm", "curl_cffi", *(name for name in others if name != OTHER)]
        told = [f"{name} {importlib.metadata.version(name)}" for name in names]
        told += [f"Python {platform.python_version()}", f"{os.cpu_count()} processors"]
        print(f"{', '.join(told)}; {platform.system()}\n")
        print(line("", PLUGIN, "beside", *others))
        print(line(*["---"] * (3 + len(others))), flush=True)
        medians: dict[str, Values] = {}
        for what, values in benchmark.rows():
            medians[what] = values
            beside = medians.get(BESIDE + what, {}).get(PLUGIN) or values.get("bare")
            if not what.startswith(BESIDE):
                print(row(what, values, beside, others), flush=True)
    if options.json:
        options.json.write_text(json.dumps(medians, indent=2))
    return None


if __name__ == "__main__":
    main()
