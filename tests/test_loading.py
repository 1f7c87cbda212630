"""The fast path equals the slow path bit for bit, and every invalid file gives one clear error."""

import contextlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor

import convstem
from convstem.errors import (
    ArgumentError,
    CheckpointError,
    HubError,
    InvalidFileError,
    MissingPathError,
    UnknownModelError,
)
from convstem.weights import pretrained as timm_loading
from tests.support.assertions import largest_difference, randomise, relative_error
from tests.support.everyday import mostly_in_ci

NANO = "vit_nano4_convstem"
TI16 = "vit_ti16_convstem"
SOURCES = {  # our name -> timm name whose weights it transplants
    TI16: "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_s16_dinov3_convstem": "vit_small_patch16_dinov3.lvd1689m",
    "beit_b16_convstem": "beit_base_patch16_224.in22k_ft_in22k_in1k",
    "deit3_s16_convstem": "deit3_small_patch16_224.fb_in1k",
}


def plain(source: Any, hub_file: Callable[..., None], seed: int = 1, **kwargs: Any) -> Any:
    """Put a shallow random timm model into the Hub cache in place of a pretrained one."""
    model = randomise(timm.create_model(source.split(".")[0], depth=1, **kwargs), seed)
    hub_file(f"timm/{source}", model.state_dict())
    return model.eval()


def bits(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def same(a: dict[str, Tensor], b: dict[str, Tensor], but: tuple[str, ...] = ()) -> bool:
    assert a.keys() == b.keys()
    return [name for name in a if not name.startswith(but) and not torch.equal(a[name], b[name])] == []


ARGUMENTS = [
    {},
    {"num_classes": 7},
    {"num_classes": 0},
    {"in_chans": 1},
    {"img_size": 96},
    {"dtype": torch.bfloat16},
    {"global_pool": "avg", "num_classes": 3},
    {"features_only": True, "out_indices": [0]},
    {"stem_channels": [24, 48, 192, 768]},
]


# The last three arguments are for our own architecture only. timm's resampling of BEiT's positions is not tested here.
CASES = [(TI16, arguments) for arguments in ARGUMENTS]
CASES += [(name, arguments) for name in SOURCES if name != TI16 for arguments in ARGUMENTS[:6]]
CASES.remove(("beit_b16_convstem", {"img_size": 96}))


@pytest.mark.parametrize(("name", "arguments"), mostly_in_ci(CASES, [TI16]), ids=str)
def test_the_fast_path_gives_the_bits_of_the_slow_path(
    name: str, arguments: Any, hub_file: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain(SOURCES[name], hub_file)
    name += "." + SOURCES[name].split(".")[1]
    fast = bits(timm.create_model(name, pretrained=True, depth=1, **arguments))
    monkeypatch.setattr(timm_loading, "DeferredInit", lambda adopt: contextlib.nullcontext())
    slow = bits(timm.create_model(name, pretrained=True, depth=1, **arguments))
    fresh = bits(timm.create_model(name, depth=1, **arguments))
    new = ("head.", "model.head.") if "num_classes" in arguments else ()
    assert same(fast, slow, but=new)
    assert not same(fresh, slow, but=new)  # negative control
    if new:  # a new head has timm's random initialisation, different each time
        assert {k: v.shape for k, v in fast.items()} == {k: v.shape for k, v in slow.items()}
        heads = [v for k, v in fast.items() if k.startswith(new) and k.endswith("weight")]
        assert all(0 < float(h.detach().std()) < 0.1 for h in heads)


LOADS: dict[str, Callable[[], Any]] = {
    "timm": lambda: timm.create_model(NANO, pretrained=True),
    "timm, transplanted": lambda: timm.create_model(TI16, pretrained=True, depth=1),
    "a trunk by rule": lambda: timm.create_model("deit3_s16_convstem", pretrained=True, depth=1),
    "load": lambda: convstem.load(NANO, layout="torchvision"),
}


@pytest.mark.parametrize("how", LOADS)
def test_nothing_is_initialised_that_the_file_overwrites(how: str, hub_file: Callable[..., None]) -> None:
    """Neither a host nor one of our checks may initialise a parameter by touching it too early."""
    plain(SOURCES[TI16], hub_file)
    plain(SOURCES["deit3_s16_convstem"], hub_file)
    before = torch.get_rng_state()
    LOADS[how]()
    assert torch.equal(torch.get_rng_state(), before)  # no random number was drawn
    timm.create_model(NANO)
    assert not torch.equal(torch.get_rng_state(), before)  # negative control


def test_of_torchvisions_builder_only_the_positions_are() -> None:
    """The builder initialises the positions in a plain tensor, before they become a parameter."""
    torch.manual_seed(0)
    model = torchvision.models.get_model("vit_nano_4_convstem", weights="DEFAULT")
    after = torch.get_rng_state()
    torch.manual_seed(0)
    assert not torch.equal(torch.get_rng_state(), after)  # negative control
    torch.empty(model.encoder.pos_embedding.shape).normal_(std=0.02)
    assert torch.equal(torch.get_rng_state(), after)


def test_torchvision_builders_too(hub_file: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    from convstem.models import torchvision_vit

    fast = bits(torchvision.models.get_model("vit_nano_4_convstem", weights="DEFAULT"))
    monkeypatch.setattr(torchvision_vit, "DeferredInit", lambda adopt: contextlib.nullcontext())
    slow = bits(torchvision.models.get_model("vit_nano_4_convstem", weights="DEFAULT"))
    assert same(fast, slow)
    assert not same(bits(torchvision.models.get_model("vit_nano_4_convstem")), slow)


def test_loaded_parameters_are_the_mapped_file_and_training_leaves_it_alone(hub_file: Callable[..., None]) -> None:
    plain(SOURCES[TI16], hub_file)
    model, again = (timm.create_model(TI16, pretrained=True, depth=1) for _ in range(2))
    start = bits(again)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 224, 224)).sum().backward()
    optimizer.step()
    third = bits(timm.create_model(TI16, pretrained=True, depth=1))
    assert not same(bits(model), start)
    assert same(bits(again), start)
    assert same(third, start)


def test_a_folder_can_be_overwritten_while_its_model_is_in_use(tmp_path: Path) -> None:
    model = timm.create_model(NANO, pretrained=True).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = convstem.load(tmp_path)
    before = bits(loaded)
    timm.models.save_for_hf(randomise(model), tmp_path, safe_serialization=True)
    assert same(bits(loaded), before)
    assert not same(bits(convstem.load(tmp_path)), before)


@pytest.mark.parametrize("how", ["argument", "default"])
def test_never_left_on_meta(how: Any) -> None:
    context = torch.device("meta") if how == "default" else contextlib.nullcontext()
    arguments = {"device": "meta"} if how == "argument" else {}
    with context, pytest.warns(UserWarning, match="meta device holds no values.*loaded on the CPU"):
        model = timm.create_model(NANO, pretrained=True, **arguments)
    assert same(bits(model), bits(timm.create_model(NANO, pretrained=True)))
    with context:
        assert timm.create_model(NANO, **arguments).cls_token.is_meta  # negative control: without weights


def test_torchvisions_are_never_left_on_meta_either() -> None:
    builder = torchvision.models.get_model_builder("vit_nano_4_convstem")
    with torch.device("meta"), pytest.warns(UserWarning, match="meta device holds no values.*loaded on the CPU"):
        model = builder(weights="DEFAULT")
    assert same(bits(model), bits(builder(weights="DEFAULT")))
    with torch.device("meta"):
        assert builder().class_token.is_meta  # negative control


def test_the_pretrained_cfg_says_where_the_weights_are_for_everyone(hub_file: Callable[..., None]) -> None:
    plain(SOURCES[TI16], hub_file)
    for arguments in ({}, {"features_only": True, "out_indices": [0]}):
        cfg = timm.create_model(TI16, pretrained=True, depth=1, **arguments).pretrained_cfg
        assert cfg["hf_hub_id"] == f"timm/{SOURCES[TI16]}"
        assert "file" not in cfg


@pytest.mark.parametrize("source", [NANO, f"{NANO}.cifar10", "vit_nano_4_convstem"])
@pytest.mark.parametrize("layout", ["timm", "torchvision"])
def test_load_by_every_name_in_both_layouts(source: Any, layout: str) -> None:
    reference = timm.create_model(NANO, pretrained=True).eval()
    model = convstem.load(source, layout=layout)
    assert not model.training
    assert type(model).__module__.partition(".")[0] == layout
    x = torch.randn(2, 3, 32, 32)
    assert largest_difference(model, timm.create_model(NANO), x) > 0.1  # negative control
    assert largest_difference(model, reference, x) < 1e-5


def test_load_in_another_type_and_with_another_head() -> None:
    model = convstem.load(NANO, dtype=torch.bfloat16, layout="torchvision", num_classes=3)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.heads.head.out_features == 3


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("vit_b17_convstem", KeyError, "unknown convstem model.*did you mean.*vit_b16_convstem"),
        (f"{NANO}.imagenet", KeyError, "no pretrained tag 'imagenet'; it has cifar10"),
        ("me/nothing", HubError, "switched off.*the cache does not have it: me/nothing"),
        (
            "me/nothing/deep",
            MissingPathError,
            "there is no file or folder me/nothing/deep: load takes .* a Hub repository org/name",
        ),
        (
            "./nofolder",
            MissingPathError,
            "there is no file or folder nofolder: load takes the name of a model, a Hub repository",
        ),
        ("~/nofolder", MissingPathError, "there is no file or folder .*/nofolder"),
        (Path("nofolder"), MissingPathError, "there is no file or folder nofolder"),
        ("x.pth", MissingPathError, "there is no file or folder x.pth: load takes"),
        (
            __file__,
            ArgumentError,
            "is a file, but load takes .* `convstem convert .*test_loading.py --out FOLDER` makes such",
        ),
        ("-me/model", ArgumentError, "a Hub repository is named org/name; got '-me/model'"),
        ("vit_base_patch16_224", UnknownModelError, "a patchify model of timm; on a conv stem it is vit_b16_convstem"),
        ("vit_l16_convstem", HubError, "switched off.*timm/vit_large_patch16_224"),
    ],
)
def test_load_refuses(source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convstem.load(source)


def test_load_refuses_an_incomplete_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match="has no config.json; `convstem convert .* beside a model's weights"):
        convstem.load(tmp_path)
    timm.models.save_for_hf(timm.create_model(NANO), tmp_path, safe_serialization=True)
    assert convstem.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MissingPathError, match="has a config.json, but no model.safetensors"):
        convstem.load(tmp_path)


@pytest.mark.parametrize("layout", ["timm", "torchvision"])
def test_float16_that_cannot_hold_the_weights_is_refused(layout: str, tmp_path: Path) -> None:
    folder = convstem.pull(NANO, out=tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    state["blocks.1.mlp.fc1.weight"][0, 0] = 1e5  # Inf in float16
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ArgumentError, match="1.mlp.fc1.weight became Inf. Load with dtype=torch.bfloat16"):
        convstem.load(folder, dtype="float16", layout=layout)
    for dtype in ("bfloat16", "float32"):
        assert all(p.isfinite().all() for p in convstem.load(folder, dtype=dtype, layout=layout).parameters())
    taken = convstem.load(folder, dtype="float16", layout=layout, allow_nonfinite=True)
    assert not all(p.isfinite().all() for p in taken.parameters())
    assert convstem.load(NANO, dtype="float16", layout=layout).training is False


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_a_file_of_eight_bits_is_looked_through_and_loaded(name: str, tmp_path: Path) -> None:
    folder = convstem.pull(NANO, out=tmp_path / "m")
    kind = getattr(torch, name)
    state = {k: v.to(kind) if v.is_floating_point() else v for k, v in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors")
    assert convstem.verify(folder).ok
    loaded = convstem.load(folder)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.norm.weight, state["norm.weight"].float())
    state["norm.weight"][0] = torch.nan
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InvalidFileError, match="NaN or Inf in norm.weight"):
        convstem.load(folder)


def test_torchvisions_own_way_under_a_default_type(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[Any] = []
    monkeypatch.setattr("convstem.models.torchvision_vit.check_cast", lost.append)
    torchvision.models.get_model("vit_nano_4_convstem", weights="CIFAR10")
    assert [type(model).__name__ for model in lost] == ["VisionTransformer"]


@pytest.mark.parametrize("name", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_load_takes_a_dtype_or_its_name(name: Any) -> None:
    assert {parameter.dtype for parameter in convstem.load(NANO, dtype=name).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["bf16", "int8", torch.int8, "nn"])
def test_load_refuses_another_dtype(name: Any) -> None:
    with pytest.raises(
        ArgumentError, match="dtype must be a floating-point type.*: bfloat16, float16, float32, float64"
    ):
        convstem.load(NANO, dtype=name)


def test_load_refuses_a_model_without_a_stem(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    with pytest.raises(TypeError, match="expected a conv-stem architecture.*vit_tiny_patch16_224.*convstem.transplant"):
        convstem.load(tmp_path)
    with pytest.raises(ValueError, match="layout must be one of timm, torchvision; got 'jax'"):
        convstem.load(NANO, layout="jax")


BY_RULE = """
import sys, timm, torch, convstem
source = timm.create_model("vit_relpos_small_patch16_224", depth=1).eval()
model = convstem.transplant(source)
timm.models.save_for_hf(model, sys.argv[1], safe_serialization=True)
assert timm.is_model(model.pretrained_cfg["architecture"])
again = convstem.load(sys.argv[1])
x = torch.rand(1, 3, 224, 224)
print(float((again(x) - source(x)).detach().norm() / source(x).detach().norm()))
"""


@pytest.mark.full
def test_load_knows_the_names_by_rule(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", BY_RULE, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 5e-6


# ---- bad files -------------------------------------------------------------------------------------------------------


def good_state() -> dict[str, Tensor]:
    return timm.create_model(NANO, pretrained=True).state_dict()


def overlay(path: Path, **kwargs: Any) -> Any:
    return timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **kwargs)


def truncated(path: Path) -> None:
    save_file(good_state(), path)
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


def pickled(path: Path) -> None:
    torch.save(good_state(), path)


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 100 << 30) + b"{}")


def huge_tensor(path: Path) -> None:
    header = json.dumps({"pos_embed": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)


def other_architecture(path: Path) -> None:
    save_file(timm.create_model("vit_xs4_convstem").state_dict(), path)


def missing(path: Path) -> None:
    save_file({k: v for k, v in good_state().items() if not k.startswith("blocks.3.")}, path)


def surplus(path: Path) -> None:
    save_file({**good_state(), "blocks.6.norm1.weight": torch.ones(96)}, path)


def misshapen(path: Path) -> None:
    save_file({**good_state(), "blocks.0.mlp.fc1.weight": torch.ones(5, 96)}, path)


def not_a_number(path: Path) -> None:
    state = good_state()
    state["blocks.2.norm1.bias"][3] = float("nan")
    save_file(state, path)


def infinite(path: Path) -> None:
    state = good_state()
    state["head.weight"][3, 1] = float("inf")
    save_file(state, path)


BAD_FILES = [
    (truncated, ValueError, "is not a valid safetensors file.*truncated, damaged.*fetch it again"),
    (empty, ValueError, "is not a valid safetensors file.*0 bytes"),
    (noise, ValueError, "is not a valid safetensors file"),
    (pickled, ValueError, "pickle named as safetensors.*not opened.*convstem convert`"),
    (huge_header, ValueError, "is not a valid safetensors file"),
    (huge_tensor, ValueError, "is not a valid safetensors file"),
    (other_architecture, CheckpointError, "no place for: blocks.6.*shapes differ: .*file.*model.*another stem"),
    (missing, CheckpointError, r"the file lacks what the model needs: blocks.3.attn.*and \d+ more"),
    (surplus, CheckpointError, "the model has no place for: blocks.6.norm1.weight"),
    (misshapen, CheckpointError, r"shapes differ: blocks.0.mlp.fc1.weight \(file \[5, 96\], model \[192, 96\]\)"),
    (not_a_number, ValueError, "holds NaN or Inf in blocks.2.norm1.bias.*allow_nonfinite=True"),
    (infinite, ValueError, "holds NaN or Inf in head.weight"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD_FILES, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_files_are_one_clear_error_and_the_next_good_file_loads(
    make: Callable[[Path], None], error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    make(path)
    for arguments in ({}, {"num_classes": 3}):  # a new head must not make the check of other keys lenient
        if make is infinite and arguments:
            continue
        with pytest.raises(error, match=message):
            overlay(path, **arguments)
    path.unlink()
    save_file(good_state(), path)
    assert same(bits(overlay(path)), good_state())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        overlay(tmp_path / "nothing.safetensors")


def test_not_finite_weights_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    not_a_number(tmp_path / "model.safetensors")
    cfg = {"num_classes": 10, "input_size": [3, 32, 32]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": NANO, "pretrained_cfg": cfg}))
    with pytest.raises(ValueError, match="NaN or Inf"):
        convstem.load(tmp_path)
    assert convstem.load(tmp_path, allow_nonfinite=True).blocks[2].norm1.bias.isnan().any()
    with pytest.raises(ValueError, match="NaN or Inf"):
        convstem.load(tmp_path)
    monkeypatch.setenv("CONVSTEM_ALLOW_NONFINITE", "1")
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).blocks[2].norm1.bias.isnan().any()


# One timm model of every kind that can be transplanted: own classes, buffers that are not in the file, rope,
# relative positions, registers, distillation, class-attention, windows, mixers.
KINDS = [
    "beit_base_patch16_224",
    "cait_s24_224",
    "convit_tiny",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "eva02_base_patch16_clip_224",
    "mixer_s16_224",
    "samvit_base_patch16",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_rope_224",
    "vit_base_patch16_siglip_224",
    "vit_relpos_small_patch16_224",
    "vit_small_patch16_dinov3",
    "vit_so400m_patch16_siglip_256",
]


@pytest.mark.full
@pytest.mark.parametrize("trunk", KINDS)
def test_every_kind_of_timm_trunk_loads_the_same_bits(
    trunk: str, hub_file: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm.models import PretrainedCfg

    from convstem.models.timm_models import create_timm_model

    depth: dict[str, Any] = {} if trunk.startswith("mixer") else {"depth": 1}
    if trunk.startswith("samvit"):
        depth["global_attn_indexes"] = (0,)
    source: Any = randomise(timm.create_model(trunk, **depth)).eval()
    hub_file(f"me/{trunk}", source.state_dict())
    cfg = PretrainedCfg(**{**source.pretrained_cfg, "hf_hub_id": f"me/{trunk}", "url": None, "hf_hub_filename": None})
    cfg.custom_load = False
    build: dict[str, Any] = dict(pretrained=True, pretrained_cfg=cfg, **depth)
    fast = create_timm_model(f"{trunk}_convstem", **build)
    fresh = create_timm_model(f"{trunk}_convstem", num_classes=source.num_classes, **depth)
    monkeypatch.setattr(timm_loading, "DeferredInit", lambda adopt: contextlib.nullcontext())
    slow = create_timm_model(f"{trunk}_convstem", **build)
    assert same(bits(fast), bits(slow))
    assert not same(bits(fresh), bits(slow))  # negative control
    x = 0.5 * torch.rand(1, *source.pretrained_cfg["input_size"])
    with torch.no_grad():
        assert relative_error(fast.eval()(x), source(x)) < 2e-5
