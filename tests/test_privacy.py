"""What never leaves: cookies, and what a hostile server could do with what it answers."""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import logging
import pathlib
import re
import socket
import traceback
from typing import Any

import click.testing
import llm
import llm.cli
import pytest
from chat_ui import PICTURE, ChatUI, Fault, Request
from helpers import (
    COOKIES,
    SESSION,
    TOKEN,
    ask_async,
    ask_sync,
    failure,
    kept_files,
    make_logs,
    meanwhile,
    only_conversation,
    run,
    sends,
    soon,
    use,
    wait_for,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llm_huggingchat
from llm_huggingchat import (
    ArtifactFilter,
    ToolCallFilter,
    find_document,
    find_in,
    limits,
    parse_cookies,
    read_pairs,
    reset,
)

pytestmark = pytest.mark.usefixtures("quick")


# --- cookies --------------------------------------------------------------------------


def check_no_secret(text: str) -> None:
    assert SESSION not in text
    assert TOKEN not in text


def test_cookies_stay_out_of_what_is_kept_and_shown(
    guarded: ChatUI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    use(guarded, COOKIES)
    shown = [run("-m", "hf-llama", "hello"), run("-c", "two"), run("logs", "--json")]
    guarded.sessions.clear()
    shown += [run("-c", "three", *way, status=1) for way in ((), ("--async",))]
    for result in shown:
        check_no_secret(result.output + "".join(traceback.format_exception(result.exception)))
    for path in kept_files():
        check_no_secret(path.read_bytes().decode("latin-1"))
    model = llm.get_model("hf-llama")
    for value in (model, vars(model), llm_huggingchat.parse_cookies(COOKIES)):
        check_no_secret(f"{value!r} {value}")
    check_no_secret(caplog.text)


def test_redirects_are_not_followed(server: ChatUI) -> None:
    with ChatUI() as other:
        location = (("location", f"{other.url}/conversation"),)
        for method, path in (
            ("POST", "/conversation"),
            ("POST", "/conversation/*"),
            ("GET", "/api/mcp/servers"),
        ):
            server.faults[method, path] = [Fault(status=307, headers=location)] * 9
            with pytest.raises(llm.ModelError):
                ask_sync("hello", key=COOKIES, web_search=True)
            server.faults.clear()
        assert other.connections == 0


def test_cookies_of_the_service_are_not_for_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("huggingchat", "huggingchat:one.example"):
        run("keys", "set", name, "--value", COOKIES)
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", "https://chat.example.org")
    for key in ("huggingchat", "huggingchat:one.example", ""):
        if not key:
            monkeypatch.setenv("LLM_HUGGINGCHAT_KEY", COOKIES)
        said = failure("-m", "hf-llama", "hello", *(["--key", key] if key else []))
        assert "llm keys set huggingchat:chat.example.org" in said
        check_no_secret(said)
    check_no_secret(run("huggingchat", "status", status=1).output)


# --- secrets of tool servers ----------------------------------------------------------

SECRET = "sesame-sesame"


def test_name_and_password_in_an_address_are_refused_unseen(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGIN", f"ann:{SECRET}")
    for url in (
        f"https://ann:{SECRET}@mcp.example/x",
        f"http://mcp.example/x?key={SECRET}#{SECRET}",
        f"https://[{SECRET}",
        "https://$LOGIN@mcp.example/x",
    ):
        with pytest.raises(llm.ModelError, match="MCP") as caught:
            ask_sync("hello", tools=[llm_huggingchat.MCP(url)])
        assert "sesame" not in str(caught.value)
    assert server.log == []


# --- attachments that are no files ----------------------------------------------------


def test_attachment_is_not_redirected_to_another_protocol(server: ChatUI) -> None:
    with ChatUI() as other:
        for address in (f"gopher://127.0.0.1:{other.port}/_chosen", "file:///etc/passwd"):
            elsewhere = (("location", address),)
            server.faults["GET", "/a.txt"] = [Fault(status=302, headers=elsewhere)]
            attachment = llm.Attachment(type="text/plain", url=f"{server.url}/a.txt")
            with pytest.raises(llm.ModelError, match="cannot be fetched"):
                ask_sync("hello", attachments=[attachment])
        assert other.connections == 0
    assert server.conversations == {}


def test_type_of_an_attachment_ends_no_header(server: ChatUI) -> None:
    for type in ("text/plain\r\nX-Evil: 1", 'text/plain"'):
        ask_async("hello", attachments=[llm.Attachment(type=type, content=b"Rex is a dog")])
        assert sends(server)[-1].files == [("attachment.txt", "text/plain", b"Rex is a dog")]
        assert b"evil" not in sends(server)[-1].body.lower()


def test_cookies_of_the_chat_are_put_into_no_header(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("huggingchat", "huggingchat_other"):
        run("keys", "set", key, "--value", SECRET)
    monkeypatch.setenv("LLM_HUGGINGCHAT_KEY", SECRET)
    for name, tool in (
        ("huggingchat", 'MCP(url="https://mcp.example/x", headers={"Cookie": "a $NAME:b"})'),
        ("LLM_HUGGINGCHAT_KEY", 'MCP("https://mcp.example/x?key=$NAME")'),
    ):
        said = failure("-m", "hf-llama", "-T", tool.replace("NAME", name), "hello")
        assert f"${name}" in said
        assert SECRET not in said
    assert server.log == []


# --- files that somebody asked for ----------------------------------------------------


OUTPUT = "GET", "/conversation/*/output/*"


def test_refused_file_is_written_nowhere_and_a_broken_one_again(
    server: ChatUI, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = run("-m", "hf-llama", "[[file]] hello", "-n").stdout
    (link,) = re.findall(r"\((http[^)]*)\)", answer)
    download = ("huggingchat", "download", link, "-o")
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "good.png").write_bytes(b"good")
    for output, fault in (
        ("good.png", Fault(drop=True)),
        ("-", Fault(status=500, body=b"broken" * 10_000)),
    ):
        server.faults[OUTPUT] = [fault] * 50
        assert "broken" not in run(*download, output, input="y\n", status=1).stdout
        found = [(path.name, path.read_bytes()) for path in folder.iterdir()]
        assert found == [("good.png", b"good")]
    half = Fault(status=502, body=b"x" * 1000)
    server.faults[OUTPUT] = [half, Fault(drop=True), half]  # each attempt begins anew
    run(*download, "good.png", input="y\n")
    assert (folder / "good.png").read_bytes() == PICTURE


# --- a hostile server -----------------------------------------------------------------

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LOGGED_CONTROLS = re.compile(r"[\x00\x07\x1b\x9b]")


def test_words_of_the_server_move_no_cursor(server: ChatUI) -> None:
    evil = "\x1b]0;x\x07\x1b[2J\x9bevil\u202e"
    tool = {"type": "tool", "uuid": "11111111-1111-4111-8111-111111111111"}
    asks = {"elicitationId": "q", "mode": "form", "server": evil, "message": evil, "fields": []}
    events: list[dict[str, Any]] = [
        {"type": "title", "title": evil},
        {"type": "routerMetadata", "route": evil, "model": evil, "provider": evil},
        tool | {"subtype": "call", "call": {"name": evil, "parameters": {evil: evil}}},
        tool | {"subtype": "error", "message": evil},
        {"type": "stream", "token": f"hello\n\ta  {evil}"},
    ]
    question = {"type": "elicitation", "subtype": "request", "request": asks}
    error = {"type": "status", "status": "error", "message": evil}
    for end in ([question, {"type": "status", "status": "finished"}], [error]):
        body = b"".join(json.dumps(event).encode() + b"\n" for event in [*events, *end])
        server.faults["POST", "/conversation/*"] = [
            Fault(status=200, body=body, content_type="application/jsonl")
        ]
        shown = run("-m", "hf-llama", "hello", status=1)
        assert not CONTROLS.search(shown.stderr)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown.stdout)
        assert "hello\n\ta  " in shown.stdout
        assert "evil" in shown.stderr
    for conversation in server.conversations.values():
        conversation.title = evil
    assert not CONTROLS.search(run("huggingchat", "conversations").output)
    run("-m", "hf-llama", f"[[say]]<think>a{evil}b</think>c{evil}d[[/say]]")
    assert not LOGGED_CONTROLS.search(run("logs", "-r").stdout)
    end = [{"type": "finalAnswer", "text": ""}, {"type": "status", "status": "finished"}]
    body = b"".join(json.dumps(event).encode() + b"\n" for event in [*events, *end])
    server.faults["POST", "/conversation/*"] = [
        Fault(status=200, body=body, content_type="application/jsonl")
    ]
    run("-m", "hf-llama", "hello")
    shown = run("logs", "-n", "1").stdout
    assert "a  ]0;x[2Jevil" in shown
    assert not LOGGED_CONTROLS.search(shown)


def test_conversation_of_somebody_else_moves_no_cursor_in_the_logs(server: ChatUI) -> None:
    evil = "\x1b]0;x\x07\x1b[2J\x9bevil"
    run("-m", "hf-llama", "hello")
    conversation = only_conversation(server)
    wait_for(lambda: server.messages(conversation.id)[-1]["content"])
    (llm.user_dir() / "logs.db").unlink()
    conversation.model = conversation.preprompt = evil
    conversation.messages[1]["content"] = evil
    link = run("huggingchat", "share", conversation.id).stdout.strip()
    run("huggingchat", "import", link)
    run("-m", "hf-qwen", "-f", f"huggingchat:{link}", "Is that so?")
    shown = run("logs", "-e", "-n", "0").stdout
    assert shown.count("evil") > 4
    assert not LOGGED_CONTROLS.search(shown)


@pytest.mark.parametrize("path", ["/conversation", "/conversation/*"])
def test_server_that_repeats_a_cookie_does_not_have_it_shown(server: ChatUI, path: str) -> None:
    use(server, COOKIES)
    for before, shown in (("You sent", "You sent token=(cookie)"), ("x" * 280, "token=…")):
        body = json.dumps({"message": f"{before} token={TOKEN}"}).encode()
        fault = Fault(status=400, body=body, content_type="application/json")
        server.faults["POST", path] = [fault]
        said = failure("-m", "hf-llama", "hello")
        assert shown in said
        check_no_secret(said)


def test_texts_without_end_are_read_once() -> None:
    """Read again from each beginning, any of these would take hours."""
    size = 100_000
    assert read_pairs("<old_str>" * size + "</old_str><new_str>") == []
    assert find_document("```\n" + "\n" * size + "x", lambda value: "wrong")[0] == ""
    cut = '{"a": "' + '\\"' * size
    assert "it is not valid JSON" in find_document(cut, lambda value: "wrong")[1]
    shown, tags = ArtifactFilter(), "<artifact " * (size // 20)
    assert shown.feed(tags) + shown.end() == tags
    calls, tags = ToolCallFilter(["now"]), "<tool_call>\n" * size + "x"
    assert (calls.feed(tags), calls.end()) == ("", (tags, []))
    assert find_in("<" * size, "<p>") is None
    assert parse_cookies(f"token={TOKEN}" + "\n" * size + "x").token == TOKEN


JUNK = b"x" * 65_536
FLOODS: dict[str, dict[str, Any]] = {
    "a line": {"flood": JUNK},
    "lines": {"flood": b"\n" * 65_536},
    "json": {"body": b'{"json":{"messages":[', "flood": b'{"id":"a"},' * 5_000},
    "an error": {"flood": b"<p>no</p>" * 5_000, "content_type": "text/html", "status": 404},
    "little": {
        "body": gzip.compress(b"[" * 30_000_000, 1),
        "headers": (("content-encoding", "gzip"),),
        "status": 200,
    },
}


@pytest.mark.parametrize("what", FLOODS)
def test_answer_without_end_is_given_up(server: ChatUI, what: str) -> None:
    path = "/api/v2/models"
    server.faults["GET", path] = [Fault(**{"content_type": "application/json"} | FLOODS[what])]
    said = failure("huggingchat", "refresh")
    assert re.search(rf"127.0.0.1:{server.port} sent more than \d+ MB", said)
    assert [r.path for r in server.log].count(path) == 1  # it is not asked again
    wait_for(lambda: server.open_connections == 0)
    fault = Fault(flood=JUNK, content_type="application/jsonl")
    server.faults["POST", "/conversation/*"] = [fault]
    assert "sent a line of more than" in failure("-m", "hf-llama", "hello")
    assert len(sends(server)) == 1


def run_anyhow(*arguments: str) -> str:
    """Run `llm`, whatever comes of it but a traceback; what it printed."""
    make_logs()
    result = click.testing.CliRunner().invoke(llm.cli.cli, list(arguments), input="y\ny\n")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2)
    if result.exit_code:
        assert re.search(r"^(Error: |Aborted!)", result.stderr, re.MULTILINE), result.stderr
    return str(result.stdout + result.stderr)


# --- whatever it answers: no traceback, no cookie shown or kept, and an end -----------


def changed(value: Any, path: list[int], new: Any) -> Any:
    """JSON with one value changed: the one that `path` leads to."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    value = copy.copy(value)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    value[key] = changed(value[key], path[1:], new)
    return value


ODD = st.sampled_from(
    [
        *("", None, 5, -1, 1e300, True, [], {}, ["x"] * 50, {"id": "\x1b"}),
        *("..", "../../x", "a" * 300, "\x1b[31m", "\ud800", "\0", "<script>", "\u202e"),
    ]
)
COMMANDS = [
    ["-m", "hf-llama", "one two [[router]]"],
    ["-m", "hf-llama", "-T", "WebSearch", "[[tool]] [[cut=2]] three"],
    ["-c", "[[file]] and so on"],
    ["-m", "hf-llama", "--schema", "n int", '[[say]]{"n": 1}[[/say]]'],
    ["huggingchat", "conversations", "--json"],
    ["huggingchat", "refresh"],
    ["huggingchat", "import", "--all"],
    ["huggingchat", "export", "ID"],
    ["huggingchat", "artifacts", "ID", "--json"],
    ["huggingchat", "settings", "hf-llama", "--no-artifacts"],
    ["huggingchat", "share", "ID"],
    ["huggingchat", "delete", "ID", "-y"],
]


@settings(max_examples=3, suppress_health_check=list(HealthCheck))
@given(path=st.lists(st.integers(0, 20), max_size=5), new=ODD, first=st.integers(0, 3))
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_whatever_the_server_answers(
    command: list[str], path: list[int], new: Any, first: int
) -> None:
    sessions: dict[str, tuple[str, str | None]] = {SESSION: ("ann", TOKEN)}
    with (
        pytest.MonkeyPatch.context() as patch,
        ChatUI(login_required=True, sessions=sessions, store_delay=0, delay=0) as server,
    ):
        patch.setenv("LLM_HUGGINGCHAT_URL", server.url)
        for name in ("call_timeout", "reconnect_timeout", "store_timeout", "settle_timeout"):
            patch.setattr(limits, name, 0.3)
        patch.setattr(limits, "id_timeout", 0.1)
        use(server, COOKIES)
        id = server.add_conversation("ann", "omni", "", title="T").id
        answers = itertools.count()

        def spoil(request: Request, body: bytes) -> bytes:
            if next(answers) < first:
                return body
            try:
                return json.dumps(changed(json.loads(body), path, new)).encode()
            except ValueError:
                return body

        server.spoil = spoil
        with soon():
            shown = run_anyhow(*[id if argument == "ID" else argument for argument in command])
        check_no_secret(shown)
        reset()
    for kept in kept_files():
        check_no_secret(kept.read_bytes().decode("latin-1"))


def test_head_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """curl_cffi would abort the whole process."""
    monkeypatch.setattr(limits, "call_timeout", 0.5)

    def drip() -> socket.socket:
        there, _ = listening.accept()
        there.sendall(b"HTTP/1.1 200 OK\r\nx: y\r\n")
        return there

    with socket.create_server(("127.0.0.1", 0)) as listening, meanwhile(drip) as there:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", url)
        assert "it did not answer in time" in run("huggingchat", "status", status=1).stderr
        there.result().close()
