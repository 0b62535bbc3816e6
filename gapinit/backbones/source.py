"""A backbone's origin, dtype and template, recorded in its folder. No torch."""

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
        # Without it the model would never see the question, and no error would occur.
        if text is not None and "{question}" not in text:
            raise ValueError(f"expected a template that contains {{question}}, found {text!r}")
        return text

    def applied_to(self, prompts: Prompts) -> Prompts:
        """Return a family's template with these parts replaced."""
        return replace(prompts, **self.model_dump(exclude_none=True))


class Source(Settings):
    """The content of `gapinit_source.json`."""

    repository: str | None = None
    commit: str | None = None
    folder: str | None = None
    dtype: Dtype | None = None
    """The dtype to load the weights in; None: the stored one."""
    prompts: PromptSettings = PromptSettings()


def read_source(folder: Path) -> Source:
    """Read a folder's record; an empty one if the folder has none."""
    path = Path(folder) / SOURCE_FILE
    return check_settings(read_json(path), Source, str(path)) if path.is_file() else Source()


def write_source(folder: Path, source: Source) -> None:
    """Write a folder's record."""
    write_json(Path(folder) / SOURCE_FILE, source.model_dump())
