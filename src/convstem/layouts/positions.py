"""Tells MoCo v3's fixed position embedding from a learned one, by its values."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_CLOSE = 2e-3  # half precision keeps values up to 1 within 5e-4


def is_moco_sincos(pos_embed: Tensor) -> bool:
    """Tell whether a position embedding is the two-dimensional sine-cosine table of MoCo v3.

    Args:
        pos_embed: [1, 1 + side * side, width], the class token first.

    Source: facebookresearch/moco-v3, vits.py (build_2d_sincos_position_embedding).
    """
    import torch

    _, tokens, width = pos_embed.shape
    side = round((tokens - 1) ** 0.5)
    if pos_embed.is_meta or side * side != tokens - 1 or width % 4:
        return False
    frequencies = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.outer(torch.arange(side), frequencies)
    column, row = angles.repeat_interleave(side, 0), angles.repeat(side, 1)  # tokens are counted column by column
    table = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], 1)
    expected = torch.cat([table.new_zeros(1, width), table])
    return bool((pos_embed[0].detach().float().cpu() - expected).abs().max() < _CLOSE)
