"""Adapters on disk: PEFT's folder, and the base weights beside it where a method changes those."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gapinit.adapters.lora import ADAPTER, lora_layers, no_idle_warnings
from gapinit.artifacts.artifacts import atomic_folder, read_json
from gapinit.artifacts.digests import require_folder_unaltered, require_unaltered
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone

WEIGHTS = "adapter_model.safetensors"
BASE_WEIGHTS = "base_weights.safetensors"
SAVED_PREFIX = "base_model.model."
"""What PEFT puts in front of a module's name in the plain model."""


def save_adapter(
    model: PeftModel, output: Path, converted_from: Path | None = None, *, with_base: bool = False
) -> None:
    """Write a PEFT adapter folder that stock `PeftModel.from_pretrained` loads on the base.

    `converted_from`: for methods that move part of the base weights into A and B (PiSSA), the
    adapter before training; PEFT then writes the difference as a LoRA of twice the rank, for the
    unchanged base.

    `with_base`: for methods that quantise the base (LoftQ), a change of full rank: the adapted
    matrices of the base are written beside the adapter under the base's own names. Stock PEFT does
    not read them, so load them into the base first:
    `base.load_state_dict(load_file(folder / "base_weights.safetensors"), strict=False)`.
    """
    # With a plain initialisation every version of PEFT loads the saved weights as they are.
    config: Any = model.peft_config[ADAPTER]
    config.init_lora_weights = True
    config.eva_config = config.corda_config = config.lora_ga_config = None
    initial = None if converted_from is None else str(converted_from)
    with atomic_folder(output) as folder:
        model.save_pretrained(
            str(folder),
            save_embedding_layers=False,
            path_initial_model_for_weight_conversion=initial,
        )
        (folder / "README.md").unlink(missing_ok=True)
        if with_base:
            weights = {
                f"{name}.weight": module.get_base_layer().weight.detach().cpu()
                for name, module in lora_layers(model).items()
            }
            save_file(weights, folder / BASE_WEIGHTS, metadata={"format": "pt"})


def adapts_tower(backbone: Backbone, adapted: PeftModel) -> bool:
    """Return whether an adapter is on the vision tower."""
    return any(re.fullmatch(backbone.vision_pattern, name) for name in lora_layers(adapted))


def load_adapter(backbone: Backbone, folder: Path) -> PeftModel:
    """Put a saved adapter, and the base weights saved with it, on the backbone's model.

    Raises GapinitError for a folder without an adapter, or with one that does not fit this
    backbone: PEFT only warns then, and the model would write the captions of an untrained one.
    """
    folder = Path(folder)
    require_fit(backbone, folder)
    _put_base_weights(backbone, folder)
    try:
        with no_idle_warnings():
            return PeftModel.from_pretrained(backbone.model, folder)
    except (
        OSError, ValueError, RuntimeError, SafetensorError, TypeError, LookupError, AttributeError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise GapinitError(f"{folder}: this adapter cannot be loaded ({reason})") from None


@contextmanager
def adapter_on(backbone: Backbone, folder: Path) -> Iterator[bool]:
    """Put a saved adapter on the backbone's model during the block; yield if the tower has one.

    Afterwards every weight is the same as before, bit for bit, so that another adapter may follow.
    """
    touched = {
        f"{name.removeprefix(SAVED_PREFIX).rpartition('.lora_')[0]}.weight"
        for name in _read(folder / WEIGHTS)
    }
    if (folder / BASE_WEIGHTS).is_file():
        touched |= set(_read(folder / BASE_WEIGHTS))
    weights = {name: value for name, value in backbone.model.named_parameters() if name in touched}
    before = {name: value.clone() for name, value in weights.items()}
    adapted = load_adapter(backbone, folder).eval()
    on_tower = adapts_tower(backbone, adapted)
    # Merging changes no output beyond rounding and saves the adapters' own products. In half
    # precision the rounding of a merged weight is as large as a rank-1 update.
    merge = backbone.model.dtype == torch.float32
    if merge:
        adapted.merge_and_unload()
    try:
        yield on_tower
    finally:
        if not merge:
            adapted.unload()
        # Subtracting the adapter's part again would not give the same bits.
        with torch.no_grad():
            for name, value in before.items():
                weights[name].copy_(value)


@torch.no_grad()
def _put_base_weights(backbone: Backbone, folder: Path) -> None:
    """Replace matrices of the backbone by those that were saved with the adapter, if there are."""
    path = folder / BASE_WEIGHTS
    if not path.is_file():
        return
    values = _read(path)
    weights = {name: value for name, value in backbone.model.named_parameters() if name in values}
    for name, value in values.items():
        _require_shape(path, name, value, list(weights[name].shape) if name in weights else None)
    for name, value in values.items():
        weights[name].copy_(value)


def require_fit(backbone: Backbone, folder: Path) -> None:
    """Compare the names and the shapes of the saved matrices with the backbone's modules.

    Raises GapinitError for a folder without an adapter, with one whose checksum differs, or with
    another backbone's.
    """
    if not (folder / WEIGHTS).is_file():
        raise GapinitError(f"{folder / WEIGHTS}: no such file (expected a PEFT adapter folder)")
    require_folder_unaltered(folder)
    # The run's folder lists the adapter's checksum too, so that it is not another run's adapter.
    require_unaltered(folder / WEIGHTS)
    config = read_json(folder / "adapter_config.json")
    if not isinstance(config, dict) or not isinstance(config.get("rank_pattern") or {}, dict):
        raise GapinitError(f"{folder}/adapter_config.json: not a configuration of PEFT's adapters")
    _require_no_imports(config, folder)
    # EVA gives modules ranks of their own.
    ranks = config.get("rank_pattern") or {}
    modules = dict(backbone.model.named_modules())
    for saved_name, value in _read(folder / WEIGHTS).items():
        name = saved_name.removeprefix(SAVED_PREFIX)
        module_name, _, matrix = name.rpartition(".lora_")
        weight = getattr(modules.get(module_name), "weight", None)
        if weight is None:
            raise GapinitError(
                f"{folder}: adapts '{module_name}', which this backbone does not have. It was "
                "made for another backbone."
            )
        d_out, d_in = weight.shape
        rank = ranks.get(get_pattern_key(list(ranks), module_name), config.get("r"))
        expected = {"A.weight": [rank, d_in], "B.weight": [d_out, rank]}.get(matrix, [d_out])
        _require_shape(folder, name, value, expected)


def _require_shape(origin: Path, name: str, value: Tensor, expected: list[int] | None) -> None:
    if list(value.shape) != expected:
        raise GapinitError(
            f"{origin}: '{name}' has shape {list(value.shape)}, but this backbone needs "
            f"{expected or 'none'}. It was made for another backbone."
        )


def _require_no_imports(config: dict[str, Any], folder: Path) -> None:
    """Refuse keys that make PEFT import a module named in the file."""
    mapping = config.get("auto_mapping")
    library = str(mapping.get("parent_library")) if isinstance(mapping, dict) else ""
    # PEFT itself writes the library of the base model's class.
    foreign = mapping and library.partition(".")[0] not in ("transformers", "gapinit")
    named = {"auto_mapping": foreign, "megatron_config": config.get("megatron_config")}
    for key in filter(named.get, named):
        raise GapinitError(
            f"{folder}/adapter_config.json: the key '{key}' makes PEFT import the module that it "
            "names, which no adapter of gapinit needs. Remove the key, or train the run again."
        )


def _read(path: Path) -> dict[str, Tensor]:
    """Return saved weights; `GapinitError` for a damaged file and for weights that diverged."""
    try:
        values = load_file(path)
    except SafetensorError as error:
        raise GapinitError(f"{path}: damaged ({error}). Train the run again.") from None
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise GapinitError(
                f"{path}: '{name}' is not finite (NaN or infinity). Train the run again, with a "
                "lower learning rate if its training diverged."
            )
    return values
