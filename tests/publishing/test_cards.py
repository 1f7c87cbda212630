"""Model cards: metadata that the Hub accepts, examples that run, and files that are up to date."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard

from convstem.cli.main import main
from convstem.publishing.cards.facts import facts_of_entry
from convstem.publishing.cards.render import card_of, render
from convstem.registry import catalog
from tests.support.processes import python
from tools import cards

NANO = "vit_nano4_convstem.cifar10"


def test_checked_in_cards_are_up_to_date() -> None:
    assert cards.main(["--check"]) == 0


def test_a_changed_missing_or_surplus_card_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cards, "FOLDER", tmp_path)
    assert cards.main(["--check"]) == 1
    assert f"out of date: {NANO}.md; run python -m tools.cards" in capsys.readouterr().out
    assert cards.main([]) == 0
    assert cards.main(["--check"]) == 0
    (tmp_path / "old.md").write_text("x")
    assert cards.main(["--check"]) == 1
    assert cards.main([]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"{NANO}.md"]


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
        assert f"The stem is exact for {inputs}." in text


def test_metrics_have_a_source() -> None:
    assert ModelCard(card_of(NANO)).data.eval_results[0].source_url is None  # it lies nowhere on the Hub yet
    (result,) = ModelCard(render(facts_of_entry(catalog.weights()[NANO], "org/x"))).data.eval_results
    measured = catalog.weights()[NANO].metrics["acc@1"]
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("CIFAR-10", "accuracy", measured)
    assert result.source_name == "python -m tools.embed_weights, on the 10,000 test images"


def test_the_measured_error_of_a_transplant_is_in_its_card() -> None:
    text = render(facts_of_entry(catalog.weights()["vit_b16_convstem.mae"], "org/x", measured_error=1.5e-6))
    assert "1.5e-06" in text
    assert "1.5e-06" not in card_of("vit_b16_convstem.mae")
    assert "license: cc-by-nc-4.0" in text


def test_the_card_of_a_name_by_rule_needs_no_registration() -> None:
    facts = replace(facts_of_entry(catalog.weights()[NANO]), architecture="vit_relpos_small_patch16_224_convstem")
    text = render(facts)
    code, *_ = re.search(r"```python\n(.*?)model = ", text, re.DOTALL).groups()
    python(f"{code}\nassert timm.is_model({facts.architecture!r})")
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
