"""The benchmark works: with small numbers, and without a look at what it measures."""

from __future__ import annotations

import re

import benchmark
import pytest


def test_table_has_the_plugin_and_what_it_is_compared_with(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLM_HUGGINGCHAT_URL", "LLM_USER_PATH"):
        monkeypatch.setenv(name, "")  # so that what the benchmark sets is taken back
    small = ["--rounds=0", "--tokens=20", "--together", "2", "--seconds=0.02", "--turns", "2"]
    benchmark.main(["--alone", "--lines=4", *small])
    versions, _, *table = capsys.readouterr().out.splitlines()
    assert re.match(r"llm-huggingchat \S+, llm \S+, curl_cffi \S+; CPython \S+, ", versions)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert rows[:2] == [["", "llm-huggingchat", "beside"], ["---"] * 3]
    measured = {what: plugin for what, plugin, _ in rows[2:]}
    assert measured["requests to the first token, first turn"] == "2"
    assert measured["requests to the first token, later turn"] == "1"
    assert all(re.match(r"[\d.]+( (ms|µs|kB|MB))?$", value) for value in measured.values())
