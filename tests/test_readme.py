"""README.md holds what it should: what is generated is up to date, its links lead somewhere."""

from __future__ import annotations

import pathlib
import re

import pytest
from cogapp import Cog  # type: ignore[import-untyped]

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_what_is_generated_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    tests = str(README.parent / "tests")
    status = Cog().main(["cog", "--check", "--diff", "-I", tests, str(README)])
    assert status == 0, f"{capsys.readouterr().out}\nRun: cog -r -I tests README.md"


def test_links_lead_somewhere() -> None:
    text = README.read_text("utf-8")
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in headings}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("#"):
            assert link[1:] in anchors
        elif "://" not in link:
            assert (README.parent / link).exists(), link
