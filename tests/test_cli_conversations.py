"""`llm huggingchat conversations`, `open`, `rename`, `share` and `delete`."""

import errno
import io
import json
import os
import re
import sys
import webbrowser
from datetime import UTC, datetime

import llm.cli
import pytest
import sqlite_utils
from chat_ui import ChatUI, Fault
from cli import LLAMA, NO_ID, Web, ask, command, refused
from helpers import logged, only_conversation, run

from llm_huggingchat import CONCURRENCY, limits

pytestmark = pytest.mark.usefixtures("person")


def test_conversations_over_all_pages(logged_in):
    for number in range(65):
        conversation = logged_in.add_conversation("ada", LLAMA, "", title=f"Number {number}")
        conversation.updated_at = datetime.fromtimestamp(60 * number, UTC).isoformat()
    logged_in.add_conversation("bob", LLAMA, "", title="Not yours")
    listed = json.loads(command("conversations", "-n", "0", "--json").stdout)
    assert [entry["title"] for entry in listed] == [f"Number {n}" for n in range(64, -1, -1)]
    assert listed[0]["url"] == f"{logged_in.url}/conversation/{listed[0]['id']}"
    assert len(command("conversations").stdout.splitlines()) == 20
    del logged_in.log[:]
    assert len(command("conversations", "-n", "7").stdout.splitlines()) == 7
    assert len(logged_in.log) == 1
    lines = command("conversations", "-q", "NUMBER 6").stdout.splitlines()
    numbers = [line.split("  ")[-1][7:9].strip() for line in lines]
    assert numbers == ["64", "63", "62", "61", "60", "6"]
    assert "no conversation" in command("conversations", "-q", "nowhere").stderr
    conversation = logged_in.add_conversation("ada", LLAMA, "", title="About می‌شود")
    conversation.updated_at = "9999-12-31T23:59:59-14:00"
    assert "About می‌شود (" in command("conversations", "-q", "می‌شود").stdout


def test_conversations_mark_what_the_logs_know(logged_in):
    ask("-m", "hf-llama", "From llm")
    Web(logged_in).begin("From the web [[title=Evil \x1b[31mtitle\u202e]]")
    web, mine = command("conversations").stdout.splitlines()
    assert " * " in mine
    assert " * " not in web
    assert "Evil" in web
    assert not re.search("[\x1b\u202e]", web)
    entries = json.loads(command("conversations", "--json").stdout)
    assert [entry["thread_id"] for entry in entries] == [None, logged()[0]["conversation_id"]]


@pytest.mark.parametrize("time", ["", "soon", "9999-12-31T23:59:59-12:00"])
def test_conversations_of_no_time_are_listed(logged_in, time):
    logged_in.add_conversation("ada", LLAMA, "", title="When?").updated_at = time
    assert "When? (" in command("conversations").stdout


class Closed(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_reader_that_has_had_enough_is_no_failure_to_tell(logged_in, monkeypatch, capfd):
    Web(logged_in).begin("one")
    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(SystemExit, match="1"):
        llm.cli.cli(["huggingchat", "conversations"])
    assert capfd.readouterr().err == ""


WITH_ONE = [["artifacts"], ["export"], ["import"], ["open", "--print"], ["rename", "x"], ["share"]]


@pytest.mark.parametrize("words", WITH_ONE, ids=lambda words: words[0])
def test_every_command_takes_the_latest_conversation_in_the_logs(logged_in, words):
    assert "Give an id or an address" in refused(*words)
    ask("-m", "hf-llama", "[[title=One]] [[reason]] older, of more parts")
    ask("-m", "hf-llama", "[[title=Two]] latest")
    Web(logged_in).begin("not in the logs")
    latest = logged()[-1]["response_json"]["huggingchat"]["conversation_id"]
    del logged_in.log[:]
    result = command(*words)
    requests = [request.path for request in logged_in.log]
    assert latest in result.stdout or any(latest in path for path in requests)
    others = logged_in.conversations.keys() - {latest}
    assert not any(other in path for other in others for path in requests)


@pytest.mark.parametrize("way", ["address", "id", "ID", "branch", "thread"])
def test_every_command_takes_an_id_an_address_or_an_id_of_the_logs(logged_in, way):
    ask("-m", "hf-llama", "[[title=One]] hello")
    id = only_conversation(logged_in).id
    logged_in.messages(id)
    ask("-m", "hf-llama", "[[title=Two]] latest")
    name = {
        "id": id,
        "ID": f" {id.upper()} ",
        "address": f"{logged_in.url}/conversation/{id}",
        "branch": f"{logged_in.url}/conversation/{id}/?leafId=x#y",
        "thread": logged()[0]["conversation_id"].upper(),
    }[way]
    for first, *others in [*WITH_ONE, ["delete", "--yes"]] if way == "address" else [["export"]]:
        del logged_in.log[:]
        result = command(first, name, *others)
        assert id in result.output or any(id in request.path for request in logged_in.log)


@pytest.mark.parametrize("words", [*WITH_ONE[:3], *WITH_ONE[4:], ["delete", "--yes"]], ids=" ".join)
def test_conversation_that_is_not_there(logged_in, words):
    foreign = logged_in.add_conversation("bob", LLAMA, "").id
    name, *others = words
    for id, said in (
        (foreign, "o such conversation"),
        ("../../settings", "names no conversation"),
        (f"https://evil.example/chat/conversation/{NO_ID}", "names no conversation"),
    ):
        assert said in refused(name, id, *others)
    logged_in.faults["GET", f"/api/v2/conversations/{NO_ID}"] = [Fault(status=400)]
    assert "o such conversation" in refused(name, NO_ID, *others)
    assert foreign in logged_in.conversations
    logged_in.down()
    assert "nobody is listening" in refused(name, NO_ID, *others)


def test_id_of_the_logs_names_a_conversation_of_its_own_server_only(logged_in, monkeypatch):
    ask("-m", "hf-llama", "one")
    thread, id = logged()[0]["conversation_id"], only_conversation(logged_in).id
    logged_in.messages(id)
    commands = (["rename", thread, "new"], ["share", thread], ["delete", thread, "--yes"])
    with ChatUI() as other:
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", other.url)
        for words in commands:
            assert "names no conversation" in refused(*words)
        assert "hold no conversation" in refused("share")
        assert other.log == []  # it does not even get to know the id
        monkeypatch.setenv("LLM_HUGGINGCHAT_URL", logged_in.url)
    assert logged_in.conversations[id].title == "one"
    for words in commands:
        command(*words)
    assert [share.title for share in logged_in.shares.values()] == ["new"]
    assert logged_in.conversations == {}


@pytest.mark.parametrize("value", ["Infinity", "NaN", "[" * 3000 + "]" * 3000])
def test_logs_with_a_row_that_is_no_json_can_be_used(server, value):
    run("-m", "hf-llama", "-T", "WebSearch", "[[tool]] hello")
    id = only_conversation(server).id
    db = sqlite_utils.Database(os.environ["LLM_USER_PATH"] + "/logs.db")
    db.execute(
        "update parts set payload = replace(payload, '\"chat-ui\"', ?)",
        [f'{{"huggingchat": {value}}}'],
    )
    db.conn.commit()
    assert id in command("open", "--print").stdout
    assert f"{id} *" in command("conversations").stdout
    assert " 0 turns added" in command("import", id).stdout


def test_open_shows_the_page_where_there_is_a_screen(logged_in, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    ask("-m", "hf-llama", "one")
    page = f"{logged_in.url}/conversation/{only_conversation(logged_in).id}"
    assert command("open").stdout == f"{page}\n"
    assert opened == []  # there is no browser here
    monkeypatch.setenv("BROWSER", "true")
    assert command("open", "--print").stdout == f"{page}\n"
    assert opened == []
    command("open")
    assert opened == [page]


def test_command_right_after_a_prompt_waits_until_its_answer_is_stored(logged_in, monkeypatch):
    monkeypatch.setattr(limits, "tail_timeout", 0.0)
    logged_in.store_delay = 0.2
    ask("-m", "hf-llama", "one")
    command("rename", "Mine")
    id = only_conversation(logged_in).id
    logged_in.messages(id)  # once it is stored
    assert logged_in.conversations[id].title == "Mine"
    for format in ("markdown", "json"):
        ask("-c", f"next for {format}")
        assert f"You said: next for {format}" in command("export", "--format", format).stdout
    ask("-c", "not logged", "-n")
    assert "1 turn added" in command("import", id).stdout
    ask("-c", "two")
    command("share")
    (share,) = logged_in.shares.values()
    assert share.messages[-1]["content"] == "You said: two"
    ask("-c", "three")
    command("delete", id, "--yes")
    assert logged_in.conversations == {}


def test_rename_and_share(logged_in):
    id = Web(logged_in).begin("one")
    command("rename", id, "  A title  ")
    assert logged_in.conversations[id].title == "A title"
    for title in (" ", "x" * 101, "\N{GRINNING FACE}" * 51):
        assert "1 to 100" in run("huggingchat", "rename", id, title, status=2).stderr
    link = command("share", id).stdout.strip()
    assert link.removeprefix(f"{logged_in.url}/r/") in logged_in.shares


def test_delete_asks_with_the_title(logged_in):
    web = Web(logged_in)
    id = web.begin("[[title=About \x1b[31mowls]] one")
    for answer in ("n\n", ""):
        asked = run("huggingchat", "delete", id, input=answer, status=1).stderr
        assert f"Delete 'About [31mowls' ({id}) on 127.0.0.1" in asked
        assert "Aborted!" in asked
    assert id in logged_in.conversations
    assert "About [31mowls" in command("delete", id, input="y\n").stdout
    assert logged_in.conversations == {}


def test_delete_whose_answer_is_lost_has_succeeded(logged_in):
    id = Web(logged_in).begin("one")
    logged_in.faults["DELETE", f"/api/v2/conversations/{id}"] = [Fault(drop=True, done=True)]
    assert "Deleted" in command("delete", id, "--yes").stdout
    assert logged_in.conversations == {}


def test_several_are_deleted_and_imported_at_once(logged_in):
    for number in range(9):
        logged_in.add_conversation("ada", LLAMA, "", title=f"Number {number}")
    logged_in.latency = 0.05
    for words in ("import --all", "delete --all --yes"):
        logged_in.log.clear()
        command(*words.split())
        connections = {request.connection for request in logged_in.log}
        assert 2 < len(connections) <= CONCURRENCY + 1
    assert logged_in.conversations == {}


def test_delete_several_or_all(logged_in):
    for number in range(35):
        logged_in.add_conversation("ada", LLAMA, "", title=f"Number {number}")
    ids = list(logged_in.conversations)
    assert NO_ID in refused("delete", NO_ID, ids[0], ids[1], "--yes")
    assert list(logged_in.conversations) == ids[2:]
    assert "33 conversations" in command("delete", "--all", input="y\n").stderr
    assert logged_in.conversations == {}
    assert "0 conversations" in command("delete", "--all", "--yes").stdout
    for both in ((), ("--all", NO_ID)):
        assert "Give ids" in run("huggingchat", "delete", *both, status=2).stderr
