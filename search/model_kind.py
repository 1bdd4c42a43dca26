"""What a model folder holds, told from its small files alone: nothing of torch is imported, no weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from search.errors import SearchError
from search.presets import Kind

_SPEECH = ("ForSpeechSeq2Seq", "ForCTC", "WhisperForConditionalGeneration", "Speech2TextForConditionalGeneration")
_ENCODERS = ("BertModel", "RobertaModel", "MPNetModel", "XLMRobertaModel", "DistilBertModel")
_WORDS: dict[Kind, str] = {
    "text": "a language model",
    "speech": "a speech recognizer",
    "images": "an image classifier",
    "reward": "a reward model",
    "classifier": "a classifier of texts",
    "embedding": "an encoder of texts",
}


class ModelKind(NamedTuple):
    """What a model is.

    Attributes:
        kind: what it takes and gives.
        architecture: its class in transformers, "" where the folder does not say.
        layers: of its text model, encoder or decoder; None where the folder does not say.
    """

    kind: Kind
    architecture: str
    layers: int | None

    @property
    def words(self) -> str:
        """``a language model (LlamaForCausalLM, 32 layers)``."""
        more = [self.architecture] * bool(self.architecture)
        more += [f"{self.layers} layer{'s' * (self.layers != 1)}"] * (self.layers is not None)
        return f"{_WORDS[self.kind]} ({', '.join(more)})" if more else _WORDS[self.kind]


def model_kind(folder: Path) -> ModelKind:
    """What the model in a folder is.

    Raises:
        SearchError: no folder, or none with a readable ``config.json``.
    """
    config = _config(folder)
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    layers = next(
        (
            value
            for part in (config, config.get("text_config"))
            if isinstance(part, dict)
            for key in ("num_hidden_layers", "n_layer", "encoder_layers", "num_layers")
            if isinstance(value := part.get(key), int)
        ),
        None,
    )
    return ModelKind(_kind(architecture, config, folder), architecture, layers)


def _kind(architecture: str, config: dict[str, Any], folder: Path) -> Kind:
    if architecture.endswith(_SPEECH):
        return "speech"
    if architecture.endswith("ForImageClassification"):
        return "images"
    if architecture.endswith(("ForSequenceClassification", "RewardModel")):
        labels = config.get("id2label")
        one = config.get("num_labels") == 1 or (isinstance(labels, dict) and len(labels) == 1)
        return "reward" if one else "classifier"
    if (folder / "modules.json").is_file() or architecture in _ENCODERS:
        return "embedding"
    return "text"


def _config(folder: Path) -> dict[str, Any]:
    from merging.bounded import printable, read_json

    shown = printable(str(folder))
    if not folder.is_dir():
        raise SearchError(f"{shown}: expected a folder with a model in Hugging Face format, found nothing there")
    path = folder / "config.json"
    if not path.is_file():
        raise SearchError(
            f"{shown}: expected a model in Hugging Face format, found no config.json in that folder; name the folder "
            "that save_pretrained wrote"
        )
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise SearchError(f"{shown}: its config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise SearchError(f"{shown}: its config.json holds no object, so it is no model of Hugging Face's")
    return config
