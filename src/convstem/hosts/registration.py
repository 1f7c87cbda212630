"""Registers our names with timm and torchvision: all or none, never a name that somebody else owns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from _convstem_autoload import say
from convstem.errors import warn
from convstem.upstream import timm_unregister, torchvision_register, torchvision_unregister

HOST_MODULES = {"timm": "timm.models", "torchvision": "torchvision.models"}
"""Host -> the module that must be imported before names can be registered."""


EXPLICIT = "convstem.register()"
"""``Registration.path`` for a call by the user."""


@dataclass
class Registration:
    """The outcome of registering with one host; ``convstem doctor`` prints it."""

    host: str
    path: str
    """Who asked: ``torch autoload``, ``import convstem`` or ``convstem.register()``."""
    names: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Name -> why we left it to its owner."""
    error: str | None = None


REGISTRATIONS: dict[str, Registration] = {}
"""The latest registration with each host."""


def register() -> dict[str, Registration]:
    """Register convstem's architectures with timm and torchvision, importing both; safe to call again.

    Returns:
        What happened with timm and with torchvision, by name.

    Raises:
        RegistryError: our own data is damaged. After any error the library is as it was before.

    Warns:
        RuntimeWarning: some names already belong to somebody else and were left alone.
    """
    import importlib

    for host, module in HOST_MODULES.items():
        importlib.import_module(module)
        register_host(host, EXPLICIT)
    return dict(REGISTRATIONS)


def register_loaded(path: str) -> None:
    """Register with the hosts that are already imported."""
    for host, module in HOST_MODULES.items():
        loaded = sys.modules.get(module)
        # A host that is still importing registers at its end, through the finder.
        if loaded is not None and not getattr(loaded.__spec__, "_initializing", False):
            register_host(host, path)


def register_host(host: str, path: str) -> Registration:
    """Register convstem's architectures with one imported host.

    Args:
        host: ``timm`` or ``torchvision``.
        path: who asked.

    Raises:
        Exception: what stopped the registration; the names registered so far are withdrawn.
    """
    done = REGISTRATIONS[host] = Registration(host, path)
    try:
        _REGISTER[host](done)
    except Exception as error:
        done.names.clear()
        done.error = f"{type(error).__name__}: {error}"
        raise
    if done.refused:
        _tell_refused(done)
    return done


def _tell_refused(done: Registration) -> None:
    try:
        warn(_refused(done), RuntimeWarning)
    except RuntimeWarning as error:
        if done.path == EXPLICIT:
            raise
        say(str(error))  # with -W error it would break the import of a host


def _refused(done: Registration) -> str:
    owners = "; ".join(f"{name} ({reason})" for name, reason in sorted(done.refused.items()))
    return (
        f"convstem left {len(done.refused)} {done.host} model name(s) to their owners: {owners}. "
        "`convstem doctor` shows what was registered."
    )


def _register_timm(done: Registration) -> None:
    from timm import models  # `timm` may still be importing and have no attribute `models` yet

    from convstem.hosts import convstem_timm

    def withdraw(name: str) -> None:
        timm_unregister(name)
        vars(models).pop(name, None)

    functions = convstem_timm.entrypoints()
    taken = {name: models.model_entrypoint(name) for name in functions if models.is_model(name)}
    new = _unclaimed(done, functions, taken, convstem_timm.__name__)
    with _all_or_none(new, withdraw):
        for name in new:
            models.register_model(functions[name])
            setattr(models, name, functions[name])  # where timm keeps its own
    done.names += sorted(set(functions) - set(done.refused))


def _register_torchvision(done: Registration) -> None:
    from torchvision import models

    from convstem.hosts import convstem_torchvision

    def withdraw(name: str) -> None:
        sys.modules.pop(convstem_torchvision.HOME, None)
        torchvision_unregister(name)
        for attribute in (name, enums[name].__name__):
            vars(models).pop(attribute, None)

    builders, enums = convstem_torchvision.builders()
    taken = {name: models.get_model_builder(name) for name in set(models.list_models()) & set(builders)}
    new = _unclaimed(done, builders, taken, convstem_torchvision.HOME)
    with _all_or_none(new, withdraw):
        for name in new:
            torchvision_register(name, builders[name])
            setattr(models, name, builders[name])
            setattr(models, enums[name].__name__, enums[name])  # where get_weight() looks
    done.names += sorted(set(builders) - set(done.refused))


@contextmanager
def _all_or_none(names: Iterable[str], withdraw: Callable[[str], None]) -> Iterator[None]:
    """Withdraw all names if one cannot be registered."""
    try:
        yield
    except Exception:
        for name in names:
            withdraw(name)
        raise


def _unclaimed(
    done: Registration, ours: Iterable[str], taken: Mapping[str, Callable[..., Any]], home: str
) -> list[str]:
    """Return our names that the host does not have yet; note in ``done`` those that belong to somebody else."""
    for name, function in taken.items():
        owner = getattr(function, "__module__", None)
        if owner != home:
            done.refused[name] = f"registered by {owner}"
    return [name for name in ours if name not in taken]


_REGISTER = {"timm": _register_timm, "torchvision": _register_torchvision}
