"""A tokenizer in the place of a published one that is not there: for models of random weights.

It is byte-level, was trained on a few words and knows the family's special tokens by their names.
Its ids are others than the published ones, so a configuration's special ids are replaced by them
(`with_special_ids`); the vocabulary keeps its size, so every matrix keeps its shape. A text has
more tokens in it than in the published tokenizer: what is told of real text comes from the
architecture file's `template_tokens` and from `config/sizes.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from gapinit.backbones.byte_level import byte_level_tokenizer
from gapinit.errors import GapinitError

VOCABULARY = 420
WORDS = (
    "a photo of a man on a bench with two dogs in the park",
    "Provide a one-sentence caption for the provided image.",
    "Answer the question using a single word or phrase.",
    "You are a helpful assistant. system user model assistant USER: ASSISTANT: Question: answer:",
)


@dataclass(frozen=True)
class Family:
    """The special tokens of a family, and which keys of its configuration name them."""

    eos: str
    pad: str
    bos: str | None = None
    """Stands in front of every text."""
    others: tuple[str, ...] = ()
    outer: Mapping[str, str] = field(default_factory=dict)
    """Keys of the configuration itself, each with its token."""


_QWEN = Family(
    eos="<|im_end|>",
    pad="<|endoftext|>",
    others=("<|im_start|>",),
    outer={
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    },
)
FAMILIES = {
    "blip-2": Family("</s>", "<pad>", "</s>", outer={"image_token_index": "<image>"}),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "gemma3": Family(
        "<eos>",
        "<pad>",
        "<bos>",
        others=("<start_of_turn>", "<end_of_turn>"),
        outer={
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
            "image_token_index": "<image_soft_token>",
        },
    ),
    "mllama": Family(
        "<|eot_id|>",
        "<|finetune_right_pad_id|>",
        "<|begin_of_text|>",
        others=("<|start_header_id|>", "<|end_header_id|>"),
        outer={"image_token_index": "<|image|>"},
    ),
    "llava": Family("</s>", "<pad>", "<s>", outer={"image_token_index": "<image>"}),
}


def stand_in_tokenizer(model_type: str) -> Any:
    """Return a byte-level tokenizer with the special tokens of a family."""
    family = FAMILIES.get(model_type)
    if family is None:
        raise GapinitError(
            f"model type '{model_type}': no stand-in tokenizer, expected one of: "
            f"{', '.join(FAMILIES)}"
        )
    first = [family.pad, family.eos, *([family.bos] if family.bos else [])]
    special = list(dict.fromkeys([*first, *family.others, *family.outer.values()]))
    return byte_level_tokenizer(
        [*WORDS] * 4,
        VOCABULARY,
        special,
        first=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        bos_token=family.bos,
    )


def with_special_ids(config: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return a configuration whose special tokens are the stand-in's."""
    family = FAMILIES[config["model_type"]]
    known = tokenizer.get_vocab()
    changed = deepcopy(dict(config))
    changed |= {key: known[token] for key, token in family.outer.items()}
    text = changed.setdefault("text_config", {})
    text |= {"eos_token_id": known[family.eos], "pad_token_id": known[family.pad]}
    if family.bos is not None:
        text["bos_token_id"] = known[family.bos]
    needed = len(known)
    if text.get("vocab_size", needed) < needed:
        raise GapinitError(
            f"text_config.vocab_size: {text['vocab_size']} tokens, but the stand-in tokenizer has "
            f"{needed}: give at least as many"
        )
    return changed
