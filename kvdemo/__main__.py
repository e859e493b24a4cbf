"""The program ``kvdemo``, and ``python -m kvdemo``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being imported is no error either."""
    try:
        from kvdemo.cli import main as run  # noqa: PLC0415 (inside, so that an interruption of it is caught)

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
