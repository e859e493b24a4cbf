"""Run a maker of models in the engines' interpreter, which holds numpy and tokenizers and need not have kvdemo."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import kvdemo
from kvdemo import backends
from kvdemo.errors import PreflightError

# kvdemo is put where that interpreter finds it, and none of the packages beside it.
_RUN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("kvdemo", sys.argv.pop(1))
package = importlib.util.module_from_spec(spec)
sys.modules["kvdemo"] = package
spec.loader.exec_module(package)
from kvdemo.makers.smollm2 import main
sys.exit(main())
"""


def speaking(environ: Mapping[str, str]) -> Path:
    """Where SmolLM2 is kept: in a checkout where scripts/setup makes it, else in the user's cache directory."""
    checkout = Path(kvdemo.__file__).resolve().parents[1]
    if (checkout / "scripts" / "setup").is_file():
        return checkout / ".cache" / "smollm2"
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path("~/.cache").expanduser()) / "kvdemo" / "smollm2"


def make(out: Path, python: str) -> str:
    """Make SmolLM2 at ``out``; what the maker printed.

    Raises:
        PreflightError: the interpreter lacks what is needed, or the model could not be fetched.
    """
    try:
        completed = subprocess.run(
            [python, "-c", _RUN, kvdemo.__file__, str(out)],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
    except OSError as error:
        raise PreflightError(
            f"{python} cannot be run: {error.strerror}", "name the interpreter that holds vLLM"
        ) from None
    if completed.returncode:
        lines = completed.stderr.strip().splitlines() or [f"exit code {completed.returncode}"]
        if "ModuleNotFoundError" in lines[-1]:
            raise PreflightError(
                f"the model cannot be made with {python}: {lines[-1]}",
                f"name the interpreter with vLLM and {backends.DEFAULT.title}: kvdemo init --python /path/to/python",
            )
        raise PreflightError("\n".join(lines).removeprefix("smollm2: "), "")
    return completed.stdout.strip()
