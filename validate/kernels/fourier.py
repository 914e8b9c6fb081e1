"""Fourier transforms on real tensors; a complex number is a pair on a last axis."""

from __future__ import annotations

import torch
from torch import Tensor

from costmodel.ops.fourier import FFT, ComplexProduct, InverseRealFFT, RealFFT, ScaleBins
from validate.kernels.registry import Runner, runs


def _complex(ops: Runner, x: Tensor) -> Tensor:
    return torch.view_as_complex(x.to(ops.dtypes["accumulate"]).contiguous())


@runs(FFT)
def fft(primitive: FFT, ops: Runner, x: Tensor) -> Tensor:
    transform = torch.fft.ifft if primitive.inverse else torch.fft.fft
    norm = "backward" if primitive.inverse == primitive.divided else "forward"
    return torch.view_as_real(transform(_complex(ops, x), dim=primitive.axis, norm=norm)).to(x.dtype)


@runs(RealFFT)
def real_fft(primitive: RealFFT, ops: Runner, x: Tensor) -> Tensor:
    return torch.view_as_real(torch.fft.rfft(x.to(ops.dtypes["accumulate"]), dim=primitive.axis)).to(x.dtype)


@runs(InverseRealFFT)
def inverse_real_fft(primitive: InverseRealFFT, ops: Runner, x: Tensor) -> Tensor:
    size = 2 * (x.shape[primitive.axis] - 1)
    return torch.fft.irfft(_complex(ops, x), n=size, dim=primitive.axis).to(x.dtype)


@runs(ScaleBins)
def scale_bins(primitive: ScaleBins, ops: Runner, x: Tensor) -> Tensor:
    last = x.shape[primitive.axis] - 1
    scaled = x * float(primitive.inner)
    for place in (0, last):
        scaled.select(primitive.axis, place).copy_(x.select(primitive.axis, place) * float(primitive.ends))
    return scaled


@runs(ComplexProduct)
def complex_product(primitive: ComplexProduct, ops: Runner, a: Tensor, b: Tensor) -> Tensor:
    right = _complex(ops, b)
    return torch.view_as_real(_complex(ops, a) * (right.conj() if primitive.conjugate else right)).to(a.dtype)
