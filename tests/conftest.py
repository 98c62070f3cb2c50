"""Before torch is imported anywhere."""

import os
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C otherwise
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors are slower on many threads; reaches started processes, too
os.environ["MPLBACKEND"] = "agg"

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # the kernels run on the CPU, one program after the other
