"""Builds models without initialising what a checkpoint will overwrite, and without copying mapped tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from convstem.weights.devices import DeviceCopier, Move, has_streams, transfer

Call: TypeAlias = Callable[[Tensor], Any]


# Attributes that do not depend on a parameter's values; any other use runs its initialisation first.
_GETTERS = ("device", "dtype", "grad_fn", "is_leaf", "is_meta", "is_sparse", "layout", "ndim", "requires_grad", "shape")


_METADATA = {getattr(Tensor, name).__get__ for name in _GETTERS} | {
    Tensor.dim,
    Tensor.element_size,
    Tensor.is_complex,
    Tensor.is_contiguous,
    Tensor.is_floating_point,
    Tensor.numel,
    Tensor.requires_grad_,
    Tensor.size,
    Tensor.stride,
}


class DeferredInit(TorchFunctionMode):
    """While active on this thread, delays the initialisation of a parameter until its values are used, or until exit.

    A parameter filled by a checkpoint in the meantime is never initialised, which saves random numbers and memory: this
    makes loading fast. On exit every parameter holds either its loaded or its initial values; buffers are computed as
    usual. It works for any model code, because it acts on tensors. Values for an accelerator are sent together on exit
    (``transfer``).

    Args:
        adopt: let parameters share the memory of the loaded tensors if shape, dtype and device agree, instead of
            copying. Only safe for a file that is never written again, such as one in the Hub's cache. Changing the
            parameters does not change the file, which is mapped privately.
    """

    def __init__(self, adopt: bool = False) -> None:
        super().__init__()
        self._adopt = adopt
        self._pending: MutableMapping[Tensor, list[Call]] = WeakTensorKeyDictionary()  # weak: forgets a replaced head
        self._adopted: set[int] = set()
        self._moves: list[Move] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Handle one call into torch."""
        kwargs = kwargs or {}
        if func in _METADATA:
            return func(*args, **kwargs)
        target = args[0] if args else kwargs.get("tensor")  # torch.nn.init passes it by keyword
        if not (_changes_in_place(func) and isinstance(target, nn.Parameter)):
            target = None
        # A call with other tensors as arguments cannot wait: they may change meanwhile.
        others = _tensors_in([value for value in (*args, *kwargs.values()) if value is not target])
        for value in others:
            if isinstance(value, nn.Parameter):
                self._initialise(value)
        if target is None:
            return func(*args, **kwargs)
        if func is Tensor.copy_:
            return self._fill(target, *args[1:], **kwargs)
        if others:
            self._initialise(target)
            return func(*args, **kwargs)
        self._pending.setdefault(target, []).append(_without_target(func, args, kwargs))
        return target

    def __exit__(self, *error: Any) -> None:
        """Exit, and initialise what was not filled."""
        super().__exit__(*error)
        if error[0] is None:
            self._send()
            for parameter in list(self._pending):
                self._initialise(parameter)

    @torch.no_grad()
    def _initialise(self, parameter: Tensor) -> None:
        if any(move.target is parameter for move in self._moves):
            self._send()
        for call in self._pending.pop(parameter, ()):
            call(parameter)

    def _fill(self, parameter: nn.Parameter, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if value.shape == parameter.shape:  # else the value is broadcast, an initialisation like any other
            self._pending.pop(parameter, None)
        if _travels(parameter, value):
            self._moves.append(Move(parameter, value.detach().contiguous()))
            return parameter
        if not self._adoptable(parameter, value):
            self._initialise(parameter)
            return parameter.copy_(value, *args, **kwargs)
        self._adopted.add(value.data_ptr())
        parameter.data = value
        return parameter

    def _send(self) -> None:
        moves, self._moves = self._moves, []
        for device in {move.target.device for move in moves}:
            transfer([move for move in moves if move.target.device == device], DeviceCopier(device))

    def _adoptable(self, parameter: nn.Parameter, value: Tensor) -> bool:
        same = all(getattr(value, name) == getattr(parameter, name) for name in ("shape", "dtype", "device"))
        free = value.data_ptr() not in self._adopted  # a tensor loaded twice must not tie two parameters
        whole = value.untyped_storage().nbytes() == value.nbytes  # else torch.save would write the whole storage
        return self._adopt and same and free and whole and value.is_contiguous() and not value.requires_grad


def _travels(parameter: Tensor, value: Tensor) -> bool:
    """Return whether a value goes from the CPU to a device that copies asynchronously."""
    same = value.shape == parameter.shape and parameter.is_contiguous()
    return same and value.device.type == "cpu" and has_streams(parameter.device)


def _tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among arguments, however deep in lists, tuples and dictionaries."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (dict, list, tuple)):
            found += _tensors_in(value.values() if isinstance(value, dict) else value)
    return found


def _changes_in_place(func: Callable[..., Any]) -> bool:
    name: str = getattr(func, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def _without_target(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return the call as a function of its target, so that a pending call does not keep the target alive."""
    if args:
        others = args[1:]
        return lambda tensor: func(tensor, *others, **kwargs)
    options = {key: value for key, value in kwargs.items() if key != "tensor"}
    return lambda tensor: func(tensor=tensor, **options)
