"""Command-line options from dataclasses: HfArgumentParser with a short help and clear refusals."""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import get_type_hints

from transformers import HfArgumentParser


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: ...)" where there is one; of `--a_b FLOAT, --a-b FLOAT` shows `--a_b FLOAT` alone."""

    def _get_help_string(self, action):
        wordless = action.default is None or action.default is False
        return action.help if wordless else super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action):
        return getattr(action.type, "__name__", action.dest).upper()

    def _format_action_invocation(self, action):
        names = [name for name in action.option_strings if "_" in name] or action.option_strings
        if not names or action.nargs in (0, "?"):  # "?": a flag may have a value, true or false
            return ", ".join(names) or super()._format_action_invocation(action)
        return f"{names[0]} {self._format_args(action, self._get_default_metavar_for_optional(action))}"


class Parser(HfArgumentParser):
    """Tells what it does not know itself, with its own usage rather than that of the whole program.

    Attributes:
        more: gives a dataclass whose fields are options too, but not shown; those given end in the dict
            `training`. It is called when it is needed, since importing it may take seconds.
    """

    more: Callable[[], type] | None = None

    def __init__(self, prog=None, **options):
        super().__init__(prog=prog, formatter_class=HelpFormatter, allow_abbrev=False, **options)

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        known = dict(self._option_string_actions)
        if self.more and unknown:
            more = HfArgumentParser(self.more(), add_help=False, allow_abbrev=False)
            for action in more._actions:
                action.default = argparse.SUPPRESS  # only what is given counts
            more.error = self.error
            training, unknown = more.parse_known_args(unknown)
            namespace.training = vars(training)
            known |= more._option_string_actions
        if unknown:
            near = get_close_matches(unknown[0].split("=")[0], [k for k in known if "-" not in k[2:]], n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return namespace, unknown


def options(title: str, **fields: tuple) -> type:
    """A dataclass that `Parser` shows as a group: name -> type, default (MISSING: required), help."""
    made = []
    for name, (kind, default, text) in fields.items():
        given = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
        made.append((name, kind, dataclasses.field(**given, metadata={"help": text})))
    return dataclasses.make_dataclass(title, made, namespace={"_argument_group_name": title})


def options_of(title: str, home: type, names: list[str]) -> type:
    """Fields of a dataclass as a group, helped by the first sentence of its entry in the docstring."""
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", inspect.getdoc(home) or "", re.MULTILINE)
    texts = {name: " ".join(text.replace("`", "").split()).split(". ")[0] for name, text in entries}
    hints, fields = get_type_hints(home), {f.name: f for f in dataclasses.fields(home)}
    chosen = {name: (hints[name], fields[name].default, texts.get(name, "").rstrip(".")) for name in names}
    return options(title, **chosen)
