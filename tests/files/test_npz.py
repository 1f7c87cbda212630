"""JAX files that claim more bytes than they hold are refused by their headers, before an array is created."""

import io
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from convstem.errors import InvalidFileError
from convstem.files.checkpoint import read_checkpoint


def header(shape: tuple[int, ...], version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


def refuse(path: Path, message: str) -> None:
    start = time.process_time()
    with pytest.raises(InvalidFileError, match=message):
        read_checkpoint(path)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("save", [numpy.savez, numpy.savez_compressed])
def test_honest_files_are_read(save: Any, tmp_path: Path) -> None:
    arrays = {"a/kernel": numpy.arange(6, dtype="float32").reshape(2, 3), "zeros": numpy.zeros((1000, 1000), "float32")}
    save(tmp_path / "a.npz", **arrays)
    found = read_checkpoint(tmp_path / "a.npz")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {n: a.tolist() for n, a in arrays.items()}


def test_an_array_that_claims_64_gb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", header((1 << 34,)) + bytes(64))
    refuse(tmp_path / "a.npz", r"a\.npy claims 68,719,476,736 bytes but has 192")


def test_a_directory_that_claims_64_gb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header((1 << 29,)) + bytes(64))
    content = (tmp_path / "a.npz").read_bytes()
    place = content.rindex(b"PK\x01\x02") + 24  # the uncompressed size in the directory
    (tmp_path / "a.npz").write_bytes(content[:place] + (4_000_000_000).to_bytes(4, "little") + content[place + 4 :])
    refuse(tmp_path / "a.npz", "bytes would become 4,000,000,000")


def test_a_file_that_unpacks_without_end(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header((1 << 25,)) + bytes(1 << 27))
    assert (tmp_path / "a.npz").stat().st_size < 1 << 18
    refuse(tmp_path / "a.npz", "bytes would become 134,")


def test_not_even_a_zip_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 nothing")
    refuse(tmp_path / "a.npz", "is truncated, damaged or not an .npz")


def test_two_bytes_of_no_name_are_bfloat16_and_others_keep_theirs(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0])
    brain = values.to(torch.bfloat16).view(torch.int16).numpy().view("V2")
    numpy.savez(tmp_path / "a.npz", brain=brain, half=values.half().numpy(), short=numpy.array([1, 2], "int16"))
    found = read_checkpoint(tmp_path / "a.npz")
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "brain": torch.bfloat16, "half": torch.float16, "short": torch.int16
    }  # fmt: skip
    assert found["brain"].tolist() == found["half"].tolist() == values.tolist()


def test_four_bytes_of_no_name_are_no_number(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "a.npz", a=numpy.zeros(2, "V4"))
    refuse(tmp_path / "a.npz", "not an .npz of plain arrays")
