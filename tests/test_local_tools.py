"""Tools of one's own, which the model calls in words: chains, results, and calls that fail."""

import json
from typing import Any, cast

import click.testing
import evaluate
import llm
import pytest
from helpers import failure, logged, only_conversation, parts, run, sends, tree
from test_schemas import DOG, REX, WRONG, questions, says

from llm_huggingchat import WebSearch

ADD = """
def add(a: int, b: int) -> int:
    "Add two numbers"
    return a + b
"""


def call(name: str, **arguments: Any) -> str:
    """A call, as the model is told to write it."""
    text = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{text}\n</tool_call>"


def answered(name: str, content: Any) -> str:
    """What a call gave, as the model gets it."""
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


def chain(prompt: str, **more: Any) -> list[str]:
    """The answers of a whole chain of calls."""
    answers = llm.get_model("hf-llama").chain(prompt, **more).responses()
    return [answer.text() for answer in answers]


def test_functions_on_the_command_line(server):
    prompt = says(f"I add.\n\n{call('add', a=2, b=3)}", "It is five.")
    result = run("-m", "hf-llama", "--functions", ADD, "--td", prompt)
    assert result.stdout == "I add. It is five.\n"
    assert "Tool call: add({'a': 2, 'b': 3})\n  5\n" in result.stderr
    assert questions(server) == [prompt, answered("add", "5")]
    assert '"description": "Add two numbers"' in only_conversation(server).preprompt
    asked, told = logged()
    (made,), (given,) = asked["tool_calls"], told["tool_results"]
    assert (made["name"], made["arguments"]) == ("add", {"a": 2, "b": 3})
    assert (given["name"], given["output"]) == ("add", "5")
    assert made["tool_call_id"] == given["tool_call_id"]
    assert (asked["response"], told["response"]) == ("I add.", "It is five.")
    retry = ("-c", "", "-o", "retry", "true")
    assert "Give the same -T and --functions" in failure(*retry)
    assert run(*retry, "--functions", ADD).stdout == "It is five.\n"
    assert questions(server) == [prompt, answered("add", "5")]
    assert run("-c", "More").stdout == "It is five.\n"
    assert len(server.conversations) == 1


def test_chain_of_calls_is_one_conversation(server):
    tools = Counted()
    prompt = says(
        call("place_of", dog="Cleo"),
        f"Now the key. {call('key_of', place='Cleo')}",
        f"{call('key_of', place='a')}\n{call('key_of', place='nowhere')}",
        "Here.",
    )
    answers = chain(prompt, tools=[tools.place_of, tools.key_of])
    assert answers == ["", "Now the key.", "", "Here."]
    assert tools.calls[:2] == [("place_of", "Cleo"), ("key_of", "Cleo")]
    assert tools.calls[2:] == [("key_of", "a"), ("key_of", "nowhere")]
    results = [
        answered("place_of", "Cleo's place"),
        answered("key_of", {"key": "Cleo"}),
        answered("key_of", {"key": "a"}) + "\n\n" + answered("key_of", "Error: no such place"),
    ]
    assert questions(server) == [prompt, *results]
    assert tree(server, only_conversation(server).id) == {
        prompt: {results[0]: {results[1]: {results[2]: {}}}}
    }


def test_attachments_that_tools_return_are_uploaded(server):
    def notes() -> llm.ToolOutput:
        """My notes."""
        attachment = llm.Attachment(type="text/plain", content=b"Rex is four")
        return llm.ToolOutput(output="attached", attachments=[attachment])

    chain(says(call("notes"), "Four."), tools=[notes])
    first, second = sends(server)
    assert not first.files
    assert [content for _, _, content in second.files] == [b"Rex is four"]


def test_malformed_call_goes_back_to_the_model(server):
    tools = Counted()
    wrong = '<tool_call>{"name": "place_of", "arguments": {"dog": }}</tool_call>'
    prompt = says(wrong, call("place_of", dog="Rex"), "There.")
    assert chain(prompt, tools=[tools.place_of]) == ["", "", "There."]
    assert tools.calls == [("place_of", "Rex")]
    _, error, result = questions(server)
    assert error.startswith("<tool_response>")
    assert '"error": ' in error
    assert result == answered("place_of", "Rex's place")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ["[[cut=3]]", "[[cut=6,2]]", "[[cut=9,1]]", "[[split]]"])
def test_call_in_an_answer_that_was_cut_runs_once(server, fault):
    tools = Counted()
    prompt = says(f"So. {call('place_of', dog='Rex')} Wait.", "There.")
    answers = chain(f"{prompt} {fault}", tools=[tools.place_of])
    assert answers == ["So. Wait.", "There."]
    assert tools.calls == [("place_of", "Rex")]
    assert len(sends(server)) == 2


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
    names = [(request.data or {})["selectedMcpServerNames"] for request in sends(server)]
    assert names == [["Web Search (Exa)"]] * 3
    assert questions(server)[1:] == [prompt, answered("place_of", "Rex's place")]


def test_tools_first_and_then_the_document(server):
    tools = Counted()
    prompt = says(
        f"I look first: {WRONG} {call('place_of', dog='Rex')}",
        f"{REX} {call('key_of', place='a')}",
        "Rex it is.",
        f"```json\n{REX}\n```",
    )
    answers = chain(prompt, tools=[tools.place_of, tools.key_of], schema=DOG)
    assert answers == ["", "", REX]
    assert tools.calls == [("place_of", "Rex"), ("key_of", "a")]
    assert "no JSON document" in questions(server)[-1]


def test_call_in_an_answer_that_was_asked_for_again_runs(server):
    tools = Counted()
    prompt = says(WRONG, call("place_of", dog="Rex"), REX)
    assert chain(prompt, tools=[tools.place_of], schema=DOG)[-1] == REX
    assert tools.calls == [("place_of", "Rex")]


def test_tools_are_told_again_where_the_conversation_was_deleted(server):
    conversation = llm.get_model("hf-llama").conversation(tools=[Counted().place_of])
    conversation.prompt("one").text()
    server.conversations.clear()
    conversation.prompt("two").text()
    assert '"name": "place_of"' in only_conversation(server).preprompt


def test_evaluation_counts_what_held(server):
    options = ["hf-llama", "-n", "1", "--only", "flat", "--only", "no_call"]
    result = click.testing.CliRunner().invoke(evaluate.main, options)
    assert result.exit_code == 0
    assert "  flat             0 of 1\n" in result.stdout
    assert "  schemas in all   0 of 1\n" in result.stdout
