"""Backbones that others trained: from the Hugging Face hub, or from a folder of the user's own."""

from __future__ import annotations

import os
from pathlib import Path

from gapinit.artifacts.artifacts import atomic_folder
from gapinit.backbones.source import SOURCE_FILE, Dtype, PromptSettings, Source, write_source
from gapinit.config.backbone_settings import BackboneSettings
from gapinit.errors import GapinitError

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What a `save_pretrained` folder consists of: no pickle is ever fetched."""


class HubSettings(BackboneSettings):
    """Where a backbone's weights come from, read from `config/backbones/*.yaml`."""

    repository: str
    """Owner and name on the Hugging Face hub."""
    revision: str = "main"
    """Branch, tag or commit; the commit that it was is recorded."""
    folder: Path | None = None
    """A `save_pretrained` folder on disk: nothing is fetched."""
    dtype: Dtype | None = None
    """What the weights are loaded in; None: as they are stored."""
    prompts: PromptSettings = PromptSettings()
    """Parts of the template that replace the family's own."""


def link_backbone(settings: HubSettings, output: Path) -> None:
    """Make `output` a folder of links to the backbone's files; gigabytes are kept once.

    `gapinit_source.json` beside them records the repository and the commit. Raises GapinitError
    if the files cannot be fetched, or if there are no safetensors among them.
    """
    source, commit = (settings.folder, None) if settings.folder else _fetch(settings)
    source = source.absolute()
    found = sorted({path for pattern in FILES for path in source.glob(pattern)})
    names = [path.name for path in found]
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise GapinitError(
            f"{source}: no backbone here, expected config.json and *.safetensors (pickled weights "
            f"are never loaded), found: {', '.join(names) or 'nothing'}"
        )
    with atomic_folder(output) as folder:
        for path in found:
            if path.name == SOURCE_FILE:  # another's notes are not about this use
                continue
            (folder / path.name).symlink_to(path)
        record = Source(
            repository=settings.repository,
            commit=commit,
            folder=str(source),
            dtype=settings.dtype,
            prompts=settings.prompts,
        )
        write_source(folder, record)


def _fetch(settings: HubSettings) -> tuple[Path, str]:
    """Fetch the files of a revision, resuming what was begun, and return its folder and commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            settings.repository, revision=settings.revision, allow_patterns=list(FILES)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise GapinitError(
            f"{settings.repository}: cannot be fetched from the Hugging Face hub{offline}. Give a "
            f"folder with its files as 'folder' in config/backbones/{settings.name}.yaml. "
            f"({reason})"
        ) from None
    return Path(folder), Path(folder).name
