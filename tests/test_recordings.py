"""Recordings in prompts: transcribed by the server, sent as words, and kept in llm's logs."""

import pathlib
import signal
import threading

import helpers as h
import llm
import pytest
from chat_ui import ChatUI, Fault, Request

from llm_huggingchat import limits

ID3 = b"ID3\4\0\0\0\0\0\0\xff\xfb\x90\0"
BUY = "[Transcript of memo.mp3]\nBuy brød\n[End of the transcript]"


def recording(text: str = "Buy brød") -> bytes:
    """A recording in which `text` is said."""
    return ID3 + f"[[say]]{text}[[/say]]".encode()


def memo(content: bytes = recording()) -> llm.Attachment:
    return llm.Attachment(type="audio/mpeg", content=content)


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    """A memo that says what to buy."""
    (tmp_path / "memo.mp3").write_bytes(recording())
    return tmp_path / "memo.mp3"


def heard(server: ChatUI) -> list[Request]:
    """The requests that had something transcribed."""
    return [request for request in list(server.log) if request.path == "/api/transcribe"]


def sent(server: ChatUI) -> str:
    """The last message's words."""
    return str((h.sends(server)[-1].data or {}).get("inputs", ""))


@h.both
def test_words_of_a_recording_go_into_the_message(server, ask, file):
    attachment = llm.Attachment(path=str(file))
    response = ask("What shall I buy?", model="hf-apertus", attachments=[attachment])
    assert sent(server) == f"{BUY}\n\nWhat shall I buy?"
    assert h.sends(server)[-1].files == []
    common = {"name": "transcribe", "server_executed": True}
    assert h.parts(response)[:2] == [
        {"type": "tool_call", "arguments": {"file": "memo.mp3"}} | common,
        {"type": "tool_result", "output": "Buy brød"} | common,
    ]
    assert response.text() == f"You said: {BUY}\n\nWhat shall I buy?"
    paths = [path for _, path in h.calls(server)]
    assert paths[:3] == ["/api/v2/feature-flags", "/api/transcribe", "/conversation"]


def test_logs_show_the_words_and_later_turns_know_them(server, file):
    h.run("-m", "hf-llama", "first", "-a", str(file))
    (row,) = h.logged()
    assert row["prompt"] == "first"
    assert [a["path"] for a in row["attachments"]] == [str(file)]
    assert [r["output"] for r in row["tool_results"]] == ["Buy brød"]
    assert "Buy brød" in h.run("logs").stdout
    h.run("-c", "second")
    assert sent(server) == "second"
    h.run("-c", "third", "-a", str(file))
    assert sent(server) == f"{BUY}\n\nthird"
    h.run("-c", "", "-o", "retry", "true")
    assert len(heard(server)) == 1


def test_several_are_transcribed_in_their_order_and_not_waited_for_when_one_fails(server):
    h.ask_sync("hi", attachments=[memo(recording(f"the {n}th")) for n in range(8)])
    said = [sent(server).index(f"the {n}th") for n in range(8)]
    assert said == sorted(said)
    server.conversations.clear()
    attachments = [memo(), memo(ID3 + b"[[silence]]"), memo(ID3 + b"[[wait=600]]")]
    with h.soon():
        assert "no words" in h.error_of(h.ask_sync, "hello", attachments=attachments)
    assert not server.conversations


def refused(server: ChatUI, ask: h.TurnRequest, attachment: llm.Attachment | None = None) -> str:
    """What is said when a recording cannot be transcribed. Nothing of the message was sent."""
    said = h.error_of(ask, "hello", attachments=[attachment or memo()])
    assert not server.conversations
    return said


@pytest.mark.usefixtures("quick")
def test_recording_that_is_not_understood(server):
    for words, says in (
        ("[[silence]]", "no words in attachment.mp3"),
        ("[[slow]]", "shorter"),
        ("[[err=503]]", "whisper says 503"),
    ):
        assert says in refused(server, h.ask_async, memo(ID3 + words.encode()))
        assert len(heard(server)) == 1 or "503" in words  # not again: it would take as long
        server.log.clear()


def test_what_the_server_says_instead(server):
    for status, body, says in (
        (413, b'{"message": "An error occurred"}', "too large"),
        (200, b"<html>", "not a chat-ui server's"),
        (403, b"", "firewall"),
        (401, b'{"message": "Transcription failed"}', "could not transcribe"),
    ):
        kind = "application/json" if body[:1] == b"{" else "text/html"
        fault = Fault(status=status, body=body, content_type=kind)
        server.faults["POST", "/api/transcribe"] = [fault]
        assert says in refused(server, h.ask_sync)


def test_server_that_does_not_transcribe(server):
    server.transcribes = False
    assert "does not transcribe" in refused(server, h.ask_sync)
    server.faults["GET", "/api/v2/feature-flags"] = [
        Fault(status=200, body=b'{"json":{"loginEnabled":false}}', content_type="application/json")
    ]
    assert "does not transcribe" in refused(server, h.ask_sync)  # it has never heard of it
    assert heard(server) == []


def test_recording_of_more_than_25_megabytes_is_not_sent(server):
    content = recording().ljust(25 * 1024 * 1024, b"\0")
    large = Fault(status=200, body=content + b"a", content_type="audio/mpeg")
    server.faults["GET", "/large.mp3"] = [large]
    url = f"{server.url}/large.mp3"
    for attachment in (memo(large.body), llm.Attachment(type="audio/mpeg", url=url)):
        assert "25 MB" in refused(server, h.ask_sync, attachment)
    assert heard(server) == []
    h.ask_sync("hi", attachments=[memo(content)])
    assert heard(server)[0].body == content


@pytest.mark.usefixtures("quick")
def test_connection_that_breaks_is_tried_again_and_a_silent_one_is_not(server, monkeypatch):
    server.faults["POST", "/api/transcribe"] = [Fault(drop=True)] * 9
    assert "No answer" in refused(server, h.ask_sync)
    assert len(heard(server)) == limits.max_attempts
    monkeypatch.setattr(limits, "transcribe_timeout", 0.1)
    monkeypatch.setattr(limits, "slowest_upload", 1_000_000)
    server.faults["POST", "/api/transcribe"] = [Fault(stall=True)]
    assert "did not answer in time" in refused(server, h.ask_async)
    assert len(heard(server)) == limits.max_attempts + 1


def test_ctrl_c_while_transcribing(server, file):
    file.write_bytes(ID3 + b"[[wait=600]]")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        h.wait_for(lambda: heard(server))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with h.meanwhile(press), h.soon():
        h.run("-m", "hf-llama", "hi", "-a", str(file), status=1)
    signal.signal(signal.SIGINT, before)
    h.wait_for(lambda: not server.open_connections)
    assert not server.conversations


def test_recording_wants_a_login_where_prompts_do(server, file):
    server.login_required = True
    said = h.failure("-m", "hf-llama", "hi", "-a", str(file))
    assert "llm huggingchat login" in said
    server.tokens["t-ada"] = "ada"
    server.log.clear()
    h.ask_sync("hi", attachments=[memo()], key="hf-chat=old; token=t-ada")
    assert "Buy brød" in sent(server)
    assert len(heard(server)) == 2  # the session was over, and was renewed
    assert len(h.sends(server)) == 1
