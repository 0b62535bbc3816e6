"""Rank-1 LoRA for vision-language models, initialised along the modality gap.

    gap = gapinit.estimate_gap(model, processor, pairs)     `GapVectors` of every decoder layer
    gapinit.initialize_lora_gap_weights(peft_model, gap)    Gap-Init on a PEFT model, in place
    gapinit.alignment(peft_model, gap)                      alignment of B with the gap
    gapinit.GapAlignmentCallback(gap)                       the alignment in a Trainer's log
    gapinit.target_modules(model, layers)                   target modules for LoraConfig
    gapinit.load_processor(folder)                          tokenizer and image processor

    gapinit.gap_vector(h_text, h_vision)    the gap of one layer, (d,)
    gapinit.spot_gap(h_text, h_vision)      its SPOT-Gap score, `.score` and `.per_sample`

Names are imported on first use, so that `import gapinit` loads neither numpy nor torch.
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

# No name here may equal a submodule's (`gap`, `spot`, ...): importing a submodule binds its name in
# the package and would replace the attribute.
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
    globals()[name] = value  # later accesses skip this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gapinit")
    except PackageNotFoundError:
        # The workflow's rules import a checkout that may not be installed.
        return "0+unknown"
