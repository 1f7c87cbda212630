"""Unusual tensors and paths are written and read if possible, else refused in one sentence."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from convstem.errors import InvalidFileError, PathError
from convstem.files.safetensors import check_finite, check_header, check_weights, write_weights

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOAT8)
def test_float8_is_read_and_looked_into(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file({"a": torch.ones(3).to(dtype)}, tmp_path / "a.safetensors")
    assert check_weights(tmp_path / "a.safetensors")["a"].shape == (3,)
    with pytest.raises(InvalidFileError, match="holds NaN or Inf in a"):
        check_finite({"a": torch.tensor([1.0, float("nan")]).to(dtype)}, "the file")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_without_plain_numbers() -> None:
    check_finite({"a": torch.ones(2)}, "the file")
    said = "the file holds tensors without values .on the meta device. or quantised ones: b"
    for odd in (torch.ones(2, device="meta"), torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)):
        with pytest.raises(InvalidFileError, match=said):
            check_finite({"a": torch.ones(2), "b": odd}, "the file")


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared, "c": shared[2:], "empty": torch.zeros(0), "void": torch.zeros(0)}
    with pytest.raises(RuntimeError, match="share memory"):
        save_file(dict(tensors), tmp_path / "a.safetensors")  # negative control
    write_weights(tensors, tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.skipif(os.name == "nt", reason="all names are Unicode there")
def test_a_path_that_is_no_utf_8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/w\xe9.safetensors"))
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    path.write_bytes((tmp_path / "a.safetensors").read_bytes())
    with pytest.raises(PathError, match=r"safetensors opens only paths in UTF-8: rename .*w\?\.safetensors"):
        check_header(path)
