"""Answers without end, bombs, large files: an error in words, and memory stays small."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import llm
import pytest
from chat_ui import PICTURE, ChatUI, Fault
from helpers import (
    TurnRequest,
    ask_sync,
    both,
    calls,
    described,
    empty_logs,
    failure,
    logged,
    only_conversation,
    run,
    sends,
    wait_for,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import llm_huggingchat
from llm_huggingchat import (
    Event,
    EventStreamDecoder,
    Gathered,
    KeepAlive,
    Measured,
    Reasoning,
    Text,
    TooLarge,
    ToolCall,
    ToolResult,
    TooRich,
    json_cost,
    read_json,
)

MOST = 200  # megabytes of memory that one `llm` may take, whatever a server sends
JUNK = b"x" * 65_536


def small(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    """Limits that can be reached in a moment."""
    for name, limit in limits.items():
        monkeypatch.setattr(llm_huggingchat, name, limit)


def fault(server: ChatUI, method: str, path: str, **what: Any) -> None:
    """From now on that is what becomes of these requests."""
    server.faults[method, path] = [Fault(**{"content_type": "application/json"} | what)] * 50


def peak(*arguments: str, status: int = 1) -> tuple[int, str, str]:
    """Run `llm` in a process of its own: megabytes that it took at most, and what it printed.

    The system tells the peak of a process in /proc alone; that of `resource` begins with what
    the parent had.
    """
    if not os.path.exists("/proc/self/status"):
        pytest.skip("no /proc")
    logs = llm.user_dir() / "logs.db"
    logs.write_bytes(empty_logs())
    code = (
        "import re, sys, llm.cli\n"
        "try:\n    llm.cli.cli()\n"
        "finally:\n"
        "    sys.stdout.flush()\n"
        "    print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1],"
        " file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    *said, kilobytes = done.stderr.splitlines()
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return int(kilobytes) // 1024, done.stdout, "\n".join(said)


# --- bodies without end ---------------------------------------------------------------

FLOODS: dict[str, dict[str, Any]] = {
    "a line": {"flood": JUNK},
    "spaces": {"flood": b" " * 65_536},
    "lines": {"flood": b"\n" * 65_536},
    "json": {"body": b'{"json":{"messages":[', "flood": b'{"id":"a"},' * 5_000},
    "a page": {"flood": b"<p>no</p>" * 5_000, "content_type": "text/html"},
    "an error": {"flood": b"<p>no</p>" * 5_000, "content_type": "text/html", "status": 404},
    "a failure": {"flood": JUNK, "status": 500},
}


@pytest.mark.parametrize("what", FLOODS)
@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("/api/v2/feature-flags", ["status"]),
        ("/api/v2/models", ["refresh"]),
        ("/api/v2/conversations", ["conversations"]),
        ("/api/v2/conversations/*", ["export", "0" * 24]),
        ("/api/v2/conversations/*", ["import", "0" * 24]),
        ("/api/v2/user/settings", ["settings"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_answer_without_end(
    server: ChatUI, path: str, command: list[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, JSON_LIMIT=100_000, TREE_LIMIT=100_000)
    fault(server, "GET", path, **FLOODS[what])
    said = failure("huggingchat", *command)
    assert f"127.0.0.1:{server.port} sent more than 0 MB" in said
    assert [r.path for r in server.log].count(server.log[-1].path) == 1  # it is not asked again
    wait_for(lambda: server.open_connections == 0)


@both
@pytest.mark.parametrize("what", FLOODS)
def test_stream_without_end(
    server: ChatUI, ask: TurnRequest, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, LINE_LIMIT=100_000)
    fault(server, "POST", "/conversation/*", **FLOODS[what])
    with pytest.raises(llm.ModelError, match="sent more than 0 MB"):
        ask("hello")
    assert len(sends(server)) == 1
    wait_for(lambda: not server.open_connections or ask is ask_sync)


@pytest.mark.parametrize("body", [b"x" * 150_000, b"\n" * 3_000], ids=["a line", "lines"])
def test_stream_that_is_read_as_it_comes_and_says_nothing(
    server: ChatUI, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little of it is unread at a time. Many lines cost more than their bytes."""
    open_ = llm_huggingchat.Client.open

    def unlimited(*arguments: Any, **options: Any) -> Any:
        return open_(*arguments, **{"most": 10**9} | options)

    monkeypatch.setattr(llm_huggingchat.Client, "open", unlimited)
    small(monkeypatch, LINE_LIMIT=100_000)
    fault(server, "POST", "/conversation/*", status=200, body=body)
    with pytest.raises(llm.ModelError, match="sent more than"):
        ask_sync("hello")
    assert len(sends(server)) == 1


@pytest.mark.parametrize(
    "flood",
    [JUNK, b"\n" * 65_536, b"data: x\n" * 8_000, b"data: x\n: beat\n" * 4_000, b"id: 5\n" * 8_000],
    ids=["line", "lines", "event", "event with beats", "ids"],
)
def test_log_without_end(server: ChatUI, flood: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, LINE_LIMIT=100_000)
    fault(server, "GET", "/conversation/*/stream", flood=flood)
    with pytest.raises(llm.ModelError, match="sent more than 0 MB"):
        ask_sync("one two three [[cut=2]]")


def test_long_thinking_is_no_flood(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, LINE_LIMIT=10_000)
    text = "[[tokens=300]] [[wait=0.5]]"
    assert ask_sync(text).text().split() == [f"w{number}" for number in range(300)]


def test_comment_within_an_event_of_the_log_is_no_sign_of_life() -> None:
    log = EventStreamDecoder()
    assert log.feed(b": beat\n") == [KeepAlive()]
    assert log.feed(b'data: {"type":"stream",\n: beat\ndata: "token":"a"}\n\n') == [Text("a")]


def test_little_that_becomes_very_much(server: ChatUI) -> None:
    compressed = (("content-encoding", "gzip"),)
    body = gzip.compress(b"[" * 60_000_000, 1)
    fault(server, "GET", "/api/v2/feature-flags", body=body, status=200, headers=compressed)
    megabytes, _, said = peak("huggingchat", "status")
    assert "sent more than 8 MB" in said
    assert megabytes < MOST


@pytest.mark.parametrize("where", ["send", "log"])
def test_stream_that_becomes_very_much(server: ChatUI, where: str) -> None:
    """It is not asked for compressed, but comes so."""
    body = gzip.compress(b'{"type":"nothing"}\n' * 2_000_000, 1)
    method, path = {
        "send": ("POST", "/conversation/*"),
        "log": ("GET", "/conversation/*/stream"),
    }[where]
    fault(server, method, path, body=body, status=200, headers=(("content-encoding", "gzip"),))
    megabytes, _, said = peak("-m", "hf-llama", "one two [[cut=1]]")
    assert "sent more than 8 MB" in said
    assert megabytes < MOST


@pytest.mark.parametrize("item", [b"[],", b"[" * 200 + b"]" * 200 + b",", b'"ab",'], ids=len)
def test_json_that_takes_too_much_memory(server: ChatUI, item: bytes) -> None:
    body = b'{"json":{"messages":[' + item * (20_000_000 // len(item)) + b"0]}}"
    fault(server, "GET", "/api/v2/conversations/*", body=body, status=200)
    megabytes, _, said = peak("huggingchat", "export", "0" * 24)
    assert "takes more memory" in said
    assert megabytes < MOST


# --- JSON: what it costs, and what is shared ------------------------------------------

MARK = {"type": "stream", "token": "", "len": 4}


def long_conversation(turns: int, marks: int) -> dict[str, Any]:
    messages = [
        {
            "id": str(number),
            "content": f'{number} "messages": [] ] 🎉 {{"type":"stream","token":"","len":',
            "updates": [{**MARK, "len": number % 7} for _ in range(marks)],
        }
        for number in range(turns)
    ]
    return {"json": {"title": 'A "messages":[', "messages": messages, "model": "a/b"}}


@pytest.mark.parametrize("window", [1, 7, 100, 5_000, 10**6])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("escaped", [True, False])
def test_long_conversation_is_read_in_windows(
    window: int, indent: int | None, escaped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, LARGE=0, WINDOW=window)
    value = long_conversation(10, 10)
    separators = None if indent else (",", ":")
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=escaped)
    assert read_json(text.encode()) == read_json(bytearray(text.encode())) == value


@settings(max_examples=30)
@given(data=st.data(), size=st.integers(1, 30))
def test_any_messages_are_read_as_ever(data: st.DataObject, size: int) -> None:
    leaf = st.none() | st.integers() | st.text(max_size=5) | st.just("🎉")
    inner = st.recursive(
        leaf, lambda x: st.lists(x, max_size=3) | st.dictionaries(leaf.map(str), x)
    )
    value = {"json": {"a": data.draw(inner), "messages": data.draw(st.lists(inner))}, "b": 1}
    text = json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode()
    with pytest.MonkeyPatch.context() as monkeypatch:
        small(monkeypatch, LARGE=0, WINDOW=size)
        assert read_json(text) == value
        for cut in (len(text) // 2, len(text) - 1):
            with pytest.raises(ValueError, match=r"."):
                read_json(text[:cut])


def test_marks_of_a_long_conversation_take_next_to_nothing() -> None:
    text = json.dumps(long_conversation(100, 1000), separators=(",", ":")).encode()
    messages = read_json(text)["json"]["messages"]
    assert len({id(mark) for message in messages for mark in message["updates"]}) == 7


def test_real_conversation_of_1000_turns_is_affordable() -> None:
    turn = json.dumps(long_conversation(1, 1300)["json"]["messages"], separators=(",", ":"))
    said = json.dumps('Here: `f(a, b)[0]`, it\'s {x: [1, 2]}, and "so" on.\n' * 60)
    turn = f'{turn[:-2]},"said":{said}}}'.removeprefix("[")
    text = '{"json":{"messages":[' + ",".join([turn] * 1000) + "]}}"
    assert 40_000_000 < len(text) < llm_huggingchat.TREE_LIMIT
    assert len(read_json(text.encode())["json"]["messages"]) == 1000


def test_more_kinds_of_marks_than_there_are() -> None:
    marks = ",".join(json.dumps({**MARK, "len": n}, separators=(",", ":")) for n in range(20_000))
    with pytest.raises(TooRich):
        read_json('{"json":{"messages":[' + marks + "]}}")


def size_of(value: Any) -> int:
    """The memory that a value takes, with all in it."""
    inner: Iterator[Any] = iter(())
    if isinstance(value, dict):
        inner = itertools.chain(value, value.values())
    elif isinstance(value, list):
        inner = iter(value)
    return -(-sys.getsizeof(value) // 16) * 16 + sum(map(size_of, inner))


@pytest.mark.parametrize(
    "item",
    [
        *("[]", "[0]", "[[[[[]]]]]", '"ab"', '"🎉 a"', "12345", "1.5", "{}", '{"":0}', "null"),
        *('{"a":"bc","de":"fg","h":[1.5,{}]}', '{"type":"stream"}', "[[1,2,3,4,5,6,7,8,9,999]]"),
        '{"type":"stream","token":"","len":[]}',
    ],
)
def test_json_costs_no_more_than_is_thought(item: str) -> None:
    text = f"[{','.join([item] * 2_000)}]"
    assert size_of(json.loads(text)) <= json_cost(text)


# --- answers without end --------------------------------------------------------------


def fed(*events: Event) -> list[Event]:
    measured, gathered = Measured(), Gathered()
    passed = [each for event in events for each in measured.feed(event)]
    return [out for each in passed for out in gathered.feed(each)] + gathered.end()


def test_pieces_of_an_answer_are_given_as_they_come() -> None:
    called = ToolCall("c", "n", {})
    events: list[Event] = [Text("a"), Text("b"), Reasoning("c"), called, KeepAlive(), Text("d")]
    assert fed(*events) == events


def test_pieces_of_a_long_answer_become_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, MANY=10)
    given = fed(*(Text(f"w{number} ") for number in range(5_000)))
    said = "".join(event.text for event in given if isinstance(event, Text))
    assert said.split() == [f"w{number}" for number in range(5_000)]
    assert len(given) < 60
    held = fed(*[Text("a")] * 20, Reasoning("b"), *[Text("c")] * 20, KeepAlive(), Text("d"))
    kinds = [type(event) for event in held]
    assert kinds[-4:] == [Reasoning, Text, KeepAlive, Text]
    assert [event.text for event in held if isinstance(event, Text | Reasoning)][-3:] == [
        "b",
        "c" * 20,
        "d",
    ]


@pytest.mark.parametrize(
    "event",
    [
        Text("ab"),
        Reasoning("ab"),
        ToolCall("c", "name", {"a": "b"}),
        llm_huggingchat.File("f", "a"),
    ],
)
def test_endless_answer_is_given_up(event: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, MANY=1_000, ANSWER_LIMIT=100_000)
    with pytest.raises(TooLarge, match="does not end"):
        fed(*[event, KeepAlive()] * 200_000)


@pytest.mark.parametrize(
    "event", [ToolCall("c", "name", {"a": "b" * 1_000}), ToolResult("c", "name", "b" * 1_000)]
)
def test_few_events_that_are_large_are_given_up(
    event: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, ANSWER_LIMIT=10_000)
    with pytest.raises(TooLarge, match="does not end"):
        fed(*[event] * 20)


def test_signs_of_life_are_no_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, MANY=10)
    assert fed(*[KeepAlive()] * 100, Text("a"))[-1] == Text("a")


@both
def test_endless_answer_is_stopped_and_what_came_is_there(
    server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, ANSWER_LIMIT=100)
    with pytest.raises(llm.ModelError, match="does not end: it has 1"):
        ask("[[tokens=100000]]")
    wait_for(lambda: server.stops)
    assert server.stops[0][0] == only_conversation(server).id


ENDLESS = {
    "tokens": b'{"type":"stream","token":"%b"}\n' % (b"a" * 50) * 500,
    "tokens and beats": b'{"type":"stream","token":"a"}\n{"type":"status"}\n' * 1_000,
    "large tokens": b'{"type":"stream","token":"%b"}\n' % ("a🎉" * 20_000).encode(),
    "changes": b'{"type":"stream","token":"%b"}\n' % (b"abc\\n    " * 20) * 100,
    "names of tools": b"".join(
        b'{"type":"tool","subtype":"result","uuid":"%d","result":{"call":{"name":"%b"}}}\n'
        % (number, b"x" * 1_000_000)
        for number in range(20)
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_endless_answer_takes_little_memory(server: ChatUI, what: str) -> None:
    begin = b'{"type":"stream","token":"<artifact type=\\"update\\"><old_str>"}\n'
    body = begin if what == "changes" else b""
    fault(server, "POST", "/conversation/*", body=body, flood=ENDLESS[what])
    megabytes, _, said = peak("-m", "hf-llama", "hello")
    assert "does not end" in said
    assert megabytes < MOST


NOTHING_NEW: dict[str, bytes] = {
    "a result": b'{"type":"tool","subtype":"result","uuid":"a","result":{"status":"success"}}\n',
    "a call": b'{"type":"tool","subtype":"call","uuid":"a","call":{"name":"n"}}\n',
    "progress": b'{"type":"tool","subtype":"progress","uuid":"a","progress":1}\n',
    "a closed question": b'{"type":"elicitation","subtype":"resolved","elicitationId":"a"}\n',
    "a title": b'{"type":"title","title":"T"}\n',
    "a router": b'{"type":"routerMetadata","route":"r","model":"m","provider":"p"}\n',
    "a status": b'{"type":"status","status":"started"}\n',
    "no text": b'{"type":"stream","token":""}\n',
    "padding": b'{"type":"stream","token":"\\u0000\\u0000"}\n{"type":"status"}\n',
    "no thought": b'{"type":"reasoning","subtype":"stream","token":""}\n',
    "an empty answer": b'{"type":"finalAnswer","text":""}\n',
}


@pytest.mark.parametrize(
    ("what", "where"),
    [(what, "send") for what in NOTHING_NEW]
    + [(what, "log") for what in NOTHING_NEW if what != "an empty answer"],
)
def test_what_is_told_for_ever_and_is_nothing_new(
    server: ChatUI, what: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, MANY=100)
    event = NOTHING_NEW[what]
    if where == "send":
        fault(server, "POST", "/conversation/*", status=200, flood=event * 100)
    else:
        logged = b"".join(b"id: 1\ndata: %b\n\n" % line for line in event.splitlines())
        fault(server, "GET", "/conversation/*/stream", status=200, flood=logged * 100)
    with pytest.raises(llm.ModelError, match=r"does not end: .* nothing new"):
        ask_sync("one two three [[cut=2]]")
    assert calls(server)[-1][1].endswith("/stop-generating")


@pytest.mark.parametrize("what", [": beat\n\n", 'id: 1\ndata: {"type":"status"}\n\n'])
def test_log_that_ends_again_and_again(
    server: ChatUI, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, MANY=100)
    fault(server, "GET", "/conversation/*/stream", status=200, body=what.encode())
    with pytest.raises(llm.ModelError, match=r"does not end: .* nothing new"):
        ask_sync("one two three [[cut=2]]")


def test_stream_with_a_sign_of_life_now_and_then(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, STREAM_LIMIT=1_000_000)
    beat = b'{"type":"noise"}\n' * 3_000 + b'{"type":"status","status":"keepAlive"}\n'
    fault(server, "POST", "/conversation/*", status=200, flood=beat)
    with pytest.raises(llm.ModelError, match="sent more than 1 MB"):
        ask_sync("hello")


def test_many_words_take_little_memory(server: ChatUI) -> None:
    failed = {"type": "status", "status": "error", "message": "字 " * 1_900_000}
    body = json.dumps(failed, ensure_ascii=False).encode() + b"\n"
    fault(server, "POST", "/conversation/*", status=200, body=body)
    megabytes, _, said = peak("-m", "hf-llama", "hello")
    assert "failed: 字 字" in said
    assert megabytes < MOST


def test_long_answer_is_logged_and_goes_on(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> None:
    """llm takes a hundred times the memory of an answer to log `response_json`."""
    small(monkeypatch, DESCRIBED_LIMIT=1_000)
    run("-m", "hf-llama", "one")
    run("-c", "[[tokens=1000]]")
    run("-c", "three")
    first, long, third = logged()
    assert (
        first["response_json"]["huggingchat"]["url"] == third["response_json"]["huggingchat"]["url"]
    )
    assert long["response_json"] is None
    assert len(long["response"].split()) == 1000
    assert len(server.conversations) == 1


def test_long_answer_is_imported(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> None:
    id = described(ask_sync("[[tokens=1000]]"))["conversation_id"]
    small(monkeypatch, DESCRIBED_LIMIT=1_000)
    run("huggingchat", "import", id)
    (turn,) = logged()
    assert turn["response_json"] is None
    assert len(turn["response"].split()) == 1000


def test_memory_of_a_long_answer(server: ChatUI) -> None:
    text = "word " * 130_000
    fault(
        server,
        "POST",
        "/conversation/*",
        status=200,
        body=json.dumps({"type": "stream", "token": text}).encode()
        + b'\n{"type":"finalAnswer","text":"","interrupted":false}\n',
    )
    megabytes, out, _ = peak("-m", "hf-llama", "hello", status=0)
    assert out.strip() == text.strip()
    assert megabytes < MOST


def test_head_without_end() -> None:
    """curl_cffi would abort the whole process."""
    program = (
        "import socket, threading, time, llm.cli, llm_huggingchat as module\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "def drip():\n"
        "    there, _ = server.accept()\n"
        "    there.sendall(b'HTTP/1.1 200 OK\\r\\nx: y\\r\\n')\n"
        "    time.sleep(60)\n"
        "threading.Thread(target=drip, daemon=True).start()\n"
        "import os\n"
        "port = server.getsockname()[1]\n"
        "os.environ['LLM_HUGGINGCHAT_URL'] = f'http://127.0.0.1:{port}'\n"
        "module.limits.call_timeout = 1.0\n"
        "llm.cli.cli(['huggingchat', 'status'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "it did not answer within" in done.stderr


# --- lists without end ----------------------------------------------------------------


@pytest.mark.parametrize("command", [["conversations", "-n", "0"], ["import", "--all"]])
def test_list_without_end(
    server: ChatUI, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, LIST_LIMIT=100)
    server.endless_list = "new"
    assert "does not come to the end of its list" in failure("huggingchat", *command)
    assert [path for _, path in calls(server)].count("/api/v2/conversations") == 4


def test_list_that_takes_too_long(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, LIST_TIME=0)
    server.endless_list = "new"
    assert "does not come to the end of its list" in failure("huggingchat", "conversations")


# --- files ----------------------------------------------------------------------------


@pytest.fixture
def link(server: ChatUI) -> str:
    """The link of a file in an answer."""
    run("-m", "hf-llama", "[[file]] hello")
    (answer,) = server.messages(only_conversation(server).id, "assistant")
    sha = answer["files"][0]["value"]
    return f"{server.url}/conversation/{only_conversation(server).id}/output/{sha}"


OUTPUT = "/conversation/*/output/*"


def test_large_file_goes_to_the_disk(server: ChatUI, link: str, tmp_path: pathlib.Path) -> None:
    body = os.urandom(1_000_000) * 150
    fault(server, "GET", OUTPUT, body=body, status=200, content_type="image/png")
    place = tmp_path / "out.png"
    megabytes, out, _ = peak("huggingchat", "download", link, "-o", str(place), status=0)
    assert out == f"{place} (150000000 bytes)\n"
    assert place.read_bytes() == body
    assert megabytes < 120


def test_endless_file_leaves_nothing(
    server: ChatUI, link: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, SAVED_LIMIT=1_000_000)
    fault(server, "GET", OUTPUT, flood=JUNK)
    place = tmp_path / "files"
    place.mkdir()
    (place / "good.png").write_bytes(b"good")
    for output in (place / "good.png", place):
        result = run("huggingchat", "download", link, "-o", str(output), input="y\n", status=1)
        assert "sent more than 1 MB" in result.stderr
    assert [(path.name, path.read_bytes()) for path in place.iterdir()] == [("good.png", b"good")]


@pytest.mark.parametrize("output", ["good.png", "-", ""])
def test_refused_file_is_written_nowhere(
    server: ChatUI, link: str, tmp_path: pathlib.Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_huggingchat.limits.backoff", (0.01,))
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "good.png").write_bytes(b"good")
    fault(server, "GET", OUTPUT, status=500, body=b"broken" * 10_000)
    arguments = ["huggingchat", "download", link, *(["-o", output] if output else [])]
    result = run(*arguments, input="y\n", status=1)
    assert "broken" not in result.stdout
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("good.png", b"good")]


def test_file_whose_download_broke_is_whole(
    server: ChatUI, link: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second attempt begins with an empty file."""
    monkeypatch.setattr("llm_huggingchat.limits.backoff", (0.01,))
    half = Fault(status=502, body=b"x" * 1000)
    server.faults["GET", OUTPUT] = [half, Fault(drop=True), half]
    place = tmp_path / "picture.png"
    run("huggingchat", "download", link, "-o", str(place))
    assert place.read_bytes() == PICTURE


@pytest.mark.parametrize("file", [True, False])
async def test_file_may_take_the_longer_the_more_of_it_comes(
    server: ChatUI, file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_huggingchat.limits, "slowest_upload", 1)
    fault(server, "GET", "/api/v2/user", body=b"x" * 1_000, status=200)
    access = llm_huggingchat.Credentials(llm_huggingchat.parse_server(server.url), None)
    client = llm_huggingchat.Client.here()
    exchange = client.open(access, "GET", "/api/v2/user", limit=60, file=file)
    end = exchange._end
    await exchange.whole()
    assert exchange._end - end == pytest.approx(1_000 if file else 0)


# --- attachments ----------------------------------------------------------------------










def test_transcript_without_end(server: ChatUI, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "memo.wav"
    path.write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    heard = json.dumps({"text": "w " * 3_000_000}).encode()
    fault(server, "POST", "/api/transcribe", status=200, body=heard)
    megabytes, _, said = peak("-m", "hf-llama", "-a", str(path), "hello")
    assert "sent more than 1 MB" in said
    assert megabytes < MOST
    assert sends(server) == []


def test_longest_transcript_takes_little_memory(server: ChatUI, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "memo.wav"
    path.write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    heard = json.dumps({"text": "w " * 490_000}).encode()
    fault(server, "POST", "/api/transcribe", status=200, body=heard)
    say = "[[say]]ok[[/say]]"
    megabytes, _, _ = peak("-m", "hf-llama", "-a", str(path), say, status=0)
    assert megabytes < MOST


@both
@pytest.mark.parametrize("word", ["[[drop=before]]", "[[drop=after]]", "[[status=502*1]]"])
def test_attachments_are_sent_again(
    server: ChatUI, ask: TurnRequest, word: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "dogs.txt"
    path.write_text("Rex is a dog")
    files = [llm.Attachment(path=str(path)), llm.Attachment(type="text/plain", content=b"Ida")]
    answer = ask(f"{word} hello", attachments=files)
    assert answer.text().endswith("hello")
    for request in sends(server):
        assert [content for _, _, content in request.files] == [b"Rex is a dog", b"Ida"]




def test_export_of_a_long_conversation_is_written_in_pieces(
    server: ChatUI, tmp_path: pathlib.Path
) -> None:
    value = long_conversation(300, 1300)
    fault(
        server,
        "GET",
        "/api/v2/conversations/*",
        status=200,
        body=json.dumps(value, separators=(",", ":")).encode(),
    )
    place = tmp_path / "out.json"
    arguments = ["export", "0" * 24, "--format", "json", "-o", str(place)]
    megabytes, _, _ = peak("huggingchat", *arguments, status=0)
    assert json.loads(place.read_bytes()) == value["json"]
    assert megabytes < MOST
