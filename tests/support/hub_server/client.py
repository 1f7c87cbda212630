"""Clients of the test Hub: separate processes, because huggingface_hub reads its settings once, on import."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

LOOP = """
import contextlib, io, json, sys, traceback, warnings
requests, replies = sys.stdin, sys.stdout
sys.stdout = sys.stderr
names = {}
for line in requests:
    reply = {"value": None, "error": None, "warnings": []}
    noise = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(noise):
        warnings.simplefilter("always")
        try:
            exec(json.loads(line), names)
            reply["value"] = names.pop("result", None)
        except BaseException as error:
            reply["error"], reply["kind"] = str(error), type(error).__name__
            traceback.print_exc()
    reply["warnings"] = [str(w.message) for w in caught]
    reply["output"] = noise.getvalue()
    print(json.dumps(reply, default=str), file=replies, flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """The outcome of code in a client: its ``result``, or the error."""

    value: Any = None
    error: str | None = None
    kind: str | None = None
    warnings: tuple[str, ...] = ()
    output: str = ""


def environment(**env: str) -> dict[str, str]:
    """Return a client's environment, without the caller's Hub settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTEST_"))}
    return {**clean, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **env}


def run_python(code: str, timeout: int = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process and return the completed process."""
    arguments = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(
        arguments, env=environment(**env), capture_output=True, text=True, timeout=timeout, check=False
    )


class Client:
    """A process with one set of Hub settings that runs one piece of code after another."""

    def __init__(self, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOP],
            env=environment(**env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, code: str) -> Outcome:
        """Run code and return the value (valid JSON) that it assigns to ``result``."""
        self.process.stdin.write(json.dumps(textwrap.dedent(code)) + "\n")
        self.process.stdin.flush()
        return Outcome(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the process. On a busy machine its own clean-up, coverage included, can take long."""
        self.process.communicate(timeout=120)
