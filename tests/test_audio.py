"""Recordings: transcribed by the server, sent as words, and kept in llm's logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import time
from typing import Any

import llm
import pytest
from chat_ui import ChatUI, Fault, Request
from helpers import (
    TurnRequest,
    ask_sync,
    both,
    calls,
    default_signals,
    failure,
    logged,
    make_logs,
    only_conversation,
    parts,
    run,
    sends,
    wait_for,
)

import llm_huggingchat
from llm_huggingchat import AHEAD, AUDIO_LIMIT, AUDIO_TYPES, Client, Credentials, Server, Upload

ID3 = b"ID3\4\0\0\0\0\0\0\xff\xfb\x90\0"
# How files of each kind begin, and what chat-ui is to be told that they are.
KINDS = {
    "memo.mp3": (ID3, "audio/mpeg"),
    "plain.mp3": (b"\xff\xfb\x90\x44" + bytes(413), "audio/mpeg"),
    "memo.wav": (b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0", "audio/wav"),
    "memo.flac": (b"fLaC\0\0\0\x22" + bytes(40), "audio/flac"),
    "memo.ogg": (b"OggS\0\2" + bytes(22) + b"\1vorbis", "audio/ogg"),
    "memo.opus": (b"OggS\0\2" + bytes(22) + b"OpusHead", "audio/ogg"),
    "memo.webm": (bytes.fromhex("1a45dfa39f42868101428284") + b"webm", "audio/webm"),
    "memo.m4a": (b"\0\0\0\x1cftypM4A \0\0\0\0M4A isommp42", "audio/mp4"),
    "phone.m4a": (b"\0\0\0\x18ftyp3gp4\0\0\0\0isom3gp4", "audio/mp4"),
    "clip.mp4": (b"\0\0\0\x1cftypisom\0\0\2\0isomiso2mp41", "audio/mp4"),
}
BUY = "[Transcript of memo.mp3]\nBuy brød\n[End of the transcript]"


def recording(text: str = "Buy brød", start: bytes = ID3) -> bytes:
    """A recording in which `text` is said."""
    return start + f"[[say]]{text}[[/say]]".encode()


def memo(content: bytes | None = None) -> llm.Attachment:
    return llm.Attachment(type="audio/mpeg", content=recording() if content is None else content)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A recording of every kind; memo.mp3 says what to buy."""
    for name, (start, _) in KINDS.items():
        (tmp_path / name).write_bytes(start + name.encode())
    (tmp_path / "memo.mp3").write_bytes(recording())
    return tmp_path


def heard(server: ChatUI) -> list[Request]:
    """The requests that had something transcribed."""
    return [request for request in list(server.log) if request.path == "/api/transcribe"]


def sent(server: ChatUI) -> str:
    """The last message's words."""
    data = sends(server)[-1].data
    assert data
    return str(data.get("inputs", ""))


def transcribed(text: str, name: str = "memo.mp3") -> list[dict[str, Any]]:
    """A transcription, as an answer's parts have it."""
    common = {"name": "transcribe", "server_executed": True}
    return [
        {"type": "tool_call", "arguments": {"file": name}} | common,
        {"type": "tool_result", "output": text} | common,
    ]


# --- into the message, and into the logs ----------------------------------------------


@both
def test_words_of_a_recording_go_into_the_message(
    server: ChatUI, ask: TurnRequest, folder: pathlib.Path
) -> None:
    attachment = llm.Attachment(path=str(folder / "memo.mp3"))
    response = ask("What shall I buy?", model="hf-apertus", attachments=[attachment])
    assert sent(server) == f"{BUY}\n\nWhat shall I buy?"
    assert sends(server)[-1].files == []
    assert parts(response)[:2] == transcribed("Buy brød")
    assert response.text() == f"You said: {BUY}\n\nWhat shall I buy?"


@both
def test_recording_needs_no_words(server: ChatUI, ask: TurnRequest) -> None:
    ask(attachments=[memo()])
    assert sent(server) == BUY.replace("memo", "attachment")


def test_everything_before_the_conversation_is_made(server: ChatUI, folder: pathlib.Path) -> None:
    run("-m", "hf-llama", "hi", "-a", str(folder / "memo.mp3"))
    assert [path for _, path in calls(server)[:3]] == [
        "/api/v2/feature-flags",
        "/api/transcribe",
        "/conversation",
    ]


def test_recordings_beside_an_image_and_a_text(server: ChatUI, folder: pathlib.Path) -> None:
    (folder / "notes.txt").write_text("Rex is a dog")
    (folder / "milk.wav").write_bytes(recording("and milk", KINDS["memo.wav"][0]))
    files = ("milk.wav", "notes.txt", "memo.mp3")
    named = [word for name in files for word in ("-a", str(folder / name))]
    run("-m", "hf-vision", "What is it?", *named, "--at", "/dev/null", "image/png", status=1)
    assert heard(server) == []  # what can be refused here is refused first
    run("-m", "hf-vision", "What is it?", *named)
    milk = "[Transcript of milk.wav]\nand milk\n[End of the transcript]"
    assert sent(server) == f"{milk}\n\n{BUY}\n\nWhat is it?"
    assert [name for name, _, _ in sends(server)[-1].files] == ["notes.txt"]


def test_log_shows_it_below_the_attachment(server: ChatUI, folder: pathlib.Path) -> None:
    run("-m", "hf-llama", "What shall I buy?", "-a", str(folder / "memo.mp3"))
    (row,) = logged()
    assert row["prompt"] == "What shall I buy?"
    assert [a["path"] for a in row["attachments"]] == [str(folder / "memo.mp3")]
    assert [r["output"] for r in row["tool_results"]] == ["Buy brød"]
    shown = run("logs").stdout
    assert shown.index("memo.mp3`") < shown.index("**transcribe**") < shown.index("Buy brød")


def test_later_turns_transcribe_nothing(server: ChatUI, folder: pathlib.Path) -> None:
    run("-m", "hf-llama", "first", "-a", str(folder / "memo.mp3"))
    run("-c", "second")
    assert sent(server) == "second"
    run("-c", "third", "-a", str(folder / "memo.mp3"))  # it is known what it says
    assert sent(server) == f"{BUY}\n\nthird"
    assert len(heard(server)) == 1


def test_whole_history_has_what_was_said(server: ChatUI, folder: pathlib.Path) -> None:
    run("-m", "hf-llama", "first", "-a", str(folder / "memo.mp3"))
    del server.conversations[only_conversation(server).id]
    run("-c", "second")
    assert sent(server).startswith(f"[Earlier messages]\n\nUser: first\n{BUY}\n\nAssistant: ")
    assert "transcribe" not in sent(server)
    assert len(heard(server)) == 1


def test_new_recording_where_the_conversation_is_gone(server: ChatUI, folder: pathlib.Path) -> None:
    run("-m", "hf-llama", "first", "-a", str(folder / "memo.mp3"))
    del server.conversations[only_conversation(server).id]
    (folder / "milk.mp3").write_bytes(recording("and milk"))
    run("-c", "second", "-a", str(folder / "milk.mp3"))
    assert f"User: first\n{BUY}\n\nAssistant: " in sent(server)
    new = "[Transcript of milk.mp3]\nand milk\n[End of the transcript]\n\nsecond"
    assert sent(server).endswith(f"[End of the earlier messages]\n\n{new}")
    assert len(heard(server)) == 2


@both
def test_message_is_sent_again_with_the_same_words(
    server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        llm_huggingchat.limits, "backoff", (0.01,) * len(llm_huggingchat.limits.backoff)
    )
    monkeypatch.setattr(llm_huggingchat.limits, "look_again", 0.01)
    ask("hi [[drop=before*2]]", attachments=[memo()])
    assert len(sends(server)) == 3
    assert len(heard(server)) == 1


def test_retry_transcribes_nothing(server: ChatUI, folder: pathlib.Path) -> None:
    run("-m", "hf-llama", "first", "-a", str(folder / "memo.mp3"))
    run("-c", "", "-o", "retry", "true")
    assert len(heard(server)) == 1


@both
def test_same_recording_twice_is_transcribed_once(server: ChatUI, ask: TurnRequest) -> None:
    ask("hi", attachments=[memo(), memo()])
    assert len(heard(server)) == 1
    assert sent(server).count("Buy brød") == 2


def test_recording_with_a_schema(server: ChatUI, folder: pathlib.Path) -> None:
    shown = run(
        *("-m", "hf-llama", "--schema", "n int", '[[say]]{"n": 1}[[/say]]'),
        *("-a", str(folder / "memo.mp3")),
    )
    assert json.loads(shown.stdout) == {"n": 1}
    assert BUY in sent(server)


def test_recording_of_a_local_tool(server: ChatUI) -> None:
    def record() -> llm.ToolOutput:
        """Record what is said."""
        return llm.ToolOutput(output="done", attachments=[memo()])

    call = '<tool_call>{"name": "record", "arguments": {}}</tool_call>'
    prompt = f"[[say]]{call}[[/say]] [[say]]heard[[/say]]"
    chain = llm.get_model("hf-llama").conversation().chain(prompt, tools=[record])
    assert "heard" in chain.text()
    assert "<tool_response>" in sent(server)
    assert "Buy brød" in sent(server)
    assert len(heard(server)) == 1


def test_whole_history_has_what_was_said_in_a_recording_of_a_tool(server: ChatUI) -> None:
    def record() -> llm.ToolOutput:
        """Record what is said."""
        return llm.ToolOutput(output="done", attachments=[memo()])

    call = '<tool_call>{"name": "record", "arguments": {}}</tool_call>'
    conversation = llm.get_model("hf-llama").conversation()
    conversation.chain(f"[[say]]{call}[[/say]] [[say]]heard[[/say]]", tools=[record]).text()
    server.conversations.clear()
    conversation.prompt("And now?").text()
    assert "[Earlier messages]" in sent(server)
    assert "Buy brød" in sent(server)


# --- kinds of recordings, and where they come from ------------------------------------


@pytest.mark.parametrize("way", ["cli", "path", "content"])
def test_kinds_of_recordings(server: ChatUI, folder: pathlib.Path, way: str) -> None:
    paths = [folder / name for name in KINDS]
    if way == "cli":
        run("-m", "hf-llama", "hi", *(word for path in paths for word in ("-a", str(path))))
    elif way == "path":
        ask_sync("hi", attachments=[llm.Attachment(path=str(path)) for path in paths])
    else:
        ask_sync("hi", attachments=[llm.Attachment(content=path.read_bytes()) for path in paths])
    types = {request.body: request.headers["content-type"] for request in heard(server)}
    assert types == {path.read_bytes(): KINDS[path.name][1] for path in paths}
    named = re.findall(r"\[Transcript of (.*)\]", sent(server))
    assert len(named) == len(KINDS)
    assert way == "content" or named == [*KINDS]


def test_types_that_are_given(server: ChatUI) -> None:
    attachments = [
        llm.Attachment(type=type, content=recording(type)) for type in [*AUDIO_TYPES, "Audio/MP3"]
    ]
    ask_sync("hi", attachments=attachments)
    told = {request.body: request.headers["content-type"] for request in heard(server)}
    expected = {recording(type): told for type, told in AUDIO_TYPES.items()}
    assert told == expected | {recording("Audio/MP3"): "audio/mpeg"}


def test_every_model_says_that_it_takes_them() -> None:
    models = [m for m in llm.get_models() if m.model_id.startswith("huggingchat/")]
    assert models
    for model in models:
        assert set(AUDIO_TYPES) <= set(model.attachment_types)


def test_recording_without_a_tag_or_a_name(server: ChatUI) -> None:
    content = recording(start=b"\xff\xf3\x40\xc4" + bytes(100))  # as text-to-speech writes it
    assert run("huggingchat", "transcribe", "-", input=content).stdout == "Buy brød\n"
    assert heard(server)[0].headers["content-type"] == "audio/mpeg"


def test_recording_from_standard_input(server: ChatUI) -> None:
    run("-m", "hf-llama", "hi", "-a", "-", input=recording())
    assert sent(server) == f"{BUY.replace('memo', 'attachment')}\n\nhi"


@pytest.mark.parametrize("type", ["audio/mpeg", "application/octet-stream"])
def test_recording_from_the_web(server: ChatUI, folder: pathlib.Path, type: str) -> None:
    server.faults["GET", "/memo.mp3"] = [Fault(status=200, body=recording(), content_type=type)]
    ask_sync("hi", attachments=[llm.Attachment(type=type, url=f"{server.url}/memo.mp3")])
    assert sent(server) == f"{BUY}\n\nhi"


# --- what goes wrong: in words, before anything of the message is sent ----------------


def refused(server: ChatUI, ask: TurnRequest, attachment: llm.Attachment | None = None) -> str:
    """What is said when a recording cannot be transcribed. Nothing of the message was sent."""
    with pytest.raises(llm.ModelError) as caught:
        ask("hello", attachments=[attachment or memo()])
    assert not server.conversations
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


@both
@pytest.mark.parametrize("word", ["silence", "dots"])
def test_silence(server: ChatUI, ask: TurnRequest, word: str) -> None:
    said = refused(server, ask, memo(ID3 + f"[[{word}]]".encode()))
    assert "heard no words in attachment.mp3" in said


@both
def test_server_that_does_not_transcribe(server: ChatUI, ask: TurnRequest) -> None:
    server.transcribes = False
    assert "does not transcribe" in refused(server, ask)
    assert calls(server) == [("GET", "/api/v2/feature-flags")]


def test_server_that_knows_of_no_transcribing(server: ChatUI) -> None:
    server.faults["GET", "/api/v2/feature-flags"] = [
        Fault(status=200, body=b'{"loginEnabled":false}', content_type="application/json")
    ]
    assert "does not transcribe" in refused(server, ask_sync)


def test_type_that_is_given_counts_more_than_that_of_the_web(server: ChatUI) -> None:
    server.faults["GET", "/memo"] = [Fault(status=200, body=b"Buy", content_type="audio/mpeg")]
    ask_sync("hi", attachments=[llm.Attachment(type="text/plain", url=f"{server.url}/memo")])
    assert heard(server) == []


def test_spaces_around_what_is_said_are_left_out(server: ChatUI) -> None:
    server.faults["POST", "/api/transcribe"] = [
        Fault(status=200, body=b'{"text":" Buy bread. \\n"}', content_type="application/json")
    ]
    ask_sync("hi", attachments=[memo()])
    assert "\nBuy bread.\n[End" in sent(server)


def test_service_that_does_not_say_why(server: ChatUI) -> None:
    server.faults["POST", "/api/transcribe"] = [
        Fault(
            status=400,
            body=b'{"message":"Transcription failed: "}',
            content_type="application/json",
        )
    ]
    assert "(HTTP 400): its transcription service did not say why" in refused(server, ask_sync)


def test_too_large_a_recording_on_standard_input(server: ChatUI) -> None:
    shown = run("huggingchat", "transcribe", "-", input=ID3 + bytes(AUDIO_LIMIT), status=1)
    assert "more than 25 MB" in shown.stderr
    assert heard(server) == []


@both
@pytest.mark.parametrize("source", ["path", "content", "url"])
def test_too_large_a_recording(
    server: ChatUI, ask: TurnRequest, folder: pathlib.Path, source: str
) -> None:
    content = ID3 + bytes(AUDIO_LIMIT)
    (folder / "large.mp3").write_bytes(content)
    server.faults["GET", "/large.mp3"] = [
        Fault(status=200, body=content, content_type="audio/mpeg")
    ]
    attachment = {
        "path": llm.Attachment(path=str(folder / "large.mp3")),
        "content": memo(content),
        "url": llm.Attachment(type="audio/mpeg", url=f"{server.url}/large.mp3"),
    }[source]
    assert "more than 25 MB" in refused(server, ask, attachment)
    assert {path for _, path in calls(server)} <= {"/large.mp3"}


def test_recording_of_25_megabytes(server: ChatUI) -> None:
    content = recording()
    ask_sync("hi", attachments=[memo(content + bytes(AUDIO_LIMIT - len(content)))])
    assert len(heard(server)[0].body) == AUDIO_LIMIT


@both
def test_server_that_takes_less(server: ChatUI, ask: TurnRequest) -> None:
    """With BODY_SIZE_LIMIT, as in chat-ui's container, it says no more than this."""
    body = b'{"message":"An error occurred","errorId":"0"}'
    server.faults["POST", "/api/transcribe"] = [
        Fault(status=413, body=body, content_type="application/json")
    ]
    said = refused(server, ask, memo(recording() + bytes(2_000_000)))
    assert "too large" in said
    assert "2.0 MB" in said


@both
@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("slow", "shorter pieces"),
        ("err=400", r"HTTP 400\): .*whisper says 400"),
        ("err=404", r"HTTP 404\): .*whisper says 404"),
        ("err=429", r"HTTP 429\): .*whisper says 429"),
        ("err=503", r"HTTP 503\): .*whisper says 503"),
    ],
)
def test_what_the_server_says(server: ChatUI, ask: TurnRequest, word: str, says: str) -> None:
    with pytest.raises(llm.ModelError, match=says):
        ask("hello", attachments=[memo(ID3 + f"[[{word}]]".encode())])
    assert not server.conversations
    assert len(heard(server)) == 1  # not again: it would take as long, or fail as before


def test_key_that_the_server_lacks(server: ChatUI) -> None:
    body = b'{"message":"Authentication required"}'
    server.faults["POST", "/api/transcribe"] = [
        Fault(status=401, body=body, content_type="application/json")
    ]
    assert "no key for the service" in refused(server, ask_sync)


@both
def test_answer_that_makes_no_sense(server: ChatUI, ask: TurnRequest) -> None:
    for body, says in ((b"{}", "makes no sense"), (b"<html>", "not JSON")):
        server.faults["POST", "/api/transcribe"] = [Fault(status=200, body=body)]
        assert says in refused(server, ask)


@both
def test_firewall(server: ChatUI, ask: TurnRequest) -> None:
    server.faults["POST", "/api/transcribe"] = [Fault(status=403)]
    assert "firewall" in refused(server, ask)


@both
@pytest.mark.parametrize("fault", [Fault(drop=True), Fault(drop=True, done=True)])
def test_connection_that_breaks_once(server: ChatUI, ask: TurnRequest, fault: Fault) -> None:
    server.faults["POST", "/api/transcribe"] = [fault]
    ask("hi", attachments=[memo()])
    assert "Buy brød" in sent(server)
    assert len(heard(server)) == 2


@both
def test_connection_that_breaks_again(server: ChatUI, ask: TurnRequest) -> None:
    server.faults["POST", "/api/transcribe"] = [Fault(drop=True)] * 9
    assert "No answer" in refused(server, ask)
    assert len(heard(server)) == 2


@both
def test_silent_server(server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_huggingchat.limits, "call_timeout", 0.5)
    monkeypatch.setattr(llm_huggingchat.limits, "transcribe_timeout", 0.5)
    server.faults["POST", "/api/transcribe"] = [Fault(stall=True)] * 9
    assert "was not transcribed" in refused(server, ask)
    assert len(heard(server)) == 1


@both
def test_transcribing_takes_longer_than_other_calls(
    server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_huggingchat.limits, "call_timeout", 0.5)
    server.faults["POST", "/api/transcribe"] = [Fault(delay=1.0)]
    ask("hi", attachments=[memo()])
    assert "Buy brød" in sent(server)


def test_long_wait_is_told(
    server: ChatUI, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        llm_huggingchat.limits, "backoff", (0.01,) * len(llm_huggingchat.limits.backoff)
    )
    server.faults["POST", "/api/transcribe"] = [Fault(delay=1.0)]
    shown = run("-m", "hf-llama", "hi", "-a", str(folder / "memo.mp3"))
    assert shown.stderr == "huggingchat: memo.mp3 is being transcribed\n"


@both
def test_one_of_several_fails(server: ChatUI, ask: TurnRequest) -> None:
    attachments = [memo(), memo(ID3 + b"[[silence]]"), memo(ID3 + b"[[wait=20]]")]
    begun = time.monotonic()
    with pytest.raises(llm.ModelError, match="no words"):
        ask("hello", attachments=attachments)
    assert time.monotonic() - begun < 10
    assert not server.conversations


def test_a_few_are_transcribed_at_once(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> None:
    now, most = 0, 0

    async def transcribe(self: Client, access: Credentials, recording: Upload) -> str:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return recording.content.decode()

    monkeypatch.setattr(Client, "transcribe", transcribe)
    recordings = [Upload(f"{n}.mp3", "audio/mpeg", str(n).encode()) for n in range(10)]

    async def texts() -> list[str]:
        access = Credentials(Server(server.url), None)
        found = llm_huggingchat.transcribed(Client.here(), access, recordings, print)
        return [text async for _, text in found]

    assert asyncio.run(texts()) == [str(n) for n in range(10)]
    assert most == AHEAD


# --- who asks -------------------------------------------------------------------------


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server that wants logins."""
    with ChatUI(login_required=True, sessions={"s-ada": ("ada", "t-ada")}) as chat:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", chat.url)
        yield chat


def test_logged_out(closed: ChatUI, folder: pathlib.Path) -> None:
    said = failure("-m", "hf-llama", "hi", "-a", str(folder / "memo.mp3"))
    assert "llm huggingchat login" in said
    assert "llm huggingchat login" in failure("huggingchat", "transcribe", str(folder / "memo.mp3"))


def test_session_that_has_ended_is_renewed(closed: ChatUI, folder: pathlib.Path) -> None:
    closed.tokens["t-ada"] = "ada"
    ask_sync("hi", attachments=[memo()], key="hf-chat=old; token=t-ada")
    assert "Buy brød" in sent(closed)
    assert len(heard(closed)) == 2
    assert len(sends(closed)) == 1


# --- stopping -------------------------------------------------------------------------


def process(server: ChatUI, *arguments: str) -> subprocess.Popen[str]:
    make_logs()
    return subprocess.Popen(
        [sys.executable, "-m", "llm", *arguments],
        env=os.environ | {"LLM_HUGGINGCHAT_URL": server.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "hf-llama", "hi", "-a"),
        ("-m", "hf-llama", "hi", "--async", "-a"),
        ("huggingchat", "transcribe"),
    ],
)
def test_ctrl_c_while_transcribing(
    server: ChatUI, tmp_path: pathlib.Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "memo.mp3"
    path.write_bytes(ID3 + b"[[wait=60]]")
    running = process(server, *command, str(path))
    wait_for(lambda: heard(server), 20)
    begun = time.monotonic()
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=20)
    assert time.monotonic() - begun < 5
    assert running.returncode
    wait_for(lambda: server.open_connections == 0)
    assert not server.conversations


def test_cancelled_task(server: ChatUI) -> None:
    async def cancelled() -> None:
        model = llm.get_async_model("hf-llama")
        task = asyncio.ensure_future(
            model.prompt("hi", attachments=[memo(ID3 + b"[[wait=60]]")]).text()
        )
        await asyncio.to_thread(wait_for, lambda: heard(server))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    begun = time.monotonic()
    asyncio.run(cancelled())
    assert time.monotonic() - begun < 10
    wait_for(lambda: server.open_connections == 0)
    assert not server.conversations


# --- llm huggingchat transcribe -------------------------------------------------------


def test_transcribe(server: ChatUI, folder: pathlib.Path, user_path: pathlib.Path) -> None:
    (user_path / "logs.db").unlink(missing_ok=True)
    assert run("huggingchat", "transcribe", str(folder / "memo.mp3")).stdout == "Buy brød\n"
    assert not server.conversations
    assert run("logs", "list", "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("silent.mp3", ID3 + b"[[silence]]", "heard no words in silent.mp3"),
        ("notes.txt", b"Rex is a dog", "notes.txt is text/plain"),
        ("memo.aac", b"\xff\xf1\x50\x80\2\x1f\xfc", "memo.aac is audio/aac"),
        ("memo.mp3", b"", "memo.mp3 is empty"),
        ("memo.mp3", None, "memo.mp3 cannot be read"),
    ],
)
def test_transcribe_fails_in_words(
    server: ChatUI, tmp_path: pathlib.Path, name: str, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert says in failure("huggingchat", "transcribe", str(tmp_path / name))


def test_transcript_is_safe_in_a_terminal(server: ChatUI, folder: pathlib.Path) -> None:
    path = folder / "evil.mp3"
    path.write_bytes(recording("one \x1b[31mtwo\x07\nthree"))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llm", "huggingchat", "transcribe", str(path)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as shown:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # Linux: the other end is closed
            while piece := os.read(ours, 10_000):
                text += piece
        os.close(ours)
    assert (shown.returncode, text) == (0, b"one [31mtwo\r\nthree\r\n")
