"""Triangular matrices on real tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from costmodel.ops.triangular import TriangularInverse
from validate.kernels.registry import Runner, runs


@runs(TriangularInverse)
def triangular_inverse(primitive: TriangularInverse, ops: Runner, a: Tensor) -> Tensor:
    wide = a.to(ops.dtypes["accumulate"])
    unit = torch.eye(a.shape[-1], dtype=wide.dtype, device=a.device)
    return torch.linalg.solve_triangular(wide, unit, upper=False, unitriangular=True).to(a.dtype)
