"""Backbones: one module for each model family. No other package depends on a single family.

`load_backbone` reads any `save_pretrained` folder of a known family; `make_backbone` writes the
folder of a backbone named in `config/backbones/`. Families are imported on first use.

A family is identified by its Hugging Face `model_type`: a module of that name in this package, or a
class that an installed package declares as an entry point (`docs/backbones.md`).
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from gapinit.artifacts.artifacts import read_json
from gapinit.artifacts.digests import require_folder_unaltered
from gapinit.config.yaml_files import read_settings, read_yaml
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone
    from gapinit.backbones.mini import MiniSettings

# Hugging Face `model_type` -> "module:class", where the module is not named after the type
FAMILIES = {"blip-2": "gapinit.backbones.blip2:Blip2Backbone"}
# Group of entry points, `model_type = "module:class"`, by which other packages add families
ENTRY_POINTS = "gapinit.backbones"
_FAMILY_CLASS = re.compile(r"^class (\w+)\([^()]*Backbone\):", re.MULTILINE)

# Family of small backbones that gapinit pretrains -> (module, class of its settings)
PRETRAINED = {
    "mini-blip2": ("gapinit.backbones.mini_blip2", "MiniBlip2Settings"),
    "mini-qwen2-vl": ("gapinit.backbones.mini_qwen2_vl", "MiniQwen2VLSettings"),
    "mini-gemma3": ("gapinit.backbones.mini_gemma3", "MiniGemma3Settings"),
}


def known_families() -> dict[str, str]:
    """Return each model type's family as "module:class", without importing it.

    A module of this package is a family if it defines a subclass of `Backbone` or of another
    family; the last one counts. Other packages cannot replace a family of gapinit.
    """
    found = dict(FAMILIES)
    for folder in __path__:
        for path in sorted(Path(folder).glob("*.py")):
            module = f"{__name__}.{path.stem}"
            classes = _FAMILY_CLASS.findall(path.read_text(encoding="utf-8"))
            if classes and not any(where.startswith(f"{module}:") for where in FAMILIES.values()):
                found[path.stem] = f"{module}:{classes[-1]}"
    added = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}
    return found | {name: where for name, where in added.items() if name not in found}


def find_family(model_type: object) -> type[Backbone] | None:
    """Return the family of a Hugging Face `model_type`; None: it is unknown.

    Raises GapinitError for a family that cannot be imported or is incomplete.
    """
    known = known_families()
    name = str(model_type)
    # A module's name contains neither of these characters.
    where = known.get(name) or known.get(re.sub("[-.]", "_", name))
    return None if where is None else import_family(where)


def import_family(where: str) -> type[Backbone]:
    """Return the family at "module:class"; GapinitError if it is missing or incomplete."""
    from gapinit.backbones.base import Backbone

    module, _, class_name = where.partition(":")
    try:
        family = getattr(import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise GapinitError(f"{where}: this backbone family cannot be imported ({error})") from error
    if not (isinstance(family, type) and issubclass(family, Backbone)):
        raise GapinitError(f"{where}: not a backbone family, expected a subclass of Backbone")
    missing = sorted(family.__abstractmethods__)
    missing += [name for name in Backbone.__annotations__ if not hasattr(family, name)]
    if missing:
        raise GapinitError(
            f"{where}: this backbone family lacks: {', '.join(missing)} (docs/backbones.md)"
        )
    return family


def load_backbone(folder: Path, device: str = "cpu") -> Backbone:
    """Load the backbone in a `save_pretrained` folder, frozen and in evaluation mode."""
    from gapinit.backbones.loading import load_family

    config = read_json(Path(folder) / "config.json")
    if not isinstance(config, dict):
        raise GapinitError(f"{folder}/config.json: expected an object at the top level")
    require_folder_unaltered(folder)
    model_type = config.get("model_type")
    family = find_family(model_type)
    if family is None:
        raise GapinitError(
            f"{folder}: model type '{model_type}' is not supported, expected one of: "
            f"{', '.join(known_families())}. docs/backbones.md says how to add one."
        )
    return load_family(family, Path(folder), device)


def make_backbone(settings: Path, data: Path | None, output: Path, threads: int) -> None:
    """Write the `save_pretrained` folder of the backbone that the file `settings` describes.

    `data`: folder of the pretraining dataset; needed only for a small backbone.
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
    from gapinit.backbones.mini import pretrain

    pretrain(pretrained_settings(settings), data, output, threads)


def pretrained_settings(path: Path) -> MiniSettings:
    """Read the file of a small backbone, whose family is one of `PRETRAINED`."""
    module, class_name = PRETRAINED[read_yaml(path)["family"]]
    settings: MiniSettings = read_settings(path, getattr(import_module(module), class_name))
    return settings
