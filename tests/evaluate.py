"""How well a model keeps to schemas and calls tools, both of which it is asked for in words.

    python tests/evaluate.py hf-llama hf-qwen hf-gpt-oss

asks each of these models, on the server that LLM_HUGGINGCHAT_URL names, for answers in forms of
growing difficulty and for chains of tool calls, three times each (-n), and prints how many of them
held. -v shows on standard error why others did not, --only NAME runs some of them. Nothing goes
into llm's logs; the conversations stay on the server. No test depends on it.
"""

import json
from collections.abc import Callable
from typing import Any

import click
import llm

Check = Callable[[llm.Model], bool]


# --- schemas, from easy to hard: a form holds if it says what is true -----------------

DOG = "name, age int"
TREE = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "children": {"type": "array", "items": {"$ref": "#"}},
    },
    "required": ["name", "children"],
}


def answer(model: llm.Model, prompt: str, schema: Any) -> Any:
    return json.loads(model.prompt(prompt, schema=schema).text())


def flat(model: llm.Model) -> bool:
    got = answer(model, "Cleo is a dog of five years.", llm.schema_dsl(DOG))
    return bool(got == {"name": "Cleo", "age": 5})


def items(model: llm.Model) -> bool:
    prompt = "Dogs: Cleo is 5, Pancakes is 4, Rex turned 12 today."
    got = answer(model, prompt, llm.schema_dsl(DOG, multi=True))
    ages = {dog["name"]: dog["age"] for dog in got["items"]}
    return ages == {"Cleo": 5, "Pancakes": 4, "Rex": 12}


def tree(model: llm.Model) -> bool:
    got = answer(model, "Ann has the sons Bob and Cid; Bob has the daughter Dee.", TREE)
    dee, cid = {"name": "Dee", "children": []}, {"name": "Cid", "children": []}
    return bool(got == {"name": "Ann", "children": [{"name": "Bob", "children": [dee]}, cid]})


# --- tools: what they tell can be known from nowhere else -----------------------------


def place_of(name: str) -> str:
    """The place where a dog lives, by the dog's name."""
    return {"Cleo": "the harbour", "Rex": "the mill"}[name]


def key_of(place: str) -> str:
    """The key that opens a place."""
    return {"the harbour": "key 17", "the mill": "key 4"}[place]


def word_of(key: str) -> str:
    """The word that is engraved on a key."""
    return {"key 17": "periwinkle", "key 4": "obsidian"}[key]


def chain(model: llm.Model, prompt: str, *tools: Any, schema: Any = None) -> tuple[str, list[str]]:
    """What a chain ends with, and the names of what it called."""
    called: list[str] = []

    def note_call(tool: llm.Tool, call: llm.ToolCall, result: llm.ToolResult) -> None:
        called.append(tool.name)

    chained = model.conversation().chain(
        prompt, tools=list(tools), schema=schema, after_call=note_call, chain_limit=8
    )
    return [response.text() for response in chained.responses()][-1], called


def no_call(model: llm.Model) -> bool:
    text, called = chain(model, "What is 2 + 2? Only the number.", place_of)
    return "4" in text and not called


def three_in_a_row(model: llm.Model) -> bool:
    prompt = "Which word is on the key of the place where Cleo lives?"
    text, called = chain(model, prompt, word_of, key_of, place_of)
    return "periwinkle" in text and called == ["place_of", "key_of", "word_of"]


def tools_then_json(model: llm.Model) -> bool:
    prompt = "Where does the dog Rex live?"
    text, _ = chain(model, prompt, place_of, schema=llm.schema_dsl("place"))
    return "mill" in json.loads(text)["place"]


CHECKS: dict[str, tuple[Check, ...]] = {
    "schemas": (flat, items, tree),
    "tools": (no_call, three_in_a_row, tools_then_json),
}


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("-n", "times", default=3, show_default=True, help="How often each is asked")
@click.option("--only", multiple=True, help="Only what has this in its name")
@click.option("-v", "--verbose", is_flag=True, help="Why others did not hold")
def main(models: tuple[str, ...], times: int, only: tuple[str, ...], verbose: bool) -> None:
    """Ask MODELS, and print how many answers held."""
    for name in models:
        model = llm.get_model(name)
        click.echo(f"{name} ({model.model_id})")
        for group, checks in CHECKS.items():
            asked = [c for c in checks if not only or any(word in c.__name__ for word in only)]
            total = 0
            for check in asked:
                held = sum(holds(check, model, verbose) for _ in range(times))
                total += held
                click.echo(f"  {check.__name__:16} {held} of {times}")
            click.echo(f"  {group + ' in all':16} {total} of {times * len(asked)}")


def holds(check: Check, model: llm.Model, verbose: bool) -> bool:
    """Whether an answer holds. What keeps every answer from coming is raised."""
    why = "it is not what is true"
    try:
        if check(model):
            return True
    except llm.NeedsKeyException:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    if verbose:
        click.echo(f"  {check.__name__}: {why}", err=True)
    return False


if __name__ == "__main__":
    main()
