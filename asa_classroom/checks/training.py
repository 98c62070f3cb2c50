"""Checks of `ex04_training`: the objective, the step of two players, the control, fair comparisons."""

import statistics

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from asa_classroom.checks.harness import call, require
from asa_classroom.checks.training_terms import (
    divergence,
    entries,
    joint_pass,
    ladder,
    objective,
    pay,
    plain_steps,
    rdrop_loss,
)
from asa_mini.config import AsaConfig
from asa_mini.wrapping import wrap

__all__ = [
    "TwoPlayers", "attack", "divergence", "joint_pass", "ladder", "objective", "paired_gain", "pay",
    "plain_steps", "rdrop_loss",
]  # fmt: skip
TERMS = ("loss", "task_loss", "divergence", "kept_units")
RUNS = {  # (method, split) -> accuracy by seed; seeds 7 and 9 have one method only, seed 1 is a tie
    ("new", "flipped"): {7: 90.0, 3: 60.0, 0: 71.0, 1: 55.0, 2: 50.0},
    ("old", "flipped"): {0: 64.0, 1: 55.0, 2: 53.0, 3: 52.0, 9: 20.0},
    ("other", "flipped"): {0: 99.0, 1: 98.0, 5: 1.0},
    ("new", "iid"): {0: 95.0, 1: 91.0, 2: 97.0},
    ("old", "iid"): {5: 90.0, 1: 92.0},
}


def _observe_gain(student, split, method, base):
    rows = [(*which, seed, accuracy) for which, table in RUNS.items() for seed, accuracy in table.items()]
    runs = [dict(zip(("method", "split", "seed", "accuracy"), row, strict=True)) for row in rows]
    keys = ("seeds", "mean", "ahead", "std")
    return dict(
        zip(map("`{}`".format, keys), entries(call(student, runs, split, method, base), *keys), strict=True)
    )


@ladder.step(
    tried="three comparisons, ties, missing seeds, a single seed",
    cases=[("flipped", "new", "old"), ("flipped", "old", "new"), ("iid", "new", "old")],
    observe=_observe_gain,
    mistakes={
        "rows of other splits are in it: take those of `split` alone": dict(all_splits=True),
        "these are runs in order, not pairs of the same seed": dict(by_order=True),
        "a tie is not ahead: count the gains above 0": dict(ahead=lambda gain: gain >= 0),
        "divide by n - 1, not by n": dict(spread=statistics.pstdev),
    },
)
def paired_gain(
    runs, split, method, base, *, all_splits=False, by_order=False, ahead=lambda gain: gain > 0,
    spread=statistics.stdev,
):  # fmt: skip
    scores = {method: {}, base: {}}
    for run in runs:
        if (all_splits or run["split"] == split) and run["method"] in scores:
            scores[run["method"]][run["seed"]] = run["accuracy"]
    shared = scores[method].keys() & scores[base].keys()
    gains = [scores[method][seed] - scores[base][seed] for seed in shared]
    if by_order:
        gains = [a - b for a, b in zip(*(table.values() for table in scores.values()), strict=False)]
    std = spread(gains) if len(gains) > 1 else None
    ahead = sum(map(ahead, gains))
    return {"seeds": len(gains), "ahead": ahead, "mean": statistics.mean(gains), "std": std}


def _encoder(frozen: bool = False) -> BertForSequenceClassification:
    """A random encoder in double precision and evaluation mode, always the same."""
    sizes = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
    sizes |= dict(vocab_size=30, max_position_embeddings=12, initializer_range=0.3)
    config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = BertForSequenceClassification(config).double().eval()
    model.bert.embeddings.requires_grad_(not frozen)
    return model


def _batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids, real = torch.randint(1, 30, (4, 7), generator=generator), torch.ones(4, 7, dtype=torch.long)
    real[-1, 4:] = 0
    return {"input_ids": ids, "attention_mask": real, "labels": torch.tensor([0, 1, 1, 0])}


def _weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def _two_players(clip=lambda *players: players, clear=True, rate=lambda lr, adversary_lr: adversary_lr):
    """The class, or a mistaken one: `clip` gives the lists of parameters that are clipped together."""

    class TwoPlayers:
        def __init__(self, model, lr, adversary_lr, limit):
            self.model, self.limit = model, limit
            self.encoder, self.adversary = (list(m.parameters()) for m in (model.model, model.adversaries))
            groups = [{"params": self.encoder, "lr": lr}]
            groups.append({"params": self.adversary, "lr": rate(lr, adversary_lr)})
            self.optimizer = torch.optim.SGD(groups)

        def step(self, batch):
            if clear:
                self.optimizer.zero_grad()
            out = self.model(**batch)
            out.loss.backward()
            for player in clip(self.encoder, self.adversary):
                nn.utils.clip_grad_norm_(player, self.limit)
            self.optimizer.step()
            return {name: getattr(out, name).item() for name in TERMS}

    return TwoPlayers


def _observe_players(student, lr, adversary_lr, limit, frozen):
    """What two steps change in the encoder and in the adversaries, and the terms of both."""
    require(isinstance(student, type), "TwoPlayers must be a class")
    require(callable(getattr(student, "step", None)), "the class needs a method `step`")
    model = wrap(_encoder(frozen), AsaConfig(0.3)).train()
    before = [_weights(m) for m in (model.model, model.adversaries)]
    trainer = call(student, model, lr, adversary_lr, limit)
    rows = [entries(call(trainer.step, _batch()), *TERMS) for _ in range(2)]
    require(all(type(x) is float for row in rows for x in row), "the terms must be floats: use .item()")
    after = [_weights(m) for m in (model.model, model.adversaries)]
    moved = any((a != b).any() for a, b in zip(after, before, strict=True))
    require(moved, "no weight has moved: is the optimizer's step() called?")
    names = [f"what two steps change in the {name}" for name in ("encoder", "adversaries")]
    changes = {name: a - b for name, a, b in zip(names, after, before, strict=True)}
    return changes | {f"the table of both steps ({', '.join(TERMS)})": rows}


TwoPlayers = ladder.step(
    tried="two steps each, clipped and not, with frozen embeddings",
    cases=[(0.2, 0.5, 0.1, False), (0.01, 0.003, 1e6, True)],
    observe=_observe_players,
    mistakes={
        "both players are clipped together: clip each by itself": _two_players(clip=lambda a, b: [a + b]),
        "nothing is clipped: clip after backward, before the step; make parameters() a list": _two_players(
            clip=lambda *players: []
        ),
        "gradients of earlier steps pile up: call zero_grad in every step": _two_players(clear=False),
        "the adversary does not learn at its own rate": _two_players(rate=lambda lr, adversary_lr: lr),
    },
)(_two_players())


def _observe_attack(student, temperature, steps, lr, seed):
    model = _encoder()
    before = _weights(model)
    got = call(student, model, _batch(), temperature, steps, lr, seed)
    moved = "the encoder has moved: the optimizer takes model.adversaries.parameters() alone"
    require(torch.equal(_weights(model), before), moved)
    hooks = any(module._forward_pre_hooks for module in model.modules())
    require(not hooks, "the model is still wrapped: call unwrap() at the end")
    pair = isinstance(got, (tuple, list)) and len(got) == 2 and all(type(x) is float for x in got)
    require(pair, "return two floats, (kept_share, divergence): use .item()")
    return {"the divergence": got[1], "the kept share": got[0]}  # a share of few units can be right by chance


@ladder.step(
    tried="three temperatures, one without any step",
    cases=[(0.8, 8, 0.03, 4), (2.0, 5, 0.05, 3), (0.0, 0, 0.02, 5)],
    observe=_observe_attack,
    tolerance=1e-6,
    mistakes={
        "measured before the last update: run one more forward pass": dict(early=True),
        "gradients of earlier steps pile up: call zero_grad in every step": dict(clear=False),
        "the adversaries are not those of the seed: torch.manual_seed(seed) comes before wrap": dict(
            late=True
        ),
        "the wrapped model is in evaluation mode, where it does not attack: call .train()": dict(train=False),
    },
)
def attack(model, batch, temperature, steps, lr, seed, *, early=False, clear=True, late=False, train=True):
    if not late:
        torch.manual_seed(seed)
    wrapped = wrap(model, AsaConfig(temperature=temperature)).train(train)
    optimizer = torch.optim.AdamW(wrapped.adversaries.parameters(), lr=lr)
    for _ in range(steps):
        if clear:
            optimizer.zero_grad()
        out = wrapped(**batch)
        out.loss.backward()
        optimizer.step()
    out = out if early and steps else wrapped(**batch)
    wrapped.unwrap()
    return out.kept_share.mean().item(), out.divergence.item()
