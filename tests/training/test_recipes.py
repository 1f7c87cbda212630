"""The recipes are valid: every key is an argument of its script, every model builds, every script runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import yaml

from tests.support.script_runs import Scripts, read_checkpoint

RECIPES = Path(__file__).parents[2] / "recipes"
README = (RECIPES / "README.md").read_text(encoding="utf-8")
CONFIGS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RECIPES.glob("*.yaml"))}

LINES = README.replace("\\\n", " ").splitlines()
COMMANDS = [shlex.split(line) for line in LINES if re.match(r"(python|torchrun) .*train\.py --", line)]
TIMM_COMMANDS = [command for command in COMMANDS if "--config" in command]
TORCHVISION_COMMANDS = [command for command in COMMANDS if "--data-path" in command]

# Run beside train.py: prints keys of a YAML file that are not its arguments, and values of another type.
CHECK_CONFIG = """
import sys, train, yaml
config = yaml.safe_load(open(sys.argv[1]))
actions = {action.dest: action for action in train.parser._actions}
wrong = [key for key in config if key not in actions]
for key in set(config) - set(wrong):
    kind, value = actions[key].type, config[key]
    values = value if isinstance(value, list) else [value]
    if kind and value is not None and any(kind(str(item)) != item for item in values):
        wrong.append(key)
print("wrong keys:", sorted(wrong))
"""


@pytest.mark.parametrize("name", CONFIGS)
def test_a_recipes_model_builds_with_its_stem(name: str) -> None:
    config = CONFIGS[name]
    kwargs = {key: config[key] for key in ("num_classes", "in_chans") if key in config}
    with torch.device("meta"):
        model = timm.create_model(config["model"], **kwargs, **config.get("model_kwargs") or {})
    assert config.get("layer_decay") is None or hasattr(model, "group_matcher")


def test_pretrained_recipes_name_models_with_weights() -> None:
    names = {config["model"] for config in CONFIGS.values() if config.get("pretrained")}
    assert names
    assert names <= set(timm.list_models(pretrained=False))
    assert all(timm.is_model_pretrained(name) for name in names)


@pytest.mark.parametrize("path", sorted(RECIPES.iterdir()), ids=lambda path: path.name)
def test_the_index_names_every_recipe(path: Path) -> None:
    if path.suffix in (".py", ".yaml"):
        assert f"`{path.name}`" in README


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(path: Path) -> None:
    assert (RECIPES / path).exists()


@pytest.mark.parametrize("command", TORCHVISION_COMMANDS, ids=lambda command: command[command.index("--model") + 1])
def test_torchvision_commands_name_real_models_and_weights(command: Any) -> None:
    builder = torchvision.models.get_model_builder(command[command.index("--model") + 1])
    if "--weights" in command:
        enum, member = command[command.index("--weights") + 1].split(".")
        assert hasattr(torchvision.models.get_model_weights(builder), member)
        assert torchvision.models.get_model_weights(builder).__name__ == enum


@pytest.mark.full
@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_is_an_argument_of_train_py(timm_scripts: Scripts, name: str) -> None:
    assert timm_scripts.run("", RECIPES / f"{name}.yaml", code=CHECK_CONFIG).endswith("wrong keys: []\n")


@pytest.mark.full
def test_a_wrong_key_or_type_is_found(timm_scripts: Scripts, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("mixupp: 0.8\nlr: '1e-3'\nepochs: 3\nlr_noise: [0.1]\n")
    printed = timm_scripts.run("", tmp_path / "wrong.yaml", code=CHECK_CONFIG)
    assert printed.endswith("wrong keys: ['lr', 'mixupp']\n")


@pytest.mark.full
@pytest.mark.parametrize("name", CONFIGS)
def test_every_recipe_trains_the_small_model(timm_scripts: Scripts, name: str) -> None:
    """The recipe is unchanged except for model, data, device and length."""
    small = "--model vit_nano4_convstem --num-classes 10 --device cpu --workers 0 --batch-size 20 --epochs 1"
    where = ["--config", RECIPES / f"{name}.yaml", "--data-dir", timm_scripts.images, "--output", timm_scripts.out]
    timm_scripts.run("train.py", *where, "--experiment", name, *small.split(), "--warmup-epochs", 0)
    saved = read_checkpoint(timm_scripts.out / name / "last.pth.tar")
    assert all(torch.isfinite(tensor).all() for tensor in saved["state_dict"].values())
    assert ("state_dict_ema" in saved) == bool(CONFIGS[name].get("model_ema"))


def flags_of(command: Any) -> list[str]:
    return command[next(index for index, word in enumerate(command) if word.endswith("train.py")) + 1 :]


@pytest.mark.full
def test_the_commands_for_timm_parse(timm_scripts: Scripts) -> None:
    assert TIMM_COMMANDS
    for command in TIMM_COMMANDS:
        flags = [word.replace("recipes/", f"{RECIPES}{os.sep}") for word in flags_of(command)]
        timm_scripts.run("", *flags, code="import train; train._parse_args()")
    timm_scripts.run("", "--no-such-flag", code="import train; train._parse_args()", fails=True)


@pytest.mark.full
def test_the_commands_for_torchvision_parse(torchvision_scripts: Scripts) -> None:
    parse = "import train; train.get_args_parser().parse_args()"
    assert len(TORCHVISION_COMMANDS) == 4
    for command in TORCHVISION_COMMANDS:
        torchvision_scripts.run("", *flags_of(command), code=parse)
    torchvision_scripts.run("", "--no-such-flag", code=parse, fails=True)


@pytest.mark.full
def test_the_papers_table_counts_what_the_paper_counts() -> None:
    command = [sys.executable, "-m", "experiments.paper_table"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=RECIPES.parent).stdout
    for size, params in {"1GF": "4,567,936", "4GF": "17,754,136", "18GF": "81,573,160", "36GF": "167,796,008"}.items():
        assert re.search(rf"ViT_C-{size} .* {params}\n", printed)
    assert re.search(r"ViT_P-18GF +17\.5 +17\.56 +86\.6 +86,567,656\n", printed)
    assert "not trained here" in printed
