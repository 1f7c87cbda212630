"""Imported by train.py --device-modules, so that two processes can train on one CPU.

timm passes its device to DistributedDataParallel, which torch allows only for accelerators. Nothing else is changed.
"""

from typing import Any

from torch import nn
from torch.nn import parallel


class CpuDistributedDataParallel(parallel.DistributedDataParallel):
    """``DistributedDataParallel`` without device ids."""

    def __init__(self, module: nn.Module, device_ids: Any = None, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)


parallel.DistributedDataParallel = CpuDistributedDataParallel  # type: ignore[misc, assignment]
