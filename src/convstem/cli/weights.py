"""The commands for weights on this machine: cache, convert, export, fold, transplant."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import convstem
from convstem.cli import (
    AS_JSON,
    LABELS,
    OUT_FOLDER,
    OVERWRITE,
    integers,
    numbers,
    print_json,
    progress,
    say,
    say_lines,
    table,
)
from convstem.hub.source import source_of
from convstem.layouts.recognise import LAYOUTS
from convstem.registry.stem_spec import StemSpec

TARGETS = sorted(name for name, layout in LAYOUTS.items() if layout.invertible)
"""Layouts that can be written (those with an inverse)."""


@click.command(short_help="Turn a checkpoint into a folder of safetensors.")
@click.argument("source")
@OUT_FOLDER
@OVERWRITE
@click.option(
    "--from",
    "layout",
    type=click.Choice(sorted(LAYOUTS)),
    metavar="LAYOUT",
    help=f"Layout of SOURCE; default: detected. One of {', '.join(sorted(LAYOUTS))}.",
)
@click.option(
    "--to",
    "target",
    type=click.Choice(TARGETS),
    default="timm",
    show_default=True,
    metavar="LAYOUT",
    help=f"Layout to write. One of {', '.join(TARGETS)}.",
)
@click.option("--use-ema", is_flag=True, default=None, help="Use the averaged weights of a training checkpoint.")
@click.option("--architecture", help="timm name of the model, if the checkpoint does not say.")
@click.option("--num-heads", type=int, help="Attention heads, if the checkpoint does not say.")
@click.option(
    "--stem-strides",
    callback=integers,
    help="Strides of the stem's layers, comma-separated, if the checkpoint does not say.",
)
@click.option(
    "--stem-last-stride", type=int, help="Stride of the stem's last convolution, if the checkpoint does not say."
)
@click.option("--stride", type=int, help="Token spacing in pixels, if it is not the patch size.")
@click.option("--img-size", callback=integers, help="Size of images that are not square: HEIGHT,WIDTH.")
@click.option(
    "--mean", callback=numbers, metavar="R,G,B", help="Mean of the training images, if the checkpoint does not say."
)
@click.option("--std", callback=numbers, metavar="R,G,B", help="Standard deviation, if the checkpoint does not say.")
@click.option("--act-layer", help="Activation, such as gelu or quick_gelu, if the checkpoint does not say.")
@click.option("--transplant", "transplanted", is_flag=True, help="Give a plain (patchify) ViT a conv stem.")
@click.option("--check", is_flag=True, help="Compare outputs with the checkpoint's own library, if it is installed.")
@LABELS
@click.option("--license", default="other", show_default=True, help="Licence of the weights, for config and card.")
@AS_JSON
def convert(source: str, out: Path, as_json: bool, **options: Any) -> None:
    """Convert the ViT checkpoint SOURCE into a folder that timm, transformers and the Hub can read.

    SOURCE is a file (.pth, .pth.tar, .pt, .pyth, .bin, .safetensors, .npz), a folder of transformers or timm, or
    ORG/NAME on the Hub. Layout and architecture are detected, every key is accounted for, and code in a pickle is
    never run.
    """
    from convstem.publishing.convert import convert_to_folder

    with progress():
        result = convert_to_folder(source, out, **options)
    if as_json:
        print_json(result.to_json())
        return
    say_lines(table(result.rows()))


@click.group(invoke_without_command=True, short_help="Show, clear or verify convstem's own cache.")
@click.option("--clear", "clear_it", is_flag=True, help="Remove the notes; they are written again when needed.")
@AS_JSON
@click.pass_context
def cache(context: click.Context, clear_it: bool, as_json: bool) -> None:
    """Show the notes on verified files that convstem keeps beside the Hub's cache."""
    from convstem.files import cache

    if context.invoked_subcommand:
        return
    entries = cache.entries()
    kinds = {kind: [entry for entry in entries if entry.kind == kind] for kind in cache.KINDS}
    freed = cache.clear() if clear_it else 0
    sizes = {kind: {"files": len(found), "bytes": sum(e.size for e in found)} for kind, found in kinds.items()}
    if as_json:
        print_json({"folder": str(cache.root()), "kinds": sizes, "freed_bytes": freed})
        return
    say(f"folder: {cache.root()}")
    for kind, size in sizes.items():
        say(f"{kind}: {size['files']} files, {size['bytes'] / 1e6:.1f} MB")
    if clear_it:
        say(f"removed: {freed / 1e6:.1f} MB")


@cache.command("verify")
@AS_JSON
def cache_verify(as_json: bool) -> None:
    """Hash every verified file again; exit status 1 if one is damaged or unreadable.

    Normally a file stays verified while its size and modification time are unchanged. This finds damage that changes
    neither.
    """
    from convstem.hub.repo_cache import recheck

    rows = list(recheck())
    if as_json:
        print_json([row.to_json() for row in rows])
    else:
        for row in rows:
            say(f"{row.state:<10} {row.file}")
        say(f"{len(rows)} files, {sum(row.bad for row in rows)} damaged or unreadable")
    sys.exit(1 if any(row.bad for row in rows) else 0)


def stem_of(context: click.Context, option: click.Parameter, text: str | None) -> StemSpec | None:
    """Option callback: return a stem without norm whose layers have these channels."""
    channels = integers(context, option, text)
    return StemSpec(channels, norm="none") if channels else None


@click.command(short_help="Convert a pretrained ViT into a conv-stem ViT.")
@click.argument("source")
@OUT_FOLDER
@OVERWRITE
@click.option("--to", "name", help="Take the stem of this architecture.")
@click.option(
    "--stem-channels",
    "stem",
    callback=stem_of,
    metavar="C1,C2,...",
    help="Channels of the stem's layers, comma-separated; strides are 2.",
)
@click.option("--stride", type=int, help="Token spacing in pixels; default: the patch size of SOURCE.")
@click.option(
    "--margin",
    default=0.25,
    show_default=True,
    help="How far below the pixel range the function is kept, in normalised units.",
)
@click.option("--in-chans", type=int, help="Give the model more input channels; needs --bands.")
@click.option(
    "--bands", callback=integers, metavar="R,G,B", help="Channels, counted from 0, that get SOURCE's filters."
)
@click.option("--tolerance", default=1e-4, show_default=True, help="Largest accepted relative error.")
@AS_JSON
def transplant(
    source: str,
    out: Path,
    overwrite: bool,
    name: str | None,
    stem: StemSpec | None,
    stride: int | None,
    margin: float,
    in_chans: int | None,
    bands: tuple[int, ...] | None,
    tolerance: float,
    as_json: bool,
) -> None:
    """Convert the pretrained timm model SOURCE into a conv-stem ViT with the same function.

    SOURCE is a timm name such as vit_base_patch16_224.augreg2_in21k_ft_in1k, ORG/NAME or a folder.
    """
    from convstem.publishing.derived import transplant_to_folder

    if name and stem:
        raise click.UsageError("give --to or --stem-channels, not both")
    with progress():
        result = transplant_to_folder(
            source,
            out,
            stem=stem or name,
            stride=stride,
            margin=margin,
            in_chans=in_chans,
            bands=bands,
            tolerance=tolerance,
            overwrite=overwrite,
        )
    if as_json:
        print_json(result.to_json())
        return
    say(f"{result.source} -> {result.architecture} (licence of the source: {result.license})")
    say_lines(f"{result.report.outcome()}\nmeasured relative error of the features: {result.measured_error:.1e}")
    say(f"written: {result.folder}/config.json, model.safetensors, README.md")


@click.command(short_help="Export a model to another runtime and compare the two.")
@click.argument("source")
@click.option("--to", required=True, metavar="FORMAT", help="executorch, onnx, openvino or torch-export.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write: .pte, .onnx, .xml or .pt2.")
@click.option("--opset", type=int, help="ONNX operator set.")
@click.option("--dynamic-size", is_flag=True, help="Accept images of any size in whole patches.")
@AS_JSON
def export(source: str, to: str, out: Path, opset: int | None, dynamic_size: bool, as_json: bool) -> None:
    """Export the model SOURCE (a name, ORG/NAME or a folder) to another runtime and compare the outputs.

    The batch size is dynamic, except for ExecuTorch, which takes one image.
    """
    from convstem.inference import FORMATS, check_target, export

    source_of("export", source)
    check_target(to, out, opset)  # fail before loading the model
    options: dict[str, Any] = {"dynamic_img_size": True} if dynamic_size else {}
    model = convstem.load(source, **options)
    with progress():
        result = export(model, to, out, opset)
    if as_json:
        print_json({**asdict(result), "path": str(result.path)})
        return
    shape = " x ".join(map(str, result.inputs))
    say(f"{result.path}: {result.format}, {result.bytes / 1e6:.1f} MB, images {shape}")
    if result.difference is None:
        say(f"not compared with the model: to compare, `pip install {FORMATS[to].runtime}`")
    else:
        say(f"largest difference to the model: {result.difference:.1e} of the largest output")


@click.command(short_help="Fold the BatchNorm of a stem into its convolutions.")
@click.argument("source")
@OUT_FOLDER
@OVERWRITE
def fold(source: str, out: Path, overwrite: bool) -> None:
    """Fold the stem's BatchNorm of the model SOURCE (a name, ORG/NAME or a folder) into its convolutions.

    The result is an ordinary model with stem_norm none. It gives the same outputs and can be pushed, exported and
    trained.
    """
    from convstem.publishing.derived import fold_to_folder
    from convstem.publishing.folder import check_new

    found = source_of("fold", source)
    check_new(out, found, overwrite)  # fail before loading the model
    model = fold_to_folder(convstem.load(source), found, out, overwrite)
    say(f"{out}: {model.pretrained_cfg['architecture']} with stem_norm {model.patch_embed.stem_spec.norm}")
