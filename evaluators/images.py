"""Images for models: read and preprocessed once, as the base model's own processor does it."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evaluators.contract import Engine, EvaluatorError
from evaluators.engines.memory import fitting, passing
from evaluators.tables import Media, Row

_BATCH_VALUES = 8_000_000
_BATCH_IMAGES = 256


@dataclass(frozen=True)
class Picture:
    """An image as a record has it: a file (or its bytes), or its brightness values.

    Attributes:
        content: names what the image shows: equal for equal bytes, or equal values.
    """

    content: str
    _media: Media | None = None
    _values: npt.NDArray[np.uint8] | None = None

    def read(self, channels: int) -> Any:
        """The image as a ``PIL.Image``, in grey for one channel, else in RGB.

        Raises:
            ValueError, OSError: it cannot be decoded.
        """
        from PIL import Image, ImageOps

        if self._media is None:
            picture = Image.fromarray(np.asarray(self._values))
        else:
            picture = ImageOps.exif_transpose(Image.open(io.BytesIO(self._media.read())))
        return picture.convert("L" if channels == 1 else "RGB")


def picture_of(row: Row, field: str) -> Picture:
    """The image that a record's field holds: the path of a file, bytes (see :meth:`evaluators.tables.Row.media`), or
    lists of whole numbers from 0 to 255, [height][width] or [height][width][3].

    Raises:
        EvaluatorError: it holds nothing of the kind.
    """
    value = row.value(field)
    if not isinstance(value, list):
        media = row.media(field)
        return Picture(media.sha256, media)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError):
        array = np.empty(0)
    whole = array.size > 0 and bool(((array >= 0) & (array <= 255) & (array == np.floor(array))).all())
    if not whole or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise row.error(
            f'the field "{field}" must be a file, or whole numbers from 0 to 255 as [height][width] or '
            "[height][width][3], and is neither"
        )
    pixels = array.astype(np.uint8)
    digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return Picture(digest, None, pixels)


class ImageReader:
    """From pictures to ``pixel_values``, with the image processor of an engine's folder.

    Raises:
        EvaluatorError: the engine has no folder, or it holds no image processor that can be loaded.
    """

    def __init__(self, engine: Engine) -> None:
        if engine.folder is None:
            raise EvaluatorError(
                "the image processor is read from the base model's folder, and this engine has none; open it with "
                "open_engine(model, folder)"
            )
        from transformers import AutoImageProcessor

        try:
            self._processor = AutoImageProcessor.from_pretrained(
                str(engine.folder), backend="pil", local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises whatever its processors raise
            lines = str(error).strip().splitlines()
            raise EvaluatorError(
                f"{engine.folder} holds no image processor that can be loaded ({type(error).__name__}: "
                f"{lines[0] if lines else 'no message'}); copy the base model's preprocessor_config.json into it"
            ) from error
        with engine.forward() as module:
            self._channels = int(getattr(getattr(module, "config", None), "num_channels", None) or 3)
            self._dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)

    def read(self, picture: Picture, place: str) -> Tensor:
        """[channels, height, width] in the model's dtype.

        Raises:
            EvaluatorError: it cannot be decoded; names ``place``.
        """
        try:
            pixels = self._processor(images=picture.read(self._channels), return_tensors="pt")["pixel_values"]
        except Exception as error:  # decoders raise what they like for damaged files
            raise EvaluatorError(
                f"{place}: the image cannot be read ({type(error).__name__}: {error}); replace it, or remove the item"
            ) from error
        result: Tensor = pixels[0].to(self._dtype)
        return result


def image_logits(engine: Engine, images: Sequence[Tensor]) -> Tensor:
    """What the present weights say of images, [images, labels] float64 on the CPU. Only equal sizes share a batch.

    Args:
        engine: whose module is an image classifier.
        images: [channels, height, width] each; at least one.
    """
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        by_shape[tuple(image.shape)].append(index)
    order: list[int] = []
    parts: list[Tensor] = []
    with engine.forward() as module:
        for shape, indices in by_shape.items():
            most = max(1, min(_BATCH_IMAGES, _BATCH_VALUES // max(1, int(np.prod(shape)))))
            size = fitting(engine, most)
            for start in range(0, len(indices), size):
                batch = indices[start : start + size]
                passing(engine, len(batch), len(batch), most)
                pixels = torch.stack([images[index] for index in batch]).to(engine.device)
                parts.append(module(pixel_values=pixels).logits.double())
                order += batch
    answers = torch.cat(parts).cpu()
    result = torch.empty_like(answers)
    result[order] = answers
    return result
