"""Our Muon equals timm's except for the order and precision of its products."""

import copy
from dataclasses import replace

import pytest
import timm
import torch
from timm.optim import Muon, param_groups_weight_decay
from torch import Tensor, nn

from experiments.cifar10 import models, optimizer
from experiments.cifar10.settings import Settings

SETTINGS = Settings(model_kwargs={"embed_dim": 24, "depth": 2, "stem_channels": (8, 16)})


def trained(model: nn.Module, update: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the parameters after three steps on given gradients."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        update.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("nesterov", [False, True])
def test_stacked_muon_is_timms_muon(nesterov: bool) -> None:
    start = models.create(SETTINGS)
    arguments = {"lr": 0.01, "momentum": 0.9, "nesterov": nesterov}
    kinds = {"timm's": lambda groups: Muon(groups, ns_coefficients=optimizer.COEFFICIENTS, **arguments),
             "ours": lambda groups: optimizer.StackedMuon(groups, torch.bfloat16, **arguments),
             "float32": lambda groups: optimizer.StackedMuon(groups, **arguments)}  # fmt: skip
    found = {}
    for name, build in kinds.items():
        model = copy.deepcopy(start)
        groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
        found[name] = trained(model, build(groups))
    for name, parameter in start.named_parameters():
        before = parameter.detach()
        expected = found["timm's"][name] - before
        assert float(expected.norm()) > 0
        for kind, bound in {"ours": 0.01, "float32": 0.05}.items():  # bfloat16 has three digits
            error = float((found[kind][name] - before - expected).norm() / expected.norm())
            assert error <= (bound if before.ndim > 1 and min(before.shape[:2]) > 1 else 0), (kind, name)


def test_muon_exempts_from_weight_decay_what_timm_exempts() -> None:
    model = models.create(SETTINGS)
    theirs = timm.optim.create_optimizer_v2(model, "muon", lr=0.01, weight_decay=0.05)
    ours = optimizer.create(model, SETTINGS)
    assert isinstance(ours, optimizer.StackedMuon)
    for group, expected in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert group["weight_decay"] == expected["weight_decay"]
        assert len(group["params"]) == len(expected["params"])
        assert all(a is b for a, b in zip(group["params"], expected["params"], strict=True))


def test_other_optimizers_are_timms() -> None:
    assert isinstance(optimizer.create(models.create(SETTINGS), replace(SETTINGS, opt="adamw")), torch.optim.AdamW)


def test_layer_decay_slows_the_stem_most_and_is_timms() -> None:
    model = models.create(SETTINGS)
    stem = {id(parameter) for parameter in model.patch_embed.parameters()}

    def scales(layer_decay: float) -> set[float]:
        found = optimizer.create(model, replace(SETTINGS, opt="sgd", layer_decay=layer_decay))
        groups = [group for group in found.param_groups if {id(parameter) for parameter in group["params"]} & stem]
        return {group.get("lr_scale", 1.0) for group in groups}

    assert scales(0.0) == {1.0}
    assert scales(0.5) == {0.5**3}  # stem, two blocks, head
    with pytest.raises(ValueError, match="layer_decay needs a timm optimizer, such as adamw or sgd"):
        replace(SETTINGS, layer_decay=0.5)
