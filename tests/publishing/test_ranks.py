"""Several processes and one folder: ranks that pull the same model, and two writers of different models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load

import convstem
from convstem.publishing.folder import save, write_folder

NANO = "vit_nano4_convstem"

RANK = """
import sys, convstem
from pathlib import Path
failed = 0
for _ in range(4):
    try:
        convstem.pull("vit_nano4_convstem", out=sys.argv[1])
        convstem.load(sys.argv[1])
    except Exception as error:
        failed += 1
        print(type(error).__name__, error, file=sys.stderr)
print(failed)
"""

WRITER = """
import sys, shutil
from pathlib import Path
from convstem.publishing.folder import write_folder
source, out = map(Path, sys.argv[1:])
def copy(staged):
    for path in source.iterdir():
        shutil.copyfile(path, staged / path.name)
for _ in range(20):
    write_folder(out, copy, overwrite=True)
"""


def processes(code: str, *arguments: list[str]) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen([sys.executable, "-c", code, *each], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for each in arguments
    ]


@pytest.mark.full
def test_six_ranks_pull_the_same_model_into_one_folder_and_load_it(tmp_path: Path) -> None:
    for process in processes(RANK, *[[str(tmp_path / "m")]] * 6):
        said, errors = process.communicate(timeout=300)
        assert said == "0\n", errors
    assert convstem.verify(tmp_path / "m").ok


@pytest.mark.full
def test_two_writers_never_leave_one_ones_config_and_the_others_weights(tmp_path: Path) -> None:
    """A reader sees one whole model, or none at that moment."""
    for depth in (1, 2):
        model = timm.create_model(NANO, depth=depth)

        def write(staged: Path, model: torch.nn.Module = model) -> None:
            save(model, staged)

        write_folder(tmp_path / str(depth), write)
    out = tmp_path / "out"
    writers = processes(WRITER, *[[str(tmp_path / str(depth)), str(out)] for depth in (1, 2)])
    seen = set()
    while any(writer.poll() is None for writer in writers):
        try:
            before = (out / "config.json").stat()
            config = json.loads((out / "config.json").read_text())
            weights = load((out / "model.safetensors").read_bytes())  # load_file opens it twice
            after = (out / "config.json").stat()
        except (OSError, json.JSONDecodeError):
            continue
        if (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns):
            seen.add((config["model_args"]["depth"], 1 + ("blocks.1.norm1.weight" in weights)))
    assert [writer.communicate()[1] for writer in writers] == ["", ""]
    assert convstem.load(out)
    assert seen <= {(1, 1), (2, 2)}
