"""Checks of `ex04_training`: the objective, the joint pass and its price, two players, fair comparisons."""

import operator
import statistics
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from asa_classroom.checks.encoders import classifier, random_batch, tokens
from asa_classroom.checks.harness import Ladder, call, gradients, parts, require
from asa_mini.config import AsaConfig
from asa_mini.model import wrap
from asa_mini.objective import symmetric_divergence

ladder = Ladder()
TERMS = ("loss", "task_loss", "divergence", "kept_units")


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def random_masks(layers, lengths, temperature):
    real = tokens(*lengths)
    masks = torch.rand(layers, *real.shape, real.shape[1], dtype=torch.float64) < 0.6
    return masks.double().requires_grad_(), real, temperature


@ladder.step(
    what="the pay",
    cases=[partial(random_masks, *c) for c in ((2, (4, 4, 3), 0.3), (1, (5, 2), 2.0), (0, (3, 2), 0.3))],
    observe=lambda student, masks, real, temperature: call(student, list(masks), real, temperature),
    mistakes={
        "tau is not squared: beta is the temperature squared": dict(power=1),
        "padding is counted: a unit whose key is padding was never there": dict(key=lambda real: 1),
        "`real` must rule out keys, the last axis, not queries": dict(key=lambda real: real[:, :, None]),
    },
)
def pay(masks, real, temperature, *, power=2, key=lambda real: real[:, None, :]):
    return temperature**power * sum((mask * key(real)).sum() / len(mask) for mask in masks)


@ladder.step(
    what="the divergence",
    cases=[
        lambda: (normal(4, 3), normal(4, 3)),
        lambda: (normal(2, 5, 2), normal(2, 5, 2)),
        (torch.tensor([[4000.0, 0.0]]), torch.tensor([[0.0, 3000.0]])),
    ],
    mistakes={
        "this is KL[p || q] alone: take the mean of both directions": dict(share=1),
        "divide by B alone, also if there are L tokens": dict(count=lambda p: p[..., 0].numel()),
        "large logits give inf or nan: use log_softmax": dict(log=lambda x: x.softmax(-1).log()),
    },
)
def divergence(logits, adversarial_logits, *, share=0.5, count=len, log=lambda x: x.log_softmax(-1)):
    log_p, log_q = log(logits), log(adversarial_logits)
    p_q, q_p = (log_p.exp() * (log_p - log_q)).sum(), (log_q.exp() * (log_q - log_p)).sum()
    return (share * p_q + (1 - share) * q_p) / count(logits)


def terms(size, classes, alpha):
    logits = normal(size, classes), normal(size, classes)
    return *logits, torch.randint(classes, (size,)), normal(), alpha


@ladder.step(
    what=("task", "divergence", "pay", "loss"),
    cases=[partial(terms, *c) for c in ((5, 3, 0.4), (1, 2, 1.0), (3, 2, 0.0))],
    mistakes={
        "the task loss is that of the clean logits, not of the adversarial ones": dict(attacked=True),
        "the pay is subtracted: add it, the gradient reversal turns its sign": dict(sign=-1),
        "the divergence must reach the clean logits, too: detach nothing": dict(seen=torch.detach),
    },
)
def objective(logits, adversarial_logits, labels, paid, alpha, *, attacked=False, sign=1, seen=torch.clone):
    p, q = logits, adversarial_logits
    task, far = F.cross_entropy(q if attacked else p, labels), symmetric_divergence(seen(p), q)
    loss = task + alpha * far + sign * paid
    return {"loss": loss, "task": task, "divergence": far, "pay": paid}


def observe_joint_pass(student, *lengths):
    embed, head, rows, size = normal(30, 5), normal(3, 5), [], len(lengths)
    batch = random_batch(*lengths) | {"labels": torch.arange(size)}  # of one axis
    before, keep = dict(batch), (torch.rand(size, lengths[0], lengths[0]) < 0.5).double().requires_grad_()

    def model(batch, keep):
        rows.append(len(keep))
        units = keep * batch["attention_mask"][:, None, :]  # (N, L, L)
        mean = (units @ embed[batch["input_ids"]]).tanh().mean(1)
        return mean @ head.mT * (2 + batch["labels"][:, None])

    got = call(student, model, batch, keep)
    require(all(batch.get(name) is x for name, x in before.items()), "`batch` was changed: make a new dict")
    require(rows == [2 * size], f"the model got {rows} sequences: double the batch and call it once")
    seen = parts(got, "`logits`", "`adversarial_logits`")
    return seen | gradients("`adversarial_logits`", got[1], keep=keep)


@ladder.step(
    cases=[(4, 4, 3), (5,)],  # lengths
    observe=observe_joint_pass,
    mistakes={
        "the mask acts on both halves: it belongs to the second half alone": dict(clean=torch.clone),
        "the halves are swapped: the clean one comes first": dict(order=-1),
        "the model got [3, 3] sequences: double the batch and call it once": (
            lambda model, batch, keep: (model(batch, torch.ones_like(keep)), model(batch, keep))
        ),
    },
)
def joint_pass(model, batch, keep, *, clean=torch.ones_like, order=1):
    doubled = {name: torch.cat([x, x]) for name, x in batch.items()}
    return model(doubled, torch.cat([clean(keep), keep])).chunk(2)[::order]


@ladder.step(
    what="the number of plain steps",
    cases=[(740, 3, 4), (500, 0, 6), (0, 2, 2), (7, 2, 2)],
    mistakes={
        "the adversary's backward pass is missing": dict(passes=1),
        "the adversary is paid for in attacked layers only: use attacked / layers": dict(everywhere=True),
        "round to the nearest: int() and // cut off": dict(whole=int),
    },
)
def plain_steps(asa_steps, attacked, layers, *, passes=2, everywhere=False, whole=round):
    adversary = (1 if everywhere else attacked / layers) * passes * 4 / 24
    return whole(asa_steps * (2 * 3 + adversary) / 3)


def observe_rdrop_loss(student, size, alpha, dropout):
    inputs, labels, head, rows = normal(size, 8).detach(), torch.randint(3, (size,)), normal(3, 8), []
    noise = F.dropout(torch.ones(10 * size, 8), dropout)
    model = nn.Module()

    def forward(inputs):
        rows.extend(inputs)  # a row's dropout is that of its number, in however many calls
        return (inputs * (noise[len(rows) - len(inputs) : len(rows)] if model.training else 1)) @ head.mT

    model.forward = forward
    loss = call(student, model, inputs, labels, alpha)
    require(len(rows) == 2 * size, f"{len(rows)} rows went through the model: each of {size} must pass twice")
    return gradients("the loss", loss, the_weights_of_the_model=head)


@ladder.step(
    cases=[(6, 0.3, 0.5), (2, 1.0, 0.2), (1, 0.0, 0.5)],
    observe=observe_rdrop_loss,
    mistakes={
        "the task loss is that of the second pass: take the first": dict(first=0),
        "the second pass is detached: both carry gradient": dict(target=torch.detach),
        "the model was put into evaluation mode: then its dropout is off": dict(mode=nn.Module.eval),
    },
)
def rdrop_loss(model, inputs, labels, alpha, *, first=1, target=torch.clone, mode=nn.Module.train):
    p, q = mode(model)(torch.cat([inputs, inputs])).chunk(2)
    task = first * F.cross_entropy(p, labels) + (1 - first) * F.cross_entropy(q, labels)
    return task + alpha * symmetric_divergence(p, target(q))


RUNS = [  # seeds 7 and 9 have one method only, seed 1 is a tie
    {"method": method, "split": split, "seed": seed, "accuracy": accuracy}
    for method, split, by_seed in (
        ("new", "flipped", {7: 90.0, 3: 60.0, 0: 71.0, 1: 55.0, 2: 50.0}),
        ("old", "flipped", {0: 64.0, 1: 55.0, 2: 53.0, 3: 52.0, 9: 20.0}),
        ("other", "flipped", {0: 99.0, 1: 98.0, 5: 1.0}),
        ("new", "iid", {0: 95.0, 1: 91.0, 2: 97.0}),
        ("old", "iid", {5: 90.0, 1: 92.0}),
    )
    for seed, accuracy in by_seed.items()
]


@ladder.step(
    what=("seeds", "mean", "ahead", "std"),
    cases=[(RUNS, *c) for c in (("flipped", "new", "old"), ("flipped", "old", "new"), ("iid", "new", "old"))],
    mistakes={
        "rows of other splits are in it: take those of `split` alone": dict(all_splits=True),
        "a tie is not ahead: count the gains above 0": dict(ahead=operator.ge),
        "divide by n - 1, not by n": dict(spread=statistics.pstdev),
    },
)
def paired_gain(runs, split, method, base, *, all_splits=False, ahead=operator.gt, spread=statistics.stdev):
    scores = {method: {}, base: {}}
    for run in runs:
        if (all_splits or run["split"] == split) and run["method"] in scores:
            scores[run["method"]][run["seed"]] = run["accuracy"]
    first, second = scores.values()
    gains = [first[seed] - second[seed] for seed in first.keys() & second.keys()]
    std = spread(gains) if len(gains) > 1 else None
    wins = sum(ahead(gain, 0) for gain in gains)
    return {"seeds": len(gains), "mean": statistics.mean(gains), "ahead": wins, "std": std}


def encoder_and_batch(frozen=False):
    model = classifier().double()
    model.bert.embeddings.requires_grad_(not frozen)
    return model, random_batch(7, 7, 7, 4) | {"labels": torch.tensor([0, 1, 1, 0])}


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def observe_players(student, lr, adversary_lr, limit, frozen):
    """What two steps change in the encoder and in the adversaries, and the terms of both."""
    model, batch = encoder_and_batch(frozen)
    model = wrap(model, AsaConfig(0.3)).train()
    players = {"encoder": model.model, "adversaries": model.adversaries}
    before = {name: weights(module) for name, module in players.items()}
    trainer = call(student, model, lr, adversary_lr, limit)
    require(callable(getattr(trainer, "step", None)), "TwoPlayers must be a class with a method `step`")
    rows = [[*parts(call(trainer.step, batch), *TERMS).values()] for _ in range(2)]
    seen = {f"what two steps change in the {name}": weights(m) - before[name] for name, m in players.items()}
    return seen | {f"the table of both steps ({', '.join(TERMS)})": rows}


@ladder.step(
    cases=[(0.2, 0.5, 0.1, False), (0.01, 0.003, 1e6, True)],
    observe=observe_players,
    mistakes={
        "both players are clipped together: clip each by itself": dict(together=True),
        "gradients of earlier steps pile up: call zero_grad in every step": dict(clear=False),
        "the adversary does not learn at its own rate": dict(one_rate=True),
    },
)
class TwoPlayers:
    def __init__(self, model, lr, adversary_lr, limit, *, together=False, clear=True, one_rate=False):
        self.model, self.limit, self.clear = model, limit, clear
        encoder, adversary = list(model.model.parameters()), list(model.adversaries.parameters())
        self.players = [encoder + adversary] if together else [encoder, adversary]
        second = {"params": adversary, "lr": lr if one_rate else adversary_lr}
        self.optimizer = torch.optim.SGD([{"params": encoder, "lr": lr}, second])

    def step(self, batch):
        if self.clear:
            self.optimizer.zero_grad()
        out = self.model(**batch)
        out.loss.backward()
        for player in self.players:
            nn.utils.clip_grad_norm_(player, self.limit)
        self.optimizer.step()
        return {name: getattr(out, name).item() for name in TERMS}


def observe_attack(student, temperature, steps, lr, seed):
    model, batch = encoder_and_batch()
    got = call(student, model, batch, temperature, steps, lr, seed)
    hooks = any(module._forward_pre_hooks for module in model.modules())
    require(not hooks, "the model is still wrapped: call unwrap() at the end")
    return got


@ladder.step(
    what=("the kept share", "the divergence"),
    cases=[(0.8, 6, 0.03, 4), (0.0, 0, 0.02, 5)],
    observe=observe_attack,
    tolerance=1e-6,
    mistakes={
        "the encoder learns, too: the optimizer takes model.adversaries.parameters() alone": dict(both=True),
        "measured before the last update: run one more forward pass": dict(early=True),
        "these adversaries are not the seed's: torch.manual_seed(seed) comes before wrap": dict(offset=1),
        "the wrapped model is in evaluation mode, where it does not attack: call .train()": dict(train=False),
    },
)
def attack(model, batch, temperature, steps, lr, seed, *, both=False, early=False, offset=0, train=True):
    torch.manual_seed(seed + offset)
    wrapped = wrap(model, AsaConfig(temperature=temperature)).train(train)
    optimizer = torch.optim.AdamW((wrapped if both else wrapped.adversaries).parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        out = wrapped(**batch)
        out.loss.backward()
        optimizer.step()
    out = out if early and steps else wrapped(**batch)
    wrapped.unwrap()
    return out.kept_share.mean().item(), out.divergence.item()
