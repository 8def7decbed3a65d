"""The documentation is true: its commands run and print what is shown, its links lead somewhere."""

import contextlib
import glob
import io
import logging
import pathlib
import re
import shlex
from collections.abc import Callable, Iterator
from typing import ClassVar

import chat_ui
import chat_ui_runs
import pytest
import readme
from chat_ui import ChatUI, Fault
from cogapp import Cog  # type: ignore[import-untyped]
from helpers import failure, run

import llm_huggingchat
from llm_huggingchat import SERVICE

TOP = pathlib.Path(__file__).parent.parent
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").glob("*.md"))]
OTHERS = [TOP / "SECURITY.md", TOP / "CHANGELOG.md"]
TOKEN = "token=t-ada"
# What installs something, takes minutes, or needs a browser, an API key or another server.
ELSEWHERE = re.compile(
    r"^(python3? -m|\. |pip|cog|llm install)|(benchmark|evaluate|readme)\.py|--browser"
    r"|SQLite\(|^export LLM_HUGGINGCHAT_URL|^llm keys set huggingface$|^cat >>|hf-api-llama"
)


def blocks(page: pathlib.Path, language: str) -> Iterator[tuple[str, str | None]]:
    """Each block of code in a page, with what is shown as its output, if it is."""
    pattern = rf"(?ms)^```{language}\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?"
    for code, output in re.findall(pattern, page.read_text("utf-8")):
        yield code, output or None


def pages_with(language: str) -> pytest.MarkDecorator:
    """A test for each page that has such code."""
    found = [page for page in PAGES if any(blocks(page, language))]
    return pytest.mark.parametrize("page", found, ids=lambda page: page.stem)


def commands(script: str) -> Iterator[str]:
    """The commands of a block: a line each, or more where quotes or a document go on."""
    command = ""
    for line in script.splitlines(keepends=True):
        command += line
        document = re.search(r"<<'(\w+)'\n", command)
        if command.count("'") % 2 == 0 and (not document or line.strip() == document[1]):
            yield from re.split(r" && (?=(?:[^']*'[^']*')*[^']*$)", command.strip())
            command = ""
    assert not command


# --- what is written ------------------------------------------------------------------


def test_generated_parts_are_up_to_date(capsys):
    names = [str(TOP / name) for name in ("README.md", "docs/models.md")]
    status = Cog().main(["cog", "--check", "--diff", "-I", str(TOP / "tests"), *names])
    said = capsys.readouterr().out
    assert status == 0, f"{said}\nRun: cog -r -I tests README.md docs/models.md"


def anchors(page: pathlib.Path) -> set[str]:
    """What `#…` can lead to in a page."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text("utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    for page in PAGES + OTHERS:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            path, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = page.parent / path if path else page
            assert target.exists(), (page.name, link)
            assert not anchor or anchor in anchors(target), (page.name, link)


def test_every_page_is_short_and_linked_from_the_readme():
    text = PAGES[0].read_text("utf-8")
    assert len(text.encode()) <= 11_000
    for page in PAGES[1:]:
        assert page.stat().st_size < 5_000, page.name
        assert str(page.relative_to(TOP).as_posix()) in text


# --- what runs ------------------------------------------------------------------------


@pytest.fixture
def service(server: ChatUI, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ChatUI:
    """A server with logins that says what the pages show; and files to send."""
    server.login_required = True
    server.store_delay = 0.0  # what a command prints does not depend on it
    server.tokens["t-ada"] = "ada"
    for model in server.models:
        model["supportsArtifacts"] = model["id"].startswith("deepseek-ai/DeepSeek-V4")
    monkeypatch.setattr(chat_ui_runs, "tokens", readme.said)
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCS_TOKEN", "sesame")
    monkeypatch.delenv("LLM_HUGGINGCHAT_WAIT", raising=False)
    pathlib.Path("notes.txt").write_text("Buy bread")
    pathlib.Path("table.csv").write_text("a,b\n1,2\n")
    pathlib.Path("photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" + bytes(20))
    pathlib.Path("memo.mp3").write_bytes(b"ID3\x04" + bytes(100))
    pathlib.Path("cookies.txt").write_text(TOKEN)
    return server


def log_in() -> None:
    run("huggingchat", "login", input=TOKEN)


class Shell:
    """As much of a shell as the pages need, with llm's command line in this process."""

    typed: ClassVar = {"login": TOKEN, "delete": "y\n", "chat": "hello\nexit\n", "artifacts": "y\n"}

    def __init__(self, server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.thread = ""  # the latest that was imported
        self._setenv: Callable[[str, str], None] = monkeypatch.setenv

    def run(self, command: str) -> str:
        """What a command prints, with real ids where it shows some."""
        if ELSEWHERE.search(command):
            return ""
        if loop := re.fullmatch(r"for (\w+) in (.+); do (.+); done", command):
            return "".join(
                self.run(re.sub(rf"\${loop[1]}\b", name, loop[3])) for name in glob.glob(loop[2])
            )
        command = re.sub(r"^cat (\S+) \| (.+)", r"\2 < \1", self._real(command))
        words = shlex.split(command)
        if words[0] == "export":
            self._setenv(*words[1].split("=", 1))
            return ""
        if words[:2] == ["python", "tests/chat_ui.py"]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(chat_ui, "run_command", self._beside)
                assert chat_ui.main(words[2:]) == 0
            return ""
        return self._llm(words)

    def _beside(self, chat: ChatUI, words: list[str]) -> int:
        """Run commands against another stand-in, which wants the token that it names."""
        chat.store_delay = 0.0
        scripts = re.split("; | && ", words[2]) if words[0] == "sh" else [shlex.join(words)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLM_HUGGINGCHAT_URL", chat.url)
            patch.setattr(Shell, "typed", Shell.typed | {"login": next(iter(chat.tokens), "")})
            for script in scripts:
                self._llm(shlex.split(script))
        return 0

    def _llm(self, words: list[str]) -> str:
        input: str | bytes = next((self.typed[word] for word in words if word in self.typed), "")
        with pytest.MonkeyPatch.context() as patch:
            while "=" in words[0]:
                patch.setenv(*words.pop(0).split("=", 1))
            files = {mark: words[words.index(mark) + 1] for mark in "<>" if mark in words}
            if "<" in files:
                input = pathlib.Path(files["<"]).read_bytes()
            assert words[0] == "llm", words
            ends = min((words.index(mark) for mark in files), default=None)
            result = run(*words[1:ends], input=input)
        if "import" in words:
            self.thread = re.findall(r"(?m)^(\w{26}) ", result.stdout)[-1]
        if "logout" in words:
            log_in()
        if ">" in files:
            pathlib.Path(files[">"]).write_bytes(result.stdout_bytes)
        return "" if ">" in files else str(result.output)

    def _real(self, command: str) -> str:
        """A command with ids that the server has."""
        if "aBcD123" in command and not self.server.shares:
            run("huggingchat", "share", next(iter(self.server.conversations)))
        if "ID/output/SHA" in command:
            link = re.search(r"\]\((\S+/output/\S+)\)", run("-m", "hf-llama", "[[file]]").output)
            assert link
            command = command.replace(f"{SERVICE}/conversation/ID/output/SHA", link[1])
        for made_up, real in {
            r"6b03[0-9a-f]{20}": next(reversed(self.server.conversations), ""),
            f"{SERVICE}/r/aBcD123": f"{self.server.url}/r/{next(iter(self.server.shares), '')}",
            r"01kq\w{22}": self.thread,
        }.items():
            command = re.sub(made_up, real, command)
        return command


def as_on_the_service(server: ChatUI, text: str) -> str:
    """What a command printed, as it would be on the service; one id, age and count for all."""
    own = f"huggingchat:127.0.0.1:{server.port}"
    text = text.replace(server.url, SERVICE).replace(own, "huggingchat")
    text = re.sub(r"\b[0-9a-f]{24}\b", "ID", text)
    text = re.sub(r"\bModels: \d+", "Models: N", text)
    return re.sub(r" +(just now|\d+ minutes? ago)", " AGE", text)


@pages_with("bash")
def test_commands_run_and_print_what_is_shown(page, service, monkeypatch):
    shell = Shell(service, monkeypatch)
    if page.name != "README.md":  # which begins with a login
        log_in()
        run("-m", "hf-deepseek", "Is 3,599 prime?")
    for script, output in blocks(page, "bash"):
        printed = ""
        for command in commands(script):
            printed = shell.run(command)
            for id in list(service.conversations):
                service.messages(id)  # it is stored
        if output is not None:
            wanted = as_on_the_service(service, output)
            assert as_on_the_service(service, printed) == wanted, script


@pages_with("python")
def test_programs_run(page, service, monkeypatch):
    log_in()
    monkeypatch.setattr(logging.getLogger("llm_huggingchat"), "handlers", [])
    for program, _ in blocks(page, "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(program, page.name, "exec"), {})
        assert ("You said: " in printed.getvalue()) == ("print(" in program)


# --- what the table of errors says ----------------------------------------------------

TROUBLE = {
    "asks for a pause (HTTP 429": ("-m", "hf-llama", "[[status=429]]"),
    "Unknown model": ("-m", "hf-nobody", "hi"),
    "is no longer offered": ("-m", "hf-llama", "[[status=410]]"),
    "WebSearch not found": ("-m", "hf-llama-guard-4-12b", "-T", "WebSearch", "hi"),
    "takes no images": ("-m", "hf-llama-3.3-70b-instruct", "-a", "photo.jpg", "hi"),
    "answered with a web page": ("-m", "hf-llama", "[[html]]"),
    "No answer from": ("-m", "hf-llama", "[[drop=before*9]]"),
    "failed (HTTP": ("-m", "hf-llama", "[[err=503]]"),
}
FAULTS = {
    "has reached a limit (HTTP 429": Fault(
        status=429, body=b'{"message": "This conversation has more than 1000 messages."}'
    ),
    "A firewall in front of": Fault(status=403, headers=(("x-amzn-waf-action", "captcha"),)),
}
TABLE = PAGES[0].read_text("utf-8").partition("| the error says |")[2].partition("\n\n")[0]
ERRORS = [
    words for row in TABLE.splitlines()[2:] for words in re.findall("`(.+?)`", row.split("|")[1])
]


@pytest.mark.parametrize("words", ERRORS)
def test_the_readme_quotes_errors_that_exist(words, service, monkeypatch):
    for name, value in {"backoff": (0.01,), "reconnect_timeout": 0.1, "look_again": 0.01}.items():
        monkeypatch.setattr(llm_huggingchat.limits, name, value)
    if words == "No connection to":
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", "http://127.0.0.1:1")
    elif words != "there is no key":
        log_in()
    if words == "Not logged in":
        service.sessions.clear()
        service.tokens.clear()
    if words in FAULTS:
        service.faults["POST", "/conversation/*"] = [FAULTS[words]] * 9
    assert words in failure(*TROUBLE.get(words, ("-m", "hf-llama", "hi")))
