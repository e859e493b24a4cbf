"""The directories of KV files (L2): made by ``up`` with a mark, deleted only if they carry it.

``ROOT/.kvdemo-store`` marks a directory that kvdemo made; below it lies one directory per fingerprint of model,
weights, flags and versions, because LMCache's own key knows none of them and would load wrong KV silently.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from kvdemo.errors import PreflightError

MARK = ".kvdemo-store"


def make(store: Path, about: dict[str, str]) -> None:
    """Create a store's directory and note in it what its KV belongs to. Raises PreflightError if it cannot be."""
    try:
        fresh = not store.parent.exists()
        store.mkdir(parents=True, exist_ok=True)
        if fresh:
            (store.parent / MARK).write_text("made by kvdemo; `kvdemo down -v` deletes it\n")
        (store / MARK).write_text(json.dumps(about, indent=1, sort_keys=True))
    except OSError as error:
        raise PreflightError(
            f"KV store {store}: {error.strerror}", "set caches.*.l2 to a directory you can write"
        ) from None


def delete(root: Path) -> int:
    """Delete the marked stores below ``root``, and ``root`` itself if kvdemo made it; bytes freed."""
    freed = 0
    for store in root.glob(f"*/{MARK}"):
        freed += sum(file.stat().st_size for file in store.parent.rglob("*") if file.is_file())
        shutil.rmtree(store.parent)
    if (root / MARK).exists() and {entry.name for entry in root.iterdir()} == {MARK}:
        (root / MARK).unlink()
        root.rmdir()
    return freed
