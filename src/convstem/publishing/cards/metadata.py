"""The metadata at the head of a model card, which the Hub reads and huggingface_hub validates."""

from __future__ import annotations

from typing import Any

from convstem.hub.provenance import TRANSPLANTED
from convstem.publishing.cards.facts import CardFacts
from convstem.registry.licenses import license_metadata

_DATASETS = {
    "CIFAR-10": "cifar10",
    "ImageNet-1k": "imagenet-1k",
    "ImageNet-21k": "imagenet-21k",
}
"""Datasets by their ids on the Hub."""


_METRICS = {"acc@1": "accuracy", "acc@5": "accuracy"}
"""Metrics by their ids on the Hub."""


def metadata(facts: CardFacts) -> Any:
    """Return huggingface_hub's ``ModelCardData`` of a card."""
    from huggingface_hub import ModelCardData

    dataset = _DATASETS.get(facts.dataset)
    relation = {"base_model_relation": "finetune"} if facts.base_model else {}
    further: dict[str, Any] = {**license_metadata(facts.license), **relation}
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification" if facts.num_classes else "image-feature-extraction",
        tags=["convstem", "timm", "transformers", *(["transplant"] if _has_transplant(facts) else []), "vit"],
        datasets=[dataset] if dataset else None,
        base_model=facts.base_model,
        model_name=facts.name,
        eval_results=_eval_results(facts) or None,
        **further,
    )


def _has_transplant(facts: CardFacts) -> bool:
    return facts.transplanted or any(step.what == TRANSPLANTED for step in facts.steps)


def _eval_results(facts: CardFacts) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=_DATASETS.get(facts.dataset, facts.dataset.lower()),
            dataset_name=facts.dataset,
            metric_type=_METRICS.get(name, name),
            metric_name=f"{name} (%)" if name in _METRICS else name,
            metric_value=value,
            source_name=(facts.metrics_source or "measured by the author") if facts.repo_id else None,
            source_url=f"https://huggingface.co/{facts.repo_id}" if facts.repo_id else None,
        )
        for name, value in sorted(facts.metrics.items())
    ]
