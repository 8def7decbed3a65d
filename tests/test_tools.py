"""Tools that run on the server: which are selected, what their answers look like, MCP."""

import re
from typing import Any

import pytest
from chat_ui import ChatUI
from helpers import ask_sync, both, calls, error_of, failure, on_a_terminal, parts, run, sends

from llm_huggingchat import MCP, HuggingFace, WebSearch, reset

LACKING = "huggingchat/deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"
SEARCH, HUB = "Web Search (Exa)", "Hugging Face"
RESULTS = "1. first page https://example.org/first\n2. its docs https://example.org/docs"


def selected(server: ChatUI) -> list[Any]:
    """The names that each message selected."""
    return [request.data and request.data["selectedMcpServerNames"] for request in sends(server)]


def test_only_tools_that_are_asked_for_are_selected(server):
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, []),
        ({"tools": [WebSearch()]}, [SEARCH]),
        ({"tools": [HuggingFace()]}, [HUB]),
        ({"tools": [WebSearch(), HuggingFace()]}, [SEARCH, HUB]),
        ({"web_search": True}, [SEARCH]),
        ({"web_search": True, "tools": [WebSearch()]}, [SEARCH]),
        ({"web_search": False}, []),
    ]
    for options, _ in cases:
        ask_sync("hello", **options)
    assert selected(server) == [names for _, names in cases]


def test_tools_cost_one_request_and_one_that_the_server_lacks_is_an_error(server):
    ask_sync("[[tool]]", web_search=True)
    (id,) = server.conversations
    first = [("GET", "/api/mcp/servers"), ("POST", "/conversation")]
    assert calls(server)[:3] == [*first, ("POST", f"/conversation/{id}")]
    server.mcp_servers = [{"name": "Weather", "url": "https://weather.example/mcp"}]
    reset()
    assert re.search("web search.*Weather", error_of(ask_sync, "hello", web_search=True))
    assert "cannot use tools" in error_of(ask_sync, "hello", model=LACKING, web_search=True)
    assert len(sends(server)) == 1


@pytest.mark.parametrize("way", [(), ("--async",)], ids=["sync", "async"])
def test_continued_conversation_keeps_its_tools(server, way):
    run("-m", "hf-llama", "-T", "WebSearch", "one", *way)
    run("-c", "two", *way)
    run("-c", "three", "-T", "HuggingFace", *way)
    assert selected(server) == [[SEARCH], [SEARCH], [HUB]]


def test_own_server_is_selected_by_its_address(server, monkeypatch):
    monkeypatch.setenv("MCP_SECRET", "sesame")
    headers = {"Authorization": "Bearer $MCP_SECRET", "X-Team": "docs"}
    mine = MCP("https://mcp.example/x", "Mine", headers)
    namesake = MCP("https://a.example/", "Mine")
    ask_sync("[[tool]]", tools=[mine, namesake, WebSearch(), mine])
    first, second = sends(server)[0].data["selectedMcpServers"]  # type: ignore[index]
    assert (first["name"], first["url"]) == ("Mine", "https://mcp.example/x")
    sent = [(header["key"], header["value"]) for header in first["headers"]]
    assert sent == [("Authorization", "Bearer sesame"), ("X-Team", "docs")]
    assert second["url"] == "https://a.example/"
    assert second["name"] not in ("Mine", SEARCH)  # of two with one name, chat-ui keeps the last
    assert sorted(selected(server)[0]) == sorted(["Mine", second["name"], SEARCH])


def test_secrets_of_an_own_server_are_sent_but_never_logged(server, monkeypatch, user_path):
    monkeypatch.setenv("MCP_SECRET", "sesame-sesame")
    tool = 'MCP(url="https://mcp.example/x?k=$MCP_SECRET", headers={"X-Key": "Bearer $MCP_SECRET"})'
    run("-m", "hf-llama", "-T", tool, "[[tool]] one")
    run("-c", "[[tool]] two")
    run("-m", "hf-llama", "-T", tool.replace("$MCP_SECRET", "typed-secret"), "[[tool]] three")
    sent = [(request.data or {})["selectedMcpServers"][0] for request in sends(server)]
    secrets = ["sesame-sesame", "sesame-sesame", "typed-secret"]
    assert [mcp["url"].partition("=")[2] for mcp in sent] == secrets
    assert [mcp["headers"][0]["value"] for mcp in sent] == [f"Bearer {word}" for word in secrets]
    kept = (user_path / "logs.db").read_bytes()
    assert b"$MCP_SECRET" in kept
    assert b"sesame-sesame" not in kept
    assert b"typed-secret" not in kept
    assert "not kept in the logs" in failure("-c", "four")
    assert len(sends(server)) == 3


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


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("words", ["", "[[noise]]", "[[split]]", "[[cut=4,2]]", "[[cut=9]]"])
@both
def test_parts_come_in_their_order_whatever_the_connection_does(server, ask, words):
    response = ask(f"[[tools]] {words}", tools=[WebSearch(), HuggingFace()])
    assert parts(response) == MIXED
    assert len(sends(server)) == 1


def test_tool_that_fails_does_not_fail_the_answer(server):
    response = ask_sync("[[tool_error]]", web_search=True)
    assert parts(response) == [
        {"type": "text", "text": "Let me look that up."},
        called(),
        returned("Error: The tool could not be reached"),
        {"type": "text", "text": "\n\nThe tool failed."},
    ]


def test_name_of_a_tool_is_one_line(server, monkeypatch):
    monkeypatch.setattr("chat_ui_runs.tool_name", lambda server: "one\ntwo")
    found = parts(ask_sync("[[tool]]", web_search=True))
    assert [part["name"] for part in found if "name" in part] == ["one two", "one two"]


def test_tools_at_work_are_seen_on_a_terminal_unless_reasoning_is_hidden(server):
    prompt = ("stderr", "-m", "hf-llama", "-T", "WebSearch")
    assert "Tool: web_search_exa {" in on_a_terminal(*prompt, "[[tool]]")
    assert "Tool: web_search_exa failed: " in on_a_terminal(*prompt, "[[tool_error]]")
    assert "Tool: " not in on_a_terminal(*prompt, "-R", "[[tool]]")
    assert on_a_terminal(*prompt, "--no-stream", "[[tool]]").endswith("\n")  # before the answer
