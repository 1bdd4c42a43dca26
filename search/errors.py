"""User mistakes, told apart from defects: the first are one paragraph and exit code 2, the second a traceback."""

from __future__ import annotations


class SearchError(Exception):
    """A mistake in a config, a run directory or a command: what was expected, what was found, what to do."""


class NothingFeasible(SearchError):
    """The search ended without one candidate that can be chosen; exit code 3."""


class Interrupted(Exception):
    """The user asked to stop; everything done so far is stored. Exit code 130."""


def user_errors() -> tuple[type[Exception], ...]:
    """The classes that the command line shows without a traceback."""
    from evaluators.contract import EvaluatorError
    from merging.recipe import MergingError
    from search.optimizers.contract import OptimizerError
    from zoo import ZooError

    return (SearchError, MergingError, EvaluatorError, OptimizerError, ZooError)
