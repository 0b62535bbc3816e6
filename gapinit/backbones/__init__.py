"""Backbones: one module for each model family; nothing else in gapinit knows a module's name.

`load_backbone` reads any `save_pretrained` folder of a known family; `make_backbone` makes the
folder of a backbone named in `config/backbones/`. Families are imported when they are used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from gapinit.artifacts import read_json
from gapinit.errors import GapinitError
from gapinit.settings import read_settings, read_yaml

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone

# Hugging Face `model_type` -> (module, class)
FAMILIES = {
    "blip-2": ("gapinit.backbones.blip2", "Blip2Backbone"),
    "qwen2_vl": ("gapinit.backbones.qwen2_vl", "Qwen2VLBackbone"),
    "qwen2_5_vl": ("gapinit.backbones.qwen2_5_vl", "Qwen25VLBackbone"),
    "gemma3": ("gapinit.backbones.gemma3", "Gemma3Backbone"),
    "mllama": ("gapinit.backbones.mllama", "MllamaBackbone"),
    "llava": ("gapinit.backbones.llava", "LlavaBackbone"),
}

# Family of a small backbone that is pretrained here -> (module, class of its settings)
PRETRAINED = {
    "mini-blip2": ("gapinit.backbones.mini_blip2", "MiniBlip2Settings"),
    "mini-qwen2-vl": ("gapinit.backbones.mini_qwen2_vl", "MiniQwen2VLSettings"),
    "mini-gemma3": ("gapinit.backbones.mini_gemma3", "MiniGemma3Settings"),
}


def load_backbone(folder: Path, device: str = "cpu") -> Backbone:
    """Load the backbone in a `save_pretrained` folder, frozen and in evaluation mode."""
    model_type = read_json(Path(folder) / "config.json").get("model_type")
    if model_type not in FAMILIES:
        raise GapinitError(
            f"{folder}: model type '{model_type}' is not supported, expected one of: "
            f"{', '.join(FAMILIES)}"
        )
    module, class_name = FAMILIES[model_type]
    backbone: Backbone = getattr(import_module(module), class_name).load(Path(folder), device)
    return backbone


def make_backbone(settings: Path, data: Path | None, output: Path, threads: int) -> None:
    """Make the `save_pretrained` folder of the backbone described in `settings`.

    `data`: folder of the pretraining dataset, of a backbone that is pretrained here.
    """
    family = read_yaml(settings).get("family")
    if family == "hub":
        from gapinit.backbones.hub import HubSettings, link_backbone

        link_backbone(read_settings(settings, HubSettings), output)
        return
    if family not in PRETRAINED:
        raise GapinitError(
            f"{settings}: key 'family': unknown family '{family}', expected one of: "
            f"{', '.join(['hub', *PRETRAINED])}"
        )
    if data is None:
        raise GapinitError(f"{settings}: --data is missing (the pretraining dataset)")
    module_name, class_name = PRETRAINED[family]
    module = import_module(module_name)
    module.pretrain(read_settings(settings, getattr(module, class_name)), data, output, threads)
