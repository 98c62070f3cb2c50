"""What must be set before torch is imported anywhere; and a browser, for the tests that need one."""

import os
import shutil
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C otherwise
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors are slower on many threads; reaches started processes, too
os.environ["MPLBACKEND"] = "agg"

import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # the kernels run on the CPU, one program after the other

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
