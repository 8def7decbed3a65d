"""`llm huggingchat artifacts`, and artifacts in answers, imports and exports."""

from __future__ import annotations

import json
import pathlib
import tempfile
import webbrowser
from typing import Any

import llm
import pytest
import sqlite_utils
from chat_ui import ChatUI
from helpers import ask_sync, failure, kept, logged, make_logs, run
from llm.utils import extract_fenced_code_block
from pure.test_artifacts import BIGGER, CLOCK, PAGE, artifact, fences, made, update
from recorded import capture, follow, streams

import llm_huggingchat
from llm_huggingchat import FENCE


@pytest.fixture
def chat(server: ChatUI, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ChatUI:
    """A server, an empty directory, and a screen whose browser only notes what it shows."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # for what is shown
    return server


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    urls: list[str] = []
    monkeypatch.setattr(webbrowser, "open", urls.append)
    return urls


def talk(*texts: str) -> str:
    """A conversation whose answers say these texts: its id."""
    response = None
    for text in texts:
        response = ask_sync(text, after=response)
    assert response
    response.log_to_db(sqlite_utils.Database(llm.user_dir() / "logs.db"))
    return str(kept(response)["conversation_id"])


def command(*arguments: str, **more: Any) -> Any:
    return run("huggingchat", "artifacts", *arguments, **more)


def test_the_stand_in_says_what_it_is_told(chat: ChatUI) -> None:
    text = ask_sync(CLOCK).text()
    assert fences(text) == [("html", PAGE + "\n")]
    assert extract_fenced_code_block(text) == PAGE + "\n"


def test_an_answer_that_ends_in_an_error_ends_its_fence(
    chat: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_huggingchat.limits, "reconnect_timeout", 1.0)
    monkeypatch.setattr(llm_huggingchat.limits, "backoff", (0.02, 0.05, 0.1, 0.1, 0.1, 0.1))
    result = run("-m", "hf-llama", f"[[cut=12]] [[gone_incomplete]] {CLOCK} and on", status=1)
    ((word, content),) = fences(result.stdout)
    assert (word, content[:9]) == ("html", "<!doctype")
    assert result.stdout.rstrip().endswith(f"\n{FENCE}")
    assert "broke off" in result.stderr


def test_artifacts_are_listed(chat: ChatUI) -> None:
    make_logs()
    id = talk(CLOCK, BIGGER, made("fib", "def fib(): ...", 'code" language="python', "Numbers"))
    listed = "clock  html  A clock (2 versions)\nfib  python  Numbers (1 version)\n"
    for names in ((id,), (f"{chat.url}/conversation/{id}",), ()):
        result = command(*names)
        assert (result.stdout, result.stderr) == (listed, "")
    assert command(id, "--all").stdout == (
        "clock  html  A clock (2 versions)\n"
        "  1: create, 36 bytes: A clock\n"
        "  2: update, 40 bytes: A clock\n"
        "fib  python  Numbers (1 version)\n"
        "  1: create, 14 bytes: Numbers\n"
    )


def test_artifacts_are_written_to_files(chat: ChatUI) -> None:
    make_logs()
    id = talk(CLOCK, BIGGER)
    result = command(id, "-o", "pages")
    assert result.stdout == "pages/clock.html (40 bytes)\n"
    big = PAGE.replace("Clock", "Big clock")
    assert pathlib.Path("pages/clock.html").read_bytes() == big.encode()
    command(id, "-o", "pages", "--all")
    assert pathlib.Path("pages/clock.v1.html").read_bytes() == PAGE.encode()
    assert pathlib.Path("pages/clock.v2.html").read_bytes() == big.encode()


def test_artifacts_wait_for_an_answer_that_is_not_stored_yet(chat: ChatUI) -> None:
    make_logs()
    chat.store_delay = 0.6
    id = talk(CLOCK, BIGGER)
    assert command(id).stdout == "clock  html  A clock (2 versions)\n"


def test_artifacts_overwrite_nothing_unasked(chat: ChatUI) -> None:
    make_logs()
    id = talk(made("new", "new"), made("old", "new"))
    pathlib.Path("old.html").write_text("old")
    result = command(id, "-o", ".", input="n\n", status=1)
    assert "old.html exists" in result.stderr
    assert pathlib.Path("old.html").read_text() == "old"
    assert not pathlib.Path("new.html").exists()
    command(id, "-o", ".", input="y\n")
    assert pathlib.Path("old.html").read_text() == "new"


def test_artifacts_are_written_into_what_is_there(chat: ChatUI) -> None:
    make_logs()
    id = talk(CLOCK, BIGGER)
    pathlib.Path("clock.html").symlink_to("real")
    pathlib.Path(".clock.html.12345678").write_text("mine")
    command(id, "-o", ".", input="y\n")
    assert pathlib.Path("clock.html").is_symlink()
    assert pathlib.Path("real").read_bytes() == PAGE.replace("Clock", "Big clock").encode()
    assert pathlib.Path(".clock.html.12345678").read_text() == "mine"


def test_artifacts_as_json(chat: ChatUI) -> None:
    make_logs()
    id = talk(CLOCK, update("clock", ("Clock", "Uhr"), ("no such", "")))
    (clock,) = json.loads(command(id, "--json").stdout)
    assert (clock["identifier"], clock["kind"], clock["title"]) == ("clock", "html", "A clock")
    first, second = clock["versions"]
    assert (first["number"], first["operation"], first["content"]) == (1, "create", PAGE)
    assert (second["number"], second["missed"]) == (2, ["no such"])
    assert second["content"] == PAGE.replace("Clock", "Uhr")


def test_artifacts_say_what_did_not_match(chat: ChatUI) -> None:
    make_logs()
    lost = update("ghost", ("a", "b"))
    id = talk(lost, CLOCK, update("clock", ("no such", "")), made("clock", "x", "update", ""))
    errors = command(id).stderr
    assert "version 2 of clock is an update that did not match: it replaces 'no such'" in errors
    assert "version 3 of clock is an update that did not match: it replaces nothing" in errors
    assert "an update of ghost has nothing to change" in errors
    broken_off = talk(CLOCK.removesuffix("</artifact>"))
    assert "version 1 of clock was never closed" in command(broken_off).stderr


def test_artifacts_of_a_conversation_without_any(chat: ChatUI) -> None:
    make_logs()
    id = talk("hi")
    assert command(id).output == "huggingchat: there are no artifacts in this conversation\n"
    assert command(id, "--json").stdout == "[]\n"
    command(id, "-o", "pages")
    assert not pathlib.Path("pages").exists()


def test_artifacts_need_a_conversation(chat: ChatUI) -> None:
    assert "Give an id" in failure("huggingchat", "artifacts")
    assert "no such conversation" in failure("huggingchat", "artifacts", "f" * 24)


def test_artifacts_in_the_browser(chat: ChatUI, opened: list[str]) -> None:
    make_logs()
    id = talk(CLOCK, made("dot", "<svg/>", "svg"), made("notes", "x", "markdown"))
    command(id, "--open")
    contents = [pathlib.Path(url.removeprefix("file://")).read_text() for url in opened]
    assert contents == [PAGE, "<svg/>"]
    opened.clear()
    command(id, "--open", "-o", "pages")
    assert opened == [
        pathlib.Path(f"pages/{name}").resolve().as_uri() for name in ("clock.html", "dot.svg")
    ]
    opened.clear()
    nothing = command(talk(made("notes", "x", "markdown")), "--open")
    assert "no HTML or SVG" in nothing.stderr
    assert opened == []


def test_artifacts_without_a_browser(
    chat: ChatUI, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_logs()
    monkeypatch.setattr(llm_huggingchat, "_can_open", lambda: False)
    path = command(talk(CLOCK), "--open").stderr.split()[-1]
    assert pathlib.Path(path).read_text() == PAGE
    assert opened == []


def test_artifacts_are_those_of_the_newest_branch(chat: ChatUI) -> None:
    make_logs()
    first = ask_sync(CLOCK)
    ask_sync(made("other", "x"), after=first)
    ask_sync(BIGGER, after=first)
    assert (
        command(str(kept(first)["conversation_id"])).stdout == "clock  html  A clock (2 versions)\n"
    )


def test_an_import_and_an_export_have_fences(chat: ChatUI) -> None:
    make_logs()
    id = talk(CLOCK)
    (pathlib.Path(llm.user_dir()) / "logs.db").unlink()
    run("huggingchat", "import", id)
    assert fences(logged()[0]["response"]) == [("html", PAGE + "\n")]
    assert ("html", PAGE + "\n") in fences(run("huggingchat", "export", id).stdout)
    raw = run("huggingchat", "export", id, "--format", "json").stdout
    assert json.loads(raw)["messages"][-1]["content"] == "You said: " + CLOCK


# --- recorded ---

RECORDED_PAGE = (
    '<!doctype html>\n<title>Clock</title>\n<p id="t"></p>\n'
    '<script>t.textContent = new Date() < 1 ? "```" : "now"</script>'
)


def test_recorded_answers_have_fences():
    said = {name: follow(body).joined("text") for name, body in streams().items()}
    assert fences(said["artifact-1"]) == [("html", RECORDED_PAGE + "\n")]
    assert extract_fenced_code_block(said["artifact-1"]) == RECORDED_PAGE + "\n"
    assert said["artifact-1"].endswith(f"{FENCE}\nOpen it in a browser.")
    assert [word for word, _ in fences(said["artifact-3"])] == ["diff"]
    assert [word for word, _ in fences(said["artifact_rewritten-1"])] == ["python"]
    thought = follow(streams()["artifact_rewritten-1"]).joined("reasoning")
    assert thought == 'I could write <artifact identifier="x" type="html"> now'
    assert fences(said["artifact_stopped-1"]) == [("html", "<!doctype html>\n<ti\n")]


def stored(name: str) -> list[str]:
    """The answers of a recorded conversation, as the server kept them."""
    messages = capture(name)[-1].json()["json"]["messages"]
    return [message["content"] for message in messages if message["from"] == "assistant"]


def test_recorded_artifacts_with_their_versions():
    clock = artifact(*stored("artifact"))
    assert [version.operation for version in clock.versions] == ["create", "update"]
    assert (clock.identifier, clock.latest.kind, clock.latest.missed) == ("clock", "html", ())
    rewritten = artifact(*stored("artifact_rewritten"))
    assert rewritten.latest.kind == "code"
    assert rewritten.latest.language == "python"
    stopped = artifact(*stored("artifact_stopped"))
    assert (stopped.latest.content, stopped.latest.cut) == ("<!doctype html>\n<ti", True)
