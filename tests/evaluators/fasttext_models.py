"""A small fastText model in the library's own file format: two languages, told by the letters that a text has.

Every letter is a subword of length one, with a row of its own: (1, 0) for kana, (0, 1) for Latin. A text is the mean of
its letters, and the output layer makes log-odds of that, so that the probability follows from the shares by hand.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

STEEPNESS = 8.0
_BUCKETS, _LABELS = 20_011, ("ja", "en")
_KANA = [chr(code) for code in (*range(0x3041, 0x3097), *range(0x30A1, 0x30FB))]
_LATIN = [chr(code) for code in (*range(0x41, 0x5B), *range(0x61, 0x7B))]


def write_model(path: Path, labels: tuple[str, str] = _LABELS) -> Path:
    """Write the model; its classes are ``__label__ja`` and ``__label__en`` unless told otherwise."""
    rows = np.zeros((1 + _BUCKETS, 2), dtype="<f4")
    for dimension, letters in enumerate((_KANA, _LATIN)):
        places = [1 + _hash(letter) % _BUCKETS for letter in letters]
        assert not rows[places].any(), "a bucket is taken twice"
        rows[places, dimension] = 1.0
    output = np.eye(2, dtype="<f4") * STEEPNESS
    dimension, loss, supervised = 2, 3, 3  # softmax; a classifier
    parts = [struct.pack("<ii", 793712314, 12)]
    parts.append(struct.pack("<12id", dimension, 5, 1, 1, 5, 1, loss, supervised, _BUCKETS, 1, 1, 100, 1e-4))
    parts.append(struct.pack("<iiiqq", 3, 1, 2, 3, -1))
    for word, kind in (("</s>", 0), *((f"__label__{label}", 1) for label in labels)):
        parts.append(word.encode() + b"\0" + struct.pack("<qb", 1, kind))
    parts.extend(struct.pack("<bqq", 0, *matrix.shape) + matrix.tobytes() for matrix in (rows, output))
    path.write_bytes(b"".join(parts))
    return path


def probability(kana: int, latin: int, end: bool = True) -> float:
    """What the model says of Japanese, of a text with so many letters in words without other signs."""
    letters = kana + latin + end  # the line's end is a word, with a row of zeros
    softmax = 1.0 / (1.0 + np.exp(-STEEPNESS * (kana - latin) / letters))
    return float(softmax + 1e-5)  # the library adds this before it takes the logarithm


def _hash(letter: str) -> int:
    """FNV-1a over bytes that are signed, as the library has it."""
    value = 2166136261
    for byte in letter.encode():
        signed = byte - 256 if byte > 127 else byte
        value = ((value ^ (signed & 0xFFFFFFFF)) * 16777619) & 0xFFFFFFFF
    return value
