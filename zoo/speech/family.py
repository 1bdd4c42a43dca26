"""The families of recognizers: sizes, and who learns from what for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from zoo.contract import ModelFamily, Progress, Trained
from zoo.speech.corpus import PARTS, write_part
from zoo.speech.sentences import Fold


@dataclass(frozen=True)
class Recognizer:
    """Sizes of the Whisper model: width, layers on each side, attention heads, inner width of the MLP."""

    hidden: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    mlp: int


@dataclass(frozen=True)
class Round:
    """One member's training.

    Attributes:
        shares: part of the data -> its share of the examples.
        steps: how many.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon for the matrices inside the layers; without it AdamW trains everything.
        batch: examples a step.
    """

    shares: Mapping[str, float]
    steps: int
    lr: float
    muon_lr: float | None = None
    batch: int = 24


@dataclass(frozen=True)
class SpeechFamily(ModelFamily):
    """A recognizer of general sentences in a clean synthetic voice, and experts of one domain and kind of voice each.

    Attributes:
        name: how it is referred to.
        summary: one line for people.
        sizes: of every member.
        words: words a slot of a sentence, at most.
        base: the base's training.
        base_real: how many "real" utterances the base learns from: few, or nothing is left for an expert to learn.
        experts: part of the data -> its expert's training.
        real: "real" utterances of a domain in each fold.
        syn: the same for synthetic ones.
    """

    sources: ClassVar[tuple[str, ...]] = (
        *("determinism", "muon", "speech.sentences", "speech.synthesis", "speech.corpus"),
        *("speech.models", "speech.training"),
    )
    measure: ClassVar[str] = "words got wrong (WER, greedy)"

    name: str
    summary: str
    sizes: Recognizer
    words: int
    base: Round
    base_real: int
    experts: Mapping[str, Round]
    real: Mapping[Fold, int]
    syn: Mapping[Fold, int]

    @property
    def members(self) -> tuple[str, ...]:
        """The models, the base first, then one expert a part of the data."""
        return ("base", *self.experts)

    @property
    def parts(self) -> tuple[str, ...]:
        """Every domain in every kind of voice."""
        return tuple(part.name for part in PARTS)

    def plan(self, member: str) -> Round:
        """A member's training."""
        return self.base if member == "base" else self.experts[member]

    def cost(self, member: str) -> float:
        """Examples seen."""
        return float(self.plan(member).steps * self.plan(member).batch)

    def write_data(self, folder: Path, progress: Progress) -> None:
        """Have espeak-ng speak every part."""
        sizes = {part: self.real if part.source == "real" else self.syn for part in PARTS}
        total = sum(sum(size.values()) for size in sizes.values())
        finished = 0
        for part, size in sizes.items():
            before = finished

            def report(done: int, _: int, loss: float, before: int = before) -> None:
                progress(before + done, total, loss)

            write_part(folder / part.name, part, size, self.words, report)
            finished += sum(size.values())

    def train_member(self, folder: Path, member: str, seed: int, progress: Progress) -> Trained:
        """Train a recognizer on the utterances in ``folder / "data"``."""
        from zoo.speech.models import build_feature_extractor, build_tokenizer
        from zoo.speech.training import train

        model, loss = train(self, folder, member, seed, progress)
        return Trained(model, (build_feature_extractor(), build_tokenizer()), int(self.cost(member)), loss)

    def scores(self, folder: Path, member: str, split: str) -> dict[str, float]:
        """Part -> word error rate of greedy transcripts."""
        from zoo.speech.scores import error_rate

        return {part: error_rate(folder / member, folder / "data" / part, split) for part in self.parts}

    def versions(self) -> dict[str, str]:
        """Whose voices they are."""
        from zoo.speech.synthesis import version

        return {"espeak-ng": version()}


def _expert(part: str, steps: int, lr: float, batch: int = 24, muon_lr: float | None = None) -> Round:
    """A fifth of the examples are general and synthetic, or the expert forgets the general domain altogether."""
    shares = {part: 0.8}
    shares["general_syn"] = shares.get("general_syn", 0.0) + 0.2
    return Round(shares, steps, lr, muon_lr, batch)


SPEECH = SpeechFamily(
    name="speech",
    summary='speech recognizers at 0.2 M parameters: two domains, synthetic and "real" voices (needs espeak-ng)',
    sizes=Recognizer(hidden=64, encoder_layers=2, decoder_layers=1, heads=4, mlp=256),
    words=12,
    # Muon learns in 300 steps what AdamW has not learned in 700 (WER 2 % against 48 %). Not for the experts: as in the
    # skills families, they would lie too far from the base to be merged.
    base=Round({"general_syn": 0.85, "general_real": 0.15}, 300, 3e-3, muon_lr=0.012),
    base_real=60,
    experts={
        "general_real": _expert("general_real", 200, 6e-4),
        "general_syn": _expert("general_syn", 200, 6e-4),
        "specific_syn": _expert("specific_syn", 300, 1e-3),
        "specific_real": _expert("specific_real", 300, 1e-3),
    },
    real={"train": 480, "search": 400, "selection": 160, "holdout": 400},
    syn={"train": 480, "search": 100, "selection": 60, "holdout": 160},
)

SPEECH_NANO = SpeechFamily(
    name="speech-nano",
    summary="the same with few words, at 0.04 M parameters: for tests (needs espeak-ng)",
    sizes=Recognizer(hidden=32, encoder_layers=1, decoder_layers=1, heads=2, mlp=64),
    words=3,
    base=Round({"general_syn": 0.85, "general_real": 0.15}, 190, 5e-3, muon_lr=0.02, batch=16),
    base_real=8,
    experts={
        "general_real": _expert("general_real", 60, 2e-3, batch=16),
        "general_syn": _expert("general_syn", 60, 2e-3, batch=16),
        # After 90 steps specific_real has WER 0.44 to 0.96 on its own part, by seed and processor (the base: 1.02 to
        # 1.06); after 150, 0.36 to 0.61.
        "specific_syn": _expert("specific_syn", 150, 5e-3, batch=16, muon_lr=0.01),
        "specific_real": _expert("specific_real", 150, 5e-3, batch=16, muon_lr=0.01),
    },
    real={"train": 56, "search": 12, "selection": 6, "holdout": 20},
    syn={"train": 56, "search": 12, "selection": 6, "holdout": 20},
)
