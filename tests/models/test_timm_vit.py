"""Our models in timm: what timm's own suite does not test, and errors for wrong calls."""

import copy
import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import build_sincos2d_pos_embed
from timm.models import group_parameters
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as plain_filter
from timm.optim import param_groups_layer_decay
from torch.utils.flop_counter import FlopCounterMode

from convstem import convert
from convstem.registry import catalog
from convstem.registry.records import macs, num_params
from convstem.registry.tables import families
from tests.support.assertions import largest_difference, randomise
from tests.support.everyday import mostly_in_ci

NAMES = list(catalog.models())
NANO = "vit_nano4_convstem"
EVERYDAY = [NANO, "vit_ti16_convstem", "vitc_1gf", "vit_conv_small"]


@pytest.fixture
def nano() -> Any:
    return randomise(timm.create_model(NANO)).eval()


@pytest.mark.parametrize("name", mostly_in_ci(NAMES, EVERYDAY))
def test_counted_parameters_and_macs_are_the_models(name: str) -> None:
    spec = catalog.models()[name]
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=spec.num_classes).eval()
        x = torch.empty(1, 3, spec.img_size, spec.img_size)
    assert isinstance(model, (Eva, VisionTransformer))
    assert sum(p.numel() for p in model.parameters()) == num_params(spec)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert model(x).shape == (1, spec.num_classes or spec.embed_dim)
    # The flop counter has no formula for fused attention on the meta device: compare with and without that part.
    tokens = (spec.img_size // spec.patch_size) ** 2 + 1
    attention = spec.depth * 2 * tokens * tokens * spec.embed_dim
    assert counter.get_total_flops() / 2 in (macs(spec), macs(spec) - attention)


def test_names_tags_and_module() -> None:
    names = {*catalog.architectures(), *(f"{name}_pyramid" for name in families())}
    assert set(timm.list_models(module="convstem_timm")) == names
    assert timm.get_pretrained_cfg("vit_b16_convstem").first_conv == "patch_embed.backbone.0.conv"


def test_a_stem_is_built_where_and_how_it_is_asked_for() -> None:
    with torch.device("meta"):
        assert all(t.is_meta for t in timm.create_model(NANO).state_dict().values())
    for dtype in (torch.bfloat16, torch.float64):
        model = timm.create_model(NANO, device="cpu", dtype=dtype).eval()
        assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {dtype}
        assert model(torch.randn(1, 3, 32, 32, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4])
def test_in_chans_adapts_pretrained_weights(in_chans: int, nano: Any) -> None:
    overlay = {"state_dict": nano.state_dict()}
    model = timm.create_model(NANO, pretrained=True, in_chans=in_chans, pretrained_cfg_overlay=overlay).eval()
    conv = model.patch_embed.backbone[0].conv.weight
    assert conv.shape[1] == in_chans
    if in_chans == 3:
        assert largest_difference(model, nano, torch.randn(2, 3, 32, 32)) == 0
    if in_chans == 1:  # a grey image as three equal channels gives the same logits
        grey = torch.randn(2, 1, 32, 32)
        torch.testing.assert_close(model(grey), nano(grey.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(32, 64), (48, 32), (64, 64)])
def test_pretrained_weights_at_another_size(size: tuple[int, int], nano: Any) -> None:
    overlay = {"state_dict": nano.state_dict()}
    model = timm.create_model(NANO, pretrained=True, img_size=size, pretrained_cfg_overlay=overlay).eval()
    assert model.patch_embed.grid_size == (size[0] // 4, size[1] // 4)
    resized = copy.deepcopy(nano)
    resized.set_input_size(size)
    assert largest_difference(model, resized, torch.randn(2, 3, *size)) == 0


def test_a_non_square_checkpoint_resamples_from_its_own_grid(nano: Any) -> None:
    nano.set_input_size((16, 64))  # as many tokens as 32x32
    config = {**nano.pretrained_cfg, "input_size": (3, 16, 64), "state_dict": nano.state_dict()}
    model = timm.create_model(NANO, pretrained=True, pretrained_cfg=config, img_size=(32, 32))
    nano.set_input_size((32, 32))
    torch.testing.assert_close(model.pos_embed, nano.pos_embed, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(32, 32), (23, 20), (40, 64)])
def test_dynamic_size_agrees_with_its_own_grid(size: tuple[int, int]) -> None:
    model = timm.create_model(NANO, dynamic_img_size=True).eval()
    x = torch.randn(1, 3, *size)
    grid = model.patch_embed.dynamic_feat_size(size)
    assert grid == tuple(-(-s // 4) for s in size)
    features, maps = model.forward_intermediates(x)
    assert features.shape == (1, 1 + grid[0] * grid[1], 96)
    assert maps[-1].shape == (1, 96, *grid)


def test_the_stem_is_layer_zero() -> None:
    model = timm.create_model(NANO)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    stem = [group for name, group in groups.items() if name.startswith("patch_embed.")]
    assert set(stem) == {0}
    assert len(stem) == len(list(model.patch_embed.parameters()))
    decayed = param_groups_layer_decay(
        model, weight_decay=0.1, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay()
    )
    norm_ids = {id(model.patch_embed.backbone[0].bn.weight), id(model.pos_embed)}
    for group in decayed:
        if norm_ids & {id(p) for p in group["params"]}:
            assert group["weight_decay"] == 0.0


def test_drop_path_and_grad_checkpointing_train() -> None:
    model = timm.create_model(NANO, drop_path_rate=0.2)
    model.set_grad_checkpointing()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", mostly_in_ci([NANO, "vit_s16_cvst", "vit_conv_small"], [NANO]))
def test_compile_export_fx_and_script(name: str) -> None:
    spec = catalog.models()[name]
    small = dict(depth=1, embed_dim=96, num_heads=3, stem_channels=spec.stem.channels, img_size=2 * spec.patch_size)
    model = randomise(timm.create_model(name, **small)).eval()
    x = torch.randn(2, 3, 2 * spec.patch_size, 2 * spec.patch_size)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
        traced, plain = symbolic(model), symbolic(timm.create_model("vit_tiny_patch16_224", depth=1))
        assert (traced is None) == (plain is None)
        if traced is not None:
            torch.testing.assert_close(traced(x), expected)


def symbolic(model: Any) -> Any:
    """Return a model traced by torch.fx, or None if timm's attention cannot be traced, as with torch 2.6."""
    try:
        return torch.fx.symbolic_trace(model)
    except TypeError:
        return None


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_torchscript(nano: Any) -> None:
    scripted = torch.jit.script(nano)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(scripted(x), nano(x))


def test_pickle_and_deepcopy(nano: Any) -> None:
    x = torch.randn(1, 3, 32, 32)
    buffer = io.BytesIO()
    torch.save(nano, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(nano),
        pickle.loads(pickle.dumps(nano)),
        torch.load(buffer, weights_only=False),
    ):
        assert largest_difference(nano, twin, x) == 0


def test_stem_settings_survive_a_hub_folder() -> None:
    args: dict[str, Any] = dict(
        stem_channels=(16, 24, 48), stem_strides=(2, 1, 2), stem_act="gelu", stem_norm="layernorm2d"
    )
    args["stem_bias"] = True
    model = randomise(timm.create_model(NANO, **args)).eval()
    # The folder of a repository's newest commit in the Hub cache, readable by both hf-hub: and local-dir:.
    commit, repository = "1" * 40, Path(os.environ["HF_HUB_CACHE"]) / "models--me--mine"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    folder = repository / "snapshots" / commit
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    for name in (f"local-dir:{folder}", "hf-hub:me/mine", "hf-hub:me/mine@main"):
        twin = timm.create_model(name, pretrained=True).eval()
        assert twin.patch_embed.stem_spec == model.patch_embed.stem_spec
        assert largest_difference(model, twin, torch.randn(2, 3, 32, 32)) == 0


def test_init_weights_leaves_nothing_uninitialised() -> None:
    for name in (NANO, "vit_conv_small"):
        small = dict(depth=1, embed_dim=96, num_heads=3)
        model = timm.create_model(name, device="meta", dtype=torch.float64, **small).to_empty(device="cpu")
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.zero_()
        model.init_weights()
        bad = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
        assert not bad


def test_the_fixed_position_embedding_is_moco_v3s() -> None:
    model = timm.create_model("vit_conv_small", depth=1)
    assert "pos_embed" not in dict(model.named_parameters())
    assert model.pos_embed.shape == (1, 197, 384)
    assert not model.pos_embed[0, 0].any()
    # moco-v3: for token (row, column), sin and cos of column * omega, then of row * omega
    omega = 1.0 / 10000 ** (torch.arange(96, dtype=torch.float64) / 96)
    row, column = 3, 5
    expected = torch.cat([f(i * omega) for i in (column, row) for f in (torch.sin, torch.cos)])
    actual = model.pos_embed[0, 1 + column * 14 + row].double()
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    model.set_input_size((64, 96))
    assert model.pos_embed.shape == (1, 1 + 4 * 6, 384)
    assert build_sincos2d_pos_embed([4, 6], 384).shape[0] == 24


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"img_size": 230},
            ValueError,
            "multiple of the patch size 4; got 230x230: use 228x228 or 232x232, or pass dyn",
        ),
        ({"patch_size": 2, "stem_channels": [64, 128]}, ValueError, "must equal patch_size 2; stem_channels"),
        ({"patch_size": 7}, ValueError, r"a power of two \(2, 4, 8, 16, 32\); got 7"),
        (
            {"stem_channels": [8, 8, 8]},
            ValueError,
            r"patch_size 4; stem_channels \[8, 8, 8\] with stem_strides \[2, 2, 2\]",
        ),
        ({"stem_strides": [2, 1]}, ValueError, "pass stem_strides"),
        ({"stem_channels": [8]}, ValueError, "reduce the image by 2: pass at least 2 stem_channels"),
        ({"stem_channels": [0, 8]}, ValueError, "positive integers"),
        ({"stem_norm": "groupnorm"}, ValueError, "stem_norm must be one of"),
        ({"embed_dim": 100}, ValueError, "embed_dim 100, num_heads 3"),
        (
            {"embed_layer": object},
            TypeError,
            "embed_layer cannot be set: the conv stem is the patch embedding",
        ),
        ({"embed_norm_layer": "layernorm"}, TypeError, "embed_norm_layer cannot be set"),
        ({"not_an_argument": 1}, TypeError, "not_an_argument"),
    ],
)
def test_a_wrong_call_is_answered_before_construction(kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        timm.create_model(NANO, **kwargs)


def test_a_wrong_size_after_construction() -> None:
    model = timm.create_model(NANO)
    with pytest.raises(ValueError, match="img_size must be a multiple of the patch size 4; got 30x30"):
        model.set_input_size(30)
    with pytest.raises(ValueError, match="the product of its strides, 4; got patch_size=8"):
        model.set_input_size(patch_size=8)
    with pytest.raises(AssertionError, match=r"Input height \(64\) doesn't match model \(32\)"):
        model(torch.randn(1, 3, 64, 32))
    with pytest.raises(AssertionError, match=r"Input channels \(1\) don't match model \(3\)"):
        model(torch.randn(1, 1, 32, 32))


def plain_twin() -> Any:
    """A patchify ViT with vit_nano4_convstem's trunk."""
    args = dict(depth=6, embed_dim=96, mlp_ratio=2, img_size=32, patch_size=4, num_classes=10)
    return timm.create_model("vit_tiny_patch16_224", **args)


def load_directly(state: Any) -> None:
    timm.create_model(NANO).load_state_dict(state, strict=False)


def load_as_pretrained(state: Any) -> Any:
    return timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay={"state_dict": state})


@pytest.mark.filterwarnings("ignore:this checkpoint has a patch embedding and no conv stem")
def test_a_plain_vit_whose_embedding_does_not_fit_the_stem_is_named() -> None:
    state = {**plain_twin().state_dict(), "patch_embed.proj.weight": torch.zeros(96, 3, 8, 8)}
    with pytest.raises(RuntimeError, match=r"checkpoint of a plain \(patchify\) ViT: it embeds 8x8 patches"):
        load_directly(state)


def test_a_plain_vit_checkpoint_as_pretrained_weights_is_transplanted() -> None:
    plain = randomise(plain_twin())
    assert largest_difference(load_as_pretrained(plain.state_dict()), plain, torch.rand(1, 3, 32, 32)) < 1e-4


@pytest.mark.parametrize("load", [load_directly, load_as_pretrained])
def test_another_stem_is_named(load: Any) -> None:
    state = timm.create_model(NANO, stem_channels=(16, 24, 128), stem_strides=(1, 2, 2)).state_dict()
    with pytest.raises(RuntimeError, match=r"conv channels are \[16, 24, 128, 96\], the model's are \[64, 128, 96\]"):
        load(state)


def test_the_other_layout_loads_as_pretrained_and_is_named_otherwise(nano: Any) -> None:
    state = convert(nano.state_dict(), source="timm", target="torchvision")
    model = timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay={"state_dict": state})
    assert largest_difference(model, nano, torch.randn(1, 3, 32, 32)) == 0
    with pytest.warns(
        UserWarning, match=r"no key of this .*convert\(state_dict, source='torchvision', target='timm'\)"
    ):
        load_directly(state)


def test_our_checkpoint_in_a_plain_vit_fails_with_our_keys_named() -> None:
    plain = plain_twin()
    state = timm.create_model(NANO).state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*patch_embed.backbone.0.conv.weight"):
        plain.load_state_dict(plain_filter(state, plain))


def test_the_torchvision_twin_shares_the_vocabulary() -> None:
    assert torchvision.models.get_model("vit_nano_4_convstem").conv_proj[0][0].out_channels == 64


def test_fixed_positions_follow_the_image_size() -> None:
    name = next(name for name, spec in catalog.models().items() if spec.pos_embed == "sincos2d")
    model, other = (timm.create_model(name, img_size=size, depth=1) for size in ((64, 64), (32, 96)))
    assert model.pos_embed.shape != other.pos_embed.shape
    model.set_input_size((32, 96))
    assert torch.equal(model.pos_embed, other.pos_embed)


def test_any_size_is_accepted_where_positions_are_resampled_for_each_image() -> None:
    name = "vit_small_patch14_dinov2_convstem"
    with pytest.raises(ValueError, match="img_size=98 is for the source's patches of 14 pixels"):
        timm.create_model(name, img_size=98, depth=1)
    model = timm.create_model(name, img_size=98, depth=1, dynamic_img_size=True)
    assert model.patch_embed.patch_size == (16, 16)


def test_an_overlay_decides_about_a_folders_weights(nano: Any, tmp_path: Path) -> None:
    timm.models.save_for_hf(nano, tmp_path, safe_serialization=True)
    other = {key: value + 1 for key, value in nano.state_dict().items()}
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, pretrained_cfg_overlay={"state_dict": other})
    assert torch.equal(model.pos_embed, other["pos_embed"])
    assert not torch.equal(model.pos_embed, nano.pos_embed)
