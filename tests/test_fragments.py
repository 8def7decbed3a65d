"""Conversations as fragments of prompts: `llm -f huggingchat:ID`."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import subprocess
import sys
import time

import llm
import pytest
from chat_ui import ChatUI
from helpers import (
    ask_sync,
    default_signals,
    described,
    failure,
    kept,
    logged,
    make_logs,
    only_conversation,
    run,
    sends,
    wait_for,
)

import llm_huggingchat
from llm_huggingchat import SERVER_VARIABLE


def asked(server: ChatUI) -> str:
    """The last prompt, as the model got it."""
    data = sends(server)[-1].data
    assert data
    return str(data["inputs"])


def answered(server: ChatUI, prompt: str = "Name a planet [[say]]Mars[[/say]]") -> str:
    """A conversation with one question, whose answer is stored; its id."""
    id = str(kept(ask_sync(prompt))["conversation_id"])
    server.messages(id)
    return id


def load(name: str) -> llm.Fragment:
    fragment = llm.get_fragment_loaders()["huggingchat"](name)
    assert isinstance(fragment, llm.Fragment)
    return fragment


def test_conversation_stands_before_the_prompt(server: ChatUI) -> None:
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
def test_ways_to_name_and_to_use_it(server: ChatUI, way: str) -> None:
    run("-m", "hf-llama", "Name a planet [[say]]Mars[[/say]]")
    id = only_conversation(server).id
    server.messages(id)
    name = {
        "address": f"{server.url}/conversation/{id}?x=1",
        "shared": run("huggingchat", "share", id).stdout.strip() if way == "shared" else "",
        "logs": logged()[0]["conversation_id"],
    }.get(way, id)
    if way == "chat":
        run("chat", "-m", "hf-qwen", "-f", f"huggingchat:{name}", input="Why?\nquit\n")
    else:
        option = "--sf" if way == "system" else "-f"
        more = ["--async"] if way == "async" else []
        run("-m", "hf-qwen", option, f"huggingchat:{name}", "Why?", *more)
    conversation = list(server.conversations.values())[-1]
    text = conversation.preprompt if way == "system" else asked(server)
    assert "\n\nMars" in text
    if way == "shared":
        assert f"<{name}>" in text


def test_newest_branch_without_reasoning_and_with_tools(server: ChatUI) -> None:
    first = ask_sync("Hello [[reason]] [[tool]]", model="hf-deepseek", web_search=True)
    ask_sync("old branch", after=first)
    ask_sync("new branch", after=first)
    text = load(kept(first)["conversation_id"])
    assert "new branch" in text
    assert "old branch" not in text
    assert "<details>" not in text
    assert "first page https://example.org/first" in text
    shown = run("huggingchat", "export", kept(first)["conversation_id"]).stdout
    assert "<details>" in shown  # for people it is there
    assert "## You" in shown


def test_shared_by_somebody_else_is_not_copied(server: ChatUI) -> None:
    link = run("huggingchat", "share", answered(server)).stdout.strip()
    before = len(server.conversations)
    assert "Mars" in load(link)
    assert len(server.conversations) == before


def test_where_an_event_loop_runs(server: ChatUI) -> None:
    id = answered(server)

    async def notebook() -> str:
        return load(id)

    assert "Mars" in asyncio.run(notebook())


def test_source_is_the_page(server: ChatUI) -> None:
    response = ask_sync("Name a planet")
    id = kept(response)["conversation_id"]
    assert load(id).source == described(response)["url"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("f" * 24, "no such conversation"),
        ("nonsense", "names no conversation"),
        ("", "names no conversation"),
        ("https://example.org/conversation/" + "f" * 24, "is not the address"),
    ],
)
def test_what_is_not_there_is_told(server: ChatUI, name: str, says: str) -> None:
    said = failure("-m", "hf-llama", "-f", f"huggingchat:{name}", "Why?")
    assert "Could not load fragment" in said
    assert says in said
    assert sends(server) == []


def test_conversation_without_an_answer(server: ChatUI) -> None:
    id = server.add_conversation("me", "omni", "").id
    server.conversations[id].session = answered_by(server)
    assert "holds no answer yet" in failure("-m", "hf-llama", "-f", f"huggingchat:{id}", "Why?")


def answered_by(server: ChatUI) -> str:
    """Whose conversations this llm's are."""
    answered(server)
    return next(c.session for c in server.conversations.values() if c.session != "me")


def test_logged_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatUI(login_required=True, sessions={"s": ("ada", "t")}) as server:
        monkeypatch.setenv(SERVER_VARIABLE, server.url)
        said = failure("-m", "hf-llama", "-f", f"huggingchat:{'f' * 24}", "Why?")
        assert "llm huggingchat login" in said


def test_no_network(server: ChatUI, monkeypatch: pytest.MonkeyPatch) -> None:
    id = answered(server)
    monkeypatch.setattr(
        llm_huggingchat.limits, "backoff", (0.01,) * len(llm_huggingchat.limits.backoff)
    )
    server.down()
    said = failure("-m", "hf-llama", "-f", f"huggingchat:{id}", "Why?")
    assert "No connection to 127.0.0.1" in said


def test_loader_explains_itself(server: ChatUI) -> None:
    shown = run("fragments", "loaders").stdout
    assert "huggingchat:\n" in shown
    assert "llm -f huggingchat:https://" in shown
    assert "\b" not in shown


def test_ctrl_c_while_loading(server: ChatUI, tmp_path: pathlib.Path) -> None:
    id = answered(server, "[[slowfetch=60]] hello [[say]]Mars[[/say]]")
    make_logs()
    begun = len(server.log)
    process = subprocess.Popen(
        [sys.executable, "-m", "llm", "-m", "hf-llama", "-f", f"huggingchat:{id}", "Why?"],
        env=os.environ | {SERVER_VARIABLE: server.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=default_signals,
    )
    wait_for(lambda: len(server.log) > begun, 20)
    since = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert time.monotonic() - since < 5
    assert process.returncode
