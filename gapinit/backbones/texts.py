"""Tokenise templates, training texts and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from gapinit.backbones.prompts import Prompts, Segment
from gapinit.errors import GapinitError


class Texts:
    """A tokenizer with a family's template."""

    def __init__(
        self,
        tokenizer: Any,
        prompts: Prompts,
        *,
        start: Sequence[int],
        eos_token_id: int,
        image_token_id: int | None,
    ) -> None:
        """`start`: the tokens between an image and its text.

        `image_token_id`: the image's placeholder in the template; None: there is no template.
        """
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._start = list(start)
        self._eos_token_id = eos_token_id
        self._image_token_id = image_token_id

    @cached_property
    def _image(self) -> str:
        """Return the image token as text, empty if there is none.

        The text beside an image is tokenised together with this token: some tokenizers mark the
        beginning of a text, and would mark a piece from the middle.
        """
        if self._image_token_id is None:
            return ""
        number = self._image_token_id
        # None for an id beyond the vocabulary.
        token: str | None = self._tokenizer.convert_ids_to_tokens(number)
        if not token or self._tokenizer(token, add_special_tokens=False)["input_ids"] != [number]:
            raise GapinitError(
                f"the tokenizer does not know the model's image token {number} "
                f"('{token}') as one token: it belongs to another model"
            )
        return token

    @cached_property
    def head(self) -> list[int]:
        """Return the tokens in front of the image, with the BOS that the tokenizer adds."""
        if not self._image:
            return []
        ids = self._tokenizer(f"{self._prompts.head}{self._image}")["input_ids"]
        return list(ids[: ids.index(self._image_token_id)])

    @cached_property
    def template(self) -> int:
        """Return how many template tokens a caption's text has, without the first one."""
        return max(0, len(self.encode_prompts([self._prompts.caption])[0]) - 1)

    def encode(
        self, texts: Sequence[Sequence[Segment]], max_tokens: int
    ) -> list[tuple[list[int], list[int]]]:
        """Return token ids and labels of texts, each cut to `max_tokens` plus the template.

        A position's label is the next token if that is learned, else -100. Each learned segment
        ends with EOS. Segments are tokenised separately, so that a prompt has the same tokens in
        training and in decoding.
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
        """Return the pieces of a text, with the spaces between them if the template has any."""
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
                    "prompts: the template needs at least one token between the image and the "
                    "answer"
                )
            # The first token follows no text position.
            targets = added if tokens else added[1:]
            labels += targets if learned else [-100] * len(targets)
            tokens += added
        if len(labels) > room and labels[room - 1] != -100:
            # ASSUME: a text that is cut ends with EOS.
            labels[room - 1] = self._eos_token_id
        return tokens[: len(labels)][:room], labels[:room]

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of prompts, which stand behind the image."""
        return [[*self._start, *ids] for ids in self._behind_image(prompts)]

    def _behind_image(self, texts: Sequence[str]) -> list[list[int]]:
        if not self._image:
            return self.token_ids(texts)
        return [ids[1:] for ids in self.token_ids([f"{self._image}{text}" for text in texts])]

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's tokens, without special tokens around it."""
        # A prompt may be empty, and some tokenizers refuse an empty text.
        filled = [text for text in texts if text]
        encoded = iter(
            self._tokenizer(filled, add_special_tokens=False)["input_ids"] if filled else []
        )
        return [list(next(encoded)) if text else [] for text in texts]
