"""The command line: `asa-mini train | evaluate | predict | tasks | bench`, or `python -m asa_mini`."""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable
from dataclasses import MISSING
from functools import partial
from pathlib import Path
from typing import Literal

import transformers

import asa_mini
from asa_mini.config import AsaConfig
from asa_mini.errors import AsaError, DataFileError, Terminated
from asa_mini.train.config import TrainConfig
from asa_mini.train.files import write_json
from asa_mini.train.options import Parser, options, options_of
from asa_mini.train.tasks import KINDS

ASA = [f.name for f in dataclasses.fields(AsaConfig)]
METHOD = ["method", "adversary_learning_rate", "strength"]
TRAINING = [f.name for f in dataclasses.fields(TrainConfig) if f.name not in ("asa", "training", *METHOD)]
COLUMNS = {
    "text_column": (str | None, None, "column of the texts (default: text, tokens or sentence)"),
    "text_pair_column": (str | None, None, "column of the second text of a pair (default: no pairs)"),
}
DATA = {
    "dataset_name": (str | None, None, "a task (see tasks) or a hub's user/name (default: shortcut)"),
    "dataset_config_name": (str | None, None, "configuration of a hub's data set (default: its only one)"),
    "dataset_revision": (str | None, None, "branch, tag or commit of it (default: the main branch)"),
    "data_dir": (
        Path | None,
        None,
        "folder of a task's files (default: ASA_DATA_DIR, else shipped or the hub)",
    ),
    "train_file": (Path | None, None, "your own: CSV, TSV, JSON lines, Parquet or CoNLL (default: none)"),
    "validation_file": (Path | None, None, "evaluated after every epoch (default: none)"),
    "test_file": (Path | None, None, "evaluated at the end (default: none)"),
    **COLUMNS,
    "label_column": (str | None, None, "column of the labels (default: label)"),
    "kind": (Literal[KINDS] | None, None, "of your own task (default: what the labels look like)"),
    "plant": (float | None, None, "plant a word that agrees with the label this often (default: none)"),
}
RUN = {
    "model_name_or_path": (str, MISSING, "folder that train wrote, or a fine-tuned model (required)"),
    "per_device_eval_batch_size": (int, 64, "examples per forward pass"),
    "max_seq_length": (int | None, None, "longest sequence in tokens (default: that of the run, else 128)"),
}
FILE = {"output_file": (Path | None, None, "write the results to this JSON file (default: only print them)")}
QUIET = {"quiet": (bool, False, "no progress bar and no log lines (default: show them)")}
TRAIN = [
    options("model", model_name_or_path=(str, "default", "default, a local folder, or a name on the hub")),
    options("data", **DATA, max_train_samples=(int | None, None, "training rows to keep (default: all)")),
    options_of("method", TrainConfig, METHOD),
    options_of("ASA", AsaConfig, ASA),
    options_of("training", TrainConfig, TRAINING),
    options(
        "output",
        output_dir=(Path, MISSING, "folder for the checkpoint and metrics.json (required)"),
        overwrite_output_dir=(bool, False, "replace the run there, once this one is done (default: refuse)"),
        resume=(bool, False, "go on with what a stopped run of this command left there (default: refuse)"),
        **QUIET,
    ),
]
EVALUATE = [
    options("model", **RUN),
    options("data", **{name: field for name, field in DATA.items() if name not in ("train_file", "kind")}),
    options("planting", seed=(int | None, None, "of the planted places (default: that of the run, else 0)")),
    options("output", **FILE, **QUIET),
]
PREDICT = [
    options("model", **RUN),
    options(
        "data", test_file=(Path, MISSING, "texts to predict: as for train, or .txt (required)"), **COLUMNS
    ),
    options("output", output_file=(Path, MISSING, "file to write, .csv or .jsonl (required)"), **QUIET),
]
STEP = options(
    "measurement",
    model_name_or_path=(str, "default", "default, bert-base-shape (random), a folder, or a name on the hub"),
    batch_size=(list[int], [32, 8], "examples, one number for each length"),
    length=(list[int], [64, 256], "sequence lengths in tokens"),
    repeats=(int, 11, "measured steps of each kind"),
    bf16=(bool, False, "autocast to bfloat16 (default: float32)"),
    **FILE,
)
ATTENTION = options(
    "measurement",
    length=(list[int], [512, 1024, 2048, 4096], "sequence lengths in tokens"),
    tokens=(int, 16384, "tokens in the batch, at every length"),
    heads=(int, 12, "H, attention heads"),
    dim=(int, 64, "D, dimension of a head"),
    dtype=(Literal["bfloat16", "float16", "float32"], "bfloat16", "of all tensors"),
    **FILE,
)
GPU = options(
    "measurement",
    output_dir=(Path, Path("results"), "folder for gpu_PART.json, one for each part"),
    part=(str | None, None, "run this part alone, in this process (default: all of them)"),
)


def main(argv: list[str] | None = None) -> int:
    """Run one command, see `run`."""
    return run(build_parser(), argv)


def run(parser: argparse.ArgumentParser, argv: list[str] | None, extra: str = "train") -> int:
    """Parse `argv` and run its command, whose parser has set the default `run`.

    Returns the exit code: 0; 2 for a user's error, one line on stderr; 130 for Ctrl-C and 143 for SIGTERM:
    128 and the signal's number, as a shell reports a program that does not catch it.

    Args:
        extra: that brings what the commands import.
    """
    arguments = parser.parse_args(argv)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return arguments.run(arguments) or 0
    except (AsaError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
        print(f"asa_mini: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"asa_mini: error: this needs {error.name}: pip install 'asa_mini[{extra}]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:  # its message names the checkpoint that is left
        print(f"asa_mini: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number, frame):
    raise Terminated("terminated")


def build_parser() -> Parser:
    parser = Parser(
        "asa-mini" if Path(sys.argv[0]).stem == "asa-mini" else "python -m asa_mini",
        description="Adversarial Self-Attention: train an encoder against a mask that an adversary chooses.",
    )
    parser.add_argument("--version", action="version", version=f"asa_mini {asa_mini.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    train = _add(commands, "train", _train, TRAIN, "fine-tune a model", "--output_dir PATH ")
    train.more = lambda: transformers.TrainingArguments
    train.epilog = "Every other option of transformers.TrainingArguments works as well."
    run = "--model_name_or_path STR "
    _add(commands, "evaluate", _evaluate, EVALUATE, "scores of a fine-tuned model", run)
    _add(commands, "predict", _predict, PREDICT, "predictions for a file of texts", run)
    _add(commands, "tasks", _tasks, [options("data", data_dir=DATA["data_dir"])], "list the tasks")
    bench = commands.add_parser("bench", help="measure what ASA costs")
    what = bench.add_subparsers(required=True, metavar="WHAT")
    _add(what, "step", _bench_step, [STEP], "one whole optimisation step")
    _add(what, "attention", _bench_attention, [ATTENTION], "attention alone")
    gpu = _add(what, "gpu", _bench_gpu, [GPU], "check and measure the kernels on an NVIDIA GPU")
    gpu.set_defaults(run=_bench_gpu)  # it returns its exit code
    return parser


def _add(commands, name: str, run, groups: list[type], text: str, required: str = "") -> Parser:
    usage = f"%(prog)s {required}[--OPTION VALUE ...]"
    command = commands.add_parser(name, help=text, usage=usage, dataclass_types=groups)
    command.set_defaults(run=partial(_run, run), training={})
    return command


# The commands import what they need: --help and a mistyped option need not wait for datasets and Trainer.
def _train(arguments: argparse.Namespace) -> None:
    from asa_mini.train.models import load_model
    from asa_mini.train.run import train
    from asa_mini.train.sources import load_data

    given = vars(arguments)
    asa = AsaConfig(**{name: given[name] for name in ASA})
    config = TrainConfig(asa=asa, **{name: given[name] for name in (*METHOD, *TRAINING, "training")})
    task, dataset, about = load_data(given)
    labels = max(len(task.labels), 1)
    load = partial(load_model, arguments.model_name_or_path, labels, kind=task.kind)
    output = arguments.output_dir, arguments.overwrite_output_dir, not arguments.quiet
    result = train(dataset, config, load, *output, about, resume=arguments.resume, metrics=task.metrics)
    if result.trainer.is_world_process_zero():  # of the processes that torchrun started
        _print_results(result.metrics["results"])
        speed = result.metrics["steps_per_second"]
        print(f"{speed:.2f} steps per second; written to {arguments.output_dir}")


def _run(command: Callable[[argparse.Namespace], dict | None], arguments: argparse.Namespace) -> None:
    """Run `command`, and write what it returns to --output_file, where there is that option."""
    file = getattr(arguments, "output_file", None)
    if file and not file.parent.is_dir():
        raise DataFileError(f"there is no folder {file.parent} to write --output_file to; make it first")
    result = command(arguments)
    if file and result:
        from asa_mini.train.run_folder import environment

        write_json(file, {**result, **environment()})


def _evaluate(arguments: argparse.Namespace) -> dict:
    from asa_mini.train.evaluation import evaluate
    from asa_mini.train.models import load_model
    from asa_mini.train.sources import load_data, read_run

    model, tokenizer = load_model(arguments.model_name_or_path, trained=True)
    run = read_run(arguments.model_name_or_path)
    task, dataset, _ = load_data(vars(arguments), run, model)
    sizes = arguments.per_device_eval_batch_size, arguments.max_seq_length or run.max_seq_length
    results = evaluate(model, tokenizer, dataset, *sizes, not arguments.quiet, task.metrics or run.metrics)
    _print_results(results)
    return {"results": results}


def _predict(arguments: argparse.Namespace) -> None:
    from asa_mini.train.evaluation import predict
    from asa_mini.train.models import load_model
    from asa_mini.train.sources import check_output, read_run, read_texts, write_predictions

    model, tokenizer = load_model(arguments.model_name_or_path, trained=True)
    check_output(arguments.output_file, model)
    run = read_run(arguments.model_name_or_path)
    columns = arguments.text_column, arguments.text_pair_column
    rows = read_texts(arguments.test_file, *columns, run, model)
    sizes = arguments.per_device_eval_batch_size, arguments.max_seq_length or run.max_seq_length
    predictions = predict(model, tokenizer, rows, *sizes, not arguments.quiet)
    write_predictions(arguments.output_file, rows, predictions)
    print(f"{len(rows)} predictions written to {arguments.output_file}")


def _tasks(arguments: argparse.Namespace) -> None:
    from asa_mini.train.sources import list_tasks

    for line in list_tasks(arguments.data_dir):
        print(line)


def _bench_step(arguments: argparse.Namespace) -> dict:
    from asa_mini.bench.measuring import print_rows
    from asa_mini.bench.step import bench_step

    sizes = arguments.batch_size, arguments.length, arguments.repeats, arguments.bf16
    rows = list(bench_step(arguments.model_name_or_path, *sizes))
    print_rows(rows, seconds=".3f", ratio=".2f", ratio_low=".2f", ratio_high=".2f", peak_mib=".0f")
    return {"rows": rows}


def _bench_attention(arguments: argparse.Namespace) -> dict:
    from asa_mini.bench.attention import compare, of_tokens
    from asa_mini.bench.measuring import print_rows

    shape = {name: getattr(arguments, name) for name in ("heads", "dim", "dtype")}
    rows = list(compare(of_tokens(arguments.tokens, arguments.length, **shape)))
    print_rows(rows, seconds=".5f", to_flash=".2f", to_cuDNN=".2f", peak_mib=".0f", error="")
    return {"rows": rows}


def _bench_gpu(arguments: argparse.Namespace) -> int:
    from asa_mini.bench.gpu import bench_gpu

    return bench_gpu(arguments.output_dir, arguments.part)


def _print_results(results: dict) -> None:
    """A line for each split: its rows, its metrics in percent, and the interval of the accuracy."""
    names = [
        name for name in next(iter(results.values())) if name not in ("loss", "n", "low", "high", "by_group")
    ]
    width = max(map(len, results))
    print(f"{'split':{width}}{'n':>8}", *(f"{name:>{max(len(name), 8)}}" for name in names), end="")
    print("   95 % interval" if "accuracy" in names else "")
    for split, row in results.items():
        print(f"{split:{width}}{row['n']:8d}", *(f"{row[n]:{max(len(n), 8)}.1%}" for n in names), end="")
        print(f"   {row['low']:.1%} to {row['high']:.1%}" if "low" in row else "")
        for group, accuracy in row.get("by_group", {}).items():
            print(f"  {group}: accuracy {accuracy:.1%}")
