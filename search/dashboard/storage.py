"""A study of Optuna whose trials are set from outside, and which nobody else can change."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Container, Sequence
from typing import Any, NoReturn

import numpy as np
import optuna
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from search import pareto
from search.dashboard.trials import CONSTRAINTS
from search.optimizers.optuna_table import quiet


class MirrorStorage(InMemoryStorage):  # type: ignore[misc,unused-ignore]
    """One study. Its trials are looked up by whoever serves them; they are numbered from 0 without a gap.

    Args:
        name: of the study.
        directions: "minimize" or "maximize", of each objective.
    """

    def __init__(self, name: str, directions: Sequence[str]) -> None:
        super().__init__()
        self._changing = threading.RLock()
        self._rows: list[FrozenTrial] = []
        with quiet():
            self.study = optuna.create_study(study_name=name, storage=self, directions=list(directions))

    def set_trials(self, changed: dict[int, FrozenTrial], lost: Callable[[int], FrozenTrial]) -> None:
        """Put trials in their places.

        Args:
            changed: by number.
            lost: makes what stands in a place that nothing is known of.
        """
        with self._changing:
            rows = list(self._rows)
            new = range(len(rows), max(changed, default=-1) + 1)
            rows.extend(changed.get(number) or lost(number) for number in new)
            for number, trial in changed.items():
                rows[number] = trial
            self._rows = rows

    def clear_trials(self) -> None:
        """As at the start."""
        with self._changing:
            self._rows = []

    def changing(self) -> threading.RLock:
        """Within it, attributes of the study change together for those who read them."""
        return self._changing

    # -- what is read -------------------------------------------------------------------------------------------------

    def get_all_studies(self) -> list[FrozenStudy]:
        """The study."""
        with self._changing:
            return list(super().get_all_studies())

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The trials of these states."""
        rows = [row for row in self._rows if states is None or row.state in states]
        return copy.deepcopy(rows) if deepcopy else rows

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """By its number, which is its id."""
        rows = self._rows
        if not 0 <= trial_id < len(rows):
            raise KeyError(f"no trial with id {trial_id}")
        return rows[trial_id]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Of one objective; one that keeps the constraints, where any does."""
        found = front_of(self._rows, self.get_study_directions(study_id))
        if not found:
            raise ValueError("no trial is complete")
        return found[0]

    # -- what is refused ----------------------------------------------------------------------------------------------

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> NoReturn:
        """Trials come from the run alone."""
        self._refuse()

    def delete_study(self, study_id: int) -> NoReturn:
        """It is a mirror."""
        self._refuse()

    def set_trial_param(self, *_: Any, **__: Any) -> NoReturn:
        """It is a mirror."""
        self._refuse()

    def set_trial_state_values(self, *_: Any, **__: Any) -> NoReturn:
        """It is a mirror."""
        self._refuse()

    def set_trial_intermediate_value(self, *_: Any, **__: Any) -> NoReturn:
        """It is a mirror."""
        self._refuse()

    def set_trial_user_attr(self, *_: Any, **__: Any) -> NoReturn:
        """It is a mirror."""
        self._refuse()

    def set_trial_system_attr(self, *_: Any, **__: Any) -> NoReturn:
        """It is a mirror."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RuntimeError("this study mirrors a run, which is changed by its search alone")


def front_of(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """The non-dominated among the complete trials that keep the constraints; without regard to constraints where none
    does. Of equal ones all."""
    complete = [each for each in trials if each.state == TrialState.COMPLETE and each.values]
    feasible = [each for each in complete if _violation(each) <= 0.0]
    among = feasible or complete
    if not among:
        return []
    signs = np.array([1.0 if each == StudyDirection.MAXIMIZE else -1.0 for each in directions])
    points = np.nan_to_num(np.array([each.values for each in among], dtype=np.float64) * signs)  # infinities, too
    return [each for each, keep in zip(among, pareto.nondominated(points), strict=True) if keep]


def _violation(trial: FrozenTrial) -> float:
    return float(sum(max(0.0, each) for each in trial.system_attrs.get(CONSTRAINTS, ())))
