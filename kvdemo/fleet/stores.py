"""The directories of KV files (L2): made by ``up`` with a mark, deleted only if they carry it.

``ROOT/.kvdemo-store`` marks a directory that kvdemo made; below it lies one directory per fingerprint of model,
weights, flags and versions, because a backend's own key knows none of them and would load wrong KV silently. A project
remembers the stores that it used, so that ``down -v`` finds them after a plain ``down`` too.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
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
        if str(store) not in used_stores(memory):
            with memory.open("a", encoding="utf-8") as stream:
                stream.write(f"{json.dumps(str(store))}\n")
    except OSError as error:
        raise PreflightError(
            f"KV store {store}: {error.strerror}", "set caches.*.l2 to a directory you can write, with space left"
        ) from None


def used_stores(memory: Path) -> list[str]:
    """The stores that a project used and did not delete."""
    try:
        records = [json.loads(line) for line in memory.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [store for store in records if isinstance(store, str)]


def delete(memory: Path) -> int:
    """Delete the remembered stores that are marked, and the directory above one if kvdemo made it; bytes freed."""
    freed_bytes = 0
    for store in map(Path, used_stores(memory)):
        if (store / MARK).is_file():
            freed_bytes += sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
            shutil.rmtree(store)
        _delete_root(store.parent)
    memory.unlink(missing_ok=True)
    return freed_bytes


def prune(memory: Path) -> None:
    """Delete the remembered stores in which nothing was ever kept, as an interrupted start leaves them."""
    remaining = []
    for store in used_stores(memory):
        if (Path(store) / MARK).is_file() and _only_mark(Path(store)):
            shutil.rmtree(store, ignore_errors=True)
            _delete_root(Path(store).parent)
        else:
            remaining.append(store)
    with suppress(OSError):
        if remaining:
            memory.write_text("".join(f"{json.dumps(store)}\n" for store in remaining), encoding="utf-8")
        else:
            memory.unlink(missing_ok=True)


def _only_mark(directory: Path) -> bool:
    return not any(file.is_file() for file in directory.rglob("*") if file.name != MARK)


def _delete_root(root: Path) -> None:
    if (root / MARK).is_file() and {entry.name for entry in root.iterdir()} == {MARK}:
        (root / MARK).unlink()
        root.rmdir()
