"""Files: attachments on their way to the server, and files in answers."""

from __future__ import annotations

import http.server
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import llm
import pytest
from chat_ui import PICTURE, ChatUI
from helpers import ask_sync, both, meanwhile, run, sends

TEN_MEGABYTES = b"a" * (10 * 1024 * 1024)


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a small web server: a picture, a text, something too large."""
    files = {
        "/picture.png": ("image/png", PICTURE),
        "/a%20b.txt": ("text/plain; charset=utf-8", b"Rex is a dog"),
        "/large.txt": ("text/plain", TEN_MEGABYTES + b"a"),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, content = files.get(self.path, ("text/html", b""))
            ways = {"/away": pathlib.Path(__file__).as_uri(), "/ftp": "ftp://127.0.0.1:9/"}
            self.send_response(302 if self.path in ways else 200 if content else 404)
            self.send_header("location", ways.get(self.path, ""))
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd,
        meanwhile(httpd.serve_forever, 0.02),
    ):
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


@pytest.fixture
def picture(tmp_path: pathlib.Path) -> pathlib.Path:
    """A picture to attach."""
    (tmp_path / "picture.png").write_bytes(PICTURE)
    return tmp_path / "picture.png"


def uploaded(server: ChatUI) -> list[tuple[str, str, bytes]]:
    """The files of the last message."""
    return sends(server)[-1].files


@both
def test_image_reaches_a_model_that_sees(server, ask, picture, web):
    pictures = [
        llm.Attachment(path=str(picture)),
        llm.Attachment(url=f"{web}/picture.png"),
        llm.Attachment(content=PICTURE),
        llm.Attachment(type="image/png", content=PICTURE),
    ]
    text = ask("[[images]]", model="hf-vision", attachments=pictures).text()
    assert text == "I see 4 image(s)."
    assert {(type, content) for _, type, content in uploaded(server)} == {("image/png", PICTURE)}
    names = [name for name, _, _ in uploaded(server)]
    assert names[:2] == ["picture.png", "picture.png"]
    assert all(name.endswith(".png") for name in names)


def test_documents_reach_every_model(server, tmp_path):
    documents = [
        ("notes.txt", "text/plain", "Rex is a dog"),
        ("data.json", "application/json", '{"name": "Rex"}'),
        ("table.csv", "text/csv", "name,kind\nRex,dog\n"),
        ("tree.xml", "application/xml", "<dog>Rex</dog>"),
    ]
    options = []
    for name, type, text in documents:
        (tmp_path / name).write_text(text)
        options += ["--at", str(tmp_path / name), type]
    shown = run("-m", "hf-apertus", "[[history]]", *options)
    (message,) = json.loads(shown.stdout)
    assert uploaded(server) == [(name, type, text.encode()) for name, type, text in documents]
    assert all(text in message["content"] for _, _, text in documents)


def test_attachment_from_the_web_is_fetched_here(server, web):
    run("-m", "hf-llama", "hello", "-a", f"{web}/a%20b.txt")
    assert uploaded(server) == [("a b.txt", "text/plain", b"Rex is a dog")]


def test_attachment_from_standard_input(server):
    shown = run("-m", "hf-vision", "[[images]]", "-a", "-", input=PICTURE)
    assert shown.stdout == "I see 1 image(s).\n"
    run("-m", "hf-llama", "hi", "--at", "-", "text/csv", input=b"a,b\n")
    assert uploaded(server) == [("attachment.csv", "text/csv", b"a,b\n")]


def test_file_of_more_than_ten_megabytes_is_refused(server, tmp_path, web):
    (tmp_path / "large.txt").write_bytes(TEN_MEGABYTES + b"a")
    for source in (
        {"path": str(tmp_path / "large.txt")},
        {"url": f"{web}/large.txt"},
        {"content": TEN_MEGABYTES + b"a"},
    ):
        large = llm.Attachment(type="text/plain", **source)
        with pytest.raises(llm.ModelError, match="10 MB"):
            ask_sync("hello", attachments=[large])
    assert server.log == []


def test_what_the_server_does_not_take_is_refused(server):
    for attachment, says in (
        (llm.Attachment(type="application/pdf", content=b"%PDF-1.4"), "application/pdf"),
        (llm.Attachment(type="audio/aac", content=b"\xff\xf1"), "audio/aac"),
        (llm.Attachment(type="image/tiff", content=b"II*\0"), "png, jpeg, webp or gif"),
        (llm.Attachment(type="text/plain", path="/nowhere/notes.txt"), "notes.txt"),
        (llm.Attachment(content=b"\0\1\2\3 no text"), "text, JSON, XML, CSV"),
    ):
        with pytest.raises((llm.ModelError, ValueError), match=says):
            ask_sync("hello", model="hf-vision", attachments=[attachment])
    assert server.log == []


def test_attachment_that_the_web_does_not_have_is_refused(server, web, picture):
    for url, says in (
        (f"{web}/nothing", "HTTP 404"),
        (f"{web}/away", r"curl error 1\)"),
        (f"{web}/ftp", r"curl error 1\)"),
        (picture.as_uri(), "not a http"),
    ):
        with pytest.raises(llm.ModelError, match=says):
            ask_sync("hello", attachments=[llm.Attachment(type="text/plain", url=url)])
    assert server.log == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ["[[cut=4,3]]", "[[cut=3]]", "[[split]]"])
def test_file_in_an_answer_that_was_cut_is_there_once(server, fault):
    words = ask_sync(f"one two three [[file]] {fault}").text().split()
    (link,) = [word for word in words if word.startswith("[picture.png](")]
    words.remove(link)
    assert words == ["You", "said:", "one", "two", "three", "[[file]]", fault]
