"""Imported by train.py --device-modules, so that two processes can train on one CPU.

timm hands DistributedDataParallel its device, which torch takes for accelerators only. Nothing else is changed.
"""

from torch.nn import parallel


class CpuDistributedDataParallel(parallel.DistributedDataParallel):
    """``DistributedDataParallel`` without device numbers."""

    def __init__(self, module, device_ids=None, **kwargs):
        super().__init__(module, **kwargs)


parallel.DistributedDataParallel = CpuDistributedDataParallel
