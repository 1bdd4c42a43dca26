"""Which class of transformers loads a model folder, what the Hub calls its task, and the lines that load it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merging.bounded import read_json

# Auto class -> the Hub's name of its task; the first that knows the model's class is taken.
_TASKS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForImageTextToText": "image-text-to-text",
    "AutoModelForSpeechSeq2Seq": "automatic-speech-recognition",
    "AutoModelForCTC": "automatic-speech-recognition",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForZeroShotImageClassification": "zero-shot-image-classification",
    "AutoModelForAudioClassification": "audio-classification",
    "AutoModelForObjectDetection": "object-detection",
    "AutoModelForSeq2SeqLM": "",
    "AutoModel": "",
}
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class Loading:
    """How a folder is loaded.

    Attributes:
        model: name of the Auto class.
        inputs: name of the class that makes its inputs, "" where the folder has none.
        task: the Hub's pipeline tag, "" where it is not clear.
    """

    model: str
    inputs: str
    task: str

    def lines(self, place: str) -> str:
        """Python that loads it from a folder or repository."""
        classes = ", ".join(name for name in (self.model, self.inputs) if name)
        text = f"from transformers import {classes}\n\nmodel = {self.model}.from_pretrained({place!r})\n"
        if self.inputs:
            variable = "tokenizer" if self.inputs == "AutoTokenizer" else "processor"
            text += f"{variable} = {self.inputs}.from_pretrained({place!r})\n"
        return text


def loading_of(folder: Path) -> Loading:
    """The classes for a model folder, by its ``config.json``: the Auto class that transformers maps the class of
    ``architectures`` to; where it names none that is known, that of causal language models if the type has one."""
    try:
        config: Any = read_json(folder / "config.json")
    except (OSError, ValueError):
        config = {}
    config = config if isinstance(config, dict) else {}
    name = _auto_class(str(config.get("model_type")), config.get("architectures"))
    tokens = any((folder / each).is_file() for each in _TOKENIZERS)
    features = _object(folder / "preprocessor_config.json")
    if features and not tokens:
        inputs = "AutoImageProcessor" if "image_processor_type" in features else "AutoFeatureExtractor"
    elif features or (folder / "processor_config.json").is_file():
        inputs = "AutoProcessor"
    else:
        inputs = "AutoTokenizer" if tokens else ""
    return Loading(name, inputs, _TASKS[name])


def _auto_class(kind: str, architectures: Any) -> str:
    from transformers.models.auto import modeling_auto

    known = {
        "AutoModelForCausalLM": "CAUSAL_LM", "AutoModelForImageTextToText": "IMAGE_TEXT_TO_TEXT",
        "AutoModelForSpeechSeq2Seq": "SPEECH_SEQ_2_SEQ", "AutoModelForCTC": "CTC",
        "AutoModelForSequenceClassification": "SEQUENCE_CLASSIFICATION",
        "AutoModelForTokenClassification": "TOKEN_CLASSIFICATION",
        "AutoModelForQuestionAnswering": "QUESTION_ANSWERING", "AutoModelForMaskedLM": "MASKED_LM",
        "AutoModelForImageClassification": "IMAGE_CLASSIFICATION",
        "AutoModelForZeroShotImageClassification": "ZERO_SHOT_IMAGE_CLASSIFICATION",
        "AutoModelForAudioClassification": "AUDIO_CLASSIFICATION", "AutoModelForObjectDetection": "OBJECT_DETECTION",
        "AutoModelForSeq2SeqLM": "SEQ_TO_SEQ_CAUSAL_LM",
    }  # fmt: skip
    mappings = {auto: getattr(modeling_auto, f"MODEL_FOR_{key}_MAPPING_NAMES", {}) for auto, key in known.items()}
    named = architectures if isinstance(architectures, list) else []
    for auto, mapping in mappings.items():
        classes = mapping.get(kind, ())
        if any(each in ((classes,) if isinstance(classes, str) else classes) for each in named):
            return auto
    return "AutoModelForCausalLM" if not named and kind in mappings["AutoModelForCausalLM"] else "AutoModel"


def _object(file: Path) -> dict[str, Any]:
    try:
        data = read_json(file)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
