"""Where the calibration inputs of an expert come from, as a config says it. Cheap to import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from evaluators.items import Table
from evaluators.prompts import PromptOptions

Kind = Literal["text", "chat", "image", "audio"]


def _form(value: object) -> str | None:
    if isinstance(value, str | Path):
        return "data path"
    return "data table" if isinstance(value, Mapping | Table) else None


Source = Annotated[
    Annotated[Path, Tag("data path")] | Annotated[Table, Tag("data table")],
    Discriminator(
        _form, custom_error_type="data", custom_error_message="expected a file, or a table {file: …} or {dataset: …}"
    ),
]


class InputsOptions(BaseModel):
    """Unlabelled inputs: those of an evaluator's search split, or the rows of a table.

    Of rows the inputs are texts unless ``chat``, ``image`` or ``audio`` names a field.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    evaluator: str | None = Field(
        None, description="record what this evaluator asks about items of its search split, answers being the expert's"
    )
    data: Source | None = Field(
        None,
        description="rows: a file (.jsonl, .json, .csv, .tsv, .parquet), a folder with search, selection and holdout, "
        "of which search is read, or a table {file: …} or {dataset: …}",
    )
    text: str | None = Field(
        None, description='a text of each row, its fields in braces: "{prompt} {answer}"; "{text}" by default'
    )
    pair: str | None = Field(
        None, description="the second text, for models that read pairs, with the row's fields in braces"
    )
    chat: str | None = Field(
        None, min_length=1, description="the field with a conversation: a list of {role: …, content: …}"
    )
    image: str | None = Field(
        None, min_length=1, description="the field with an image: a file, bytes, or numbers from 0 to 255"
    )
    audio: str | None = Field(None, min_length=1, description="the field with a recording: a file, or bytes")
    resample: bool = Field(False, description="audio: convert other sampling rates instead of refusing them")
    language: str | None = Field(
        None, description="audio: what a multilingual Whisper is told; it detects it otherwise"
    )
    task: Literal["transcribe", "translate"] | None = Field(
        None, description="audio: what a multilingual Whisper is told"
    )

    @field_validator("text", "pair")
    @classmethod
    def _is_a_template(cls, value: str | None) -> str | None:
        if value is not None:
            PromptOptions(template=value)
        return value

    @model_validator(mode="after")
    def _one_source_of_one_kind(self) -> InputsOptions:
        if (self.evaluator is None) == (self.data is None):
            raise ValueError("name either an evaluator, or data")
        named = [name for name in ("text", "chat", "image", "audio") if getattr(self, name) is not None]
        if self.evaluator is not None and (named or self.pair is not None):
            raise ValueError(f"{(named or ['pair'])[0]} belongs to data; an evaluator knows what it asks")
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)}: an input is one of text, chat, image and audio; name one")
        if self.pair is not None and self.text is None:
            raise ValueError("pair is the second text of a pair; name the first one with text")
        if self.audio is None and (self.resample or self.language is not None or self.task is not None):
            raise ValueError("resample, language and task belong to audio; leave them out")
        return self

    @property
    def kind(self) -> Kind:
        """What a row's input is."""
        for kind in ("chat", "image", "audio"):
            if getattr(self, kind) is not None:
                return kind
        return "text"

    @property
    def templates(self) -> tuple[str, ...]:
        """Of texts: one, or two for pairs."""
        return (self.text or "{text}",) if self.pair is None else (self.text or "{text}", self.pair)
