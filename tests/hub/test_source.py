# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""Every spelling of a source means the same to every verb, or is refused in one sentence."""

import argparse
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest
import timm
import torch
from safetensors.torch import save_file

import convstem
from convstem.errors import ArgumentError, ArgumentTypeError
from convstem.hub.source import TAKES, Kind, Source, resolve, source_of
from tests.support.assertions import randomise
from tests.support.everyday import mostly_in_ci
from tests.support.hub_server import Client, HubServer
from tests.support.hub_server.fixtures import client, server  # noqa: F401

NANO = "vit_nano4_convstem"
TINY = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"

MEANS = b'{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}'

MEANT: dict[str, tuple[Kind, str]] = {
    NANO: ("name", NANO),
    TINY: ("name", TINY),
    "org/name": ("repository", "org/name@None"),
    "org/name@refs/pr/1": ("repository", "org/name@refs/pr/1"),
    "hf-hub:org/name": ("repository", "org/name@None"),
    "hf_hub:org/name@main": ("repository", "org/name@main"),
    "hf-hub:gpt2": ("repository", "gpt2@None"),
    "local-dir:nowhere": ("folder", "nowhere"),
    "local-dir:here": ("folder", "here"),
    "here": ("folder", "here"),
    "org/here": ("folder", "org/here"),
    "./nowhere": ("folder", "nowhere"),
    "~/nowhere": ("folder", "HOME/nowhere"),
    "/no/where": ("folder", "/no/where"),
    "a/b/c": ("folder", "a/b/c"),
    "file": ("file", "file"),
    "x.pth.tar": ("file", "x.pth.tar"),
    "org/x.safetensors": ("file", "org/x.safetensors"),
    "here.npz": ("folder", "here.npz"),
}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("here", "org/here", "here.npz"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "HOME")
    return tmp_path


@pytest.mark.parametrize("text", MEANT)
def test_what_a_text_means(text: str, disk: Path) -> None:
    found = resolve(text)
    place = {"name": found.name, "repository": f"{found.repo_id}@{found.revision}"}.get(found.kind, str(found.path))
    assert (found.kind, place) == MEANT[text]
    assert str(found) == text
    assert source_of("load", found) is found if text == NANO else True


def test_a_path_object_is_a_path(disk: Path) -> None:
    assert resolve(Path("org/name")) == Source("org/name", "folder", path=Path("org/name"))
    assert resolve(disk / "file").kind == "file"


def test_the_disk_says_nothing_where_no_path_can_be_meant(disk: Path) -> None:
    (disk / NANO).mkdir()
    assert resolve(NANO).kind == "folder"
    assert source_of("show", NANO).kind == source_of("pull", NANO).kind == "name"
    assert source_of("pull", "org/here").kind == "repository"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("", ArgumentError, "a source is the name of a model, org/name or .*; got ''"),
        ("local-dir:", ArgumentError, "a source is .*; got 'local-dir:'"),
        ("timm:vit_tiny", ArgumentError, "begins with timm:, which is not a known scheme; a source is the name"),
        ("https://host/org/w.pth", ArgumentError, "begins with https:, which is not a known scheme"),
        ("-org/name", ArgumentError, "a Hub repository is named org/name; got '-org/name'"),
        (5, ArgumentTypeError, "a source is the name of .*; got a int"),
    ],
)
def test_what_means_nothing(source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(source)


# ---- spellings x verbs -----------------------------------------------------------------------------------------------

# Each verb's answer to a spelling: ok, or one of ANSWERS.
GRID = """
                 load    transplant convert fold    export  push    pull    verify  card    show
name             ok      ok         load    ok      ok      pull    ok      ok      ok      ok
name.tag         ok      ok         load    ok      ok      pull    ok      ok      ok      ok
name.notag       tags    tags       load    tags    tags    pull    tags    tags    tags    tags
unknown          near    near       load    near    near    pull    near    near    near    near
org/m            ok      ok         ok      ok      ok      pull    ok      ok      ok      card
org/m@old        ok      ok         ok      ok      ok      pull    ok      ok      ok      card
hf-hub:org/m     ok      ok         ok      ok      ok      pull    ok      ok      ok      card
hf-hub:org/m@old ok      ok         ok      ok      ok      pull    ok      ok      ok      card
org/none         access  access     access  access  access  pull    access  access  access  card
local-dir:m      ok      ok         ok      ok      ok      ok      verify  ok      ok      card
m                ok      ok         ok      ok      ok      ok      near    ok      ok      near
./m              ok      ok         ok      ok      ok      ok      verify  ok      ok      card
~/m              ok      ok         ok      ok      ok      ok      verify  ok      ok      card
/m               ok      ok         ok      ok      ok      ok      verify  ok      ok      card
Path             ok      ok         ok      ok      ok      ok      verify  ok      ok      near
last.pth.tar     convert both       ok      convert convert ok      convert convert convert convert
w.safetensors    convert both       ok      convert convert convert convert convert convert convert
Path of a file   convert both       ok      convert convert ok      convert convert convert convert
./gone           gone    gone       gone    gone    gone    gone    gone    gone    gone    gone
gone.pth         gone    gone       gone    gone    gone    gone    gone    gone    gone    gone
timm:name        scheme  scheme     scheme  scheme  scheme  scheme  scheme  scheme  scheme  scheme
"""

ANSWERS = {  # error class and words of the remedy
    "access": ("AccessDeniedError", "check the spelling"),
    "both": ("ArgumentError", "`convstem convert .* --out FOLDER --transplant`"),
    "card": ("ArgumentError", "show takes the name of a model. `convstem card"),
    "convert": ("ConvStemError", "`convstem convert .* --out FOLDER`"),
    "gone": ("MissingPathError", "there is no (file or )?folder .*gone.*: .* takes"),
    "load": ("ArgumentError", "convstem.load takes convstem's names, `convstem transplant` timm's"),
    "near": ("UnknownModelError", "did you mean|lists all names"),
    "pull": ("ArgumentError", "push takes .* `convstem pull .* --out FOLDER`"),
    "scheme": ("ConvStemError", "timm:vit"),
    "tags": ("UnknownModelError", "no pretrained tag 'nosuch'; it has"),
    "verify": ("ArgumentError", "pull takes the name of a model or a Hub .* `convstem verify"),
}

VERBS = """
import convstem, os, tempfile, timm
from click.testing import CliRunner
from pathlib import Path
from convstem.cli.main import main
import convstem.inference as exporting
from convstem.publishing.card import card_of
from convstem.publishing.convert import convert_to_folder

class Exported(Exception):
    pass

def exported(model, *arguments):
    raise Exported(model.pretrained_cfg["architecture"])

exporting.export = exported
new = lambda: Path(tempfile.mkdtemp(), "out")

def command(*arguments):
    done = CliRunner().invoke(main, ["--debug", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, (SystemExit, Exported)):
        raise done.exception
    return str(done.exception) if isinstance(done.exception, Exported) else done.output

VERBS = {
    "load": lambda source: convstem.load(source).pretrained_cfg["architecture"],
    "transplant": lambda source: convstem.transplant(source).pretrained_cfg["architecture"],
    "convert": lambda source: convert_to_folder(source, new()).architecture,
    "fold": lambda source: command("fold", source, "--out", new()),
    "export": lambda source: command("export", source, "--to", "onnx", "--out", new().with_suffix(".onnx")),
    "push": lambda source: sorted(convstem.push(source, "me/x", license="apache-2.0", dry_run=True).files),
    "pull": lambda source: sorted(path.name for path in convstem.pull(source, out=new()).iterdir()),
    "verify": lambda source: convstem.verify(source).ok,
    "card": lambda source: card_of(source),
    "show": lambda source: command("show", source),
}

def answer(verb, source):
    try:
        return ["ok", str(VERBS[verb](source))]
    except convstem.ConvStemError as error:
        return [[kind.__name__ for kind in type(error).__mro__], str(error)]
"""

VALUES = {
    "load": NANO,
    "transplant": "vit_ti16_convstem",
    "convert": NANO,
    "fold": f"{NANO} with stem_norm none",
    "export": NANO,
    "push": "README.md",
    "pull": r"\['README.md', 'config.json', 'model.safetensors'\]",
    "verify": "True",
    "card": "license: mit|license: apache-2.0",
    "show": "stem layer",
}


Answers: TypeAlias = dict[str, tuple[str | list[str], str]]


@pytest.fixture(scope="module")
def answers(server: HubServer, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Answers]:
    """What a verb says to every spelling of one of our models; transplant, to those of a model of timm's."""
    root = tmp_path_factory.mktemp("sources")
    folders = {"ours": convstem.pull(NANO, out=root / "ours" / "m")}
    plain = randomise(timm.create_model(TINY.partition(".")[0], depth=1, num_classes=3, img_size=32))
    timm.models.save_for_hf(plain, root / "plain" / "m", safe_serialization=True)
    folders["plain"] = root / "plain" / "m"
    full = root / "full"
    timm.models.save_for_hf(timm.create_model(TINY.partition(".")[0]), full, safe_serialization=True)
    model = timm.create_model(NANO, pretrained=True)
    arguments = argparse.Namespace(model=NANO, pretrained=False, model_kwargs={})
    content = {"arch": NANO, "state_dict": model.state_dict(), "args": arguments}
    for kind, folder in folders.items():
        torch.save(content, folder.parent / "last.pth.tar")
        save_file(model.state_dict(), folder.parent / "w.safetensors")
        server.store.create(f"{kind}/m")
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        old = server.store.commit(f"{kind}/m", "main", files)
        server.store.repo(f"{kind}/m").refs["refs/heads/old"] = old
        server.store.commit(f"{kind}/m", "main", {"preprocessor_config.json": MEANS})
    server.store.create(f"timm/{TINY}")
    server.store.commit(f"timm/{TINY}", "main", {path.name: path.read_bytes() for path in full.iterdir()})
    client(VERBS)

    @cache
    def ask(verb: str) -> Answers:
        kind, name = ("plain", TINY) if verb == "transplant" else ("ours", f"{NANO}.cifar10")
        here = folders[kind].parent
        outcome = client(f"os.chdir({str(here)!r}); os.environ['HOME'] = os.getcwd()\n"
                         f"result = {{text: answer({verb!r}, eval(source)) for text, source in "
                         f"{spellings(kind, name, here)!r}.items()}}")  # fmt: skip
        assert outcome.error is None, outcome.output
        return cast("Answers", outcome.value)

    return ask


def spellings(kind: str, name: str, here: Path) -> dict[str, str]:
    """Return the grid's first column as Python expressions to pass to a verb."""
    bare = name.partition(".")[0]
    special = {
        "name": repr(bare),
        "name.tag": repr(name),
        "name.notag": repr(f"{bare}.nosuch"),
        "unknown": repr(f"{bare}x"),
        "org/none": repr("org/none"),
        "/m": repr(f"{here}/m"),
        "Path": "Path('m')",
        "Path of a file": "Path('last.pth.tar')",
        "timm:name": repr(f"timm:{bare}"),
    }
    return {row: special.get(row, repr(row.replace("org/", f"{kind}/"))) for row in grid()}


def grid() -> dict[str, dict[str, str]]:
    """Return the grid's cells by spelling and verb."""
    head, *lines = GRID.strip("\n").splitlines()
    return {line[:17].strip(): dict(zip(head.split(), line[17:].split(), strict=True)) for line in lines}


def test_the_grid_has_every_verb() -> None:
    assert all(row.keys() == TAKES.keys() for row in grid().values())


@pytest.mark.parametrize("verb", mostly_in_ci(sorted(TAKES), {"load", "pull", "push", "transplant"}))
@pytest.mark.parametrize("spelling", grid())
def test_every_verb_understands_every_spelling(spelling: str, verb: str, answers: Any) -> None:
    expected, (kinds, text) = grid()[spelling][verb], answers(verb)[spelling]
    assert ("ok" if kinds == "ok" else "an error") == ("ok" if expected == "ok" else "an error"), text
    kind, words = ("ok", VALUES[verb]) if expected == "ok" else ANSWERS[expected]
    assert kind in kinds, (kinds, text)
    assert re.search(words, text), text
    assert kinds == "ok" or "\n" not in text


def test_of_a_transplanted_name_the_file_is_verified_that_it_is_made_from(answers: Any, client: Client) -> None:
    report = client("result = convstem.verify('vit_ti16_convstem').to_json()").value
    assert report["source"].startswith(f"timm/{TINY}@")
    assert [(check["name"], check["ok"]) for check in report["checks"]] == [
        ("hashes", True),
        ("header", True),
        ("finite", True),
    ]


def test_a_converted_repository_brings_what_transformers_says_beside_it(answers: Any, client: Client) -> None:
    code = """
        import json
        out = new()
        done = convert_to_folder("ours/m{at}", out)
        assert done.source == "ours/m"
        result = json.loads((out / "config.json").read_text())["pretrained_cfg"]["mean"]
    """
    assert client(code.format(at="")).value == [0.1, 0.2, 0.3]
    assert client(code.format(at="@old")).value != [0.1, 0.2, 0.3]  # negative control
