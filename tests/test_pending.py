"""What an earlier turn has left: a run that goes on, another model, a conversation without use."""

from __future__ import annotations

import contextlib

import llm
import pytest
from chat_ui import ChatUI, Fault
from helpers import ask_sync, calls, described, only_conversation

from llm_huggingchat import TurnLock, reset

pytestmark = pytest.mark.usefixtures("quick")
TOKEN = "t-ada-0123456789"


async def leave_pending(response: llm.Response) -> None:
    """Let the run of an answer be one that is not known to be stored."""
    lock = TurnLock(described(response)["url"])
    await lock.acquire()
    lock.begin()
    lock.release(stored=False)


async def test_pending_run_is_asked_about_with_a_session_made_from_the_token(
    server: ChatUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.login_required, server.tokens[TOKEN] = True, "ada"
    monkeypatch.setenv("LLM_HUGGINGCHAT_KEY", f"token={TOKEN}")
    first = ask_sync("one")
    reset()  # as in a new process
    await leave_pending(first)
    before = len(server.log)
    assert ask_sync("two", after=first).text() == "You said: two"
    paths = [request.path for request in list(server.log)[before:]]
    stream = f"/conversation/{only_conversation(server).id}/stream"
    assert paths.index("/login") < paths.index(stream) < paths.index(stream.removesuffix("/stream"))


def test_model_that_was_chosen_on_the_web_page_is_changed_back_by_the_next_turn(
    server: ChatUI,
) -> None:
    first = ask_sync("one")
    ours = only_conversation(server).model
    only_conversation(server).model = "Qwen/Qwen3.6-27B"
    second = ask_sync("two", after=first)
    assert described(second)["model"] == "Qwen/Qwen3.6-27B"
    third = ask_sync("three", after=second)
    assert described(third)["model"] == ours
    assert [method for method, _ in calls(server)].count("PATCH") == 1


def test_message_that_is_too_large_leaves_no_conversation(server: ChatUI) -> None:
    with pytest.raises(llm.ModelError, match="The message is too large"):
        ask_sync("x" * (16 * 1024 * 1024))
    assert not server.conversations


@pytest.mark.parametrize("status", [401, 429, 503])
def test_message_that_may_have_arrived_is_not_deleted_when_looking_fails(
    server: ChatUI, status: int
) -> None:
    refusal = Fault(status=status, body=b'{"message": "no"}', content_type="application/json")
    server.faults["GET", "/api/v2/conversations/*"] = [refusal] * 9
    with contextlib.suppress(llm.ModelError):
        ask_sync("[[drop=after]] one")
    assert len(server.messages(only_conversation(server).id)) == 3
