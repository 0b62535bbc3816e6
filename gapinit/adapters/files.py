"""Adapters on disk: PEFT's folder, and the base weights beside it where a method changes those."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
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

    `converted_from`: for methods that take from the base weights what they put into A and B
    (PiSSA), the adapter as it was before training; PEFT then writes the difference as a LoRA of
    twice the rank, which works on the untouched base.

    `with_base`: for methods that quantise the base (LoftQ), whose change has no low rank: the
    adapted matrices of the base are written beside the adapter under the base's own names. Stock
    PEFT does not look for them, so they have to be put into the base first:
    `base.load_state_dict(load_file(folder / "base_weights.safetensors"), strict=False)`.
    """
    # The saved weights are all that counts: a plain initialisation makes any PEFT load them.
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
    """Say whether an adapter is on the vision tower."""
    return any(re.fullmatch(backbone.vision_pattern, name) for name in lora_layers(adapted))


def load_adapter(backbone: Backbone, folder: Path) -> PeftModel:
    """Put a saved adapter, and the base weights that lie beside it, on the backbone's model.

    Raises GapinitError for a folder without an adapter, or with one that does not fit this
    backbone: PEFT would only warn, and the captions would be those of the untrained model.
    """
    folder = Path(folder)
    require_fit(backbone, folder)
    _require_finite(folder / WEIGHTS, load_file(folder / WEIGHTS))
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
    """Have a saved adapter on the backbone's model during the block; yield if the tower has one.

    Afterwards the model is what it was, bit for bit: another adapter may follow.
    """
    touched = {
        f"{name.removeprefix(SAVED_PREFIX).rpartition('.lora_')[0]}.weight"
        for name in _adapter_shapes(folder)
    }
    if (folder / BASE_WEIGHTS).is_file():
        touched |= set(_saved_shapes(folder / BASE_WEIGHTS))
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
        # Subtracting what was added would not give the same numbers back.
        with torch.no_grad():
            for name, value in before.items():
                weights[name].copy_(value)


@torch.no_grad()
def _put_base_weights(backbone: Backbone, folder: Path) -> None:
    """Replace matrices of the backbone by those that were saved with the adapter, if any were."""
    path = folder / BASE_WEIGHTS
    if not path.is_file():
        return
    shapes = _saved_shapes(path)
    weights = {name: value for name, value in backbone.model.named_parameters() if name in shapes}
    for name, shape in shapes.items():
        found = list(weights[name].shape) if name in weights else None
        if found != shape:
            raise GapinitError(
                f"{path}: '{name}' has shape {shape}, but this backbone has {found or 'none'}. It "
                "was made for another backbone."
            )
    values = load_file(path)
    _require_finite(path, values)
    for name, value in values.items():
        weights[name].copy_(value)


def _require_finite(path: Path, values: Mapping[str, Tensor]) -> None:
    """Refuse weights of a training that diverged: what they say would look like an answer."""
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise GapinitError(
                f"{path}: '{name}' is not finite (NaN or infinity). Train the run again, with a "
                "lower learning rate if its training diverged."
            )


def require_fit(backbone: Backbone, folder: Path) -> None:
    """Compare the names and the shapes of the saved matrices with the backbone's modules.

    Raises GapinitError for a folder without an adapter, with an altered one, or with another
    backbone's.
    """
    shapes = _adapter_shapes(folder)
    require_folder_unaltered(folder)
    # The list of the run's folder names the adapter, too: it may not be that of another run.
    require_unaltered(folder / WEIGHTS)
    config = read_json(folder / "adapter_config.json")
    if not isinstance(config, dict) or not isinstance(config.get("rank_pattern") or {}, dict):
        raise GapinitError(f"{folder}/adapter_config.json: not a configuration of PEFT's adapters")
    _require_no_imports(config, folder)
    # EVA gives modules ranks of their own.
    ranks = config.get("rank_pattern") or {}
    modules = dict(backbone.model.named_modules())
    for name, shape in shapes.items():
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
        if shape != expected:
            raise GapinitError(
                f"{folder}: '{name}' has shape {shape}, but this backbone needs {expected}. It "
                "was made for another backbone."
            )


def _adapter_shapes(folder: Path) -> dict[str, list[int]]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise GapinitError(f"{path}: no such file (expected a PEFT adapter folder)")
    return {name.removeprefix(SAVED_PREFIX): shape for name, shape in _saved_shapes(path).items()}


def _require_no_imports(config: dict[str, Any], folder: Path) -> None:
    """Refuse keys by which PEFT would import a module that a file of others names."""
    mapping = config.get("auto_mapping")
    library = str(mapping.get("parent_library")) if isinstance(mapping, dict) else ""
    # PEFT writes the library of the base model's class itself.
    foreign = mapping and library.partition(".")[0] not in ("transformers", "gapinit")
    for key, named in (
        ("auto_mapping", foreign),
        ("megatron_config", config.get("megatron_config")),
    ):
        if named:
            raise GapinitError(
                f"{folder}/adapter_config.json: the key '{key}' makes PEFT import what it names, "
                "which no adapter of gapinit needs. Remove the key, or train the run again."
            )


def _saved_shapes(path: Path) -> dict[str, list[int]]:
    try:
        with safe_open(path, "pt") as saved:
            return {name: list(saved.get_slice(name).get_shape()) for name in saved.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise GapinitError(f"{path}: damaged ({error}). Train the run again.") from None
