"""Task-vector expressions are linear, and nothing else gets through."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.expressions import coefficients
from merging.recipe import MergingError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C + B - A", {"C": 1, "B": 1, "A": -1}),
        ("C + 0.5*(B - A)", {"C": 1, "B": 0.5, "A": -0.5}),
        ("-2*A", {"A": -2}),
        ("A*3/4", {"A": 0.75}),
        ("+(-(A - -B))", {"A": -1, "B": -1}),
        ("A - A + B", {"A": 0, "B": 1}),
        ("2 - 2 + A", {"A": 1}),
        ("2*3*A - A*(1 + 1)", {"A": 4}),
        ("'chat-7b' + 0.5*math", {"chat-7b": 1, "math": 0.5}),
        ("  A\t", {"A": 1}),
        ("(A + B)/(2*2)", {"A": 0.25, "B": 0.25}),
        ("1e-3*A", {"A": 0.001}),
        ("A +\n  0.5*(B\n - A)\n", {"A": 0.5, "B": 0.5}),  # as YAML's blocks of text have it
    ],
)
def test_what_expressions_mean(text: str, expected: dict[str, float]) -> None:
    found = coefficients(text)
    assert found == expected and list(found) == list(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected an expression such as"),
        ("A +", "expected an expression such as"),
        ("\0", "expected an expression such as"),
        ("3", "a number that no model is multiplied by"),
        ("A + 1", "a number that no model is multiplied by"),
        ("1 - 1", "expected a model in the expression"),
        ("A*B", "multiplies models with each other"),
        ("1/A", "divides by A"),
        ("A/0", "divides by 0"),
        ("A/(1 - 1)", "divides by 1 - 1"),
        ("A**2", "found A ** 2"),
        ("f(A)", "found f(A)"),
        ("A.b", "found A.b; a model whose name is no word stands in quotes"),
        ("__import__('os').system('true')", "expected models, numbers"),
        ("A if B else C", "expected models, numbers"),
        ("True*A", "found True"),
        ("A; B", "expected an expression such as"),
        ("1e999*A", "expected finite coefficients"),
        ("1" * 400 + "*A", "is too large"),
        ("-" * 3000 + "A", "expected an expression such as"),
        ("(" * 1000 + "A" + ")" * 1000, "expected an expression such as"),
        ("A" * 5000, "at most 4000 characters"),
    ],
)
def test_what_is_no_linear_expression(text: str, message: str) -> None:
    with pytest.raises(MergingError) as caught:
        coefficients(text)
    assert message in str(caught.value)


def test_unknown_models_are_named_with_what_was_meant() -> None:
    with pytest.raises(MergingError, match="names the model 'mth'; did you mean 'math'"):
        coefficients("code + mth", ["code", "math"])


FORMS = st.recursive(
    st.sampled_from("ABC").map(lambda name: (name, {name: Fraction(1)})),
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-"), inner).map(
            lambda e: (
                f"({e[0][0]} {e[1]} {e[2][0]})",
                {
                    n: e[0][1].get(n, Fraction(0)) + (1 if e[1] == "+" else -1) * e[2][1].get(n, Fraction(0))
                    for n in [*e[0][1], *e[2][1]]
                },
            )
        )
        | st.tuples(st.integers(-8, 8), inner).map(
            lambda e: (f"{e[0]}*{e[1][0]}", {n: e[0] * c for n, c in e[1][1].items()})
        )
        | st.tuples(inner, st.sampled_from([1, 2, 4])).map(
            lambda e: (f"{e[0][0]}/{e[1]}", {n: c / e[1] for n, c in e[0][1].items()})
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(FORMS)
def test_any_linear_expression_is_its_coefficients(form: tuple[str, dict[str, Fraction]]) -> None:
    text, expected = form
    assert coefficients(text) == {name: float(value) for name, value in expected.items()}  # dyadic: exact


@pytest.mark.parametrize("text", ["9" * 3900 + "*A", "-" * 3900 + "A", "A*" * 1900 + "A", f"f({'A+' * 100}A)"])
def test_a_message_is_a_paragraph_however_long_the_expression(text: str) -> None:
    with pytest.raises(MergingError) as caught:
        coefficients(text)
    assert len(str(caught.value)) < 700 and "<unknown>" not in str(caught.value)


def test_names_that_mean_something_else_are_to_be_quoted() -> None:
    assert coefficients("'is' + 0.5*math", ["is", "math"]) == {"is": 1, "math": 0.5}  # Icelandic
    with pytest.raises(MergingError, match=r"invalid syntax; is has a meaning of its own .* write it in quotes, 'is'"):
        coefficients("is + 0.5*math", ["is", "math"])
    with pytest.raises(MergingError, match=r"invalid syntax$"):
        coefficients("synthesis +", ["is", "synthesis"])
