"""`llm huggingchat status`, `models`, `refresh` and `settings`, and what all commands have."""

import json
import time
import uuid

import pytest
from chat_ui import SETTINGS, Fault
from cli import NO_ID, command, refused
from helpers import COOKIES, LLAMA, SESSION, TOKEN, calls, host, run, use

import llm_huggingchat

R1 = "deepseek-ai/DeepSeek-R1-0528"

pytestmark = pytest.mark.usefixtures("person")


def test_status_of_someone_logged_in(logged_in):
    shown = command("status").stdout
    for words in (
        logged_in.url,
        "Logged in: ada",
        f"llm keys (huggingchat:{host(logged_in)})",
        f"Models: {len(logged_in.models)} (refreshed just now)",
    ):
        assert words in shown
    state = json.loads(command("status", "--json").stdout)
    assert (state["ok"], state["user"], state["reason"]) == (True, "ada", None)


def test_status_fails_where_prompts_would(logged_in, monkeypatch):
    logged_in.sessions.clear()
    logged_in.tokens.clear()
    assert "expired" in refused("status")
    state = json.loads(run("huggingchat", "status", "--json", status=1).stdout)
    assert (state["ok"], state["user"]) == (False, None)
    assert "llm huggingchat login" in state["reason"]
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", "http://example.org/chat")
    assert "use https" in refused("status")
    monkeypatch.delenv("LLM_HUGGINGCHAT_URL")
    result = run("huggingchat", "status", status=1)  # the service, without a key
    assert llm_huggingchat.SERVICE in result.stdout
    assert "requires a login" in result.stderr


def test_status_renews_the_session_and_says_how_old_it_is(accounts):
    use(accounts, json.dumps({"token": TOKEN, "hf-chat": str(uuid.UUID(int=1))}))
    shown = command("status").stdout
    assert "Logged in: ada" in shown
    assert "session made just now" in shown
    since = time.time() - 3 * 86_400 - 60
    use(accounts, json.dumps({"hf-chat": SESSION, "token": TOKEN, "since": since}))
    assert "session made 3 days ago" in command("status").stdout
    assert json.loads(command("status", "--json").stdout)["session_time"] == since
    use(accounts, COOKIES)
    assert "session" not in command("status").stdout


def test_refresh_says_what_changed_and_leaves_out_what_cannot_be_used(server):
    odd = [{"id": "own/a b@c%[x]"}, {"id": "own/esc\x1b[31m"}, {"id": ""}]
    server.models = [*server.models, server.models[1] | {"id": "home/Grown-1B"}, *odd]
    shown = command("refresh").stdout
    assert "\x1b" not in shown
    assert "Added: huggingchat/home/Grown-1B\n" in shown
    assert "Added: huggingchat/own/a b@c%[x]\n" in shown
    assert "Removed: huggingchat/nvidia/" in shown
    assert shown.endswith(f"\n{len(server.models) - 2} models on {host(server)}.\n")
    assert "own/a b@c%[x]" in command("models", "-q", "own/").stdout
    assert "nothing changed" in command("refresh").stdout


def test_list_of_models_may_be_longer_than_the_service_s(server):
    about = {"description": "words " * 100}
    server.models = [server.models[1] | about | {"id": f"own/m-{n}"} for n in range(250)]
    assert "250 models on" in command("refresh").stdout


def test_models_are_listed_without_a_request(server):
    result = command("models")
    assert "huggingchat/omni (hf-omni): images, tools, artifacts, router\n" in result.stdout
    assert "built-in" in result.stderr
    models = {model["id"]: model for model in json.loads(command("models", "--json").stdout)}
    assert models[f"huggingchat/{LLAMA}"]["aliases"] == ["hf-llama-3.3-70b-instruct"]
    gpt = models["huggingchat/openai/gpt-oss-120b"]
    assert gpt["aliases"] == ["hf-gpt-oss", "hf-gpt-oss-120b"]
    assert gpt["artifacts"] is True
    assert models["huggingchat/omni"]["router"] is True
    assert server.log == []


@pytest.mark.parametrize("query", ["-q hf-coder", "-q qwen -q vl", "-q nothing"])
def test_models_are_filtered_as_llm_does(server, query):
    command("refresh")

    def names(lines: str) -> list[str]:
        return [line.partition(" (")[0] for line in lines.splitlines()]

    ours = names(command("models", *query.split()).stdout)
    theirs = names(run("models", "list", *query.split()).stdout)
    assert ours == [n.removeprefix("HuggingChat: ") for n in theirs if n.startswith("Hugging")]
    listed = json.loads(command("models", "--json", *query.split()).stdout)
    assert [model["id"] for model in listed] == ours


def settings(*arguments: str) -> str:
    return str(command("settings", *arguments).stdout)


def test_all_three_settings_are_set_and_shown(logged_in):
    shown = settings(R1, "--reasoning-effort", "low", "--provider", "fastest", "--no-artifacts")
    chosen = "reasoning effort: low", "provider: fastest", "artifacts: off"
    for words in (f"huggingchat/{R1}", *chosen, "web page"):
        assert words in shown
    kept = logged_in.settings["ada"]
    assert kept["reasoningEffortOverrides"] == {R1: "low"}
    assert kept["providerOverrides"] == {R1: "fastest"}
    assert kept["artifactsOverrides"] == {R1: False}
    assert settings(R1) == settings() == shown


def test_all_else_of_the_account_stays(logged_in):
    before = {
        "streamingMode": "raw",
        "directPaste": True,
        "shareConversationsWithModelAuthors": False,
        "customPrompts": {LLAMA: "Be brief"},
        "providerOverrides": {LLAMA: "together", R1: "novita"},
        "billingOrganization": "team",
    }
    logged_in.settings["ada"] = {**before, "activeModel": None}
    settings(R1, "--provider", "cheapest")
    after = logged_in.settings["ada"]
    assert after["providerOverrides"] == {LLAMA: "together", R1: "cheapest"}
    untouched = before.keys() - {"providerOverrides"}
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
    assert after.keys() == SETTINGS.keys() - {"activeModel"}  # null is refused
    logged_in.sessions.clear()  # who is not logged in gets the defaults
    settings(R1, "--provider", "fastest")
    assert logged_in.settings["ada"]["customPrompts"] == {LLAMA: "Be brief"}


def test_settings_that_make_no_sense_or_are_not_taken_are_refused(logged_in):
    assert "has no provider 'a b'" in refused("settings", R1, "--provider", "a b")
    for arguments in (["--artifacts"], [R1, "--reasoning-effort", "most"]):
        run("huggingchat", "settings", *arguments, status=2)
    assert ("POST", "/api/v2/user/settings") not in calls(logged_in)
    ignored = Fault(status=200, body=b'{"json": null}', content_type="application/json")
    logged_in.faults["POST", "/api/v2/user/settings"] = [ignored]
    assert "did not save the settings" in refused("settings", R1, "--no-artifacts")


def test_answer_of_another_server_is_not_taken_for_an_expired_login(logged_in):
    page = Fault(status=200, body=b"<p>Welcome to this Wi-Fi</p>", content_type="text/html")
    for arguments in (["status"], ["settings"]):
        logged_in.faults["GET", "/api/v2/user"] = [page]
        assert "not a chat-ui server's" in refused(*arguments)


def test_every_command_has_help_and_examples():
    shown = run("huggingchat", "--help").stdout
    names = [line.split()[0] for line in shown.partition("Commands:\n")[2].splitlines()]
    assert names[:3] == ["login", "logout", "status"]  # in the order of their use
    for name in names:
        help = run("huggingchat", name, "--help").stdout
        assert "\n  Examples:\n" in help
        assert f"llm huggingchat {name}" in help


def test_command_of_someone_logged_out_says_so(accounts):
    """Logged out, the server shows an empty list; that is not the reason."""
    file = f"{accounts.url}/conversation/{NO_ID}/output/abc"
    for words in ("conversations", "import --all", f"download {file}", f"rename {NO_ID} x"):
        assert "requires a login" in refused(*words.split())
    for name in ("import", "share", "delete --yes", "export", "artifacts"):
        assert "requires a login" in refused(*name.split(), NO_ID)


def test_commands_renew_the_session(accounts):
    use(accounts, json.dumps({"token": TOKEN}))
    run("-m", "hf-llama", "hello")
    (id,) = accounts.conversations
    for words in (
        "conversations",
        f"rename {id} Changed",
        f"export {id}",
        f"share {id}",
        "import --all",
        f"import {id}",
        f"delete {id} --yes",
    ):
        accounts.sessions.clear()
        shown = command(*words.split()).output
        assert words != "conversations" or id in shown
    assert accounts.conversations == {}


def test_logs_that_cannot_be_used_are_told(logged_in, user_path):
    (user_path / "logs.db").write_bytes(b"not a database" * 100)
    assert "llm's logs" in refused("import", NO_ID)
