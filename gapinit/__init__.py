"""Rank-1 LoRA for vision-language models, initialised along the modality gap.

    gap = gapinit.estimate_gap(model, processor, pairs)     of every decoder layer: `GapVectors`
    gapinit.initialize_lora_gap_weights(peft_model, gap)    Gap-Init on a PEFT model, in place
    gapinit.alignment(peft_model, gap)                      how far B points along the gap
    gapinit.GapAlignmentCallback(gap)                       the same in a Trainer's log
    gapinit.target_modules(model, layers)                   which modules to adapt, for LoraConfig
    gapinit.load_processor(folder)                          tokenizer and image processor alone

    gapinit.gap_vector(h_text, h_vision)    the gap of one layer, (d,)
    gapinit.spot_gap(h_text, h_vision)      its SPOT-Gap score, `.score` and `.per_sample`

Names are imported when they are first used, so that `import gapinit` costs no numpy or torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gapinit.adapters.callback import GapAlignmentCallback
    from gapinit.adapters.directions import alignment
    from gapinit.adapters.initialize import initialize_lora_gap_weights
    from gapinit.backbones.in_memory import target_modules
    from gapinit.backbones.loading import load_processor
    from gapinit.errors import GapinitError
    from gapinit.gap.estimate import estimate_gap
    from gapinit.gap.gap_vectors import GapVectors
    from gapinit.gap.spot import spot_gap
    from gapinit.gap.vector import gap_vector

    __version__: str

__all__ = [
    "GapAlignmentCallback",
    "GapVectors",
    "GapinitError",
    "__version__",
    "alignment",
    "estimate_gap",
    "gap_vector",
    "initialize_lora_gap_weights",
    "load_processor",
    "spot_gap",
    "target_modules",
]

# No name here may be that of a submodule (`gap`, `spot`, ...): importing a submodule binds its
# name in the package, and the attribute would mean one thing before and another thing after.
_MODULES = {
    "GapAlignmentCallback": "gapinit.adapters.callback",
    "GapVectors": "gapinit.gap.gap_vectors",
    "GapinitError": "gapinit.errors",
    "alignment": "gapinit.adapters.directions",
    "estimate_gap": "gapinit.gap.estimate",
    "gap_vector": "gapinit.gap.vector",
    "initialize_lora_gap_weights": "gapinit.adapters.initialize",
    "load_processor": "gapinit.backbones.loading",
    "spot_gap": "gapinit.gap.spot",
    "target_modules": "gapinit.backbones.in_memory",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'gapinit' has no attribute {name!r}")
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gapinit")
    except PackageNotFoundError:
        # The workflow's rules import a checkout that need not be installed.
        return "0+unknown"
