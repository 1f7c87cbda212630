"""The page of every error message and warning: the texts in the source, by error class.

Readers look up the words of a message, so computed parts (a name, a number, a list) are printed as an ellipsis.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import convstem
from convstem import errors

SOURCE = Path(convstem.__file__).parent
GAP = "\N{HORIZONTAL ELLIPSIS}"
OURS = {name: value.__doc__ or "" for name, value in vars(errors).items() if isinstance(value, type)}
OTHERS = {
    "BadParameter": "A value on the command line that cannot be read (click's; exit status 2).",
    "UsageError": "Options of a command that do not go together (click's; exit status 2).",
    "warn": "Warnings: the call goes on, and the message says what it did.",
}
SECTIONS = OURS | OTHERS
"""Error class, or ``warn`` -> what the section says about it."""

HEAD = """# Every error message

Look for a few words of what you saw. An ellipsis stands for what differs from case to case: names, numbers, lists. The
message itself says what was expected, what arrived and what to do; [Troubleshooting](troubleshooting.md) has what needs
more than a sentence. Written by `python -m tools.pages` from the source.
"""

Functions = Mapping[str, ast.FunctionDef]
"""The package's functions by name."""


def messages_page() -> str:
    """Return the page as Markdown: a section for each class, its messages sorted."""
    parts = [HEAD]
    for name, texts in sorted(messages().items(), key=lambda item: (item[0] in OTHERS, item[0])):
        about = " ".join(SECTIONS[name].split()).replace("``", "`")
        rows = "".join(f"- {_markdown(text)}\n" for text in sorted(texts, key=str.lower))
        parts.append(f"\n## {'Warnings' if name == 'warn' else name}\n\n{about}\n\n{rows}")
    return "".join(parts)


def messages(source: Path = SOURCE) -> dict[str, set[str]]:
    """Return the messages of each section, with an ellipsis for computed parts."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(source.rglob("*.py"))]
    functions = {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found: dict[str, set[str]] = {}
    for tree in trees:
        for call, names in calls(tree):
            told = {text for argument in call.args[:1] for text in texts(argument, functions) if told_in_words(text)}
            for name in names:
                found.setdefault(name, set()).update(told)
    return {name: told for name, told in found.items() if told}


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, set[str]]]:
    """Yield every call that creates an error or a warning, with its classes: several if the class is computed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := _name(node.func)) in SECTIONS:
            yield node, {name}
        elif isinstance(node, ast.FunctionDef):
            kinds = _computed_classes(node)
            for inner in ast.walk(node):
                if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call) and _name(inner.exc.func) in kinds:
                    yield inner.exc, kinds[_name(inner.exc.func)]


def _computed_classes(function: ast.FunctionDef) -> dict[str, set[str]]:
    """Return local name -> our error classes that it may refer to: ``kind = PathError if ... else HubError``."""
    assigned = [(_name(n.targets[0]), ast.walk(n.value)) for n in ast.walk(function) if isinstance(n, ast.Assign)]
    found = {name: {_name(node) for node in nodes} & set(OURS) for name, nodes in assigned}
    return {name: kinds for name, kinds in found.items() if kinds}


def texts(node: ast.AST, functions: Functions) -> list[str]:
    """Return the possible texts of a string expression: one for each branch, and for each return of our functions."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in texts(node.left, functions) for b in texts(node.right, functions)]
    if isinstance(node, ast.IfExp):
        return [*texts(node.body, functions), *texts(node.orelse, functions)]
    if isinstance(node, ast.Call) and (function := functions.get(_name(node.func))):
        returned = (inner.value for inner in ast.walk(function) if isinstance(inner, ast.Return) and inner.value)
        return [text for value in returned for text in texts(value, functions)]
    return [GAP]


def told_in_words(text: str) -> bool:
    """Return whether a text contains a word to look up."""
    return bool(re.search(r"[A-Za-z]{3,}", text))


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _markdown(text: str) -> str:
    """Return a text as code in one line, with adjacent ellipses merged."""
    line = re.sub(rf"{GAP}(?:[\s,.;]*{GAP})+", GAP, " ".join(text.split()))
    return f"`` {line} ``" if "`" in line else f"`{line}`"
