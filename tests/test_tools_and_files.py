"""Tools that run on the server, attachments, and files in answers."""

from __future__ import annotations

import http.server
import json
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import llm
import pytest
from chat_ui import PICTURE, ChatUI
from helpers import (
    TurnRequest,
    ask_sync,
    both,
    calls,
    described,
    failure,
    kept,
    logged,
    only_conversation,
    parts,
    run,
    sends,
    tree,
)

from llm_huggingchat import MCP, HuggingFace, WebSearch

SEARCH, HUB = "Web Search (Exa)", "Hugging Face"
RESULTS = "1. first page https://example.org/first\n2. its docs https://example.org/docs"
NO_TOOLS = "hf-deepseek-r1-distill-llama-70b"
TOO_LARGE = b"a" * (10 * 1024 * 1024 + 1)


def selected(server: ChatUI) -> list[Any]:
    """The names that each message selected."""
    return [request.data and request.data["selectedMcpServerNames"] for request in sends(server)]


# --- which tools ----------------------------------------------------------------------


def test_tools_are_listed_for_models_that_can_use_them(server: ChatUI) -> None:
    shown = run("tools", "-m", "hf-llama").stdout
    for name in ("WebSearch(", "HuggingFace(", "MCP("):
        assert name in shown
    assert "WebSearch(" not in run("tools", "-m", NO_TOOLS).stdout


@both
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"tools": [WebSearch()]}, [SEARCH]),
        ({"tools": [HuggingFace()]}, [HUB]),
        ({"tools": [WebSearch(), HuggingFace()]}, [SEARCH, HUB]),
        ({"web_search": True}, [SEARCH]),
        ({"web_search": True, "tools": [WebSearch()]}, [SEARCH]),
        ({"web_search": False}, []),
        ({}, []),
    ],
)
def test_tools_that_are_asked_for_are_selected(
    server: ChatUI, ask: TurnRequest, options: dict[str, Any], names: list[str]
) -> None:
    ask("hello", **options)
    assert selected(server) == [names]


@both
@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("Suche", "https://search.example/mcp"),
        ("Brave", "https://mcp.brave.example"),
        ("My web-search", "https://x.example/mcp"),
    ],
)
def test_web_search_is_found_by_what_it_is(
    server: ChatUI, ask: TurnRequest, name: str, url: str
) -> None:
    server.mcp_servers = [
        {"name": "Weather", "url": "https://weather.example/mcp"},
        {"name": name, "url": url},
    ]
    ask("hello", web_search=True)
    assert selected(server) == [[name]]


@both
def test_tool_that_the_server_lacks_is_told_before_anything_is_sent(
    server: ChatUI, ask: TurnRequest
) -> None:
    server.mcp_servers = [{"name": "Weather", "url": "https://weather.example/mcp"}]
    with pytest.raises(llm.ModelError, match=r"web search.*Weather"):
        ask("hello", web_search=True)
    assert server.conversations == {}


def test_model_without_tools_refuses_them(server: ChatUI) -> None:
    assert "Distill" in failure("-m", NO_TOOLS, "-o", "web_search", "true", "hi")
    run("-m", NO_TOOLS, "-T", "WebSearch", "hi", status=1)
    assert server.log == []


@both
def test_own_server_is_selected_by_its_address(
    server: ChatUI, ask: TurnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCP_SECRET", "sesame")
    headers = {"Authorization": "Bearer $MCP_SECRET", "X-Team": "docs"}
    ask("[[tool]]", tools=[MCP("https://mcp.example/x", "Mine", headers), WebSearch()])
    (request,) = sends(server)
    assert request.data
    assert sorted(request.data["selectedMcpServerNames"]) == ["Mine", SEARCH]
    assert request.data["selectedMcpServers"] == [
        {
            "name": "Mine",
            "url": "https://mcp.example/x",
            "headers": [
                {"key": "Authorization", "value": "Bearer sesame"},
                {"key": "X-Team", "value": "docs"},
            ],
        }
    ]


@both
def test_own_servers_have_names_of_their_own(server: ChatUI, ask: TurnRequest) -> None:
    """Of two with one name, chat-ui keeps the last."""
    tools = [
        MCP("https://mcp.example/x"),
        MCP("https://mcp.example/y"),
        MCP("https://other.example/", SEARCH),
        MCP("https://third.example/", SEARCH),
        MCP("https://mcp.example/x"),
        WebSearch(),
    ]
    ask("[[tool]]", tools=tools)
    (request,) = sends(server)
    assert request.data
    added = {tool["name"]: tool["url"] for tool in request.data["selectedMcpServers"]}
    assert sorted(added.values()) == [
        "https://mcp.example/x",
        "https://mcp.example/y",
        "https://other.example/",
        "https://third.example/",
    ]
    assert SEARCH not in added  # that is the server's own
    assert sorted(request.data["selectedMcpServerNames"]) == sorted([*added, SEARCH])
    assert added["mcp.example"] == "https://mcp.example/x"


@both
@pytest.mark.parametrize("url", ["http://mcp.example/x", "https://10.0.0.1/x", "ftp://a.b", "x"])
def test_own_server_has_to_be_public(server: ChatUI, ask: TurnRequest, url: str) -> None:
    with pytest.raises(llm.ModelError, match="https"):
        ask("hello", tools=[MCP(url)])
    assert server.log == []


def test_secret_of_a_header_is_sent_but_never_logged(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch, user_path: pathlib.Path
) -> None:
    monkeypatch.setenv("MCP_SECRET", "sesame-sesame")
    tool = 'MCP(url="https://mcp.example/x", headers={"Authorization": "Bearer $MCP_SECRET"})'
    run("-m", "hf-llama", "-T", tool, "[[tool]] one")
    run("-c", "[[tool]] two")
    run("-c", "[[tool]] three", "-T", tool.replace("$MCP_SECRET", "typed-secret"))
    values = [
        request.data["selectedMcpServers"][0]["headers"][0]["value"]
        for request in sends(server)
        if request.data
    ]
    assert values == ["Bearer sesame-sesame", "Bearer sesame-sesame", "Bearer typed-secret"]
    for path in user_path.iterdir():
        assert b"sesame-sesame" not in path.read_bytes()
        assert b"typed-secret" not in path.read_bytes()
    assert "$MCP_SECRET" in run("logs", "--json", "-n", "0").stdout


def test_secret_in_an_address_is_sent_but_never_logged(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch, user_path: pathlib.Path
) -> None:
    monkeypatch.setenv("MCP_SECRET", "sesame-sesame")
    run("-m", "hf-llama", "-T", 'MCP("https://mcp.example/x?key=$MCP_SECRET")', "one")
    run("-c", "two")
    for request in sends(server):
        assert request.data
        (selected,) = request.data["selectedMcpServers"]
        assert selected["url"] == "https://mcp.example/x?key=sesame-sesame"
    assert len(sends(server)) == 2
    for path in user_path.iterdir():
        assert b"sesame-sesame" not in path.read_bytes()


def test_header_that_was_not_logged_is_asked_for_again(server: ChatUI) -> None:
    tool = 'MCP(url="https://mcp.example/x", headers={"X-Key": "typed-secret"})'
    run("-m", "hf-llama", "-T", tool, "one")
    assert "X-Key" in failure("-c", "two")
    assert len(sends(server)) == 1


def test_header_that_names_nothing_is_told(server: ChatUI) -> None:
    tool = 'MCP(url="https://mcp.example/x", headers={"X-Key": "$NO_SUCH_NAME"})'
    assert "$NO_SUCH_NAME" in failure("-m", "hf-llama", "-T", tool, "one")
    assert server.log == []


@pytest.mark.parametrize(
    "spec",
    [
        "MCP",
        "MCP(5)",
        'MCP(address="x")',
        'WebSearch("x")',
        'MCP({"url": "https://mcp.example/x", "headers": {"X Key": "a"}})',
        'MCP({"url": "https://mcp.example/x", "headers": {"X-Key": "a\\nb"}})',
    ],
)
def test_wrong_argument_of_a_tool_is_told_before_anything_is_sent(
    server: ChatUI, spec: str
) -> None:
    assert spec.partition("(")[0] in failure("-m", "hf-llama", "-T", spec, "one")
    assert server.log == []


@pytest.mark.parametrize("way", [(), ("--async",)])
def test_continued_conversation_keeps_its_tools(server: ChatUI, way: tuple[str, ...]) -> None:
    run("-m", "hf-llama", "-T", "WebSearch", "one", *way)
    run("-c", "two", *way)
    run("-c", "three", "-T", "HuggingFace", *way)
    assert selected(server) == [[SEARCH], [SEARCH], [HUB]]


def test_chat_uses_tools_in_every_turn(server: ChatUI) -> None:
    shown = run("chat", "-m", "hf-llama", "-T", "WebSearch", input="[[tool]] a\n[[tool]] b\nquit\n")
    assert selected(server) == [[SEARCH], [SEARCH]]
    assert shown.stdout.count("The tool said: 1. first page") == 2
    run("chat", "-m", "hf-llama", "-o", "web_search", "true", input="one\ntwo\nquit\n")
    assert selected(server)[2:] == [[SEARCH], [SEARCH]]


# --- what tools give ------------------------------------------------------------------


def called(name: str = "web_search_exa") -> dict[str, Any]:
    arguments = {"query": "chat-ui"}
    return {"type": "tool_call", "name": name, "arguments": arguments, "server_executed": True}


def returned(output: str, name: str = "web_search_exa") -> dict[str, Any]:
    return {"type": "tool_result", "name": name, "output": output, "server_executed": True}


MIXED = [
    {"type": "reasoning", "text": "Let me think about\n\nthis carefully."},
    {"type": "text", "text": "Let me look that up."},
    called(),
    returned(RESULTS),
    {"type": "text", "text": "\n\nOne more."},
    called("hugging_face"),
    returned(RESULTS, "hugging_face"),
    {"type": "text", "text": f"\n\nThe tool said: {RESULTS}"},
]


@both
@pytest.mark.parametrize("words", ["", "[[noise]]", "[[split]]"])
def test_parts_come_in_their_order(server: ChatUI, ask: TurnRequest, words: str) -> None:
    response = ask(f"[[tools]] {words}", tools=[WebSearch(), HuggingFace()])
    assert parts(response) == MIXED


def test_parts_keep_their_order_in_the_logs(server: ChatUI) -> None:
    run("-m", "hf-llama", "-T", "WebSearch", "-T", "HuggingFace", "[[tools]] one")
    run("-c", "two")
    import llm.cli

    conversation = llm.cli.load_conversation(None)
    assert conversation
    assert conversation.loaded_messages
    question, answer, *_ = conversation.loaded_messages
    assert question.role == "user"
    found = [part.to_dict() for part in answer.parts]
    ids = [part.pop("tool_call_id", None) for part in found]
    for part in found:
        part.pop("provider_metadata", None)
    assert found == MIXED
    assert ids[2] == ids[3] != ids[5] == ids[6]
    assert tree(server, only_conversation(server).id) == {"[[tools]] one": {"two": {}}}


def test_tool_calls_are_shown_by_the_logs(server: ChatUI) -> None:
    run("-m", "hf-llama", "-T", "WebSearch", "[[tool]] hello")
    shown = run("logs").stdout
    assert "web_search_exa" in shown
    assert "https://example.org/docs" in shown
    (entry,) = logged()
    (call,) = entry["tool_calls"]
    (result,) = entry["tool_results"]
    assert call["name"] == "web_search_exa"
    assert call["arguments"] == {"query": "chat-ui"}
    assert call["server_executed"]
    assert result["output"] == RESULTS
    assert result["tool_call_id"] == call["tool_call_id"]


@both
def test_failed_tool_does_not_fail_the_answer(server: ChatUI, ask: TurnRequest) -> None:
    response = ask("[[tool_error]]", web_search=True)
    assert parts(response) == [
        {"type": "text", "text": "Let me look that up."},
        called(),
        returned("Error: The tool could not be reached"),
        {"type": "text", "text": "\n\nThe tool failed."},
    ]


@both
def test_question_of_a_tool_is_shown_with_the_page(server: ChatUI, ask: TurnRequest) -> None:
    with pytest.raises(llm.ModelError) as caught:
        ask("[[elicit]]", web_search=True)
    said = str(caught.value)
    assert "Which city do you mean?" in said
    assert f"{server.url}/conversation/{only_conversation(server).id}" in said
    assert server.stops == []


def test_question_of_a_tool_on_the_command_line(server: ChatUI) -> None:
    shown = run("-m", "hf-llama", "-T", "WebSearch", "[[elicit]]", status=1)
    assert "Which city do you mean?" in shown.stderr
    assert only_conversation(server).id in shown.stderr


@both
def test_router_with_tools_keeps_what_is_known(server: ChatUI, ask: TurnRequest) -> None:
    response = ask("[[tools]]", model="hf-omni", web_search=True)
    found = described(response)
    assert response.resolved_model == "moonshotai/Kimi-K2.6"
    assert found["route"] == "agentic"
    assert found["provider"] == "novita"


# --- attachments ----------------------------------------------------------------------


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a small web server: a picture, a text, something too large."""
    files = {
        "/picture.png": ("image/png", PICTURE),
        "/a%20b.txt": ("text/plain; charset=utf-8", b"Rex is a dog"),
        "/large.txt": ("text/plain", TOO_LARGE),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, content = files.get(self.path, ("text/html", b""))
            self.send_response(200 if content else 404)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Some files to attach."""
    (tmp_path / "picture.png").write_bytes(PICTURE)
    (tmp_path / "notes.txt").write_text("Rex is a dog")
    (tmp_path / "data.json").write_text('{"name": "Rex"}')
    (tmp_path / "table.csv").write_text("name,kind\nRex,dog\n")
    (tmp_path / "tree.xml").write_text("<dog>Rex</dog>")
    (tmp_path / "large.txt").write_bytes(TOO_LARGE)
    return tmp_path


def uploaded(server: ChatUI) -> list[tuple[str, str, bytes]]:
    """The files of the last message."""
    return sends(server)[-1].files


@both
def test_image_reaches_a_model_that_sees(
    server: ChatUI, ask: TurnRequest, folder: pathlib.Path, web: str
) -> None:
    pictures = [
        llm.Attachment(path=str(folder / "picture.png")),
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


@pytest.mark.parametrize("way", [(), ("--async",)])
@pytest.mark.parametrize(
    ("name", "type"),
    [
        ("notes.txt", "text/plain"),
        ("data.json", "application/json"),
        ("table.csv", "text/csv"),
        ("tree.xml", "application/xml"),
    ],
)
def test_documents_reach_every_model(
    server: ChatUI, folder: pathlib.Path, name: str, type: str, way: tuple[str, ...]
) -> None:
    prompt = ("-m", "hf-apertus", "[[history]]", "--at", str(folder / name), type, *way)
    (message,) = json.loads(run(*prompt).stdout)
    assert uploaded(server) == [(name, type, (folder / name).read_bytes())]
    assert (folder / name).read_text() in message["content"]


def test_type_of_a_document_is_found_out(server: ChatUI, folder: pathlib.Path) -> None:
    run("-m", "hf-apertus", "hi", "-a", str(folder / "notes.txt"), "-a", str(folder / "data.json"))
    ask_sync("hi", attachments=[llm.Attachment(path=str(folder / "table.csv"))])
    types = [type for request in sends(server) for _, type, _ in request.files]
    assert types == ["text/plain", "application/json", "text/csv"]


def test_attachment_from_the_web(server: ChatUI, web: str) -> None:
    run("-m", "hf-llama", "hello", "-a", f"{web}/a%20b.txt")
    assert uploaded(server) == [("a b.txt", "text/plain", b"Rex is a dog")]


def test_attachment_from_standard_input(server: ChatUI) -> None:
    shown = run("-m", "hf-vision", "[[images]]", "-a", "-", input=PICTURE)
    assert shown.stdout == "I see 1 image(s).\n"
    run("-m", "hf-llama", "hi", "--at", "-", "text/csv", input=b"a,b\n")
    assert uploaded(server) == [("attachment.csv", "text/csv", b"a,b\n")]


@both
def test_attachments_need_no_words(server: ChatUI, ask: TurnRequest) -> None:
    first = ask(attachments=[llm.Attachment(type="text/plain", content=b"Rex is a dog")])
    (request,) = sends(server)
    assert request.data
    assert "inputs" not in request.data
    assert "Rex is a dog" in first.text()
    ask("two", after=first)
    assert tree(server, only_conversation(server).id) == {"": {"two": {}}}


def test_attachment_without_words_on_the_command_line(server: ChatUI, folder: pathlib.Path) -> None:
    assert "Rex" in run("-m", "hf-llama", "", "-a", str(folder / "notes.txt")).stdout


def test_attachments_in_chat(server: ChatUI, folder: pathlib.Path) -> None:
    shown = run(
        "chat",
        "-m",
        "hf-llama",
        input=f"!fragment {folder / 'notes.txt'}\n[[history]]\nquit\n",
    )
    assert shown.stdout.count("Rex is a dog") >= 2


@both
@pytest.mark.parametrize("source", ["path", "url", "content"])
def test_too_large_a_file_is_refused_before_anything_is_sent(
    server: ChatUI, ask: TurnRequest, folder: pathlib.Path, web: str, source: str
) -> None:
    large = {
        "path": llm.Attachment(type="text/plain", path=str(folder / "large.txt")),
        "url": llm.Attachment(type="text/plain", url=f"{web}/large.txt"),
        "content": llm.Attachment(type="text/plain", content=TOO_LARGE),
    }[source]
    with pytest.raises(llm.ModelError, match="10 MB"):
        ask("hello", attachments=[large])
    assert server.log == []


@both
def test_file_of_ten_megabytes_is_taken(server: ChatUI, ask: TurnRequest) -> None:
    ask("[[tokens=1]]", attachments=[llm.Attachment(type="text/plain", content=TOO_LARGE[1:])])
    assert uploaded(server)[0][2] == TOO_LARGE[1:]


@both
def test_image_for_a_text_model_is_refused_before_anything_is_sent(
    server: ChatUI, ask: TurnRequest, folder: pathlib.Path, web: str
) -> None:
    for picture in (
        llm.Attachment(path=str(folder / "picture.png")),
        llm.Attachment(content=PICTURE),
        llm.Attachment(url=f"{web}/picture.png"),
    ):
        with pytest.raises((llm.ModelError, ValueError), match="huggingchat/omni"):
            ask("hello", attachments=[picture])
    assert server.log == []


def test_image_for_a_text_model_on_the_command_line(server: ChatUI, folder: pathlib.Path) -> None:
    said = failure("-m", "hf-gpt-oss", "hello", "-a", str(folder / "picture.png"))
    assert "picture.png" in said
    assert "huggingchat/omni" in said


@both
@pytest.mark.parametrize(
    ("attachment", "says"),
    [
        (llm.Attachment(type="application/pdf", content=b"%PDF-1.4"), "application/pdf"),
        (llm.Attachment(type="audio/aac", content=b"\xff\xf1"), "audio/aac"),
        (llm.Attachment(type="image/tiff", content=b"II*\0"), "png, jpeg, webp or gif"),
        (llm.Attachment(type="text/plain", path="/nowhere/notes.txt"), "notes.txt"),
        (llm.Attachment(content=b"\0\1\2\3 no text"), "text, JSON, XML, CSV"),
    ],
)
def test_what_cannot_be_taken_is_told_before_anything_is_sent(
    server: ChatUI, ask: TurnRequest, attachment: llm.Attachment, says: str
) -> None:
    with pytest.raises((llm.ModelError, ValueError), match=says):
        ask("hello", model="hf-vision", attachments=[attachment])
    assert server.log == []


@both
def test_attachment_that_is_not_on_the_web_is_told(
    server: ChatUI, ask: TurnRequest, web: str
) -> None:
    with pytest.raises(llm.ModelError, match="HTTP 404"):
        ask("hello", attachments=[llm.Attachment(type="text/plain", url=f"{web}/nothing")])
    assert server.log == []


@both
@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ('a"b\r\nX-Evil: 1;.txt', "a_b X-Evil: 1_.txt"),
        ("ta\tb\u202e.txt", "ta b.txt"),
        ("back\\slash.txt", "slash.txt"),
        ("a" * 150 + ".txt", "a" * 96 + ".txt"),
        ("plain", "plain.txt"),
        ("..notes.txt", "notes.txt"),
        ("Ännchen & Rex (1).txt", "Ännchen & Rex (1).txt"),
    ],
)
def test_file_names_are_made_safe(
    server: ChatUI, ask: TurnRequest, tmp_path: pathlib.Path, name: str, sent: str
) -> None:
    (tmp_path / name).write_text("Rex is a dog")
    ask("hello", attachments=[llm.Attachment(type="text/plain", path=str(tmp_path / name))])
    ((uploaded_name, type, content),) = uploaded(server)
    assert uploaded_name == sent
    assert (type, content) == ("text/plain", b"Rex is a dog")


# --- files in answers -----------------------------------------------------------------


@both
def test_file_between_words_and_tools(server: ChatUI, ask: TurnRequest) -> None:
    response = ask("[[tool]] [[file]]", web_search=True)
    id = kept(response)["conversation_id"]
    (link,) = re.findall(r"\n\[picture\.png\]\((\S+)\)\n", response.text())
    assert link.startswith(f"{server.url}/conversation/{id}/output/")
    kinds = [part["type"] for part in parts(response)]
    assert kinds == ["text", "tool_call", "tool_result", "text"]


@both
def test_two_requests_more_at_most_with_tools(server: ChatUI, ask: TurnRequest) -> None:
    ask("[[tool]]", web_search=True)
    assert calls(server)[:3] == [
        ("GET", "/api/mcp/servers"),
        ("POST", "/conversation"),
        ("POST", f"/conversation/{only_conversation(server).id}"),
    ]
