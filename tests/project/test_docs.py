"""The documents say what is true: the README's tables and code against the registry, generated files against timm."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import timm
import torch

from benchmarks.inference_peers import SIZES
from benchmarks.inference_report import ratios
from convstem.registry import catalog
from convstem.registry.tables import rows
from convstem.transplanting.patch_embedding import find_patch_embedding
from tools.timm_trunks import build, sizes
from tools.timm_weights import safetensors_bytes

ROOT = Path(__file__).parents[2]
click = tuple(int(part) for part in version("click").split(".")[:2])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table_rows(page: str) -> dict[str, list[str]]:
    """Return the cells of a page's table rows by the name in code type that they begin with."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in rows}


def test_the_readmes_models_are_those_of_the_page_of_sizes() -> None:
    sizes = table_rows((ROOT / "docs" / "sizes.md").read_text(encoding="utf-8"))
    models = table_rows(README)
    assert len(models) >= 8
    for name, (torchvision, params, gmacs, patchify, *_) in models.items():
        theirs, _, _, their_params, _, their_gmacs, their_patchify = sizes[name]
        assert (torchvision, params, gmacs, patchify) == (theirs, their_params, their_gmacs, their_patchify), name


def test_the_readmes_accuracies_are_those_of_the_first_tags() -> None:
    for name, (*_, accuracy, _) in table_rows(README).items():
        weights = next(iter(catalog.weights_of(name)), None)
        known = {**weights.metrics, **weights.source_metrics}.get("acc@1") if weights else None
        assert accuracy == (f"{known:.1f}" if known else "-"), name


def test_the_readmes_times_are_the_benchmarks() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "inference" / "inference.json").read_text(encoding="utf-8"))
    for name, (*_, time, _, _) in table_rows(README).items():
        size = next((size for size, (ours, *_) in SIZES.items() if ours == name), None)
        group = results["groups"].get(f"forward|{size}|eager|float32|8|224|cpu")
        expected = f"{ratios(group)['ours'][0]:.2f}" if group else "-"
        assert time == expected, name


def test_the_readmes_accuracy_is_the_registrys() -> None:
    accuracy = catalog.weights()["vit_nano4_convstem.cifar10"].metrics["acc@1"]
    assert f"**{accuracy:.2f} %**" in README


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(path: Path) -> None:
    assert (ROOT / path).exists()


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"@[A-Z]+@", README)


def test_the_readmes_loading_times_are_the_benchmarks() -> None:
    sizes = json.loads((ROOT / "benchmarks" / "results" / "load" / "load.json").read_text(encoding="utf-8"))["sizes"]
    times = {label: f"{1e3 * seconds:.0f} ms" for label, seconds in sizes["B"]["medians"].items()}
    assert f"{times['timm peer']} through timm, {times['ours, transplanted tag']} here" in README


@pytest.mark.parametrize("script", ["pages", "timm_weights"])
def test_the_generated_files_of_the_registry_are_current(script: str) -> None:
    if script == "pages" and click < (8, 2):
        pytest.skip("an older click words the help of a command otherwise")
    subprocess.run([sys.executable, "-m", f"tools.{script}", "--check"], check=True, cwd=ROOT)


@pytest.mark.full
def test_the_generated_trunks_are_timms() -> None:
    """The whole sweep (tools/timm_trunks.py --check) takes minutes: every name here, every twentieth built."""
    assert set(rows("timm_trunks")) <= set(timm.list_models())
    for name in list(rows("timm_trunks"))[::20]:
        model = build(name)
        path, embedding = find_patch_embedding(model)
        assert embedding.proj.kernel_size[0] in (8, 14, 16, 32), (name, path)
        assert sizes(name, model) == rows("timm_trunks")[name], name


def test_the_size_of_a_safetensors_file_is_known_without_its_values(tmp_path: Path) -> None:
    with torch.device("meta"):
        expected = safetensors_bytes(timm.create_model("vit_tiny_patch16_224", depth=2))
    timm.models.save_for_hf(timm.create_model("vit_tiny_patch16_224", depth=2), tmp_path, safe_serialization=True)
    assert (tmp_path / "model.safetensors").stat().st_size == expected


def test_recipes_name_real_models() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "recipes").glob("*.yaml")]
    names = [name for text in texts for name in re.findall(r"^model: (\w+)", text, re.MULTILINE)]
    assert len(names) == 5
    assert set(names) <= set(catalog.models())
