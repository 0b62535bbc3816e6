"""Load conversations about images in the format of LLaVA-Instruct-150K."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

from gapinit.data.defects import Defects
from gapinit.data.entries import Entry, Images, read_entries, shown
from gapinit.data.locate import coco_folders, image_number

SPEAKERS = ("human", "gpt")
# The placeholder of the image, and its line break.
_PLACEHOLDER = re.compile(r"<image>\n|\n?<image>")


@dataclass(frozen=True)
class Conversation:
    """A conversation about an image; `turns` are (question, answer) pairs."""

    conversation_id: str
    path: Path
    image_id: int
    turns: tuple[tuple[str, str], ...]
    split: str


def load_llava(
    file: Path, image_root: Path, defects: Defects, split: str = "train"
) -> list[Conversation]:
    """Load conversations (`llava_instruct_150k.json`): a list of `id`, `image`, `conversations`.

    Several conversations may share an id: LLaVA uses the image's id.
    Source: Liu et al., Visual Instruction Tuning, 2023.
    """
    images = Images(image_root, coco_folders(split), split)
    first: dict[Hashable, str] = {}
    loaded = []
    for entry in read_entries(file, "", defects):
        conversation_id = _conversation_id(entry)
        turns = _turns(entry)
        name = entry.file_name("image")
        path = images.find(entry, name)
        if name is None or conversation_id is None or turns is None:
            continue
        place = first.setdefault((conversation_id, name, turns), entry.place)
        if place != entry.place:
            entry.problem(f"the same image and conversation as {place}. Remove one of them.")
        elif path is not None:
            number = image_number(name)
            loaded.append(Conversation(conversation_id, path, number, turns, split))
    return loaded


def _conversation_id(entry: Entry) -> str | None:
    """Return the id as text; files with several datasets also contain numbers."""
    given = entry.fields.get("id")
    is_number = isinstance(given, int) and not isinstance(given, bool)
    value = entry.integer("id") if is_number else entry.text("id")
    return None if value is None else str(value)


def _turns(entry: Entry) -> tuple[tuple[str, str], ...] | None:
    """Return the turns in pairs, or report the defect and return None."""
    said = entry.inner("conversations")
    if said is None:
        return None
    if not said:
        entry.problem("'conversations': the conversation is empty. Write one or remove the entry.")
    texts = []
    in_order = True
    for number, turn in enumerate(said):
        speaker, text = turn.text("from"), _text(turn)
        expected = SPEAKERS[number % 2]
        if speaker is not None and speaker != expected and in_order:
            turn.problem(f"'from': expected '{expected}' in this turn, found {shown(speaker)}")
            in_order = False  # one defect: later turns are out of order, too
        if speaker is not None and text is not None:
            texts.append(text)
    if len(said) % 2 and in_order:
        said[-1].problem("the conversation ends without an answer. Add one or remove the turn.")
    if len(said) % 2 or not in_order or not texts or len(texts) != len(said):
        return None
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _text(turn: Entry) -> str | None:
    """Return the text with its line breaks, without the image's placeholder."""
    text = turn.text("value")
    if text is None:
        return None
    text = _PLACEHOLDER.sub("", text).strip()
    if not text:
        turn.problem("'value': the text is empty. Write one or remove the conversation.")
        return None
    return text
