"""The commands that prepare a model for inference: export, fold."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import convstem
from convstem.cli.options import AS_JSON, OUT_FOLDER, OVERWRITE, print_json, say
from convstem.hub.source import source_of


@click.command(short_help="Write a model for another runtime, and compare.")
@click.argument("source")
@click.option("--to", required=True, metavar="FORMAT", help="executorch, onnx, openvino or torch-export.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write: .pte, .onnx, .xml or .pt2.")
@click.option("--opset", type=int, help="ONNX operator set.")
@click.option("--dynamic-size", is_flag=True, help="Accept images of any size in whole patches.")
@AS_JSON
def export(source: str, to: str, out: Path, opset: int | None, dynamic_size: bool, as_json: bool) -> None:
    """Write the model SOURCE (a name, ORG/NAME or a folder) for another runtime, and compare the two.

    The batch size is dynamic; for ExecuTorch it is one image.
    """
    from convstem.inference.export import FORMATS, check_target, export

    source_of("export", source)
    check_target(to, out, opset)  # before anything is loaded
    options: dict[str, Any] = {"dynamic_img_size": True} if dynamic_size else {}
    model = convstem.load(source, **options)
    result = export(model, to, out, opset)
    if as_json:
        print_json({**asdict(result), "path": str(result.path)})
        return
    shape = " x ".join(map(str, result.inputs))
    say(f"{result.path}: {result.format}, {result.bytes / 1e6:.1f} MB, images {shape}")
    if result.difference is None:
        say(f"not compared with the model: `pip install {FORMATS[to].runtime}` makes that possible")
    else:
        say(f"largest difference to the model: {result.difference:.1e} of the largest output")


@click.command(short_help="Fold the BatchNorm of a stem into its convolutions.")
@click.argument("source")
@OUT_FOLDER
@OVERWRITE
def fold(source: str, out: Path, overwrite: bool) -> None:
    """Fold the BatchNorm of the model SOURCE (a name, ORG/NAME or a folder) into its convolutions.

    The result is an ordinary model with stem_norm none: it computes the same and can be pushed, exported and trained.
    """
    from convstem.publishing.fold import fold_to_folder
    from convstem.publishing.folder import check_new

    found = source_of("fold", source)
    check_new(out, found, overwrite)  # before anything is loaded
    model = fold_to_folder(convstem.load(source), found, out, overwrite)
    say(f"{out}: {model.pretrained_cfg['architecture']} with stem_norm {model.patch_embed.stem_spec.norm}")
