"""Our names with ``timm.create_model(NAME, stride=...)``: saved, loaded, exported, as a backbone."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import convstem
from convstem.errors import ArgumentError, ArgumentTypeError, CheckpointError, InvalidFileError, UnsupportedModelError
from convstem.hub.source import CARD, CONFIG
from convstem.inference import export
from convstem.models.twins import as_timm_model
from convstem.publishing.card import card_of
from convstem.publishing.derived import transplant_to_folder
from convstem.publishing.folder import save
from convstem.publishing.verify import verify
from tests.support.assertions import largest_difference, randomise
from tests.support.everyday import mostly_in_ci

NAME, PLAIN = "vit_ti16_convstem", "vit_tiny_patch16_224"

TRUNKS = [
    (NAME, PLAIN, {}),
    ("vit_s16_dinov3_convstem", "vit_small_patch16_dinov3", {"embed_dim": 96, "num_heads": 3}),
    ("eva02_b16_clip_convstem", "eva02_base_patch16_clip_224", {"embed_dim": 96, "num_heads": 3}),
    ("vit_small_patch14_reg4_dinov2_convstem", "vit_small_patch14_reg4_dinov2", {"embed_dim": 96, "num_heads": 3}),
]


def images(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(3))


def plain(name: str = PLAIN, **args: object) -> Any:
    return randomise(timm.create_model(name, **{"depth": 1, "num_classes": 5, **args})).eval()


def ours(stride: int, **args: object) -> Any:
    return randomise(timm.create_model(NAME, depth=1, num_classes=5, stride=stride, **args)).eval()


def saved(model: Any, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    save(model, folder)
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return config


@torch.no_grad()
@pytest.mark.parametrize("stride", [8, 32])
@pytest.mark.parametrize(("name", "trunk", "args"), mostly_in_ci(TRUNKS, [NAME]), ids=[name for name, *_ in TRUNKS])
def test_a_name_at_a_stride_is_the_transplant(
    name: str, trunk: str, args: dict[str, object], stride: int, tmp_path: Path
) -> None:
    source = plain(trunk, num_classes=0, **args)
    save_file(source.state_dict(), tmp_path / "plain.safetensors")
    overlay = {"file": str(tmp_path / "plain.safetensors")}
    arguments = {"depth": 1, "num_classes": 0, **args}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, stride=stride, **arguments).eval()
    twin: Any = convstem.transplant(source, stride=stride)
    assert model.patch_embed.grid_size == twin.patch_embed.grid_size
    assert model.patch_embed.patch_size == (stride, stride)
    assert model.pretrained_cfg["input_size"] == twin.pretrained_cfg["input_size"]
    assert {info["reduction"] for info in model.feature_info} == {stride}
    size = timm.data.resolve_data_config(model=model)["input_size"]
    assert largest_difference(model, twin, images(*size[1:])) == 0
    assert model.transplant_report == twin.transplant_report
    assert model.transplant_report.restrided == (16, stride)
    randomise(twin.patch_embed)  # negative control
    assert largest_difference(model, twin, images(*size[1:])) > 1e-3


@pytest.mark.full
@pytest.mark.parametrize("stride", [2, 4, 8, 32, 64, 128])
def test_a_saved_model_keeps_its_stride(stride: int, tmp_path: Path) -> None:
    model = ours(stride, **({"img_size": 64} if stride < 16 else {}))
    config = saved(model, tmp_path / "model")
    assert config["model_args"]["stride"] == stride
    assert config["model_args"]["patch_size"] == 16
    again: Any = convstem.load(tmp_path / "model")
    assert again.patch_embed.stem_spec == model.patch_embed.stem_spec
    assert (again.patch_embed.window, again.patch_embed.grid_size) == (16, model.patch_embed.grid_size)
    size = model.patch_embed.img_size
    assert config["pretrained_cfg"]["input_size"] == [3, *size]
    assert largest_difference(again, model, images(*size)) == 0
    assert saved(again, tmp_path / "again")["model_args"] == config["model_args"]


@torch.no_grad()
def test_trained_weights_at_half_or_twice_the_stride(tmp_path: Path) -> None:
    """Only the last layer's stride changes, so the same weights also give tokens between the original ones."""
    model = randomise(timm.create_model(NAME, depth=1, num_classes=5, img_size=(64, 96))).eval()
    saved(model, tmp_path / "model")
    x = images(64, 96)
    denser: Any = convstem.load(tmp_path / "model", stride=8)
    assert denser.patch_embed.grid_size == (8, 12)
    assert torch.equal(denser.patch_embed.backbone(x)[..., ::2, ::2], model.patch_embed.backbone(x))
    assert torch.equal(denser.pos_embed, timm.layers.resample_abs_pos_embed(model.pos_embed, [8, 12], old_size=[4, 6]))
    saved(denser, tmp_path / "denser")
    for again in (convstem.load(tmp_path / "denser"), timm.create_model(f"local-dir:{tmp_path / 'denser'}").eval()):
        assert again.patch_embed.grid_size == (8, 12)
    back: Any = convstem.load(tmp_path / "denser", stride=16)
    assert back.patch_embed.grid_size == (4, 6)
    assert torch.equal(back.patch_embed.backbone(x), model.patch_embed.backbone(x))
    assert back.pos_embed.shape == model.pos_embed.shape
    for stride in (4, 32):
        with pytest.raises(ArgumentError, match=f"tokens every 8 or 16 pixels; got stride={stride}: load the plain"):
            convstem.load(tmp_path / "model", stride=stride)


@torch.no_grad()
def test_a_name_with_weights_of_its_own() -> None:
    own = timm.create_model("vit_nano4_convstem", pretrained=True).eval()
    denser = timm.create_model("vit_nano4_convstem", pretrained=True, stride=2).eval()
    assert denser.patch_embed.grid_size == (16, 16)
    x = images(32, 32)
    assert torch.equal(denser.patch_embed.backbone(x)[..., ::2, ::2], own.patch_embed.backbone(x))
    with pytest.raises(ArgumentError, match="tokens every 2 or 4 pixels; got stride=8"):
        timm.create_model("vit_nano4_convstem", pretrained=True, stride=8)


def test_a_file_of_a_plain_model_is_carried_by_load_state_dict() -> None:
    source = plain(img_size=64)
    for stride, img_size in ((8, 64), (32, 128)):
        model = ours(stride, img_size=img_size)
        twin: Any = convstem.transplant(source, stride=stride)
        state = {**source.state_dict(), "pos_embed": twin.pos_embed}
        with pytest.warns(UserWarning, match="it was transplanted into the model's stem"):
            model.load_state_dict(state)
        assert largest_difference(model, twin, images(img_size, img_size)) == 0


@torch.no_grad()
@pytest.mark.parametrize("stride", [8, 32])
def test_folders_cards_verification_and_torchvision(stride: int, tmp_path: Path) -> None:
    source = plain(img_size=64)
    (tmp_path / "plain").mkdir()
    save(source, tmp_path / "plain", ours=False)
    result = transplant_to_folder(tmp_path / "plain", tmp_path / "ours", stride=stride)
    assert result.measured_error < 2e-6
    text = (tmp_path / "ours" / CARD).read_text()
    side = 64 * max(stride // 16, 1) // stride
    assert f"{side} x {side} tokens lie {stride} pixels apart" in text
    assert f"tokens at stride {stride} instead of 16, not trained further" in " ".join(text.split())
    assert result.report.outcome() in text
    assert "Not measured." in text
    assert f"tokens lie {stride} pixels apart" in card_of(tmp_path / "ours")
    assert verify(tmp_path / "ours").ok or [c.name for c in verify(tmp_path / "ours").checks if not c.ok] == ["license"]
    model: Any = convstem.load(tmp_path / "ours")
    twin: Any = convstem.load(tmp_path / "ours", layout="torchvision")
    x = images(*model.patch_embed.img_size)
    assert (twin.image_size, twin.patch_size) == (64 * max(stride // 16, 1), stride)
    assert largest_difference(twin, model, x) < 1e-5
    with pytest.raises(ArgumentError, match="no convstem architecture has the sizes"):  # of one block
        as_timm_model(twin)


@torch.no_grad()
def test_a_torchvision_model_at_a_stride_goes_back_to_a_name() -> None:
    model = randomise(timm.create_model("vit_nano4_convstem", pretrained=True, stride=2)).eval()
    from convstem.models.twins import torchvision_twin

    twin = torchvision_twin(model)
    back = as_timm_model(twin).eval()
    assert back.patch_embed.grid_size == (16, 16)
    assert largest_difference(back, model, images(32, 32)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ("stride", "strides"),
    [(4, [2, 4, 8, 16, 32]), (8, [2, 4, 8, 16, 32]), (32, [2, 4, 8, 16, 32]), (64, [2, 4, 8, 16, 32, 64])],
)
def test_the_pyramid(stride: int, strides: list[int]) -> None:
    arguments = {"features_only": True, "feature_cls": "pyramid", "depth": 1}
    model = timm.create_model(NAME, stride=stride, img_size=128, **arguments).eval()
    assert model.feature_info.reduction() == strides
    assert [128 // level.shape[-1] for level in model(images(128, 128))] == strides
    plain_features = timm.create_model(NAME, stride=stride, img_size=128, features_only=True, depth=3)
    assert plain_features.feature_info.reduction() == [stride] * 3
    assert [tuple(level.shape[2:]) for level in plain_features(images(128, 128))] == [(128 // stride,) * 2] * 3


def test_a_segmentation_model() -> None:
    import segmentation_models_pytorch as smp

    model = smp.FPN("tu-vit_nano4_convstem_pyramid", encoder_weights=None, stride=2).eval()
    assert model.encoder.model.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert model(images(64, 96)).shape == (2, 1, 64, 96)


@pytest.mark.full
@pytest.mark.parametrize(
    ("stride", "arguments"),
    [(8, {"img_size": 32}), (8, {"img_size": 32, "dynamic_img_size": True}), (32, {"img_size": 64})],
)
def test_an_export(stride: int, arguments: dict[str, object], tmp_path: Path) -> None:
    model = ours(stride, **arguments)
    assert export(model, "torch-export", tmp_path / "model.pt2").difference == 0
    result = export(model, "onnx", tmp_path / "model.onnx")
    assert result.difference is not None
    assert result.difference < 1e-4


BAD = [
    ({"stride": 0}, ArgumentError, "a whole number of at least 1; got 0"),
    ({"stride": "8"}, ArgumentError, "a whole number of at least 1; got '8'"),
    ({"stride": 12}, ArgumentError, "such as 8, 16, 32, 64; got stride=12 for patches of 16"),
    ({"stride": 256}, ArgumentError, "stride=256 is larger than the image, 224x224 pixels"),
    ({"stride": 64, "img_size": 32}, ArgumentError, "stride=64 is larger than the image, 32x32 pixels"),
    ({"stride": 32, "img_size": 240}, ArgumentError, "img_size must be a multiple of the patch size 32; got 240x240"),
    ({"stride": 8, "patch_size": 12}, ArgumentError, "got stride=8 for patches of 12 pixels"),
    ({"stride": 8, "stem_strides": (2, 1, 1, 1)}, ArgumentError, "tokens every 2 or 4 pixels; got stride=8"),
    ({"stried": 8}, ArgumentTypeError, "takes no argument 'stried'; did you mean stride"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    timm.create_model(NAME, depth=1, stride=8)  # the valid neighbour
    with pytest.raises(error, match=message):
        timm.create_model(NAME, depth=1, **arguments)


def test_names_whose_positions_cannot_be_resampled() -> None:
    with pytest.raises(UnsupportedModelError, match="Eva cannot have more tokens than patches .*rotary positions that"):
        timm.create_model("vit_base_patch16_rope_224_convstem", stride=8, depth=1)
    assert timm.create_model("vit_base_patch16_rope_224_convstem", stride=32, depth=1).patch_embed.grid_size == (14, 14)


def test_a_config_may_not_lie_about_its_stride(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = saved(ours(8, img_size=64), folder)

    def written(**changes: object) -> Path:
        args = {**config["model_args"], **changes}
        (folder / CONFIG).write_text(json.dumps({**config, "model_args": args}))
        return folder

    convstem.load(written())  # the valid neighbour
    for changes, error, message in (
        ({"stride": "8"}, InvalidFileError, "stride must be a whole number or null; got 8"),
        ({"stride": -8}, InvalidFileError, "stride must be positive; got -8"),
        ({"stride": 1 << 20}, InvalidFileError, "stride = 1048576 is too large"),
        ({"stride": 12}, InvalidFileError, "cannot be built: ArgumentError: stride must be the patch size times"),
        ({"stride": 16}, CheckpointError, "config.json does not match the weights beside it: .*pos_embed"),
    ):
        with pytest.raises(error, match=message):
            convstem.load(written(**changes))
