"""The zoo's tokenizer: one word, one token."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from zoo import vocabulary


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over :func:`zoo.vocabulary.tokens` that puts ``<bos>`` before a text."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=vocabulary.UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{vocabulary.BOS} $A", special_tokens=[(vocabulary.BOS, ids[vocabulary.BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=vocabulary.PAD,
        unk_token=vocabulary.UNK,
        bos_token=vocabulary.BOS,
        eos_token=vocabulary.EOS,
        clean_up_tokenization_spaces=False,
    )
