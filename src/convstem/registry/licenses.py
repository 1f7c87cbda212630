"""Licences of weights: which identifiers are valid, which are permissive, which forbid publishing derivatives."""

from __future__ import annotations

import re

from convstem.errors import ArgumentError, InvalidFileError

_FORM = re.compile(r"[a-z0-9][a-z0-9.+-]*")

_NOT_A_LICENCE = ("none", "unknown", "unlicensed")

_LISTED = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community
    h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl
    postgresql unknown unlicense wtfpl zlib
"""
"""The Hub refuses a commit with any other ``license`` in a card. Source: Hub docs, "Licenses"."""

PERMISSIVE = frozenset(
    ["0bsd", "apache-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "cc-by-4.0"]
    + ["cc0-1.0", "isc", "mit", "unlicense", "wtfpl", "zlib"]
)
"""Licences that let everybody use, change and sell the weights and require at most attribution."""

_NO_DERIVATIVES = {
    "cc-by-nc-nd-3.0": "forbids derivatives",
    "cc-by-nc-nd-4.0": "forbids derivatives",
    "cc-by-nd-4.0": "forbids derivatives",
    "other": "is custom, and nobody has checked its terms",
    "unknown": "is unknown, and without one nothing may be redistributed",
}


def check_license(license: str | None) -> str:
    """Return the licence if it is a valid identifier.

    Args:
        license: identifier as the Hub writes it, for example ``apache-2.0``.

    Raises:
        ArgumentError: missing, not an identifier, or a word for no licence, such as ``none``.
    """
    if not license or not _FORM.fullmatch(license) or license in _NOT_A_LICENCE:
        raise ArgumentError(
            f"a licence is required, as an SPDX identifier in lower case such as apache-2.0, mit or cc-by-nc-4.0; "
            f"got {license!r}"
        )
    return license


def admitted(license: str, wanted: str) -> bool:
    """Return whether a licence is the wanted one; ``permissive`` admits all permissive licences."""
    return license in PERMISSIVE if wanted == "permissive" else license == wanted


def refusal(license: str) -> str | None:
    """Return why changed weights under this licence may not be published, or None."""
    why = _NO_DERIVATIVES.get(license)
    return f"the licence of the source ({license}) {why}" if why else None


def license_metadata(license: str) -> dict[str, str]:
    """Return the licence fields of a card's metadata; one that the Hub does not list goes into ``license_name``."""
    return {"license": license} if license in _LISTED.split() else {"license": "other", "license_name": license}


def license_or_other(license: object) -> str:
    """Return the licence that a file states if it is a valid identifier, else ``other``."""
    return license if isinstance(license, str) and _FORM.fullmatch(license) else "other"


def named_license(text: str, license: str) -> str:
    """Return a model card with this licence in its metadata if that said only ``other``; else the card as it is."""
    if license_of_card(text) != "other":
        return text
    fields = "".join(f"{name}: {value}\n" for name, value in license_metadata(license).items())
    return re.sub(r"^license: other *\n", fields, text, count=1, flags=re.MULTILINE)


LARGEST_METADATA = 1 << 16
"""Characters of a card's metadata; cards with hundreds of results have a third of it."""

DEEPEST_METADATA = 32
"""Nested lists and tables."""


def license_of_card(text: str, where: str = "README.md") -> str:
    """Return the licence in a model card's metadata; for ``other`` its name, if it has one.

    The metadata is untrusted YAML: aliases are refused, because they can expand a few lines without limit.

    Raises:
        ArgumentError: the stated licence is not a valid identifier.
        InvalidFileError: no valid metadata, or no licence in it.
    """
    from huggingface_hub import ModelCard

    try:
        _check_metadata(text)
        data = ModelCard(text).data
    except Exception as error:  # huggingface_hub and its YAML parser raise several kinds
        raise InvalidFileError(f"the metadata of {where} is not valid: {str(error)[:500]}") from error
    license = data.get("license")
    if not license:
        raise InvalidFileError(f"{where} names no licence: its metadata needs a line such as `license: apache-2.0`")
    if license == "other" and data.get("license_name"):
        return check_license(str(data.get("license_name"))[:100])
    return check_license(str(license)[:100])


def _check_metadata(text: str) -> None:
    """Raise ``InvalidFileError`` for a card's metadata that is too long, too deep, or has aliases."""
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(text)
    metadata = block[2] if block else ""
    if len(metadata) > LARGEST_METADATA:
        raise InvalidFileError(f"it has {len(metadata):,} characters; at most {LARGEST_METADATA:,} are read")
    depth = 0
    for event in yaml.parse(metadata, yaml.SafeLoader):  # lazy: nothing after a refused event is parsed
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise InvalidFileError("it has an alias (*NAME), which is not read: write out what it stands for")
        if depth > DEEPEST_METADATA:
            raise InvalidFileError(f"its lists are nested more than {DEEPEST_METADATA} deep")
