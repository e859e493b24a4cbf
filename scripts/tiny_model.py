"""Make the tiny random Llama: ``python -m kvdemo.makers.tiny``, in an interpreter that need not have kvdemo."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from kvdemo.makers.tiny import main

if __name__ == "__main__":
    sys.exit(main())
