"""What must be set before torch is imported anywhere; and what several files of tests share."""

import gc
import os
import shutil
import signal
from functools import partial

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C otherwise
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors are slower on many threads; reaches started processes, too
os.environ["MPLBACKEND"] = "agg"

import pytest  # noqa: E402

# Files that take longest: they come first, so that no process ends up waiting for another one's last file.
LONGEST = "site grading checks kernels wrap_triton attention launcher kernels_compile wheel notebook_runner"


def pytest_configure(config):
    config.option.loadscopereorder = False  # of pytest-xdist: the file with most tests first
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return  # this process only hands out the tests

    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # the kernels run on the CPU, one program after the other


def pytest_collection_modifyitems(items):
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish():
    """Trainer collects garbage after each run: half of a tiny run's time, if it looks through all modules."""
    gc.collect()
    gc.freeze()


# tiny_text is imported where it is used: it loads `datasets`, which most files of tests do without.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright, see the test extra")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser, one of {', '.join(BROWSERS)}: apt-get install chromium")
    with api.sync_playwright() as playwright:  # only for these tests: it keeps an event loop running
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])  # for containers
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random BERT with its tokenizer, see `tiny_text.save_model`; nobody writes there."""
    import tiny_text

    return tiny_text.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def run(model_folder):
    """run(method, output, ...): a training run of 6 steps, see `tiny_text.run`."""
    import tiny_text

    return partial(tiny_text.run, model_folder)


@pytest.fixture
def train(model_folder, tmp_path):
    """train(option, value, ...): the exit code of the command on that model and the files in `data`."""
    import tiny_text

    from asa_mini.cli import main

    data = tiny_text.write_files(tmp_path / "data")

    def train(*options, data_dir=True):
        basic = {"--model_name_or_path": model_folder, "--dataset_name": "sst2"}
        basic |= {"--output_dir": tmp_path / "run", "--num_train_epochs": 1}
        basic |= {"--per_device_train_batch_size": 8, "--max_seq_length": 30}
        basic |= {"--data_dir": data} if data_dir else {}
        return main(["train", *(str(word) for pair in basic.items() for word in pair), *map(str, options)])

    return train


@pytest.fixture
def refused(capsys):
    """refused(exit code): the line that a command printed, after checking that it printed no other."""

    def refused(code):
        assert code == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1 and err.startswith("asa_mini: error: ")
        return err

    return refused
