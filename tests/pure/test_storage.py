"""llm's key store, the catalogue's cache, and files that are replaced in one step."""

import concurrent.futures
import json
import os
import pathlib
import stat
import sys
import threading
from itertools import count
from typing import Any

import llm
import pytest

import llm_huggingchat as plugin
from llm_huggingchat import SERVICE, Cookies, find_key, keep_catalogue, keep_key, load_catalogue

HERE = plugin.Server(SERVICE)
LOCAL = plugin.Server("http://127.0.0.1:3100/chat")
OTHER = plugin.Server("https://chat.example.org")
TOKEN = "the-token-of-nobody"
posix = pytest.mark.skipif(sys.platform == "win32", reason="modes, links and pipes")


def write(path: pathlib.Path, content: bytes) -> None:
    with plugin.atomic_write(path) as file:
        file.write(content)


def test_file_is_there_when_it_is_whole(tmp_path):
    path = tmp_path / "answer.md"
    path.write_bytes(b"before")
    with plugin.atomic_write(path) as file:
        file.write(b"half")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"half"
    with pytest.raises(RuntimeError), plugin.atomic_write(path) as file:  # noqa: PT012
        file.write(b"other")
        raise RuntimeError
    assert path.read_bytes() == b"half"
    assert os.listdir(tmp_path) == ["answer.md"]


@posix
def test_file_may_have_the_longest_name(tmp_path):
    path = tmp_path / ("\u00e9" * 127)
    write(path, b"x")
    assert path.read_bytes() == b"x"


@posix
def test_new_file_has_the_usual_mode_and_an_old_one_its_own(tmp_path):
    plain, path = tmp_path / "plain", tmp_path / "path"
    plain.touch()
    write(path, b"x")
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o604)
    write(path, b"x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


@posix
def test_links_stay_links(tmp_path):
    target, link, name = tmp_path / "target", tmp_path / "link", tmp_path / "name"
    link.symlink_to("target")
    write(link, b"made")
    assert link.is_symlink()
    os.link(target, name)
    write(target, b"written")
    assert link.read_bytes() == name.read_bytes() == b"written"


@posix
def test_pipes_and_devices_are_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        got = pool.submit(pipe.read_bytes)
        write(pipe, b"through it")
    assert got.result() == b"through it"
    write(pathlib.Path(os.devnull), b"away")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


# --- keys -----------------------------------------------------------------------------


def test_keys_are_kept_beside_those_of_others(user_path):
    keys = user_path / "keys.json"
    keep_key("huggingchat", "mine")
    assert os.name == "nt" or stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert json.loads(keys.read_text())["// Note"]
    keys.write_text(json.dumps({"openai": "theirs", "huggingchat": "mine"}))
    assert keep_key("huggingchat", "new", anew=True) == "mine"
    assert keep_key("huggingchat", "new") == plugin.stored_key("huggingchat") == "new"
    keep_key("huggingchat", None)
    assert json.loads(keys.read_text()) == {"openai": "theirs"}
    assert plugin.stored_key("huggingchat") is None


@pytest.mark.parametrize("content", [b"[]", b"\xff", b"[" * 100_000], ids=count())
def test_key_store_that_is_none_is_left_alone(user_path, content):
    (user_path / "keys.json").write_bytes(content)
    for use in (lambda: keep_key("huggingchat", "x"), lambda: plugin.stored_key("huggingchat")):
        with pytest.raises(llm.ModelError, match=r"keys\.json, cannot be .*: it is not a JSON"):
            use()
    assert (user_path / "keys.json").read_bytes() == content


def test_key_is_looked_for_in_the_order_that_is_documented(monkeypatch):
    with pytest.raises(llm.NeedsKeyException, match="llm huggingchat login"):
        find_key(HERE)
    assert find_key(LOCAL) == (None, "none")
    monkeypatch.setenv("LLM_HUGGINGCHAT_KEY", "of-the-environment")
    for server in (HERE, LOCAL):
        assert find_key(server) == ("of-the-environment", "LLM_HUGGINGCHAT_KEY")
        keep_key(server.key_name, Cookies("s", anonymous=True).to_key())
        assert find_key(server)[0] == "of-the-environment", "an anonymous session gives way"
        keep_key(server.key_name, "stored")
        assert find_key(server) == ("stored", f"llm keys ({server.key_name})")
    keep_key("mine", "named")
    assert find_key(HERE, "mine") == ("named", "--key")
    assert find_key(HERE, "token=x") == ("token=x", "--key")


def test_keys_of_one_host_are_not_for_another():
    keep_key("huggingchat", "of-the-service")
    assert find_key(OTHER) == (None, "none")
    with pytest.raises(llm.ModelError, match="never go to another"):
        find_key(HERE, "huggingchat:chat.example.org")
    assert find_key(LOCAL, "huggingchat")[0] == "of-the-service"


def test_anonymous_session_is_kept_and_shared(capsys):
    made = plugin.anonymous_session(LOCAL, print)
    assert made.anonymous
    assert plugin.anonymous_session(LOCAL, print) == made
    assert plugin.parse_cookies(plugin.stored_key(LOCAL.key_name) or "") == made
    plugin.forget_anonymous_session(LOCAL)
    assert plugin.stored_key(LOCAL.key_name) is None
    assert capsys.readouterr().out == ""
    for key, anonymous in ((made.to_key(), True), (Cookies("s").to_key(), False)):
        assert plugin.is_anonymous(key) is anonymous
    assert plugin.is_anonymous('{"hf-chat": "x", "made_up": true}')  # as earlier versions wrote it


def test_anonymous_session_that_cannot_be_kept_is_used(monkeypatch):
    begun, told = threading.Barrier(4), list[str]()

    def keep_key(*_: object, **__: object) -> str:
        begun.wait(60)
        raise plugin.HuggingChatError("no room")

    monkeypatch.setattr(plugin, "keep_key", keep_key)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(plugin.anonymous_session, LOCAL, told.append) for _ in range(4)]
    assert len({call.result() for call in calls}) == 1
    assert "cannot be continued later. no room" in told[0]


# --- the cache ------------------------------------------------------------------------

PHI = plugin.ModelInfo("microsoft/phi-4", tools=True)
QWEN = plugin.ModelInfo("Qwen/Qwen3-8B", description="d")


def test_cache_keeps_the_models_of_each_server_and_those_that_it_had():
    assert load_catalogue(SERVICE).models == plugin.BUILT_IN
    keep_catalogue(SERVICE, [PHI, QWEN])
    keep_catalogue(OTHER.url, [QWEN])
    assert load_catalogue(SERVICE).models == (PHI, QWEN)
    assert load_catalogue(OTHER.url).models == (QWEN,)
    assert load_catalogue(LOCAL.url).models == plugin.BUILT_IN
    assert not load_catalogue(SERVICE).is_old
    for listed in ([QWEN], [QWEN], [PHI]):
        keep_catalogue(SERVICE, listed)
    assert load_catalogue(SERVICE).removed == (QWEN.id,)


def test_model_that_was_logged_is_remembered_wherever_it_was():
    keep_catalogue(SERVICE, [PHI])
    plugin.remember_models(SERVICE, [PHI.id, "old/model", "old/model", "bad\x1b"])
    assert load_catalogue(SERVICE).removed == ("old/model",)
    keep_catalogue(OTHER.url, [QWEN])
    plugin.remember_models(OTHER.url, ["their/model", QWEN.id])
    assert set(load_catalogue(OTHER.url).removed) == {PHI.id, "old/model", "their/model"}
    assert QWEN.id in load_catalogue(SERVICE).removed


def test_cache_of_an_earlier_version_is_read(user_path):
    able = {"multimodal": True, "supportsTools": False, "supportsReasoning": True}
    entry = {"id": "a/b", "isRouter": False, "unlisted": False, "description": "d", **able}
    cache = {"servers": {SERVICE: {"time": 1_790_000_000.5, "models": [entry]}}}
    (user_path / plugin.CACHE).write_text(json.dumps(cache))
    catalogue = load_catalogue(SERVICE)
    model = plugin.ModelInfo("a/b", multimodal=True, reasoning=True, description="d")
    assert (catalogue.models, catalogue.time) == ((model,), 1_790_000_000.5)
    keep_catalogue(SERVICE, [QWEN])
    assert load_catalogue(SERVICE).removed == ("a/b",)


def test_removed_model_is_behind_what_is_offered(monkeypatch):
    keep_catalogue(SERVICE, [PHI, QWEN])
    keep_catalogue(SERVICE, [QWEN])
    for model in (llm.get_model(f"huggingchat/{PHI.id}"), llm.get_model("hf-qwen")):
        assert model.needs_key == "huggingchat"
    with pytest.raises(llm.UnknownModelError):
        llm.get_model("hf-phi-4")
    monkeypatch.setenv("LLM_HUGGINGCHAT_URL", OTHER.url)
    plugin.remember_models(SERVICE, [PHI.id, QWEN.id])
    keep_catalogue(OTHER.url, [plugin.ModelInfo("their/model")])
    ids = [model.model.model_id for model in llm.get_models_with_aliases()]
    ours = [id for id in ids if id.startswith("huggingchat/")]
    assert ours[0] == "huggingchat/their/model"
    assert {f"huggingchat/{PHI.id}", f"huggingchat/{QWEN.id}"} <= set(ours)


BROKEN: list[Any] = [
    *(None, [], {SERVICE: []}, {SERVICE: {"models": [{"id": "a/b"}]}}),
    {SERVICE: {"models": [], "time": 1}},
    {SERVICE: {"models": [{"id": "a/b"}], "time": 10**400}},
]
CACHES = [
    *(b"", b"[" * 100_000, b"\0", b"null", b"{}", b"\xff\xfe\x00"),
    *(json.dumps({"servers": servers}).encode() for servers in BROKEN),
]


@pytest.mark.parametrize("content", CACHES, ids=count())
def test_broken_cache_is_as_none_and_is_mended(content, user_path):
    (user_path / plugin.CACHE).write_bytes(content)
    assert load_catalogue(SERVICE).models == plugin.BUILT_IN
    assert load_catalogue(SERVICE).is_old
    keep_catalogue(SERVICE, [PHI])
    assert load_catalogue(SERVICE).models == (PHI,)
