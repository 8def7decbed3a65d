"""Conversations with a model that the server does not offer any more."""

import pytest
from chat_ui import ChatUI, Fault
from helpers import failure, run, sends

from llm_huggingchat import keep_catalogue, load_catalogue


def forget(url: str) -> None:
    """The Llama leaves the catalogue of a server."""
    models = load_catalogue(url).models
    keep_catalogue(url, [model for model in models if "Llama-3.3" not in model.id])


@pytest.fixture
def removed(server: ChatUI) -> ChatUI:
    """One question was put to a Llama, which then left the catalogue."""
    run("-m", "hf-llama-3.3-70b-instruct", "My name is Ada")
    forget(server.url)
    return server


def test_conversation_goes_on_with_another_model_as_the_error_says(removed):
    for arguments in (("-c",), ("-m", "huggingchat/meta-llama/Llama-3.3-70B-Instruct")):
        said = failure(*arguments, "Who am I?")
        assert "huggingchat/meta-llama/Llama-3.3-70B-Instruct is no longer offered by" in said
        assert "-m MODEL" in said
    assert len(sends(removed)) == 1
    assert run("-c", "-m", "hf-qwen", "Who am I?").stdout == "You said: Who am I?\n"
    assert len({request.path for request in sends(removed)}) == 1


def test_conversation_is_found_from_another_server(removed, monkeypatch):
    with ChatUI() as other:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", other.url)
        run("huggingchat", "refresh")
        forget(other.url)
        assert "You said" in run("-c", "-m", "hf-qwen", "Who am I?").stdout


def test_model_that_was_gone_before_the_first_refresh_is_known_from_its_prompt(server):
    server.faults["GET", "/api/v2/models"] = [Fault(status=404)]
    run("-m", "hf-llama-3.3-70b-instruct", "My name is Ada")
    server.faults.clear()
    server.models = [model for model in server.models if "Llama-3.3" not in model["id"]]
    run("huggingchat", "refresh")
    assert "is no longer offered by" in failure("-c", "Who am I?")
    assert run("-c", "-m", "hf-qwen", "Who am I?").stdout == "You said: Who am I?\n"
