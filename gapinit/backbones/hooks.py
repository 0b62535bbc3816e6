"""Read the output of a module while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def output_of(module: nn.Module, use: Callable[[Tensor], object]) -> Iterator[None]:
    """Call `use` with the module's output during the block."""

    def hook(_module: nn.Module, _arguments: object, output: Any) -> None:
        use(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
