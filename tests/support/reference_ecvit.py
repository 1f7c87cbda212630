"""EdgeCrafter's ECViT and the models around it, rewritten with the same keys, shapes and order of operations.

Encoders and decoders are built only for their keys and never run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.reference_vits import Attention, Block

HEAD = 64


def tree(**children: Any) -> nn.Module:
    """Return a module with these children, parameters (given by a number) and lists."""
    module = nn.Module()
    for name, child in children.items():
        if isinstance(child, list):
            child = nn.ModuleList(child)
        if isinstance(child, nn.Module):
            module.add_module(name, child)
        else:
            module.register_parameter(name, nn.Parameter(torch.zeros(child)))
    return module


def conv_norm(before: int, after: int, kernel: int = 1, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return tree(conv=conv, norm=nn.BatchNorm2d(after))


class RotaryAttention(Attention):
    """Rotates the patches' queries and keys but not the register's; ``sin`` and ``cos`` are [tokens, HEAD]."""

    angles: tuple[Tensor, Tensor]

    def rotated(self, x: Tensor) -> Tensor:
        sin, cos = (table.to(x) for table in self.angles)
        patches = x[:, :, 1:]
        first, second = patches.chunk(2, -1)
        turned = patches * cos + torch.cat([-second, first], -1) * sin
        return torch.cat([x[:, :, :1], turned], 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, HEAD).permute(2, 0, 3, 1, 4)
        weights = (self.rotated(q) @ self.rotated(k).transpose(-2, -1) * HEAD**-0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


class ECViT(nn.Module):
    """The backbone. It returns the mean of the patch tokens, without a norm after the last block."""

    fixed = True

    def __init__(self, dim: int = 128, depth: int = 2, ratio: int = 4) -> None:
        super().__init__()
        widths = [3, dim // 8, dim // 4, dim // 2]
        convs = [conv_norm(before, after, 3, 2) for before, after in itertools.pairwise(widths)]
        self.patch_embed = tree(convs=convs, proj=nn.Conv2d(widths[-1], dim, 3, 2, 1))
        self.register_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, dim // HEAD, ratio * dim, False) for _ in range(depth))
        for block in self.blocks:
            block.attn = RotaryAttention(dim, dim // HEAD)
        self.rope_embed = nn.Module()
        self.rope_embed.register_buffer("periods", torch.zeros(HEAD // 4))
        self.fix_positions()

    def fix_positions(self) -> None:
        quarter = torch.arange(HEAD // 4, dtype=torch.float32)
        self.rope_embed.periods.copy_(100.0 ** (2 * quarter / (HEAD // 2)))

    def angles(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        centres = [2 * (torch.arange(side, dtype=torch.float32) + 0.5) / side - 1 for side in (rows, columns)]
        grid = torch.cartesian_prod(*centres).to(self.rope_embed.periods)  # row by row
        turns = (2 * math.pi * grid[:, :, None] / self.rope_embed.periods).flatten(1)
        turns = turns.repeat(1, 2)
        return turns.sin(), turns.cos()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.patch_embed.convs:
            x = layer.norm(layer.conv(x)).relu()
        x = self.patch_embed.proj(x)
        angles = self.angles(*x.shape[2:])
        x = torch.cat([self.register_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        for block in self.blocks:
            block.attn.angles = angles
            x = block(x)
        return x[:, 1:].mean(1)


def mlp(*widths: int) -> nn.Module:
    return tree(layers=[nn.Linear(before, after) for before, after in itertools.pairwise(widths)])


def attention(dim: int) -> nn.Module:
    return nn.MultiheadAttention(dim, 1)


def encoder(dim: int) -> nn.Module:
    """The keys of the encoder between backbone and decoder."""

    def stage() -> nn.Module:
        pair = [tree(conv1=conv_norm(dim, dim, 3), conv2=conv_norm(dim, dim)) for _ in range(2)]
        return tree(conv1=conv_norm(dim, dim), bottlenecks=pair)

    def block() -> nn.Module:
        return tree(cv1=conv_norm(dim, dim), cv2=[stage()], cv3=[stage()], cv4=conv_norm(dim, dim))

    layer = tree(self_attn=attention(dim), linear1=nn.Linear(dim, dim), linear2=nn.Linear(dim, dim),
                 norm1=nn.LayerNorm(dim), norm2=nn.LayerNorm(dim))  # fmt: skip
    down = [nn.ModuleList([tree(cv1=conv_norm(dim, dim), cv2=conv_norm(dim, dim, 3, 2))]) for _ in range(2)]
    return tree(
        encoder=[tree(layers=[layer])],
        lateral_convs=[conv_norm(dim, dim) for _ in range(2)],
        fpn_blocks=[block() for _ in range(2)],
        downsample_convs=down,
        pan_blocks=[block() for _ in range(2)],
    )


def cross(dim: int, **scale: int) -> nn.Module:
    return tree(sampling_offsets=nn.Linear(dim, 2), attention_weights=nn.Linear(dim, 1), **scale)


def feed_forward(dim: int) -> dict[str, Any]:
    gateway = tree(gate=nn.Linear(dim, dim), norm=nn.LayerNorm(dim))
    return {"gateway": gateway, "linear1": nn.Linear(dim, dim), "linear2": nn.Linear(dim, dim),
            "norm2": nn.LayerNorm(dim)}  # fmt: skip


def box_decoder(dim: int, masks: bool) -> nn.Module:
    """The keys of the decoder for boxes, with or without the head for masks."""
    layers = [
        tree(self_attn=attention(dim), cross_attn=cross(dim, num_points_scale=3), norm1=nn.LayerNorm(dim),
             **feed_forward(dim))
        for _ in range(2)
    ]  # fmt: skip
    head = tree(
        blocks=[tree(dwconv=nn.Conv2d(dim, dim, 3), norm=nn.LayerNorm(dim), pwconv1=nn.Linear(dim, dim))],
        query_features_block=tree(layers=[nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)],
                                  norm_in=nn.LayerNorm(dim)),
        query_features_proj=nn.Linear(dim, dim), spatial_features_proj=nn.Conv2d(dim, dim, 1), bias=1,
    )  # fmt: skip
    lqe = [tree(reg_conf=mlp(dim, dim, 1)) for _ in range(2)]
    more = {"segmentation_head": head} if masks else {}
    return tree(
        decoder=tree(layers=layers, lqe_layers=lqe, up=1, reg_scale=1, **more),
        up=1, reg_scale=1, anchors=1, valid_mask=1, denoising_class_embed=nn.Embedding(3, dim),
        enc_score_head=nn.Linear(dim, 2), enc_bbox_head=mlp(dim, dim, 4), query_pos_head=mlp(4, dim, dim),
        pre_bbox_head=mlp(dim, dim, 4), dec_score_head=[nn.Linear(dim, 2) for _ in range(2)],
        dec_bbox_head=[mlp(dim, dim, 4) for _ in range(2)],
    )  # fmt: skip


def pose_decoder(dim: int) -> nn.Module:
    """The keys of the decoder for poses."""
    layers = [
        tree(within_attn=attention(dim), within_norm=nn.LayerNorm(dim), across_attn=attention(dim),
             across_norm=nn.LayerNorm(dim), cross_attn=cross(dim), **feed_forward(dim))
        for _ in range(2)
    ]  # fmt: skip
    return tree(
        decoder=tree(layers=layers, half_pose_ref_point_head=mlp(dim, dim, dim), dim_t=1),
        up=1, reg_scale=1, anchors=1, valid_mask=1, keypoint_embedding=nn.Embedding(3, dim),
        instance_embedding=nn.Embedding(1, dim), tgt_embed=nn.Embedding(3, dim), label_enc=nn.Embedding(3, dim),
        pose_enc=nn.Embedding(3, dim), enc_output=nn.Linear(dim, dim), enc_output_norm=nn.LayerNorm(dim),
        enc_out_class_embed=nn.Linear(dim, 2), enc_pose_embed=mlp(dim, dim, 2), pre_pose_embed=mlp(dim, dim, 2),
        class_embed=[nn.Linear(dim, 2)], pose_embed=[mlp(dim, dim, 2)], lqe_embed=[tree(reg_conf=mlp(dim, dim, 1))],
    )  # fmt: skip


KINDS = ("ecdet", "ecseg", "ecpose")


def whole(kind: str, backbone: ECViT, dim: int = 8) -> nn.Module:
    """A whole model as EdgeCrafter's notebook saves it: ``backbone.backbone``, its projector, encoder and decoder."""
    projector: Iterable[nn.Module] = [conv_norm(dim, dim) for _ in range(3)]
    decoder = pose_decoder(dim) if kind == "ecpose" else box_decoder(dim, masks=kind == "ecseg")
    return tree(backbone=tree(backbone=backbone, projector=list(projector)), encoder=encoder(dim), decoder=decoder)
