"""Runs code in fresh interpreters."""

import os
import subprocess
import sys
import textwrap
from typing import Any


def python(code: str, *args: Any, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter and return its completed process."""
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", textwrap.dedent(code), *args],
        capture_output=True, text=True, env={**os.environ, **env}, check=False,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr
        assert "RuntimeWarning: convstem" not in done.stderr, done.stderr  # our warning instead of a failed host import
    return done
