"""Schemas and tools on this side, both through words, against the stand-in server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import llm
import pytest
from chat_ui import ChatUI
from helpers import (
    TurnRequest,
    both,
    described,
    failure,
    kept,
    logged,
    only_conversation,
    parts,
    reasoning,
    run,
    sends,
    tree,
)
from llm.parts import user
from pydantic import BaseModel

from llm_huggingchat import WebSearch, _mapping

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
    messages = server.messages(only_conversation(server).id)
    return [message["content"] for message in messages if message["from"] == "user"]


# --- schemas --------------------------------------------------------------------------

FLAGS = pytest.mark.parametrize(
    "flags", [[], ["--no-stream"], ["--async"], ["--async", "--no-stream"]], ids=" ".join
)


@FLAGS
@pytest.mark.parametrize(
    "text",
    [
        REX,
        f"Sure!\n\n```json\n{REX}\n```\nAnything else?",
        f'<artifact identifier="dog" type="code" language="json" title="Dog">\n{REX}\n</artifact>',
        f'<think>{{"name": "Max", "age": 1}}?</think>\n{REX}',
    ],
    ids=["alone", "fenced", "artifact", "reasoned"],
)
def test_json_and_nothing_else_is_printed(server, flags, text):
    result = run("-m", "hf-llama", "-R", *flags, "--schema", "name, age int", says(text))
    assert result.stdout == f"{REX}\n"
    assert result.stderr == ""
    assert len(sends(server)) == 1


@FLAGS
def test_wrong_answer_is_asked_for_once_more(server, flags):
    result = run("-m", "hf-llama", *flags, "--schema", "name, age int", says(WRONG, REX))
    assert result.stdout == f"{REX}\n"
    first, second = questions(server)
    assert "'four' is not of type 'integer'" in second
    assert '"required": ["name", "age"]' in second
    conversation = only_conversation(server)
    assert tree(server, conversation.id) == {first: {second: {}}}
    (row,) = logged()
    assert row["response"] == REX
    assert row["response_json"]["huggingchat"]["message_id"] == conversation.messages[-1]["id"]


@FLAGS
def test_answer_that_stays_wrong_is_shown(server, flags):
    error = failure("-m", "hf-llama", *flags, "--schema", "name, age int", says(WRONG, "I cannot."))
    assert "there is no JSON document in it" in error
    assert only_conversation(server).id in error
    assert error.endswith("It was: I cannot.\n")
    assert len(sends(server)) == 2


def test_answer_that_was_broken_off_is_not_asked_for_again(server):
    prompt = says('{"name": "Rex", "age": 4, "more": "and more"}')
    error = run(
        "-m", "hf-llama", "--schema", "name, age int", f"{prompt} [[die=3]]", status=1
    ).stderr
    assert "was broken off: the document is not complete" in error
    assert len(sends(server)) == 1


@both
def test_schema_is_in_the_preprompt_of_a_first_turn(server, ask):
    response = ask(says(REX), schema=DOG, system="Be brief")
    conversation = only_conversation(server)
    assert conversation.preprompt.startswith("Be brief\n\n")
    assert json.dumps(DOG) in conversation.preprompt
    assert questions(server) == [says(REX)]
    assert kept(response)["schema"] == DOG
    assert "schema" not in described(response)


def test_schema_of_a_later_turn_is_in_its_message(server):
    run("-m", "hf-llama", says("Hi", prompt="Hello"))
    assert run("-c", "--schema", "name, age int", says(REX)).stdout == f"{REX}\n"
    assert run("-c", "--schema", "name, age int", "Another").stdout == f"{REX}\n"
    run("-c", "And in words?")
    first, second, third, fourth = questions(server)
    assert first == says("Hi", prompt="Hello")
    assert second.startswith("[Instructions]\nA program reads your answer.")
    assert second.endswith(f"\n[End of instructions]\n\n{says(REX)}")
    assert third == "Another"
    assert "no JSON is wanted" in fourth
    assert only_conversation(server).preprompt == ""


def test_retried_answer_is_told_of_the_schema_when_it_is_wrong(server):
    run("-m", "hf-llama", says("Hi", REX))
    options = ["-c", "--schema", "name, age int"]
    assert run(*options, "", "-o", "retry", "true").stdout == f"{REX}\n"
    assert run(*options, "Another").stdout == f"{REX}\n"
    assert "no JSON document in it" in questions(server)[-2]
    assert questions(server)[-1] == "Another"


def test_retry_uses_the_schema_of_its_question(server):
    run("-m", "hf-llama", "--schema", "name, age int", says(f"Sure: {REX}"))
    assert run("-c", "", "-o", "retry", "true").stdout == f"{REX}\n"
    assert run("-c", "", "-o", "retry", "true").stdout == f"{REX}\n"
    assert "no system prompt" in failure("-c", "", "-o", "retry", "true", "-s", "Rhyme")
    assert len(sends(server)) == 3


def test_retry_wants_the_tools_of_its_question(server):
    tool = ["--functions", ADD]
    run("-m", "hf-llama", *tool, says(f"So. {call('add', a=2, b=3)}", "Five."))
    assert "the same -T and --functions" in failure("-c", "", "-o", "retry", "true")
    other = failure("-c", "", "-o", "retry", "true", "-T", "llm_version")
    assert "the same -T and --functions" in other
    assert run("-c", "", "-o", "retry", "true", *tool).stdout == "Five.\n"


@pytest.mark.parametrize("model", ["hf-deepseek", "hf-llama"])
def test_tags_in_a_string_of_the_document_stay(server, model):
    text = '{"xml": "<artifact name=\\"lib\\" type=\\"jar\\"/> <tool_call>{}</tool_call>"}'
    assert run("-m", model, "--schema", "xml str", says(text)).stdout == f"{text}\n"


def test_schema_multi(server):
    dogs = '{"items": [{"name": "Rex", "age": 4}, {"name": "Cleo", "age": 5}]}'
    prompt = says(f'{{"items": [{WRONG}]}}', f"Here: {dogs}")
    assert run("-m", "hf-llama", "--schema-multi", "name, age int", prompt).stdout == f"{dogs}\n"
    data = run("logs", "--schema-multi", "name, age int", "--data-key", "items").stdout
    assert [json.loads(line) for line in data.splitlines()] == [
        {"name": "Rex", "age": 4},
        {"name": "Cleo", "age": 5},
    ]


class Person(BaseModel):
    name: str
    friends: list[Person]


@both
def test_pydantic_class(server, ask):
    ann = Person(name="Ann", friends=[Person(name="Bob", friends=[])])
    response = ask(says(ann.model_dump_json(indent=2)), schema=Person)
    assert Person.model_validate_json(response.text()) == ann
    assert len(sends(server)) == 1


@both
def test_reasoning_stays_apart_also_when_repaired(server, ask):
    response = ask(says(f"<think>One</think>{WRONG}", f"<think>Two</think>{REX}"), schema=DOG)
    assert response.text() == REX
    assert reasoning(response) == "OneTwo"


@both
def test_document_comes_whole_over_a_broken_connection(server, ask):
    response = ask(f"{says(f'So: {REX}')} [[cut=2,3]]", schema=DOG)
    assert response.text() == REX
    assert len(sends(server)) == 1


def test_repair_sends_no_attachment_again(server, tmp_path):
    (tmp_path / "notes.txt").write_text("Rex is four")
    prompt = says(WRONG, REX)
    run("-m", "hf-llama", "--schema", "name, age int", prompt, "-a", str(tmp_path / "notes.txt"))
    assert [len(request.files) for request in sends(server)] == [1, 0]


def test_what_is_no_schema_is_refused_before_anything_is_sent(server):
    error = failure("-m", "hf-llama", "--schema", '{"type": "dog"}', "Hello")
    assert "That is not a JSON schema. $.type: 'dog' is not valid" in error
    assert not sends(server)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--schema", "name, age"], "does not support schemas"),
        (["-T", "llm_time"], "support tools"),
    ],
)
def test_models_for_one_purpose_offer_neither(server, options, words):
    error = failure("-m", "hf-llama-guard-4-12b", *options, "Hello")
    assert words in error
    assert not sends(server)


def test_what_a_model_offers_is_listed():
    listed = {model["model_id"]: model for model in json.loads(run("models", "--json").stdout)}
    general = listed["huggingchat/meta-llama/Llama-3.3-70B-Instruct"]
    guard = listed["huggingchat/meta-llama/Llama-Guard-4-12B"]
    assert (general["supports_schema"], general["supports_tools"]) == (True, True)
    assert (guard["supports_schema"], guard["supports_tools"]) == (False, False)


# --- tools ----------------------------------------------------------------------------


def call(name: str, **arguments: Any) -> str:
    text = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{text}\n</tool_call>"


def answered(name: str, content: Any) -> str:
    text = json.dumps({"name": name, "content": content})
    return f"<tool_response>\n{text}\n</tool_response>"


class Counted:
    """Tools that note with what they were called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def place_of(self, dog: str) -> str:
        """The place where a dog lives."""
        self.calls.append(("place_of", dog))
        return f"{dog}'s place"

    def key_of(self, place: str) -> dict[str, str]:
        """The key of a place."""
        self.calls.append(("key_of", place))
        if place == "nowhere":
            raise ValueError("no such place")
        return {"key": place}


Chain = Callable[..., list[llm.Response]]


def chain_sync(prompt: str | None, *, model: str = "hf-llama", **more: Any) -> list[llm.Response]:
    """The answers of a whole chain of calls."""
    chained = llm.get_model(model).chain(prompt, **more)
    chained.text()
    return list(chained._responses)


def chain_async(prompt: str | None, *, model: str = "hf-llama", **more: Any) -> list[llm.Response]:
    async def answers() -> list[llm.Response]:
        chained = llm.get_async_model(model).chain(prompt, **more)
        await chained.text()
        return [await response.to_sync_response() for response in chained._responses]

    return asyncio.run(answers())


both_chains = pytest.mark.parametrize(
    "chain", [pytest.param(chain_sync, id="sync"), pytest.param(chain_async, id="async")]
)

ADD = """
def add(a: int, b: int) -> int:
    "Add two numbers"
    return a + b
"""


def test_functions_on_the_command_line(server):
    prompt = says(f"I add.\n\n{call('add', a=2, b=3)}", "It is five.")
    result = run("-m", "hf-llama", "--functions", ADD, "--td", prompt)
    assert result.stdout == "I add. It is five.\n"
    assert "Tool call: add({'a': 2, 'b': 3})\n  5\n" in result.stderr
    assert questions(server) == [prompt, answered("add", "5")]
    assert '"description": "Add two numbers"' in only_conversation(server).preprompt
    assert run("-c", "More").stdout == "It is five.\n"
    assert len(server.conversations) == 1


def test_calls_and_results_are_in_the_logs(server):
    run("-m", "hf-llama", "--functions", ADD, says(f"So. {call('add', a=2, b=3)}", "Five."))
    asked, told = logged()
    (made,) = asked["tool_calls"]
    (result,) = told["tool_results"]
    assert (made["name"], made["arguments"]) == ("add", {"a": 2, "b": 3})
    assert (result["name"], result["output"]) == ("add", "5")
    assert made["tool_call_id"] == result["tool_call_id"]
    assert (asked["response"], told["response"]) == ("So.", "Five.")


@both_chains
def test_chain_of_calls_is_one_conversation(server, chain):
    tools = Counted()
    prompt = says(
        call("place_of", dog="Cleo"),
        f"Now the key. {call('key_of', place='Cleo')}",
        f"{call('key_of', place='a')}\n{call('key_of', place='nowhere')}",
        "Here.",
    )
    answers = chain(prompt, tools=[tools.place_of, tools.key_of])
    assert [answer.text() for answer in answers] == ["", "Now the key.", "", "Here."]
    assert tools.calls == [
        ("place_of", "Cleo"),
        ("key_of", "Cleo"),
        ("key_of", "a"),
        ("key_of", "nowhere"),
    ]
    results = [
        answered("place_of", "Cleo's place"),
        answered("key_of", {"key": "Cleo"}),
        answered("key_of", {"key": "a"}) + "\n\n" + answered("key_of", "Error: no such place"),
    ]
    assert questions(server) == [prompt, *results]
    assert tree(server, only_conversation(server).id) == {
        prompt: {results[0]: {results[1]: {results[2]: {}}}}
    }


@both
def test_calls_are_parts_of_the_answer(server, ask):
    tools = Counted()
    response = ask(says(f"One {call('place_of', dog='Rex')} two"), tools=[tools.place_of])
    assert response.text() == "One two"
    assert parts(response)[:2] == [
        {"type": "text", "text": "One two"},
        {"type": "tool_call", "name": "place_of", "arguments": {"dog": "Rex"}},
    ]
    assert [made.name for made in response.tool_calls()] == ["place_of"]
    assert tools.calls == []


@both_chains
def test_malformed_call_goes_back_to_the_model(server, chain):
    tools = Counted()
    broken = '<tool_call>{"name": "place_of", "arguments": {"dog": }}</tool_call>'
    prompt = says(broken, call("place_of", dog="Rex"), "There.")
    assert [answer.text() for answer in chain(prompt, tools=[tools.place_of])] == ["", "", "There."]
    assert tools.calls == [("place_of", "Rex")]
    _, error, result = questions(server)
    assert "This was no call: it is not valid JSON (Expecting value" in error
    assert result == answered("place_of", "Rex's place")


@both_chains
def test_unknown_tool_and_wrong_arguments_go_back_to_the_model(server, chain):
    tools = Counted()
    prompt = says(call("fly", to="Paris") + call("place_of", cat="Rex"), "So be it.")
    answers = chain(prompt, tools=[tools.place_of])
    assert answers[-1].text() == "So be it."
    _, results = questions(server)
    assert 'Error: tool \\"fly\\" does not exist' in results
    assert "unexpected keyword argument 'cat'" in results


@both_chains
@pytest.mark.parametrize("fault", ["[[cut=3]]", "[[cut=6,2]]", "[[cut=9,1]]", "[[split]]"])
def test_call_in_an_answer_that_was_cut_runs_once(server, chain, fault):
    tools = Counted()
    prompt = says(f"So. {call('place_of', dog='Rex')} Wait.", "There.")
    answers = chain(f"{prompt} {fault}", tools=[tools.place_of])
    assert [answer.text() for answer in answers] == ["So. Wait.", "There."]
    assert tools.calls == [("place_of", "Rex")]
    assert len(sends(server)) == 2


def test_other_tools_are_told_anew_and_no_tools_as_well(server):
    tools = Counted()
    model = llm.get_model("hf-llama")
    conversation = model.conversation()
    prompt = says(call("place_of", dog="Rex"), "There.", call("key_of", place="a"), "Here.", "So.")
    assert conversation.chain(prompt, tools=[tools.place_of]).text() == "There."
    assert conversation.chain("The key?", tools=[tools.key_of]).text() == "Here."
    assert conversation.prompt("And now?").text() == "So."
    assert conversation.prompt("And again?").text() == "So."
    asked = questions(server)
    assert asked[2].startswith("[Instructions]\nNow you can call these functions, and no others")
    assert '"name": "key_of"' in asked[2]
    assert '"name": "place_of"' not in asked[2]
    assert asked[2].endswith("\n\nThe key?")
    assert "cannot be called any more" in asked[4]
    assert asked[5] == "And again?"


def test_text_about_calls_is_text_where_there_are_no_tools(server):
    text = f"Write {call('add', a=1)} to call."
    assert run("-m", "hf-llama", says(text)).stdout == f"{text}\n"


class Shelf(llm.Toolbox):
    """Books on a shelf."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.books: list[str] = []

    def put(self, title: str) -> str:
        """Put a book on the shelf."""
        self.books.append(title)
        return f"{len(self.books)} on {self.name}"


@both_chains
def test_toolbox(server, chain):
    shelf = Shelf("oak")
    put = call("Shelf_put", title="Emma")
    assert chain(says(put, put, "Done."), tools=[shelf])[-1].text() == "Done."
    assert shelf.books == ["Emma", "Emma"]
    assert questions(server)[1:] == [
        answered("Shelf_put", "1 on oak"),
        answered("Shelf_put", "2 on oak"),
    ]


@both_chains
def test_attachments_that_tools_return_are_uploaded(server, chain):
    def notes() -> llm.ToolOutput:
        """My notes."""
        attachment = llm.Attachment(type="text/plain", content=b"Rex is four")
        return llm.ToolOutput(output="attached", attachments=[attachment])

    chain(says(call("notes"), "Four."), tools=[notes])
    first, second = sends(server)
    assert not first.files
    assert [content for _, _, content in second.files] == [b"Rex is four"]


def test_local_and_server_side_tools_together(server):
    tools = Counted()
    conversation = llm.get_model("hf-llama").conversation(tools=[WebSearch(), tools.place_of])
    assert "The tool said" in conversation.chain("Search [[tool]]").text()
    prompt = says("", call("place_of", dog="Rex"), "There.")
    assert conversation.chain(prompt).text() == "There."
    assert tools.calls == [("place_of", "Rex")]
    searched, called, told = cast("list[llm.Response]", conversation.responses)
    assert [part["type"] for part in parts(searched)][1:3] == ["tool_call", "tool_result"]
    assert not searched.tool_calls()
    assert [made.name for made in called.tool_calls()] == ["place_of"]
    assert told.prompt.tool_results
    selected = [_mapping(request.data)["selectedMcpServerNames"] for request in sends(server)]
    assert selected == [["Web Search (Exa)"]] * 3
    assert questions(server)[1:] == [prompt, answered("place_of", "Rex's place")]


@both_chains
def test_tools_first_and_then_the_document(server, chain):
    tools = Counted()
    prompt = says(
        f"I look first: {WRONG} {call('place_of', dog='Rex')}",
        f"{REX} {call('key_of', place='a')}",
        "Rex it is.",
        f"```json\n{REX}\n```",
    )
    answers = chain(prompt, tools=[tools.place_of, tools.key_of], schema=DOG)
    assert [answer.text() for answer in answers] == ["", "", REX]
    assert tools.calls == [("place_of", "Rex"), ("key_of", "a")]
    assert "there is no JSON document in it" in questions(server)[-1]


def test_tools_and_a_schema_on_the_command_line(server):
    prompt = says(f"I add. {call('add', a=2, b=2)}", f"So: {REX}")
    options = ["--functions", ADD, "--schema", "name, age int"]
    assert run("-m", "hf-llama", *options, prompt).stdout == f"{REX}\n"


def test_conversation_that_is_deleted_during_a_chain_goes_on_in_a_new_one(server):
    tools = Counted()
    prompt = says(call("place_of", dog="Rex"), prompt="Go")
    response = llm.get_model("hf-llama").prompt(prompt, tools=[tools.place_of])
    results = response.execute_tool_calls()
    server.conversations.clear()
    response.reply(tool_results=results).text()
    (asked,) = questions(server)
    assert asked.startswith(f"[Earlier messages]\n\nUser: {prompt}\n\nAssistant: [used the tool")
    assert "Tool: [the tool place_of returned: Rex's place]" in asked
    assert asked.endswith("Go on from there.")
    assert '"name": "place_of"' in only_conversation(server).preprompt


def test_reply_brings_the_results(server):
    tools = Counted()
    prompt = says(call("place_of", dog="Rex"), "There.")
    response = llm.get_model("hf-llama").prompt(prompt, tools=[tools.place_of])
    assert response.reply("And?").text() == "There."
    assert questions(server)[1] == answered("place_of", "Rex's place") + "\n\nAnd?"


def test_results_of_another_providers_calls_are_a_transcript(server):
    tools = Counted()
    first = llm.get_model("hf-llama").prompt(says("Hi", "There."))
    history = [user("Hello"), *first.messages(), user("Where is Rex?")]
    made = llm.parts.ToolCallPart(name="place_of", arguments={"dog": "Rex"}, tool_call_id="x")
    history += [llm.parts.assistant(made)]
    chained = llm.get_model("hf-llama").chain(messages=history, tools=[tools.place_of])
    assert chained.text() == "There."
    assert tools.calls == [("place_of", "Rex")]
    assert "Tool: [the tool place_of returned: Rex's place]" in questions(server)[1]


def test_evaluation_counts_what_held(server):
    import click.testing
    import evaluate

    options = ["hf-llama", "-n", "1", "--only", "flat", "--only", "no_call"]
    result = click.testing.CliRunner().invoke(evaluate.main, options)
    assert result.exit_code == 0
    assert "  flat             0 of 1\n" in result.stdout
    assert "  schemas in all   0 of 1\n" in result.stdout


def test_jsonschema_is_loaded_only_when_there_is_a_schema(server):
    code = """
import sys, llm
llm.get_model("hf-llama").prompt("Hello", tools=[len]).text()
assert "jsonschema" not in sys.modules
llm.get_model("hf-llama").prompt("[[say]]{}[[/say]]", schema={"type": "object"}).text()
assert "jsonschema" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@both
def test_artifact_in_an_argument_is_as_the_model_wrote_it(server: ChatUI, ask: TurnRequest) -> None:
    page = '<artifact identifier=\\"a\\" type=\\"html\\">\\n<p>\\n</artifact>'
    call = f'<tool_call>{{"name": "keep", "arguments": {{"text": "{page}"}}}}</tool_call>'

    def keep(text: str) -> str:
        return text

    response = ask(f"[[say]]{call}[[/say]]", tools=[keep])
    (tool_call,) = response.tool_calls()
    assert tool_call.arguments["text"] == '<artifact identifier="a" type="html">\n<p>\n</artifact>'
