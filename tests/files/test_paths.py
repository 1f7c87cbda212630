"""A file system error becomes one sentence with the path, the reason and the remedy."""

import errno
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from convstem.cli.main import main
from convstem.errors import InvalidFileError, MissingPathError, PathError
from convstem.files.paths import path_errors


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (errno.ENOSPC, PathError, "cannot write here: No space left on device; free some space, or name a path on"),
        (errno.EACCES, PathError, "cannot write here: Permission denied; change its permissions, or name another path"),
        (errno.ENOENT, MissingPathError, "cannot write here: No such file or directory; check the path, and create"),
        (errno.EFBIG, PathError, "cannot write here: File too large; name another path"),
    ],
)
def test_a_system_error(number: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), path_errors("write", "here"):
        raise OSError(number, os.strerror(number))


def test_an_error_of_safetensors_own_writer(tmp_path: Path) -> None:
    out = tmp_path / "no folder" / "out.safetensors"
    with (
        pytest.raises(MissingPathError, match=r"out\.safetensors: No such file or"),
        path_errors("write", out),
    ):
        save_file({"x": torch.ones(1)}, out)


def test_other_errors_pass() -> None:
    with pytest.raises(InvalidFileError, match="ours"), path_errors("read", "here"):
        raise InvalidFileError("ours")
    with pytest.raises(ZeroDivisionError), path_errors("read", "here"):
        _ = 1 / 0


def test_the_commands_print_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, message in (
        (
            ["pull", "vit_nano4_convstem.cifar10", "--out", "{}/file/out"],
            "cannot write {}/file/out: Not a directory",
        ),
        (["demo", "--out", "{}/file/out"], "cannot write {}/file/out: Not a directory; one of its folders is a file"),
    ):
        result = CliRunner().invoke(main, [argument.format(tmp_path) for argument in arguments])
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: {message.format(tmp_path)}"), result.output
