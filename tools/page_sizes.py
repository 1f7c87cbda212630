"""The page of sizes: every architecture beside the patchify model of the same trunk."""

from __future__ import annotations

from convstem.registry import catalog
from convstem.registry.catalog import named_trunks
from convstem.registry.complexity import macs, num_params, stem_macs, stem_params
from convstem.registry.records import Architecture, ModelSpec

HEAD = """# Sizes

Parameters in millions and multiply-adds of one image in billions (GMACs), with the head of the architecture's first
weights (1000 classes without any) and at the image size shown. "Patchify" is the same trunk behind one convolution of
the patch's size, so the difference is the stem. `convstem show NAME` prints one model in full. Written by
`python -m tools.pages`.

| timm name | torchvision name | image | stem channels | params | params, patchify | GMACs | GMACs, patchify |
|---|---|---|---|---|---|---|---|
"""


def sizes_page() -> str:
    """Return the page as Markdown."""
    specs = [catalog.built(spec) for spec in catalog.models().values()] + list(named_trunks().values())
    return HEAD + "".join(f"| {' | '.join(_cells(spec))} |\n" for spec in specs)


def _cells(spec: Architecture) -> list[str]:
    in_chans, height, width = spec.input_size
    per_patch = in_chans * spec.patch_size**2 * spec.embed_dim
    patches = (height // spec.patch_size) * (width // spec.patch_size)
    params, gmacs = num_params(spec), macs(spec)
    torchvision = f"`{spec.torchvision}`" if isinstance(spec, ModelSpec) and spec.torchvision else "-"
    return [
        *(f"`{spec.name}`", torchvision, str(height), ", ".join(map(str, spec.stem.channels))),
        *(f"{params / 1e6:.1f}", f"{(params - stem_params(spec) + per_patch + spec.embed_dim) / 1e6:.1f}"),
        *(f"{gmacs / 1e9:.2f}", f"{(gmacs - stem_macs(spec) + patches * per_patch) / 1e9:.2f}"),
    ]
