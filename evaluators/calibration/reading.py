"""Rows of a data file as inputs of a model: tokenised, preprocessed, heard, as the evaluators do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from evaluators.calibration.arguments import encodes_and_decodes
from evaluators.calibration.inputs import Input, Inputs
from evaluators.calibration.options import InputsOptions, Kind
from evaluators.calibration.recorder import Recorder
from evaluators.calibration.rows import Drawn, draw_rows
from evaluators.calibration.running import check_runs
from evaluators.calibration.writing import write
from evaluators.contract import Engine, EvaluatorError

_READS: Final[dict[str, str]] = {
    "input_ids": "texts",
    "pixel_values": "images",
    "input_features": "recordings",
    "input_values": "recordings",
}
_GIVES: Final[dict[Kind, str]] = {"text": "texts", "chat": "texts", "image": "images", "audio": "recordings"}

# What a model with encoder and decoder may write about an input that it is given, at most.
_ANSWER_TOKENS: Final = 64
# A transcript, as wer has it; and how many recordings are heard at once.
_TRANSCRIPT_TOKENS: Final = 224
_AT_ONCE: Final = 16


def read_inputs(
    options: InputsOptions,
    engine: Engine,
    limit: int,
    seed: int = 0,
    *,
    rows: Sequence[Drawn] | None = None,
) -> list[Input]:
    """Inputs of a data file, as the live model takes them.

    Texts are cut at the model's positions. What a decoder reads beside an encoder's input (the transcript of a
    recording) is what the live weights write, so the expert's own have to be there.

    Args:
        options: with ``data``.
        engine: over the model that will be run on them.
        limit: at most so many rows, see :func:`evaluators.calibration.rows.draw_rows`.
        seed: of the draw.
        rows: drawn before with the same options, so that the file is not read again.

    Returns:
        Keyword arguments of the module's ``forward``, as :func:`evaluators.calibration.recording.record_inputs` gives
        them; fewer than ``limit`` where there are fewer different ones.

    Raises:
        EvaluatorError: no rows, one that cannot be used (names file and line), or inputs that are none for this model.
    """
    drawn = draw_rows(options, limit, seed) if rows is None else rows
    _check_kind(options, engine, drawn[0].place)
    inputs = Inputs()
    if options.kind == "audio":
        _hear(options, engine, drawn, inputs)
    else:
        read = _image_inputs if options.kind == "image" else _text_inputs
        for one in read(options, engine, drawn):
            inputs.add(one)
    check_runs(engine, inputs.all(), drawn[0].place)
    return inputs.all()


def _check_kind(options: InputsOptions, engine: Engine, place: str) -> None:
    reads = _READS.get(str(getattr(engine.model, "main_input_name", "")))
    gives = _GIVES[options.kind]
    if reads is not None and reads != gives:
        field = {"texts": "text (a template) or chat", "images": "image", "recordings": "audio"}[reads]
        raise EvaluatorError(
            f"{place}: the calibration data are {gives}, and {type(engine.model).__name__} takes {reads}; name the "
            f"field of these with {field}, or other data"
        )


def _text_inputs(options: InputsOptions, engine: Engine, rows: Sequence[Drawn]) -> list[Input]:
    if engine.writes_text:
        return [_as_input(_causal_tokens(options, engine, row)) for row in rows]
    from evaluators.sequences import TextReader

    reader = TextReader(engine, truncate=True)
    found = []
    for row in rows:
        conversation = options.chat is not None
        tokens = reader.conversation(row.messages, row.place) if conversation else reader.texts(row.read, row.place)
        found.append(_as_input(tokens.ids, tokens.types))
    with engine.forward() as module:
        if encodes_and_decodes(module):
            return [write(module, one, _ANSWER_TOKENS, engine.device) for one in found]
    return found


def _causal_tokens(options: InputsOptions, engine: Engine, row: Drawn) -> Sequence[int]:
    if len(row.read) > 1:
        raise EvaluatorError(
            f"{row.place}: {type(engine.model).__name__} goes on with one text, and pair names a second; put both into "
            "the template of text"
        )
    if options.chat is None:
        tokens: Sequence[int] = engine.encode(row.read[0], special=True)
    elif not engine.has_chat_template:
        raise EvaluatorError(
            f"{row.place}: a conversation needs a chat template, and the tokenizer has none; write rows as texts "
            "(text: a template of their fields), or use the tokenizer of a model that was trained on conversations"
        )
    elif row.messages[-1]["role"] == "assistant":
        from evaluators.sequences import TextReader

        tokens = TextReader(engine, truncate=True).conversation(row.messages, row.place).ids
    else:
        try:
            tokens = engine.encode_chat(row.messages)
        except EvaluatorError as error:
            raise EvaluatorError(f"{row.place}: {error}") from error
    if not tokens:
        raise EvaluatorError(f"{row.place}: the tokenizer makes no tokens of this text; correct or remove the row")
    return tokens[: engine.max_length]


def _as_input(tokens: Sequence[int], types: Sequence[int] = ()) -> Input:
    one = {"input_ids": torch.tensor([list(tokens)], dtype=torch.int64)}
    if types:
        one["token_type_ids"] = torch.tensor([list(types)], dtype=torch.int64)
    return one


def _image_inputs(options: InputsOptions, engine: Engine, rows: Sequence[Drawn]) -> list[Input]:
    from evaluators.images import ImageReader, picture_of

    reader = ImageReader(engine)
    field = str(options.image)
    return [{"pixel_values": reader.read(picture_of(row.row, field), row.place)[None]} for row in rows]


def _hear(options: InputsOptions, engine: Engine, rows: Sequence[Drawn], inputs: Inputs) -> None:
    from evaluators.wer.audio import read_audio
    from evaluators.wer.recognizers import CTCRecognizer, Decoding, batches_of, build_recognizer

    model: Any = engine.model
    writes = encodes_and_decodes(model)
    decoding = Decoding(_TRANSCRIPT_TOKENS, options.language, options.task)
    # Of a model that writes no transcript only the features count, whatever it makes of them.
    recognizer = build_recognizer(engine, decoding) if writes else CTCRecognizer(engine)
    features: list[Tensor] = []
    for row in rows:
        recording = row.row.media(str(options.audio))
        samples = read_audio(recording, row.place, recognizer.rate, resample=options.resample)
        features.append(recognizer.features(samples, f"{row.place}: the recording {recording.name}"))
    if not writes:
        name, dtype = str(model.main_input_name), next(model.parameters()).dtype
        for each in features:
            inputs.add({name: each[None].to(dtype)})
        return
    recorder = Recorder(engine, inputs)
    shapes = [tuple(each.shape) for each in features]
    with recorder.recording(), recorder.forward() as module:
        for batch in batches_of(shapes, range(len(shapes)), _AT_ONCE, pad=False):
            recognizer.transcribe(module, [features[index] for index in batch], engine.device)
