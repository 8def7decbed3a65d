"""Text, or bytes, that comes in pieces, cut anywhere."""

from __future__ import annotations

import itertools
from typing import AnyStr

from hypothesis import strategies as st

CUTS = st.lists(st.integers(0, 10_000), max_size=8)


def pieces(text: AnyStr, cuts: list[int]) -> list[AnyStr]:
    """`text`, cut at these places."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(places)]
