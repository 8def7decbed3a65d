"""The plugin with a real chat-ui, whose answers are in cassettes: see cassettes/README.md."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import llm
import pytest
import yaml  # type: ignore[import-untyped]
from chat_ui import PICTURE
from helpers import ask_sync, both, kept, parts, reasoning, run
from recorded import capture

import llm_huggingchat
from llm_huggingchat import HuggingChat, ModelInfo, keep_catalogue, read_catalogue

ANONYMOUS = "http://127.0.0.1:3100/chat"
LOGIN = "http://127.0.0.1:3101/chat"
LIMITS = "http://127.0.0.1:3102/chat"
CASSETTES = pathlib.Path(__file__).parent / "cassettes"
# Read before a fixture hides it: recording behind a login needs one, replaying does not.
KEY = os.environ.get(llm_huggingchat.KEY_VARIABLE) or "hf-chat=recorded; token=recorded"

pytestmark = pytest.mark.vcr


def at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv(llm_huggingchat.SERVER_VARIABLE, url)
    (models,) = capture("models")
    keep_catalogue(url, read_catalogue(models.json()).models)  # new enough not to be refreshed


def about(answer: llm.Response) -> dict[str, Any]:
    """What is logged about an answer."""
    assert answer.response_json
    return dict(answer.response_json["huggingchat"])


@pytest.fixture(autouse=True)
def _like_when_recorded(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, vcr: Any
) -> Iterator[None]:
    """The same server, and the same ids: an answer is found by the id of its run."""
    at(monkeypatch, ANONYMOUS)
    yield
    assert vcr.dirty or vcr.all_played  # nothing less was asked for


@both
@pytest.mark.default_cassette("test_first_turn")
def test_first_turn(ask):
    answer = ask("Say hello", system="Be brief")
    assert answer.text() == "You said: Say hello"
    told = about(answer)
    assert told == kept(answer) | {
        "url": f"{ANONYMOUS}/conversation/{told['conversation_id']}",
        "title": told["title"],
        "provider": "novita",
    }
    assert re.fullmatch("[0-9a-f]{24}", told["conversation_id"])
    assert told["message_id"]
    assert told["server"] == ANONYMOUS
    assert told["title"].startswith("You said")
    assert answer.resolved_model == told["model"] == "meta-llama/Llama-3.3-70B-Instruct"


def test_later_turn():
    first = ask_sync("My name is Ada")
    second = ask_sync("Who am I? [[history]]", after=first)
    assert kept(second)["conversation_id"] == kept(first)["conversation_id"]
    assert kept(second)["message_id"] != kept(first)["message_id"]
    assert json.loads(second.text()) == [
        {"role": "user", "content": "My name is Ada"},
        {"role": "assistant", "content": "You said: My name is Ada"},
        {"role": "user", "content": "Who am I? [[history]]"},
    ]


def test_another_model_on_a_later_turn():
    first = ask_sync("Hello")
    second = ask_sync("And you? [[history]]", model="hf-qwen", after=first)
    assert kept(second)["conversation_id"] == kept(first)["conversation_id"]
    assert second.resolved_model == "Qwen/Qwen3-235B-A22B-Instruct-2507"
    assert [message["content"] for message in json.loads(second.text())] == [
        "Hello",
        "You said: Hello",
        "And you? [[history]]",
    ]


def test_two_replies_to_one_answer():
    first = ask_sync("Hello")
    ask_sync("left", after=first)
    right = ask_sync("right [[history]]", after=first)
    assert kept(right)["conversation_id"] == kept(first)["conversation_id"]
    assert "left" not in right.text()


def test_reasoning():
    answer = ask_sync("[[reason]] Why?", model="hf-deepseek")
    assert reasoning(answer) == "Let me think about\n\nthis carefully."
    assert answer.text() == "You said: [[reason]] Why?"


def test_router():
    answer = ask_sync("Hello", model="hf-omni")
    assert answer.text() == "You said: Hello"
    assert answer.resolved_model == "zai-org/GLM-4.6"
    assert about(answer)["route"] == "default"
    assert about(answer)["model"] == "omni"


def test_image(tmp_path):
    picture = tmp_path / "a picture.png"
    picture.write_bytes(PICTURE)
    said = run("-m", "hf-vision", "[[images]] What is it?", "-a", str(picture)).output
    assert said == "I see 1 image(s).\n"


def test_text_file(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("the secret is 42")
    said = run(
        "-m", "hf-llama-3.3-70b-instruct", "What is it?", "--at", str(notes), "text/plain"
    ).output
    assert "the secret is 42" in said


def test_tool_call():
    answer = ask_sync("[[tool]] chat-ui", tools=[llm_huggingchat.WebSearch()])
    found = parts(answer)
    assert [part["type"] for part in found] == ["text", "tool_call", "tool_result", "text"]
    called, returned = found[1], found[2]
    assert called["name"] == "web_search_exa"
    assert "https://example.org/docs" in returned["output"]
    assert found[3]["text"] == f"\n\nThe tool said: {returned['output']}"


def test_logged_in(monkeypatch):
    at(monkeypatch, LOGIN)
    answer = ask_sync("Hello", key=KEY)
    assert answer.text() == "You said: Hello"
    assert kept(answer)["message_id"]


def test_logged_out(monkeypatch):
    at(monkeypatch, LOGIN)
    with pytest.raises(llm.NeedsKeyException, match="wants a login, and there is no key"):
        ask_sync("Hello")


def test_half_logged_in(monkeypatch):
    at(monkeypatch, LOGIN)
    with pytest.raises(llm.ModelError, match="the cookie 'token' is missing"):
        ask_sync("Hello", key="hf-chat=only-a-session")


def test_model_that_the_server_does_not_know():
    model = HuggingChat(ModelInfo("nobody/nothing"))
    with pytest.raises(llm.ModelError) as raised:
        model.prompt("Hello").text()
    assert str(raised.value) == (
        "127.0.0.1:3100 refused 'nobody/nothing' (HTTP 400: Invalid request). "
        "If it does not know the model, run: llm huggingchat refresh"
    )


def test_model_that_fails():
    with pytest.raises(llm.ModelError) as raised:
        ask_sync("[[err=429]]")
    assert str(raised.value) == (
        "The model meta-llama/Llama-3.3-70B-Instruct failed (HTTP 429): 429 upstream says 429. "
        "Try again later."
    )


def test_empty_answer():
    with pytest.raises(llm.ModelError, match="gave an empty answer"):
        ask_sync("[[empty]]")


def test_deleted_conversation_goes_on_in_a_new_one(caplog):
    first = ask_sync("My name is Ada")
    old = kept(first)["conversation_id"]
    run("huggingchat", "delete", old, "--yes")
    second = ask_sync("Who am I?", after=first)
    assert kept(second)["conversation_id"] != old
    assert "User: My name is Ada" in second.text()
    assert f"{ANONYMOUS}/conversation/{old} is not there" in caplog.text


def test_conversation_of_another_account_goes_on_in_a_new_one(caplog):
    first = ask_sync("My name is Ada", key="hf-chat=session-of-ada")
    second = ask_sync("Who am I?", after=first, key="hf-chat=session-of-bob")
    assert kept(second)["conversation_id"] != kept(first)["conversation_id"]
    assert "User: My name is Ada" in second.text()
    assert "is not there for this account" in caplog.text


def test_too_many_messages_a_minute(monkeypatch):
    at(monkeypatch, LIMITS)
    answer = ask_sync("Hello")
    with pytest.raises(llm.ModelError) as raised:  # noqa: PT012
        for _ in range(9):
            answer = ask_sync("again", after=answer)
    assert str(raised.value) == (
        "127.0.0.1:3102 wants a pause (HTTP 429: You are sending too many messages. "
        "Try again later.). Try again later, or let prompts wait: LLM_HUGGINGCHAT_WAIT=600 "
        "(seconds)."
    )


def test_list_of_conversations():
    first, second = ask_sync("The first"), ask_sync("The second")
    listed = json.loads(run("huggingchat", "conversations", "--json").output)
    assert [entry["id"] for entry in listed] == [
        kept(second)["conversation_id"],
        kept(first)["conversation_id"],
    ]
    assert {entry["model"] for entry in listed} == {"meta-llama/Llama-3.3-70B-Instruct"}


def test_catalogue(user_path):
    (user_path / llm_huggingchat.CACHE).unlink()
    run("huggingchat", "refresh")
    models = llm_huggingchat.load_catalogue(ANONYMOUS).models
    (captured,) = capture("models")
    assert models == read_catalogue(captured.json()).models


def test_no_cassette_holds_a_cookie():
    paths = list(CASSETTES.rglob("*.yaml"))
    assert len(paths) > 15
    for path in paths:
        text = path.read_text("utf-8")
        assert "hf-chat" not in text
        for interaction in yaml.safe_load(text)["interactions"]:
            assert interaction["response"]["headers"].keys() <= {"content-type"}
            assert interaction["request"]["headers"].keys() <= {
                "Accept",
                "Content-Length",
                "Content-Type",
                "Origin",
                "User-Agent",
            }
