"""Where most choices of the start are to be kept: what is drawn before anything was learnt, and what is inherited."""

from dataclasses import replace

import numpy as np
import pytest

from search.optimizers.contract import Box, Genome, Outcome, Settings, Trial
from search.optimizers.kernel import KEPT, Kernel, kept_choices
from search.optimizers.outcomes import first_choices, generator
from search.optimizers.sms_emoa import SmsEmoa

BOX = Box(2, (2,) * 300 + (3,) * 300 + (1,))
CENTER = Genome((0.5, 0.5), (1,) * 600 + (0,))
SETTINGS = Settings(BOX, 1, 0, 100, (0.0,), center=CENTER)


def test_choices_are_even_where_nobody_is_sure() -> None:
    drawn = first_choices(SETTINGS, generator(0, 1))
    assert drawn.tolist() == generator(0, 1).integers(0, np.asarray(BOX.categories)).tolist()


def test_choices_are_the_centers_as_often_as_it_is_sure_and_the_others_alike() -> None:
    sure = replace(SETTINGS, sure=0.9)
    drawn = np.stack([first_choices(sure, generator(0, id)) for id in range(40)])
    assert np.mean(drawn[:, :600] == 1) == pytest.approx(0.9, abs=0.01)
    three = drawn[:, 300:600]
    assert np.mean(three == 0) == pytest.approx(0.05, abs=0.01) == pytest.approx(np.mean(three == 2), abs=0.02)
    assert set(drawn[:, 600].tolist()) == {0}


def test_a_distribution_begins_as_sure_as_it_is_told_and_what_the_user_says_wins() -> None:
    shares = kept_choices(replace(SETTINGS, sure=0.9), None)
    table = Kernel(BOX, CENTER, 0.1, shares)._table(CENTER, shares)
    assert table[:, 1] == pytest.approx(np.full(600, 0.9))
    assert table[300:, 0] == pytest.approx(np.full(300, 0.05))
    assert kept_choices(SETTINGS, None) == [KEPT] * 601
    assert kept_choices(replace(SETTINGS, sure=0.9), 0.5) == [0.5] * 601


def test_children_inherit_canonical_genes_only_where_choices_are_mostly_off() -> None:
    def canonical(genome: Genome) -> Genome:
        return Genome((genome.values[0], 0.5), genome.categories)

    given = Genome((0.3, 0.9), CENTER.categories)
    for sure, inherited in ((0.9, [0.3, 0.5]), (None, [0.3, 0.9])):
        optimizer = SmsEmoa(replace(SETTINGS, canonical=canonical, sure=sure))
        optimizer.tell(Trial(0, given), Outcome("complete", (1.0,), (0.0,), 10))
        assert optimizer.population[0].values.tolist() == inherited
        assert optimizer.population[0].genome == given
