"""The plugin with a real chat-ui, whose answers are in cassettes: see cassettes/README.md."""

import io
import json
import os
import pathlib
import re
from typing import Any

import llm
import pytest
import yaml  # type: ignore[import-untyped]
from cassette import content_of, meaning
from chat_ui import PICTURE, captured
from helpers import LLAMA, ask_sync, both, described, kept, parts, reasoning, run
from vcr.request import Request  # type: ignore[import-untyped]

from llm_huggingchat import WebSearch

ANONYMOUS = "http://127.0.0.1:3100/chat"
LOGIN = "http://127.0.0.1:3101/chat"
LIMITS = "http://127.0.0.1:3102/chat"
CASSETTES = pathlib.Path(__file__).parent / "cassettes"
# Read before a fixture hides it: recording behind a login needs one, replaying does not.
KEY = os.environ.get("LLM_HUGGINGCHAT_KEY") or "hf-chat=recorded; token=recorded"

HEADERS = {"Accept", "Content-Length", "Content-Type", "Origin", "User-Agent"}

pytestmark = pytest.mark.vcr


@pytest.fixture
def vcr_config() -> dict[str, Any]:
    return {"filter_headers": ["cookie", "set-cookie"]}


def fails(words: list[str], *prompt: Any, **options: Any) -> None:
    """A prompt fails, with an error that has these words."""
    with pytest.raises(llm.ModelError) as raised:
        ask_sync(*prompt, **options)
    for word in words:
        assert word in str(raised.value)


def at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Use this server, and know its models."""
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", url)
    run("huggingchat", "refresh")


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch, vcr: Any) -> None:
    at(monkeypatch, ANONYMOUS)


@both
@pytest.mark.default_cassette("test_first_turn")
def test_first_turn(ask):
    answer = ask("Say hello", system="Be brief")
    assert answer.text() == "You said: Say hello"
    told = described(answer)
    assert told == kept(answer) | {
        "url": f"{ANONYMOUS}/conversation/{told['conversation_id']}",
        "title": told["title"],
        "provider": "novita",
    }
    assert re.fullmatch("[0-9a-f]{24}", told["conversation_id"])
    assert told["message_id"]
    assert told["server"] == ANONYMOUS
    assert told["title"].startswith("You said")
    assert answer.resolved_model == told["model"] == LLAMA


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
    assert described(answer)["route"] == "default"
    assert described(answer)["model"] == "omni"


def test_image(tmp_path):
    picture = tmp_path / "a picture.png"
    picture.write_bytes(PICTURE)
    said = run("-m", "hf-vision", "[[images]] What is it?", "-a", str(picture)).output
    assert said == "I see 1 image(s).\n"


def test_text_file(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("the secret is 42")
    asked = ("-m", "hf-llama-3.3-70b-instruct", "What is it?")
    assert "the secret is 42" in run(*asked, "--at", str(notes), "text/plain").output


def test_tool_call():
    answer = ask_sync("[[tool]] chat-ui", tools=[WebSearch()])
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
    with pytest.raises(llm.NeedsKeyException, match="requires a login, and there is no key"):
        ask_sync("Hello")


def test_half_logged_in(monkeypatch):
    at(monkeypatch, LOGIN)
    fails(["the cookie 'token' is missing"], "Hello", key="hf-chat=only-a-session")


def test_model_that_the_server_does_not_know():
    words = ["127.0.0.1:3100", "nobody/nothing", "HTTP 400", "llm huggingchat refresh"]
    fails(words, "Hello", model="huggingchat/nobody/nothing")


def test_model_that_fails():
    fails([LLAMA, "429", "upstream says 429"], "[[err=429]]")


def test_empty_answer():
    fails(["gave an empty answer"], "[[empty]]")


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
    said = str(raised.value)
    for words in ("127.0.0.1:3102", "HTTP 429", "too many messages", "LLM_HUGGINGCHAT_WAIT"):
        assert words in said


def test_list_of_conversations():
    first, second = ask_sync("The first"), ask_sync("The second")
    listed = json.loads(run("huggingchat", "conversations", "--json").output)
    newest_first = [kept(answer)["conversation_id"] for answer in (second, first)]
    assert [entry["id"] for entry in listed] == newest_first
    assert {entry["model"] for entry in listed} == {LLAMA}


def test_catalogue():
    listed = json.loads(run("huggingchat", "models", "--json").stdout)
    ids = {f"huggingchat/{model['id']}" for model in captured("models")["json"]}
    assert {model["id"] for model in listed} == ids


def test_requests_are_compared_by_what_they_mean():
    def sent(boundary: str, data: str, content: Any) -> Request:
        form = f'--{boundary}\r\nContent-Disposition: form-data; name="data"\r\n\r\n{data}\r\n'
        body = form.encode() + b"--" + boundary.encode() + b"--\r\n"
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return Request("POST", f"{ANONYMOUS}/conversation/1", content_of(content(body)), kind)

    recorded = meaning(sent("a", '{"id": "p", "inputs": "hi", "generationId": "g"}', bytes))
    for content in (bytes, io.BytesIO, lambda body: iter([body[:9], body[9:]])):
        data = '{"inputs": "hi", "generationId": "h", "is_retry": false, "id": "p"}'
        assert meaning(sent("b", data, content)) == (recorded[0], "h")
        assert meaning(sent("b", data.replace("hi", "ho"), content))[0] != recorded[0]


def test_no_cassette_holds_a_cookie():
    paths = list(CASSETTES.rglob("*.yaml"))
    assert len(paths) > 15
    for path in paths:
        text = path.read_text("utf-8")
        assert "hf-chat" not in text
        for interaction in yaml.safe_load(text)["interactions"]:
            assert interaction["response"]["headers"].keys() <= {"content-type"}
            assert interaction["request"]["headers"].keys() <= HEADERS
