from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.verdict import After, Regex, cut, extract, normalize


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("the answer is 42.", "42"),
        ("1,234,567.50 euros", "1234567.5"),
        ("1,2,3", "3"),
        ("12,3456", "3456"),
        ("10-3", "3"),
        ("10 - -3", "-3"),
        ("x=\N{MINUS SIGN}7", "-7"),
        ("007", "7"),
        ("-0.0", "0"),
        ("3.140", "3.14"),
        ("costs .5", "0.5"),
        ("version 1.2.3", "3"),
        ("٤٢", "42"),
        ("no number", None),
        ("9" * 40 + ".0", "9" * 40),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert extract(text, "last_number") == number


@given(st.integers(-(10**12), 10**12), st.integers(0, 999))
def test_numbers_survive_how_they_are_written(whole: int, thousandths: int) -> None:
    plain = extract(f"{whole}.{thousandths:03d}", "last_number")
    assert plain == extract(f"so it is {whole:,}.{thousandths:03d}00.", "last_number")
    assert plain is not None and abs(float(plain)) == pytest.approx(abs(whole) + thousandths / 1000)


def test_extraction() -> None:
    assert extract("a # b # c ", After(after="#")) == " c "
    assert extract("a", After(after="#")) is None
    assert extract("x1 y2 x3", Regex(regex=r"x(\d)")) == "3"
    assert extract("x1 y2 x3", Regex(regex=r"[xy]\d")) == "x3"
    assert extract("z", Regex(regex=r"x(\d)|z")) is None
    assert extract(" as it is ", "none") == " as it is "


def test_cut_at_the_first_of_several() -> None:
    assert cut("one\ntwo#three", ["#", "\n"]) == "one"
    assert cut("one", ["#"]) == "one"
    assert cut("one", []) == "one"


def test_steps_go_in_their_order() -> None:
    assert normalize(" a \t b ", ["strip", "squeeze"]) == "a b"
    assert normalize(" a \t b ", ["squeeze"]) == " a b "
    assert normalize("Don’t, STOP!", ["lower", "punctuation"]) == "dont stop"
    assert normalize("( a )", ["strip", "punctuation"]) == " a "
    assert normalize("( a )", ["punctuation", "strip"]) == "a"


@given(st.text("aB.,! \t\n\u00a0\u2003é", max_size=30))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalize(text, ["strip", "squeeze"])
    assert normalize(once, ["strip", "squeeze"]) == once
