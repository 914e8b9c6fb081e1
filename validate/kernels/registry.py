"""Which kernel runs a primitive.

A kernel is registered for its primitive's class by ``@runs`` and is called with the primitive, the executor and the
inputs. It knows nothing of gradients: those follow from the primitive's own backward rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from costmodel.ops.primitive import Primitive
from validate.communication import Transport

Kernel = Callable[..., Any]
K = TypeVar("K", bound=Kernel)

_kernels: dict[type[Primitive], Kernel] = {}


class Runner(Protocol):
    """What kernels know of the executor that runs them.

    Attributes:
        dtypes: by precision.
        flash: whether fused attention may use torch's flash kernels.
        device: where tensors are made.
        transport: sends messages.
    """

    dtypes: Mapping[str, torch.dtype]
    flash: bool
    device: torch.device
    transport: Transport


def runs(primitive: type[Primitive]) -> Callable[[K], K]:
    """Register the kernel of a primitive; it gives a tensor, or a tuple of them.

    Raises:
        ValueError: when the primitive has one already.
    """

    def register(kernel: K) -> K:
        if primitive in _kernels:
            names = f"{_kernels[primitive].__name__} and {kernel.__name__}"
            raise ValueError(f"two kernels run {primitive.__name__}: {names}")
        _kernels[primitive] = kernel
        return kernel

    return register


def run(primitive: Primitive, ops: Runner, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs of a primitive.

    Raises:
        NotImplementedError: when no kernel is registered for it.
    """
    kernel = _kernels.get(type(primitive))
    if kernel is None:
        known = ", ".join(sorted(cls.__name__ for cls in _kernels))
        raise NotImplementedError(
            f"no kernel runs {type(primitive).__name__}; register one with @validate.kernels.runs. Known: {known}"
        )
    result = kernel(primitive, ops, *inputs)
    return result if isinstance(result, tuple) else (result,)
