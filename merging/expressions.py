"""Task-vector expressions: ``C + 0.5*(B - A)`` as one coefficient per model.

Every linear expression in task vectors is a list of coefficients (Ilharco et al. 2023, arXiv 2212.04089): adding is a
positive one, forgetting a negative one, and the analogy "A is to B as C is to …" is ``C + B - A``.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable

from merging.methods.contract import suggest
from merging.recipe import MergingError

# Longer than any that a person writes, and short enough that the parser cannot run out of stack.
LONGEST = 4000

# A linear form: coefficient by alias, in the order of first appearance, and the constant under "".
_Form = dict[str, float]


def coefficients(expression: str, aliases: Iterable[str] | None = None) -> dict[str, float]:
    """The coefficients of a linear expression.

    Args:
        expression: models, numbers, ``+ - * /`` and parentheses. A model whose name is no word stands in quotes:
            ``'chat-7b' + 0.5*math``.
        aliases: the models that there are; None allows every name.

    Returns:
        Model -> coefficient, in the order of first appearance; 0 where all cancels.

    Raises:
        MergingError: not such an expression, not linear, no model in it, or an unknown one.
    """
    if len(expression) > LONGEST:
        raise MergingError(f"expected an expression of at most {LONGEST} characters, found {len(expression)}")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        form = _form(tree.body, expression)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise MergingError(f"expected an expression such as 'C + 0.5*(B - A)', found {expression!r}: {error}") from None
    if form.pop("", 0.0) != 0.0:
        raise MergingError(f"expected a sum of models in {expression!r}, found a number that no model is multiplied by")
    if not form:
        raise MergingError(f"expected a model in the expression {expression!r}, found none")
    known = None if aliases is None else tuple(aliases)
    for alias, coefficient in form.items():
        if known is not None and alias not in known:
            raise MergingError(f"the expression {expression!r} names the model {alias!r}{suggest(alias, known)}")
        if not math.isfinite(coefficient):
            raise MergingError(f"expected finite coefficients in {expression!r}, found {coefficient} for {alias}")
    return form


def _form(node: ast.expr, text: str) -> _Form:
    match node:
        case ast.Name(id=name):
            return {name: 1.0}
        case ast.Constant(value=str() as name) if name:
            return {name: 1.0}
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as number):
            return {"": _float(number, text)}
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _form(inner, text)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _times(_form(inner, text), -1.0)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _plus(_form(left, text), _form(right, text))
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _plus(_form(left, text), _times(_form(right, text), -1.0))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            a, b = _form(left, text), _form(right, text)
            if _is_number(a):
                return _times(b, a[""])
            if _is_number(b):
                return _times(a, b[""])
            raise MergingError(f"{text!r} multiplies models with each other; only numbers times models can be summed")
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            b = _form(right, text)
            if not _is_number(b) or b[""] == 0.0:
                raise MergingError(f"{text!r} divides by {ast.unparse(right)}; only numbers other than 0 divide")
            return {name: value / b[""] for name, value in _form(left, text).items()}
    raise MergingError(
        f"expected models, numbers, + - * / and parentheses in {text!r}, found {ast.unparse(node)}; a model whose name "
        "is no word stands in quotes"
    )


def _float(number: float, text: str) -> float:
    try:
        return float(number)
    except OverflowError:
        raise MergingError(f"a number in {text!r} is too large") from None


def _is_number(form: _Form) -> bool:
    return form.keys() == {""}


def _times(form: _Form, factor: float) -> _Form:
    return {name: value * factor for name, value in form.items()}


def _plus(a: _Form, b: _Form) -> _Form:
    return a | {name: a.get(name, 0.0) + value for name, value in b.items()}
