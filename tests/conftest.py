"""Before torch is imported anywhere: tiny tensors are slower on many threads than on one."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # reaches the processes that tests start, too
os.environ["MPLBACKEND"] = "agg"
