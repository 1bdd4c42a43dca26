"""Task-vector expressions: ``C + 0.5*(B - A)`` as one coefficient per model.

Every linear expression in task vectors is a list of coefficients (Ilharco et al. 2023, arXiv 2212.04089): adding is a
positive one, forgetting a negative one, and the analogy "A is to B as C is to …" is ``C + B - A``.

A model in an expression stands for its task vector, and the whole for the base with their sum added. The base may be
written where that changes nothing: ``base - toxic``, ``base + 0.5*(math - base)``, ``math - base``.
"""

from __future__ import annotations

import ast
import keyword
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

from merging.methods.contract import suggest
from merging.recipe import MergingError

# Longer than any that a person writes, and short enough that the parser cannot run out of stack.
LONGEST = 4000

MOST_DERIVED = 256
"""Named expressions of one config; each may name those before it."""

_MOST_DIFFERENCES = 10
"""Models beside the base up to which every way to write differences is understood; beyond, all of them or none."""

_MOST_SHOWN = 200
"""Characters of an expression in a message."""

_CLOSE = 1e-9
"""Numbers in expressions are written in decimals: 1 - 0.9 is 0.1 for people."""

_RESIDUE = 1e-12
"""Of what is added up; a smaller sum is what rounding leaves of decimals that cancel: 3*0.1 - 0.3."""


@dataclass(frozen=True)
class Affine:
    """A number that may depend on variables: ``constant + Σ slope·variable``.

    Attributes:
        constant: what it is where all variables are 0.
        slopes: variable -> factor, in the order of first appearance; 0 where all cancels.
    """

    constant: float = 0.0
    slopes: tuple[tuple[str, float], ...] = ()

    def __call__(self, values: Mapping[str, float]) -> float:
        """Its value where the variables have these."""
        return self.constant + sum(slope * values[name] for name, slope in self.slopes)

    def slope(self, variable: str) -> float:
        """The factor of a variable, 0 for one that it does not depend on."""
        return dict(self.slopes).get(variable, 0.0)

    def plus(self, other: Affine) -> Affine:
        """The sum."""
        mine = dict(self.slopes)
        slopes = mine | {name: mine.get(name, 0.0) + slope for name, slope in other.slopes}
        return Affine(self.constant + other.constant, tuple(slopes.items()))

    def times(self, factor: float) -> Affine:
        """The product with a number."""
        return Affine(self.constant * factor, tuple((name, slope * factor) for name, slope in self.slopes))

    def is_close(self, other: Affine) -> bool:
        """Whether both are one number whatever the variables, up to how decimals round."""
        names = {name for name, _ in (*self.slopes, *other.slopes)}
        pairs = [(self.constant, other.constant), *((self.slope(each), other.slope(each)) for each in names)]
        return all(math.isclose(a, b, rel_tol=_CLOSE, abs_tol=_CLOSE) for a, b in pairs)

    @property
    def is_zero(self) -> bool:
        """Whether it is 0 whatever the variables."""
        return self.constant == 0.0 and not any(slope for _, slope in self.slopes)

    @property
    def is_finite(self) -> bool:
        """Whether there is neither an infinity in it nor NaN."""
        return all(map(math.isfinite, (self.constant, *(slope for _, slope in self.slopes))))


_ZERO, _ONE = Affine(), Affine(1.0)

# A linear form: coefficient by model, in the order of first appearance, and what no model is multiplied by under "".
_Form = dict[str, Affine]


def coefficients(expression: str, aliases: Iterable[str] | None = None) -> dict[str, float]:
    """The coefficients of a linear expression, exactly as they stand there.

    Args:
        expression: models, numbers, ``+ - * /`` and parentheses. A model whose name is no word stands in quotes:
            ``'chat-7b' + 0.5*math``.
        aliases: the models that there are; None allows every name.

    Returns:
        Model -> coefficient, in the order of first appearance; 0 where all cancels.

    Raises:
        MergingError: not such an expression, not linear, no model in it, or an unknown one.
    """
    return {name: each.constant for name, each in _linear(expression, aliases, ()).items()}


def task_vectors(expression: str, aliases: Iterable[str], base: str = "base") -> dict[str, float]:
    """The coefficients of the task vectors that an expression adds to the base.

    Args:
        expression: as in :func:`coefficients`; the base may be written where its coefficient says nothing else than
            the others do: once (``base - toxic``), or so that the models are weighted differences
            (``base + 0.5*(math - base)``, ``math - base``).
        aliases: the models that there are besides the base.
        base: what the base is called.

    Returns:
        Model -> coefficient; the base is not among them. Empty for the base itself.

    Raises:
        MergingError: as :func:`coefficients`, or a coefficient of the base that has no meaning.
    """
    return {name: each.constant for name, each in parametric(expression, aliases, (), base).items()}


def parametric(
    expression: str, aliases: Iterable[str], variables: Iterable[str], base: str = "base"
) -> dict[str, Affine]:
    """The coefficients of the task vectors of an expression in which some numbers are variables.

    Args:
        expression: such as ``legal + a*(real - synthetic)``; as in :func:`task_vectors`.
        aliases: the models that there are besides the base.
        variables: names that stand for numbers. None of them may be a model's.
        base: what the base is called.

    Returns:
        Model -> its coefficient, a number plus variables times numbers; the base is not among them.

    Raises:
        MergingError: as :func:`task_vectors`; products of variables, which are not linear; or a name that is both.
    """
    known, free = tuple(aliases), tuple(variables)
    for name in free:
        if name in known or name == base:
            raise MergingError(
                f"{name!r} is a variable of the expression {_quoted(expression)}, and a model too; give the variable "
                "another name"
            )
    form = _linear(expression, (*known, base), free)
    own = form.pop(base, _ZERO)
    if not _is_meant(own, tuple(form.values())):
        raise MergingError(
            f"expected {base!r} in {_quoted(expression)} once, as in '{base} - 0.5*toxic', or inside differences, as "
            f"in '{base} + 0.5*(math - {base})'; found {_said(own)} times it. A model in an expression stands for what "
            "fine-tuning has changed, and the base for no change: leave it out, or write it once"
        )
    return form


def _is_meant(own: Affine, others: Sequence[Affine]) -> bool:
    """Whether the coefficient of the base says nothing else than the others do: it is not written, or once, or stands
    in differences with some of the models, of whose coefficients it then is the negative sum."""
    most = len(others) if len(others) <= _MOST_DIFFERENCES else 0
    subsets = [*chain.from_iterable(combinations(others, size) for size in range(most + 1)), tuple(others)]
    for subset in subsets:
        rest = own
        for each in subset:
            rest = rest.plus(each)
        if rest.is_close(_ZERO) or rest.is_close(_ONE):
            return True
    return False


def expand(derived: Mapping[str, str], experts: Iterable[str], base: str = "base") -> dict[str, dict[str, float]]:
    """Named expressions, which may name each other, in terms of the experts.

    Args:
        derived: name -> expression, as in :func:`task_vectors`.
        experts: the models that there are besides the base.
        base: what the base is called.

    Returns:
        Name -> expert -> coefficient of its task vector, in the order of ``derived``; experts that cancel are left out.

    Raises:
        MergingError: a name that is taken, an expression that is none, an unknown model, or a cycle, with its chain.
    """
    known = tuple(experts)
    if len(derived) > MOST_DERIVED:
        raise MergingError(f"expected at most {MOST_DERIVED} derived experts, found {len(derived)}")
    for name in derived:
        if name in known or name == base:
            what = "the base" if name == base else "an expert"
            raise MergingError(f"{name!r} is the name of {what} already; give what is derived another name")
    names = (*known, *derived)
    done: dict[str, dict[str, float]] = {}
    for start in derived:
        _expand_one(start, derived, names, base, done)
    return {name: done[name] for name in derived}


def _expand_one(
    start: str, derived: Mapping[str, str], names: tuple[str, ...], base: str, done: dict[str, dict[str, float]]
) -> None:
    """Expand a name after all that it names; without recursion, however long the chain."""
    forms: dict[str, dict[str, float]] = {}
    path = [start]
    while path:
        name = path[-1]
        if name in done:
            path.pop()
            continue
        if name not in forms:
            try:
                forms[name] = task_vectors(derived[name], names, base)
            except MergingError as error:
                raise MergingError(f"{name}: {error}") from error
        waiting = next((each for each in forms[name] if each in derived and each not in done), None)
        if waiting is None:
            done[name] = _substituted(forms[name], done, name)
            path.pop()
        elif waiting in path:
            loop = [*path[path.index(waiting) :], waiting]
            raise MergingError(
                f"expected derived experts that lead back to experts, found a circle: {' -> '.join(loop)}; write one "
                "of them in terms of experts"
            )
        else:
            path.append(waiting)


def _substituted(form: Mapping[str, float], done: Mapping[str, Mapping[str, float]], where: str) -> dict[str, float]:
    found = summed(
        (expert, coefficient * inner)
        for name, coefficient in form.items()
        for expert, inner in done.get(name, {name: 1.0}).items()
    )
    if not all(map(math.isfinite, found.values())):
        raise MergingError(f"{where}: expected finite coefficients once all is put in, found {found}")
    return {name: value for name, value in found.items() if value != 0.0}


def summed(terms: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Coefficients added up by name, in the order of first appearance; 0 where decimals cancel but for rounding."""
    found: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for name, value in terms:
        found[name] = found.get(name, 0.0) + value
        sizes[name] = sizes.get(name, 0.0) + abs(value)
    return {
        name: 0.0 if math.isfinite(value) and abs(value) <= _RESIDUE * sizes[name] else value
        for name, value in found.items()
    }


def _linear(expression: str, aliases: Iterable[str] | None, variables: tuple[str, ...]) -> _Form:
    """A checked linear form: models only, all coefficients finite."""
    if len(expression) > LONGEST:
        raise MergingError(f"expected an expression of at most {LONGEST} characters, found {len(expression)}")
    known = None if aliases is None else tuple(aliases)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's, about code: this is none
            # a text of several lines, as YAML has them, is one expression
            tree = ast.parse(re.sub(r"\s", " ", expression).strip(), mode="eval")
        form = _form(tree.body, expression, variables)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise MergingError(
            f"expected an expression such as 'C + 0.5*(B - A)', found {_quoted(expression)}: "
            f"{error.msg if isinstance(error, SyntaxError) else error}{_unquoted(expression, known or ())}"
        ) from None
    if not form.pop("", _ZERO).is_zero:
        what = "a number" if not variables else "a number or a variable"
        raise MergingError(
            f"expected a sum of models in {_quoted(expression)}, found {what} that no model is multiplied by"
        )
    if not form:
        raise MergingError(f"expected a model in the expression {_quoted(expression)}, found none")
    for alias, coefficient in form.items():
        if known is not None and alias not in known:
            hint = _unquoted(expression, known) or suggest(alias, (*known, *variables))
            raise MergingError(f"the expression {_quoted(expression)} names the model {alias!r}{hint}")
        if not coefficient.is_finite:
            raise MergingError(
                f"expected finite coefficients in {_quoted(expression)}, found {_said(coefficient)} for {alias}"
            )
    return form


def _unquoted(expression: str, known: Iterable[str]) -> str:
    """A hint where the name of a model is no word, and stands there without quotes."""
    for name in known:
        if keyword.iskeyword(name) and re.search(rf"\b{name}\b", expression):
            return f"; {name} has a meaning of its own in expressions: write it in quotes, '{name}'"
        if not name.isidentifier() and name in expression:
            return f"; {name} is no word: write it in quotes, '{name}'"
    return ""


def _quoted(expression: str) -> str:
    """An expression for a message, which it may not fill."""
    return repr(expression if len(expression) <= _MOST_SHOWN else f"{expression[:_MOST_SHOWN]}…")


def _shown(node: ast.expr) -> str:
    """A part of an expression for a message."""
    text = ast.unparse(node)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _form(node: ast.expr, text: str, variables: tuple[str, ...]) -> _Form:
    match node:
        case ast.Name(id=name) if name in variables:
            return {"": Affine(0.0, ((name, 1.0),))}
        case ast.Name(id=name):
            return {name: _ONE}
        case ast.Constant(value=str() as name) if name:
            return {name: _ONE}
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as number):
            return {"": Affine(_float(number, text))}
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _form(inner, text, variables)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _times(_form(inner, text, variables), -1.0)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _plus(_form(left, text, variables), _form(right, text, variables))
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _plus(_form(left, text, variables), _times(_form(right, text, variables), -1.0))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _product(_form(left, text, variables), _form(right, text, variables), text)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            divisor = _number(_form(right, text, variables))
            if divisor is None or divisor == 0.0:
                raise MergingError(f"{_quoted(text)} divides by {_shown(right)}; only numbers other than 0 divide")
            return {name: _divided(each, divisor) for name, each in _form(left, text, variables).items()}
    raise MergingError(
        f"expected models, numbers, + - * / and parentheses in {_quoted(text)}, found {_shown(node)}; a model whose "
        "name is no word stands in quotes"
    )


def _product(a: _Form, b: _Form, text: str) -> _Form:
    for one, other in ((a, b), (b, a)):
        number = _number(one)
        if number is not None:
            return _times(other, number)
    for one, other in ((a, b), (b, a)):
        if one.keys() != {""}:
            continue
        if any(each.slopes for each in other.values()):
            raise MergingError(
                f"{_quoted(text)} multiplies variables with each other; give their product a variable of its own"
            )
        return {name: one[""].times(each.constant) for name, each in other.items()}
    raise MergingError(f"{_quoted(text)} multiplies models with each other; only numbers times models can be summed")


def _number(form: _Form) -> float | None:
    """The number that a form is, None for one with models or variables."""
    return form[""].constant if form.keys() == {""} and not form[""].slopes else None


def _float(number: float, text: str) -> float:
    try:
        return float(number)
    except OverflowError:
        raise MergingError(f"a number in {_quoted(text)} is too large") from None


def _divided(value: Affine, divisor: float) -> Affine:
    return Affine(value.constant / divisor, tuple((name, slope / divisor) for name, slope in value.slopes))


def _times(form: _Form, factor: float) -> _Form:
    return {name: value.times(factor) for name, value in form.items()}


def _plus(a: _Form, b: _Form) -> _Form:
    return a | {name: a.get(name, _ZERO).plus(value) for name, value in b.items()}


def _said(value: Affine) -> str:
    """For people: ``0.5``, ``1 - 2*a``."""
    terms = [f"{slope:g}*{name}" for name, slope in value.slopes if slope]
    number = [f"{value.constant:g}"] if value.constant or not terms else []
    return " + ".join([*number, *terms]).replace("+ -", "- ")
