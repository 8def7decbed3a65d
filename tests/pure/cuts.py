"""What several of these tests need: any text and JSON, text cut anywhere, how runs end."""

import itertools
from typing import Any, AnyStr

from hypothesis import strategies as st

CUTS = st.lists(st.integers(0, 10_000), max_size=8)
ANY_TEXT = st.text(st.characters(), max_size=30)  # halves of surrogate pairs too
SMALL = st.none() | st.booleans() | st.integers()

FINISHED = {"type": "status", "status": "finished"}
FAILED = {"type": "status", "status": "error", "message": "no", "statusCode": 503}
ASKED = {"type": "elicitation", "subtype": "request", "request": {"elicitationId": "q"}}
RESOLVED = {"type": "elicitation", "subtype": "resolved", "elicitationId": "q"}


def pieces(text: AnyStr, cuts: list[int]) -> list[AnyStr]:
    """`text`, cut at these places."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


def any_json(leaves: Any, keys: Any = ANY_TEXT) -> st.SearchStrategy[Any]:
    """These leaves, and lists and objects of them."""
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    )
