"""`llm huggingchat import`: conversations of the web in llm's logs."""

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import llm
import pytest
import sqlite_utils
from chat_ui import ChatUI, Fault
from cli import LLAMA, Web, ask, command, refused, thread_of
from helpers import calls, logged, only_conversation, run, seen, wait_for
from llm.logs import LogStore

pytestmark = pytest.mark.usefixtures("person")


def store() -> LogStore:
    return LogStore(sqlite_utils.Database(os.environ["LLM_USER_PATH"] + "/logs.db"))


def said(thread: str) -> list[str]:
    """What the messages of a thread say."""
    return [
        "".join(getattr(part, "text", "") for part in message.parts)
        for message in store().thread_messages(thread)
    ]


def test_import_of_a_branch_with_reasoning_and_tools(logged_in):
    web = Web(logged_in)
    id = web.begin("[[title=A quest]] one", preprompt="Be brief.")
    first = logged_in.messages(id)[-1]["id"]
    web.say(id, "[[reason]] [[tool]] old branch", first, tools=True)
    newest = web.say(id, "[[reason]] [[tool]] new branch", first, tools=True)

    result = command("import", id)
    assert result.stdout.endswith("  2 turns added: A quest\n")
    one, two = logged()
    assert one["system"] == "Be brief."
    assert one["conversation_name"] == "A quest"
    assert two["prompt"] == "[[reason]] [[tool]] new branch"
    assert "first page" in two["response"]
    assert "think" not in two["response"]
    assert two["reasoning"]
    (call,), (returned,) = two["tool_calls"], two["tool_results"]
    assert call["name"] == returned["name"] == "web_search_exa"
    assert "first page" in returned["output"]
    assert two["response_json"]["huggingchat"]["message_id"] == newest
    assert two["resolved_model"] == LLAMA
    stored = datetime.fromisoformat(logged_in.messages(id)[-1]["createdAt"])
    assert datetime.fromisoformat(two["datetime_utc"]) == stored
    assert [row["id"] for row in logged("-q", "branch")] == [two["id"]]
    assert "0 turns added" in command("import", id).stdout
    assert len(logged()) == 2
    ids = [row["id"] for row in logged()]
    os.remove(os.environ["LLM_USER_PATH"] + "/logs.db")
    command("import", id)
    assert [row["id"] for row in logged()] == ids  # so two imports at a time log it once

    assert "A quest]] one" in ask("-c", "[[history]] three")
    assert logged_in.messages(id)[-2]["ancestors"][-1] == newest

    result = command("import", "--branches", id)
    assert result.stdout.endswith("  1 turn added: A quest\n")
    fork = store().db["threads"].get(thread_of(result))
    assert fork["forked_from"] == two["conversation_id"]
    assert "old branch" in ask("--cid", thread_of(result), "[[history]] four")
    assert "0 turns added" in command("import", "--branches", id).stdout
    assert len(logged()) == 5
    assert not store().verify()


def test_import_of_all_branches_at_once(logged_in):
    web = Web(logged_in)
    id = web.begin("one")
    root, _, first = (message["id"] for message in logged_in.messages(id))
    for text, after in (("two", first), ("deux", first), ("uno", root), ("zwei", first)):
        web.say(id, text, after)
    result = command("import", "--branches", id)
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["2", "1", "1", "1"]
    assert sorted(row["prompt"] for row in logged()) == ["deux", "one", "two", "uno", "zwei"]
    chains = [("one", "zwei"), ("uno",), ("one", "deux"), ("one", "two")]
    for number, chain in enumerate(chains):
        told = seen(ask("--cid", thread_of(result, number), "[[history]]"))
        assert tuple(text for role, text in told[:-1] if role == "user") == chain


def test_import_adds_to_what_began_in_llm(logged_in):
    """Turns made on the web go on in the same thread; a branch of the web forks off."""
    ask("-m", "hf-llama", "one")
    id = only_conversation(logged_in).id
    web = Web(logged_in)
    first = logged_in.messages(id)[-1]["id"]
    web.say(id, "two, on the web")
    result = command("import")  # the latest in the logs
    assert "1 turn added" in result.stdout
    assert [row["prompt"] for row in logged("-c")] == ["one", "two, on the web"]
    ask("-c", "three")
    web.say(id, "other two, on the web", first)
    assert thread_of(command("import", thread_of(result))) != thread_of(result)
    assert "two, on the web" not in ask("-c", "[[history]]").replace("other two", "")
    assert [row["prompt"] for row in logged()] == [
        "one", "two, on the web", "three", "other two, on the web", "[[history]]"
    ]  # fmt: skip
    assert "0 turns added" in command("import", "--all", "--branches").stdout


def test_import_of_two_new_branches_off_one_logged_answer(logged_in):
    ask("-m", "hf-llama", "one")
    thread = logged()[0]["conversation_id"]
    id = only_conversation(logged_in).id
    first = logged_in.messages(id)[-1]["id"]
    for text in ("older", "newer"):
        Web(logged_in).say(id, text, first)
    result = command("import", "--branches", id)
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["1", "1"]
    assert thread_of(result) == thread  # the newest goes on where the logs end
    for line, text in enumerate(("newer", "older")):
        assert said(thread_of(result, line))[::2] == ["one", text]
    assert not store().verify()
    assert "0 turns added" in command("import", "--branches", id).stdout


def test_import_finds_a_turn_whose_message_id_was_not_known(logged_in):
    ask("-m", "hf-llama", "one [[nofetch]]")
    conversation = only_conversation(logged_in)
    conversation.words.clear()
    Web(logged_in).say(conversation.id, "two")
    assert "1 turn added" in command("import", conversation.id).stdout
    assert [row["prompt"] for row in logged()] == ["one [[nofetch]]", "two"]


def test_import_of_a_shared_link_copies_it_once(logged_in):
    bob = Web(logged_in, "hf-chat=s-bob; token=t-bob")
    id = bob.begin("[[title=Bob's]] his question")
    link = bob.share(id)
    assert "1 turn added: Bob's" in command("import", link).stdout
    assert "0 turns added" in command("import", link, f"{link}?x=1").stdout
    assert "his question" in ask("-c", "[[history]] mine")
    assert len(logged_in.messages(id)) == 3  # bob's own is as it was
    copies = [c for c in logged_in.conversations.values() if c.session == "ada"]
    assert [len(copy.messages) for copy in copies] == [5]
    assert calls(logged_in).count(("POST", "/api/v2/conversations/import-share")) == 1
    assert "o such conversation" in refused("import", f"{logged_in.url}/r/nowhere")


@pytest.mark.parametrize("fault", [Fault(drop=True, done=True), Fault(status=502, done=True)])
def test_shared_link_is_not_copied_twice_where_the_answer_is_lost(logged_in, fault):
    bob = Web(logged_in, "hf-chat=s-bob; token=t-bob")
    link = bob.share(bob.begin("his question"))
    logged_in.faults["POST", "/api/v2/conversations/import-share"] = [fault]
    refused("import", link)
    assert [c.session for c in logged_in.conversations.values()].count("ada") == 1


def test_shared_link_that_no_account_has_a_copy_of_is_not_continued_there(server):
    web = Web(server, "hf-chat=s-bob")
    command("import", web.share(web.begin("his question")))
    result = run("-c", "[[history]] mine")
    assert "his question" in result.stdout
    assert result.stderr == ""


def test_import_names_files_as_attachments_and_asks_nobody_for_them(logged_in):
    web = Web(logged_in)
    id = web.begin()
    for content in ("aGVsbG8=", "aGVsbG8h"):
        web.say(id, "what is in it? [[file]]", file=content)
    del logged_in.conversations[id].messages[-2]["files"][0]["mime"]
    command("import", id)
    page = f"{logged_in.url}/conversation/{id}/output/"
    for row, type in zip(logged(), ("text/plain", "application/octet-stream"), strict=True):
        (attachment,) = row["attachments"]
        assert attachment["type"] == type
        assert attachment["url"].startswith(page)
        assert page in row["response"]  # the picture in the answer
    assert not any("/output/" in request.path for request in logged_in.log)


def test_import_interrupted_and_started_again(logged_in, monkeypatch):
    for n in range(5):
        Web(logged_in).begin(f"question {n}", "and then?")
    log, turns = LogStore.log, iter(range(99))

    def interrupted(store: LogStore, response: Any, thread_id: str | None = None) -> str:
        if next(turns) == 5:  # half-way through the third conversation
            raise KeyboardInterrupt
        return log(store, response, thread_id)

    with monkeypatch.context() as patch:
        patch.setattr(LogStore, "log", interrupted)
        assert "Aborted!" in run("huggingchat", "import", "--all", status=1).stderr
    assert len(logged()) == 4
    assert command("import", "--all").stdout.count("2 turns added") == 3
    questions = [f"question {n}" for n in range(5)]
    assert sorted(row["prompt"] for row in logged()) == ["and then?"] * 5 + questions
    assert command("import", "--all").stdout.count(" 0 turns added") == 5


def stored(server: ChatUI, *messages: dict[str, Any], **more: Any) -> str:
    """A conversation of ada's as the server is to have it: its id."""
    id = server.add_conversation("ada", LLAMA, "").id
    value = {"title": "T", "model": LLAMA, "messages": list(messages), **more}
    body = json.dumps({"json": value}).encode()
    fault = Fault(status=200, body=body, content_type="application/json")
    server.faults["GET", f"/api/v2/conversations/{id}"] = [fault] * 9
    return id


def message(id: str, kind: str, *ancestors: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "from": kind, "content": id, "ancestors": list(ancestors), **more}


def test_what_is_no_answer_is_left_out(logged_in):
    def run_at(seconds: float) -> dict[str, Any]:
        time = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
        return {"generationId": "g", "createdAt": time, "updatedAt": time, "updates": []}

    first = ("root", "u1", "a1")
    id = stored(
        logged_in,
        message("root", "system"),
        message("u1", "user", "root"),
        message("a1", "assistant", "root", "u1", **run_at(900)),
        message("u2", "user", *first),
        message("a2", "assistant", *first, "u2", content=""),
        message("u3", "user", *first, "u2", "a2"),
        message("a3", "assistant", *first, "u2", "a2", "u3", **run_at(800)),
        message("u4", "user", *first),
        message("a4", "assistant", *first, "u4", **run_at(5)),  # it is being written
    )
    assert said(thread_of(command("import", id, "--branches"))) == ["u1", "a1", "u2", "u3", "a3"]


def test_conversation_of_another_time_is_imported(logged_in):
    """Old ones have neither runs nor times; a changed model leaves its name on the answer."""
    coder = {"route": "code", "model": "some/Coder", "provider": "p"}
    id = stored(
        logged_in,
        message("u1", "user", content="half \ud83d"),
        message("a1", "assistant", "u1", routerMetadata={"route": "", "model": "old/Model"}),
        message("u2", "user", "u1", "a1"),
        message("a2", "assistant", "u1", "a1", "u2", routerMetadata=coder),
        model="omni",
    )
    thread = thread_of(command("import", id))
    assert [(row["model"], row["resolved_model"]) for row in logged()] == [
        ("huggingchat/old/Model", "old/Model"),
        ("huggingchat/omni", "some/Coder"),
    ]
    assert "0 turns added" in command("import", id).stdout
    last = store().thread_messages(thread)[-1].parts[-1].to_dict()
    assert last["provider_metadata"]["huggingchat"] == {
        "conversation_id": id,
        "message_id": "a2",
        "server": logged_in.url,
        "model": "omni",
    }
    assert llm.get_model("huggingchat/old/Model")  # which llm looks up for a logged turn


def test_row_of_the_logs_that_is_no_text_keeps_none_from_being_read(logged_in):
    command("import", Web(logged_in).begin("one"))
    store().db.execute("update parts set payload = cast(x'eda0bd' || payload as text)")
    assert "1 turn added" in command("import", Web(logged_in).begin("two")).stdout


def test_what_is_imported_from_a_clock_ahead_does_not_stay_the_latest(logged_in: ChatUI) -> None:
    """llm goes by its ids, which begin with the time."""
    id = Web(logged_in).begin("one")
    logged_in.messages(id)  # they are stored
    for each in logged_in.conversations[id].messages:
        each["createdAt"] = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    command("import", id)
    ask("-m", "hf-llama", "two")
    assert ("user", "one") not in seen(ask("-c", "[[history]]"))


@pytest.mark.parametrize("damage", ["delete from messages", "update messages set parent_hash='x'"])
def test_import_into_logs_that_are_not_whole(logged_in, damage):
    ask("-m", "hf-llama", "one")
    ask("-c", "two", "-n")
    id = only_conversation(logged_in).id
    wait_for(lambda: "running" not in logged_in.runs.values())
    db = sqlite_utils.Database(os.environ["LLM_USER_PATH"] + "/logs.db")
    db.execute("pragma foreign_keys = off")
    db.execute(damage)
    db.conn.commit()
    assert "cannot be read, so nothing can be added" in refused("import", id)
