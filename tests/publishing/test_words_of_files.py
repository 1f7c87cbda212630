"""Text from a file or the Hub is shown, never interpreted, by the terminal, markdown and YAML."""

import argparse
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import convstem
from convstem.cli.main import main
from convstem.errors import ArgumentError, ConvStemError, HubError, InvalidFileError, printable
from convstem.hub.config import TUNED, Step, record, steps
from convstem.hub.repo_cache import Listed, Listing, check_present
from convstem.hub.source import resolve
from convstem.publishing.card import card_of
from convstem.publishing.card_facts import code, plain
from convstem.publishing.derived import fold_to_folder
from convstem.publishing.push import stage, write_card
from convstem.registry.licenses import license_of_card
from tests.support.everyday import mostly_in_ci

NANO = "vit_nano4_convstem"
ESCAPE = "\x1b[1A\x1b[2K\r\nok      forged \x9b31m\x07\x7f\u202e\u2028"
"""Moves up a line and clears it, starts a new line, rings the bell, and reverses text."""


def obeyed(text: str) -> list[str]:
    """Return the control characters in a text, and the lines forged by a file."""
    forged = [line for line in text.splitlines() if line.startswith("ok      forged")]
    return [character for character in text if character not in "\n\t" and printable(character) != character] + forged


def test_what_a_terminal_would_obey_is_seen_and_escaped() -> None:
    assert len(obeyed(ESCAPE)) > 6  # negative control
    assert obeyed(printable(ESCAPE)) == []
    assert printable("Größe 木, 3 → 4\t", lines=True) == "Größe 木, 3 → 4\t"
    assert printable("a\nb\tc") == "a\\nb\\tc"
    assert printable("\udce9") == "\\udce9"  # from a path that is not UTF-8
    assert obeyed(str(InvalidFileError(ESCAPE))) == []


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convstem.pull(NANO, out=tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "m"))


def run(*arguments: Any) -> str:
    """Return a command's whole output."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.output


def put(place: str, name: str, value: Any, config: dict[str, Any]) -> None:
    (config.setdefault(place, {}) if place else config)[name] = value


def texts(config: dict[str, Any]) -> Iterator[tuple[str, Callable[[dict[str, Any]], None]]]:
    """Yield a change for every name and every value of a config."""
    for place in ("", "pretrained_cfg", "model_args"):
        table = config.get(place, {}) if place else config
        yield f"{place} name", partial(put, place, ESCAPE, ESCAPE)
        for name in (*table, "label_names", "notes", "description", "license", "stem_norm", "act_layer", "url"):
            yield f"{place} {name}", partial(put, place, name, ESCAPE)
            yield f"{place} {name} in a list", partial(put, place, name, [ESCAPE] * 10)


@pytest.mark.parametrize("part", mostly_in_ci(range(4), {0}))
def test_every_field_of_a_config(folder: Path, part: int) -> None:
    path = folder / "config.json"
    before = path.read_text()
    seen = 0
    for name, change in list(texts(json.loads(before)))[part::4]:
        config = json.loads(before)
        change(config)
        path.write_text(json.dumps(config))
        for command in (("verify", folder), ("card", folder, "--license", "mit")):
            said = run(*command)
            assert obeyed(said) == [], (name, command[0])
            seen += "forged" in said
        if name in ("pretrained_cfg name", "model_args name"):
            with pytest.raises(ConvStemError) as caught:
                convstem.load(folder)
            assert "forged" in str(caught.value)
            assert obeyed(str(caught.value)) == []
    assert seen > 5  # the text did reach the output


def test_names_of_tensors_and_files(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({**state, ESCAPE: torch.ones(1)}, folder / "model.safetensors", metadata={ESCAPE: ESCAPE})
    odd = tmp_path / ESCAPE
    odd.mkdir()
    torch.save({**state, ESCAPE: torch.ones(1)}, odd / f"{ESCAPE}.pth")
    for command in (
        ("verify", folder),
        ("convert", folder, "--out", tmp_path / "out"),
        ("convert", odd / f"{ESCAPE}.pth", "--out", tmp_path / "out"),
        ("convert", odd / "none.pth", "--out", tmp_path / "out"),
        ("verify", odd),
        ("card", odd),
        ("show", ESCAPE),
        ("card", ESCAPE),
        ("push", odd, "a/b", "--license", "mit", "--dry-run"),
        ("push", odd / f"{ESCAPE}.pth", "a/b", "--license", "mit", "--dry-run"),
        ("pull", NANO, "--out", odd / "m"),
        ("transplant", odd, "--out", tmp_path / "out"),
    ):
        said = run(*command)
        assert "forged" in said, command
        assert obeyed(said) == [], command


def test_a_checkpoint(tmp_path: Path) -> None:
    state = timm.create_model(NANO).state_dict()
    good = {"arch": NANO, "state_dict": state, "args": argparse.Namespace(model=NANO)}
    for change in (
        {"arch": ESCAPE},
        {"arch": f"hf-hub:{ESCAPE}"},
        {"arch": f"local-dir:{ESCAPE}"},
        {"state_dict": {**state, ESCAPE: torch.ones(1)}},
        {"state_dict": {**state, ESCAPE: ESCAPE}},
        {"args": argparse.Namespace(model_kwargs={ESCAPE: ESCAPE})},
        {"args": argparse.Namespace(mean=ESCAPE)},
        {"args": argparse.Namespace(img_size=ESCAPE)},
    ):
        torch.save({**good, **change}, tmp_path / "c.pth")
        said = run("push", tmp_path / "c.pth", "a/b", "--license", "mit", "--dry-run")
        assert said.startswith("Error: "), change
        assert obeyed(said) == [], change


def test_a_repository_with_pickles_alone_names_the_way() -> None:
    listing = Listing("0" * 40, {"b.bin": Listed(1), "a.pth": Listed(1)})
    said = r"org/m has no model.safetensors, only pickled weights \(a.pth, b.bin\).*run `convstem convert a.pth --out"
    with pytest.raises(HubError, match=said):
        check_present("org/m", listing, "model.safetensors")
    check_present("org/m", listing, "b.bin")


def test_names_of_a_repository() -> None:
    listing = Listing("0" * 40, {ESCAPE: Listed(1)})
    with pytest.raises(HubError) as caught:
        check_present("org/m", listing, "model.safetensors")
    assert "forged" in str(caught.value)
    assert obeyed(str(caught.value)) == []


@pytest.mark.parametrize("field", ["license", "license_name", "other"])
def test_a_card(field: str, folder: Path) -> None:
    stated = {"license": "other", field: ESCAPE} if field == "license_name" else {field: ESCAPE}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(stated)}---\n{ESCAPE}\n", encoding="utf-8", newline="")
    for command in (("verify", folder), ("card", folder), ("push", folder, "a/b", "--license", "mit", "--dry-run")):
        assert obeyed(run(*command)) == [], command


MARKDOWN = "x\n---\nlicense: mit\n---\n# Owned\n![a](http://b) <img src=c> | d | `e` [f](g)\n\n1. h"


def test_words_become_text() -> None:
    assert plain("# a\n\n## b") == "\\# a ## b"
    assert plain("1. a") == "1\\. a"
    assert plain("a_b-c 3.5") == "a_b-c 3.5"
    assert plain("![a](b) <c> `d` |") == "!\\[a\\](b) \\<c\\> \\`d\\` \\|"
    assert code("a`\n# b") == "`a # b`"


def test_a_sources_words_never_become_our_cards_structure(folder: Path, tmp_path: Path) -> None:
    """A source's description is shown literally. Its licence and notes count only in their exact format."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    notes = [f"convstem: made from {MARKDOWN}", "convstem: made from org/a/b", "convstem: fine-tuned from org/m@0123"]
    config["pretrained_cfg"] |= {"description": MARKDOWN, "notes": notes, "license": "mit\nlicense_name: owned"}
    path.write_text(json.dumps(config))
    with pytest.raises(ArgumentError, match="a licence is required"):
        (folder / "README.md").unlink()
        card_of(folder)
    cards = [card_of(folder, "apache-2.0")]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    fold_to_folder(model, resolve(folder), tmp_path / "f")
    cards.append((tmp_path / "f" / "README.md").read_text())
    for text in cards:
        data = ModelCard(text).data
        assert data.license in ("apache-2.0", "other")
        assert data.base_model in (None, "org/m")
        assert not [line for line in text.splitlines() if line.startswith(("# Owned", "1. h", "license_name"))]
        assert "![a](http" not in text
        assert "<img" not in text.replace("\\<", "")
    assert "Fine-tuned from org/m at commit 0123." in cards[0]
    assert "org/a/b" not in cards[0]


def test_our_own_notes_are_kept() -> None:
    model = timm.create_model(NANO, pretrained=True)
    for source in ("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k@0123", "org/m", f"{NANO}.cifar10", ""):
        record(model, [Step(TUNED, source)])
        assert steps(model.pretrained_cfg) == (Step(TUNED, source),)


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "---\n" + "\n".join([*lines, f"license: *a{levels - 1}"]) + "\n---\n"


def test_a_card_that_unfolds(folder: Path) -> None:
    (folder / "README.md").write_text(bomb(9))
    report = convstem.verify(folder)
    failed = [check for check in report.checks if not check.ok]
    assert [check.name for check in failed] == ["license"]
    assert "it has an alias" in failed[0].detail
    assert len(failed[0].detail) < 500
    with pytest.raises(InvalidFileError, match="it has 70,0.. characters; at most 65,536 are read"):
        license_of_card(f"---\nlicense: mit\nx: {'y' * 70_000}\n---\n")
    with pytest.raises(InvalidFileError, match="is not valid: its lists are nested more than 32 deep"):
        license_of_card(f"---\nlicense: mit\nx: {'[' * 20_000}{']' * 20_000}\n---\n")
    assert license_of_card("---\nlicense: mit\n---\n") == "mit"


CARD = "---\nlicense: mit\n---\n# Größe\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with a mark"])
def test_a_card_in_an_encoding_that_says_so(encoding: str, folder: Path, tmp_path: Path) -> None:
    text = CARD.replace("\n", "\r\n")
    content = text.encode(encoding) if "mark" not in encoding else b"\xff\xfe" + text.encode("utf-16-le")
    (folder / "README.md").write_bytes(content)
    assert convstem.verify(folder).ok
    assert ModelCard(card_of(folder)).data.license == "mit"
    staged = tmp_path / "staged"
    staged.mkdir()
    stage(folder, staged)
    write_card(staged, "org/m", "mit", None, None, {})
    assert (staged / "README.md").read_text(encoding="utf-8") == CARD
    write_card(staged, "org/m", "mit", None, folder / "README.md", {})
    assert (staged / "README.md").read_text(encoding="utf-8") == CARD


def test_a_card_in_another_encoding_is_a_sentence(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_bytes(CARD.encode("latin-1"))
    message = "README.md is not UTF-8 text: byte 25 cannot be read. Save it as UTF-8"
    assert message in [check.detail for check in convstem.verify(folder).checks]
    for call in (
        lambda: card_of(folder),
        lambda: write_card(folder, "org/m", "mit", None, None, {}),
        lambda: write_card(tmp_path, "org/m", "mit", None, folder / "README.md", {}),
    ):
        with pytest.raises(InvalidFileError, match=message):
            call()


def test_a_card_of_another_licence_names_the_ways(folder: Path) -> None:
    message = (
        "was given: write apache-2.0 in the metadata at its head, give another card with card= .--card., or remove"
    )
    with pytest.raises(ArgumentError, match=message):
        write_card(folder, "org/m", "apache-2.0", None, CARD, {})


@pytest.mark.parametrize(
    ("license", "fields"),
    [("mit", {"license": "mit"}), ("dinov3-license", {"license": "other", "license_name": "dinov3-license"})],
)
def test_a_card_of_no_licence_gets_the_one_that_is_given(folder: Path, license: str, fields: dict[str, str]) -> None:
    card = folder / "README.md"
    text = re.sub(r"^license: .*\n", "license: other\n", card.read_text(), count=1, flags=re.M) + "license: other\n"
    card.write_text(text)
    write_card(folder, "org/m", license, None, None, {})
    data = ModelCard(card.read_text()).data
    assert {name: data.get(name) for name in ("license", "license_name") if data.get(name)} == fields
    assert card.read_text().endswith("license: other\n")  # nothing below the metadata changes
    with pytest.raises(ArgumentError, match="or remove README.md to have one made"):  # now the card names a licence
        write_card(folder, "org/m", "bsd-3-clause", None, None, {})
