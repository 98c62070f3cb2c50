"""`python -m asa_mini`."""

from asa_mini.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
