"""The model card of an export: ``README.md`` with what the Hub reads, and what a person wants to know.

It says nothing that the run's numbers do not carry, and nothing of the machine that it was made on. Names, scores'
names, tokens and licences come from strangers' files: :mod:`search.card.markdown` makes them plain.
"""

from search.card.facts import CardFacts
from search.card.parents import Parent
from search.card.writing import write_card

__all__ = ["CardFacts", "Parent", "write_card"]
