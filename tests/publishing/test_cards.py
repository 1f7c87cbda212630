# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""Model cards: metadata that the Hub accepts, examples that run, and files that are up to date."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard

from convstem.cli.main import main
from convstem.errors import ArgumentError
from convstem.publishing.card import card_of, evaluation, render
from convstem.publishing.card_facts import facts_of_entry
from convstem.publishing.folder import finish
from convstem.publishing.push import stage
from convstem.registry import catalog
from convstem.registry.tables import rows
from tests.support.assertions import randomise
from tests.support.hub_server import Client, HubServer
from tests.support.hub_server.fixtures import client, hub, server  # noqa: F401
from tools import cards

NANO = "vit_nano4_convstem.cifar10"


def test_checked_in_cards_are_up_to_date() -> None:
    assert cards.main(["--check"]) == 0


def test_a_changed_missing_or_surplus_card_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cards, "FOLDER", tmp_path)
    assert cards.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert f"{NANO}.md" in said
    assert said.startswith("out of date: ")
    assert said.endswith("; run python -m tools.cards\n")
    assert cards.main([]) == 0
    assert cards.main(["--check"]) == 0
    (tmp_path / "old.md").write_text("x")
    assert cards.main(["--check"]) == 1
    assert cards.main([]) == 0
    ours = [name for name, row in rows("weights").items() if row.get("transform") != "convert"]
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.md" for name in ours}


@pytest.mark.parametrize("name", catalog.weights())
def test_every_weights_entry_has_a_card_with_valid_metadata(name: str) -> None:
    text, entry = card_of(name), catalog.weights()[name]
    data = ModelCard(text).data
    assert data.license == entry.license
    assert data.library_name == "timm"
    assert {"convstem", "vit"} <= set(data.tags)
    assert "$" not in text
    if entry.transform == "transplant":
        assert data.base_model == entry.hub_name[0]
        assert data.base_model_relation == "finetune"
        assert "**function preserved, not trained further**" in text
        inputs = "pixels in range" if "32_convstem" in name else "every input"
        assert f"The transplant is exact for {inputs}" in text


def test_metrics_have_a_source() -> None:
    assert ModelCard(card_of(NANO)).data.eval_results[0].source_url is None  # it is not on the Hub yet
    (result,) = ModelCard(render(facts_of_entry(catalog.weights()[NANO], "org/x"))).data.eval_results
    measured = catalog.weights()[NANO].metrics["acc@1"]
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("CIFAR-10", "accuracy", measured)
    assert result.source_name == "python -m tools.embed_weights, on the 10,000 test images"


def test_the_hub_gets_the_first_choice_among_metrics() -> None:
    facts = replace(facts_of_entry(catalog.weights()[NANO], "org/x"), metrics={"a": 3.0, "acc@5": 97.5, "acc@1": 81.0})
    (entry,) = yaml.safe_load(evaluation(facts))
    assert list(entry) == ["dataset", "value", "source", "notes"]
    assert entry["value"] == 81.0
    assert entry["notes"].startswith("acc@1; a 3; acc@5 97.5; ")


def test_the_measured_error_of_a_transplant_is_in_its_card() -> None:
    text = render(facts_of_entry(catalog.weights()["vit_b16_convstem.mae"], "org/x", measured_error=1.5e-6))
    assert "1.5e-06" in text
    assert "1.5e-06" not in card_of("vit_b16_convstem.mae")
    assert "license: cc-by-nc-4.0" in text


def test_the_card_of_a_name_by_rule_needs_no_registration() -> None:
    facts = replace(facts_of_entry(catalog.weights()[NANO]), architecture="vit_relpos_small_patch16_224_convstem")
    text = render(facts)
    code, *_ = re.search(r"```python\n(.*?)model = ", text, re.DOTALL).groups()
    assert "convstem" not in code
    assert timm.is_model(facts.architecture)
    assert "register" not in text


def test_weights_that_were_trained_since_are_not_called_a_transplant() -> None:
    facts = facts_of_entry(catalog.weights()["vit_b16_convstem.mae"])
    for transplanted, words in ((True, "not trained further"), (False, "Made from timm/vit_base_patch16_224.mae.")):
        text = render(replace(facts, transplanted=transplanted, description="Fine-tuned."))
        assert words in text
        assert ("transplant" in ModelCard(text).data.tags) is transplanted
    assert "not trained further" not in text


def test_the_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", card_of(NANO), re.DOTALL)
    names: list[dict[str, Any]] = [{}, {}]
    for block, scope in zip(blocks, names, strict=True):
        exec(block, scope)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(names[0]["model"](x), names[1]["model"](x), atol=1e-5, rtol=1e-5)


def test_command() -> None:
    result = CliRunner().invoke(main, ["card", "vit_b16_convstem"])
    assert result.exit_code == 0
    assert result.output == card_of("vit_b16_convstem.augreg2_in21k_ft_in1k")
    result = CliRunner().invoke(main, ["card", "vit_b16_convstem.x"])
    assert result.exit_code == 1
    assert "vit_b16_convstem has no pretrained tag 'x'; it has augreg2_in21k_ft_in1k, " in result.output


RUN_CARD = r"""
import re, torch
from convstem.publishing.card import card_of
card, models = card_of("org/mine"), []
for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
    scope = {}
    exec(block, scope)
    models.append(scope["model"])
from transformers import AutoModelForImageClassification
models.append(eval(re.search(r"In transformers: `(.*?)`", card)[1]).eval())
x = torch.rand(1, 3, 32, 32)
with torch.no_grad():
    timms, torchvisions, theirs = (model(x) for model in models)
assert len(set(map(type, models))) == 3
torch.testing.assert_close(timms, torchvisions, atol=1e-5, rtol=1e-5)
torch.testing.assert_close(timms, theirs.logits, atol=1e-5, rtol=1e-5)
result = card
"""


@pytest.mark.full
@pytest.mark.parametrize("norm", ["batchnorm2d", "none"])
def test_the_card_of_a_repository_of_ones_own_says_how_each_host_loads_it(
    norm: str, hub: HubServer, client: Client, tmp_path: Path
) -> None:
    model = randomise(timm.create_model("vit_nano4_convstem", num_classes=3, stem_norm=norm))
    stage(model, tmp_path)
    finish(tmp_path, "mit")
    hub.store.create("org/mine")
    hub.store.commit("org/mine", "main", {path.name: path.read_bytes() for path in tmp_path.iterdir()})
    outcome = client(RUN_CARD)
    assert outcome.error is None, outcome.output
    assert ModelCard(outcome.value).data.license == "mit"
    assert ("has BatchNorm" in outcome.value) is (norm == "batchnorm2d")


def test_the_card_of_a_folder_says_so_too(tmp_path: Path) -> None:
    stage(randomise(timm.create_model("vit_nano4_convstem", stem_norm="none")), tmp_path)
    result = CliRunner().invoke(main, ["card", str(tmp_path), "--license", "mit"])
    assert result.exit_code == 0, result.output
    loads = ('"local-dir:.", pretrained=True', 'load(".", layout="torchvision")', 'from_pretrained(".")')
    assert all(line in result.output for line in loads)
    stage(randomise(timm.create_model("vit_nano4_convstem", stem_norm="layernorm2d")), tmp_path)
    result = CliRunner().invoke(main, ["card", str(tmp_path), "--license", "mit"])
    assert "torchvision's VisionTransformer cannot express this model; use timm." in result.output


def test_the_card_of_a_transplant_knows_torchvision_and_the_accuracy_of_the_source() -> None:
    text = card_of("vit_b16_convstem")
    assert 'get_model("vit_b_16_convstem", weights="AUGREG2_IN21K_FT_IN1K")' in text
    assert "Same as timm/vit_base_patch16_224.augreg2_in21k_ft_in1k: acc@1 85.108 %, acc@5 97.53 % on Imag" in text
    assert "; not measured again." in text
    assert ModelCard(text).data.eval_results is None


def test_another_licence_than_the_registrys_is_refused() -> None:
    assert "license: apache-2.0" in card_of("vit_nano4_convstem", "apache-2.0")
    with pytest.raises(ArgumentError, match="are under apache-2.0, as the registry states"):
        card_of("vit_nano4_convstem", "mit")


def test_figures_in_the_form_that_the_hub_reads_beside_the_card() -> None:
    facts = replace(facts_of_entry(catalog.weights()["vit_nano4_convstem.cifar10"]), repo_id="me/nano")
    (entry,) = yaml.safe_load(evaluation(facts))
    assert entry["dataset"] == {"id": "uoft-cs/cifar10", "task_id": "default"}
    assert entry["value"] == facts.metrics["acc@1"]
    assert entry["notes"].startswith("acc@1; ")
    (own,) = yaml.safe_load(evaluation(replace(facts, dataset="me/leaves", metrics={"f1": 0.5})))
    assert (own["dataset"]["id"], own["value"]) == ("me/leaves", 0.5)
    lacking: list[dict[str, Any]] = [{"metrics": {}}, {"dataset": "my photos"}, {"repo_id": None}]
    for nothing in lacking:
        assert evaluation(replace(facts, **nothing)) == ""
