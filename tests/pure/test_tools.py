"""Tools that run on the server: what is selected, and what may be logged of them."""

import json
from typing import Any

import llm
import pytest
from llm.utils import instantiate_from_spec

from llm_huggingchat import MCP, HuggingFace, McpServer, WebSearch, parse_server, select_tools

SERVER = parse_server("https://huggingface.co/chat")
URL = "https://mcp.example/x"
OFFERED = [("Web Search (Exa)", "https://mcp.exa.example"), ("Hugging Face", "https://hf.example")]


def spec(text: str) -> Any:
    """A tool as `llm -T` makes it."""
    return instantiate_from_spec({tool.__name__: tool for tool in (MCP, WebSearch)}, text)


def logged(tool: Any) -> str:
    """What llm logs of a tool's arguments."""
    return json.dumps(tool._config)


@pytest.mark.parametrize(
    ("tool", "offered", "name"),
    [
        (HuggingFace(), OFFERED, "Hugging Face"),
        (WebSearch(), [("Weather", "https://a.example"), ("Suche", "https://search.a")], "Suche"),
        (WebSearch(), [("Research", ""), ("My web-search", "https://x.example")], "My web-search"),
        (HuggingFace(), [("", "https://hf.co"), ("Hub", "https://hf.co/mcp")], "Hub"),
    ],
)
def test_tool_server_is_found_by_its_name_or_its_address(tool, offered, name):
    servers = [McpServer(*server) for server in offered]
    assert select_tools([tool], servers, SERVER) == ([name], [])


@pytest.mark.parametrize(
    "url",
    [
        *("http://mcp.example/x", "x", "https://10.0.0.1/x", "https://[::1]/x"),
        *("https://box/x", "https://box.internal./x"),
    ],
)
def test_own_server_has_to_be_public_or_beside_the_chat(url):
    with pytest.raises(llm.ModelError, match="https"):
        select_tools([MCP(url)], [], SERVER)
    near = parse_server("http://127.0.0.1:3000/chat")
    _, (allowed,) = select_tools([MCP("http://127.0.0.1:1/mcp", "Mine")], [], near)
    assert allowed["name"] == "Mine"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("X Key", "a", "HTTP cannot carry"),
        ("X-Key", "geheim\r\nX-Evil: 1", "HTTP cannot carry"),
        ("X-Key", "$MCP_SECRET", "HTTP cannot carry"),
        ("X-Key", "$NO_SUCH_NAME", "NO_SUCH_NAME"),
        ("X-Key", "$LLM_HUGGINGCHAT_KEY", "cookies go to no other server"),
    ],
)
def test_header_that_cannot_be_sent_is_refused(name, value, says, monkeypatch):
    monkeypatch.setenv("MCP_SECRET", "geheim\n")
    with pytest.raises(llm.ModelError, match=says) as caught:
        select_tools([MCP(URL, headers={name: value})], [], SERVER)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("MCP", "MCP(5)", 'MCP(address="x")', 'WebSearch("x")', 'MCP({"url": "x", "more": 1})'),
        'MCP({"url": "https://mcp.example/x", "headers": ["X-Key"]})',
        'MCP({"url": "https://mcp.example/x", "headers": {"X-Key": 5}})',
    ],
)
def test_wrong_argument_is_one_line(text):
    """llm prints a ClickException that comes while it makes a tool as a line."""
    with pytest.raises(llm.ModelError) as caught:
        spec(text)
    assert "\n" not in str(caught.value)
    assert text.partition("(")[0] in str(caught.value)


@pytest.mark.parametrize(
    "tool",
    [
        *(MCP(f"{URL}?{query}") for query in ("key=sesame", "key=sesame==", "sesame")),
        *(MCP("https://user:sesame@mcp.example/x"), MCP("sesame")),
        MCP(URL, headers={"X-Key": "sesame"}),
    ],
)
def test_secret_is_not_logged_but_asked_for_again(tool):
    assert "sesame" not in logged(tool)
    again = MCP(**json.loads(logged(tool)))
    with pytest.raises(llm.ModelError, match="not kept in the logs"):
        select_tools([again], [], SERVER)
    assert "$SECRET" in logged(MCP(f"{URL}?key=$SECRET"))
