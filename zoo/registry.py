"""The families by name. A new one is one line here."""

from __future__ import annotations

import importlib
from typing import Final

from zoo.contract import ModelFamily, ZooError

_FAMILIES: Final = {
    "skills": "zoo.family:SKILLS",
    "skills-nano": "zoo.family:SKILLS_NANO",
    "skills-w64": "zoo.sizes:W64",
    "skills-w112": "zoo.sizes:W112",
    "skills-w192": "zoo.sizes:W192",
    "skills-w352": "zoo.sizes:W352",
    "skills-w704": "zoo.sizes:W704",
    "crosslingual": "zoo.crosslingual:CROSSLINGUAL",
    "digits": "zoo.digits:DIGITS",
    "reward": "zoo.reward:REWARD",
    "speech": "zoo.speech.family:SPEECH",
    "speech-nano": "zoo.speech.family:SPEECH_NANO",
}


def families() -> dict[str, ModelFamily]:
    """Every family by name."""
    return {name: _load(name) for name in _FAMILIES}


def family(name: str) -> ModelFamily:
    """The family of this name.

    Raises:
        ZooError: there is none.
    """
    if name not in _FAMILIES:
        raise ZooError(f"There is no model family {name!r} in the zoo. The families are: {', '.join(_FAMILIES)}.")
    return _load(name)


def _load(name: str) -> ModelFamily:
    module, _, attribute = _FAMILIES[name].partition(":")
    found: ModelFamily = getattr(importlib.import_module(module), attribute)
    return found
