"""One of the processes that torchrun starts for test_distributed.py. Rank 0 writes ``results.pt`` into a folder.

torchrun --nproc-per-node 2 tests/support/distributed_worker.py FOLDER DEVICE
"""

import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from timm.layers import convert_sync_batchnorm
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

NAME = "vit_nano4_convstem"
MEAN = "patch_embed.backbone.0.bn.running_mean"


def create(norm: str, seed: int = 0) -> Any:
    """Return a model in train mode, the same in every process."""
    torch.manual_seed(seed)
    return timm.create_model(NAME, depth=2, stem_norm=norm).train()


def batch() -> tuple[Tensor, Tensor]:
    """Return 16 images and labels; the two halves differ."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 32, 32, generator=generator)
    images[8:] = 2 * images[8:] + 1
    return images, torch.arange(16) % 10


def step(model: Any, images: Tensor, labels: Tensor, optimizer: Any = None) -> None:
    """Backpropagate one batch; update if there is an optimizer."""
    nn.functional.cross_entropy(model(images), labels).backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


def create_optimizer(model: Any) -> Any:
    """Return an optimizer with state."""
    return torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)


def gradients(model: Any) -> dict[str, Tensor]:
    """Return the gradients by parameter name."""
    return {name: parameter.grad.cpu() for name, parameter in model.named_parameters() if parameter.grad is not None}


def my_part(device: Any) -> tuple[Tensor, Tensor]:
    """Return this process's part of the batch."""
    images, labels = (tensor.chunk(dist.get_world_size())[dist.get_rank()] for tensor in batch())
    return images.to(device), labels.to(device)


def ddp_gradients(device: Any, norm: str, convert: bool | None = None) -> dict[str, Tensor]:
    """Return the gradients of one step under DistributedDataParallel."""
    model = create(norm).to(device)
    ddp = DistributedDataParallel(convert(model) if convert else model)
    step(ddp, *my_part(device))
    return gradients(ddp.module)


def buffers_seen(device: Any, broadcast: bool) -> Tensor:
    """Return the last process's running mean after a forward; each process starts with its rank as running mean."""
    ddp = DistributedDataParallel(create("batchnorm2d").to(device).eval(), broadcast_buffers=broadcast)
    running_mean = dict(ddp.module.named_buffers())[MEAN]
    running_mean.fill_(dist.get_rank())
    ddp(my_part(device)[0])
    seen = running_mean.clone()
    dist.broadcast(seen, dist.get_world_size() - 1)
    return seen.cpu()


def reduced_buffers(device: Any) -> Tensor:
    """Return the running mean after timm's ``--dist-bn reduce``; each process starts with its rank as running mean."""
    model = create("batchnorm2d").to(device)
    dict(model.named_buffers())[MEAN].fill_(dist.get_rank())
    distribute_bn(model, dist.get_world_size(), reduce=True)
    return dict(model.named_buffers())[MEAN].cpu()


def sync_bn_message(device: Any) -> str:
    """Return DistributedDataParallel's message about SyncBatchNorm on this device."""
    try:
        DistributedDataParallel(convert_sync_batchnorm(create("batchnorm2d")).to(device))
    except ValueError as error:
        return str(error)
    return ""


def fsdp(device: Any, folder: Path) -> int:
    """Shard block by block, train one step, save. Return the number of parameter values in this process."""
    model = create("frozen_bn").to(device)
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = create_optimizer(model)
    step(model, *my_part(device), optimizer)
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / "dcp")  # type: ignore[attr-defined]
    return sum(parameter.to_local().numel() for parameter in model.parameters())


def main(folder: Path, device: Any) -> None:
    """Run everything in one go, since starting processes costs more than the work."""
    if device == "cuda":
        torch.cuda.set_device(int(dist.get_node_local_rank()))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    results = {
        "gradients": {norm: ddp_gradients(device, norm) for norm in ("batchnorm2d", "frozen_bn", "layernorm2d")},
        "broadcast": {flag: buffers_seen(device, flag) for flag in (True, False)},
        "reduced": reduced_buffers(device),
        "fsdp_values": fsdp(device, folder),
        "sync_bn": sync_bn_message(device),
    }
    if device == "cuda":
        results["gradients"]["sync"] = ddp_gradients(device, "batchnorm2d", convert_sync_batchnorm)
    if dist.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
