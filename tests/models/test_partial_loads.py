"""``load_state_dict(strict=False)`` with part of a checkpoint: our models accept what a plain ViT accepts."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tests.support.assertions import randomise
from tests.support.everyday import one_in

State = dict[str, Tensor]

HOSTS: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: timm.create_model("vit_nano4_convstem", num_classes=3, stem_norm="batchnorm2d"),
    "timm, no norm": lambda: timm.create_model("vit_nano4_convstem", num_classes=3, stem_norm="none"),
    "timm, layer norm": lambda: timm.create_model("vit_s16_cvst", depth=1, num_classes=3),
    "timm, fixed positions": lambda: timm.create_model("vit_conv_small", depth=1, num_classes=3),
    "torchvision": lambda: torchvision.models.get_model("vit_nano_4_convstem", num_classes=3),
}

PARTS: dict[str, Callable[[State], State]] = {
    "nothing": lambda state: {},
    "a head": lambda state: {key: value for key, value in state.items() if key.startswith("head")},
    "biases": lambda state: {key: value for key, value in state.items() if key.endswith("bias")},
    "without statistics": lambda state: {key: value for key, value in state.items() if "running" not in key},
    "convolutions": lambda state: {key: value for key, value in state.items() if value.ndim == 4},
    "the first half": lambda state: dict(list(state.items())[: len(state) // 2]),
    "every third": lambda state: dict(list(state.items())[::3]),
    "a projector": lambda state: {"projector.0.weight": torch.ones(3, 3), "projector.0.bias": torch.ones(3)},
    "another wrapping": lambda state: {f"backbone.{key}": value for key, value in state.items()},
}


@pytest.mark.parametrize(("host", "part"), one_in(2, [(host, part) for host in HOSTS for part in PARTS]))
def test_a_part_of_a_checkpoint_is_taken(host: str, part: str) -> None:
    model, source = HOSTS[host](), randomise(HOSTS[host](), seed=3).state_dict()
    given = PARTS[part](source)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = model.load_state_dict(dict(given), strict=False)
    assert set(result.unexpected_keys) == set(given) - set(source)
    assert set(result.missing_keys) >= {key for key in set(source) - set(given) if "num_batches" not in key}
    for key, value in model.state_dict().items():
        assert torch.equal(value, given.get(key, before[key])), key


@pytest.mark.parametrize("host", HOSTS)
def test_every_key_alone(host: str) -> None:
    model = HOSTS[host]()
    for key, value in model.state_dict().items():
        assert model.load_state_dict({key: value}, strict=False).unexpected_keys == []


def test_a_tool_may_wrap_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    own, model = nn.Module.load_state_dict, HOSTS["timm"]()
    head = PARTS["a head"](model.state_dict())
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *args, **kwargs: own(*args, **kwargs))
    assert model.load_state_dict(head, strict=False).unexpected_keys == []
    with pytest.raises(RuntimeError, match=r"Missing key.*cls_token"):
        model.load_state_dict(head)


def test_strictly_a_part_is_refused_as_ever() -> None:
    model = HOSTS["timm"]()
    with pytest.raises(RuntimeError, match=r"Missing key.*cls_token"):
        model.load_state_dict(PARTS["a head"](model.state_dict()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: {"head.weight": torch.ones(5, 3)}, "size mismatch for head.weight"),
        (lambda state: {"patch_embed.proj.weight": torch.ones(5, 3, 4, 4)}, "embeds 4x4 patches directly"),
        (
            lambda state: {"patch_embed.backbone.0.conv.weight": torch.ones(5, 3, 3, 3)},
            "this checkpoint has another st",
        ),
        (lambda state: {"norm.weight": state["norm.weight"].to(torch.int8)}, "holds integers where"),
    ],
    ids=["head", "patches", "stem", "integers"],
)
def test_what_cannot_fit_is_said(spoil: Callable[[State], Any], message: str) -> None:
    model = HOSTS["timm"]()
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(spoil(model.state_dict()), strict=False)
