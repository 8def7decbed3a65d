"""What may be shown in a terminal, and which text some bytes are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_huggingchat import decode_text, for_terminal, join_surrogates, one_line, utf16_length
from pure.cuts import ANY_TEXT

KEPT = {
    "family": "👨\u200d👩\u200d👧\u200d👦",
    "flag": "❤️ ✌🏽 🇮🇷 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "persian": "می\u200cخواهم",
    "hindi and thai": "क्\u200dष र्\u200cय ภาษา\u200bไทย",
    "accents": "e\u0301 ñ 日本 \ue0b0",
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_text_of_any_language_is_shown_as_it_is(text):
    assert one_line(text) == text
    assert for_terminal(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\u2028and\x85  spaces ", "two lines and spaces"),
        ("\x1b[31mred\x1b[0m\x07\x9b", "[31mred[0m"),
        ("a\u202eb\u200fc\u2066d\u061ce", "abcde"),
        (None, "None"),
    ],
)
def test_line_for_a_terminal_controls_nothing(text, shown):
    assert one_line(text) == shown


@given(ANY_TEXT, st.integers(1, 20))
def test_any_text_is_safe_in_a_terminal(text, limit):
    shown, whole = one_line(text, limit), one_line(text)
    assert shown == (whole if len(whole) <= limit else whole[: limit - 1].rstrip() + "…")
    for written in (shown, for_terminal(text)):
        written.encode()
        assert not set(written) & {"\x1b", "\r", "\x07", "\x7f", "\x9b", "\u202e", "\u2066"}


@given(ANY_TEXT)
def test_halves_of_surrogate_pairs_are_joined_or_replaced(text):
    joined = join_surrogates(text)
    joined.encode()
    assert utf16_length(joined) == utf16_length(text)
    assert join_surrogates("\ud83c\udf89 \ud83c") == "🎉 \ufffd"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("cp1251", "Привет"), ("shift_jis", "こんにちは"), ("utf-16-le", "漢 a"), ("latin-1", "été")],
)
def test_text_is_read_as_its_sender_says(encoding, text):
    assert decode_text(text.encode(encoding), encoding) == text
    assert decode_text("Füße".encode(), encoding) == "Füße", "UTF-8 cannot be mistaken"


@pytest.mark.parametrize(
    "text",
    [
        '<?xml version="1.0" encoding="windows-1251"?><a>Привет</a>',
        "<html><meta charset=windows-1251><p>Привет",
        "# -*- coding: windows-1251 -*-\nprint('Привет')",
    ],
)
def test_text_is_read_as_it_says_itself(text):
    assert decode_text(text.encode("cp1251")) == text


@pytest.mark.parametrize(
    "content",
    [
        *("Привет".encode("cp1251"), "こんにちは".encode("shift_jis")),
        *("καλημέρα".encode("iso8859-7"), b"PK\x03\x04\x14\0\x08\0", b"caf\xe9 \x01\x02", b"\0"),
    ],
)
def test_what_may_be_anything_is_no_text(content):
    for charset in ("", "no-such-charset", "hex"):
        assert decode_text(content, charset) is None
