"""The base class of all model families.

A family is a subclass in its own module. It names the Hugging Face class and the adapted modules,
and supplies the positions and masks that its decoder needs. `docs/backbones.md` says how to add a
family.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gapinit.backbones.inputs import Images, Inputs, added_mask, packed, padded_rows
from gapinit.backbones.last_layer import Narrowing
from gapinit.backbones.loading import load_processor
from gapinit.backbones.prompts import Prompts, Segment
from gapinit.backbones.texts import Texts
from gapinit.errors import GapinitError

LLAMA_MODULES = r"(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj))"
"""The attention and MLP matrices of a decoder layer in Llama's layout, as a regular expression."""


class Backbone(ABC):
    """A vision-language model and its processor."""

    model_class: ClassVar[Any]
    """The Hugging Face class that `AutoModelForImageTextToText` would choose."""
    default_prompts: ClassVar[Prompts]
    """The template of the published weights; a backbone's file may replace parts of it."""
    target_pattern: ClassVar[str]
    """Regular expression of the adapted modules' full names, with the placeholder `{layers}`.

    It must not match any module of the vision tower.
    """
    vision_pattern: ClassVar[str]
    """Regular expression of the vision tower's adapted modules, in all its layers."""
    cross_attends: ClassVar[bool] = False
    """Whether the decoder reads images by cross-attention instead of as tokens in the sequence."""
    grid_width: ClassVar[int] = 0
    """The number of columns of `Images.grid`."""
    in_template: ClassVar[bool] = True
    """Whether the template contains an image token with text around it."""
    last_layer: ClassVar[Narrowing | None] = None
    """Runs the last layer at some positions only (`last_layer.py`); None: at all positions."""
    packs_texts: ClassVar[bool] = False
    """Whether several texts can share one prefix in a sequence (`embed_packed`).

    The decoder must accept a 4-D mask and repeated positions; `decoder_arguments` must use
    `Inputs.positions`, `Inputs.segment` and `Inputs.sees`.
    """

    def __init__(self, model: Any, processor: Any, prompts: Prompts | None = None) -> None:
        """Wrap a model; `processor`: None where neither text nor images are read."""
        self.check_config(model.config.to_dict(), "this model")
        # Any: the type stubs declare submodules and nested configurations as unions.
        self.model: Any = model
        self.processor: Any = processor
        self.prompts = prompts or self.default_prompts
        self.text_config: Any = model.config.get_text_config()
        self.hidden_size: int = self.text_config.hidden_size
        self.num_layers: int = self.text_config.num_hidden_layers
        self.texts = Texts(
            None if processor is None else processor.tokenizer,
            self.prompts,
            start=self.text_start,
            eos_token_id=self.eos_token_id,
            image_token_id=self.image_token_id if self.in_template else None,
        )

    # What each family defines ---------------------------------------------------------------------

    @abstractmethod
    def image_tokens(self, width: int, height: int) -> int:
        """Return how many tokens an image of this size has."""

    @abstractmethod
    def image_features(self, pixels: Mapping[str, Tensor]) -> Images:
        """Return the image tokens in the language model's space, from the output of `pixels`."""

    @abstractmethod
    def drop_vision(self) -> None:
        """Free the vision tower, which training on cached states never calls."""

    # Parts of the model and its configuration -----------------------------------------------------

    @property
    def decoder(self) -> Any:
        """Return the language model's decoder, with embeddings and layers."""
        return self.model.get_decoder()

    @property
    def output_head(self) -> nn.Module:
        """Return the matrix from final hidden states to the vocabulary."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    @property
    def image_token_id(self) -> int:
        """Return the placeholder of an image in `input_ids`."""
        return int(self.model.config.image_token_id)

    @property
    def device(self) -> torch.device:
        """Return the device of the embeddings."""
        weight: Tensor = self.decoder.embed_tokens.weight
        return weight.device

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """Return the decoder layers, bottom first."""
        return self.decoder.layers

    @property
    def generator(self) -> Any:
        """Return the module whose `generate` is called."""
        return self.model

    def decoder_arguments(self, inputs: Inputs) -> dict[str, Any]:
        """Return the positions and masks that the decoder's `forward` needs."""
        return {}

    def generation_arguments(self, inputs: Inputs, input_ids: Tensor) -> dict[str, Tensor]:
        """Return what `generate` needs beside embeddings and mask; `input_ids` are left-padded."""
        return {}

    @classmethod  # noqa: B027
    def check_config(cls, config: Mapping[str, Any], origin: str) -> None:
        """Raise GapinitError, naming `origin`, for a configuration that is not supported."""

    @classmethod
    def load_processor(cls, folder: Path) -> Any:
        """Return the tokenizer and the image processor."""
        return load_processor(folder, local_files_only=True)

    # Text -----------------------------------------------------------------------------------------

    @property
    def text_start(self) -> list[int]:
        """Return the tokens between an image and its text: none where the head has BOS."""
        return []

    @property
    def eos_token_id(self) -> int:
        """Return the token that ends an answer: the template's own, or the model's."""
        if self.processor is not None and self.prompts.end is not None:
            found = self.processor.tokenizer.get_vocab().get(self.prompts.end)
            if found is not None:
                return int(found)
        return self._special("eos_token_id", 2)

    @property
    def stop_token_ids(self) -> list[int]:
        """Return the tokens that end decoding: `eos_token_id` and all that the model names."""
        found = [self.eos_token_id]
        for config in (self.text_config, getattr(self.model, "generation_config", None)):
            given = getattr(config, "eos_token_id", None)
            found += given if isinstance(given, list) else [] if given is None else [given]
        return list(dict.fromkeys(found))

    @property
    def pad_token_id(self) -> int:
        """Return the padding token; no position attends to it."""
        return self._special("pad_token_id", 0)

    def _special(self, name: str, default: int) -> int:
        """Return a special token of the configuration, else of the tokenizer, else `default`."""
        given = getattr(self.text_config, name, None)
        if given is None and self.processor is not None:
            given = getattr(self.processor.tokenizer, name, None)
        if isinstance(given, list):  # some configurations list every token that ends a text
            given = given[0]
        return default if given is None else int(given)

    @property
    def head(self) -> list[int]:
        """Return the tokens in front of the image."""
        return self.texts.head

    @property
    def text_positions(self) -> int | None:
        """Return how many text tokens fit behind the image; None: no limit."""
        return None

    def encode_segments(
        self, texts: Sequence[Sequence[Segment]], max_tokens: int
    ) -> list[tuple[list[int], list[int]]]:
        """Return token ids and labels of texts (`Texts.encode`), each cut to `max_tokens`.

        A caption's template does not count.
        """
        self.require_positions(max_tokens, "the longest text in training")
        return self.texts.encode(texts, max_tokens)

    def encode_captions(
        self, captions: Sequence[str], max_tokens: int
    ) -> list[tuple[list[int], list[int]]]:
        """Return token ids and labels of captions in the family's template."""
        self.require_positions(max_tokens, "max_caption_tokens")
        prompt = (self.prompts.caption, False)
        return self.texts.encode([[prompt, (caption, True)] for caption in captions], max_tokens)

    def encode_prompts(self, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        """Return the token ids of prompts for decoding, uncut."""
        encoded = self.texts.encode_prompts(prompts)
        longest = max((len(ids) for ids in encoded), default=0)
        self.require_positions(longest - 1 + max_new_tokens, "max_new_tokens")
        return encoded

    def require_positions(self, text_tokens: int, option: str) -> None:
        """Raise GapinitError if a text has more tokens than the model has positions."""
        room = self.text_positions
        if room is not None and text_tokens > room:
            positions = self.text_config.max_position_embeddings
            raise GapinitError(
                f"{option}: {text_tokens} text tokens do not fit: the backbone has {positions} "
                f"positions, {positions - room} of them for the image. Use at most {room}."
            )

    def target_modules(self, layers: Sequence[int], *, vision: bool = False) -> str:
        """Return PEFT's pattern for the attention and MLP matrices of these decoder layers.

        `vision`: and those of the vision tower.
        """
        pattern = self.target_pattern.format(layers="|".join(str(layer) for layer in layers))
        return f"({pattern})|({self.vision_pattern})" if vision else pattern

    def named_targets(self, layers: Sequence[int], *, vision: bool = False) -> dict[str, nn.Linear]:
        """Return the matrices that `target_modules` matches in a model without an adapter."""
        pattern = re.compile(self.target_modules(layers, vision=vision))
        return {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and pattern.fullmatch(name)
        }

    # Images ---------------------------------------------------------------------------------------

    def pixels(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """Return the image processor's output for RGB images, tensors by name."""
        return dict(self.processor.image_processor(list(images), return_tensors="pt"))

    def look(self, images: Sequence[Any]) -> Images:
        """Return the tokens of RGB images; GapinitError as in `seen`."""
        return self.seen(self.pixels(images), [image.size for image in images])

    def seen(self, pixels: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]) -> Images:
        """Return the tokens of images of these sizes, from the output of `pixels`.

        Raises GapinitError if `image_tokens` gives other counts: it determines the file layout.
        """
        found = self.image_features(pixels)
        expected = [self.image_tokens(*size) for size in sizes]
        if found.counts.tolist() != expected:
            raise GapinitError(
                f"{type(self).__name__}: image_tokens() gives {expected} for these images, "
                f"image_features() gives {found.counts.tolist()}: one of them is wrong"
            )
        return found

    def stream(self, images: Images) -> Images:
        """Return the image tokens that are part of the text's sequence: by default all."""
        return images

    def stream_counts(self, counts: Tensor) -> Tensor:
        """Return how many tokens `stream` gives for images with these token counts."""
        return counts

    def image_span(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return each sequence's first image position and the one behind its last, (n,) each."""
        end = inputs.prefix_length
        return end.clamp(max=len(self.head)), end

    def vision_states(self, inputs: Inputs, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states that represent the image, and a mask of those to pool, (n, width) bool.

        `states`: a layer's output, (n, width, d).
        """
        start, end = self.image_span(inputs)
        position = torch.arange(states.shape[1], device=states.device)[None]
        return states, (position >= start[:, None]) & (position < end[:, None])

    # The decoder's inputs -------------------------------------------------------------------------

    def embed(self, images: Images, texts: Sequence[Sequence[int]]) -> Inputs:
        """Return decoder inputs: for each image the head, its tokens, and the embedded text."""
        return self._padded(images, self.head, texts)

    def embed_packed(self, images: Images, groups: Sequence[Sequence[Sequence[int]]]) -> Inputs:
        """Return decoder inputs that contain each image's prefix once, followed by all its texts.

        `groups`: for each image the token ids of its texts. `decode` gives each text the same
        states as with its own prefix.
        """
        inputs = self.embed(
            images, [[token for text in group for token in text] for group in groups]
        )
        return packed(inputs, [[len(text) for text in group] for group in groups])

    def embed_texts(self, texts: Sequence[Sequence[int]], head: Sequence[int] = ()) -> Inputs:
        """Return decoder inputs of texts without an image, each behind the tokens of `head`."""
        nothing = Images(
            torch.zeros(0, self.hidden_size, device=self.device),
            torch.zeros(len(texts), dtype=torch.int64),
            torch.zeros(len(texts), self.grid_width, dtype=torch.int64),
        )
        return self._padded(nothing, head, texts)

    def _padded(
        self, images: Images, head: Sequence[int], texts: Sequence[Sequence[int]]
    ) -> Inputs:
        seen = self.stream(images)
        ids = [*head, *(token for text in texts for token in text)]
        embedded = self.embed_ids(torch.tensor(ids, dtype=torch.int64, device=self.device))
        flat = torch.cat([embedded, seen.tokens.to(embedded)])
        counts = torch.tensor([len(text) for text in texts])
        heads = torch.full_like(counts, len(head))
        states, length = padded_rows(
            flat,
            [
                (torch.zeros_like(counts), heads),
                (len(ids) + seen.counts.cumsum(0) - seen.counts, seen.counts),
                (len(head) + counts.cumsum(0) - counts, counts),
            ],
        )
        return Inputs(
            states,
            *(value.to(self.device) for value in (heads + seen.counts, length, images.grid)),
        )

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Return the embeddings of token ids as the decoder's `forward` computes them."""
        embedded: Tensor = self.decoder.embed_tokens(ids)
        return embedded

    def with_text(self, inputs: Inputs, input_ids: Tensor) -> Inputs:
        """Return the inputs with `input_ids`, (n, width), embedded behind the prefix."""
        position = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        is_text = position >= inputs.prefix_length[:, None]
        text = self.embed_ids(input_ids)
        states = torch.where(is_text[..., None], text, inputs.states.to(text))
        return replace(inputs, states=states)

    # The decoder ----------------------------------------------------------------------------------

    def decode(self, inputs: Inputs) -> Tensor:
        """Run the decoder and return its states after the final norm, (n, width, d).

        Padding is on the right and attention is causal, so no valid position attends to it: no
        padding mask is needed, and positions count from 0.
        """
        states = inputs.states.to(self.model.dtype)  # cached states are float32
        arguments = self.decoder_arguments(inputs)
        if inputs.segment is not None:
            mask = added_mask(inputs.sees()[:, None], self.model.dtype)
            arguments = {"position_ids": inputs.positions, "attention_mask": mask} | arguments
        return self.decoder(inputs_embeds=states, use_cache=False, **arguments).last_hidden_state

    def cut_below(self, first: int) -> None:
        """Make `decode` start at layer `first`: it then takes that layer's input states.

        The lower layers become pass-throughs. Module names and layer indices stay the same, so
        adapters keep their full names and each layer its kind of attention.
        """
        for layer in range(first):
            self.decoder_layers[layer] = PassThrough()
        self.drop_vision()

    def keep_below(self, first: int) -> None:
        """Make `decode` stop below layer `first` and return that layer's input states."""
        self.decoder.layers = self.decoder_layers[:first]
        self.decoder.norm = nn.Identity()


class PassThrough(nn.Module):
    """Replaces a frozen layer whose output is cached."""

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        """Return the input."""
        return hidden_states
