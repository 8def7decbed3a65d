"""`llm huggingchat settings`: what the web page keeps for each model."""

from __future__ import annotations

import json
from typing import Any

import llm
import pytest
from chat_ui import SETTINGS, ChatUI, Fault
from helpers import calls, failure, run
from recorded import capture

import llm_huggingchat
from llm_huggingchat import (
    ModelInfo,
    ModelSettings,
    changed_account,
    keep_catalogue,
    parse_cookies,
    unwrap,
)

R1 = "deepseek-ai/DeepSeek-R1-0528"
LLAMA = "meta-llama/Llama-3.3-70B-Instruct"


@pytest.fixture
def login(server: ChatUI) -> ChatUI:
    """The server wants a login, which ada has."""
    server.login_required = True
    server.sessions = {"s-ada": ("ada", "t-ada")}
    cookies = parse_cookies("hf-chat=s-ada; token=t-ada")
    llm_huggingchat.keep_key(f"huggingchat:127.0.0.1:{server.port}", cookies.to_key())
    return server


def settings(*arguments: str) -> str:
    return str(run("huggingchat", "settings", *arguments).stdout)


def refused(*arguments: str) -> str:
    return failure("huggingchat", "settings", *arguments)


def of_account(server: ChatUI) -> dict[str, Any]:
    """What the server keeps for the one account that it has settings of."""
    (kept,) = server.settings.values()
    return kept


def posts(server: ChatUI) -> list[dict[str, Any]]:
    return [
        json.loads(r.body) for r in server.log if (r.method, r.path[-9:]) == ("POST", "/settings")
    ]


def test_all_three_are_set_and_shown(login: ChatUI) -> None:
    shown = settings(R1, "--reasoning-effort", "low", "--provider", "fastest", "--no-artifacts")
    for line in (f"huggingchat/{R1}", "reasoning effort: low", "provider: fastest"):
        assert line in shown
    assert "artifacts: off" in shown
    assert "web page" in shown
    assert login.settings["ada"]["reasoningEffortOverrides"] == {R1: "low"}
    assert login.settings["ada"]["providerOverrides"] == {R1: "fastest"}
    assert login.settings["ada"]["artifactsOverrides"] == {R1: False}
    assert settings(R1) == shown
    assert settings() == shown


def test_as_json(login: ChatUI) -> None:
    assert json.loads(settings("--json")) == []
    value = json.loads(settings(R1, "--artifacts", "--json"))
    wanted = {"model": f"huggingchat/{R1}", "reasoning_effort": None, "provider": None}
    assert value == wanted | {"artifacts": True}
    assert json.loads(settings("--json")) == [value]


def test_of_a_model_that_nobody_changed(login: ChatUI) -> None:
    shown = settings(R1)
    assert "reasoning effort: default" in shown
    assert "provider: auto" in shown
    assert "none, it does not reason" in settings(LLAMA)
    result = run("huggingchat", "settings")
    assert result.stdout == ""
    assert "no model has settings" in result.stderr
    assert login.settings == {}


@pytest.mark.parametrize("name", [f"huggingchat/{LLAMA}", LLAMA, "hf-llama-3.3-70b-instruct"])
def test_any_name_of_a_model_will_do(login: ChatUI, name: str) -> None:
    settings(name, "--no-artifacts")
    assert login.settings["ada"]["artifactsOverrides"] == {LLAMA: False}


def test_an_alias_of_ones_own(login: ChatUI) -> None:
    llm.set_alias("mine", f"huggingchat/{LLAMA}")
    settings("mine", "--no-artifacts")
    assert login.settings["ada"]["artifactsOverrides"] == {LLAMA: False}


def test_back_to_the_default(login: ChatUI) -> None:
    settings(R1, "--reasoning-effort", "high", "--provider", "novita")
    shown = settings(R1, "--reasoning-effort", "default", "--provider", "auto")
    assert "reasoning effort: default" in shown
    assert "provider: auto" in shown
    assert login.settings["ada"]["reasoningEffortOverrides"] == {}
    assert login.settings["ada"]["providerOverrides"] == {}


def test_all_else_of_the_account_stays(login: ChatUI) -> None:
    before = {
        "activeModel": LLAMA,
        "streamingMode": "raw",
        "directPaste": True,
        "shareConversationsWithModelAuthors": False,
        "customPrompts": {LLAMA: "Be brief"},
        "providerOverrides": {LLAMA: "together", R1: "novita"},
        "artifactsOverrides": {R1: False},
        "billingOrganization": "team",
    }
    login.settings["ada"] = dict(before)
    settings(R1, "--provider", "cheapest")
    after = login.settings["ada"]
    assert after["providerOverrides"] == {LLAMA: "together", R1: "cheapest"}
    untouched = before.keys() - {"providerOverrides"}
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
    assert after.keys() == SETTINGS.keys()


def test_prompt_that_was_recorded_is_sent_the_same() -> None:
    before, sent, after = capture("settings")[:3]
    id = "deepseek-ai/DeepSeek-V4-Pro-0813"
    changes: dict[str, str | bool | None] = {
        "reasoning_effort": "low",
        "provider": "fastest",
        "artifacts": False,
    }
    value = changed_account(unwrap(before.json()), id, changes)
    value.pop("welcomeModalSeenAt", None)
    assert value == json.loads(sent.sent)
    kept = unwrap(after.json())
    assert ModelSettings.of(id, kept) == ModelSettings("low", "fastest", False)
    assert ModelSettings.of("another", kept) == ModelSettings()
    assert changed_account(kept, id, dict.fromkeys(changes))["providerOverrides"] == {}


def test_a_model_that_does_not_reason(login: ChatUI) -> None:
    assert "does not reason" in refused(LLAMA, "--reasoning-effort", "high")
    assert posts(login) == []
    login.settings["ada"] = {"reasoningOverrides": {LLAMA: True}}  # the web page lets people say so
    assert "reasoning effort: high" in settings(LLAMA, "--reasoning-effort", "high")


def test_what_reasons_is_up_to_the_server_and_not_to_an_old_list(login: ChatUI) -> None:
    keep_catalogue(login.url, [ModelInfo(R1), ModelInfo(LLAMA, reasoning=True)])
    assert "reasoning effort: low" in settings(R1, "--reasoning-effort", "low")
    assert "does not reason" in refused(LLAMA, "--reasoning-effort", "low")


def test_a_provider_that_the_model_does_not_have(login: ChatUI) -> None:
    said = refused(R1, "--provider", "acme")
    assert "acme" in said
    assert "novita, together, fireworks-ai" in said
    assert posts(login) == []
    settings(R1, "--provider", "Fireworks-AI")
    assert login.settings["ada"]["providerOverrides"] == {R1: "fireworks-ai"}


def test_a_provider_where_the_server_does_not_tell_which_there_are(login: ChatUI) -> None:
    login.faults["GET", f"/api/v2/models/{R1}"] = [Fault(status=200, body=b'{"json": {}}')]
    assert "provider: acme" in settings(R1, "--provider", "acme")


def test_no_provider_for_a_router(login: ChatUI) -> None:
    assert "chooses a model for each message" in refused("hf-omni", "--provider", "novita")


def test_no_provider_on_a_server_that_is_not_huggingchat(login: ChatUI) -> None:
    config = b'{"json": {"PUBLIC_APP_ASSETS": "chatui"}}'
    login.faults["GET", "/api/v2/public-config"] = [Fault(status=200, body=config)]
    assert "no choice of providers" in refused(R1, "--provider", "fastest")
    assert posts(login) == []


def test_a_model_that_there_is_not(login: ChatUI) -> None:
    assert "names no model" in refused("hf-nothing")
    assert "names no model" in refused("nobody/nothing", "--artifacts")
    assert posts(login) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--artifacts"],
        ["--provider", "novita"],
        [R1, "--provider", "a b"],
        [R1, "--provider", ""],
        [R1, "--reasoning-effort", "most"],
    ],
)
def test_options_that_make_no_sense(login: ChatUI, arguments: list[str]) -> None:
    run("huggingchat", "settings", *arguments, status=2)
    assert calls(login) == []


def test_logged_out_nothing_is_read_or_written(login: ChatUI) -> None:
    login.sessions.clear()
    assert "llm huggingchat login" in refused(R1, "--artifacts")
    assert "llm huggingchat login" in refused()
    assert not any(path == "/api/v2/user/settings" for _, path in calls(login))


def test_without_logins_they_are_those_of_the_session_that_prompts_use(server: ChatUI) -> None:
    settings(LLAMA, "--no-artifacts")
    run("-m", "hf-llama", "hello")
    (conversation,) = server.conversations.values()
    assert server.settings[conversation.session]["artifactsOverrides"] == {LLAMA: False}
    assert of_account(server) == server.settings[conversation.session]


def test_a_server_that_has_none(login: ChatUI) -> None:
    login.faults["GET", "/api/v2/user/settings"] = [Fault(status=200, body=b'{"json": {}}')]
    assert "keeps no settings" in refused(R1, "--artifacts")
    older: dict[str, Any] = {name: {} for name in ("providerOverrides", "reasoningEffortOverrides")}
    login.faults["GET", "/api/v2/user/settings"] = [
        Fault(status=200, body=json.dumps({"json": older}).encode())
    ]
    assert "no such setting: artifacts" in refused(R1, "--artifacts")
    assert posts(login) == []


def test_words_of_the_server_move_no_cursor(login: ChatUI) -> None:
    login.settings["ada"] = {
        "providerOverrides": {R1: "no\x1b[2Jvita", "x\x1b[31m": "fastest"},
        "reasoningEffortOverrides": {R1: ["odd"]},
        "artifactsOverrides": {R1: "odd"},
    }
    shown = settings()
    assert "\x1b" not in shown
    assert "not there any more" in shown
    assert "artifacts: default" in shown
