"""The command line: `python -m asa_mini train | evaluate | bench`."""

import argparse
import sys
from functools import partial
from pathlib import Path

from asa_mini.errors import AsaError, DataFileError

METHOD_HELP = (
    "asa; rdrop: two dropout passes and the same divergence, no mask; naive: plain training; random_mask, "
    "smoothing: plain training with a prior on attention"
)


def main(argv: list[str] | None = None) -> int:
    """Run one command, see `run`."""
    return run(build_parser(), argv)


def run(parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    """Parse `argv` and run its command, whose parser has set the default `run`.

    Returns the exit code: 0; 2 for a user's error, one line on stderr; 130 for Ctrl-C.
    """
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except (AsaError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
        print(f"asa_mini: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("asa_mini: interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m asa_mini",
        description="Adversarial Self-Attention: train an encoder against a mask that an adversary chooses.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_train(commands.add_parser("train", help="fine-tune a classifier", formatter_class=HelpFormatter))
    _add_evaluate(
        commands.add_parser("evaluate", help="accuracy of a classifier", formatter_class=HelpFormatter)
    )
    _add_bench(commands.add_parser("bench", help="measure what ASA costs", formatter_class=HelpFormatter))
    return parser


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: ...)", except where the help has to say in words what leaving the option out means."""

    def _get_help_string(self, action):
        wordless = action.default is None or action.default is False
        return action.help if wordless else super()._get_help_string(action)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", default="shortcut", help="shortcut (shipped) or sst2")
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="FOLDER",
        help="folder with the dataset's files (default: ASA_DATA_DIR, else the shipped ones or the hub)",
    )
    parser.add_argument(
        "--plant",
        type=float,
        metavar="AGREEMENT",
        help="plant a shortcut word that agrees with the label this often, 0 to 1 (default: plant none)",
    )
    parser.add_argument(
        "--max-length", type=int, default=128, help="longest sequence in tokens; longer texts are cut"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="default", help="default, a local folder, or a name on the hub")
    _add_data(parser)
    parser.add_argument("--method", default="asa", help=METHOD_HELP)
    parser.add_argument(
        "--temperature", type=float, default=0.5, help="tau: pay of the adversary per kept unit"
    )
    parser.add_argument("--strength", type=float, default=0.1, help="of random_mask or smoothing, 0 to 1")
    parser.add_argument(
        "--layers",
        type=int,
        nargs="+",
        metavar="LAYER",
        help="attacked layers, counted from 0 (default: all)",
    )
    parser.add_argument("--epochs", type=float, default=3.0, help="passes over the training set")
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="peak learning rate of the encoder")
    parser.add_argument(
        "--adversary-learning-rate", type=float, help="of the adversaries (default: the encoder's)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="examples per step")
    parser.add_argument("--limit", type=int, help="use at most this many training rows (default: all)")
    parser.add_argument(
        "--select", default="last", help="weights to keep: last, or best (lowest dev loss by epoch)"
    )
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="mixed precision by autocast, faster where the device has bfloat16 (default: float32)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder for the checkpoint and metrics.json (required)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run that is already in --output, once the new one is complete (default: refuse)",
    )
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> None:
    # Imported here, because --help and a mistyped option need not wait for datasets and the Trainer.
    from asa_mini.train.data import NUM_LABELS, load
    from asa_mini.train.models import load_model
    from asa_mini.train.run import TrainConfig, train
    from asa_mini.wrap import AsaConfig

    config = TrainConfig(
        method=arguments.method,
        asa=AsaConfig(arguments.temperature, layers=arguments.layers),
        adversary_learning_rate=arguments.adversary_learning_rate,
        strength=arguments.strength,
        num_train_epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        per_device_train_batch_size=arguments.batch_size,
        max_seq_length=arguments.max_length,
        seed=arguments.seed,
        load_best_model_at_end=arguments.select == "best",
        bf16=arguments.bf16,
    )
    dataset = _load(load, arguments, limit=arguments.limit)
    about = {"model": arguments.model, "dataset": arguments.dataset, "plant": arguments.plant}
    result = train(
        dataset,
        config,
        partial(load_model, arguments.model, NUM_LABELS),
        arguments.output,
        arguments.overwrite,
        about=about,
    )
    _print_results(result.metrics["results"])
    print(f"{result.metrics['steps_per_second']:.2f} steps per second; written to {arguments.output}")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="folder written by train, or a fine-tuned model on the hub (required)"
    )
    _add_data(parser)
    parser.add_argument("--batch-size", type=int, default=64, help="examples per forward pass")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the results to this JSON file (default: only print them)",
    )
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from asa_mini.train.data import NUM_LABELS, load
    from asa_mini.train.files import write_json
    from asa_mini.train.models import load_model
    from asa_mini.train.run import environment, evaluate

    if arguments.output and not arguments.output.parent.is_dir():
        raise DataFileError(
            f"there is no folder {arguments.output.parent} to write --output to; make it first"
        )
    dataset = _load(load, arguments)
    model, tokenizer = load_model(arguments.model, NUM_LABELS, trained=True)
    results = evaluate(model, tokenizer, dataset, arguments.batch_size, arguments.max_length)
    _print_results(results)
    if arguments.output:
        write_json(arguments.output, {"results": results, **environment()})


def _load(load, arguments: argparse.Namespace, limit: int | None = None):
    return load(arguments.dataset, arguments.data_dir, arguments.plant, arguments.seed, limit)


def _print_results(results: dict) -> None:
    print(f"{'split':10}{'n':>6}{'accuracy':>10}   95 % interval")
    for split, row in results.items():
        print(f"{split:10}{row['n']:6d}{row['accuracy']:10.1%}   {row['low']:.1%} to {row['high']:.1%}")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(required=True, metavar="WHAT")
    step = what.add_parser("step", help="one whole optimisation step", formatter_class=HelpFormatter)
    model_help = "default, bert-base-shape (random weights), a local folder, or a name on the hub"
    step.add_argument("--model", default="default", help=model_help)
    step.add_argument("--batch-size", type=int, nargs="+", default=[32, 8], help="one per --length")
    step.add_argument("--length", type=int, nargs="+", default=[64, 256], help="sequence lengths in tokens")
    step.add_argument("--repeats", type=int, default=11, help="measured steps of each kind")
    step.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    step.set_defaults(run=_bench_step)

    attention = what.add_parser("attention", help="attention alone", formatter_class=HelpFormatter)
    lengths_help = "sequence lengths in tokens"
    attention.add_argument(
        "--length", type=int, nargs="+", default=[512, 1024, 2048, 4096], help=lengths_help
    )
    attention.add_argument("--tokens", type=int, default=16384, help="tokens in the batch, at every length")
    attention.add_argument("--heads", type=int, default=12, help="H, attention heads")
    attention.add_argument("--dim", type=int, default=64, help="D, dimension of a head")
    attention.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16", help="of all"
    )
    attention.set_defaults(run=_bench_attention)
    for command in (step, attention):
        command.add_argument(
            "--output",
            type=Path,
            metavar="FILE",
            help="write the results to this JSON file (default: only print them)",
        )


def _bench_step(arguments: argparse.Namespace) -> None:
    from asa_mini.bench.step import bench_step, print_table

    given = arguments.model, arguments.batch_size, arguments.length, arguments.repeats, arguments.bf16
    rows = bench_step(*given)
    print_table(rows)
    _write_bench(arguments, {"rows": rows})


def _bench_attention(arguments: argparse.Namespace) -> None:
    from asa_mini.bench.attention import bench_attention, print_attention

    shape = arguments.tokens, arguments.heads, arguments.dim, arguments.dtype
    result = bench_attention(arguments.length, *shape)
    print_attention(result)
    settings = {name: getattr(arguments, name) for name in ("tokens", "heads", "dim", "dtype")}
    _write_bench(arguments, settings | result)


def _write_bench(arguments: argparse.Namespace, result: dict) -> None:
    from asa_mini.train.files import write_json
    from asa_mini.train.run import environment

    if arguments.output:
        write_json(arguments.output, {**result, **environment()})
