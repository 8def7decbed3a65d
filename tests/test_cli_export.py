"""`llm huggingchat export`."""

import json

import pytest
from cli import LLAMA, NO_ID, Web, command, refused
from helpers import on_a_terminal, run

pytestmark = pytest.mark.usefixtures("person")


def test_export_as_markdown_and_as_json(logged_in):
    web = Web(logged_in)
    id = web.begin("[[title=A title]] 🦉 one", preprompt="Be brief.")
    web.say(id, "[[reason]] [[tool]] two", tools=True)
    text = command("export", id).stdout
    assert text.startswith(f"# A title\n\n<{logged_in.url}/conversation/{id}>\n\n## System\n")
    for piece in ("## You\n\n[[reason]]", f"## {LLAMA}\n", "Tool `web_search_exa`", "Reasoning"):
        assert piece in text
    messages = logged_in.messages(id)
    new = {"half": "\ud83d", "number": 12345678901234567890}
    logged_in.conversations[id].messages[-1]["somethingNew"] = new
    shown = command("export", id, "--format", "json").stdout
    assert shown.startswith('{\n  "')
    exported = json.loads(shown)["messages"]
    assert [message["id"] for message in exported] == [message["id"] for message in messages]
    assert exported[-1]["somethingNew"]["number"] == new["number"]
    assert exported[1]["content"] == "[[title=A title]] 🦉 one"


def test_export_looks_for_the_conversation_before_it_asks(logged_in, tmp_path):
    (tmp_path / "out.md").write_text("mine")
    assert "o such conversation" in refused("export", NO_ID, "-o", "out.md", input="y\n")
    id = Web(logged_in).begin("one")
    asked = run("huggingchat", "export", id, "-o", "out.md", input="n\n", status=1)
    assert "Overwrite" in asked.stderr
    assert (tmp_path / "out.md").read_text() == "mine"
    assert command("export", id, "-o", "out.md", input="y\n").stdout == ""
    assert (tmp_path / "out.md").read_text() == command("export", id).stdout
    assert "o such file or directory" in refused("export", id, "-o", "nowhere/out.md")
    assert "s a directory" in refused("export", id, "-o", str(tmp_path))


def test_export_to_a_terminal_moves_no_cursor_and_spells_right(logged_in):
    spelt = "می\u200cشود 👨\u200d👩\u200d👧"
    id = Web(logged_in).begin("one", preprompt=f"safe\rEVIL\x0b\x85\x1b]0;x\x07 {spelt}\n\tend")
    text = on_a_terminal("stdout", "huggingchat", "export", id)
    assert f"safeEVIL]0;x {spelt}\n" in text
    assert all(char in "\n\t\u200c\u200d" or char.isprintable() for char in text.expandtabs())
    assert "\x1b]0;x\x07" in command("export", id).stdout  # in a pipe it is as it is
