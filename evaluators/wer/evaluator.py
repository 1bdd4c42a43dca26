"""Word and character error rates: how much of what was said a recognizer gets wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, NamedTuple

import jiwer
from pydantic import Field
from torch import Tensor

from evaluators.base import FAILED, ItemEvaluator, Verdict
from evaluators.contract import Engine, EvaluatorError, Metric
from evaluators.engines.memory import fitting, passing
from evaluators.items import DataOptions, Item, Parsed
from evaluators.tables import Media, Row
from evaluators.wer.audio import read_audio
from evaluators.wer.normalizers import Normalizer, build_normalizer
from evaluators.wer.recognizers import Decoding, Recognizer, batches_of, build_recognizer

KEPT_BYTES: Final = 2**29
"""Features that are kept from one candidate to the next; beyond, they are made again from the files, batch by batch."""

# Transcripts have no true limit, and bounds must be true. One is compared up to so much for each token that it may
# have, and never to less than four times its reference. A token begins at most one word, unless a normalizer splits it,
# and only loops come near so many characters: what is cut off there was wrong anyway.
_WORDS_A_TOKEN: Final = 1
_CHARACTERS_A_TOKEN: Final = 16
_TIMES_THE_REFERENCE: Final = 4.0


class WordErrorRateOptions(DataOptions):
    """Options of :class:`WordErrorRate`."""

    audio: str = Field("audio", min_length=1, description="the field that names the recording's file, or holds it")
    text: str = Field("text", min_length=1, description="the field of what is said")
    normalizer: Normalizer = Field(
        "unicode",
        description="what does not count. unicode: case and punctuation, in any script. unspaced: spaces as well, for "
        "scripts without words (read cer). whisper_english, whisper_basic: as in the Whisper paper; basic loses vowel "
        "signs outside Latin scripts. none: white space only",
    )
    resample: bool = Field(False, description="convert recordings of another sampling rate instead of refusing them")
    language: str | None = Field(None, description="what a multilingual Whisper is told; it detects it otherwise")
    task: Literal["transcribe", "translate"] | None = Field(None, description="what a multilingual Whisper is told")
    max_new_tokens: int = Field(
        224, ge=1, le=4096, description="at most so many tokens a transcript; long enough for the longest reference"
    )
    batch_size: int = Field(32, ge=1, description="recordings a forward pass")


class Reference(NamedTuple):
    """A normalized text as it is compared."""

    words: tuple[str, ...]
    characters: str


class Said(NamedTuple):
    """A recording and what is said in it."""

    recording: Media
    text: str


@dataclass(frozen=True)
class Asked:
    """An item in the form that the model is asked with.

    Attributes:
        features: float32, without a batch dimension; None where they are made when they are needed.
        shape: of the features.
        reference: what should be heard.
    """

    features: Tensor | None
    shape: tuple[int, ...]
    reference: Reference


class WordErrorRate(ItemEvaluator[WordErrorRateOptions, Said, Asked]):
    """Greedy transcripts against references, both normalized.

    Metrics, all minimized: ``wer``, substitutions, deletions and insertions over the words said (an utterance's value
    is its own rate and its weight its words, so the aggregate is the corpus' rate, jiwer's); ``wer_capped``, with no
    more errors than words, in [0, 1]: for constraints and racing, which need tight bounds; ``cer`` and ``cer_capped``,
    the same by characters. An empty transcript has all words wrong; logits that are not finite fail the item.
    """

    kind: ClassVar[str] = "wer"
    version: ClassVar[int] = 1
    Options = WordErrorRateOptions

    def __init__(self, options: WordErrorRateOptions) -> None:
        self._fewest = (2**31, 2**31)  # words and characters of the shortest reference
        self._recognizer: Recognizer | None = None
        # The spelling map, which comes with the engine, makes no text empty.
        self._normalize: Callable[[str], str] = build_normalizer(options.normalizer, None)
        super().__init__(options)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """``wer`` and ``cer`` end where the longest transcript that is compared meets the shortest reference."""
        return (
            Metric("wer", "minimize", 0.0, self._worst(_WORDS_A_TOKEN, self._fewest[0])),
            Metric("wer_capped", "minimize", 0.0, 1.0),
            Metric("cer", "minimize", 0.0, self._worst(_CHARACTERS_A_TOKEN, self._fewest[1])),
            Metric("cer_capped", "minimize", 0.0, 1.0),
        )

    def parse(self, row: Row) -> Parsed[Said]:
        """The recording and its text; refuses a text that the normalizer leaves nothing of."""
        text = row.text(self.options.text)
        words, characters = _reference(self._normalize(text))
        if not words:
            raise row.error(
                f'the field "{self.options.text}" is "{text}", of which the normalizer {self.options.normalizer} '
                "leaves nothing, so that no transcript of it could be wrong; leave the line out"
            )
        self._fewest = (min(self._fewest[0], len(words)), min(self._fewest[1], len(characters)))
        recording = row.media(self.options.audio)
        return Parsed(Said(recording, text), [recording.sha256, text])

    def identity(self) -> object:
        """The options, without data and the names of fields."""
        return self.options.model_dump(mode="json", exclude={"data", "limit", "audio", "text"})

    def prepare_items(self, engine: Engine, items: Sequence[Item[Said]]) -> dict[str, Asked]:
        """Decode every recording once and make its features."""
        options = self.options
        decoding = Decoding(options.max_new_tokens, options.language, options.task)
        self._recognizer = build_recognizer(engine, decoding)
        self._normalize = build_normalizer(options.normalizer, engine.folder)
        prepared: dict[str, Asked] = {}
        kept = 0
        for item in items:
            features = self._features(item)
            kept += features.nbytes
            reference = _reference(self._normalize(item.value.text))
            prepared[item.id] = Asked(features if kept <= KEPT_BYTES else None, tuple(features.shape), reference)
        return prepared

    def score_items(self, engine: Engine, items: Sequence[tuple[Item[Said], Asked]]) -> list[Verdict]:
        """Transcribe in batches of similar lengths, and compare."""
        # What takes equally long goes together: by the sound first, then by how much is said.
        order = sorted(
            range(len(items)), key=lambda at: (items[at][1].shape, len(items[at][1].reference.characters), at)
        )
        shapes = [asked.shape for _, asked in items]
        heard: dict[int, str | None] = {}
        most = self.options.batch_size
        with engine.forward() as model:
            for batch in batches_of(shapes, order, fitting(engine, most), pad=self._asked().may_pad):
                passing(engine, len(batch), len(batch), most)
                features = [self._kept_features(*items[at]) for at in batch]
                heard.update(zip(batch, self._asked().transcribe(model, features, engine.device), strict=True))
        return [self._verdict(asked.reference, heard[at]) for at, (_, asked) in enumerate(items)]

    def weights(self, item: Item[Said]) -> Mapping[str, float]:
        """Words and characters said."""
        words, characters = map(len, self._prepared[item.id].reference)
        return {"wer": words, "wer_capped": words, "cer": characters, "cer_capped": characters}

    def _verdict(self, reference: Reference, heard: str | None) -> Verdict:
        if heard is None:
            return FAILED
        transcript = _reference(self._normalize(heard))
        words, characters = map(len, reference)
        most_words, most_characters = int(self.metrics[0].high * words), int(self.metrics[2].high * characters)
        wrong = _errors(jiwer.process_words(" ".join(reference.words), " ".join(transcript.words[:most_words])))
        wrong_characters = _errors(
            jiwer.process_characters(reference.characters, transcript.characters[:most_characters].strip())
        )
        return Verdict(
            {
                "wer": wrong / words,
                "wer_capped": min(wrong, words) / words,
                "cer": wrong_characters / characters,
                "cer_capped": min(wrong_characters, characters) / characters,
            }
        )

    def _worst(self, a_token: int, fewest: int) -> float:
        """As many errors as the longest transcript has words, or characters, over those of the shortest reference."""
        return max(_TIMES_THE_REFERENCE, a_token * self.options.max_new_tokens / fewest)

    def _features(self, item: Item[Said]) -> Tensor:
        recording = item.value.recording
        samples = read_audio(recording, item.place, self._asked().rate, resample=self.options.resample)
        return self._asked().features(samples, f"{item.place}: the recording {recording.name}")

    def _kept_features(self, item: Item[Said], asked: Asked) -> Tensor:
        return self._features(item) if asked.features is None else asked.features

    def _asked(self) -> Recognizer:
        if self._recognizer is None:
            raise EvaluatorError("wer has not been prepared for this engine; call prepare(engine) before score")
        return self._recognizer


def _reference(text: str) -> Reference:
    return Reference(tuple(text.split()), text)


def _errors(found: jiwer.WordOutput | jiwer.CharacterOutput) -> int:
    return int(found.substitutions + found.deletions + found.insertions)
