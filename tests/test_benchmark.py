"""The benchmark works: with small numbers, and without a look at what it measures."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

BENCHMARK = pathlib.Path(__file__).parent / "benchmark.py"


def test_table() -> None:
    small = ["--alone", "--rounds=0", "--tokens=20", "--together", "2", "--seconds=0.02"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *small, "--turns", "2", "3"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    versions, _, *table = done.stdout.splitlines()
    assert re.match(r"llm-huggingchat \S+, llm \S+, curl_cffi \S+; CPython \S+, ", versions)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert rows[:2] == [["", "llm-huggingchat", "beside"], ["---"] * 3]
    measured = {what: plugin for what, plugin, _ in rows[2:]}
    assert measured["requests to the first token, first turn"] == "2"
    assert measured["requests to the first token, later turn"] == "1"
    assert {what for what in measured if what.startswith("upload")} == {
        "upload of turn 2",
        "upload of turn 3",
    }
    assert all(re.match(r"[\d.]+( (ms|µs|kB|MB))?$", value) for value in measured.values())
