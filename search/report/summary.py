"""The report's first sentences: what the numbers carry, and no more."""

from __future__ import annotations

from evaluators.contract import SPLITS, Split
from search.errors import SearchError
from search.judge import CHOICE_RULE
from search.ranges import duration
from search.report.claim import claim_sentences, headline
from search.report.facts import Facts, without_paths
from search.report.markup import count, listed, percent, ranged
from search.store import FIRST


def summary(facts: Facts) -> list[str]:
    """Paragraphs of plain text: the claim, what it rests on, what is doubtful, what it cost."""
    if facts.pick is None:
        return [_counted(facts), *_constraints(facts), *_cost(facts), *_first(facts)]
    if facts.results.chosen is None:
        result = [_counted(facts), _not_chosen(facts, facts.pick)]
    elif facts.results.chosen not in facts.results.scores["holdout"]:
        result = [_counted(facts), _closed(facts, facts.pick)]
    else:
        claim, doubts = _claimed(facts)
        result = [*claim, _holdout(facts, facts.pick), *doubts, _counted(facts)]
    return [*result, *_constraints(facts, facts.pick), *_cost(facts), *_first(facts)]


def _closed(facts: Facts, pick: int) -> str:
    """What is known of a choice whose holdout has not been opened."""
    if facts.results.is_first:
        why = (
            "This is the first of two searches: the second one has it as an expert. It leaves the holdout to that one, "
            "so how good it is on items that no choice was made on is said there, if anywhere."
        )
    else:
        why = "It has no holdout score yet, so how good it is on items that no choice was made on is not known."
    return f"Candidate {pick} was chosen on selection scores. {why} On selection items it {_keeps(facts, pick)}."


def _first(facts: Facts) -> list[str]:
    """Of a hybrid: where one of its experts comes from."""
    first = facts.results.config.first
    if first is None:
        return []
    return [
        f"{first.name}, one of the models that it was made of, was itself found by a search, the first of two: "
        f"{FIRST}/report.html in the run's directory is its report. What that one cost is not counted here."
    ]


def _claimed(facts: Facts) -> tuple[list[str], list[str]]:
    """The claim, and what stands behind it; where items of the run are damaged, only that."""
    try:
        claim, doubts = headline(facts.results), claim_sentences(facts.results)
    except SearchError as error:
        reason = without_paths(str(error), facts.results)
        return [f"What may be claimed of candidate {facts.pick} cannot be worked out. {reason}"], []
    return ([claim[0], " ".join(claim[1:])] if claim else []), doubts


def _constraints(facts: Facts, id: int | None = None) -> list[str]:
    """How many candidates keep the constraints, and which the pick keeps, on every split where that is known."""
    constraints = facts.results.constraints.all
    if not constraints:
        return []
    said = []
    for split in SPLITS:
        found = None if id is None else facts.results.violations[split].get(id)
        if found is None or len(found) != len(constraints):
            continue
        broken = [str(each) for each, by in zip(constraints, found, strict=True) if by > 0.0]
        if not broken:
            said.append(f"on {split} it keeps {_all(len(constraints))}")
        else:
            said.append(f"on {split} it is not shown to keep {listed(broken)}")
    kept = len(facts.scored) - len(facts.infeasible)
    rules = count(len(constraints), "constraint")
    text = f"{rules}: {listed(facts.results.constraints.names)}. "
    text += f"{kept} of {count(len(facts.scored), 'scored candidate')} kept {_all(len(constraints))} on search items"
    if facts.scored and not kept:
        return [f"{text}, so there is nothing to choose from: bounds or their confidence may ask for too much."]
    return [f"{text}; candidate {id}: {listed(said)}." if said else f"{text}."]


def _cost(facts: Facts) -> list[str]:
    """What the search took."""
    results = facts.results
    spent = sum(results.seconds.values())
    if not results.candidates or not spent:
        return []
    return [
        f"It cost {count(results.evaluations, 'evaluation')} of {count(len(results.candidates), 'candidate')}, "
        f"{results.items:,} scored items in the search, and {duration(spent)} of work (see Where the time went)."
    ]


def _all(number: int) -> str:
    return {1: "it", 2: "both"}.get(number, f"all {number}")


def choice_rule(facts: Facts) -> str:
    """How the pick was picked."""
    if facts.results.chosen is not None:
        return f"The choice: {CHOICE_RULE}."
    return "Knee: the candidate of the front whose smallest retention over the objectives is largest, on search scores."


def _counted(facts: Facts) -> str:
    states = [each.state for each in facts.results.candidates]
    done, budget = len(facts.scored), facts.results.config.search.budget.candidates
    other = [
        (states.count("duplicate"), "repeated a recipe that had been scored"),
        (states.count("failed"), "failed"),
        (states.count("censored"), "were stopped early" if states.count("censored") != 1 else "was stopped early"),
        (states.count("running"), "not scored yet"),
    ]
    rest = [f"{number} {what}" for number, what in other if number]
    if not done:
        if states and states.count("failed") == len(states):
            text = f"None of {count(len(states), 'candidate')} could be scored: all failed, for the reasons below."
        else:
            text = "No candidate has been scored yet" + (f" ({listed(rest)})." if rest else ".")
    else:
        names = listed([each.name for each in facts.targets])
        objectives = count(len(facts.targets), "objective")
        text = f"{count(done, 'candidate')} {_were(done)} scored on {objectives}: {names}."
        if rest:
            text += f" Of the others, {listed(rest)}."
    if facts.results.state != "finished":
        text += f" The run is {facts.results.state}: {len(states)} of {budget} candidates were proposed."
    return text


def _not_chosen(facts: Facts, pick: int) -> str:
    text = (
        "Nothing has been chosen yet. What follows are search scores; the best of many candidates looks better on them "
        f"than it is. By them the knee of the front is candidate {pick}, which {_keeps(facts, pick)}. "
    )
    opened = facts.results.openings
    if opened:
        return text + f"The holdout was opened {_times(opened)} before the budget grew."
    return text + "Its selection and holdout scores are not known."


def _holdout(facts: Facts, pick: int) -> str:
    text = f"On holdout, items that no choice was made on, the chosen merge, candidate {pick}, {_keeps(facts, pick)}"
    scaled = any(facts.has_scale(each, "holdout") for each in facts.targets)
    text += " (0 % is the base, 100 % the expert alone)." if scaled else "."
    also = [each.name for each in facts.baselines if each.id == pick]
    if also:
        text += f" It is itself a baseline: {also[0]}. The search found nothing that the rule prefers to it."
    if facts.results.openings > 1:
        text += (
            f" The holdout of this run was opened {_times(facts.results.openings)}; with every opening that something "
            "is learnt from, it becomes less of a holdout."
        )
    return text


def _keeps(facts: Facts, id: int) -> str:
    """``keeps 83 % of string's and 79 % of language's own skill``, on the last split on which it was scored."""
    for split in reversed(SPLITS):
        retained = facts.retention(id, split)
        if retained is not None:
            return _keeps_on(facts, id, split, retained)
    return "has no scores"


def _keeps_on(facts: Facts, id: int, split: Split, retained: tuple[float, ...]) -> str:
    experts = [each.expert for each in facts.targets]
    kept, scores = [], []
    for target, share in zip(facts.targets, retained, strict=True):
        if facts.has_scale(target, split):
            metric = f" ({target.name})" if experts.count(target.expert) > 1 else ""
            kept.append(f"{percent(share)} of {target.expert}'s{metric}")
        else:
            scores.append(f"{ranged(target, facts.interval(id, split, target))} in {target.name}")
    phrases = [f"keeps {listed(kept)} own skill"] if kept else []
    phrases += [f"scores {listed(scores)}"] if scores else []
    return listed(phrases)


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")
