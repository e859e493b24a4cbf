"""``python -m kvdemo``."""

from kvdemo.cli import main

if __name__ == "__main__":
    main()
