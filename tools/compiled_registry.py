"""Write ``registry/compiled.json``: the hand-written TOML files of the registry in a form that loads ten times faster.

Every process that imports timm or torchvision reads the registry. A TOML file that has changed since is read itself,
so that a forgotten run costs milliseconds and is never wrong.

    python -m tools.compiled_registry [--check]
"""

from __future__ import annotations

import argparse
import json
import sys

from convstem.registry import tables
from tools.generated import write_or_check

FOLDER = tables.data_dir("registry")


def compiled() -> str:
    """Return the text of the compiled file."""
    files = {}
    for path in sorted(FOLDER.glob("*.toml")):
        content = path.read_bytes()
        files[path.name] = {"sha1": tables.fingerprint(content), "tables": tables.parse_toml(path.name, content)}
    return json.dumps(files, separators=(",", ":")) + "\n"


def main() -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the file is stale")
    check = parser.parse_args().check
    return write_or_check(FOLDER / tables.COMPILED, compiled(), check, "compiled_registry")


if __name__ == "__main__":
    sys.exit(main())
