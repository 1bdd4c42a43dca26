"""Configs to start from: commented YAML, filled in by ``paretomerge init``.

A preset is a file ``NAME.yaml`` in this folder. Its ``${…}`` are replaced by what a user names; everything else,
comments above all, is written as it stands.
"""

from __future__ import annotations

from importlib import resources
from string import Template
from typing import Literal, NamedTuple

from search.errors import SearchError

Kind = Literal["text", "speech", "images", "reward", "classifier", "embedding"]
"""What a model takes and gives, as its folder tells: see :mod:`search.model_kind`."""


class Preset(NamedTuple):
    """What ``init`` must know to fill one in.

    Attributes:
        name: of the preset, and of its file.
        summary: one line.
        kinds: models that it is for.
        evaluator: type of the evaluators, where neither user nor data say another; "" for none.
        candidates: budget, where the user names none.
        safety: whether it needs an evaluator of type ``refusal``, for its constraints.
    """

    name: str
    summary: str
    kinds: tuple[Kind, ...]
    evaluator: str
    candidates: int
    safety: bool = False


PRESETS = {
    each.name: each
    for each in (
        Preset(
            "two_experts",
            "Two or more fine-tunes of one base, each scored on data of its own.",
            ("text", "images", "speech", "reward", "classifier", "embedding"), "exact_match", 400,
        ),
        Preset(
            "alpha_beta",
            "One coefficient per expert and nothing else: the smallest search that pays, and the first look.",
            ("text", "images", "speech", "reward", "classifier", "embedding"), "exact_match", 60,
        ),
        Preset(
            "many_layers",
            "Large models with many layers: coefficients along the depth, an open end, a GPU.",
            ("text", "images", "speech", "reward", "classifier", "embedding"), "exact_match", 1000,
        ),
        Preset(
            "safety",
            "Skills that must not cost safety: refusals and benign answers as constraints.",
            ("text",), "exact_match", 300, safety=True,
        ),
        Preset("lm_eval", "Tasks of the LM Evaluation Harness as objectives.", ("text",), "lm_eval", 300),
        Preset(
            "virtual",
            "Merges by RegMean and WUDI as further experts, which the search mixes with the task vectors.",
            ("text", "images", "speech", "reward", "classifier", "embedding"), "exact_match", 400,
        ),
        Preset(
            "data_flow",
            "Paths through the layers of two or more fine-tunes, whose weights stay as they are.",
            ("text", "reward"), "exact_match", 1000,
        ),
        Preset("speech", "Speech recognizers, by word error rate; analogies in reach.", ("speech",), "wer", 200),
        Preset("images", "Image classifiers, by accuracy.", ("images",), "classification", 300),
        Preset("reward", "Reward models, by which answer they prefer.", ("reward",), "reward_pairs", 200),
    )
}  # fmt: skip
"""Name -> preset, the usual one first."""


def fill(name: str, values: dict[str, str]) -> str:
    """A preset's text with the user's values.

    Args:
        name: one of :data:`PRESETS`.
        values: every name that the template has in ``${…}``, as the YAML that stands there.

    Raises:
        SearchError: there is no such preset.
    """
    return Template(template(name)).substitute(values)


def template(name: str) -> str:
    """A preset's file.

    Raises:
        SearchError: there is no such preset.
    """
    from search.positions import did_you_mean

    if name not in PRESETS:
        raise SearchError(
            f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)}"
        )
    return (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
