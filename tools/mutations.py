"""The changes of ``src/`` that ``tools.mutants`` tries, one at a time, and samples of them."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from tools.walks import room_of

SWAPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
WORDING = ("help", "doc", "epilog", "short_help", "metavar", "show_default")
"""Arguments with texts for a reader."""
GUARDS = ("encoding", "frozen", "repr", "strict")
"""Arguments that expose our own mistakes or make machines behave alike; no test here can notice them."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str
    """Relative to ``src``."""
    name: str
    """Dotted name of the function or class with the change; empty at module level."""
    kind: str
    before: str
    after: str
    start: int
    end: int
    """``start`` and ``end`` are the bytes of the file to replace."""
    lines: tuple[int, int]
    """First and last line; a test can only notice the change if it runs a line between them."""
    count: int = 0
    """Number of equal changes before it in the file."""

    @property
    def id(self) -> str:
        """Hash that stays the same if other lines of the file change."""
        parts = (self.file, self.name, self.kind, self.before, self.after, str(self.count))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    @property
    def room(self) -> str:
        """The room, or the top-level module beside the package."""
        path = Path(self.file)
        return room_of(str(path.relative_to("convstem"))) if path.parts[0] == "convstem" else path.stem

    def apply(self, text: bytes) -> bytes:
        """Return the changed file."""
        return text[: self.start] + self.after.encode() + text[self.end :]


def mutants(file: str, text: str) -> list[Mutant]:
    """Return all mutants of a file."""
    starts = [0, *(len(line) for line in text.encode().splitlines(keepends=True))]
    for index in range(1, len(starts)):
        starts[index] += starts[index - 1]
    seen: Counter[tuple[str, ...]] = Counter()
    found = []
    for name, kind, node, after, lines in _changes(ast.parse(text)):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        before = text.encode()[start:end].decode()
        found.append(Mutant(file, name, kind, before, after, start, end, lines, seen[name, kind, before, after]))
        seen[name, kind, before, after] += 1
    return found


def _changes(tree: ast.Module) -> Iterator[tuple[str, str, Any, str, tuple[int, int]]]:
    """Yield name, kind, node, new source and relevant lines of each change of a module."""

    def visit(node: ast.AST, name: str, lines: tuple[int, int]) -> Iterator[tuple[str, str, Any, str, tuple[int, int]]]:
        if _is_left_out(node):
            return
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            name = f"{name}.{node.name}".lstrip(".")
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            lines = (first, node.end_lineno or first)
        elif isinstance(node, ast.stmt) and inside[name]:
            body = getattr(node, "body", None)
            lines = (node.lineno, body[0].lineno - 1 if body else node.end_lineno or node.lineno)
            lines = (lines[0], max(lines))
        inside[name] |= isinstance(node, FUNCTIONS)
        for kind, target, after in _of_node(node):
            yield name, kind, target, after, lines
        if not isinstance(node, ast.Raise):  # the rest of a raise is wording
            for child in _children(node):
                yield from visit(child, name, lines)

    inside: dict[str, bool] = defaultdict(bool)  # whether the lines of a name run on a call
    yield from visit(tree, "", (1, 1 << 30))


def _is_left_out(node: ast.AST) -> bool:
    """Return whether a node has no behaviour: documentation, wording, or code for type checkers."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.FunctionDef(name="__repr__"):
            return True
        case ast.keyword(arg=arg) if arg in WORDING + GUARDS:
            return True
        case ast.Call(func=ast.Name(id="TypeVar" | "cast" | "NewType")):
            return True
        case _:
            return False


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the children of a node, without annotations."""
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns", "type_params"):
            yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, ast.AST))


def _of_node(node: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield kind, node to replace and new source of each change of the node itself."""
    match node:
        case ast.Compare(ops=[op, *more]):
            new = ast.Compare(node.left, [SWAPPED[type(op)](), *more], node.comparators)
            yield "comparison", node, ast.unparse(new)
        case ast.Constant(value=value) if (after := _other(value)) is not None:
            yield "constant", node, repr(after)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            yield "branch", test, f"not ({ast.unparse(test)})"
        case ast.comprehension(ifs=ifs):
            yield from (("branch", test, f"not ({ast.unparse(test)})") for test in ifs)
        case ast.BoolOp(op=op, values=values):
            new_op = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield "branch", node, f"({ast.unparse(ast.BoolOp(new_op, values))})"
        case ast.Raise():
            yield "raise", node, "pass"
        case ast.Expr(value=ast.Call()):
            yield "call", node, "pass"
        case ast.Call(keywords=[_, *_]):
            for index, one in enumerate(node.keywords):
                if one.arg and one.arg not in WORDING + GUARDS:
                    rest = node.keywords[:index] + node.keywords[index + 1 :]
                    yield "keyword", node, ast.unparse(ast.Call(node.func, node.args, rest))
        case ast.Return(value=ast.AST() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "return", node, "return None"


def _other(value: object) -> object:
    """Return a different constant, or None for wording."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, bytes):
        return value + b"x"
    return f"{value}x" if isinstance(value, str) and not any(map(str.isspace, value)) else None


def sample(found: Iterable[Mutant], count: int, seed: int) -> list[Mutant]:
    """Return ``count`` mutants, evenly over the kinds; a change elsewhere in a file does not change the choice."""
    by_kind: dict[str, list[Mutant]] = defaultdict(list)
    for one in sorted(found, key=lambda one: hashlib.sha256(f"{seed} {one.id}".encode()).hexdigest()):
        by_kind[one.kind].append(one)
    turns = zip_longest(*(by_kind[kind] for kind in sorted(by_kind)))
    return [one for one in chain.from_iterable(turns) if one is not None][:count]
