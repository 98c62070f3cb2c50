"""Before torch is imported anywhere."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors are slower on many threads; reaches started processes, too
os.environ["MPLBACKEND"] = "agg"

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # the kernels run on the CPU, one program after the other
