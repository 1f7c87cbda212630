"""The operations rows are made of, each with the one that undoes it. They know tensors, no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from convstem.errors import ConversionError
from convstem.layouts.rows import Operation

if TYPE_CHECKING:
    from torch import Tensor


def _each(change: Callable[[Tensor], Tensor]) -> Callable[..., list[Tensor]]:
    return lambda tensors: [change(tensor) for tensor in tensors]


SEQUENCE_FIRST = Operation(
    "permute sequence-first to batch-first",
    _each(lambda tensor: tensor.permute(1, 0, 2)),
    "permute batch-first to sequence-first",
    _each(lambda tensor: tensor.permute(1, 0, 2)),
)
"""[tokens, 1, width] <-> [1, tokens, width]."""


def _squeeze(tensor: Tensor) -> Tensor:
    if tensor.shape[0] != 1:
        raise ConversionError("the first axis is not 1")
    return tensor[0]


ADD_AXIS = Operation("add a first axis", _each(lambda t: t[None]), "drop the first axis", _each(_squeeze))
"""[tokens, width] <-> [1, tokens, width]."""


ADD_TWO_AXES = Operation(
    "add two first axes",
    _each(lambda tensor: tensor[None, None]),
    "drop two first axes",
    _each(lambda tensor: _squeeze(_squeeze(tensor))),
)
"""[width] <-> [1, 1, width]."""


TRANSPOSE = Operation("transpose", _each(lambda t: t.permute(1, 0)), "transpose", _each(lambda t: t.permute(1, 0)))
"""A linear kernel [in, out] <-> [out, in]."""


KERNEL_HWIO = Operation(
    "permute a kernel from HWIO to OIHW",
    _each(lambda kernel: kernel.permute(3, 2, 0, 1)),
    "permute a kernel from OIHW to HWIO",
    _each(lambda kernel: kernel.permute(2, 3, 1, 0)),
)
"""A convolution's kernel as JAX has it, and as torch has it."""


def _join(tensors: Sequence[Tensor]) -> list[Tensor]:
    import torch

    if len({tensor.shape for tensor in tensors}) > 1:
        raise ConversionError("the parts differ in shape")
    return [torch.cat(list(tensors))]


JOIN_QKV = Operation("join q, k, v", _join, "split into q, k, v", lambda tensors: tensors[0].chunk(3))
"""Three [width, ...] <-> one [3 * width, ...]."""


JOIN_TWO = Operation("join two", _join, "split into two", lambda tensors: tensors[0].chunk(2))
"""Two [width, ...] <-> one [2 * width, ...]."""


def _linear_of_heads(kernel: Tensor) -> Tensor:
    width, heads, head_width = kernel.shape
    return kernel.reshape(width, heads * head_width).permute(1, 0)


HEADS_TO_LINEAR = Operation("flatten heads into a linear weight", _each(_linear_of_heads))
"""JAX's kernel [in, heads, head width] -> [heads * head width, in]; the number of heads is gone."""


JOIN_HEADS = Operation("join kernels of separate heads", lambda t: _join([_linear_of_heads(k) for k in t]))
"""Two or three [in, heads, head width] -> one [2 or 3 * heads * head width, in]."""


JOIN_HEAD_BIASES = Operation("join biases of separate heads", lambda t: _join([_flat_bias(bias) for bias in t]))
"""One to three [heads, head width] -> one [heads * head width] or its multiple."""


def _flat_bias(bias: Tensor) -> Tensor:
    heads, head_width = bias.shape
    return bias.reshape(heads * head_width)


def _linear_from_heads(kernel: Tensor) -> Tensor:
    heads, head_width, width = kernel.shape
    return kernel.reshape(heads * head_width, width).permute(1, 0)


FLATTEN_HEADS = Operation("flatten heads", _each(_linear_from_heads))
"""An output kernel [heads, head width, out] -> [out, heads * head width]."""


def _absorb(tensors: Sequence[Tensor]) -> list[Tensor]:
    token, positions = tensors
    return [token + positions[:, :1], positions[:, 1:]]


ABSORB_POSITION = Operation("add the class token's position to the token", _absorb)
"""Class token [1, 1, width] and positions [1, 1 + tokens, width] -> both without the class token's position."""


def _with_zero_bias(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensors[0], tensors[0].new_zeros(len(tensors[0]))]


def _without_zero_bias(tensors: Sequence[Tensor]) -> list[Tensor]:
    if tensors[1].any():
        raise ConversionError("the bias is not zero, and the other layout has none")
    return [tensors[0]]


ADD_ZERO_BIAS = Operation("add a zero bias", _with_zero_bias, "drop a zero bias", _without_zero_bias)
"""A weight [out, in] <-> the weight and a bias [out]."""


def _split_q_kv(tensors: Sequence[Tensor]) -> list[Tensor]:
    third, rest = divmod(len(tensors[0]), 3)
    if rest:
        raise ConversionError("the first axis is not a multiple of three")
    return [tensors[0][:third], tensors[0][third:]]


def _join_q_kv(tensors: Sequence[Tensor]) -> list[Tensor]:
    import torch

    return [torch.cat(list(tensors))]


SPLIT_Q_KV = Operation("split into q and kv", _split_q_kv, "join q and kv", _join_q_kv)
"""One [3 * width, ...] <-> [width, ...] and [2 * width, ...]."""
