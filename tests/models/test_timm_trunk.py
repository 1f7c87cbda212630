"""Names on timm trunks of patch 14: built at patch 16, with timm's tags, and as close to the source as a transplant."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from torch import nn

import convstem
from convstem.cli.main import main
from convstem.hosts.convstem_timm import trunk_cfgs
from convstem.hosts.describe import weights_of
from convstem.publishing.card import card_of
from convstem.publishing.derived import transplant_to_folder
from convstem.publishing.push import stage
from convstem.registry.catalog import architectures
from convstem.registry.records import TrunkSpec
from convstem.transplanting.grid import enlarge_patches
from convstem.upstream import timm_cfgs
from tests.support.assertions import largest_difference, randomise, relative_error
from tests.support.everyday import mostly_in_ci

DINOV2, SOURCE = "vit_s16_dinov2_convstem", "vit_small_patch14_dinov2"
KEPT = convstem.StemSpec((12, 588), strides=(2, 7), kernel_sizes=(3, 13))
"""A stem of patch 14."""


def resized() -> dict[str, TrunkSpec]:
    return {name: s for name, s in architectures().items() if isinstance(s, TrunkSpec) and s.resized_from}


def features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.forward_features(x)


def test_images_grow_so_that_the_grid_stays() -> None:
    assert len({spec.trunk for spec in resized().values()}) > 70
    for name, spec in resized().items():
        assert (spec.patch_size, spec.resized_from) == (16, 14)
        theirs = timm_cfgs(spec.trunk)
        for tagged, cfg in trunk_cfgs(name, spec.trunk).items():
            source = theirs.get(f"{spec.trunk}.{tagged.partition('.')[2]}")
            if source is not None:  # otherwise a tag with another image size
                assert [side // 16 for side in cfg.input_size[1:]] == [side // 14 for side in source.input_size[1:]]
                assert cfg.hf_hub_id == source.hf_hub_id
            assert not any(side % 16 for side in cfg.input_size[1:])
        size = spec.img_size if isinstance(spec.img_size, int) else spec.img_size[0]
        assert size % 16 == 0


@pytest.mark.parametrize(
    ("name", "source"),
    mostly_in_ci(
        [
            (DINOV2, "vit_small_patch14_dinov2.lvd142m"),
            ("vit_s16_reg4_dinov2_convstem", "vit_small_patch14_reg4_dinov2.lvd142m"),
            ("eva02_ti16_convstem.mim_in22k", "eva02_tiny_patch14_224.mim_in22k"),
            ("eva02_ti16_convstem.mim_in22k_ft_in1k_336", "eva02_tiny_patch14_336.mim_in22k_ft_in1k"),
            ("vit_l16_clip_convstem.openai", "vit_large_patch14_clip_224.openai"),
            ("vit_so400m16_siglip14_convstem.webli_378", "vit_so400m_patch14_siglip_378.webli"),
            ("vit_pe_core_l16_convstem", "vit_pe_core_large_patch14_336.fb"),
        ],
        ["eva02_ti16_convstem.mim_in22k"],
    ),
)
def test_a_tag_is_its_source_with_larger_patches(name: str, source: str, hub_file: Callable[..., None]) -> None:
    plain = randomise(timm.create_model(source, depth=1)).eval()
    hub_file(f"timm/{source}", plain.state_dict())
    model = timm.create_model(name, pretrained=True, depth=1).eval()
    x = torch.randn(1, *plain.pretrained_cfg["input_size"])
    larger = enlarge_patches(x, 14)
    assert model.pretrained_cfg["input_size"] == tuple(larger.shape[1:])
    assert model.patch_embed.grid_size == plain.patch_embed.grid_size
    assert (model.transplant_report.resized_from, model.transplant_report.scope) == (
        14,
        "every input whose patches of 14 pixels are resized one by one (approximate if an image is resized as a whole)",
    )
    expected = features(plain, x)
    assert relative_error(features(timm.create_model(name, depth=1).eval(), larger), expected) > 1e-2  # control
    assert relative_error(features(model, larger), expected) < 2e-5
    if plain.pos_embed is not None:
        assert torch.equal(model.pos_embed, plain.pos_embed)


def test_other_image_sizes_resample_positions_as_the_source_does(hub_file: Callable[..., None]) -> None:
    """A grid of equally many patches that is not square must still resample the positions."""
    source = timm.create_model("eva02_tiny_patch14_224.mim_in22k", depth=1)
    hub_file("timm/eva02_tiny_patch14_224.mim_in22k", randomise(source).state_dict())
    plain = timm.create_model("eva02_tiny_patch14_224.mim_in22k", pretrained=True, depth=1, img_size=(112, 448)).eval()
    model = timm.create_model("eva02_ti16_convstem", pretrained=True, depth=1, img_size=(128, 512)).eval()
    assert (model.patch_embed.grid_size, model.pos_embed.shape) == ((8, 32), source.pos_embed.shape)
    assert not torch.equal(model.pos_embed, source.pos_embed)  # control
    x = torch.randn(1, 3, 112, 448)
    assert relative_error(features(model, enlarge_patches(x, 14)), features(plain, x)) < 2e-5


@pytest.mark.full
@pytest.mark.parametrize("stem", [None, KEPT], ids=["patch 16", "patch 14 kept"])
def test_a_transplant_is_saved_under_the_name_that_rebuilds_it(stem: convstem.StemSpec | None, tmp_path: Path) -> None:
    model = convstem.transplant(randomise(timm.create_model(SOURCE, depth=1, num_classes=3)).eval(), stem)
    assert model.pretrained_cfg["architecture"] == DINOV2
    stage(model, tmp_path)
    images = torch.randn(1, *model.pretrained_cfg["input_size"])
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    fresh = timm.create_model(f"local-dir:{tmp_path}", pretrained=False).eval()
    assert largest_difference(fresh, model, images) > 0  # negative control
    assert largest_difference(again, model, images) == 0


def test_an_image_size_of_the_source_is_answered_with_ours() -> None:
    with pytest.raises(
        ValueError, match=r"img_size=518 is for the source.s patches of 14 pixels.* needs img_size=.592, 592."
    ):
        timm.create_model(DINOV2, depth=1, img_size=518)


def test_patch_14_by_name_needs_strides_that_make_it() -> None:
    with pytest.raises(ValueError, match=r"a power of two .*; got 14: choose one of these, or pass a stem"):
        timm.create_model(DINOV2, depth=1, patch_size=14, img_size=224)
    model = timm.create_model(DINOV2, depth=1, patch_size=14, img_size=224, **KEPT.model_args)
    assert model.patch_embed.grid_size == (16, 16)


@pytest.mark.full
def test_a_folder_of_a_resized_transplant_says_what_is_exact(tmp_path: Path) -> None:
    result = transplant_to_folder(SOURCE, tmp_path / "out", pretrained=False)
    assert (result.architecture, result.report.resized_from) == (DINOV2, 14)
    assert result.measured_error < 2e-5  # patch by patch
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**patches resized from 14 to 16 pixels, not trained further**" in card
    assert "(approximate if an image is resized as a whole)" in card
    assert "function preserved" not in card


def test_cards_cite_what_was_measured_on_photographs() -> None:
    cards = {name: card_of(name) for name in (f"{DINOV2}.lvd142m", "vit_b16_dinov2_convstem.lvd142m")}
    for card in cards.values():
        assert "**patches resized from 14 to 16 pixels, not trained further**" in card
        assert "(approximate if an image is resized as a whole)" in card
        assert "592 x 592" in card
    assert ["benchmarks.transplant_patch14" in card for card in cards.values()] == [True, False]


def test_the_measured_cosines_are_those_of_the_benchmark() -> None:
    spec = resized()[DINOV2]
    found = (Path(__file__).parents[2] / "benchmarks" / "results" / "transplant_patch14.txt").read_text()
    lines = [line for line in found.splitlines() if "pseudo-inverse: class token" in line]
    for size, line in zip((256, 592), lines, strict=True):
        mean, least = line.partition("class token mean ")[2].partition(";")[0].split(", least ")
        assert mean in spec.measured
        assert least in spec.measured
        assert str(size) in spec.measured


def test_the_command_line_leads_from_the_patchify_name_to_the_tags() -> None:
    shown = CliRunner().invoke(main, ["show", SOURCE]).output
    assert f"on a conv stem it is {DINOV2} ({SOURCE}_convstem is the same)" in shown
    assert "patches of 14 pixels become 16" in shown
    assert f"{DINOV2}.lvd142m" in shown
    listed = CliRunner().invoke(main, ["list", "--pretrained", "reg4_dinov2"]).output
    assert "vit_l16_reg4_dinov2_convstem.lvd142m" in listed
    assert [entry.input_size for entry in weights_of(DINOV2)] == [(3, 592, 592)]
