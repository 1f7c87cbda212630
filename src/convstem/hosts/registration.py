"""Registers our names with timm and torchvision: atomically, and without ever taking a name from its owner."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convstem.errors import warn

HOST_MODULES = {"timm": "timm.models", "torchvision": "torchvision.models"}
"""Host -> the module that must be imported before names can be registered."""


@dataclass
class Record:
    """What happened when one host was registered with; ``convstem doctor`` prints it."""

    host: str
    path: str
    """Who asked: ``torch autoload``, ``import convstem`` or ``convstem.register()``."""
    names: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Name -> why it was left to its owner."""
    error: str | None = None


RECORDS: dict[str, Record] = {}
"""The latest record of each host."""


def register() -> dict[str, Record]:
    """Register our architectures with timm and torchvision, importing both; safe to call again.

    Returns:
        The record of each host, by host.

    Raises:
        RegistryError: our own data is damaged; as after any other error, the host is left as it was.
    """
    import importlib

    for host, module in HOST_MODULES.items():
        importlib.import_module(module)
        register_host(host, "convstem.register()")
    return dict(RECORDS)


def register_loaded(path: str) -> None:
    """Register with the hosts that are imported already."""
    for host, module in HOST_MODULES.items():
        loaded = sys.modules.get(module)
        # A host that is still importing registers at its end, through the finder.
        if loaded is not None and not getattr(loaded.__spec__, "_initializing", False):
            register_host(host, path)


def register_host(host: str, path: str) -> Record:
    """Register our architectures with one imported host.

    Args:
        host: ``timm`` or ``torchvision``.
        path: who asked, for the record.

    Raises:
        Exception: whatever stopped the registration; the names registered so far are withdrawn.
    """
    record = RECORDS[host] = Record(host, path)
    try:
        _REGISTER[host](record)
    except Exception as error:
        record.names.clear()
        record.error = f"{type(error).__name__}: {error}"
        raise
    if record.refused:
        owners = "; ".join(f"{name} ({reason})" for name, reason in sorted(record.refused.items()))
        warn(
            f"convstem left {len(record.refused)} {host} model name(s) to their owners: {owners}. "
            "`convstem doctor` shows what was registered.",
            RuntimeWarning,
        )
    return record


def _register_timm(record: Record) -> None:
    from timm.models import _registry

    from convstem.hosts import convstem_timm

    functions = convstem_timm.entrypoints()
    new = _unclaimed(record, functions, _registry._model_entrypoints, convstem_timm.__name__)
    try:
        for name in new:
            _registry.register_model(functions[name])
    except Exception:
        for name in new:
            _registry._model_entrypoints.pop(name, None)
            _registry._clear_model_entries(name)
        raise
    record.names += sorted(set(functions) - set(record.refused))


def _register_torchvision(record: Record) -> None:
    from torchvision import models  # the parent may still be importing: it has no attribute `models` yet
    from torchvision.models._api import BUILTIN_MODELS, register_model

    from convstem.hosts import convstem_torchvision

    builders, enums = convstem_torchvision.builders()
    new = _unclaimed(record, builders, BUILTIN_MODELS, convstem_torchvision.HOME)
    try:
        for name in new:
            register_model(name)(builders[name])
            setattr(models, enums[name].__name__, enums[name])  # where get_weight() looks
    except Exception:
        for name in new:
            BUILTIN_MODELS.pop(name, None)
            vars(models).pop(enums[name].__name__, None)
        raise
    record.names += sorted(set(builders) - set(record.refused))


def _unclaimed(
    record: Record, ours: Mapping[str, Callable[..., Any]], table: Mapping[str, Callable[..., Any]], home: str
) -> list[str]:
    """Return our names that are not in the host's table yet; record those that belong to somebody else."""
    for name in set(ours) & set(table):
        owner = getattr(table[name], "__module__", None)
        if owner != home:
            record.refused[name] = f"registered by {owner}"
    return [name for name in ours if name not in table]


_REGISTER = {"timm": _register_timm, "torchvision": _register_torchvision}
