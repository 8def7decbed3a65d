"""Files: attachments on their way to the server."""

import json

import llm
import pytest
from chat_ui import PICTURE, ChatUI, Fault
from helpers import ask_sync, both, error_of, run, sends

LARGE = b"a" * (10 * 1024 * 1024 + 1)


def uploaded(server: ChatUI) -> list[tuple[str, str, bytes]]:
    """The files of the last message."""
    return sends(server)[-1].files


@pytest.fixture
def web(server: ChatUI) -> str:
    """The address of a web server: a picture, a text, something too large, and no page."""
    for path, kind, content in (
        ("/picture.png", "image/png", PICTURE),
        ("/a%20b.txt", "text/plain; charset=utf-8", b"Rex is a dog"),
        ("/large.txt", "text/plain", LARGE),
    ):
        server.faults["GET", path] = [Fault(status=200, body=content, content_type=kind)] * 9
    moved = (("Location", f"{server.url}/picture.png"),)
    server.faults["GET", "/moved/picture.png"] = [Fault(status=302, headers=moved)] * 9
    return server.url


@both
def test_image_reaches_a_model_that_sees(server, ask, web, tmp_path):
    (tmp_path / "picture.png").write_bytes(PICTURE)
    pictures = [
        llm.Attachment(path=str(tmp_path / "picture.png")),
        llm.Attachment(url=f"{web}/moved/picture.png"),
        llm.Attachment(content=PICTURE),
        llm.Attachment(type="image/png", content=PICTURE),
    ]
    text = ask("[[images]]", model="hf-vision", attachments=pictures).text()
    assert text == "I see 4 image(s)."
    assert {(type, content) for _, type, content in uploaded(server)} == {("image/png", PICTURE)}
    names = [name for name, _, _ in uploaded(server)]
    assert names[:2] == ["picture.png", "picture.png"]
    assert all(name.endswith(".png") for name in names)


def test_documents_reach_every_model_and_those_of_the_web_are_fetched_here(server, web, tmp_path):
    documents = [
        ("notes.txt", "text/plain", "Rex is a cat"),
        ("data.json", "application/json", '{"name": "Rex"}'),
        ("table.csv", "text/csv", "name,kind\nRex,dog\n"),
        ("tree.xml", "application/xml", "<dog>Rex</dog>"),
    ]
    options = ["--at", f"{web}/a%20b.txt", "text/plain"]
    for name, type, text in documents:
        (tmp_path / name).write_text(text)
        options += ["--at", str(tmp_path / name), type]
    shown = run("-m", "hf-apertus", "[[history]]", *options)
    (message,) = json.loads(shown.stdout)
    documents.insert(0, ("a b.txt", "text/plain", "Rex is a dog"))
    assert uploaded(server) == [(name, type, text.encode()) for name, type, text in documents]
    assert all(text in message["content"] for _, _, text in documents)


def test_attachment_from_standard_input(server):
    shown = run("-m", "hf-vision", "[[images]]", "-a", "-", input=PICTURE)
    assert shown.stdout == "I see 1 image(s).\n"
    run("-m", "hf-llama", "hi", "--at", "-", "text/csv", input=b"a,b\n")
    assert uploaded(server) == [("attachment.csv", "text/csv", b"a,b\n")]


def test_what_cannot_be_sent_is_refused_before_anything_is(server, web, tmp_path):
    (tmp_path / "large.txt").write_bytes(LARGE)
    for source, says in (
        ({"path": str(tmp_path / "large.txt")}, "10 MB"),
        ({"url": f"{web}/large.txt"}, "10 MB"),
        ({"path": "/nowhere/notes.txt"}, "notes.txt"),
        ({"url": f"{web}/nothing"}, "HTTP 404"),
        ({"url": tmp_path.as_uri()}, "not a http"),
        ({"url": "http://127.0.0.1:99999/x"}, "that is no address"),
        ({"content": PICTURE, "type": "image/png"}, "takes no images"),
    ):
        attachment = llm.Attachment(**{"type": "text/plain"} | source)
        assert says in error_of(ask_sync, "hello", attachments=[attachment])
    assert server.conversations == {}
