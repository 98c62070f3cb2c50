"""What ASA costs: one optimisation step against the same model's plain step, in time and in peak memory."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from statistics import median, quantiles

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification

from asa_mini.bench.measuring import device, ms_by_kernel, peak_mib, synchronize
from asa_mini.config import AsaConfig
from asa_mini.errors import InputError
from asa_mini.model import wrap
from asa_mini.train.models import check_max_length, load_model

BERT_BASE = "bert-base-shape"  # a model name: BERT-base, its weights random
WARM_UP = 2
# The model alone, with the attention that PyTorch takes, and ASA around it, by the kernels on a GPU.
# "sequential" is what the authors' code does, one pass after the other.
KINDS = {"plain": None, "joint": AsaConfig(), "sequential": AsaConfig(joint_pass=False)}


class Step:
    """One training step of one kind: forward, backward and AdamW, dropout on."""

    def __init__(self, kind: str, name: str, bf16: bool = False):
        torch.manual_seed(0)
        self.device, self.bf16 = device(), bf16
        model, config = _load(name).to(self.device), KINDS[kind]
        self.model: nn.Module = (wrap(model, config) if config else model).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)

    def __call__(self, batch: dict[str, Tensor]) -> float:
        """Take one step; returns its seconds."""
        synchronize()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self.model(**batch).loss
        loss.backward()
        self.optimizer.step()
        synchronize()
        return time.perf_counter() - start


def bench_step(
    name: str, batch_sizes: Sequence[int], lengths: Sequence[int], repeats: int, bf16: bool = False
) -> Iterator[dict]:
    """Time a step of every kind, interleaved in one process, and measure its peak memory.

    The cost of a kind is the median over the repeats of its time divided by the plain step's time next to it:
    a machine that slows down for a while slows down both.

    Args:
        name: a model, as in `load_model`, or BERT_BASE.
        batch_sizes, lengths: B and L of each measured shape, in pairs.
        repeats: measured steps of every kind and shape.

    Yields:
        One dict per shape and kind: `batch_size`, `length`, `kind`, `seconds` (median), `ratio` to the plain
        step (median) with its quartiles `ratio_low`, `ratio_high`, `peak_mib`, memory above the loaded
        model's, in MiB, and on a GPU `ms_by_kernel`, the attention that PyTorch took among them.

    Raises:
        InputError: the lists differ in length, a number is not positive, a length is beyond the model's
            positions, or the GPU cannot be timed, see `device`.
    """
    if len(batch_sizes) != len(lengths):
        raise InputError(f"{len(batch_sizes)} batch sizes but {len(lengths)} lengths; give them in pairs")
    if min([*batch_sizes, *lengths]) < 1 or repeats < 2:
        raise InputError("batch sizes and lengths must be at least 1, repeats at least 2")
    on_gpu = device() == "cuda"  # refuses before anything is loaded
    check_max_length(_load(name), max(lengths))
    shapes, found = list(zip(batch_sizes, lengths, strict=True)), {}
    if not on_gpu:  # while this process is small: on Linux a child starts with its parent's peak as its own
        for case in product(KINDS, shapes):
            found[case] = {"peak_mib": _peak_memory_of(case[0], name, *case[1], bf16)}
    steps = {kind: Step(kind, name, bf16) for kind in KINDS}
    for shape in shapes:
        batch, measured = _batch(*shape, steps["plain"].model), []
        for _ in tqdm(range(WARM_UP + repeats), desc="B {}, L {}".format(*shape)):
            measured.append([step(batch) for step in steps.values()])
        seconds = dict(zip(steps, zip(*measured[WARM_UP:], strict=True), strict=True))
        for kind, step in steps.items():
            ratios = [t / plain for t, plain in zip(seconds[kind], seconds["plain"], strict=True)]
            row = dict(batch_size=shape[0], length=shape[1], kind=kind, seconds=median(seconds[kind]))
            row |= zip(("ratio_low", "ratio", "ratio_high"), quantiles(ratios, n=4), strict=True)
            if on_gpu:
                run = partial(step, batch)
                found[kind, shape] = {"peak_mib": peak_mib(run), "ms_by_kernel": ms_by_kernel(run)}
            yield row | found[kind, shape]


def _batch(size: int, length: int, model: nn.Module) -> dict[str, Tensor]:
    """Random tokens; the examples' real lengths are spread evenly from L/2 to L, as in a padded batch."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, model.config.vocab_size, (size, length), generator=generator)
    real = torch.linspace(length / 2, length, size).ceil().long()
    mask = (torch.arange(length)[None] < real[:, None]).long()
    labels = torch.randint(0, model.config.num_labels, (size,), generator=generator)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {key: value.to(model.device) for key, value in batch.items()}


def _load(name: str) -> nn.Module:
    if name != BERT_BASE:
        return load_model(name)[0]
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert"))


def _peak_memory_of(kind: str, name: str, size: int, length: int, bf16: bool) -> float:
    """Measured in a process of its own: the peak of a process never falls again."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (kind, name, size, length, bf16, torch.get_num_threads()))


def _peak_memory(kind: str, name: str, size: int, length: int, bf16: bool, threads: int) -> float:
    torch.set_num_threads(threads)
    step = Step(kind, name, bf16)
    # A step of a tiny batch first: it allocates the gradients and the optimizer's state, not the point here.
    step(_batch(1, 1, step.model))
    batch = _batch(size, length, step.model)
    return peak_mib(lambda: step(batch))
