"""Prints the dependencies of the package: files, and levels, circles and arrows of modules and of rooms.

    python -m tools.rooms [FOLDER]      # of another checkout: its src/convstem

All imports count: at the top, inside a function, under ``TYPE_CHECKING``, and in a module's stub.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = Mapping[str, set[str]]
"""Module or room -> its imports."""


def modules(package: Path) -> dict[str, list[Path]]:
    """Return the files of a package by module name; a stub belongs to its module."""
    found: dict[str, list[Path]] = {}
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.pyi")]):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.setdefault(name, []).append(path)
    return found


def import_graph(package: Path) -> dict[str, set[str]]:
    """Return module -> modules of the package that it imports."""
    files = modules(package)
    graph: dict[str, set[str]] = {}
    for name, paths in files.items():
        packages = {path: name if path.stem == "__init__" else name.rpartition(".")[0] for path in paths}
        targets = {target for path in paths for target in _imports(path, packages[path])}
        graph[name] = {_module(target, files) for target in targets} & set(files) - {name}
    return graph


def _imports(path: Path, package: str) -> Iterator[str]:
    """Yield every dotted name that a file imports, ``from a import b`` as ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _module(target: str, files: Mapping[str, list[Path]]) -> str:
    """Return the module that a dotted name refers to, or that contains it."""
    return target if target in files else target.rpartition(".")[0]


def rooms(graph: Graph) -> dict[str, set[str]]:
    """Return the graph of the rooms: sub-packages, and the modules directly below the package."""
    found: dict[str, set[str]] = {}
    for name, targets in graph.items():
        found.setdefault(room(name), set()).update(room(target) for target in targets if room(target) != room(name))
    return found


def room(name: str) -> str:
    """Return the room of a module: ``registry`` for ``convstem.registry.catalog``; the package is its own room."""
    return ".".join(name.split(".")[1:2]) or name


def circles(graph: Graph) -> list[set[str]]:
    """Return the sets of modules that import each other, directly or through others."""
    reachable = {name: _reachable(graph, name) for name in graph}
    found = [frozenset(other for other in reach if name in reachable[other]) for name, reach in reachable.items()]
    return [set(circle) for circle in sorted({circle for circle in found if circle}, key=sorted)]


def _reachable(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def levels(graph: Graph) -> int:
    """Return the length of the longest chain of imports; a circle counts as one."""
    members = {name: frozenset(circle) for circle in circles(graph) for name in circle}
    group = {name: members.get(name, frozenset([name])) for name in graph}
    depth: dict[frozenset[str], int] = {}

    def measure(one: frozenset[str]) -> int:
        if one not in depth:
            below = {group[target] for name in one for target in graph[name]} - {one}
            depth[one] = 1 + max(map(measure, below), default=0)
        return depth[one]

    return max(map(measure, group.values()))


def arrows(graph: Graph) -> int:
    """Return the number of imports; each pair counts once."""
    return sum(map(len, graph.values()))


def main() -> None:
    """Print the figures of a package and the imports of its rooms."""
    package = Path(sys.argv[1] if len(sys.argv) > 1 else "src/convstem")
    graph = import_graph(package)
    houses = rooms(graph)
    paths = [path for paths in modules(package).values() for path in paths]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
    at_top = [path for path in package.iterdir() if path.is_file()]
    print(f"files    {len(paths):4}   lines {lines}, files at the top {len(at_top)}")
    for what, one in (("modules", graph), ("rooms", houses)):
        print(f"{what:<8} {len(one):4}   levels {levels(one)}, circles {len(circles(one))}, arrows {arrows(one)}")
    print()
    for name, targets in sorted(houses.items()):
        print(f"{name:<14} -> {', '.join(sorted(targets)) or '-'}")


if __name__ == "__main__":
    main()
