"""`python -m asa_classroom`."""

from asa_classroom.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
