"""The classroom's command line: `python -m asa_classroom notebooks | exercises | grade`."""

import argparse

from asa_classroom import exercises, grading, notebooks
from asa_mini.cli import run
from asa_mini.train.options import HelpFormatter


def main(argv: list[str] | None = None) -> int:
    """Run one command, see `asa_mini.cli.run`."""
    return run(build_parser(), argv, extra="classroom")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m asa_classroom",
        description="Run the notebooks, make the exercises from the solutions, grade what students hand in.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, module, help_text in (
        ("notebooks", notebooks, "run the notebooks"),
        ("exercises", exercises, "make the students' notebooks from the solutions"),
        ("grade", grading, "grade students' notebooks"),
    ):
        command = commands.add_parser(name, help=help_text, formatter_class=HelpFormatter)
        module.add_arguments(command)
        command.set_defaults(run=module.main)
    return parser
