"""What gapinit notes in a backbone's folder: where it is from and how it is used. No torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from gapinit.artifacts.artifacts import read_json, write_json
from gapinit.backbones.prompts import Prompts
from gapinit.config.yaml_files import Settings, check_settings

SOURCE_FILE = "gapinit_source.json"
Dtype = Literal["float32", "bfloat16", "float16"]


class PromptSettings(Settings):
    """Parts of a template that replace the family's own (`gapinit.backbones.prompts`)."""

    head: str | None = None
    caption: str | None = None
    question: str | None = None
    chat: str | None = None
    turn: str | None = None
    end: str | None = None
    spaced: bool | None = None

    @field_validator("question", "chat", "turn")
    @classmethod
    def _holds_the_question(cls, text: str | None) -> str | None:
        # Without it every image would be asked the same, and every answer be wrong in silence.
        if text is not None and "{question}" not in text:
            raise ValueError(f"expected a template with {{question}} in it, found {text!r}")
        return text

    def applied_to(self, prompts: Prompts) -> Prompts:
        """Return a family's template with these parts in place of its own."""
        return replace(prompts, **self.model_dump(exclude_none=True))


class Source(Settings):
    """The content of `gapinit_source.json`."""

    repository: str | None = None
    commit: str | None = None
    folder: str | None = None
    dtype: Dtype | None = None
    """What the weights are loaded in; None: as they are stored."""
    prompts: PromptSettings = PromptSettings()


def read_source(folder: Path) -> Source:
    """Return a folder's notes; one that someone else saved has none."""
    path = Path(folder) / SOURCE_FILE
    return check_settings(read_json(path), Source, str(path)) if path.is_file() else Source()


def write_source(folder: Path, source: Source) -> None:
    """Write a folder's notes."""
    write_json(Path(folder) / SOURCE_FILE, source.model_dump())
