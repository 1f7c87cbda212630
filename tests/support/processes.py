"""Runs code in fresh interpreters."""

import os
import subprocess
import sys
import textwrap


def python(code, *args, check=True, **env):
    """Run code in a fresh interpreter and return its completed process."""
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", textwrap.dedent(code), *args],
        capture_output=True, text=True, env={**os.environ, **env}, check=False,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr
    return done
