"""Conversations as fragments of prompts: `llm -f huggingchat:ID`."""

import asyncio

import llm
import pytest
from chat_ui import ChatUI
from helpers import ask_sync, failure, kept, logged, only_conversation, run, sends


def asked(server: ChatUI) -> str:
    """The last prompt, as the model got it."""
    return str((sends(server)[-1].data or {})["inputs"])


def answered(server: ChatUI, prompt: str = "Name a planet [[say]]Mars[[/say]]") -> str:
    """A conversation with one question, whose answer is stored; its id."""
    run("-m", "hf-llama-3.3-70b-instruct", prompt)
    id = only_conversation(server).id
    server.messages(id)
    return id


def test_conversation_stands_before_the_prompt(server):
    id = answered(server, "[[title=Planets]] Name a planet [[say]]Mars[[/say]]")
    page = f"{server.url}/conversation/{id}"
    run("-m", "hf-qwen", "-f", f"huggingchat:{id}", "Why that one?")
    assert asked(server) == (
        f"# Planets\n\n<{page}>\n\n"
        "## User\n\n[[title=Planets]] Name a planet [[say]]Mars[[/say]]\n\n"
        "## meta-llama/Llama-3.3-70B-Instruct\n\nMars\n\nWhy that one?"
    )
    assert page in run("fragments").stdout  # its source


@pytest.mark.parametrize("way", ["address", "shared", "logs", "system", "async", "chat"])
def test_ways_to_name_and_to_use_it(server, way):
    id = answered(server)
    name = {
        "address": f"{server.url}/conversation/{id}?x=1",
        "shared": run("huggingchat", "share", id).stdout.strip() if way == "shared" else "",
        "logs": logged()[0]["conversation_id"],
    }.get(way, id)
    fragment = ["--sf" if way == "system" else "-f", f"huggingchat:{name}"]
    if way == "chat":
        run("chat", "-m", "hf-qwen", *fragment, input="Why?\nquit\n")
    else:
        run("-m", "hf-qwen", *fragment, "Why?", *(["--async"] if way == "async" else []))
    conversation = list(server.conversations.values())[-1]
    text = conversation.preprompt if way == "system" else asked(server)
    assert "\n\nMars" in text
    assert way != "shared" or f"<{name}>" in text


def test_newest_branch_without_reasoning_and_with_tools(server):
    first = ask_sync("Hello [[reason]] [[tool]]", model="hf-deepseek", web_search=True)
    id = kept(first)["conversation_id"]
    ask_sync("old branch", after=first)
    ask_sync("new branch", after=first)

    async def load():  # in an event loop, as in a notebook
        return llm.get_fragment_loaders()["huggingchat"](id)

    text = asyncio.run(load())
    assert isinstance(text, llm.Fragment)
    assert text.source == f"{server.url}/conversation/{id}"
    assert "new branch" in text
    assert "old branch" not in text
    assert "<details>" not in text
    assert "first page https://example.org/first" in text
    shown = run("huggingchat", "export", id).stdout
    assert "<details>" in shown  # for people it is there
    assert "## You" in shown


def test_what_is_not_there_is_told(server):
    for name, says in (
        ("f" * 24, "no such conversation"),
        ("nonsense", "names no conversation"),
        ("", "names no conversation"),
        ("https://example.org/conversation/" + "f" * 24, "names no conversation"),
    ):
        said = failure("-m", "hf-llama", "-f", f"huggingchat:{name}", "Why?")
        assert "Could not load fragment" in said
        assert says in said
    assert sends(server) == []
