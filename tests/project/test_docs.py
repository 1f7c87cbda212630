"""The documents are true: the README's tables and code match the registry, generated files match timm."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import timm
import torch

import convstem
from benchmarks.inference_peers import SIZES
from benchmarks.inference_report import ratios
from convstem.hosts.describe import describe
from convstem.registry import catalog
from convstem.registry.tables import rows
from convstem.transplanting.patch_embedding import find_patch_embedding
from tools.timm_trunks import build, sizes
from tools.timm_weights import safetensors_bytes

ROOT = Path(__file__).parents[2]
click = tuple(int(part) for part in version("click").split(".")[:2])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table_rows(page: str) -> dict[str, list[str]]:
    """Return the cells of a page's table rows, keyed by the name in code type at their start."""
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


def test_the_readmes_times_at_other_batches_are_the_benchmarks() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "inference" / "inference.json").read_text(encoding="utf-8"))
    times = {
        batch: f"{ratios(results['groups'][f'forward|B|eager|float32|{batch}|224|cpu'])['ours'][0]:.2f}"
        for batch in (1, 32)
    }
    assert f"For ViT-B it is {times[32]} times at batch 32 and {times[1]} times at batch 1" in README


PATCH14 = (ROOT / "benchmarks" / "results" / "transplant_patch14.txt").read_text(encoding="utf-8")


def test_the_errors_of_the_vit_s_are_the_benchmarks() -> None:
    (alone,) = re.findall(r"embedding \S+, final features (\S+)", PATCH14)
    against_source = re.findall(r"relative error of the final features: (\S+)", PATCH14)
    cosines = re.findall(r"pseudo-inverse: class token mean (\S+), least (\S+);", PATCH14)
    page = (ROOT / "docs" / "transplant.md").read_text(encoding="utf-8")
    assert f"| {_short(alone)} | - |" in page
    for error, (mean, least) in zip(against_source, cosines, strict=True):
        assert f"| {_short(error)} | {mean}, {least} |" in page
    assert f"differ by {_short(alone)}" in README
    assert f"{_short(against_source[0])}, cosine {cosines[0][0]}" in README


def _short(number: str) -> str:
    """Return a number in the documents' format: 9.9e-7 for 9.9e-07."""
    return re.sub(r"e([+-])0", r"e\1", number)


@pytest.mark.parametrize("kind", ["transplant", "new stem"])
def test_the_readmes_points_of_fine_tuning_are_the_experiments(kind: str) -> None:
    results = (ROOT / "experiments" / "results" / "transplant_gain" / "results.txt").read_text(encoding="utf-8")
    adamw, sgd = (
        -float(re.findall(rf"{optimizer} +128 +all +{kind} +steps .*? (-\d+\.\d+) \+- ", results)[0])
        for optimizer in ("adamw", "sgd")
    )
    if kind == "transplant":
        assert sgd < 0.1
        assert f"ends {adamw:.1f} points\n  below the patchify model with AdamW and level with SGD" in README
    else:
        assert f"ends {int(adamw)} and {int(sgd)} points below" in README


ARMS = {
    "trunk": "last block, stride 16",
    "four blocks": "four blocks, stride 16",
    "stem": "**last block and the stem's 2, 4, 8**",
    "random stem": "last block and a random stem's 2, 4, 8",
    "pixels": "last block and the pixels at 2, 4, 8",
}


def test_the_figures_of_segmentation_are_the_experiments() -> None:
    table = (ROOT / "experiments" / "results" / "pyramid_evidence" / "table.txt").read_text(encoding="utf-8")
    found: dict[tuple[str, ...], list[str]] = {}  # task, encoder and arm: IoU, boundary F1 and PSNR, as far as measured
    for task, encoder, arm, cells in re.findall(r"^(\w+) +(frozen|tuned) +(\w+(?: \w+)?) +\d +\d+ +(.*)$", table, re.M):
        found[task, encoder, arm] = re.findall(r"(\d+\.\d) \(", cells)
    page = (ROOT / "docs" / "segmentation.md").read_text(encoding="utf-8")
    for encoder, prefix in (("frozen", ""), ("tuned", "fine-tuned: ")):
        for arm, name in ARMS.items():
            if ("brain", encoder, arm) in found:
                noise = found.get(("denoising", encoder, arm), ["-"])
                cells = [*found["nuclei", encoder, arm], *found["brain", encoder, arm], *noise]
                assert f"| {prefix}{name} | {' | '.join(cells)} |" in page
    brain = {arm: found["brain", "frozen", arm][0] for arm in ARMS}
    assert f"from {brain['four blocks']} to {brain['stem']} % IoU" in README
    assert f"the maps of a random stem give {brain['random stem']}" in README


def test_the_loading_times_of_the_page_are_the_benchmarks() -> None:
    sizes = json.loads((ROOT / "benchmarks" / "results" / "load" / "load.json").read_text(encoding="utf-8"))["sizes"]
    page = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
    labels = ("timm peer", "ours, own checkpoint", "ours, transplanted tag")
    for size, result in sizes.items():
        plain, used = (
            [f"{1e3 * medians[label]:.0f}" for label in labels]
            for medians in (result["medians"], result["with_first_image"]["medians"])
        )
        assert f"| {size} | {' | '.join(plain)} | {', '.join(used)} |" in page


def test_the_page_of_families_has_the_registrys_licences() -> None:
    """Every named model with weights is on the page, in a row with exactly the licences of its tags."""
    licences: dict[str, set[str]] = {}
    for tag in convstem.list_models(pretrained=True):
        for weights in describe(tag)["weights"]:
            licences.setdefault(tag.partition(".")[0], set()).add(weights["license"])
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    rows = [cells.split(" | ") for cells in re.findall(r"^\| (.* \| .* \| .* \| .*) \|$", page, re.M)][1:]
    on_the_page = set()
    for family, names, stated, _ in rows:
        models = set(re.findall(r"`(\w+)`", names))
        assert set(re.split(r"[;, ]+", re.sub("`[^`]*`:?", "", stated))) - {""} == set.union(
            *(licences[model] for model in models)
        ), family
        on_the_page |= models
    assert on_the_page == set(licences)


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


@pytest.mark.full
@pytest.mark.parametrize("script", ["pages", "timm_weights"])
def test_the_generated_files_of_the_registry_are_current(script: str) -> None:
    if script == "pages" and click < (8, 2):
        pytest.skip("an older click words the help of a command otherwise")
    subprocess.run([sys.executable, "-m", f"tools.{script}", "--check"], check=True, cwd=ROOT)


@pytest.mark.full
def test_the_generated_trunks_are_timms() -> None:
    """Check every name but build only every twentieth: tools/timm_trunks.py --check builds all and takes minutes."""
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
