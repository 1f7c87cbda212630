"""Versions that some tests need. The floors have transformers 4, since 5 requires a newer huggingface_hub."""

from importlib.metadata import version

TRANSFORMERS_5 = int(version("transformers").split(".")[0]) >= 5
NEEDS_TRANSFORMERS_5 = "transformers 4: its models have the keys of its files, and its TimmBackbone takes no weights"
