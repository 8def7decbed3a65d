"""What never leaves: cookies, and what a hostile server could do with what it answers."""

import contextlib
import copy
import gzip
import itertools
import json
import logging
import re
import socket
import traceback
from typing import Any

import helpers as h
import llm
import llm.cli
import pytest
from chat_ui import PICTURE, ChatUI, Fault, Request
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llm_huggingchat as plugin
from llm_huggingchat import limits, reset

pytestmark = pytest.mark.usefixtures("quick")


# --- cookies --------------------------------------------------------------------------


def check_no_secret(text: str) -> None:
    """Neither here nor in llm's directory, but for the key store."""
    for each in (text, *(path.read_bytes().decode("latin-1") for path in h.kept_files())):
        assert h.SESSION not in each
        assert h.TOKEN not in each


def test_cookies_stay_out_of_what_is_kept_and_shown(guarded, caplog):
    caplog.set_level(logging.DEBUG)
    h.use(guarded, h.COOKIES)
    shown = [h.run("-m", "hf-llama", "hello"), h.run("-c", "two"), h.run("logs", "--json")]
    guarded.sessions.clear()
    shown += [h.run("-c", "three", *way, status=1) for way in ((), ("--async",))]
    for result in shown:
        check_no_secret(result.output + "".join(traceback.format_exception(result.exception)))
    model = llm.get_model("hf-llama")
    for value in (model, vars(model), plugin.parse_cookies(h.COOKIES)):
        check_no_secret(f"{value!r} {value}")
    check_no_secret(caplog.text)


def test_redirects_are_not_followed(server):
    with ChatUI() as other:
        location = (("location", f"{other.url}/conversation"),)
        for call in ("POST /conversation", "POST /conversation/*", "GET /api/mcp/servers"):
            method, path = call.split()
            server.faults[method, path] = [Fault(status=307, headers=location)] * 9
            said = h.error_of(h.ask_sync, "hello", key=h.COOKIES, web_search=True)
            assert re.search("redirects to .*LLM_HUGGINGCHAT_URL", said)
            server.faults.clear()
        assert other.connections == 0


def test_cookies_of_the_service_are_not_for_another_host(monkeypatch):
    for name in ("huggingchat", "huggingchat:one.example"):
        h.run("keys", "set", name, "--value", h.COOKIES)
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", "https://chat.example.org")
    for key in ("huggingchat", "huggingchat:one.example", ""):
        if not key:
            monkeypatch.setenv("LLM_HUGGINGCHAT_KEY", h.COOKIES)
        said = h.failure("-m", "hf-llama", "hello", *(["--key", key] if key else []))
        assert "llm keys set huggingchat:chat.example.org" in said
        check_no_secret(said)
    check_no_secret(h.run("huggingchat", "status", status=1).output)


def test_secret_of_a_tool_server_and_cookies_go_where_they_belong(server, monkeypatch):
    secret = "sesame-sesame"
    for key in ("huggingchat", "huggingchat_other"):
        h.run("keys", "set", key, "--value", secret)
    monkeypatch.setenv("LLM_HUGGINGCHAT_KEY", secret)
    monkeypatch.setenv("LOGIN", f"ann:{secret}")
    for arguments, says in (
        (f'"https://ann:{secret}@mcp.example/x"', "MCP"),
        (f'"http://mcp.example/x?key={secret}#{secret}"', "MCP"),
        (f'"https://[{secret}"', "MCP"),
        ('"https://$LOGIN@mcp.example/x"', "MCP"),
        ('"https://mcp.example/x?key=$LLM_HUGGINGCHAT_KEY"', "$LLM_HUGGINGCHAT_KEY"),
        ('url="https://a.example/x", headers={"Cookie": "a $huggingchat:b"}', "$huggingchat"),
    ):
        said = h.failure("-m", "hf-llama", "-T", f"MCP({arguments})", "hello")
        assert says in said
        assert secret not in said
    assert server.log == []


def test_attachment_is_not_redirected_to_another_protocol(server):
    with ChatUI() as other:
        gopher = f"gopher://127.0.0.1:{other.port}/_chosen"
        for address in (gopher, "file:///etc/passwd", "ftp://\xff/"):
            elsewhere = (("location", address),)
            server.faults["GET", "/a.txt"] = [Fault(status=302, headers=elsewhere)]
            attachment = llm.Attachment(type="text/plain", url=f"{server.url}/a.txt")
            said = h.error_of(h.ask_sync, "hello", attachments=[attachment])
            assert "cannot be fetched" in said
        assert other.connections == 0
    assert server.conversations == {}


def test_type_of_an_attachment_ends_no_header(server):
    for type in ("text/plain\r\nX-Evil: 1", 'text/plain"'):
        h.ask_async("hello", attachments=[llm.Attachment(type=type, content=b"Rex is a dog")])
        assert h.sends(server)[-1].files == [("attachment.txt", "text/plain", b"Rex is a dog")]
        assert b"evil" not in h.sends(server)[-1].body.lower()


def test_refused_file_is_written_nowhere_and_a_broken_one_again(server, tmp_path, monkeypatch):
    answer = h.run("-m", "hf-llama", "[[file]] hello", "-n").stdout
    (link,) = re.findall(r"\((http[^)]*)\)", answer)
    download = ("huggingchat", "download", link, "-o")
    file = "GET", "/conversation/*/output/*"
    folder = tmp_path / "files"
    folder.mkdir()
    good = folder / "good.png"
    good.write_bytes(b"good")
    monkeypatch.chdir(folder)
    broken = Fault(status=500, body=b"broken" * 10_000)
    for output, fault in (("good.png", Fault(drop=True)), ("-", broken)):
        server.faults[file] = [fault] * 50
        assert "broken" not in h.run(*download, output, input="y\n", status=1).stdout
        assert list(folder.iterdir()) == [good]
        assert good.read_bytes() == b"good"
    half = Fault(delay=0.3, status=502, body=b"x" * 1000)
    monkeypatch.setattr(limits, "call_timeout", 0.5)  # it is for each silence, not for all
    server.faults[file] = [half, Fault(drop=True), half]  # each attempt begins anew
    h.run(*download, "good.png", input="y\n")
    assert good.read_bytes() == PICTURE


# --- a hostile server -----------------------------------------------------------------

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LOGGED_CONTROLS = re.compile(r"[\x00\x07\x1b\x9b]")


def test_words_of_the_server_move_no_cursor(server):
    def answered(*events: object, status: int = 0) -> Any:
        body = "\n".join(map(json.dumps, [*events, ""])).encode()
        fault = Fault(status=200, body=body, content_type="application/jsonl")
        server.faults["POST", "/conversation/*"] = [fault]
        return h.run("-m", "hf-llama", "hello", status=status)

    evil = "\x1b]0;x\x07\x1b[2J\x9bevil\u202e"
    tool = {"type": "tool", "uuid": "11111111-1111-4111-8111-111111111111"}
    asks = {"elicitationId": "q", "mode": "form", "server": evil, "message": evil, "fields": []}
    events = [
        {"type": "title", "title": evil},
        {"type": "routerMetadata", "route": evil, "model": evil, "provider": evil},
        tool | {"subtype": "call", "call": {"name": evil, "parameters": {evil: evil}}},
        tool | {"subtype": "error", "message": evil},
        {"type": "stream", "token": f"hello\n\ta  {evil}"},
    ]
    question = {"type": "elicitation", "subtype": "request", "request": asks}
    error = {"type": "status", "status": "error", "message": evil}
    for end in ([question, {"type": "status", "status": "finished"}], [error]):
        shown = answered(*events, *end, status=1)
        assert not CONTROLS.search(shown.stderr)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown.stdout)
        assert "hello\n\ta  " in shown.stdout
        assert "evil" in shown.stderr
    for conversation in server.conversations.values():
        conversation.title = evil
    assert not CONTROLS.search(h.run("huggingchat", "conversations").output)
    h.run("-m", "hf-llama", f"[[say]]<think>a{evil}b</think>c{evil}d[[/say]]")
    assert not LOGGED_CONTROLS.search(h.run("logs", "-r").stdout)
    answered(*events, {"type": "finalAnswer", "text": ""}, {"type": "status", "status": "finished"})
    shown = h.run("logs", "-n", "1").stdout
    assert "a  ]0;x[2Jevil" in shown
    assert not LOGGED_CONTROLS.search(shown)


def test_conversation_of_somebody_else_moves_no_cursor_in_the_logs(server):
    evil = "\x1b]0;x\x07\x1b[2J\x9bevil"
    h.run("-m", "hf-llama", "hello")
    conversation = h.only_conversation(server)
    h.wait_for(lambda: server.messages(conversation.id)[-1]["content"])
    (llm.user_dir() / "logs.db").unlink()
    conversation.model = conversation.preprompt = evil
    conversation.messages[1]["content"] = evil
    link = h.run("huggingchat", "share", conversation.id).stdout.strip()
    h.run("huggingchat", "import", link)
    h.run("-m", "hf-qwen", "-f", f"huggingchat:{link}", "Is that so?")
    shown = h.run("logs", "-e", "-n", "0").stdout
    assert shown.count("evil") > 4
    assert not LOGGED_CONTROLS.search(shown)


@pytest.mark.parametrize("path", ["/conversation", "/conversation/*"])
def test_server_that_repeats_a_cookie_does_not_have_it_shown(server, path):
    h.use(server, h.COOKIES)
    for before, shown in (("You sent", "You sent token=(cookie)"), ("x" * 280, "token=…")):
        body = json.dumps({"message": f"{before} token={h.TOKEN}"}).encode()
        fault = Fault(status=400, body=body, content_type="application/json")
        server.faults["POST", path] = [fault]
        said = h.failure("-m", "hf-llama", "hello")
        assert shown in said
        check_no_secret(said)


def test_texts_without_end_are_read_once():
    """Read again from each beginning, any of these would take hours."""
    size = 100_000
    assert plugin.apply_update("x", "<old_str>" * size + "</old_str><new_str>") == ("x", ("",))
    assert plugin.find_document("```\n" + "\n" * size + "x", lambda value: "wrong")[0] == ""
    cut = '{"a": "' + '\\"' * size
    assert "it is not valid JSON" in plugin.find_document(cut, lambda value: "wrong")[1]
    shown, tags = plugin.ArtifactFilter(), "<artifact " * (size // 20)
    assert shown.feed(tags) + shown.end() == tags
    calls, tags = plugin.ToolCallFilter(["now"]), "<tool_call>\n" * size + "x"
    assert (calls.feed(tags), calls.end()) == ("", (tags, []))
    assert plugin.find_in("<" * size, "<p>") is None
    text, piece = plugin.ReplayedText(), "\U0001f600abc"
    assert all(text.feed(piece) == piece for _ in range(3 * size))
    assert text.whole.getvalue() == piece * 3 * size
    assert plugin.parse_cookies(f"token={h.TOKEN}" + "\n" * size + "x").token == h.TOKEN


def test_body_without_end_is_given_up(server):
    little, compressed = gzip.compress(b"[" * 25_000_000, 1), (("content-encoding", "gzip"),)
    for fault in (
        Fault(body=b"[", flood=b'{"id":"a"},' * 5_000, content_type="application/json"),
        Fault(flood=b"<p>no</p>" * 5_000, content_type="text/html", status=404),
        Fault(body=little, headers=compressed, status=200),
    ):
        server.log.clear()
        server.faults["GET", "/api/v2/models"] = [fault]
        said = h.failure("huggingchat", "refresh")
        assert re.search(rf"127.0.0.1:{server.port} sent more than \d+ MB", said)
        assert len(server.log) == 1  # it is not asked again
        h.wait_for(lambda: not server.open_connections)


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
def test_whatever_the_server_answers(command, path, new, first):
    """There is no traceback, no cookie is shown or kept, and it ends."""
    sessions: dict[str, tuple[str, str | None]] = {h.SESSION: ("ann", h.TOKEN)}
    with (
        pytest.MonkeyPatch.context() as patch,
        ChatUI(login_required=True, sessions=sessions, store_delay=0, delay=0) as server,
    ):
        patch.setenv("LLM_HUGGINGCHAT_URL", server.url)
        for name in ("call_timeout", "reconnect_timeout", "store_timeout", "settle_timeout"):
            patch.setattr(limits, name, 0.3)
        patch.setattr(limits, "id_timeout", 0.1)
        h.use(server, h.COOKIES)
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
        arguments = [id if argument == "ID" else argument for argument in command]
        with h.soon():
            result = CliRunner().invoke(llm.cli.cli, arguments, input="y\ny\n")
        assert isinstance(result.exception, SystemExit | None)
        words = re.compile("" if result.exit_code == 0 else "^(Error: |Aborted!)", re.MULTILINE)
        assert words.search(result.stderr), result.stderr
        reset()
        check_no_secret(result.output)


def test_head_without_end_is_given_up(monkeypatch):
    """curl_cffi would abort the whole process."""
    monkeypatch.setattr(limits, "call_timeout", 0.5)

    def drip() -> socket.socket:
        there, _ = listening.accept()
        there.sendall(b"HTTP/1.1 200 OK\r\nx: y\r\n")
        return there

    with socket.create_server(("127.0.0.1", 0)) as listening, h.meanwhile(drip) as there:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", url)
        assert "it did not answer in time" in h.run("huggingchat", "status", status=1).stderr
        there.result().close()


@h.both
def test_tool_is_called_with_what_is_nested_too_deeply(server, ask):
    """How deep is too deep differs from one Python to the next, and between reading and writing."""
    call = '{"type": "tool", "subtype": "call", "uuid": "%s", "argumentsRaw": %s}\n'
    nested = (
        (str(depth), json.dumps('{"a":' * depth + "1" + "}" * depth)) for depth in range(1000)
    )
    body = "".join(call % each for each in nested) + '{"type": "finalAnswer", "text": "hi"}\n'
    fault = Fault(status=200, body=body.encode(), content_type="application/jsonl")
    server.faults["POST", "/conversation/*"] = [fault]
    with contextlib.suppress(llm.ModelError):
        assert "hi" in ask("hello").text()
