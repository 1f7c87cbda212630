"""torchvision's tests and training scripts, from Debian's source package, since no wheel has them."""

import re
import subprocess
import tarfile
from pathlib import Path


def download(folder: Path, suite: str = "trixie") -> Path:
    """Download Debian's source of torchvision from the configured mirror and return its folder."""
    parts, lists = folder / "parts", folder / "lists"
    parts.mkdir()
    (lists / "partial").mkdir(parents=True)
    for source in Path("/etc/apt/sources.list.d").glob("*.sources"):
        stanzas = [part for part in source.read_text().split("\n\n") if "-security" not in part]
        text = re.sub(r"(?m)^Suites:.*$", f"Suites: {suite}", "\n\n".join(stanzas))
        (parts / source.name).write_text(re.sub(r"(?m)^Types:.*$", "Types: deb-src", text))
    options = ["-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={parts}", "-o"]
    apt = ["apt-get", "-qq", *options, f"Dir::State::lists={lists}", "-o", "APT::Sandbox::User=root"]
    subprocess.run([*apt, "update"], check=True, cwd=folder)
    subprocess.run([*apt, "--download-only", "--tar-only", "source", "pytorch-vision"], check=True, cwd=folder)
    with tarfile.open(next(folder.glob("pytorch-vision_*.orig.tar.*"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("vision-*"))
