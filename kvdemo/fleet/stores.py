"""The directories of KV files (L2): made by ``up`` with a mark, deleted only if they carry it.

``ROOT/.kvdemo-store`` marks a directory that kvdemo made; below it lies one directory per fingerprint of model,
weights, flags and versions, because LMCache's own key knows none of them and would load wrong KV silently. A project
remembers the stores that it used, so that ``down -v`` finds them after a plain ``down`` too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from kvdemo.errors import PreflightError

MARK = ".kvdemo-store"


def make(store: Path, about: dict[str, str], memory: Path) -> None:
    """Create a store's directory, mark it with what its KV belongs to, and remember it in the file ``memory``.

    Raises PreflightError if it cannot be created.
    """
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
    if str(store) not in remembered(memory):
        with memory.open("a", encoding="utf-8") as stream:
            stream.write(f"{json.dumps(str(store))}\n")


def remembered(memory: Path) -> list[str]:
    """The stores that a project used and did not delete."""
    try:
        return [json.loads(line) for line in memory.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def delete(memory: Path) -> int:
    """Delete the remembered stores that are marked, and the directory above one if kvdemo made it; bytes freed."""
    freed = 0
    for store in map(Path, remembered(memory)):
        if (store / MARK).is_file():
            freed += sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
            shutil.rmtree(store)
        root = store.parent
        if (root / MARK).is_file() and {entry.name for entry in root.iterdir()} == {MARK}:
            (root / MARK).unlink()
            root.rmdir()
    memory.unlink(missing_ok=True)
    return freed
