"""The hosts' private names are used in one file only, and work as expected."""

import ast
from pathlib import Path
from typing import Any

import pytest
import timm
import torchvision
from torch import nn

from convstem import upstream as private

ROOT = Path(__file__).parents[2]
LIBRARIES = ("huggingface_hub", "timm", "torchvision")
HOME = "src/convstem/upstream.py"


def private_imports(code: str) -> list[str]:
    """Return the libraries' private names that a code imports."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    named = [name for name in found if name.split(".")[0] in LIBRARIES]
    return [name for name in named if any(part.startswith("_") for part in name.split("."))]


def test_private_imports_are_found() -> None:
    code = "from timm.models import _registry, is_model\nimport torchvision.models._api\nimport _timm, timm"
    assert private_imports(code) == ["timm.models._registry", "torchvision.models._api"]
    assert len(private_imports((ROOT / HOME).read_text(encoding="utf-8"))) > 5


def test_private_names_are_imported_in_one_file() -> None:
    folders = ("src", "tools", "experiments", "benchmarks")
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if path != ROOT / HOME)
    found = {str(path.relative_to(ROOT)): private_imports(path.read_text(encoding="utf-8")) for path in paths}
    assert {path: names for path, names in found.items() if names} == {}


def test_every_private_name_has_a_reason_and_a_replacement() -> None:
    functions = [
        node for node in ast.parse((ROOT / HOME).read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)
    ]
    assert len(functions) > 5
    for function in functions:
        text = ast.get_docstring(function) or ""
        assert ("Why: " in text and "Replacement: " in text) or "see ``" in text, function.name


def test_cfgs_are_timms() -> None:
    name = "vit_base_patch16_224"
    assert dict(private.timm_cfgs(name)) == timm.models.get_arch_pretrained_cfgs(name)
    assert private.timm_cfgs("nosuchmodel") == {}


def vit_of_a_test(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return nn.Identity()


def test_what_is_registered_can_be_withdrawn() -> None:
    timm.models.register_model(vit_of_a_test)
    private.torchvision_register("vit_of_a_test", vit_of_a_test)
    assert timm.is_model("vit_of_a_test")
    assert "vit_of_a_test" in torchvision.models.list_models()
    private.timm_unregister("vit_of_a_test")
    private.torchvision_unregister("vit_of_a_test")
    assert not timm.is_model("vit_of_a_test")
    assert "vit_of_a_test" not in timm.list_models(module="test_private")
    assert "vit_of_a_test" not in torchvision.models.list_models()


def test_metadata_arrives_or_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    private.timm_set_metadata(model, {"stem_act": "relu"}, first_conv="patch_embed.backbone.0.conv")
    assert timm.models.get_model_args(model)["stem_act"] == "relu"
    assert timm.models.get_model_args(model)["depth"] == 1  # earlier values stay
    assert timm.models.get_model_traits(model)["first_conv"] == "patch_embed.backbone.0.conv"
    monkeypatch.setattr("timm.models.get_model_traits", lambda model: {})
    with pytest.raises(RuntimeError, match="timm does not report first_conv of the model as it was set"):
        private.timm_set_metadata(model, {}, first_conv="patch_embed.backbone.0.conv")


def test_the_feature_getter_is_what_timm_builds() -> None:
    model = timm.create_model("vit_nano4_convstem", features_only=True)
    assert isinstance(model, private.timm_feature_getter())
    assert not isinstance(timm.create_model("vit_nano4_convstem"), private.timm_feature_getter())
