"""Events as the text that the log holds, and back. A stranger's log may hold any text."""

from __future__ import annotations

import json

from merging.bounded import parse_json
from search.events import EVENTS, Event
from search.optimizers.contract import Genome, Outcome
from search.plain_types import check_fields


def payload_of(event: Event) -> str:
    """JSON for the log; the shortest decimals that give the same floats again, NaN and infinities among them."""
    return json.dumps(event.payload(), separators=(",", ":"), allow_nan=True)


def event_of(kind: str, payload: str) -> Event:
    """The record of a logged payload.

    Args:
        kind: of :data:`search.events.EVENTS`.
        payload: JSON.

    Raises:
        KeyError: a kind that this version does not know, or something is missing.
        TypeError, ValueError: it is no such event.
    """
    cls = EVENTS[kind]
    data = dict(parse_json(payload))
    check_fields(cls, data)
    if "genome" in data:
        data["genome"] = Genome(tuple(data["genome"]["values"]), tuple(data["genome"]["categories"]))
    if "outcome" in data:
        outcome = dict(data["outcome"])
        check_fields(Outcome, outcome)
        for name in ("utilities", "errors", "violations"):
            outcome[name] = tuple(outcome[name])
        data["outcome"] = Outcome(**outcome)
    return cls(**data)
