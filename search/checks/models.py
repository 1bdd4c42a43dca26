"""The models of a config: readable, of one architecture, finite, and plausible fine-tunes of their base."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from merging import hub_models
from merging.checkpoint import Checkpoint
from merging.opening import is_adapter, is_vector, open_model
from merging.recipe import MergingError
from merging.sampling import Sample, sample
from merging.scan import PLAUSIBLE
from merging.sources import BASE, Sources
from search.checks.subject import Subject
from search.positions import Location
from search.setup import model_path

FAR = 0.1
"""‖τ‖/‖θ0‖ above which a fine-tune was a long one: fine-tunes stay under it, continued pre-training does not."""

UNEQUAL = 3.0
"""Ratio of the longest task vector to the shortest above which one outweighs the other."""

ALIKE = 0.95
"""Cosine of two task vectors above which a merge of the two has little to win."""


@dataclass
class Models:
    """The models as far as they can be used.

    Attributes:
        folders: alias -> folder, of those that are there.
        checkpoints: alias -> model, of those that can be read.
        sources: all of them, where they fit each other.
        sample: what a sample of their weights says, where they fit.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    sources: Sources | None = None
    sample: Sample | None = None


def place_of(alias: str) -> Location:
    """Where the config names a model."""
    return ("models", BASE) if alias == BASE else ("models", "experts", alias)


def check_models(subject: Subject) -> Models:
    """Open all models, compare them, and look at a sample of their weights."""
    found, given = Models(), subject.config.models
    for alias, reference in {BASE: given.base, **given.experts}.items():
        location = place_of(alias)
        if _is_elsewhere(subject, location, reference):
            continue  # what a run would fetch was said
        if alias != BASE and BASE not in found.checkpoints and _needs_base(subject, location, reference):
            continue  # what is wrong with the base was said
        with subject.findings.at(*location):
            found.folders[alias] = model_path(subject.loaded, location, reference)
            found.checkpoints[alias] = open_model(found.folders[alias], found.checkpoints.get(BASE))
    fitting = _fitting(subject, found.checkpoints)
    if fitting is None:
        return found
    if set(fitting.checkpoints) == {BASE, *given.experts}:
        found.sources = fitting
    _note_dtypes(subject, fitting)
    try:
        found.sample = sample(fitting)
    except MergingError as error:
        # damage that is met in reading weights: the message names the file
        damaged = [alias for alias, each in fitting.checkpoints.items() if f"{each.path}/" in str(error)]
        blamed = max(damaged, key=lambda alias: len(str(fitting.checkpoints[alias].path)), default=BASE)
        with subject.findings.at(*place_of(blamed)):
            raise
        return found
    with subject.findings.at(*place_of(BASE)):
        _judge(subject, fitting, found.sample)
    return found


def _is_elsewhere(subject: Subject, location: Location, reference: str) -> bool:
    """Whether it is a model on the Hub that is not on this machine; says what a run would fetch."""
    if not hub_models.is_reference(reference):
        return False
    with subject.findings.at(*location):
        if hub_models.cached(hub_models.parse(reference)) is not None:
            return False
        try:
            wanted = hub_models.ask(reference)
        except hub_models.NotHereError as error:
            subject.findings.warn(location, str(error))
            return True
        subject.findings.note(
            location,
            f"{reference} is not on this machine: a run downloads it ({wanted.words}); what can be told of models is "
            "checked when it is there",
        )
    return True


def _needs_base(subject: Subject, location: Location, reference: str) -> bool:
    """Whether it changes a base, and cannot be read without one: an adapter, or a vector."""
    with subject.findings.at(*location):
        folder = model_path(subject.loaded, location, reference)
        return is_adapter(folder) or is_vector(folder)
    return True


def _fitting(subject: Subject, checkpoints: dict[str, Checkpoint]) -> Sources | None:
    """The base and all experts that fit it; what does not is said. None without a base."""
    if BASE not in checkpoints:
        return None
    try:
        return Sources.opened(checkpoints)
    except MergingError:
        pass  # whose fault it is is told one by one
    good = {BASE: checkpoints[BASE]}
    with subject.findings.at(*place_of(BASE)):
        fitting = Sources.opened(good)
        for alias, checkpoint in checkpoints.items():
            if alias != BASE:
                with subject.findings.at(*place_of(alias)):
                    Sources.opened({**good, alias: checkpoint})
                    fitting = Sources.opened({**fitting.checkpoints, alias: checkpoint})
        return fitting
    return None


def _note_dtypes(subject: Subject, sources: Sources) -> None:
    """Models that are stored in different widths, and a live model that is narrower than they are."""
    stored = {alias: main_dtype(each) for alias, each in sources.checkpoints.items()}
    for alias, dtype in stored.items():
        if alias != BASE and dtype != stored[BASE]:
            subject.findings.note(
                place_of(alias),
                f"its weights are {dtype}, and the base's {stored[BASE]}; each is merged as it is stored, and the "
                f"result is {subject.config.models.dtype or stored[BASE]}",
            )
    wanted = subject.config.models.dtype
    if wanted is not None and wanted != stored[BASE]:
        subject.findings.note(
            ("models", "dtype"), f"the base's weights are {stored[BASE]}: what is scored and exported is {wanted}"
        )


def main_dtype(checkpoint: Checkpoint) -> str:
    """The dtype of most of a model's elements."""
    elements: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        name = str(info.dtype).removeprefix("torch.")
        elements[name] = elements.get(name, 0) + info.numel
    return max(elements, key=lambda name: elements[name])


def _judge(subject: Subject, sources: Sources, seen: Sample) -> None:
    """What is implausible about the weights."""
    findings, experts = subject.findings, list(seen.distance)
    whence = "" if seen.share == 1.0 else f" (in a sample of {seen.share:.2%} of the weights)"
    for alias, names in seen.broken.items():
        more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
        findings.error(
            place_of(alias),
            f"expected finite weights, found NaN or infinity in {names[0]}{more} of {sources.checkpoints[alias].path}; "
            "that model is broken, leave it out or save it again",
        )
    for one, two in sorted(seen.equal):
        if one == BASE:
            said = f"{sources.checkpoints[two].path} has the weights of the base: there is nothing to merge{whence}"
            if seen.share == 1.0:
                findings.error(place_of(two), f"{said}; is it the right folder?")
            else:
                findings.warn(place_of(two), f"{said}; is it the right folder?")
        else:
            findings.warn(place_of(two), f"it has the weights of the expert {one!r}{whence}; one of the two is enough")
    dull = {two for one, two in seen.equal if one == BASE} | set(seen.broken)
    if BASE not in dull:
        _judge_distances(
            subject, sources, {alias: seen.distance[alias] for alias in experts if alias not in dull}, whence
        )
    _compare(subject, {alias: seen.norms[alias] for alias in experts if alias not in dull}, seen, whence)


def _judge_distances(subject: Subject, sources: Sources, ratios: dict[str, float], whence: str) -> None:
    for alias, ratio in ratios.items():
        if not ratio <= PLAUSIBLE:
            subject.findings.warn(
                place_of(alias),
                f"it is far from the base: ‖τ‖/‖θ0‖ = {ratio:.2f}{whence}, where fine-tunes are under about {FAR} and "
                f"unrelated models near 1.4; is {sources.path} the base that it was trained from?",
            )
    long = {alias: ratio for alias, ratio in ratios.items() if FAR < ratio <= PLAUSIBLE}
    if long:
        listed = ", ".join(f"{alias} {ratio:.2f}" for alias, ratio in long.items())
        subject.findings.note(
            ("models", "experts"),
            f"‖τ‖/‖θ0‖ is more than the {FAR} of most fine-tunes, as after continued pre-training: {listed}{whence}; "
            "such task vectors are harder to merge",
            at_key=True,
        )


def _compare(subject: Subject, norms: dict[str, float], seen: Sample, whence: str) -> None:
    """Task vectors of very different lengths, or of almost one direction."""
    if len(norms) > 1:
        longest, shortest = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
        ratio = norms[longest] / norms[shortest] if norms[shortest] else math.inf
        if ratio > UNEQUAL:
            subject.findings.note(
                place_of(longest),
                f"its task vector is {ratio:.1f} times as long as that of {shortest!r}{whence}: with equal "
                "coefficients it outweighs it",
            )
    for (one, two), cosine in seen.cosines.items():
        if one in norms and two in norms and (one, two) not in seen.equal and cosine > ALIKE:
            subject.findings.note(
                place_of(two),
                f"its task vector points almost where that of {one!r} does: cosine {cosine:.3f}{whence}; a merge of "
                "the two has little to win over either",
            )
