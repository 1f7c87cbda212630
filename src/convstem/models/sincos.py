"""timm's ``VisionTransformer`` with the fixed position embedding of MoCo v3."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer


class SinCosVisionTransformer(VisionTransformer):
    """A ViT whose position embedding is fixed: two-dimensional sine-cosine, zero for the class token.

    It is a buffer under the usual key, so that optimizers do not see it and checkpoints keep it.

    Source: Chen et al., arXiv 2104.02057; moco-v3 vits.py, ``build_2d_sincos_position_embedding``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._fix_pos_embed()

    def _fix_pos_embed(self) -> None:
        like = self.pos_embed
        del self.pos_embed
        grid = list(self.patch_embed.grid_size)
        # moco-v3 counts tokens column by column: the width axis comes first, and changes slowest
        tokens = build_sincos2d_pos_embed(grid, self.embed_dim, reverse_coord=True, interleave_sin_cos=True).to(like)
        prefix = tokens.new_zeros(0 if self.no_embed_class else self.num_prefix_tokens, self.embed_dim)
        self.register_buffer("pos_embed", torch.cat([prefix, tokens])[None])

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise all weights in place and recompute the position embedding."""
        super().init_weights(mode, needs_reset)
        self._fix_pos_embed()

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the image size in pixels; the position embedding is recomputed, not resampled."""
        super().set_input_size(img_size=img_size, patch_size=patch_size)
        self._fix_pos_embed()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay; the position embedding is not a parameter here."""
        return super().no_weight_decay() - {"pos_embed"}
