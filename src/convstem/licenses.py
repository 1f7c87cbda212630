"""Licences of weights: what counts as one, and which forbid passing derivatives on."""

from __future__ import annotations

import re

_FORM = re.compile(r"[a-z0-9][a-z0-9.+-]*")

_NOT_A_LICENCE = ("none", "unknown", "unlicensed")

_NO_DERIVATIVES = {
    "cc-by-nc-nd-3.0": "forbids derivatives",
    "cc-by-nc-nd-4.0": "forbids derivatives",
    "cc-by-nd-4.0": "forbids derivatives",
    "other": "is one of its own, whose terms nobody has checked",
    "unknown": "is not known, and without one nothing may be passed on",
}


def check_license(license: str | None) -> str:
    """Return the licence if it can be one.

    Args:
        license: identifier as the Hub writes it, for example ``apache-2.0``.

    Raises:
        ValueError: missing, not an identifier, or a word for having none.
    """
    if not license or not _FORM.fullmatch(license) or license in _NOT_A_LICENCE:
        raise ValueError(
            f"a licence is required, as an SPDX identifier in lower case such as apache-2.0, mit or cc-by-nc-4.0; "
            f"got {license!r}"
        )
    return license


def refusal(license: str) -> str | None:
    """Return why weights under this licence may not be published in changed form, or None."""
    why = _NO_DERIVATIVES.get(license)
    return f"the licence of the source ({license}) {why}" if why else None


def license_of_card(text: str, where: str = "README.md") -> str:
    """Return the licence in a model card's metadata.

    Raises:
        ValueError: no valid metadata, or no licence in it.
    """
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(text).data
    except Exception as error:  # huggingface_hub and its YAML parser raise several kinds
        raise ValueError(f"the metadata of {where} is not valid: {error}") from error
    license = data.get("license")
    if not license:
        raise ValueError(f"{where} names no licence: its metadata needs a line such as `license: apache-2.0`")
    return check_license(str(license))
