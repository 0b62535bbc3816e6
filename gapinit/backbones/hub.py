"""Published backbones, from the Hugging Face hub or a local folder."""

from __future__ import annotations

import os
from pathlib import Path

from gapinit.artifacts.artifacts import atomic_folder
from gapinit.backbones.source import SOURCE_FILE, Dtype, PromptSettings, Source, write_source
from gapinit.config.backbone_settings import BackboneSettings
from gapinit.errors import GapinitError

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""The files of a `save_pretrained` folder; pickles are never downloaded."""


class HubSettings(BackboneSettings):
    """The file `config/backbones/<name>.yaml` of a published backbone."""

    repository: str
    """Owner and name on the Hugging Face hub."""
    revision: str = "main"
    """Branch, tag or commit; the commit is recorded."""
    folder: Path | None = None
    """A local `save_pretrained` folder: nothing is downloaded."""
    dtype: Dtype | None = None
    """The dtype to load the weights in; None: the stored one."""
    prompts: PromptSettings = PromptSettings()
    """Parts of the template that replace the family's own."""


def link_backbone(settings: HubSettings, output: Path) -> None:
    """Make `output` a folder of links to the backbone's files, which are not copied.

    `gapinit_source.json` records the repository and the commit. Raises GapinitError if the download
    fails or there are no safetensors.
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
            if path.name != SOURCE_FILE:  # written below
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
    """Download a revision, or resume its download; return its folder and commit."""
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
            f"{settings.repository}: cannot be fetched from the Hugging Face hub{offline}. To use "
            f"local files, set 'folder' in config/backbones/{settings.name}.yaml. ({reason})"
        ) from None
    return Path(folder), Path(folder).name
