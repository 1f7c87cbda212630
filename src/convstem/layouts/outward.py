"""From timm's layout into another, where that can express the model."""

from __future__ import annotations

from convstem.errors import ConversionError
from convstem.layouts.engine import Translation, stem_layers, translate
from convstem.layouts.recognise import LAYOUTS
from convstem.layouts.rows import Layout
from convstem.layouts.sizes import Sizes
from convstem.layouts.templates import match

LACKS = {
    "class_token": "it has no class token",
    "class_position": "its class token has no position",
    "reg_tokens": "it has register tokens",
    "layer_scale": "it has LayerScale",
    "qk_norm": "it normalises queries and keys",
    "qkv_bias": "its qkv projection has no bias",
    "pre_norm": "it has a norm before the blocks",
    "fc_norm": "it has a norm after pooling",
    "map_pool": "it pools by attention",
    "gated_mlp": "its MLP is gated",
    "stem_norm": "its stem has another norm",
    "stem_bias": "the convolutions of its stem have no biases",
    "biased_norm": "the convolutions of its stem have biases before their norms",
    "num_classes": "it has a classifier",
}
"""What a layout lacks, by the field of ``Sizes`` that shows it (see ``Layout.expresses``)."""


def from_timm(inward: Translation, sizes: Sizes, target: Layout) -> Translation:
    """Return a state dict in timm's layout in the target's.

    Raises:
        ConversionError: the target cannot express the model; the message says what it lacks.
    """
    for name, values in target.expresses.items():
        if getattr(sizes, name) not in values:
            raise ConversionError(f"{target.name} cannot express this model: {LACKS[name]}")
    translation = translate(inward.state_dict, target.rows, "other", stem_layers(inward.state_dict, LAYOUTS["timm"]))
    if translation.unknown:
        some = ", ".join(sorted(translation.unknown)[:5])
        raise ConversionError(f"{target.name} cannot express this model: it has no place for {some}")
    return _rooted(translation, target) if sizes.num_classes else translation


def _rooted(translation: Translation, target: Layout) -> Translation:
    prefix, classifier = target.root
    new = {key: key if match(classifier, key) is not None else prefix + key for key in translation.state_dict}
    return Translation(
        {new[key]: tensor for key, tensor in translation.state_dict.items()},
        {new[key]: sources for key, sources in translation.sources.items()},
    )
