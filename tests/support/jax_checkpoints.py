"""timm's plain ViT in the JAX projects' format, to write .npz files like their users'."""

from typing import Any

import numpy
from torch import Tensor


def npz(state: dict[str, Tensor], heads: int, big_vision: bool) -> dict[str, Any]:
    """Return timm's plain ViT with the JAX projects' names and shapes."""
    numbers = (0, 0, 1) if big_vision else (1, 3, 2)
    names = {"norm1": "LayerNorm_0", "norm2": f"LayerNorm_{numbers[2]}"}
    out: dict[str, Any] = {}
    for key, tensor in state.items():
        parts, value = key.split("."), tensor.numpy()
        width = value.shape[-1]
        block = f"Transformer/encoderblock_{parts[1]}/" if parts[0] == "blocks" else ""
        leaf = parts[-1]
        if key == "cls_token":
            out["cls"] = value
        elif key == "pos_embed":
            out["pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"] = value
        elif parts[0] == "patch_embed":
            out[f"embedding/{'kernel' if leaf == 'weight' else 'bias'}"] = (
                value.transpose(2, 3, 1, 0) if leaf == "weight" else value
            )
        elif "qkv" in key:
            attention = f"{block}MultiHeadDotProductAttention_{numbers[0]}/"
            for name, part in zip(("query", "key", "value"), numpy.split(value, 3), strict=True):
                if leaf == "weight":
                    out[f"{attention}{name}/kernel"] = part.T.reshape(width, heads, -1)
                else:
                    out[f"{attention}{name}/bias"] = part.reshape(heads, -1)
        elif "attn.proj" in key:
            attention = f"{block}MultiHeadDotProductAttention_{numbers[0]}/out/"
            if leaf == "weight":
                out[f"{attention}kernel"] = value.T.reshape(heads, -1, len(value))
            else:
                out[f"{attention}bias"] = value
        elif parts[-2] in names or parts[0] == "norm":
            name = f"{block}{names[parts[2]]}" if block else "Transformer/encoder_norm"
            out[f"{name}/{'scale' if leaf == 'weight' else 'bias'}"] = value
        else:
            name = f"{block}MlpBlock_{numbers[1]}/Dense_{int(parts[3][-1]) - 1}" if block else "head"
            out[f"{name}/{'kernel' if leaf == 'weight' else 'bias'}"] = value.T
    return out


def stacked(arrays: dict[str, Any]) -> dict[str, Any]:
    """Stack the blocks for scan, as big_vision does on request."""
    rest = {key: value for key, value in arrays.items() if "encoderblock_" not in key}
    first = [key for key in arrays if "encoderblock_0/" in key]
    for key in first:
        parts = [arrays[key.replace("encoderblock_0/", f"encoderblock_{i}/")] for i in range(2)]
        rest[key.replace("encoderblock_0/", "encoderblock/")] = numpy.stack(parts)
    return rest
