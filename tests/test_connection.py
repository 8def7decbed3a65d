"""Broken connections: nothing lost, nothing sent twice, and an end in bounded time."""

import contextlib
import functools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import helpers as h
import llm
import pytest
from chat_ui import ChatUI, Fault
from curl_cffi.requests import AsyncSession

from llm_huggingchat import limits

pytestmark = pytest.mark.usefixtures("quick")
# No answer repeats its question, so that of an uncut run is the same.
MIXED = "[[tools]] [[delay=0.003]]"


CUTS = [
    "[[cut=0]]",
    "[[cut=5]]",
    "[[cut=3,1,0,2]]",
    "[[cut_bytes=777]]",
    "[[end=2]]",
    "[[cut=2]] [[gone]]",
    "[[noise]] [[split]] [[cut=3,1]]",
]
BROKEN = [
    (h.ask_sync, MIXED, CUTS),
    (h.ask_async, MIXED, ["[[cut=1]]", "[[cut=0,0,0]]", "[[end=0]]", "[[cut=1]] [[churn=1]]"]),
    (h.ask_async, MIXED, ["[[cut=2]] [[log_status=404]]", "[[cut=2]] [[log_status=502*2]]"]),
    (h.ask_async, MIXED, ["[[stall=2]]", "[[cut=1]] [[stall_resume=1]]"]),
    (h.ask_sync, "[[tools]]", [f"[[cut_bytes={size}]]" for size in range(0, 1400, 277)]),
    (h.ask_sync, MIXED, ["[[drop=after]]", "[[drop=before]]", "[[status_after=500]]"]),
    (h.ask_sync, "[[file]] [[tokens=6]]", [*CUTS[2:4], "[[cut=4,3]]", "[[split]]"]),
    (h.ask_sync, "[[unicode]]", CUTS[2:4]),
    (h.ask_async, "[[unstreamed]] [[say]]Rex is a dog[[/say]]", ["[[cut_bytes=60]]"]),
]


@functools.cache
def uncut(steering: str) -> list[dict[str, Any]]:
    """What a prompt gives when nothing breaks."""
    with ChatUI(store_delay=0) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_HUGGINGCHAT_URL", server.url)
        return tidy(h.ask_sync(steering, web_search=True))


def tidy(response: llm.Response) -> list[dict[str, Any]]:
    """The parts of an answer, without a file's address, which differs, and a last space."""
    found = h.parts(response)
    for part in found:
        if "text" in part:
            part["text"] = re.sub(r"\]\(\S+\)", "](…)", part["text"])
    found[-1]["text"] = found[-1]["text"].rstrip()  # chat-ui stores none
    return found


def one_message_each(server: ChatUI) -> bool:
    """Whether every conversation is one question, with one answer to it."""
    return all(
        [message["from"] for message in server.messages(id)] == ["system", "user", "assistant"]
        for id in server.conversations
    )


# --- cut in the middle of an answer ---------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "steering", "words"),
    [(ask, steering, words) for ask, steering, cuts in BROKEN for words in cuts],
)
def test_answer_is_that_of_an_uncut_run_and_the_message_is_sent_once(server, ask, steering, words):
    response = ask(f"{steering} {words}", web_search=True)
    assert tidy(response) == uncut(steering)
    assert one_message_each(server)
    assert len(server.runs) == 1
    (answer,) = server.messages(h.only_conversation(server).id, "assistant")
    assert h.kept(response)["message_id"] == answer["id"]


def test_log_that_cannot_be_had_for_good_is_an_error(server):
    for words, says in (
        ("[[log_status=401]]", "login"),
        ("[[log_status=403]]", "403"),
        ("[[log_status=500]]", "did not come back"),
        ("[[gone_incomplete]]", "/conversation/"),
        ("[[delete=1]]", "was deleted"),
    ):
        server.log.clear()
        with h.soon():
            said = h.error_of(h.ask_async, f"[[tokens=5]] [[cut=1]] {words}")
        (message,) = h.sends(server)
        assert says in said
        assert says == "login" or message.path in said
    assert server.stops == []


# --- stopped, or deleted, elsewhere ---------------------------------------------------


@h.both
@pytest.mark.parametrize("words", ["", "[[cut=2]] [[gone]]"])
def test_answer_that_was_stopped_on_the_web_page_is_marked(server, ask, words):
    """Also where it is read from the store."""
    with h.meanwhile(ask, f"[[tokens=100]] [[delay=0.01]] {words}") as answer:
        h.wait_for(lambda: any("w3" in run.text for run in server.all_runs))
        server.all_runs[0].stop()
        assert answer.result().text().startswith("w0 ")
        assert h.described(answer.result())["interrupted"] is True


def test_answer_of_a_conversation_that_is_deleted_meanwhile_is_given(server):
    with h.meanwhile(h.ask_sync, "[[tokens=20]] [[delay=0.01]]") as answer:
        h.wait_for(lambda: any(run.text for run in server.all_runs))
        server.conversations.clear()
        first = answer.result()
    assert first.text().endswith("w18 w19 ")
    assert server.conversations == {}
    h.ask_sync("two", after=first)
    (question,) = server.messages(h.only_conversation(server).id, "user")
    assert first.text().strip() in question["content"]  # nothing is lost for the model


# --- sending --------------------------------------------------------------------------


async def test_message_on_a_kept_connection_is_never_doubled(server):
    conversation = llm.get_async_model("hf-llama").conversation()
    line: dict[str, Any] = {}
    prompts = ["one", "two [[drop=after]]", "three [[drop=before]]", "four"]
    for prompt in prompts:
        if prompt == "four":
            server.down()
            server.up()
        assert await conversation.prompt(prompt).text() == f"You said: {prompt}"
    first, second, *_ = h.sends(server)
    assert first.connection == second.connection
    for prompt in reversed(prompts):
        line = {prompt: line}
    assert h.tree(server) == line


@pytest.mark.parametrize("status", [401, 503])
def test_message_that_may_have_arrived_is_not_deleted_when_looking_fails(server, status):
    refusal = Fault(status=status, body=b'{"message": "no"}', content_type="application/json")
    server.faults["GET", "/api/v2/conversations/*"] = [refusal] * 9
    with contextlib.suppress(llm.ModelError):
        h.ask_sync("[[drop=after]] one")
    assert len(server.messages(h.only_conversation(server).id)) == 3


def test_message_that_is_never_taken_is_given_up(server):
    said = h.error_of(h.ask_async, "[[drop=before*99]]")
    assert h.page(server) in said
    assert len(h.sends(server)) == limits.max_attempts
    assert server.messages(h.only_conversation(server).id, "user") == []


@pytest.mark.parametrize("done", [False, True], ids=["", "its answer was lost"])
@pytest.mark.parametrize("fault", [Fault(drop=True), Fault(status=503)], ids=["drop", "503"])
def test_creation_that_breaks_is_tried_again(server, fault, done):
    server.faults["POST", "/conversation"] = [replace(fault, done=done)]
    assert h.ask_async("hello").text() == "You said: hello"
    assert h.calls(server).count(("POST", "/conversation")) == 2
    assert len(h.sends(server)) == 1


def test_creation_that_stalls_is_an_error_and_not_made_twice(server, monkeypatch):
    monkeypatch.setattr(limits, "call_timeout", 0.3)
    server.faults["POST", "/conversation"] = [Fault(stall=True)]
    assert "did not answer" in h.error_of(h.ask_sync, "hello")
    assert h.calls(server) == [("POST", "/conversation")]


# --- the server goes away -------------------------------------------------------------


def while_streaming(server: ChatUI, ask: Callable[..., Any], *act: Callable[[], None]) -> Any:
    """Prompt for a long answer, and do something once the model has begun to speak."""
    with h.meanwhile(ask, "[[tokens=40]] [[delay=0.01]]") as answer:
        h.wait_for(lambda: any(run.streamed for run in server.all_runs))
        for step in act:
            step()
        return answer.result()


@h.both
def test_server_comes_back_in_the_middle(server, ask):
    response = while_streaming(server, ask, server.down, server.up)
    assert response.text() == "".join(f"w{number} " for number in range(40))
    assert one_message_each(server)


def test_what_was_printed_stays_when_the_server_goes(server):
    def prompt(text: str) -> Any:
        return h.run("-m", "hf-llama", text, status=1)

    with h.soon():
        shown = while_streaming(server, prompt, server.down)
    assert shown.stdout.startswith("w0 ")
    assert shown.stdout.endswith("\n")  # the error begins a line
    assert h.page(server) in shown.stderr
    assert len(shown.stderr.strip().splitlines()) <= 2


def test_call_has_one_limit_for_all_its_attempts(server, monkeypatch):
    monkeypatch.setattr(limits, "call_timeout", 0.4)
    server.faults["GET", "/api/v2/conversations"] = 9 * [Fault(delay=0.25, drop=True)]
    h.run("huggingchat", "conversations", status=1)
    assert 1 <= len([path for _, path in h.calls(server) if path == "/api/v2/conversations"]) <= 2


# --- what takes long and is no fault --------------------------------------------------


def logs_read(server: ChatUI) -> int:
    """How often a run's log was asked for."""
    return len([path for _, path in h.calls(server) if path.endswith("/stream")])


@pytest.mark.parametrize("words", ["", "[[cut_bytes=150]]"])
def test_thinking_is_not_silence(server, words, monkeypatch):
    """Neither on the stream nor on the log."""
    monkeypatch.setattr(limits, "reconnect_timeout", 0.4)
    prompt = f"{words} [[wait=0.7]]"
    assert h.ask_sync(prompt).text() == f"You said: {prompt}"
    assert logs_read(server) == bool(words)


def test_answer_may_take_longer_than_curl_gives_a_request(server, monkeypatch):
    """curl_cffi ends a request after 30 seconds unless told otherwise; here after 0.2."""
    make = AsyncSession.__init__

    def hasty(self: AsyncSession[Any], **options: Any) -> None:
        make(self, **options)
        self.timeout = 0.2

    monkeypatch.setattr(AsyncSession, "__init__", hasty)
    server.faults["POST", "/conversation"] = [Fault(delay=0.3)]
    assert h.ask_async("[[wait=0.4]]").text() == "You said: [[wait=0.4]]"
    assert len(h.sends(server)) == 1
    assert not logs_read(server)


def test_slow_upload_is_not_silence(monkeypatch):
    with ChatUI(store_delay=0, uplink=250_000) as server:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", server.url)
        file = llm.Attachment(type="text/plain", content=b"x" * 120_000)
        assert h.ask_sync("[[say]]Long.[[/say]]", attachments=[file]).text() == "Long."
        assert len(h.sends(server)) == 1
        assert not logs_read(server)
