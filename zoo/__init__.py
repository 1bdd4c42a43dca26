"""Small model families that are really trained: for the quickstart, the tests and the experiments.

A family is a base and one expert for each of its skills, with search, selection and holdout items for every skill.
``paretomerge zoo build skills`` makes one; ``zoo://skills/base`` then names a member wherever a model is expected.

Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from zoo.builder import ZooEvent, build
from zoo.family import Family, ZooError, families
from zoo.references import is_reference, resolve

__all__ = ["Family", "ZooError", "ZooEvent", "build", "families", "is_reference", "resolve"]
