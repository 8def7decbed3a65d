"""What becomes of a file before it is sent."""

import base64
import email.parser
import email.policy
import json
import os
import re
import sys
from itertools import count
from typing import Any

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llm_huggingchat as plugin
from llm_huggingchat import RECORDINGS, TEXTS, Upload, multipart, read_attachment
from pure.cuts import ANY_TEXT

SEES, READS = (TEXTS, RECORDINGS, plugin.IMAGES), (TEXTS, RECORDINGS)
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
MB = 1024 * 1024
NOBODY: Any = None  # a client that is not called
GREETING = "Grüße, où? «ça»"


def uploaded(content: bytes, type: str = "text/plain", kinds: Any = SEES) -> Upload:
    attachment = llm.Attachment(type=type, content=content)
    return plugin.upload_of(attachment, content, type, kinds, "a/b")


def refused(content: bytes, type: str, kinds: Any = SEES) -> str:
    with pytest.raises(llm.ModelError) as raised:
        uploaded(content, type, kinds)
    return str(raised.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
@pytest.mark.parametrize("type", ["text/plain", "application/json"])
def test_text_arrives_as_utf8(type, encoding):
    upload = uploaded(GREETING.encode(encoding), type)
    assert (upload.content, upload.type) == (GREETING.encode(), type)


# What `file-type` takes for something else, of that which text can be.
AT_THE_START = [
    *("BM;Gewicht", "BZh", "8BPS", "070707", "AC1015", "BLENDER", "Cr24", "DRACO", "DSD "),
    *("FLIF", "FORM", "GIF89a", "GIFT", "ID3", "IMPM", "ISc(", "ITSF", "LZIP", "MAC ", "MP+"),
    *("MPCK", "MSCF", "MThd", "MZ", "OggS", "PAR1", "PARE", "PK\3\4", "REGEDIT4\r\n", "SQLi"),
    *("CWS", "FWS", "fLaC", "gimp xcf ", "icns", "regf", "solid ", "ttcf", "wOFF", "wOF2"),
    *("wvpk", "!<arch>", "!BDN", "#!AMR", "$FL2", "$FL3", "%!PS", "%PDF", ".RMF", "{\\rtf1"),
    *("-----BEGIN PGP MESSAGE-----", "Creative Voice File", "Extended Module:", "\x0bw", "x\1"),
    *("FUJIFILMCCD-RAW", "RIFF", "II*", "\x7fELF", '\4"M\x18', "`\uaf80", "~\x10\4x0MIE"),
    "\6\x0e+4\2\5\1\1\r\1\2\1\1\2",
]
FURTHER_ON = [
    *((2, "-lh5-"), (2, "-lzs-"), (4, "free"), (4, "moov"), (4, "wide"), (4, "mdat"), (4, "ftypa")),
    *((4, f"G{'x' * 191}G"), (7, "**ACE--**"), (36, "acsp"), (44, "SCRM"), (60, "BOOKMOBI")),
    *((128, "DICM"), (257, "ustar ")),
]


def test_text_is_not_taken_for_something_else():
    for at, magic in [*((0, magic) for magic in AT_THE_START), *FURTHER_ON]:
        text = f"{'y' * at}{magic} and more text\n" * 3
        sent = uploaded(text.encode()).content.decode()
        assert sent.lstrip("\n") == text
        assert not sent[at:].startswith(magic)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1))
def test_any_text_arrives_after_empty_lines_at_most(text):
    sent = uploaded(text.encode()).content.decode()
    assert sent == "\n" * (len(sent) - len(text)) + text


# --- images, recordings, and the rest -------------------------------------------------

IMAGES = ["image/jpg jpeg", "image/pjpeg jpeg", "IMAGE/JPEG;q=1 jpeg", "image/x-png png"]


@pytest.mark.parametrize("image", [*IMAGES, "image/png png", "image/webp webp", "image/gif gif"])
def test_image_is_sent_by_the_type_that_the_server_knows(image):
    type, kind = image.split()
    upload = uploaded(PNG, type)
    assert (upload.type, upload.content, upload.is_recording) == (f"image/{kind}", PNG, False)


@pytest.mark.parametrize(
    ("content", "type", "says"),
    [
        (PNG, "image/tiff", "is image/tiff; a/b takes text, JSON"),
        (b"%PDF-1.4\n", "text/plain", "is text/plain, but its encoding is unknown"),
        (b"\xff\xf1\x50", "audio/aac", "is audio/aac; a/b takes text"),
        (b"\0\1\2", "application/octet-stream", "a/b takes text"),
        ("Привет".encode("koi8-r"), "text/plain", "Save it as UTF-8"),
        (PNG + b"\0" * 10 * MB, "image/png", "has more than 10 MB"),
        (b"\0" * (25 * MB + 1), "audio/mpeg", "has more than 25 MB"),
    ],
    ids=count(),
)
def test_what_is_not_taken_is_told(content, type, says):
    assert says in refused(content, type)


def test_image_for_a_model_that_sees_none_names_some_that_do():
    said = refused(PNG, "image/png", READS)
    assert "a/b takes no images (attachment.png). Try -m hf-vision" in said


@pytest.mark.parametrize(
    ("type", "sent"),
    [("audio/mp3", "audio/mpeg"), ("video/webm", "audio/webm"), ("audio/3gpp", "audio/mp4")],
)
def test_recording_is_transcribed_by_the_type_that_the_server_knows(type, sent):
    content = b"\xff\xfb\x90\0"
    attachment = llm.Attachment(type=type, content=content)
    upload = uploaded(content, type, READS)
    assert (upload.type, upload.is_recording, upload.id) == (sent, True, attachment.id())
    assert "a/b takes recordings as mp3, wav" in refused(b"words", "text/plain", (RECORDINGS,))


@pytest.mark.parametrize(
    ("name", "content", "type"),
    [
        ("memo.opus", b"", "audio/ogg"),
        ("memo.m4a", b"", "audio/mp4"),
        ("data.csv", b"BM", "text/csv"),
        ("memo", b"\xff\xfb\x90\0", "audio/mpeg"),
        ("what", b"\0\1", "application/octet-stream"),
    ],
)
def test_type_is_found_out_by_name_or_content(name, content, type):
    assert plugin.guessed_type(llm.Attachment(path=name), content) == type


@pytest.mark.parametrize(
    ("attachment", "name"),
    [
        (llm.Attachment(url="http://[x/a?b=/c"), "a"),
        (llm.Attachment(path="/a/b c.txt"), "b c.txt"),
        (llm.Attachment(url="https://a.example/x%20y.png?z"), "x y.png"),
        (llm.Attachment(type="image/png; q=1", content=b"x"), "attachment.png"),
        (llm.Attachment(content=b"x"), "attachment"),
    ],
)
def test_name_is_what_people_know(attachment, name):
    assert plugin.attachment_name(attachment) == plugin.shown_name(attachment) == name


@given(st.text(st.characters(), max_size=150), st.sampled_from(["", "text/plain", "image/png"]))
def test_any_name_is_safe_in_a_header(name, type):
    sent = plugin.upload_name(llm.Attachment(path=f"/a/{name}"), type)
    assert sent
    assert not re.search(r'[";\r\n/\\\0]', sent)
    assert len(sent) <= 100


def test_long_name_keeps_its_ending():
    name = plugin.upload_name(llm.Attachment(path="n" * 200 + ".txt"), "text/plain")
    assert name.endswith("n.txt")


# --- the message ----------------------------------------------------------------------


def sent_as(data: dict[str, Any], *uploads: Upload) -> tuple[Any, list[tuple[str, str, bytes]]]:
    """The data and the files (name, type, content) of a message, as a server reads them."""
    body, content_type = multipart(data, uploads)
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    first, *files = [
        (part.get_filename() or "", part.get_content_type(), bytes(part.get_payload(decode=True)))
        for part in message.iter_parts()
    ]
    return json.loads(first[2]), files


def test_message_has_its_data_and_its_files():
    uploads = [Upload("ä.txt", "text/csv", b"a\r\nb"), Upload("b.png", "image/png", PNG)]
    data, files = sent_as({"inputs": "hé 漢 🎉", "id": None}, *uploads)
    assert data == {"inputs": "hé 漢 🎉", "id": None}
    contents = [(type, base64.b64decode(content)) for _, type, content in files]
    assert contents == [("text/csv", b"a\r\nb"), ("image/png", PNG)]
    assert files[1][0] == "base64;b.png"


@given(ANY_TEXT)
def test_any_text_can_be_sent(text):
    data, _ = sent_as({"inputs": text})
    well_formed = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert data["inputs"] == well_formed


def test_message_that_the_server_would_refuse_is_told(monkeypatch):
    monkeypatch.setattr(plugin, "BODY_LIMIT", 3 * MB)
    with pytest.raises(llm.ModelError, match=r"4\.0 MB of text, .* takes 3\.0 MB in all"):
        multipart({"inputs": "x" * 4 * MB}, ())
    files = [Upload(name, "text/plain", b"x" * (3 * MB // 2)) for name in "ab"]
    with pytest.raises(llm.ModelError, match=r"0\.0 MB of text and 4\.0 MB of files"):
        multipart({"inputs": "hi"}, files)
    # It takes the bytes that its letters have, not those of their escapes.
    assert multipart({"inputs": "漢" * (MB - 99)}, ())


async def test_attachment_is_read_with_its_type(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"a;b")
    typed = llm.Attachment(type="text/plain", content=PNG)
    assert await read_attachment(NOBODY, typed) == (PNG, "text/plain")
    for type in (None, "application/octet-stream"):
        named = llm.Attachment(type=type, path=str(path))
        assert await read_attachment(NOBODY, named) == (b"a;b", "text/csv")


@pytest.mark.skipif(sys.platform == "win32", reason="has no named pipes in directories")
def test_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(llm.ModelError, match="pipe cannot be read"):
        plugin.read_file(llm.Attachment(path=str(tmp_path / "pipe")))
