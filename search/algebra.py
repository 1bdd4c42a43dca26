"""Which experts a search merges, and how their coefficients come about: genes of their own, or an expression's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search.schema import Config
from search.space.mixing import Mixing, mixed
from search.space.scales import Bounds
from search.space_schema import SpaceConfig
from search.virtual import evolved, experts_of


def searched_experts(config: Config) -> tuple[tuple[str, ...], Mixing | None]:
    """The experts that take part in what is searched, in the order that methods see them; and how their coefficients
    come about where they have no genes of their own.

    Raises:
        SpaceError: an expression that means nothing.
    """
    models = config.models
    if config.space.expression is None:
        return (experts_of(config) if config.space.experts is None else tuple(config.space.experts)), None
    return mixing_of(config.space, (*models.experts, *models.virtual, *evolved(config)), models.derived)


def mixing_of(space: SpaceConfig, experts: Sequence[str], derived: Mapping[str, str]) -> tuple[tuple[str, ...], Mixing]:
    """The expression of a space, over experts and derived ones; see :func:`search.space.mixing.mixed`."""
    variables = {name: Bounds(*ends) for name, ends in space.variables.items()}
    return mixed(space.expression or "", variables, experts, derived)
