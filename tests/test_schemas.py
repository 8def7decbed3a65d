"""Schemas, which the model is told of in words: what is printed, asked for again, and refused."""

from __future__ import annotations

import json
from typing import Any

import helpers as h
import pytest
from chat_ui import ChatUI, Request
from pydantic import BaseModel

REX = '{"name": "Rex", "age": 4}'
WRONG = '{"name": "Rex", "age": "four"}'
DOG: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def says(*answers: str, prompt: str = "Ask") -> str:
    """A prompt to which the model answers so, an answer a turn."""
    return prompt + " " + "".join(f"[[say]]{answer}[[/say]]" for answer in answers)


def questions(server: ChatUI) -> list[str]:
    """What the messages of the one conversation say, in their order."""
    return [m["content"] for m in server.messages(h.only_conversation(server).id, "user")]


def asks(*arguments: str, **more: Any) -> Any:
    return h.run("-m", "hf-llama", "--schema", "name, age int", *arguments, **more)


FLAGS = pytest.mark.parametrize(
    "flags", [[], ["--no-stream"], ["--async"], ["--async", "--no-stream"]], ids=" ".join
)


@FLAGS
def test_json_and_nothing_else_is_printed(server, flags):
    for text in (
        f"First I thought {WRONG}.\n\n```json\n{REX}\n```\nAnything else?",
        f'<artifact identifier="dog" type="code" language="json" title="Dog">\n{REX}\n</artifact>',
        f'<think>{{"name": "Max", "age": 1}}?</think>\n{REX}',
    ):
        result = asks("-R", *flags, says(text))
        assert (result.stdout, result.stderr) == (f"{REX}\n", "")
    assert len(h.sends(server)) == 3


def test_schema_multi(server):
    dogs = '{"items": [{"name": "Rex", "age": 4}, {"name": "Cleo", "age": 5}]}'
    prompt = says(f'{{"items": [{WRONG}]}}', f"Here: {dogs}")
    assert h.run("-m", "hf-llama", "--schema-multi", "name, age int", prompt).stdout == f"{dogs}\n"
    data = h.run("logs", "--schema-multi", "name, age int", "--data-key", "items").stdout
    assert [json.loads(line) for line in data.splitlines()] == [
        {"name": "Rex", "age": 4},
        {"name": "Cleo", "age": 5},
    ]


class Person(BaseModel):
    name: str
    friends: list[Person]


@h.both
def test_pydantic_class(server, ask):
    ann = Person(name="Ann", friends=[Person(name="Bob", friends=[])])
    response = ask(says(ann.model_dump_json(indent=2)), schema=Person)
    assert Person.model_validate_json(response.text()) == ann
    assert len(h.sends(server)) == 1


@FLAGS
def test_wrong_answer_is_asked_for_once_more(server, flags):
    result = asks(*flags, says(WRONG, REX))
    assert result.stdout == f"{REX}\n"
    h.run("-c", "And in words?")
    first, second, third = questions(server)
    assert "'four' is not of type 'integer'" in second
    assert '"required": ["name", "age"]' in second
    conversation = h.only_conversation(server)
    assert h.tree(server, conversation.id) == {first: {second: {third: {}}}}
    row, _ = h.logged()
    assert row["response"] == REX
    wrong, right, _ = server.messages(conversation.id, "assistant")
    assert (wrong["content"], right["content"]) == (WRONG, REX)
    assert row["response_json"]["huggingchat"]["message_id"] == right["id"]


def test_conversation_goes_on_after_the_right_answer_though_its_id_is_not_known(server):
    def spoil(request: Request, body: bytes) -> bytes:
        hidden = len(h.sends(server)) == 2 and request.path.startswith("/api/v2/conversations/")
        return b"" if hidden else body

    server.spoil = spoil
    assert asks(says(WRONG, REX)).stdout == f"{REX}\n"
    server.spoil = lambda request, body: body
    h.run("-c", "And in words?")
    first, second, third = questions(server)
    assert h.tree(server) == {first: {second: {third: {}}}}


@FLAGS
def test_answer_that_stays_wrong_is_shown_in_the_error(server, flags):
    schema = ["--schema", "name, age int"]
    error = h.failure("-m", "hf-llama", *flags, *schema, says(WRONG, "I cannot."))
    assert "no JSON document" in error
    assert h.only_conversation(server).id in error
    assert error.endswith("I cannot.\n")
    assert len(h.sends(server)) == 2


def test_answer_that_was_broken_off_is_not_asked_for_again(server):
    prompt = says('{"name": "Rex", "age": 4, "more": "and more"}')
    error = asks(f"{prompt} [[die=3]]", status=1).stderr
    assert "broken off" in error
    assert len(h.sends(server)) == 1


def test_what_is_no_schema_is_refused_before_anything_is_sent(server):
    assert "not a JSON schema" in h.error_of(h.ask_async, "Ask", schema={"type": "dog"})
    assert not server.log


def test_reference_of_a_schema_is_not_fetched(server):
    dog = {"$ref": f"{server.url}/schema.json"}
    schema = {"type": "object", "properties": {"dog": dog}}
    assert "schema.json" in h.error_of(h.ask_async, says('{"dog": 4}'), schema=schema)
    assert not any("schema.json" in request.path for request in server.log)


def test_models_for_one_purpose_offer_neither_schemas_nor_tools(server):
    guard = ("-m", "hf-llama-guard-4-12b", "Hello")
    assert "schemas" in h.failure(*guard, "--schema", "name, age")
    assert "tools" in h.failure(*guard, "-T", "llm_time")
    assert not h.sends(server)
    for model in json.loads(h.run("models", "--json").stdout):
        general = "guard" not in model["model_id"].lower()
        if "/meta-llama/" in model["model_id"]:
            assert (model["supports_schema"], model["supports_tools"]) == (general, general)
