"""ViTs of other projects, rewritten with the same names, shapes and order of operations."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (dim // self.heads) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


class Scale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, mlp: int, scaled: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(dim, mlp), act=nn.GELU(), fc2=nn.Linear(mlp, dim)))
        self.ls1: nn.Module = Scale(dim) if scaled else nn.Identity()
        self.ls2: nn.Module = Scale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class BatchFirstViT(nn.Module):
    """The ViT of timm 0.4, the base of MoCo v3 and revisiting-at; ``proj`` embeds the patches."""

    def __init__(
        self,
        proj: nn.Module,
        dim: int,
        depth: int,
        heads: int,
        classes: int = 5,
        tokens: int = 4,
        scaled: bool = False,
        class_position: bool = True,
    ) -> None:
        super().__init__()
        self.class_position = class_position
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + class_position, dim))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = proj
        self.blocks = nn.Sequential(*(Block(dim, heads, 4 * dim, scaled) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes) if classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        token = self.cls_token.expand(len(x), -1, -1)
        if self.class_position:
            x = torch.cat([token, x], 1) + self.pos_embed
        else:
            x = torch.cat([token, x + self.pos_embed], 1)
        return self.head(self.norm(self.blocks(x))[:, 0])


def moco_stem(dim: int) -> nn.Sequential:
    widths = [3, dim // 8, dim // 4, dim // 2, dim]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(dim, dim, 1))


class MocoViT(BatchFirstViT):
    """MoCo v3's ``vit_conv_*``: 12 heads at every width; positions are a fixed table unless fine-tuned."""

    def __init__(self, dim: int = 24, depth: int = 2, classes: int = 5, tokens: int = 4, fixed: bool = True) -> None:
        super().__init__(moco_stem(dim), dim, depth, 12, classes, tokens)
        self.fixed = fixed

    def fix_positions(self) -> None:
        """Write the sine-cosine table; token ``t`` is in column ``t // side`` and row ``t % side``."""
        side, quarter = round((self.pos_embed.shape[1] - 1) ** 0.5), self.pos_embed.shape[2] // 4
        with torch.no_grad():
            self.pos_embed.zero_()
            for token in range(side * side):
                for k in range(quarter):
                    for position, start in ((token // side, 0), (token % side, 2 * quarter)):
                        angle = torch.tensor(position / 10000 ** (k / quarter), dtype=torch.float64)
                        self.pos_embed[0, 1 + token, start + k] = angle.sin()
                        self.pos_embed[0, 1 + token, start + quarter + k] = angle.cos()


def moco_projector(dim: int, depth: int = 3) -> nn.Sequential:
    """The projector that replaces the head in pre-training; the predictor has two layers."""
    layers: list[nn.Module] = []
    for before, after in ((dim, 8), *[(8, 8)] * (depth - 2), (8, 4)):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after, affine=after != 4), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class ChannelsFirstNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square().mean(1, keepdim=True)
        return (x - mean) / (variance + 1e-6).sqrt() * self.weight[:, None, None] + self.bias[:, None, None]


class ConvBlock(nn.Module):
    def __init__(self, first: int, dim: int) -> None:
        super().__init__()
        widths = [3, first, 2 * first, 4 * first, 8 * first]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), ChannelsFirstNorm(after), nn.GELU()]
        self.stem = nn.Sequential(*layers, nn.Conv2d(widths[-1], dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


def robust(
    first: int = 3, dim: int = 24, depth: int = 2, heads: int = 3, medium: bool = False, classes: int = 5,
    tokens: int = 4,
) -> BatchFirstViT:  # fmt: skip
    """The ViTs of revisiting-at. The medium one is a DeiT-III: LayerScale, no position for the class token."""
    return BatchFirstViT(ConvBlock(first, dim), dim, depth, heads, classes, tokens, medium, not medium)


class Normalised(nn.Sequential):
    """RobustBench's wrapper."""

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        normalize = nn.Module()
        normalize.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        normalize.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        super().__init__(OrderedDict(normalize=normalize, model=model))

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.normalize.mean) / self.normalize.std)


class InBlock(nn.Module):
    """pycls's wrapper around torch's attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.block = nn.MultiheadAttention(dim, heads)

    def forward(self, *tokens: Tensor, need_weights: bool) -> Any:
        return self.block(*tokens, need_weights=need_weights)


class SequenceFirstBlock(nn.Module):
    def __init__(self, dim: int, heads: int, mlp: int, eps: float, mlp_name: str, attention: Any) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=eps)
        self.self_attention = attention(dim, heads)
        self.ln_2 = nn.LayerNorm(dim, eps=eps)
        layers = OrderedDict(linear_1=nn.Linear(dim, mlp), act=nn.GELU(), linear_2=nn.Linear(mlp, dim))
        self.add_module(mlp_name, nn.Sequential(layers))
        self.mlp_name = mlp_name

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.get_submodule(self.mlp_name)(self.ln_2(x))


class PyclsViT(nn.Module):
    """pycls's ViT_C: sequence first, LayerNorm epsilon 1e-5; without a class token it averages."""

    def __init__(
        self,
        widths: tuple[int, ...] = (4, 8, 8, 16),
        strides: tuple[int, ...] = (2, 2, 2, 2),
        dim: int = 24,
        depth: int = 2,
        heads: int = 3,
        token: bool = True,
        mlp_ratio: int = 3,
        classes: int = 5,
        tokens: int = 4,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        for i, (before, after) in enumerate(itertools.pairwise((3, *widths))):
            self.stem.add_module(f"cstem{i}_conv", nn.Conv2d(before, after, 3, strides[i], 1, bias=False))
            self.stem.add_module(f"cstem{i}_bn", nn.BatchNorm2d(after))
            self.stem.add_module(f"cstem{i}_af", nn.ReLU())
        self.stem.add_module("cstem_last_conv", nn.Conv2d(widths[-1], dim, 1))
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if token else None
        self.pos_embedding = nn.Parameter(torch.zeros(tokens + token, 1, dim))
        blocks = {
            f"block_{i}": SequenceFirstBlock(dim, heads, mlp_ratio * dim, 1e-5, "mlp_block", InBlock)
            for i in range(depth)
        }
        self.encoder = nn.Sequential(OrderedDict(**blocks, ln=nn.LayerNorm(dim, eps=1e-5)))
        self.head = nn.Sequential(OrderedDict(head_fc=nn.Linear(dim, classes)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).permute(2, 0, 1)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(-1, x.shape[1], -1), x])
        x = self.encoder(x + self.pos_embedding)
        return self.head(x[0] if self.class_token is not None else x.mean(0))


class ClassyViT(nn.Module):
    """ClassyVision's ViT with a separate head, as in its checkpoints."""

    def __init__(self, widths: tuple[int, ...] = (4, 8, 8, 16), dim: int = 24, depth: int = 2, heads: int = 3) -> None:
        super().__init__()
        self.conv_proj = nn.Sequential()
        for i, (before, after) in enumerate(itertools.pairwise((3, *widths))):
            self.conv_proj.add_module(f"conv_{i}", nn.Conv2d(before, after, 3, 2, 1, bias=False))
            self.conv_proj.add_module(f"bn_{i}", nn.BatchNorm2d(after))
            self.conv_proj.add_module(f"relu_{i}", nn.ReLU())
        self.conv_proj.add_module(f"conv_{len(widths)}", nn.Conv2d(widths[-1], dim, 1))
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.zeros(5, 1, dim))
        layers = {
            f"layer_{i}": SequenceFirstBlock(dim, heads, 4 * dim, 1e-6, "mlp", nn.MultiheadAttention)
            for i in range(depth)
        }
        self.encoder.layers = nn.Sequential(OrderedDict(layers))
        self.encoder.ln = nn.LayerNorm(dim, eps=1e-6)
        self.heads = nn.ModuleDict({"default_head": nn.Module()})
        self.heads["default_head"].layers = nn.Sequential(OrderedDict(head=nn.Linear(dim, 5)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x).flatten(2).permute(2, 0, 1)
        x = torch.cat([self.class_token.expand(-1, x.shape[1], -1), x]) + self.encoder.pos_embedding
        return self.heads["default_head"].layers(self.encoder.ln(self.encoder.layers(x))[0])

    def classy_state(self) -> dict[str, object]:
        state = self.state_dict()
        trunk = {key: value for key, value in state.items() if not key.startswith("heads.")}
        head = {key.removeprefix("heads.default_head."): value for key, value in state.items() if key not in trunk}
        return {"model": {"trunk": trunk, "heads": {"trunk_output": {"default_head": head}}}}
