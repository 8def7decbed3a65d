"""Artifacts: fences in the answer, and the versions and files that the web page's panel has."""

from __future__ import annotations

import json
import pathlib
import re
import tempfile
import webbrowser
from collections.abc import Callable
from typing import Any

import llm
import pytest
import sqlite_utils
from chat_ui import ChatUI
from helpers import ask_sync, failure, kept, logged, make_logs, run
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.utils import extract_fenced_code_block
from markdown_it import MarkdownIt
from recorded import capture, follow, new_answer, streams, tell
from test_properties import CUTS, pieces

import llm_huggingchat
from llm_huggingchat import (
    FENCE,
    Artifact,
    Artifacts,
    Event,
    File,
    FinalAnswer,
    Reasoning,
    Replay,
    Tags,
    Text,
    Title,
    ToolCall,
    ToolResult,
    apply_pairs,
    artifact_names,
    artifacts_of,
    find_in,
    read_pairs,
)

CLOCK = """<artifact identifier="clock" type="html" title="A clock">
<!doctype html>
<title>Clock</title>
</artifact>"""
PAGE = "<!doctype html>\n<title>Clock</title>"
BIGGER = """<artifact identifier="clock" type="update">
<old_str><title>Clock</title></old_str>
<new_str><title>Big clock</title></new_str>
</artifact>"""


def made(identifier: str, content: str, type: str = "html", title: str = "T") -> str:
    return f'<artifact identifier="{identifier}" type="{type}" title="{title}">{content}</artifact>'


def update(identifier: str, *pairs: tuple[str, str]) -> str:
    inside = "".join(f"<old_str>{old}</old_str><new_str>{new}</new_str>" for old, new in pairs)
    return made(identifier, inside, "update", "")


def events(*parts: str | Event) -> list[Event]:
    """What the stage gives for these, texts next to each other as one."""
    stage = Artifacts()
    said: list[Event] = []
    for part in parts:
        said += stage.feed(Text(part) if isinstance(part, str) else part)
    return joined(said + stage.end())


def joined(said: list[Event]) -> list[Event]:
    found: list[Event] = []
    for event in said:
        if isinstance(event, Text) and found and isinstance(found[-1], Text):
            event = Text(found.pop().text + event.text)  # type: ignore[union-attr]
        found.append(event)
    return found


def shown(*texts: str) -> str:
    """The text that comes out for pieces of text."""
    return "".join(event.text for event in events(*texts) if isinstance(event, Text))


def fences(text: str) -> list[tuple[str, str]]:
    """The fences in Markdown, as a viewer that keeps to CommonMark reads it: word, content."""
    tokens = MarkdownIt("commonmark").parse(text)
    return [(token.info, token.content) for token in tokens if token.type == "fence"]


def artifact(*answers: str) -> Artifact:
    """The only artifact in these answers."""
    (only,) = artifacts_of(answers)[0]
    return only


# --- in the answer ---


def test_an_artifact_is_a_title_and_a_fence():
    assert shown(f"Here.\n{CLOCK}\nOpen it.") == (
        f"Here.\n\n**A clock** (`clock`)\n\n{FENCE}html\n{PAGE}\n{FENCE}\nOpen it."
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("Here:", "There."),
        ("Here: ", " There."),
        ("Here:\n", "\nThere."),
        ("Here:\n\n", "\n\nThere."),
        ("\n", "  \n"),
        ("- Here:\n  ", "\n- There."),
        ("> Here: ", "\n> There."),
    ],
)
def test_it_stands_by_itself_whatever_is_around_it(before, after):
    text = shown(f"{before}{CLOCK}{after}")
    assert fences(text) == [("html", PAGE + "\n")]
    assert extract_fenced_code_block(text) == PAGE + "\n"
    assert text.split() == [
        *before.split(),
        *f"**A clock** (`clock`) {FENCE}html {PAGE} {FENCE}".split(),
        *after.split(),
    ]
    assert "\n\n\n" not in text
    assert not text.startswith("\n\n")


@pytest.mark.parametrize(
    ("attributes", "word"),
    [
        ('type="html"', "html"),
        ('type="text/html"', "html"),
        ('type="SVG"', "svg"),
        ('type="image/svg+xml"', "svg"),
        ('type="react"', "jsx"),
        ('type="tsx"', "jsx"),
        ('type="application/vnd.ant.react"', "jsx"),
        ('type="mermaid"', "mermaid"),
        ('type="md"', "markdown"),
        ('type="text/markdown"', "markdown"),
        ('type="code" language="python"', "python"),
        ('type="application/vnd.ant.code" language="Rust"', "rust"),
        ('type="code" language="C++"', "cpp"),
        ('type="code" language="c#"', "csharp"),
        ('type="code" language="Objective-C"', "objectivec"),
        ('type="code" language="a`b c"', "abc"),
        ('type="code"', ""),
        ('type="text/css"', ""),
        ('type="python"', "python"),
        ("", ""),
    ],
)
def test_one_word_says_what_it_is(attributes, word):
    text = shown(f"<artifact {attributes}>\nx\n</artifact>")
    assert fences(text) == [(word, "x\n")]
    assert extract_fenced_code_block(text) == "x\n"


@pytest.mark.parametrize(
    ("tag", "title"),
    [
        ('<artifact id="a" type="html">', "**a** (`a`)"),
        ('<artifact type="html">', "**untitled-artifact** (`untitled-artifact`)"),
        ('<artifact title = "T"\n  Identifier= "a">', "**T** (`a`)"),
        ('<<<artifact identifier="a" title="T">', "**T** (`a`)"),
        ('<ARTIFACT identifier="a" title="T">', "**T** (`a`)"),
        ('<artifact identifier="a`\x1b\n" title="\x1b[31mT\n\nU">', "**[31mT U** (`a'`)"),
    ],
)
def test_its_title_is_one_line(tag, title):
    assert shown(f"{tag}x</artifact>").split("\n")[0] == title


@pytest.mark.parametrize(
    ("inside", "content"),
    [
        ("\nx\n", "x\n"),
        ("x", "x\n"),
        ("\r\nx\r\n", "x\n"),
        ("\n  x\n  ", "  x\n"),
        ("\n\nx\n\n", "\nx\n\n"),
        ("\n<<svg>\n", "<svg>\n"),
        ("<<<!doctype html>", "<!doctype html>\n"),
        ("1 << 2", "1 << 2\n"),
        ("<< 2", "<< 2\n"),
        ("", ""),
        ("\n", ""),
    ],
)
def test_line_ends_beside_the_tags_and_doubled_brackets_do_not_count(inside, content):
    text = shown(f'<artifact type="html">{inside}</artifact>')
    assert fences(text) == [("html", content)]


NESTED = "# How to\n```python\nprint()\n```\n````\n```\n````\n~~~\n  ``````````"


def test_a_fence_that_holds_fences_is_not_ended_by_them():
    text = shown(made("a", f"\n{NESTED}\n", "markdown"), "\nDone.\n```py\n1\n```")
    assert fences(text) == [("markdown", NESTED + "\n"), ("py", "1\n")]
    assert extract_fenced_code_block(text) == NESTED + "\n"
    assert extract_fenced_code_block(text, last=True) == "1\n"


@pytest.mark.parametrize("line", [FENCE, f"{FENCE}```", f"   {FENCE} \t", f"{FENCE}\r"])
def test_not_even_by_one_as_long_as_itself(line):
    text = shown(made("a", f"\nx\n{line}\ny\n", "markdown"), "\nDone.")
    assert fences(text) == [("markdown", f"x\n    {line.rstrip(chr(13))}\ny\n")]
    assert extract_fenced_code_block(text) == f"x\n    {line}\ny\n"
    ends = shown(made("a", line, "markdown"), "\nDone.")
    assert [word for word, _ in fences(ends)] == ["markdown"]
    assert "Done." not in fences(ends)[0][1]


def test_an_update_is_a_diff():
    text = shown(f"Bigger title:\n{BIGGER}\nDone.")
    assert text == (
        f"Bigger title:\n\n**clock** (update of `clock`)\n\n{FENCE}diff\n"
        f"-<title>Clock</title>\n+<title>Big clock</title>\n{FENCE}\nDone."
    )
    assert fences(text)[0][0] == "diff"


@pytest.mark.parametrize(
    ("inside", "lines"),
    [
        ("<old_str>a\nb</old_str>\n<new_str>c</new_str>", "-a\n-b\n+c\n"),
        ("<old_str>a</old_str><new_str></new_str>", "-a\n"),
        ("<old_str>a</new_str><new_str>b</old_str>", "-a\n+b\n"),
        ("<<old_str>a<</old_str> <<new_str>b</new_str>", "-a\n+b\n"),
        (
            "\n<old_str>a</old_str><new_str>b</new_str>\n<old_str>c</old_str><new_str>d</new_str>",
            "-a\n+b\n-c\n+d\n",
        ),
        (f"<old_str>```\r{FENCE}</old_str><new_str>b</new_str>", f"-```\n-{FENCE}\n+b\n"),
        ("\nthe whole page\n", " the whole page\n"),
        (f"{FENCE}\nx", f"     {FENCE}\n x\n"),
        ("<old_str>a</old_str>", " <old_str>a</old_str>\n"),
        ("", ""),
    ],
)
def test_each_pair_is_removed_and_added_lines(inside, lines):
    assert fences(shown(made("a", inside, "update"))) == [("diff", lines)]


@pytest.mark.parametrize("fence", ["```", "~~~~", "  ```"])
def test_a_fence_that_the_model_put_around_it_is_not_doubled(fence):
    text = shown(f"Here:\n{fence}html\n{CLOCK}\n{fence}\nDone.")
    assert text == f"Here:\n{fence}html\n{PAGE}\n{fence}\nDone."
    nested = shown(f"{fence}md\n{made('a', NESTED, 'markdown')}\n{fence}\nDone.")
    assert [word for word, _ in fences(nested)] == ["md"]
    cut = shown(f"{fence}html\n{CLOCK.removesuffix('</artifact>')}", "")
    assert cut.endswith(f"\n{fence.strip()}")
    assert fences(shown(f"```py\n1\n```\n{CLOCK}"))[1] == ("html", PAGE + "\n")


def test_a_long_update_is_a_diff_too():
    pairs = [(f"old {number}", f"new {number}") for number in range(1000)]
    text = update("a", *pairs)
    lines = "".join(f"-{old}\n+{new}\n" for old, new in pairs)
    assert fences(shown(text)) == [("diff", lines)]
    assert shown(*re.findall(r"[^>]*>|[^>]+", text)) == shown(text)


def test_two_artifacts_one_after_the_other():
    text = shown(CLOCK + CLOCK + "\n" + BIGGER)
    assert [word for word, _ in fences(text)] == ["html", "html", "diff"]
    assert "\n\n\n" not in text


@pytest.mark.parametrize(
    "text",
    [
        "<artifacts type='html'>x</artifacts>",
        "< artifact>x</artifact>",
        "</artifact>",
        "a << b <art> <artifac>",
        "The tag <artifact",
        '<artifact identifier="x" type="ht',
        "<<<",
        "x <",
        "<artifact " + "and so on, " * 400 + ">",
        "```html\n<p>hi</p>\n```\n",
    ],
)
def test_what_only_looks_like_a_tag_comes_through_unchanged(text):
    assert shown(text) == text
    assert shown(*text) == text


def test_text_without_artifacts_comes_as_it_came():
    stage = Artifacts()
    for piece in ["Hello", " ", "\n\n", "```py\n", "a > b", "&lt;", "é🎉", "\r", "a < b <i>"]:
        assert stage.feed(Text(piece)) == [Text(piece)]
    assert stage.end() == []


def test_only_what_may_be_a_tag_is_held_back():
    stage = Artifacts()
    assert stage.feed(Text("if a <")) == [Text("if a ")]
    assert stage.feed(Text(" b <ar")) == [Text("< b ")]
    assert stage.feed(Text("row>")) == [Text("<arrow>")]


def test_it_is_shown_as_it_comes():
    stage = Artifacts()
    stage.feed(Text(made("a", "").removesuffix("</artifact>")))
    assert stage.feed(Text("one\ntwo")) == [Text("one\ntwo")]
    assert stage.feed(Text(" three\n")) == [Text(" three")]
    assert stage.feed(Text("``")) == [Text("\n")]
    assert stage.feed(Text("x")) == [Text("``x")]
    stage = Artifacts()
    stage.feed(Text('<artifact type="update"><old_str>a</old_str>'))
    assert stage.feed(Text("<new_str>b</new_str>")) == [Text("-a\n+b\n")]


@pytest.mark.parametrize("rest", ["", "<", "</artifa", "<<</ARTIFACT"])
def test_an_answer_that_breaks_off_inside_an_artifact_ends_its_fence(rest):
    got = tell(Text(CLOCK.removesuffix("\n</artifact>") + rest), FinalAnswer("", True))
    text = got.joined("text")
    assert fences(text) == [("html", PAGE + "\n")]
    assert text.endswith(f"\n{FENCE}")


def test_an_answer_that_fails_inside_an_artifact_ends_its_fence():
    answer = new_answer()
    said = answer.take(Text(made("a", "x").removesuffix("</artifact>"))) + answer.end()
    assert fences("".join(out.chunk for out in said)) == [("html", "x\n")]
    assert answer.end() == []
    assert answer.last_is_text


def test_tags_in_reasoning_stay_reasoning():
    said = f"<think>I could write {CLOCK} now</think>"
    assert tell(Text(said), Reasoning(CLOCK), Text("Yes."), FinalAnswer("", False)).given == [
        ("reasoning", f"I could write {CLOCK} now{CLOCK}", None, None),
        ("text", "Yes.", None, None),
    ]


def test_as_on_the_web_page_an_artifact_ends_where_a_tool_is_called():
    called, returned = ToolCall("1", "search", {}), ToolResult("1", "search", "found")
    start, end = CLOCK.split("\n<title>")
    assert events(
        "Look", called, start, called, returned, "<title>" + end, FinalAnswer("", False)
    ) == [
        Text("Look"),
        called,
        Text(f"\n\n**A clock** (`clock`)\n\n{FENCE}html\n<!doctype html>\n{FENCE}"),
        called,
        returned,
        Text("\n\n<title>" + end),
        FinalAnswer("", False),
    ]


def test_a_file_comes_after_the_artifact_that_it_came_in():
    start, end = CLOCK.split("Clock")
    said = events(start, File("f.png", "0f"), Title("T"), "Clock" + end, "Done.")
    assert [type(event) for event in said] == [Text, Title, Text, File, Text]
    got = tell(Text(start), File("f.png", "0f"), Text("Clock" + end), FinalAnswer("", False))
    text = got.joined("text")
    assert fences(text) == [("html", PAGE + "\n")]
    assert text.endswith(f"{FENCE}\n[f.png](https://chat.example/output/0f)\n")


def test_a_run_that_is_replayed_inside_an_artifact_goes_on_there():
    half = len(CLOCK) // 2
    healed = tell(Text(CLOCK[:half]), Replay(), Text(CLOCK), FinalAnswer(CLOCK, False))
    assert healed.given == tell(Text(CLOCK), FinalAnswer(CLOCK, False)).given


def test_the_length_seen_is_that_of_what_came():
    answer = new_answer()
    answer.take(Text("🎉" + CLOCK))
    assert answer.seen_length == len(CLOCK) + 2


# --- recorded ---


def stored(name: str) -> list[str]:
    """The answers of a recorded conversation, as the server kept them."""
    messages = capture(name)[-1].json()["json"]["messages"]
    return [message["content"] for message in messages if message["from"] == "assistant"]


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


def test_recorded_artifacts_with_their_versions():
    clock = artifact(*stored("artifact"))
    assert [version.operation for version in clock.versions] == ["create", "update"]
    assert clock.versions[0].content == RECORDED_PAGE
    assert clock.latest.content == RECORDED_PAGE.replace("Clock", "Big clock")
    assert clock.latest.missed == ()
    fib = artifact(*stored("artifact_rewritten"))
    assert [version.operation for version in fib.versions] == ["create", "rewrite"]
    assert fib.latest.content.startswith("def fib(n):\n    return n if n <= 1")
    stopped = artifact(*stored("artifact_stopped"))
    assert (stopped.latest.content, stopped.latest.cut) == ("<!doctype html>\n<ti", True)


# --- versions ---


def test_an_update_changes_the_first_place():
    assert artifact(made("a", "x x"), update("a", ("x", "y"), ("x", "z"))).latest.content == "y z"


@pytest.mark.parametrize(
    ("content", "old", "new"),
    [
        ("say “hi”", 'say "hi"', "N"),
        ("it's", "it\u2019s", "N"),
        ("a — b", "a - b", "N"),
        ("<p>\n    a\n  b</p>", "a b", "<p>\n    N</p>"),
        ("foo\xa0bar", "foo bar", "N"),
        ("foo bar", "\n  foo\tbar\n", "N"),
        ("<svg x>", "<<svg x>", "N"),
        ("x  y x y", "x y", "x  y N"),
        ("a.b a+b", "a+b", "a.b N"),
    ],
)
def test_an_old_text_need_not_be_quite_the_same(content, old, new):
    assert artifact(made("a", content), update("a", (old, "N"))).latest.content == new


def test_a_pair_that_matches_nothing_is_told_and_the_others_count():
    latest = artifact(made("a", "x"), update("a", ("no", "1"), ("x", "y"), ("", "z"))).latest
    assert (latest.content, latest.missed) == ("y", ("no", ""))


def test_an_update_without_pairs_is_told():
    latest = artifact(made("a", "x"), made("a", "<p>new</p>", "update", "")).latest
    assert (latest.content, latest.missed, latest.title) == ("x", ("",), "T")


def test_an_update_of_something_else_belongs_to_what_was_made_last():
    answers = [made("one", "x"), made("two", "x"), update("three", ("x", "y"))]
    found, lost = artifacts_of(answers)
    assert [a.latest.content for a in found] == ["x", "y"]
    found, lost = artifacts_of([*answers, update(" ONE ", ("x", "z"))])
    assert ([a.latest.content for a in found], lost) == (["z", "y"], [])


def test_an_update_of_nothing_is_told():
    assert artifacts_of([update("ghost", ("a", "b"))]) == ([], ["ghost"])


def test_the_same_identifier_with_another_type_is_a_whole_new_version():
    found = artifact(made("a", "x"), made("a", "y", "svg", "U"), update("a", ("y", "z")))
    kinds = [(v.number, v.operation, v.kind, v.title, v.content) for v in found.versions]
    assert kinds == [
        (1, "create", "html", "T", "x"),
        (2, "rewrite", "svg", "U", "y"),
        (3, "update", "svg", "U", "z"),
    ]


def test_reasoning_holds_no_artifacts():
    assert artifacts_of([f"<think>{CLOCK}</think>Hm", f"Then <Think>{CLOCK}"]) == ([], [])


# --- file names ---


def names(*texts: str, every: bool = False) -> list[str]:
    return [name for _, name in artifact_names(artifacts_of(texts)[0], every)]


@pytest.mark.parametrize(
    ("type", "name"),
    [
        ("html", "a.html"),
        ("svg", "a.svg"),
        ("react", "a.jsx"),
        ("mermaid", "a.mmd"),
        ("markdown", "a.md"),
        ("code", "a.txt"),
        ("python", "a.py"),
        ('code" language="python', "a.py"),
        ('code" language="C++', "a.cpp"),
        ('code" language="bash', "a.sh"),
        ('code" language="../x', "a.txt"),
    ],
)
def test_a_file_is_named_after_what_it_is(type, name):
    assert names(made("a", "x", type)) == [name]


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("../../etc/passwd", "_.._etc_passwd.html"),
        ("..", "untitled-artifact.html"),
        ("/", "_.html"),
        ("C:\\x", "C_x.html"),
        ("-rf", "rf.html"),
        (".hidden", "hidden.html"),
        ("con", "_con.html"),
        ("a\x00\x1b\nb", "a b.html"),
        ("uhr é", "uhr é.html"),
        ("\u202egnp", "gnp.html"),
        (" ", "untitled-artifact.html"),
        ("ü" * 300, "ü" * 60 + ".html"),
    ],
)
def test_a_file_name_is_safe(identifier, name):
    assert names(made(identifier, "x")) == [name]


def test_no_two_files_have_one_name():
    both = names(made("a/b", "1"), made("a_b", "2"), made("A_B", "3"))
    assert both == ["a_b.html", "a_b-2.html", "A_B-3.html"]
    assert names(CLOCK, BIGGER, every=True) == ["clock.v1.html", "clock.v2.html"]


# --- the command ---


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


# --- any cut, any text ---

TAGGED = st.lists(
    st.sampled_from(
        """
        <artifact ; type="html"> ; identifier="a" ; <artifact> ; <artifact␣type="update"> ; <
        </artifact> ; <<artifact␣id="b"> ; </ARTIFACT> ; </artifa ; <old_str> ; </old_str> ; >
        <new_str> ; </new_str> ; <artifacts> ; < ; << ; <<svg ; ``` ; ```````````````` ; ` ; a ; é🎉
        """.replace("\n", ";")
        .replace(" ", "")
        .replace("␣", " ")
        .split(";")
    )
    | st.sampled_from(["\n", "\n", "\r\n", "\r", " ", "    ", "\t", "\n\n", FENCE + "\n"])
    | st.sampled_from(["```html\n", "\n~~~~ md\n", "```\n"]),
    max_size=25,
).map("".join)


@settings(max_examples=500)
@given(TAGGED, CUTS)
def test_any_cut_gives_the_same_text(text, cuts):
    assert shown(*pieces(text, cuts)) == shown(text)


@given(st.text(st.characters(exclude_characters="<")), CUTS)
def test_any_text_without_a_tag_is_given_at_once(text, cuts):
    stage = Artifacts()
    for piece in filter(None, pieces(text, cuts)):
        assert stage.feed(Text(piece)) == [Text(piece)]
    assert stage.end() == []


@settings(max_examples=500)
@given(TAGGED, CUTS)
def test_the_tags_and_what_is_around_them_are_all_the_text(text, cuts):
    """What a text has outside of artifacts comes out as it is."""
    tags = Tags()
    found = [out for piece in pieces(text, cuts) for out in tags.feed(piece)] + tags.end()
    outside = "".join(out for out in found if isinstance(out, str))
    pattern = r"<+artifact\b[^>]*>.*?(?:<+/artifact>|\Z)"
    assert outside == re.sub(pattern, "", text, flags=re.I | re.A | re.S)


@settings(max_examples=500)
@given(TAGGED.filter(lambda text: "artifact" not in text.lower()), st.booleans())
def test_no_content_ends_its_fence(content, closed):
    end = "</artifact>\nDone." if closed else ""
    text = shown(f'Look:\n<artifact type="markdown">{content}{end}')
    ((word, inside),) = fences(text)
    assert word == "markdown"
    assert "Done." not in inside
    code = extract_fenced_code_block(text) or ""
    assert re.sub(r"\r\n?", "\n", code) == inside
    if FENCE not in content:
        panel = artifact(f'<artifact type="markdown">{content}{end}').latest.content
        assert code == (panel + "\n" if panel else "")


@given(TAGGED, TAGGED)
def test_any_answers_have_artifacts_or_none(one, two):
    found, _ = artifacts_of([one, two])
    names = [name for _, name in artifact_names(found, True)]
    assert len(set(names)) == sum(len(each.versions) for each in found)
    assert all(pathlib.PurePath(name).name == name for name in names)
    apply_pairs(one, read_pairs(two)[0])
    place = find_in(one, two)
    assert place is None or 0 <= place[0] <= place[1] <= len(one)


@settings(max_examples=200)
@given(st.lists(TAGGED, max_size=4), CUTS)
def test_what_a_tool_cuts_is_the_same_wherever_the_pieces_end(texts, cuts):
    def run(cut: Callable[[str], list[str]]) -> Any:
        parts: list[Event] = []
        for text in texts:
            parts += [Text(piece) for piece in cut(text)]
            parts += [ToolCall("1", "t", {}), File("f", "0")]
        return tell(*parts, FinalAnswer("", False)).given

    assert run(lambda text: pieces(text, cuts)) == run(lambda text: [text])
