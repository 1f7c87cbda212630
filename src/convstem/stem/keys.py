"""State-dict keys of a stem: they are the file format."""

from __future__ import annotations

FIRST_CONV = "patch_embed.backbone.0.conv"
"""Key of the first 3x3 convolution; timm adapts it to other channel counts."""
