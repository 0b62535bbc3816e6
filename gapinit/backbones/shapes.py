"""The facts of the backbones that `config/backbones/` names, from their files alone."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapinit.backbones import PRETRAINED
from gapinit.backbones.architecture import (
    Architecture,
    TemplateTokens,
    build_architecture,
    find_architecture,
)
from gapinit.backbones.facts import Facts
from gapinit.backbones.hub import HubSettings
from gapinit.config.yaml_files import read_settings, read_yaml
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.source import Dtype


def backbone_facts(name: str, folder: Path) -> Facts:
    """Return the facts of a backbone by its file's name; `folder` is `config/`.

    A published one is known by its architecture file, one that is made here by its settings. An
    unknown name is an error that lists those known.
    """
    path = folder / "backbones" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise GapinitError(
            f"backbone '{name}': no such file in {path.parent}/, expected one of: {known}. "
            "Another config folder is given with --config-folder."
        )
    family = read_yaml(path).get("family")
    if family in PRETRAINED:
        return _made_here(path, str(family))
    settings = read_settings(path, HubSettings)
    return architecture_facts(find_architecture(name, folder), name, settings.dtype)


def architecture_facts(
    architecture: Architecture, origin: str, dtype: Dtype | None = None
) -> Facts:
    """Return the facts of an architecture, in the dtype that its weights are stored in or another.

    Nothing of it takes memory: it is built on `meta`.
    """
    chosen = dtype or architecture.dtype
    backbone = build_architecture(architecture, origin, "meta", chosen)
    return Facts(backbone, chosen, architecture.template_tokens)


def _made_here(path: Path, family: str) -> Facts:
    """Build a small backbone on `meta`; its tokenizer knows its template and single bytes."""
    import torch

    module_name, class_name = PRETRAINED[family]
    module: Any = import_module(module_name)
    settings = read_settings(path, getattr(module, class_name))
    words = [text for text in settings.prompts.model_dump().values() if isinstance(text, str)]
    with torch.device("meta"):
        backbone = settings.build(words * 4)
    texts = backbone.texts
    prompt = len(texts.encode_prompts([backbone.prompts.caption])[0])
    return Facts(backbone, "float32", TemplateTokens(head=len(texts.head), prompt=prompt))
