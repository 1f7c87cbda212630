"""The checksum of kept stems."""

import torch

from convstem.transplanting.kept import _checksum


def test_the_checksum_sees_flipped_bits_and_the_order_of_pages_and_tensors() -> None:
    tensor = torch.randn(3 * 4096 + 7)
    first = _checksum({"a": tensor, "b": torch.ones(2)})
    swapped = torch.cat([tensor[1024:2048], tensor[:1024], tensor[2048:]])
    flipped = tensor.clone()
    flipped.view(torch.uint8)[-1] ^= 1
    others = [{"a": swapped, "b": torch.ones(2)}, {"a": flipped, "b": torch.ones(2)}, {"b": torch.ones(2), "a": tensor}]
    assert first == _checksum({"a": tensor.clone(), "b": torch.ones(2)})
    assert all(_checksum(state) != first for state in others)
