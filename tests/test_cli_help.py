"""What the command line says of itself: help, version, the usage after a mistyped command."""

import argparse
import re

import pytest

import asa_mini
from asa_mini.cli import build_parser, main


@pytest.mark.parametrize(
    ("arguments", "command", "words"),
    [
        ("", "", "COMMAND"),
        ("trian", "", "trian"),
        ("train", "train", "--output_dir"),
        ("train --output_dir x --kind ner", "train", "choose from 'classification', 'regression'"),
        ("train --output_dir x --method freelb", "train", "choose from 'asa', 'rdrop', 'naive'"),
        ("train --output_dir x --num_train_epochs many", "train", "invalid float value: 'many'"),
        ("train --output_dir x --max_steps 2.5", "train", "invalid int value: '2.5'"),
        ("train --output_dir x --learning_rte 1", "train", "did you mean --learning_rate or"),
        ("train --output_dir x --weight_dekay 1", "train", "did you mean --weight_decay"),
        ("evaluate", "evaluate", "--model_name_or_path"),
        ("evaluate --model_name_or_path x --fp16", "evaluate", "unrecognized arguments: --fp16"),
        ("bench steps", "bench", "steps"),
    ],
)
def test_mistyped_commands(capsys, arguments, command, words):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert "error: " in lines[-1] and words in lines[-1], lines
    assert lines[0].startswith(f"usage: python -m asa_mini {command}"), "the usage of the command"


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"asa_mini {asa_mini.__version__}\n"


def test_help_explains_every_command_and_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    (commands,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert set(commands.choices) == {"train", "evaluate", "predict", "tasks", "bench"}
    for command in commands.choices:
        assert re.search(rf"\n    {command}\s+[a-z]", text)
    for command in ("train", "evaluate", "predict"):
        parser = commands.choices[command]
        for action in parser._actions:
            shown = parser._get_formatter()._expand_help(action)
            assert len(shown) > 10, action.dest
            negation = any(name.startswith("--no_") for name in action.option_strings)
            assert action.dest == "help" or negation or "(default: " in shown or "(required)" in shown, (
                action.dest
            )
            if not any(action.default is value for value in (None, False, argparse.SUPPRESS)):
                assert f"(default: {action.default})" in shown
            assert "None" not in shown
    assert "Every other option of transformers.TrainingArguments" in commands.choices["train"].format_help()
    assert "--per-device" not in commands.choices["train"].format_help(), "each option once"
