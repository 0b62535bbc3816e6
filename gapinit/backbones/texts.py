"""Text as tokens: what stands around an image, what is learned, what decoding starts from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from gapinit.backbones.prompts import Prompts, Segment
from gapinit.errors import GapinitError


class Texts:
    """A tokenizer in a family's template."""

    def __init__(
        self,
        tokenizer: Any,
        prompts: Prompts,
        *,
        start: Sequence[int],
        eos_token_id: int,
        image_token_id: int | None,
    ) -> None:
        """`start`: the tokens that a text begins with behind its image.

        `image_token_id`: the token that stands for an image in a template; None: images have no
        template around them.
        """
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._start = list(start)
        self._eos_token_id = eos_token_id
        self._image_token_id = image_token_id

    @cached_property
    def _image(self) -> str:
        """Return the image token as text, empty if there is none.

        What stands beside an image is tokenised with it: some tokenizers mark the beginning of a
        text, and a piece in the middle would get that mark, too.
        """
        if self._image_token_id is None:
            return ""
        number = self._image_token_id
        # An id beyond the vocabulary has no token.
        token: str | None = self._tokenizer.convert_ids_to_tokens(number)
        if not token or self._tokenizer(token, add_special_tokens=False)["input_ids"] != [number]:
            raise GapinitError(
                f"the tokenizer does not know the model's image token {number} "
                f"('{token}') as one token: it belongs to another model"
            )
        return token

    @cached_property
    def head(self) -> list[int]:
        """Return the tokens in front of the image, with what the tokenizer begins a text with."""
        if not self._image:
            return []
        ids = self._tokenizer(f"{self._prompts.head}{self._image}")["input_ids"]
        return list(ids[: ids.index(self._image_token_id)])

    @cached_property
    def template(self) -> int:
        """Return how many tokens of a caption's text are template, the first one not counted."""
        return max(0, len(self.encode_prompts([self._prompts.caption])[0]) - 1)

    def encode(
        self, texts: Sequence[Sequence[Segment]], max_tokens: int
    ) -> list[tuple[list[int], list[int]]]:
        """Return token ids and labels of texts, each cut to `max_tokens` and the template.

        A label is the next token where that is learned, else -100. Each learned segment ends with
        EOS. Segments are tokenised alone, so that a prompt has the same tokens in training and in
        decoding.
        """
        pieces = [self._spaced(text) for text in texts]
        first = self._behind_image([own[0] for own in pieces])
        later = iter(self.token_ids([piece for own in pieces for piece in own[1:]]))
        encoded = []
        for text, ids in zip(texts, first, strict=True):
            tokens = [ids, *(next(later) for _ in text[1:])]
            segments = [(own, learned) for own, (_, learned) in zip(tokens, text, strict=True)]
            encoded.append(self._labelled(segments, max_tokens + self.template))
        return encoded

    def _spaced(self, text: Sequence[Segment]) -> list[str]:
        """Return the pieces of a text, with the template's spaces in front of them."""
        pieces = [piece for piece, _ in text]
        if not self._prompts.spaced:
            return pieces
        return [
            f" {piece}" if piece and any(pieces[:index]) else piece
            for index, piece in enumerate(pieces)
        ]

    def _labelled(
        self, segments: Sequence[tuple[list[int], bool]], room: int
    ) -> tuple[list[int], list[int]]:
        tokens = list(self._start)
        labels = [-100] * (len(tokens) - 1)
        for ids, learned in segments:
            added = [*ids, self._eos_token_id] if learned else ids
            if not tokens and learned:
                raise GapinitError(
                    "prompts: nothing stands between the image and what is learned; the template "
                    "needs a token there"
                )
            # The first token of all is no position's next one.
            targets = added if tokens else added[1:]
            labels += targets if learned else [-100] * len(targets)
            tokens += added
        if len(labels) > room and labels[room - 1] != -100:
            # ASSUME: a text that was cut ends with EOS like any other.
            labels[room - 1] = self._eos_token_id
        return tokens[: len(labels)][:room], labels[:room]

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return token ids of what decoding starts from, behind the image."""
        return [[*self._start, *ids] for ids in self._behind_image(prompts)]

    def _behind_image(self, texts: Sequence[str]) -> list[list[int]]:
        if not self._image:
            return self.token_ids(texts)
        return [ids[1:] for ids in self.token_ids([f"{self._image}{text}" for text in texts])]

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's tokens, without special tokens around it."""
        # An empty text is legal in a prompt, and not every tokenizer takes it.
        filled = [text for text in texts if text]
        encoded = iter(
            self._tokenizer(filled, add_special_tokens=False)["input_ids"] if filled else []
        )
        return [list(next(encoded)) if text else [] for text in texts]
