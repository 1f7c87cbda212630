"""Resumable download, piece by piece, for connections on which huggingface_hub's single request does not survive.

Every piece asks ``/resolve/`` again, so a signed URL cannot expire, and a killed process resumes at the last piece.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PIECE = 8 << 20


def download_pieces(repo_id: str, commit: str, filename: str, size: int, target: Path, token: Any = None) -> None:
    """Complete ``target``, which may hold a prefix of the file from an earlier try.

    Args:
        repo_id, commit, filename: the file on the Hub.
        size: its length in bytes.
        target: the partial file; two processes that write it write the same bytes to the same places.
        token: see ``fetch``.
    """
    from huggingface_hub import HfFileSystem
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    target.parent.mkdir(parents=True, exist_ok=True)
    done = min(target.stat().st_size, size) // PIECE * PIECE if target.exists() else 0
    files = HfFileSystem(token=token, skip_instance_cache=True)
    remote = files.open(f"{repo_id}@{commit}/{filename}", "rb", block_size=PIECE, cache_type="none", size=size)
    bar = tqdm(total=size, initial=done, unit="B", unit_scale=True, desc=filename, name="convstem.hub")
    with remote, bar, target.open("r+b" if target.exists() else "w+b") as file:
        for start in range(done, size, PIECE):
            length = min(PIECE, size - start)
            remote.seek(start)
            piece = remote.read(length)
            if len(piece) != length:
                raise ConnectionError(f"got {len(piece)} of {length} bytes of {filename} from byte {start}")
            file.seek(start)
            file.write(piece)
            bar.update(length)
        file.truncate(size)
