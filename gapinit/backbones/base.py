"""What every family of backbones has in common: the questions that gapinit asks a model.

A family is a subclass in a module of its own. It says which classes it is made of, where its
decoder layers are and what its positions depend on; nothing outside `gapinit.backbones` knows a
module's name. `docs/backbones.md` adds one, step by step.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from gapinit.backbones.generation import left_padded, placeholder_ids
from gapinit.backbones.inputs import Images, Inputs, gather, packed, padded_places
from gapinit.backbones.last_layer import Rows
from gapinit.backbones.loading import cannot_be_loaded, load_processor, load_weights
from gapinit.backbones.padding_free import FlatRows, Layout, without_padding
from gapinit.backbones.prompts import Prompts, Segment
from gapinit.backbones.source import read_source
from gapinit.backbones.texts import Texts
from gapinit.errors import GapinitError

Family = TypeVar("Family", bound="Backbone")

# Spreading and taking back costs what padding saves at a width of 128; at 256 a step is 1.07 times
# as fast without padding, at 512 1.09 times (CPU, captions as COCO's).
LEAST_WIDTH = 256


class Backbone(ABC):
    """A vision-language model and its processor, seen through the questions that gapinit asks."""

    model_class: ClassVar[Any]
    """The Hugging Face class, as `AutoModelForImageTextToText` would choose it."""
    default_prompts: ClassVar[Prompts]
    """The template of the published weights; a backbone's file may say another one."""
    target_pattern: ClassVar[str]
    """Regular expression of the adapted modules' full names, with `{layers}` in it.

    It is anchored to the language model: a vision tower's modules of the same name are never hit.
    """
    vision_pattern: ClassVar[str]
    """The same for the vision tower, of all its layers."""
    cross_attends: ClassVar[bool] = False
    """Whether images are read by cross-attention and not in the text's own stream."""
    grid_width: ClassVar[int] = 0
    """How many numbers of an image's grid positions or masks depend on."""
    in_template: ClassVar[bool] = True
    """Whether an image token stands in the template, with text around it."""
    packs_texts: ClassVar[bool] = False
    """Whether several texts may stand behind one prefix in a sequence (`embed_packed`).

    The decoder then takes a mask of its own and positions that start again, and whatever
    `decoder_arguments` gives goes by `Inputs.positions`, `Inputs.segment` and `Inputs.sees`.
    """

    def __init__(self, model: Any, processor: Any, prompts: Prompts | None = None) -> None:
        """Without a processor, for questions about the model alone: it reads no text then."""
        # Any: the type stubs know submodules and nested configurations as unions only.
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

    # What a family has to say ------------------------------------------------------------------

    @property
    @abstractmethod
    def decoder(self) -> Any:
        """Return the language model's stack of decoder layers, embeddings included."""

    @property
    @abstractmethod
    def output_head(self) -> nn.Module:
        """Return the matrix from final hidden states to the vocabulary."""

    @property
    @abstractmethod
    def image_token_id(self) -> int:
        """Return the token that holds an image's place in `input_ids`."""

    @abstractmethod
    def image_tokens(self, width: int, height: int) -> int:
        """Return how many tokens an image of this size has, without looking at it."""

    @abstractmethod
    def image_features(self, pixels: Mapping[str, Tensor]) -> Images:
        """Return the tokens, in the language model's space, of what `pixels` has read."""

    @abstractmethod
    def drop_vision(self) -> None:
        """Free the vision tower: training on cached states never calls it."""

    def decoder_arguments(self, inputs: Inputs) -> dict[str, Any]:
        """Return what the decoder needs beside states: positions or masks that are its own."""
        return {}

    def generation_arguments(self, inputs: Inputs, input_ids: Tensor) -> dict[str, Tensor]:
        """Return what `generate` needs beside embeddings and mask, padded on the left."""
        return {}

    def narrow_last_layer(self, rows: Rows, eager: bool) -> AbstractContextManager[None] | None:
        """Return a block in which the last layer runs at `rows` only (`last_layer.py`).

        None: it cannot. `eager`: masks are added to scores, and no kernel takes bools.
        """
        return None

    # What follows from that ----------------------------------------------------------------------

    @classmethod
    def load(cls: type[Family], folder: Path, device: torch.device | str = "cpu") -> Family:
        """Load weights (safetensors only) and processor from a `save_pretrained` folder.

        Raises GapinitError, before any weight is read, for a folder that the family does not take
        or without safetensors; and for weights that are damaged or do not fill the model.
        """
        folder = Path(folder)
        cls.check_folder(folder)
        source = read_source(folder)
        model = load_weights(cls.model_class, folder, source.dtype)
        try:
            processor = cls.load_processor(folder)
            processor.tokenizer("a")  # some wrong entries only show when a text is read
        except BaseException as error:  # a tokenizer file of others may break anything inside
            # Rust's own, which is no `Exception`: the tokenizer library stopped in the middle.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise cannot_be_loaded(folder, error) from None
        tokens, rows = len(processor.tokenizer), model.get_input_embeddings().num_embeddings
        if tokens > rows:
            raise GapinitError(
                f"{folder}: the tokenizer has {tokens} tokens and the model embeddings for {rows}: "
                "they are of two models. Get both from the same place."
            )
        # ASSUME: frozen layers run without dropout, in training too (design, Section 4).
        model.eval().requires_grad_(False).to(device)
        prompts = source.prompts.applied_to(cls.default_prompts)
        backbone = cls(model, processor, prompts)
        try:
            backbone.pixels([Image.new("RGB", (32, 32))])  # the same for images
        except Exception as error:
            raise cannot_be_loaded(folder, error) from None
        return backbone

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Raise GapinitError for a folder that cannot be loaded, from its small files alone."""
        if not any(folder.glob("*.safetensors")):
            raise GapinitError(
                f"{folder}: no *.safetensors here (pickled weights are never loaded). Get the "
                "safetensors files of this model."
            )

    @classmethod
    def load_processor(cls, folder: Path) -> Any:
        """Return what reads text and images."""
        return load_processor(folder, local_files_only=True)

    @property
    def device(self) -> torch.device:
        """Return the device that the embeddings are on."""
        weight: Tensor = self.decoder.embed_tokens.weight
        return weight.device

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """Return the decoder layers, bottom first."""
        return self.decoder.layers

    @property
    def text_start(self) -> list[int]:
        """Return the tokens that a text begins with behind its image: none where a head has BOS."""
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
        """Return the tokens that end decoding: an answer's end, and what else the model names."""
        found = [self.eos_token_id]
        for config in (self.text_config, getattr(self.model, "generation_config", None)):
            given = getattr(config, "eos_token_id", None)
            found += given if isinstance(given, list) else [] if given is None else [given]
        return list(dict.fromkeys(found))

    @property
    def pad_token_id(self) -> int:
        """Return the token that fills up a batch; no position ever attends to it."""
        return self._special("pad_token_id", 0)

    def _special(self, name: str, default: int) -> int:
        """Return a special token: the tokenizer's, or the configuration's where that has one."""
        given = getattr(self.text_config, name, None)
        if given is None and self.processor is not None:
            given = getattr(self.processor.tokenizer, name, None)
        if isinstance(given, list):  # some configurations list every token that ends a text
            given = given[0]
        return default if given is None else int(given)

    def target_modules(self, layers: Sequence[int], *, vision: bool = False) -> str:
        """Return PEFT's pattern for the attention and MLP matrices of these decoder layers.

        `vision`: of the vision tower, too.
        """
        pattern = self.target_pattern.format(layers="|".join(str(layer) for layer in layers))
        return f"({pattern})|({self.vision_pattern})" if vision else pattern

    def named_targets(self, layers: Sequence[int], *, vision: bool = False) -> dict[str, nn.Linear]:
        """Return the matrices that `target_modules` matches, while no adapter is on them."""
        pattern = re.compile(self.target_modules(layers, vision=vision))
        return {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and pattern.fullmatch(name)
        }

    def pixels(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """Return what the image processor makes of RGB images, as tensors by their names."""
        return dict(self.processor.image_processor(list(images), return_tensors="pt"))

    def look(self, images: Sequence[Any]) -> Images:
        """Return the tokens of RGB images.

        GapinitError where `image_tokens` did not tell their number: files are laid out by it.
        """
        return self.seen(self.pixels(images), [image.size for image in images])

    def seen(self, pixels: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]) -> Images:
        """Return the tokens of images of these sizes that `pixels` has read, as `look` does."""
        found = self.image_features(pixels)
        told = [self.image_tokens(*size) for size in sizes]
        if found.counts.tolist() != told:
            raise GapinitError(
                f"{type(self).__name__}: image_tokens() says {told} for these images, "
                f"image_features() gives {found.counts.tolist()}: one of them is wrong"
            )
        return found

    @property
    def head(self) -> list[int]:
        """Return the tokens in front of the image."""
        return self.texts.head

    @property
    def text_positions(self) -> int | None:
        """Return how many text tokens fit behind the image; None: no fixed number."""
        return None

    def encode_segments(
        self, texts: Sequence[Sequence[Segment]], max_tokens: int
    ) -> list[tuple[list[int], list[int]]]:
        """Return token ids and labels of texts, each at most `max_tokens` long.

        See `Texts.encode`. `max_tokens` counts what comes beyond the template of a caption.
        """
        self.require_positions(max_tokens, "the longest text in training")
        return self.texts.encode(texts, max_tokens)

    def encode_captions(
        self, captions: Sequence[str], max_tokens: int
    ) -> list[tuple[list[int], list[int]]]:
        """Return token ids and labels of captions in the template that asks for them."""
        self.require_positions(max_tokens, "max_caption_tokens")
        prompt = (self.prompts.caption, False)
        return self.texts.encode([[prompt, (caption, True)] for caption in captions], max_tokens)

    def encode_prompts(self, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        """Return the text's token ids that decoding starts from, none of them cut."""
        encoded = self.texts.encode_prompts(prompts)
        longest = max((len(ids) for ids in encoded), default=0)
        self.require_positions(longest - 1 + max_new_tokens, "max_new_tokens")
        return encoded

    def require_positions(self, text_tokens: int, option: str) -> None:
        """Raise GapinitError if a text is longer than the positions that the model has."""
        room = self.text_positions
        if room is not None and text_tokens > room:
            positions = self.text_config.max_position_embeddings
            raise GapinitError(
                f"{option}: {text_tokens} text tokens do not fit: the backbone has {positions} "
                f"positions, {positions - room} of them for the image. Use at most {room}."
            )

    def stream(self, images: Images) -> Images:
        """Return the images' tokens that stand in the text stream: all of them, as a rule."""
        return images

    def stream_counts(self, counts: Tensor) -> Tensor:
        """Return how many tokens of images of `counts` tokens stand in the text stream."""
        return counts

    def embed(self, images: Images, texts: Sequence[Sequence[int]]) -> Inputs:
        """Return decoder inputs: for each image the head, its tokens, and its text's embeddings."""
        return self._padded(images, self.head, texts)

    def embed_packed(self, images: Images, groups: Sequence[Sequence[Sequence[int]]]) -> Inputs:
        """Return decoder inputs of images with all their texts: the prefix once for each image.

        `groups`: of each image, the token ids of its texts. What comes out of `decode` is what each
        text would have with a prefix of its own.
        """
        inputs = self.embed(
            images, [[token for text in group for token in text] for group in groups]
        )
        return packed(inputs, [[len(text) for text in group] for group in groups])

    def packed_arguments(self, inputs: Inputs) -> dict[str, Any]:
        """Return positions and mask of packed sequences; a family's own go before these."""
        return {
            "position_ids": inputs.positions,
            "attention_mask": self.added_mask(inputs.sees()),
        }

    def added_mask(self, sees: Tensor) -> Tensor:
        """Return what is added to attention scores, (n, 1, width, width), from what sees what."""
        dtype = self.model.dtype
        mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
        return mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]

    def embed_texts(self, texts: Sequence[Sequence[int]]) -> Inputs:
        """Return decoder inputs of texts alone, without image or head."""
        nothing = Images(
            torch.zeros(0, self.hidden_size, device=self.device),
            torch.zeros(len(texts), dtype=torch.int64),
            torch.zeros(len(texts), self.grid_width, dtype=torch.int64),
        )
        return self._padded(nothing, [], texts)

    def _padded(
        self, images: Images, head: Sequence[int], texts: Sequence[Sequence[int]]
    ) -> Inputs:
        seen = self.stream(images)
        ids = [*head, *(token for text in texts for token in text)]
        embedded = self.embed_ids(torch.tensor(ids, dtype=torch.int64, device=self.device))
        flat = torch.cat([embedded, seen.tokens.to(embedded)])
        counts = torch.tensor([len(text) for text in texts])
        heads = torch.full_like(counts, len(head))
        places, length = padded_places(
            [
                (torch.zeros_like(counts), heads),
                (len(ids) + seen.counts.cumsum(0) - seen.counts, seen.counts),
                (len(head) + counts.cumsum(0) - counts, counts),
            ]
        )
        return Inputs(
            gather(flat, places),
            *(value.to(self.device) for value in (heads + seen.counts, length, images.grid)),
        )

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Return the embeddings of token ids, as the decoder's own `forward` would."""
        embedded: Tensor = self.decoder.embed_tokens(ids)
        return embedded

    def with_text(self, inputs: Inputs, input_ids: Tensor) -> Inputs:
        """Return the inputs with the embeddings of `input_ids`, (n, width), behind the prefix."""
        position = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        is_text = position >= inputs.prefix_length[:, None]
        text = self.embed_ids(input_ids)
        states = torch.where(is_text[..., None], text, inputs.states.to(text))
        return replace(inputs, states=states)

    def decode(self, inputs: Inputs) -> Tensor:
        """Run the decoder and return its states after the final norm, (n, width, d).

        Padding stands on the right and attention is causal, so no valid position ever sees it and
        no padding mask is needed: positions count from 0 without gaps.
        """
        states = inputs.states.to(self.model.dtype)  # cached states are float32
        arguments = self.decoder_arguments(inputs)
        if inputs.segment is not None:
            arguments = self.packed_arguments(inputs) | arguments
        return self.decoder(inputs_embeds=states, use_cache=False, **arguments).last_hidden_state

    def decode_at(self, inputs: Inputs, where: Tensor, *, padded: bool = False) -> Tensor:
        """Return the final states at some positions, one after another, (positions, d).

        `where`: (n, width) bool. What the last layer would compute elsewhere is left out, if the
        family says how (`narrow_last_layer`), and so is all padding, unless `padded` asks for it
        (`padding_free.py`); the states are the same.
        """
        attention = self.text_config._attn_implementation
        rows = Rows.of(where)
        if attention == "sdpa" and not padded and self._leaves_padding_out(inputs):
            position = torch.arange(where.shape[1], device=where.device)
            tokens = Layout.of(position < inputs.length[:, None])
            narrowed = self.narrow_last_layer(FlatRows.among(rows, where, tokens), False)
            if narrowed is not None:
                with narrowed:
                    return self._decode_flat(inputs, tokens, Layout.of(rows.valid))
        narrowed = self.narrow_last_layer(rows, attention == "eager")
        if narrowed is None or attention not in ("sdpa", "eager"):
            return self.decode(inputs)[where]
        with narrowed:
            states = self.decode(inputs)
        return states[rows.valid]

    def _leaves_padding_out(self, inputs: Inputs) -> bool:
        """Whether a batch has padding that costs more than going around it."""
        return (
            not self.cross_attends
            and inputs.segment is None
            and self.hidden_size >= LEAST_WIDTH
            and bool((inputs.length < inputs.states.shape[1]).any())
        )

    def _decode_flat(self, inputs: Inputs, tokens: Layout, asked: Layout) -> Tensor:
        """Return what the last layer gives of a batch without padding, (positions, d)."""
        valid = tokens.valid
        arguments = {"position_ids": inputs.positions.expand(valid.shape)}
        arguments |= self.decoder_arguments(inputs)  # masks stay those of padded sequences
        arguments["position_ids"] = arguments["position_ids"][..., valid].unsqueeze(-2)
        states = tokens.flat(inputs.states.to(self.model.dtype))
        with without_padding(self.text_config, tokens, asked):
            found = self.decoder(inputs_embeds=states, use_cache=False, **arguments)
        return found.last_hidden_state[0]

    def image_span(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return where each sequence's image tokens begin and end, (n,) each."""
        end = inputs.prefix_length
        return end.clamp(max=len(self.head)), end

    def vision_states(self, inputs: Inputs, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return states in which an image is seen, and which of them are its own.

        `states`: a layer's output, (n, width, d). The second is (n, width) bool.
        """
        start, end = self.image_span(inputs)
        position = torch.arange(states.shape[1], device=states.device)[None]
        return states, (position >= start[:, None]) & (position < end[:, None])

    def cut_below(self, first: int) -> None:
        """Make `decode` start at layer `first`, fed with that layer's input states.

        The lower layers become pass-throughs; module names and layer indices stay what they were,
        so adapters keep their full names and each layer its own kind of attention.
        """
        for layer in range(first):
            self.decoder_layers[layer] = PassThrough()
        self.drop_vision()

    def keep_below(self, first: int) -> None:
        """Make `decode` stop in front of layer `first` and return the states that enter it."""
        self.decoder.layers = self.decoder_layers[:first]
        self.decoder.norm = nn.Identity()

    @property
    def generator(self) -> Any:
        """Return the module whose `generate` is called."""
        return self.model

    @torch.inference_mode()
    def generate(
        self,
        images: Images,
        max_new_tokens: int,
        num_beams: int,
        prompts: Sequence[str] | None = None,
    ) -> list[str]:
        """Answer a prompt on each image by greedy (1 beam) or beam search; none: caption it."""
        tokens = self.generate_tokens(images, max_new_tokens, num_beams, prompts)
        tokenizer = self.processor.tokenizer
        return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    @torch.inference_mode()
    def generate_tokens(
        self,
        images: Images,
        max_new_tokens: int,
        num_beams: int,
        prompts: Sequence[str] | None = None,
    ) -> Tensor:
        """Return the new tokens of each answer, (n, at most `max_new_tokens`)."""
        if prompts is None:
            prompts = [self.prompts.caption] * len(images)
        images = images.to(self.device, self.model.dtype)
        encoded = self.encode_prompts(prompts, max_new_tokens)
        inputs = self.embed(images, encoded)
        ids = placeholder_ids(
            inputs,
            self.head,
            encoded,
            image_token_id=self.image_token_id,
            pad_token_id=self.pad_token_id,
        )
        states, mask, ids = left_padded(inputs, ids)
        arguments: dict[str, Any] = self.generation_arguments(inputs, ids)
        tokens: Tensor = self.generator.generate(
            inputs_embeds=states,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
            pad_token_id=self.pad_token_id,
            eos_token_id=self.stop_token_ids,
            **arguments,
        )
        return tokens[:, ids.shape[1] :] if "input_ids" in arguments else tokens


class PassThrough(nn.Module):
    """Stands where a frozen layer was whose output is already cached."""

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        """Return what came in."""
        return hidden_states
