"""Where a model is pushed to, and what a push did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from convstem.hub.listing import Listing, list_files
from convstem.hub.source import CARD, CONFIG, WEIGHTS

FILES = (CONFIG, WEIGHTS, CARD)
"""What a pushed repository holds."""


@dataclass(frozen=True)
class PushResult:
    """What a push did, or would do."""

    repo_id: str
    commit: str | None
    """The commit that has the files; None for a dry run that would make one."""
    url: str | None
    files: Mapping[str, str]
    """What happens to each file: ``add``, ``update``, ``same`` or ``remove``."""
    changed: bool
    """Whether there was anything to send."""
    pr_url: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the result JSON-plain."""
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """Where to push: a repository's branch, or a new pull request on it."""

    repo_id: str
    revision: str | None = None
    private: bool = False
    create_pr: bool = False
    token: str | bool | None = field(default=None, repr=False)

    @property
    def api(self) -> Any:
        """The Hub client."""
        from huggingface_hub import HfApi

        return HfApi(library_name="convstem", token=self.token)

    def listing(self, revision: str | None = None) -> Listing:
        """Return what the branch holds, or another revision."""
        return list_files(self.repo_id, revision or self.revision, FILES, token=self.token)
