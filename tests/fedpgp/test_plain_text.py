"""Text of others, made safe to print."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpgp.plain_text import one_line, printable


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("x\x1b]0;title\x07y", "xy"),
        ("x\x9b2Jy\x1bcz", "xyz"),
        ("fell over\ndone in 3s", "fell over done in 3s"),
        ("a\rb\x08\x00\u2028c\u202ed", "a bcd"),
        ("  Größe 猫 👩\u200d🚀  ", "Größe 猫 👩\u200d🚀"),
        ("", ""),
    ],
)
def test_escapes_and_new_lines_are_gone(text, kept):
    assert one_line(text) == kept


def test_a_traceback_keeps_its_lines():
    assert printable("File x\r\n\tline\x1b[2J\n") == "File x\n line\n"


@given(st.text(), st.integers(10, 50))
def test_any_text_becomes_a_short_line(text, longest):
    line = one_line(text, longest)
    assert len(line.encode()) <= longest
    assert not any(unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") for c in line)
    assert one_line(line, longest) == line


def test_a_long_text_ends_with_dots():
    assert one_line("é" * 5_000_000) == "é" * 498 + "…"
    assert one_line("a" * 1000) == "a" * 1000
