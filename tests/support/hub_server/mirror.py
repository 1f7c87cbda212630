"""A real mirror in front of the test Hub: the package ``olah``, in its own environment."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.hub_server.server import HubServer

REQUIREMENT = "olah==0.5.4"


def olah_program(folder: Path) -> Path | None:
    """Return the program, installed into ``folder`` if missing; None if no package index can be reached."""
    program = folder / ("Scripts" if os.name == "nt" else "bin") / "olah-cli"
    if program.exists():
        return program
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(program.with_name("pip")), "install", "-q", REQUIREMENT]
    return program if subprocess.run(pip, check=False, capture_output=True).returncode == 0 else None


class Mirror:
    """A running mirror of a test Hub; ``env`` is the environment of its clients."""

    def __init__(self, program: Path, hub: HubServer, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        here = f"127.0.0.1:{port}"
        self.url = f"http://{here}"
        self.env = {**hub.env, "HF_ENDPOINT": self.url, "HF_HUB_DOWNLOAD_TIMEOUT": "20", "HF_HUB_ETAG_TIMEOUT": "20"}
        options = {
            "host": "127.0.0.1", "port": port, "hf-scheme": "http", "hf-netloc": urlsplit(hub.api.url).netloc,
            "hf-lfs-netloc": urlsplit(hub.cdn.url).netloc, "mirror-scheme": "http", "mirror-netloc": here,
            "mirror-lfs-netloc": here, "repos-path": folder / "repos", "log-path": folder / "logs",
        }  # fmt: skip
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with (folder / "output").open("wb") as output:
            self.process = subprocess.Popen([program, *arguments], cwd=folder, stdout=output, stderr=output)
        self._wait()

    def _wait(self) -> None:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.url}/api/models/none/none", timeout=5)
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("the mirror did not start")

    def close(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.wait(20)
