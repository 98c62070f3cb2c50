"""The first checks of `ex04_training`: the terms of the objective, the joint pass, its price, the control."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asa_classroom.checks.harness import Ladder, call, gradients, require
from asa_mini.objective import symmetric_divergence

ladder = Ladder("ex04_training")


def _randn(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, dtype=torch.float64)).requires_grad_()


def entries(got: object, *keys: str) -> list:
    """The values of a student's dictionary, in the order of `keys`."""
    require(isinstance(got, dict), f"the result must be a dictionary, not a {type(got).__name__}")
    require(set(got) == set(keys), f"the dictionary needs the keys {keys}, but has {tuple(got)}")
    return [got[key] for key in keys]


def _masks(size, length, layers, temperature, padded):
    real = torch.ones(size, length, dtype=torch.bool)
    real[-1, length - padded :] = False
    masks = (torch.rand(layers, size, length, length) < 0.6).double().requires_grad_()
    return masks, real, temperature


@ladder.step(
    what="the pay",
    tried="five cases, with padding, without pay, without layers",
    cases=[
        partial(_masks, *sizes)
        for sizes in (
            (3, 4, 2, 0.3, 1),
            (2, 3, 1, 1.5, 0),
            (1, 5, 3, 2.0, 2),
            (2, 3, 2, 0, 1),
            (2, 3, 0, 0.3, 1),
        )
    ],
    observe=lambda student, masks, real, temperature: call(student, list(masks), real, temperature),
    mistakes={
        "tau is not squared: beta is the temperature squared": dict(power=1),
        "the sum is not divided by the batch size": dict(batch=lambda mask: 1),
        "padding is counted: a unit whose key is padding was never there": dict(key=lambda real: 1),
        "`real` must rule out keys, the last axis, not queries": dict(key=lambda real: real[:, :, None]),
    },
)
def pay(masks, real, temperature, *, power=2, batch=len, key=lambda real: real[:, None, :]):
    return temperature**power * sum((mask * key(real)).sum() / batch(mask) for mask in masks)


def _extreme():
    p, q = torch.tensor([[[4000.0, 0.0]], [[0.0, 3000.0]]], dtype=torch.float64)
    return p.requires_grad_(), q.requires_grad_()


@ladder.step(
    what="the divergence",
    tried="three shapes, and logits in the thousands",
    cases=[*[lambda s=s: (_randn(*s), _randn(*s, scale=2.0)) for s in ((4, 3), (2, 5, 2), (1, 2))], _extreme],
    mistakes={
        "this is KL[p || q] alone: take the mean of both directions": dict(parts=(1, 0)),
        "the two directions are added: take their mean, half of the sum": dict(parts=(1, 1)),
        "divide by B alone, also if there are L tokens": dict(count=lambda p: p[..., 0].numel()),
        "large logits give inf or nan: a softmax underflows, use log_softmax": dict(
            log=lambda x: x.softmax(-1).log()
        ),
    },
)
def divergence(logits, adversarial_logits, *, parts=(0.5, 0.5), count=len, log=lambda x: x.log_softmax(-1)):
    log_p, log_q = log(logits), log(adversarial_logits)
    p_q = (log_p.exp() * (log_p - log_q)).sum()
    q_p = (log_q.exp() * (log_q - log_p)).sum()
    return (parts[0] * p_q + parts[1] * q_p) / count(logits)


def _observe_objective(student, size, classes, alpha):
    p, q, paid = (
        _randn(size, classes),
        _randn(size, classes, scale=2.0),
        (_randn() + 3).detach().requires_grad_(),
    )
    result = call(student, p, q, torch.randint(classes, (size,)), paid, alpha)
    loss, task, far, returned = entries(result, "loss", "task", "divergence", "pay")
    seen = {"the task loss": task, "the divergence": far, "the pay": returned}
    leaves = {"the_clean_logits": p, "the_adversarial_logits": q, "the_pay": paid}
    return seen | gradients("the loss", loss, **leaves)


@ladder.step(
    tried="three batches, alpha 0.4, 1 and 0",
    cases=[(5, 3, 0.4), (1, 2, 1.0), (3, 2, 0.0)],
    observe=_observe_objective,
    mistakes={
        "the task loss is that of the clean logits, not of the adversarial ones": dict(attacked=True),
        "alpha is not used: it weighs the divergence": dict(weigh=False),
        "the pay is subtracted: add it, the gradient reversal turns its sign": dict(sign=-1),
        "the divergence must reach the clean logits, too: detach nothing": dict(detach=True),
    },
)
def objective(
    logits, adversarial_logits, labels, paid, alpha, *, attacked=False, weigh=True, sign=1, detach=False
):
    task = F.cross_entropy(adversarial_logits if attacked else logits, labels)
    far = symmetric_divergence(logits.detach() if detach else logits, adversarial_logits)
    loss = task + (alpha if weigh else 1) * far + sign * paid
    return {"loss": loss, "task": task, "divergence": far, "pay": paid}


def _observe_joint_pass(student, size, length):
    embed, head, rows = _randn(9, 5), _randn(3, 5), []
    batch = {"input_ids": torch.randint(9, (size, length)), "attention_mask": torch.ones(size, length)}
    batch["attention_mask"][-1, -1] = 0
    batch["labels"] = torch.arange(size)  # of one axis
    before, keep = dict(batch), (torch.rand(size, length, length) < 0.5).double().requires_grad_()

    def model(batch, keep):
        rows.append(len(keep))
        units = keep * batch["attention_mask"][:, None, :]  # (N, L, L)
        mean = (units @ embed[batch["input_ids"]]).tanh().mean(1)
        return mean @ head.mT * (2 + batch["labels"][:, None])

    got = call(student, model, batch, keep)
    require(all(batch.get(name) is x for name, x in before.items()), "`batch` was changed: make a new dict")
    require(len(rows) == 1, f"the model was called {len(rows)} times: double the batch and call it once")
    require(rows[0] == 2 * size, f"the model got {rows[0]} sequences, not 2B = {2 * size}")
    pair = isinstance(got, (tuple, list)) and len(got) == 2
    require(pair, "return two tensors, (logits, adversarial_logits): split the 2B logits into halves")
    return {"`logits`": got[0]} | gradients("`adversarial_logits`", got[1], keep=keep)


@ladder.step(
    tried="three batches, padding, one of a single sequence",
    cases=[(3, 4), (2, 6), (1, 5)],
    observe=_observe_joint_pass,
    mistakes={
        "the mask acts on both halves: it belongs to the second half alone": dict(clean=lambda keep: keep),
        "the halves are swapped: the clean one comes first": dict(order=-1),
        "the halves are mixed: all clean rows come first (torch.cat, not repeat_interleave)": dict(
            double=lambda x: x.repeat_interleave(2, 0)
        ),
        "the model was called 2 times: double the batch and call it once": (
            lambda model, batch, keep: (model(batch, torch.ones_like(keep)), model(batch, keep))
        ),
    },
)
def joint_pass(model, batch, keep, *, clean=torch.ones_like, order=1, double=lambda x: torch.cat([x, x])):
    doubled = {name: double(x) for name, x in batch.items()}
    return model(doubled, torch.cat([clean(keep), keep])).chunk(2)[::order]


def _observe_plain_steps(student, asa_steps, attacked, layers):
    got = call(student, asa_steps, attacked, layers)
    require(isinstance(got, int), f"the number must be an int, not a {type(got).__name__}")
    return got


@ladder.step(
    what="the number of plain steps",
    tried="six budgets, one of R-Drop, one of no steps",
    cases=[(740, 3, 4), (1000, 6, 6), (500, 0, 6), (0, 2, 2), (9, 2, 2), (7, 2, 2)],
    observe=_observe_plain_steps,
    mistakes={
        "the adversary's cost is missing": dict(passes=0),
        "the adversary's backward pass is missing": dict(passes=1),
        "the adversary is paid for in attacked layers only: use attacked / layers": dict(everywhere=True),
        "round to the nearest: int() and // cut off": dict(whole=int),
    },
)
def plain_steps(asa_steps, attacked, layers, *, passes=2, everywhere=False, whole=round):
    adversary = (1 if everywhere else attacked / layers) * passes * 4 / 24
    return whole(asa_steps * (2 * 3 + adversary) / 3)


class Noisy(nn.Module):
    """Logits (N, 3) of N rows; the dropout of a row is that of its number, in however many calls."""

    def __init__(self, rows: int, width: int, dropout: float):
        super().__init__()
        self.noise, self.seen = F.dropout(torch.ones(2 * rows, width), dropout).double(), 0
        self.head = _randn(3, width)

    def forward(self, inputs):
        self.seen += len(inputs)
        noise = self.noise[self.seen - len(inputs) : self.seen] if self.training else 1
        return (inputs * noise) @ self.head.mT


def _observe_rdrop_loss(student, size, alpha, dropout):
    model = Noisy(10 * size, 8, dropout)
    inputs, labels = _randn(size, 8).detach(), torch.randint(3, (size,))
    loss = call(student, model, inputs, labels, alpha)
    twice = f"{model.seen} rows went through the model: each of the {size} must pass twice"
    require(model.seen == 2 * size, twice)
    return gradients("the loss", loss, the_weights_of_the_model=model.head)


@ladder.step(
    tried="four batches, one without dropout, one with alpha 0",
    cases=[(6, 0.3, 0.5), (2, 1.0, 0.2), (4, 2.0, 0.0), (1, 0.0, 0.5)],
    observe=_observe_rdrop_loss,
    mistakes={
        "the task loss is that of the second pass: take the first": dict(task=lambda one, two: two),
        "the task loss is that of both passes: take the first alone": dict(
            task=lambda one, two: (one + two) / 2
        ),
        "the second pass is detached: both carry gradient": dict(target=Tensor.detach),
        "the model was put into evaluation mode: then its dropout is off": dict(mode=nn.Module.eval),
    },
)
def rdrop_loss(
    model, inputs, labels, alpha, *, task=lambda one, two: one, target=lambda x: x, mode=lambda model: model
):
    first, second = mode(model)(torch.cat([inputs, inputs])).chunk(2)
    losses = map(partial(F.cross_entropy, target=labels), (first, second))
    return task(*losses) + alpha * symmetric_divergence(first, target(second))
