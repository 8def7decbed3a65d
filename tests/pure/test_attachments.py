"""What becomes of a file before it is sent."""

from __future__ import annotations

import base64
import email.parser
import email.policy
import json
import os
import pathlib
import re
import sys

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llm_huggingchat
from llm_huggingchat import (
    ModelInfo,
    Upload,
    attachment_name,
    guessed_type,
    multipart,
    read_attachment,
    read_file,
    recording_of,
    shown_name,
    upload_name,
    upload_of,
)

SEES, READS = ModelInfo("a/sees", multimodal=True), ModelInfo("a/reads")
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
GREETING = "Grüße, où? «ça»"


def uploaded(content: bytes, type: str = "text/plain", model: ModelInfo = SEES) -> Upload:
    return upload_of(model, llm.Attachment(type=type, content=content), content, type)


def refused(content: bytes, type: str, model: ModelInfo = SEES) -> str:
    with pytest.raises(llm.ModelError) as raised:
        uploaded(content, type, model)
    return str(raised.value)


# --- text -----------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("type", ["text/plain", "text/csv", "application/json"])
def test_text_arrives_as_utf8(type: str, encoding: str) -> None:
    upload = uploaded(GREETING.encode(encoding), type)
    assert (upload.content, upload.type) == (GREETING.encode(), type)


def test_text_whose_encoding_cannot_be_told_is_refused() -> None:
    assert "Save it as UTF-8" in refused("Привет".encode("koi8-r"), "text/plain")
    assert "Save it as UTF-8" in refused(b"a\0b", "text/csv")


# Where `file-type` finds something, of that which text can be, and a text that begins so.
MAGIC = {
    0: (
        *("BM;Gewicht", "BZh", "8BPS", "070707", "AC1015", "BLENDER", "Cr24", "DRACO", "DSD "),
        *("FLIF", "FORM", "GIF89a", "GIFT", "ID3", "IMPM", "ISc(", "ITSF", "LZIP", "MAC ", "MP+"),
        *("MPCK", "MSCF", "MThd", "MZ", "OggS", "PAR1", "PARE", "PK\3\4", "REGEDIT4\r\n", "SQLi"),
        *("CWS", "FWS", "fLaC", "gimp xcf ", "icns", "regf", "solid ", "ttcf", "wOFF", "wOF2"),
        *("wvpk", "!<arch>", "!BDN", "#!AMR", "$FL2", "$FL3", "%!PS", "%PDF", ".RMF", "{\\rtf1"),
        *("-----BEGIN PGP MESSAGE-----", "Creative Voice File", "Extended Module:", "\x0bw", "x\1"),
        *("FUJIFILMCCD-RAW", "RIFF", "II*", "\x7fELF", '\4"M\x18', "`\uaf80", "~\x10\4x0MIE"),
        "\6\x0e+4\2\5\1\1\r\1\2\1\1\2",
    ),
    2: ("-lh5-", "-lzs-"),
    4: ("free", "moov", "wide", "mdat", "ftypa", "G" + "x" * 191 + "G"),
    7: ("**ACE--**",),
    36: ("acsp",),
    44: ("SCRM",),
    60: ("BOOKMOBI",),
    128: ("DICM",),
    257: ("ustar ",),
}


@pytest.mark.parametrize(
    ("at", "magic"), [(at, magic) for at, magics in MAGIC.items() for magic in magics], ids=repr
)
def test_text_is_not_taken_for_something_else(at: int, magic: str) -> None:
    text = f"{'y' * at}{magic} and more text\n" * 3
    sent = uploaded(text.encode()).content.decode()
    assert sent.lstrip("\n") == text
    assert not sent[at:].startswith(magic)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1))
def test_any_text_arrives_after_empty_lines_at_most(text: str) -> None:
    sent = uploaded(text.encode()).content.decode()
    assert sent == "\n" * (len(sent) - len(text)) + text


# --- images, recordings, and the rest -------------------------------------------------


@pytest.mark.parametrize(
    ("type", "sent"),
    [
        ("image/png", "image/png"),
        ("image/x-png", "image/png"),
        ("image/jpg", "image/jpeg"),
        ("image/pjpeg", "image/jpeg"),
        ("IMAGE/JPEG; q=1", "image/jpeg"),
        ("image/webp", "image/webp"),
        ("image/gif", "image/gif"),
    ],
)
def test_image_is_sent_by_the_type_that_the_server_knows(type: str, sent: str) -> None:
    upload = uploaded(PNG, type)
    assert (upload.type, upload.content, upload.is_recording) == (sent, PNG, False)


@pytest.mark.parametrize(
    ("content", "type", "says"),
    [
        (PNG, "image/tiff", "is image/tiff; send png, jpeg, webp or gif"),
        (b"%PDF-1.4\n", "application/pdf", "is application/pdf; HuggingChat takes text"),
        (b"%PDF-1.4\n", "text/plain", "is text/plain"),
        (b"\xff\xf1\x50", "audio/aac", "is audio/aac; HuggingChat takes text"),
        (b"\0\1\2", "application/octet-stream", "HuggingChat takes text"),
        (b"PK\3\4\0", "application/zip", "is application/zip"),
        (b"x" * (10 * 1024 * 1024 + 1), "text/plain", "has more than 10 MB"),
        (PNG + b"\0" * 10 * 1024 * 1024, "image/png", "has more than 10 MB"),
        (b"\0" * (25 * 1024 * 1024 + 1), "audio/mpeg", "has more than 25 MB"),
    ],
)
def test_what_is_not_taken_is_told(content: bytes, type: str, says: str) -> None:
    assert says in refused(content, type)


def test_image_for_a_model_that_sees_none_names_some_that_do() -> None:
    assert "huggingchat/a/reads takes no images (attachment.png). Try -m hf-vision" in (
        refused(PNG, "image/png", READS)
    )


@pytest.mark.parametrize(
    ("type", "sent"),
    [("audio/mp3", "audio/mpeg"), ("audio/x-m4a", "audio/mp4"), ("video/webm", "audio/webm")],
)
def test_recording_is_transcribed_by_the_type_that_the_server_knows(type: str, sent: str) -> None:
    content = b"\xff\xfb\x90\0"
    attachment = llm.Attachment(type=type, content=content)
    upload = uploaded(content, type, READS)
    assert (upload.type, upload.is_recording, upload.id) == (sent, True, attachment.id())
    assert recording_of(attachment, content, type) == upload
    with pytest.raises(llm.ModelError, match="transcribes mp3, wav"):
        recording_of(attachment, content, "text/plain")


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
def test_type_is_found_out_by_name_or_content(name: str, content: bytes, type: str) -> None:
    assert guessed_type(llm.Attachment(path=name), content) == type


# --- names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attachment", "name"),
    [
        (llm.Attachment(path="/a/b c.txt"), "b c.txt"),
        (llm.Attachment(url="https://a.example/x%20y.png?z"), "x y.png"),
        (llm.Attachment(type="image/png; q=1", content=b"x"), "attachment.png"),
        (llm.Attachment(content=b"x"), "attachment"),
    ],
)
def test_name_is_what_people_know(attachment: llm.Attachment, name: str) -> None:
    assert attachment_name(attachment) == shown_name(attachment) == name


@given(st.text(st.characters(), max_size=150), st.sampled_from(["", "text/plain", "image/png"]))
def test_any_name_is_safe_in_a_header(name: str, type: str) -> None:
    sent = upload_name(llm.Attachment(path=f"/a/{name}"), type)
    assert sent
    assert not re.search(r'[";\r\n/\\\0]', sent)
    assert len(sent) <= 100


# --- the message ----------------------------------------------------------------------


def parts_of(body: bytes, content_type: str) -> list[tuple[str, str, bytes]]:
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    return [
        (part.get_filename() or "", part.get_content_type(), bytes(part.get_payload(decode=True)))
        for part in message.iter_parts()
    ]


def test_message_has_its_data_and_its_files() -> None:
    uploads = [Upload("ä.txt", "text/csv", b"a\r\nb"), Upload("b.png", "image/png", PNG)]
    data, *files = parts_of(*multipart({"inputs": "hé 漢 🎉", "id": None}, uploads))
    assert json.loads(data[2]) == {"inputs": "hé 漢 🎉", "id": None}
    assert [(type, base64.b64decode(content)) for _, type, content in files] == [
        ("text/csv", b"a\r\nb"),
        ("image/png", PNG),
    ]
    assert files[1][0] == "base64;b.png"


def test_message_takes_the_bytes_that_its_letters_have() -> None:
    text = "漢字" * 1_000
    body, _ = multipart({"inputs": text}, ())
    assert text.encode() in body


@given(st.text(st.characters(), max_size=20))
def test_any_text_can_be_sent(text: str) -> None:
    ((_, _, data),) = parts_of(*multipart({"inputs": text}, ()))
    sent = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert json.loads(data)["inputs"] == sent


def test_message_that_the_server_would_refuse_is_told() -> None:
    with pytest.raises(llm.ModelError, match=r"16\.0 MB of text, .* takes 15\.0 MB in all"):
        multipart({"inputs": "x" * 16 * 1024 * 1024}, ())
    files = [Upload(name, "text/plain", b"x" * 6 * 1024 * 1024) for name in "ab"]
    with pytest.raises(llm.ModelError, match=r"0\.0 MB of text and 16\.0 MB of files"):
        multipart({"inputs": "hi"}, files)
    multipart({"inputs": "漢" * 4 * 1024 * 1024}, ())


# --- reading --------------------------------------------------------------------------


async def test_attachment_is_read_with_its_type(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"a;b")
    assert await read_attachment(llm.Attachment(path=str(path))) == (b"a;b", "text/csv")
    typed = llm.Attachment(type="text/plain", content=b"x")
    assert await read_attachment(typed) == (b"x", "text/plain")
    nothing = llm.Attachment(type="application/octet-stream", path=str(path))
    assert await read_attachment(nothing) == (b"a;b", "text/csv")


@pytest.mark.skipif(sys.platform == "win32", reason="has no named pipes in directories")
def test_pipe_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(llm.ModelError, match="pipe cannot be read"):
        read_file(llm.Attachment(path=str(tmp_path / "pipe")))


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "file:///etc/passwd", "x.txt"])
async def test_attachment_comes_over_http_alone(url: str) -> None:
    with pytest.raises(llm.ModelError, match="not a http or https address"):
        await llm_huggingchat.download_attachment(llm.Attachment(url=url))
