"""`llm huggingchat artifacts`, `download` and `transcribe`."""

import errno
import pathlib
import re
import tempfile
import webbrowser

import pytest
from chat_ui import ChatUI, Fault
from cli import NO_ID, command, refused
from helpers import logged, only_conversation, run
from pure.test_artifacts import CLOCK, PAGE, made, update
from test_recordings import ID3, recording

pytestmark = pytest.mark.usefixtures("person")
BIG_PAGE = PAGE.replace("Clock", "Big clock")
BIGGER = update("clock", ("Clock", "Big clock"))


@pytest.fixture
def chat(server: ChatUI, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ChatUI:
    """A server, an empty directory, and a screen."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # for what is shown
    return server


def talk(first: str, *others: str) -> str:
    """A conversation whose answers say these texts: its id."""
    run("-m", "hf-llama", first)
    for text in others:
        run("-c", text)
    return str(logged()[-1]["response_json"]["huggingchat"]["conversation_id"])


def test_artifacts_are_listed(chat):
    id = talk(CLOCK, BIGGER, made("fib", "def fib(): ...", 'code" language="python', "Numbers"))
    listed = "clock  html  A clock (2 versions)\nfib  python  Numbers (1 version)\n"
    for names in ((id,), (f"{chat.url}/conversation/{id}",), ()):
        result = command("artifacts", *names)
        assert (result.stdout, result.stderr) == (listed, "")
    assert command("artifacts", id, "--all").stdout == (
        "clock  html  A clock (2 versions)\n"
        "  1: create, 36 bytes: A clock\n"
        "  2: update, 40 bytes: A clock\n"
        "fib  python  Numbers (1 version)\n"
        "  1: create, 14 bytes: Numbers\n"
    )
    missed = command("artifacts", talk(CLOCK, update("clock", ("Watch", "Big watch"))))
    assert "version 2 of clock did not match: it replaces 'Watch'" in missed.stderr


def test_artifacts_are_written_to_files_and_overwrite_nothing_unasked(chat):
    id = talk(CLOCK, BIGGER, made("old", "new"))
    listed = "pages/clock.html (40 bytes)\npages/old.html (3 bytes)\n"
    assert command("artifacts", id, "-o", "pages").stdout == listed
    pages = pathlib.Path("pages")
    assert (pages / "clock.html").read_text() == BIG_PAGE
    (pages / "old.html").write_text("mine")
    (pages / "clock.html").unlink()
    asked = run("huggingchat", "artifacts", id, "-o", "pages", input="n\n", status=1)
    assert "old.html exists" in asked.stderr
    assert (pages / "old.html").read_text() == "mine"
    assert not (pages / "clock.html").exists()
    command("artifacts", id, "-o", "pages", input="y\n")
    assert (pages / "old.html").read_text() == "new"
    command("artifacts", id, "-o", "pages", "--all", input="y\n")
    assert (pages / "clock.v1.html").read_text() == PAGE
    assert (pages / "clock.v2.html").read_text() == BIG_PAGE


def test_artifacts_in_the_browser(chat, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    id = talk(CLOCK, made("dot", "<svg/>", "svg"), made("notes", "x", "markdown"))
    command("artifacts", id, "--open")
    contents = [pathlib.Path(url.removeprefix("file://")).read_text() for url in opened]
    assert contents == [PAGE, "<svg/>"]
    opened.clear()
    command("artifacts", id, "--open", "-o", "pages")
    assert opened == [
        pathlib.Path(f"pages/{n}").absolute().as_uri() for n in ("clock.html", "dot.svg")
    ]
    opened.clear()
    nothing = command("artifacts", talk(made("notes", "x", "markdown")), "--open")
    assert "no HTML or SVG" in nothing.stderr
    assert opened == []


def test_download(logged_in, tmp_path):
    (link,) = re.findall(r"\((http[^)]*)\)", run("-m", "hf-llama", "[[file]]").stdout)
    ((mime, content),) = only_conversation(logged_in).files.values()
    name = f"{link.rpartition('/')[2][:8]}.{mime.partition('/')[2]}"
    assert command("download", link).stdout == f"{name} ({len(content)} bytes)\n"
    assert (tmp_path / name).read_bytes() == content
    (tmp_path / name).write_text("mine")
    assert "Overwrite" in run("huggingchat", "download", link, input="n\n", status=1).stderr
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / "folder").mkdir()
    for output in ((), ("-o", "picture"), ("-o", "folder")):
        command("download", link, *output, input="y\n")
    for place in (name, "picture", f"folder/{name}"):
        assert (tmp_path / place).read_bytes() == content
    assert command("download", link, "-o", "-").stdout_bytes == content
    assert "no such file" in refused("download", f"{link}0")
    large = Fault(status=200, body=bytes(9_000_000), content_type="image/png")
    logged_in.faults["GET", "/conversation/*/output/*"] = [large]
    assert len(command("download", link, "-o", "-").stdout_bytes) == 9_000_000
    assert {path.name for path in tmp_path.iterdir()} == {"picture", "folder", name}


def test_download_to_a_full_disk_spares_the_file_that_is_there(logged_in, tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (link,) = re.findall(r"\((http[^)]*)\)", run("-m", "hf-llama", "[[file]]").stdout)
    (tmp_path / "picture").write_text("mine")
    monkeypatch.setattr("os.fsync", full)
    download = ("huggingchat", "download", link, "-o", "picture")
    assert "No space left" in run(*download, input="y\n", status=1).stderr
    assert (tmp_path / "picture").read_text() == "mine"


def test_downloaded_file_has_a_safe_name(logged_in, tmp_path):
    link = f"{logged_in.url}/conversation/{NO_ID}/output/0123"
    for disposition, type, name in (
        ('attachment; filename="../../etc/passwd"', "text/x", "passwd"),
        ('attachment; filename=".bashrc"', "text/plain; charset=utf-8", "bashrc.txt"),
        ('attachment; filename="a\x1b[31m.png"', "image/png", "a[31m.png"),
        ("", "image/png", "0123.png"),
        ('attachment; filename="/"', "text/x", "attachment"),
        ("attachment; filename*=UTF-8''a; filename*0*=b", "image/jpeg", "0123.jpg"),
        ("attachment; filename*=idna''%ff", "image/gif", "0123.gif"),
    ):
        headers = (("content-disposition", disposition),) if disposition else ()
        fault = Fault(status=200, body=b"x", content_type=type, headers=headers)
        logged_in.faults["GET", "/conversation/*/output/*"] = [fault]
        assert command("download", link).stdout == f"{name} (1 bytes)\n"
        assert (tmp_path / name).read_bytes() == b"x"


def test_download_sends_cookies_for_files_only(logged_in):
    del logged_in.log[:]
    url, origin = logged_in.url, logged_in.url.removesuffix("/chat")
    for link in (
        f"https://evil.example/chat/conversation/{NO_ID}/output/abc",
        f"{origin}@evil.example/chat/conversation/{NO_ID}/output/abc",
        f"{origin}/conversation/{NO_ID}/output/abc",
        f"{url}/api/v2/user",
        f"{url}/conversation/../../settings/output/abc",
        f"{url}/conversation/%2e%2e/output/abc",
        f"{url}/conversation/{NO_ID}/output/abc/../../../../settings",
        f"{url}/conversation/{NO_ID}/output/abc?x=/..",
        "file:///etc/passwd",
        "abc",
    ):
        assert "is not the link of a file" in refused("download", link)
    assert logged_in.log == []


# --- transcribe ---


def test_transcribe(server, tmp_path):
    (tmp_path / "memo.mp3").write_bytes(recording())
    assert command("transcribe", "memo.mp3").stdout == "Buy brød\n"
    assert command("transcribe", "-", input=recording()).stdout == "Buy brød\n"
    assert not server.conversations
    assert logged() == []
    (tmp_path / "silent.mp3").write_bytes(ID3 + b"[[silence]]")
    (tmp_path / "notes.txt").write_text("Rex is a dog")
    for name, says in (
        ("silent.mp3", "heard no words in silent.mp3"),
        ("notes.txt", "notes.txt is text/plain"),
        ("nothing.mp3", "nothing.mp3 cannot be read"),
        ("http://localhost:99999/x", "cannot be fetched: that is no address"),
        ("http://localhost:99999/\udce9", "cannot be fetched: it is not"),
    ):
        assert says in refused("transcribe", name)
