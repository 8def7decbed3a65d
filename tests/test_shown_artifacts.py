"""Artifacts in answers: fences with a title, whatever is in them and however they come."""

import pytest
from chat_ui import ChatUI
from helpers import ask_async, both, run
from markdown_it import MarkdownIt
from pure.test_artifacts import CLOCK, PAGE
from test_schemas import says

FENCE = "`" * 16
WRITES = "hf-deepseek"  # a model that writes artifacts


@pytest.fixture
def server(server: ChatUI, quick: None) -> ChatUI:
    for model in server.models:
        model["supportsArtifacts"] = model["supportsReasoning"]
    return server


@pytest.mark.parametrize("fault", ["", "[[split]]", "[[noise]]", "[[cut=5,2]]", "[[cut=11]]"])
@both
def test_artifact_is_a_title_and_a_fence(server, ask, fault):
    text = ask(f"{says(f'Here. {CLOCK} Open it.')} {fault}", model=WRITES).text()
    assert text == f"Here. \n\n**A clock** (`clock`)\n\n{FENCE}html\n{PAGE}\n{FENCE}\n\nOpen it."


def test_first_artifact_is_what_llm_extracts(server):
    assert run("-m", WRITES, "-x", says(f"Here. {CLOCK} Open it.")).stdout.strip() == PAGE


def test_answer_that_ends_in_an_error_ends_its_fence(server):
    faults = "[[cut=14]] [[gone_incomplete]]"
    result = run("-m", WRITES, f"{says(f'{CLOCK} and so on')} {faults}", status=1)
    tokens = MarkdownIt("commonmark").parse(result.stdout)
    (fence,) = [token for token in tokens if token.type == "fence"]
    assert (fence.info, fence.content[:9]) == ("html", "<!doctype")
    assert result.stdout.rstrip().endswith(f"\n{FENCE}")
    assert "broke off" in result.stderr


def test_tags_of_a_model_that_writes_no_artifacts_stay(server):
    for text in ('<artifact name="lib" type="jar"/>', CLOCK):
        assert ask_async(says(f"So: {text} Done.")).text() == f"So: {text} Done."


@pytest.mark.parametrize("way", [(), ("--async",), ("--no-stream",)], ids=" ".join)
def test_answer_that_is_reasoning_alone_is_said_to_be_that(server, way):
    result = run("-m", WRITES, "-R", *way, says("<think>hm</think>"))
    assert result.stdout.strip() == ""
    assert "reasoning" in result.stderr
