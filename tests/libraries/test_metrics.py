"""The real torchmetrics on the logits of a model and its transplant."""

import pytest
import timm
import torch

import convstem

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed: pip install .[libraries]")
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("default")]  # its own warnings are its own


@torch.no_grad()
def measured(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return accuracies and calibration error over two batches."""
    from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

    metrics = torchmetrics.MetricCollection(
        {
            "top1": MulticlassAccuracy(10, average="micro"),
            "top5": MulticlassAccuracy(10, average="micro", top_k=5),
            "calibration": MulticlassCalibrationError(10),
        }
    )
    for some, their in zip(images.chunk(2), labels.chunk(2), strict=True):
        metrics.update(model.eval()(some), their)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_a_transplant_measures_as_its_source() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10).eval()
    images = torch.rand(64, 3, 32, 32) * 2 - 1
    labels = plain(images).argmax(1).where(torch.arange(64) % 3 != 0, 0)  # two of three right, others by chance
    expected = measured(plain, images, labels)
    assert expected["top1"] == float((plain(images).argmax(1) == labels).float().mean())  # counted by hand
    other = timm.create_model("vit_ti16_convstem", img_size=32, depth=2, num_classes=10)
    assert measured(other, images, labels)["top1"] < expected["top1"]
    assert measured(convstem.transplant(plain), images, labels) == pytest.approx(expected, abs=1e-5)
