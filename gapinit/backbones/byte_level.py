"""Train byte-level BPE tokenizers, which encode any text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


def byte_level_tokenizer(
    texts: Iterable[str],
    vocabulary: int,
    special_tokens: Sequence[str],
    *,
    first: str | None = None,
    prefix_space: bool = False,
    **options: Any,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of at most `vocabulary` tokens on texts.

    `special_tokens` get the first ids, in their order. `first`: the token to add in front of every
    text. `prefix_space`: add a space in front of every text. `options` are passed to
    `PreTrainedTokenizerFast` (`eos_token`, `pad_token`, ...).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if first is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, tokenizer.token_to_id(first))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{"padding_side": "right"} | options
    )
