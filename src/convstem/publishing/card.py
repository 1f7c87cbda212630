"""Model cards: metadata for the Hub, then one template filled with facts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from string import Template
from typing import Any

from convstem.errors import ArgumentError
from convstem.hosts.describe import STEM_COLUMNS, find_weights, stem_rows
from convstem.hub.config import TRANSPLANTED, read_config, read_text
from convstem.hub.failures import web_page
from convstem.hub.read import fetch_all
from convstem.hub.source import CARD, CONFIG, EVALUATION, source_of
from convstem.publishing.card_facts import CardFacts, facts_of_config, facts_of_entry, sized_spec
from convstem.registry import tables
from convstem.registry.licenses import check_license, license_metadata, license_of_card
from convstem.registry.records import Architecture, ModelSpec, macs, num_params
from convstem.registry.tables import what_is_kept

_DATASETS = {
    "CIFAR-10": "cifar10",
    "ImageNet-1k": "imagenet-1k",
    "ImageNet-21k": "imagenet-21k",
}
"""Dataset -> its id in cards of the Hub."""


_REPOSITORIES = {"CIFAR-10": "uoft-cs/cifar10", "ImageNet-1k": "ILSVRC/imagenet-1k"}
"""Dataset -> its repository on the Hub."""


_FIRST = ("acc@1", "top1", "accuracy")
"""Main metrics: the first choice if a model has several metrics."""


def evaluation(facts: CardFacts) -> str:
    """Return the content of ``.eval_results/*.yaml``; empty without metrics, a Hub dataset or a ``repo_id``.

    The Hub takes one value per task of a dataset. Other metrics go into the notes.

    Source: huggingface/hub-docs, docs/hub/eval-results.md; huggingface_hub 2.4, ``EvalResultEntry``.
    """
    import yaml

    dataset = facts.dataset if facts.dataset.count("/") == 1 else _REPOSITORIES.get(facts.dataset)
    if not (facts.metrics and dataset and facts.repo_id):
        return ""
    names = sorted(facts.metrics, key=lambda name: (name not in _FIRST, name))
    others = [f"{name} {facts.metrics[name]:g}" for name in names[1:]]
    notes = "; ".join([names[0], *others, *filter(None, [facts.metrics_source])])
    source = {"url": web_page(facts.repo_id), "name": "Model card"}
    entry = {"dataset": {"id": dataset, "task_id": "default"}, "value": facts.metrics[names[0]]}
    return str(yaml.safe_dump([{**entry, "source": source, "notes": notes}], sort_keys=False))


def write_evaluation(facts: CardFacts, folder: Path) -> None:
    """Write ``evaluation``'s text into a folder, unless it is empty."""
    if text := evaluation(facts):
        (folder / EVALUATION).parent.mkdir(exist_ok=True)
        (folder / EVALUATION).write_text(text, encoding="utf-8")


_METRICS = {"acc@1": "accuracy", "acc@5": "accuracy"}
"""Metric -> its id on the Hub."""


def metadata(facts: CardFacts) -> Any:
    """Return a card's metadata as huggingface_hub's ``ModelCardData``."""
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
            source_url=web_page(facts.repo_id) if facts.repo_id else None,
        )
        for name, value in sorted(facts.metrics.items())
    ]


TEMPLATE = "template.md"


_TRANSPLANT = """The patch embedding of {base_model} was converted into a convolutional stem:
**{kept}, not trained further**. {error}
{note}

The licence is that of {base_model}."""


_BATCHNORM = """- The stem has BatchNorm: batches that are small or unlike the training images change its
  statistics; freeze it with `convstem.freeze_stem(model)`, and use SyncBatchNorm for small batches per GPU."""


_NORMS = {
    "batchnorm2d": _BATCHNORM,
    "frozen_bn": "- The stem's BatchNorm is frozen: statistics, weight and bias do not change in training.",
    "layernorm2d": "- The stem has LayerNorm, which a transplant cannot give.",
    "none": "- The stem has no norm: nothing drifts in fine-tuning, and training from scratch is better with\n"
    '  `stem_norm="batchnorm2d"`.',
}
"""Stem norm -> advice in the card."""


_TORCHVISION_TAG = """model = torchvision.models.get_model("{torchvision}", weights="{tag}").eval()"""


_TORCHVISION_LOAD = """model = convstem.load("{place}", layout="torchvision")"""


_NOT_IN_TORCHVISION = "torchvision's VisionTransformer cannot express this model; use timm.\n"


_HERE = {
    '"local-dir:."': '"hf-hub:{repo_id}"',
    'load("."': 'load("{repo_id}"',
    'from_pretrained(".")': 'from_pretrained("{repo_id}")',
}
"""Code in a folder's card -> the same for a repository."""


def located(text: str, repo_id: str) -> str:
    """Return a folder's card with its examples changed to load from the repository."""
    for here, there in _HERE.items():
        text = text.replace(here, there.format(repo_id=repo_id))
    return text


def card_of(source: str | os.PathLike[str], license: str | None = None) -> str:
    """Return the model card of pretrained weights, a folder or a repository.

    Args:
        source: ``architecture.tag`` (or an architecture, for its default tag), a folder with a ``config.json``, or
            ``org/name``, optionally with ``@revision``.
        license: licence of a folder or repository that does not state one.

    Raises:
        ArgumentError: no licence is known, the registry states another one, or the wrong kind of source.
        HubError: the repository cannot be read.
        UnknownModelError: no such architecture or tag; the message lists the nearest names, or the tags.
    """
    found = source_of("card", source)
    if found.kind == "folder":
        return _card_of_config(found.path, None, license)
    if found.kind == "repository":
        files = fetch_all(found.repo_id, [CONFIG], found.revision, optional=[CARD])
        return _card_of_config(files[CONFIG].path.parent, found.repo_id, license)
    entry = find_weights(found.name)
    if license is not None and check_license(license) != entry.license:
        raise ArgumentError(
            f"the weights of {entry.name} are under {entry.license}, as the registry states; leave out license= "
            "(--license), which is for a folder or repository that states none"
        )
    return render(facts_of_entry(entry))


def _card_of_config(folder: Path, repo_id: str | None, license: str | None) -> str:
    config, card = read_config(folder / CONFIG), folder / CARD
    if license is None and card.is_file():
        license = license_of_card(read_text(card), card.name)
    return render(facts_of_config(config, repo_id, check_license(license or config["pretrained_cfg"].get("license"))))


def render(facts: CardFacts) -> str:
    """Return the card as markdown with validated metadata."""
    from huggingface_hub import ModelCard

    spec = sized_spec(facts)
    template = Template((tables.data_dir("hub_cards") / TEMPLATE).read_text(encoding="utf-8"))
    body = template.substitute(
        name=facts.name,
        description=facts.description or "A Vision Transformer on a convolutional stem.",
        architecture=facts.architecture,
        sizes=" ".join(filter(None, [_sizes(spec), _tokens(facts)])),
        stem=_stem_table(spec) if spec else "The stem is listed in `config.json` under `model_args`.",
        place=facts.repo_id or ".",
        timm_name=facts.name if facts.tag else f"hf-hub:{facts.repo_id}" if facts.repo_id else "local-dir:.",
        transformers=_transformers(facts),
        torchvision=_torchvision(facts, spec),
        resize=_resize(facts),
        mean=", ".join(f"{value:g}" for value in facts.mean),
        std=", ".join(f"{value:g}" for value in facts.std),
        origin=_origin(facts),
        norm=_NORMS.get(facts.model_args.get("stem_norm") or (spec.stem.norm if spec else "none"), ""),
        accuracy=_accuracy(facts),
        classes=_classes(facts),
    )
    text = f"---\n{metadata(facts).to_yaml()}\n---\n{body}"
    ModelCard(text)  # check that the metadata parses, as on the Hub
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" +\n", "\n", text))


_MOST_CLASSES = 20
"""Most class names that a card lists."""


def _classes(facts: CardFacts) -> str:
    if not facts.labels:
        return ""
    more = len(facts.labels) - _MOST_CLASSES
    names = ", ".join(facts.labels[:_MOST_CLASSES]) + (f", and {more} more in `config.json`" if more > 0 else "")
    return f"## Classes\n\n{names}.\n"


def _resize(facts: CardFacts) -> str:
    size = f"{facts.input_size[1]} x {facts.input_size[2]}"
    if facts.crop_mode == "squash":
        return f"resize to {size} ({facts.interpolation}), whatever the image's shape"
    shorter = round(facts.input_size[1] / facts.crop_pct)
    return f"resize the shorter side to {shorter} ({facts.interpolation}), centre crop {size}"


def _sizes(spec: Architecture | None) -> str:
    if spec is None:
        return ""
    paper = getattr(spec, "paper_name", "")
    heads = f"{spec.num_heads} heads" if spec.num_heads else "no attention"
    ratio = f", MLP ratio {spec.mlp_ratio:g}" if isinstance(spec, ModelSpec) else ""
    return (
        f"{spec.depth} blocks of width {spec.embed_dim}, {heads}{ratio}; "
        f"{num_params(spec) / 1e6:.2f} M parameters, {macs(spec) / 1e9:.3f} G multiply-adds per image."
        + (f" Paper: {paper} ({getattr(spec, 'paper_ids', '')})." if paper else "")
    )


def _tokens(facts: CardFacts) -> str:
    """Return a sentence about the tokens' spacing if stride and patch size differ."""
    if facts.restrided is None:
        return ""
    patch, stride = facts.restrided
    rows, columns = (side // stride for side in facts.input_size[1:])
    how = f"patches of {patch} pixels overlap" if stride < patch else f"each sees a former patch of {patch} pixels"
    return f"{rows} x {columns} tokens lie {stride} pixels apart: {how} (`stride={stride}`)."


def _stem_table(spec: Architecture) -> str:
    rows = stem_rows(spec.stem, spec.input_size[1:], spec.embed_dim)
    lines = [STEM_COLUMNS, ["---"] * len(STEM_COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _torchvision(facts: CardFacts, spec: Architecture | None) -> str:
    if not isinstance(spec, ModelSpec) or not _fits_torchvision(facts, spec):
        return _NOT_IN_TORCHVISION
    if facts.tag:
        tag = facts.tag.upper().replace("-", "_")
        code = "import torchvision\n\n" + _TORCHVISION_TAG.format(torchvision=spec.torchvision, tag=tag)
    else:
        code = "import convstem\n\n" + _TORCHVISION_LOAD.format(place=facts.repo_id or ".")
    return f"```python\n{code}\n```\n"


def _fits_torchvision(facts: CardFacts, spec: ModelSpec) -> bool:
    """Return whether torchvision's class can express the model, its head and its images."""
    known = {*ModelSpec.__dataclass_fields__, "in_chans", "stride"}
    other = {key: value for key, value in facts.model_args.items() if key not in known}
    channels, height, width = facts.input_size
    square = channels == 3 and height == width
    return bool(spec.fits_torchvision and square and facts.num_classes and other in ({}, {"global_pool": "token"}))


def _transformers(facts: CardFacts) -> str:
    if facts.tag and not facts.repo_id:
        return "after `convstem push` or `convstem publish`, by the repository's name"
    return f'`AutoModelForImageClassification.from_pretrained("{facts.repo_id or "."}")`'


def _origin(facts: CardFacts) -> str:
    if facts.transplanted:
        error = (
            f"Measured relative error of the features in float32, on probe images: {facts.measured_error:.1e}."
            if facts.measured_error is not None
            else "The relative error of the features in float32 is about 1e-6 where the stem is exact."
        )
        source, what = facts.base_model or "the source", what_is_kept(facts.resized_from)
        if facts.restrided:
            what = f"{what}, tokens at stride {facts.restrided[1]} instead of {facts.restrided[0]}"
        return _TRANSPLANT.format(base_model=source, kept=what, error=error, note=facts.note)
    known = [f"{str(step)[0].upper()}{str(step)[1:]}." for step in facts.steps]
    if facts.base_model and facts.base_model not in {step.repo_id for step in facts.steps}:
        known.append(f"Made from {facts.base_model}.")
    if facts.recipe:
        known.append(f"Recipe: `{facts.recipe}`.")
    return " ".join(known) or "Not recorded."


def _accuracy(facts: CardFacts) -> str:
    if not facts.metrics:
        same = facts.transplanted and not facts.resized_from and not facts.restrided
        return _accuracy_of_source(facts) if same else "Not measured."
    rows = ["| dataset | metric | value |", "|---|---|---|"]
    rows += [f"| {facts.dataset} | {name} | {value:g} |" for name, value in sorted(facts.metrics.items())]
    source = f"\n\nSource: `{facts.metrics_source}`." if facts.metrics_source else ""
    return "\n".join(rows) + source


def _accuracy_of_source(facts: CardFacts) -> str:
    known = ", ".join(f"{name} {value:g} %" for name, value in facts.source_metrics.items())
    figures = f": {known} on {facts.dataset} ({facts.source_metrics_from})" if known else ""
    return f"Same as {facts.base_model or 'the source'}{figures}; not measured again."
