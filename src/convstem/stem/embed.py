"""The timm layer: timm's ``ConvStem`` in timm's ``HybridEmbed``, as a replacement for ``PatchEmbed``."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.layers import ConvNormAct, Format, HybridEmbed, create_act_layer, freeze_batch_norm_2d, nchw_to, to_2tuple
from timm.layers.norm import LayerNorm2d
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from convstem.errors import ArgumentError, CheckpointError, UnsupportedModelError
from convstem.registry.stem_spec import StemSpec, check_img_size
from convstem.stem.loading import carry_on_load
from convstem.stem.norms import fit_norm, fold_stem, init_stem, stem_norm

_NORM_LAYERS = {
    "batchnorm2d": nn.BatchNorm2d,
    "frozen_bn": nn.BatchNorm2d,  # frozen in build_conv_stem
    "layernorm2d": partial(LayerNorm2d, eps=1e-6),
}


def _activation(channels: int, act: str, **norm_arguments: Any) -> nn.Module:
    """Return only an activation; timm's ConvNormAct expects a layer that is norm and activation."""
    return create_act_layer(act, inplace=True)


class _ConvStem(ConvStem):
    """timm's ``ConvStem`` with an error for timm's reader of JAX files, which takes every stem for a ResNet's."""

    def __getattr__(self, name: str) -> Any:
        """Return a module or parameter.

        Raises:
            CheckpointError: the name is ``conv``, a ResNet's first convolution.
        """
        if name == "conv":
            raise CheckpointError(
                "timm's reader of JAX files does not know conv stems, so checkpoint_path= and load_pretrained() cannot "
                "take an .npz: pass pretrained=True, pretrained_cfg_overlay={'file': FILE}, or run "
                "`convstem convert FILE --out FOLDER`"
            )
        return super().__getattr__(name)


def build_conv_stem(stem: StemSpec, in_chans: int, embed_dim: int, device: Any = None, dtype: Any = None) -> ConvStem:
    """Return timm's ``ConvStem`` for a spec; its last layer has neither norm nor activation.

    It maps images [batch, in_chans, height, width] to [batch, embed_dim, rows, columns]; see ``StemSpec.grid``.
    """
    layers = (*stem.layers(in_chans=in_chans), stem.last_layer(embed_dim))
    backbone = _ConvStem(
        in_chans=in_chans,
        depth=len(layers),
        channels=tuple(layer.channels for layer in layers),
        kernel_size=tuple(layer.kernel_size for layer in layers),
        stride=tuple(layer.stride for layer in layers),
        padding=tuple(layer.padding for layer in layers),
        norm_layer=_NORM_LAYERS.get(stem.norm, partial(_activation, act=stem.act)),
        act_layer=stem.act,
        device=device,
        dtype=dtype,
    )
    if stem.bias:  # timm's ConvStem gives only its last layer a bias
        for layer in list(backbone)[:-1]:
            zeros = torch.zeros(layer.conv.out_channels, device=device, dtype=dtype)
            layer.conv.bias = nn.Parameter(zeros)
    if stem.norm == "frozen_bn":
        freeze_batch_norm_2d(backbone)
    backbone.register_load_state_dict_pre_hook(fit_norm)
    backbone.num_features = embed_dim  # HybridEmbed reads this instead of running the stem
    return backbone


class ConvStemEmbed(HybridEmbed):
    """timm's ``HybridEmbed`` around a conv stem, with ``PatchEmbed``'s attributes and image-size checks.

    Loading a state dict with a patch embedding instead of a stem transplants it.

    Args:
        stem: the stem.
        img_size: height and width in pixels, or one number; None for a model without a fixed size.
        patch_size: must equal ``stem.patch_size``.
        strict_img_size: refuse images of another size than ``img_size``.
        dynamic_img_pad: ignored, accepted for compatibility with timm: a stem pads, so its grid is rounded up.
        bias: ignored; the last convolution always has a bias.
        window: patch size, in pixels, of the plain model with as many tokens; default: the stem's. If it is larger,
            patches overlap; if it is smaller, a token sees averages of pixels.

    Raises:
        ArgumentError: the image size is not a multiple of the patch size (unless the size is dynamic).
    """

    __jit_unused_properties__ = ("proj", "model_args")  # TorchScript would compile it

    def __init__(
        self,
        stem: StemSpec,
        img_size: int | tuple[int, int] | None = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        bias: bool = True,
        flatten: bool = True,
        output_fmt: str | None = None,
        strict_img_size: bool = True,
        dynamic_img_pad: bool = False,
        device: Any = None,
        dtype: Any = None,
        window: int | None = None,
    ) -> None:
        size = to_2tuple(img_size or stem.patch_size)
        if strict_img_size:
            check_img_size(size, stem.patch_size)
        super().__init__(
            build_conv_stem(stem, in_chans, embed_dim, device=device, dtype=dtype),
            img_size=size,
            patch_size=1,  # HybridEmbed's patch is on the feature map
            feature_size=stem.grid(size),  # else HybridEmbed runs the stem to find out
            feature_ratio=stem.patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            proj=False,
            flatten=flatten,
            output_fmt=output_fmt,
            strict_img_size=strict_img_size,
            device=device,
            dtype=dtype,
        )
        del self.proj  # an Identity; the stem's last convolution makes the tokens, and adapters look for ``proj``
        self.stem_spec, self.embed_dim = stem, embed_dim
        # For loading a patch embedding: the lowest normalised pixels, and the patch size of the trunk's own one.
        self.lowest: Any = None
        self.resized_from: Any = None
        self.patch_size = to_2tuple(stem.patch_size)  # pixels per token, since callers compute the grid from it
        self.window = window or stem.patch_size
        self.norm = nn.Identity()
        self.register_load_state_dict_pre_hook(carry_on_load)
        if img_size is None:
            self.img_size: Any = None
            self.grid_size: Any = None
            self.num_patches: Any = None

    @property
    def proj(self) -> nn.Conv2d:
        """A convolution without values, with the shape, channels, kernel and stride of a plain patch embedding's.

        timm's checkpoint filters read it, as do libraries and users that adapt a first layer.
        """
        return nn.Conv2d(self.in_chans, self.embed_dim, self.window, self.patch_size, device="meta")

    @property
    def model_args(self) -> dict[str, Any]:
        """The arguments, plain JSON data, that build this stem in every timm entrypoint."""
        stride = self.stem_spec.patch_size
        args = self.stem_spec.model_args
        if self.window & (self.window - 1):  # a patch size that no name has by default
            args["patch_size"] = self.window
        if stride != self.window:
            args |= {"patch_size": self.window, "stride": stride}
        return args

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, except ``proj``: a projection set here would never be used.

        Raises:
            ArgumentError: ``proj`` is set.
        """
        if name == "proj" and "stem_spec" in vars(self):
            raise ArgumentError(
                "a conv stem has no patch_embed.proj to replace: for other input channels create the model with "
                "in_chans=, or place the RGB filters with convstem.transplant(model, in_chans=..., bands=...)"
            )
        super().__setattr__(name, value)

    def init_weights(self) -> None:
        """Initialise the stem in place, as the paper does; timm's models call this when they initialise."""
        init_stem(self, self.stem_spec.norm)

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Return the pixels per token: one number, or [rows, columns]."""
        return max(self.patch_size) if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid [rows, columns] for an image size in pixels; see ``StemSpec.grid``."""
        return self.stem_spec.grid(img_size)

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the image size in pixels; the patch size is fixed by the stem.

        Raises:
            ArgumentError: another patch size, or an image size that is not a multiple of it.
        """
        patch = self.patch_size[0]
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            raise ArgumentError(
                f"the patch size of a conv stem is the product of its strides, {patch}; got patch_size={patch_size}: "
                "create the model with other stem_strides instead"
            )
        if img_size is None:
            return
        size = to_2tuple(img_size)
        if self.strict_img_size:
            check_img_size(size, patch)
        self.img_size = size
        self.feature_size = self.grid_size = self.stem_spec.grid(size)
        self.num_patches = math.prod(self.grid_size)

    def fuse(self) -> ConvStemEmbed:
        """Fold BatchNorm into the convolutions, in place, and return the module; see ``convstem.fold``.

        timm's ``reparameterize_model`` calls it, and so does ``--reparam`` of timm's scripts.
        """
        if stem_norm(self.backbone) == "batchnorm2d":
            fold_stem(self.backbone)
            self.stem_spec = replace(self.stem_spec, norm="none")
        return self

    def train(self, mode: bool = True) -> ConvStemEmbed:
        """Set train or eval mode.

        Raises:
            UnsupportedModelError: the activations are gone: timm keeps them inside its norms, which torch's own
                SyncBatchNorm conversion replaces by plain norms.
        """
        refuse_lost_activations(self.backbone)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [batch, in_chans, height, width] to tokens [batch, tokens, embed_dim] (or ``output_fmt``)."""
        _, channels, height, width = x.shape
        torch._assert(channels == self.in_chans, f"Input channels ({channels}) don't match model ({self.in_chans}).")
        if self.img_size is not None and self.strict_img_size:
            torch._assert(
                height == self.img_size[0], f"Input height ({height}) doesn't match model ({self.img_size[0]})."
            )
            torch._assert(width == self.img_size[1], f"Input width ({width}) doesn't match model ({self.img_size[1]}).")
        x = self.backbone(x)
        if self.flatten:
            x = x.flatten(2).transpose(1, 2)
        elif self.output_fmt != Format.NCHW:
            x = nchw_to(x, self.output_fmt)
        return self.norm(x)


def refuse_lost_activations(stem: nn.Module) -> None:
    """Raise ``UnsupportedModelError`` if torch's SyncBatchNorm conversion removed the activations of a timm stem."""
    layers = [layer for layer in stem.modules() if isinstance(layer, ConvNormAct)]
    if any(type(module) is nn.SyncBatchNorm for layer in layers for module in layer.modules()):
        raise UnsupportedModelError(
            "torch's convert_sync_batchnorm has dropped the activations of this stem, which timm keeps inside its "
            "norms: convert a fresh model with timm.layers.convert_sync_batchnorm instead"
        )
