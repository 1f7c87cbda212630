"""The command line: output, exit status, and one-line errors."""

import io
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
from click.testing import CliRunner

from convstem.cli import ERASE, progress
from convstem.cli.main import _sentence, main
from convstem.publishing.derived import TransplantResult, transplant_to_folder
from convstem.stem.carried import TransplantReport
from tests.support.assertions import randomise


def run(*arguments: Any, status: int = 0) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == status, result.output
    return result.output


@pytest.mark.parametrize(("name", "clean", "robust"), [("vit_s16_cvst", 72.56, 48.08), ("vit_b16_cvst", 76.3, 54.66)])
def test_show_tells_where_weights_are_that_a_user_converts(name: str, clean: float, robust: float) -> None:
    text = run("show", name)
    assert "no pretrained weights" in text  # no tag claims to load them by name
    assert not timm.list_models(f"{name}.*", pretrained=True)
    for piece in (
        "https://github.com/RobustBench/robustbench",
        "licence: mit (LICENSE of the repository",
        f"acc@1 {clean:g} %, AutoAttack acc@1, Linf 4/255 {robust:g} % (model_info/imagenet/Linf/Singh2023",
        "sha256: not known",
        f"--out {name}.robustbench --architecture {name} --license mit",
    ):
        assert piece in text
    (entry,) = json.loads(run("show", name, "--json"))["elsewhere"]
    assert entry["command"].startswith("convstem convert models/imagenet/Linf/Singh2023Revisiting_ViT-")


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from convstem.cli.main import main; "
        "out = CliRunner().invoke(main, ['--help']).output; assert 'transplant' in out; "
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_scripts_own_error_keeps_its_traceback(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise KeyError('mine')")
    command = [sys.executable, "-m", "convstem", "run", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "KeyError: 'mine'" in done.stderr


@pytest.fixture
def source(hub_file: Callable[..., None]) -> Any:
    model = randomise(timm.create_model("vit_tiny_patch16_224"))
    hub_file("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", model.state_dict())
    return "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def test_transplant_writes_a_loadable_folder(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = run("transplant", source, "--out", str(out))
    assert "-> vit_ti16_convstem (licence of the source: apache-2.0)" in text
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (out / "README.md").read_text()
    for phrase in (
        "license: apache-2.0",
        f"base_model: timm/{source}",
        "function preserved, not trained",
        "relative error",
    ):
        assert phrase in card
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert model.pretrained_cfg["architecture"] == "vit_ti16_convstem"
    modes = {path.name: path.stat().st_mode for path in out.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]  # other users can read both


@pytest.mark.full
def test_transplant_takes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomise(timm.create_model("vit_tiny_patch16_224", depth=1))
    timm.models.save_for_hf(model, tmp_path / "plain", safe_serialization=True)
    monkeypatch.chdir(tmp_path)
    assert "measured relative error" in run("transplant", "plain", "--out", "out")
    assert "Same as the source; not measured again." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.full
def test_a_warning_is_a_sentence(tmp_path: Path) -> None:
    model = timm.create_model("vit_ti16_convstem", depth=1)
    timm.models.save_for_hf(model, tmp_path / "plain", safe_serialization=True)
    done = command("fold", str(tmp_path / "plain"), "--out", str(tmp_path / "out"))
    assert "\nWarning: nothing was folded" in f"\n{done.stderr}"
    assert "UserWarning" not in done.stderr
    assert "sys.exit" not in done.stderr


@pytest.mark.full
def test_transplant_places_the_filters_on_bands(source: str, tmp_path: Path) -> None:
    out = tmp_path / "bands"
    run("transplant", source, "--out", str(out), "--in-chans", "5", "--bands", "2,1,0")
    assert json.loads((out / "config.json").read_text())["pretrained_cfg"]["input_size"][0] == 5


@pytest.mark.full
def test_transplant_refuses_what_is_not_accurate_enough(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = run("transplant", source, "--out", str(out), "--stem-channels", "12,24,48,96", status=1)
    assert "the stem [12, 24, 48, 96] is too narrow" in text
    text = run("transplant", source, "--out", str(out), "--tolerance", "1e-9", status=1)
    assert "exceeds the tolerance 1.0e-09; nothing was written" in text
    assert not out.exists()
    accepted = ("--stem-channels", "12,48,192,768", "--json")
    report = json.loads(run("transplant", source, "--out", str(out), *accepted))
    assert report["report"]["scope"] == "pixels in range"
    assert [layer["both_signs"] for layer in report["report"]["layers"]][:3] == [False, False, False]
    assert 1e-9 < report["measured_error"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet18", "--out", "x"), "Error: ResNet has no patch_embed"),
        (("vit_base_patch16_223", "--out", "x"), "Error: timm has no model 'vit_base_patch16_223'; did you mean"),
        (("vit_tiny_patch16_224", "--out", "x", "--stem-channels", "a,b"), "such as 3,2,1; got 'a,b'"),
        (("vit_tiny_patch16_224", "--out", "x", "--stem-channels", "0,8"), "Error: stem_channels"),
        (("vit_tiny_patch16_224", "--out", "x", "--to", "a", "--stem-channels", "8"), "not both"),
        (("vit_tiny_patch16_224", "--out", "x", "--calibration", "."), "No such option"),
    ],
)
def test_transplant_wrong_calls(
    arguments: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_file: Callable[..., None]
) -> None:
    hub_file("timm/resnet18.a1_in1k", timm.create_model("resnet18").state_dict())
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["transplant", *arguments])
    assert result.exit_code != 0
    assert message in result.output


def command(*arguments: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "convstem", *arguments], capture_output=True, text=True, check=False, **kwargs
    )


def test_debug_shows_the_traceback_of_an_error() -> None:
    for arguments, traceback in ((), False), (("--debug",), True):
        done = command(*arguments, "show", "nosuchmodel")
        assert done.returncode == 1
        assert ("Traceback" in done.stderr) is traceback
        assert "unknown convstem model 'nosuchmodel'" in done.stderr.splitlines()[-1]


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(name: str) -> None:
        raise ValueError("ours")

    monkeypatch.setattr("convstem.cli.models.describe", bug)
    assert isinstance(CliRunner().invoke(main, ["show", "vit_b16_convstem"]).exception, ValueError)


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("convstem.cli.models.describe", interrupted)
    assert run("show", "vit_b16_convstem", status=130) == "\ninterrupted\n"


def test_the_exit_statuses_are_in_the_help() -> None:
    assert all(re.search(rf"^ +{status} +\w", run("--help"), re.MULTILINE) for status in (0, 1, 2, 130))


def test_a_reader_that_leaves_early_is_no_error() -> None:
    listing = subprocess.Popen(
        [sys.executable, "-m", "convstem", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    listing.stdout.close()  # before Python has started, so that the first line goes to a closed pipe
    with listing.stderr:
        assert listing.stderr.read() == ""
    assert listing.wait() == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.full
@pytest.mark.parametrize("terminal", [True, False])
def test_minute_long_work_shows_its_steps_on_a_terminal(
    terminal: bool, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    with progress():
        transplant_to_folder(source, tmp_path / "out")
    lines = stderr.getvalue().split(ERASE)
    if not terminal:
        assert lines == [""]
        return
    for step in ("transplanting ", "measuring the error on 8 images", "writing ", "reading back what was written"):
        assert any(re.match(rf"\[ +\d+ s\] {step}", line) for line in lines), (step, lines)
    assert lines[-1] == ""  # the line is erased


def test_a_step_that_takes_long_shows_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr, limit, clock = Terminal(), time.monotonic() + 60, iter([0.0, 0.0])  # its beginning and the first line
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr("convstem.cli.time", SimpleNamespace(monotonic=lambda: next(clock, 1.0)))
    with progress():
        logging.getLogger("convstem.progress").info("working")
        while stderr.getvalue().count("working") < 2 and time.monotonic() < limit:
            time.sleep(0.05)
    assert re.findall(r"\[ +(\d+) s\] working", stderr.getvalue())[:2] == ["0", "1"]


def test_what_was_transplanted_and_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def transplanted(*arguments: Any, **named: Any) -> TransplantResult:
        asked.update(named, arguments=arguments)
        return TransplantResult("a", "b", "mit", 2e-7, TransplantReport(()), tmp_path)

    monkeypatch.setattr("convstem.publishing.derived.transplant_to_folder", transplanted)
    options = ["--to", "c", "--stride", "8", "--margin", "0.5", "--in-chans", "4", "--bands", "2,1,0", "--overwrite"]
    said = run("transplant", "a", "--out", str(tmp_path), *options, "--tolerance", "0.1")
    assert said.splitlines() == [
        "a -> b (licence of the source: mit)",
        "The transplant is exact for every input, up to rounding.",
        "measured relative error of the features: 2.0e-07",
        f"written: {tmp_path}/config.json, model.safetensors, README.md",
    ]
    assert asked == {
        "arguments": ("a", tmp_path), "stem": "c", "stride": 8, "margin": 0.5, "in_chans": 4, "bands": (2, 1, 0),
        "overwrite": True, "tolerance": 0.1,
    }  # fmt: skip


def test_a_warning_of_ours_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert _sentence(UserWarning("nothing was folded"), UserWarning, "file.py", 3) == "Warning: nothing was folded\n"
    monkeypatch.setattr("sys.stderr", Terminal())
    assert _sentence("x", UserWarning, "file.py", 3) == f"{ERASE}Warning: x\n"


def test_a_layout_that_does_not_exist(tmp_path: Path) -> None:
    said = run("convert", "x.pth", "--out", str(tmp_path), "--from", "magic", status=2)
    assert "'magic' is not one of 'augreg', 'classyvision'" in said
