"""The first checks of `ex04_training`: the terms of the objective, the joint pass, the control."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asa_classroom.checks.old_harness import attempt, call, require, same
from asa_mini.objective import symmetric_divergence


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, dtype=torch.float64)).requires_grad_()


def slopes(value: Tensor, inputs: list[Tensor], what: str) -> list[Tensor]:
    """Gradients of a student's scalar; zeros for an input that it does not depend on."""
    require(value.requires_grad, f"{what} has no gradient: keep everything on the way to it a tensor")
    found = attempt(torch.autograd.grad, value, inputs, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def entries(got: object, keys: tuple[str, ...]) -> list:
    """The values of a student's dictionary, in the order of `keys`."""
    require(isinstance(got, dict), f"the result must be a dictionary, not a {type(got).__name__}")
    require(set(got) == set(keys), f"the dictionary needs the keys {keys}, but has {tuple(got)}")
    return [got[key] for key in keys]


def pay(student):
    cases = ((3, 4, 2, 0.3, 1), (2, 3, 1, 1.5, 0), (1, 5, 3, 2.0, 2), (2, 3, 2, 0.0, 1), (2, 3, 0, 0.3, 1))
    for size, length, layers, tau, padded in cases:
        case = f"B={size}, L={length}, {layers} layers, tau {tau}, padding in the last row: {padded}"
        real = torch.ones(size, length, dtype=torch.bool)
        real[-1, length - padded :] = False
        masks = [(torch.rand(size, length, length) < 0.6).double().requires_grad_() for _ in range(layers)]
        got = call(student, masks, real, tau)
        if not masks:
            same(torch.as_tensor(got).double(), torch.zeros((), dtype=torch.float64), "the pay", case)
            continue
        lost = "the pay has no gradient: multiply by the masks, do not make booleans or floats of them"
        require(not isinstance(got, Tensor) or got.requires_grad, lost)
        units = sum((m * real[:, None, :]).sum() for m in masks)
        by_query = sum((m * real[:, :, None]).sum() for m in masks)
        both = sum((m * real[:, None, :] * real[:, :, None]).sum() for m in masks)
        masked = sum(((1 - m) * real[:, None, :]).sum() for m in masks)
        right = tau**2 * units / size
        known = {
            "tau is not squared: beta is the temperature squared": tau * units / size,
            "the sum is not divided by the batch size": tau**2 * units,
            "padding is counted: a unit whose key is padding was never there": tau**2
            * sum(masks).sum()
            / size,
            "`real` must rule out keys, the last axis, not queries": tau**2 * by_query / size,
            "units of padded queries count: only the key must be real": tau**2 * both / size,
            "the adversary is paid for what it keeps, not for what it masks": tau**2 * masked / size,
            "add up the layers, do not average them": right / layers,
            "the pay is positive here: the gradient reversal takes care of the sign": -right,
        }
        same(got, right, "the pay", case, known)
        for slope in slopes(got, masks, "the pay"):
            unit = (real[:, None, :].double() * (tau**2 / size)).expand_as(slope)
            same(slope, unit, "the gradient of the pay with respect to a mask", case)
    return "five cases, with padding, without pay, without layers"


def across(p: Tensor, q: Tensor, axis: int) -> Tensor:
    """The divergence if the softmax runs along `axis`."""
    log_p, log_q = p.log_softmax(axis), q.log_softmax(axis)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum() / 2 / len(p)


def divergence(student):
    for shape in ((4, 3), (2, 5, 2), (1, 2)):
        p, q, case = randn(*shape), randn(*shape, scale=2.0), f"logits of shape {shape}"
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        p_q = (log_p.exp() * (log_p - log_q)).sum() / shape[0]
        q_p = (log_q.exp() * (log_q - log_p)).sum() / shape[0]
        right = (p_q + q_p) / 2
        no_log = [F.kl_div(a, b, reduction="batchmean") for a, b in ((log_q, log_p), (log_p, log_q))]
        known = {
            "this is KL[p || q] alone: take the mean of both directions": p_q,
            "this is KL[q || p] alone: take the mean of both directions": q_p,
            "the two directions are added: take their mean, half of the sum": 2 * right,
            "the sum is not divided by the batch size": right * shape[0],
            "the mean was taken over all numbers: sum, then divide by B alone": right * shape[0] / p.numel(),
            "divide by B alone, also if there are L tokens": right * shape[0] * shape[-1] / p.numel(),
            "this is in bits: take the natural logarithm": right / math.log(2),
            "the sign is wrong: the divergence is at least 0": -right,
            "F.kl_div was given logarithms as target: say log_target=True": sum(no_log) / 2,
            "the second direction has the wrong sign: KL[q || p] is at least 0, too": (p_q - q_p) / 2,
            "right for (B, C), wrong for (B, L, C): the classes are the last axis, -1": across(p, q, 1),
            "the softmax runs over the batch: the classes are the last axis, -1": across(p, q, 0),
        }
        same(call(student, p, q), right, "the divergence", case, known)
        got = slopes(call(student, p, q), [p, q], "the divergence")
        wanted = torch.autograd.grad(right, [p, q])
        for name, slope, expected in zip(("clean", "adversarial"), got, wanted, strict=True):
            known = {f"no gradient reaches the {name} logits: do not detach them": torch.zeros_like(slope)}
            same(slope, expected, f"the gradient of the {name} logits", case, known)
    same(call(student, p, p + 3), 0 * right, "the divergence of equal predictions", "q = p + 3")
    p, q = torch.tensor([[[4000.0, 0.0]], [[0.0, 3000.0]]], dtype=torch.float64)
    got = call(student, p, q)
    require(torch.isfinite(got), "large logits give inf or nan: a softmax underflows, use log_softmax")
    same(got, p.new_tensor(3500.0), "the divergence", "logits (4000, 0) and (0, 3000)")
    return "three shapes, equal predictions, logits in the thousands"


def objective(student):
    for size, classes, alpha in ((5, 3, 0.4), (1, 2, 1.0), (3, 2, 0.0)):
        p, q, paid = randn(size, classes), randn(size, classes, scale=2.0), randn().detach().abs() + 0.5
        labels, case = torch.randint(classes, (size,)), f"logits of shape {(size, classes)}, alpha {alpha}"
        paid.requires_grad_()
        task, far = F.cross_entropy(p, labels), symmetric_divergence(p, q)
        right, attacked = task + alpha * far + paid, F.cross_entropy(q, labels)
        result = call(student, p, q, labels, paid, alpha)
        loss, *terms = entries(result, ("loss", "task", "divergence", "pay"))
        known = {
            "the task loss is that of the clean logits, not of the adversarial ones": attacked,
            "the task loss is that of the clean logits alone": F.cross_entropy(
                torch.cat([p, q]), torch.cat([labels] * 2)
            ),
            "the task loss is the mean over the batch, not the sum": task * size,
            "cross_entropy takes logits: no softmax before it": F.cross_entropy(p.softmax(-1), labels),
        }
        same(terms[0], task, "the task loss", case, known)
        known = {"return the divergence itself, its weight alpha belongs into the loss": alpha * far}
        same(terms[1], far, "the divergence", case, known)
        same(terms[2], paid, "the pay", case)
        known = {
            "the pay is subtracted: add it, the gradient reversal turns its sign": right - 2 * paid,
            "the divergence is subtracted: the encoder makes it smaller, so add it": right - 2 * alpha * far,
            "alpha is not used: it weighs the divergence": task + far + paid,
            "alpha weighs the divergence alone, not the pay": task + alpha * (far + paid),
            "alpha weighs the divergence, not the task loss": alpha * task + far + paid,
            "the pay is missing in the loss": task + alpha * far,
            "the divergence is missing in the loss": task + paid,
        }
        same(loss, right, "the loss", case, known)
        alone = torch.autograd.grad(task, p, retain_graph=True)[0]
        got, wanted = slopes(loss, [p, q, paid], "the loss"), torch.autograd.grad(right, [p, q, paid])
        for name, slope, expected in zip(
            ("clean logits", "adversarial logits", "pay"), got, wanted, strict=True
        ):
            known = {f"no gradient reaches the {name}: detach nothing": torch.zeros_like(slope)}
            if slope is got[0]:
                known["the divergence must reach the clean logits, too: detach nothing"] = alone
            same(slope, expected, f"the gradient of the {name}", case, known)
    return "three batches, alpha 0.4, 1 and 0"


class Recorder(nn.Module):
    """A little model for `joint_pass` (with `keep`) and `rdrop_loss` (without) that remembers its calls."""

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.embed, self.head = (randn(n, width) for n in (9, 3))
        self.dropout, self.calls = dropout, []

    def forward(self, inputs, keep=None):
        if keep is None:
            logits = F.dropout(inputs, self.dropout, self.training) @ self.head.mT
        else:
            units = keep * inputs["attention_mask"][:, None, :]  # (N, L, L)
            logits = (units @ self.embed[inputs["input_ids"]]).tanh().mean(1) @ self.head.mT
        self.calls.append((inputs, logits, self.training))
        return logits


def joint_pass(student):
    for size, length in ((3, 4), (2, 6), (1, 5)):
        case, model = f"B={size}, L={length}", Recorder(5)
        batch = {"input_ids": torch.randint(9, (size, length)), "attention_mask": torch.ones(size, length)}
        batch["attention_mask"][-1, -1] = 0
        batch["labels"] = torch.arange(size)  # of one axis
        before = dict(batch)
        keep = (torch.rand(size, length, length) < 0.5).double().requires_grad_()
        ones = torch.ones_like(keep)
        clean, attacked = model(batch, ones), model(batch, keep)
        nothing = model(batch, 0 * keep)
        model.calls.clear()
        got = call(student, model, batch, keep)
        require(
            all(batch.get(name) is x for name, x in before.items()), "`batch` was changed: make a new dict"
        )
        require(len(model.calls) > 0, "the model was never called")
        times = f"the model was called {len(model.calls)} times: double the batch and call it once"
        require(len(model.calls) == 1, times)
        rows = len(model.calls[0][1])
        require(rows == 2 * size, f"the model got {rows} sequences, not 2B = {2 * size}")
        pair = isinstance(got, (tuple, list)) and len(got) == 2
        require(pair, "return two tensors, (logits, adversarial_logits): split the 2B logits into halves")
        mixed = "the halves are mixed: all clean rows come first (torch.cat, not repeat_interleave)"
        doubled = model.calls[0][0]
        for name, x in batch.items():
            require(name in doubled, f"`{name}` is missing in what the model got: double every entry")
            twice, made = torch.cat([x, x]), tuple(doubled[name].shape)
            shape = f"`{name}` of shape {tuple(x.shape)} became {made}: double the first axis alone"
            require(made == twice.shape, f"{shape}, torch.cat([x, x])")
            require(torch.equal(doubled[name], twice), mixed)
        swapped = "the halves are swapped: the clean one comes first"
        if isinstance(got[1], Tensor) and got[1].shape == attacked.shape and torch.allclose(got[1], attacked):
            swapped = "the mask acts on both halves: it belongs to the second half alone"
        known = {
            swapped: attacked,
            "the clean half got a mask of zeros: a mask of ones changes nothing": nothing,
        }
        same(got[0], clean, "`logits`", case, known)
        same(
            got[1],
            attacked,
            "`adversarial_logits`",
            case,
            {"the mask did not reach the second half": clean},
        )
        weight = torch.randn_like(attacked)
        slope = slopes((got[1] * weight).sum(), [keep], "what the mask changes")[0]
        known = {"no gradient reaches `keep`: do not detach or convert it": torch.zeros_like(slope)}
        same(
            slope,
            torch.autograd.grad((attacked * weight).sum(), keep)[0],
            "the gradient of keep",
            case,
            known,
        )
    return "three batches, padding, one of a single sequence"


def rdrop_loss(student):
    for size, alpha, dropout in ((6, 0.3, 0.5), (2, 1.0, 0.2), (4, 2.0, 0.0), (1, 0.0, 0.5)):
        model, inputs, labels = Recorder(8, dropout), randn(size, 8).detach(), torch.randint(3, (size,))
        case = f"B={size}, alpha {alpha}, dropout {dropout}"
        got = call(student, model, inputs, labels, alpha)
        modes = [training for *_, training in model.calls]
        off = "the model was put into evaluation mode: then its dropout is off"
        require(model.training and all(modes), off)
        rows = sum(len(logits) for _, logits, _ in model.calls)
        require(rows == 2 * size, f"{rows} rows went through the model: each of the {size} must pass twice")
        seen, logits = (torch.cat(x) for x in list(zip(*model.calls, strict=True))[:2])
        mixed = "the passes are mixed: first all rows of one pass, then all of the other"
        require(torch.equal(seen, torch.cat([inputs, inputs])), mixed)
        graph = "one of the passes ran without gradient: both must carry it"
        require(all(rows.requires_grad for _, rows, _ in model.calls), graph)
        first, second = logits.chunk(2)
        one, two = F.cross_entropy(first, labels), F.cross_entropy(second, labels)
        far = alpha * symmetric_divergence(first, second)
        log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
        one_way = alpha * (log_p.exp() * (log_p - log_q)).sum() / size
        known = {
            "the task loss is that of the second pass: take the first": two + far,
            "the task loss is that of both passes: take the first alone": (one + two) / 2 + far,
            "the task losses are added up: take that of the first pass alone": one + two + far,
            "the divergence is missing: it compares the first pass with the second": one,
            "alpha is not used: it weighs the divergence": one + symmetric_divergence(first, second),
            "one direction of the divergence is missing": one + one_way,
            "one direction of the divergence is missing: KL[p || q]": one + 2 * far - one_way,
            "the divergence is subtracted: nobody is adversarial here": one - far,
            "cross_entropy takes logits: no softmax before it": F.cross_entropy(first.softmax(-1), labels)
            + far,
        }
        same(got, one + far, "the loss", case, known)
        losses = {
            "the second pass is detached: both carry gradient": alpha
            * symmetric_divergence(first, second.detach()),
            "the first pass is detached: both carry gradient": alpha
            * symmetric_divergence(first.detach(), second),
            "the divergence is detached: it must carry gradient": far.detach(),
        }
        known = {
            hint: torch.autograd.grad(one + part, model.head, retain_graph=True)[0]
            for hint, part in losses.items()
        }
        right = torch.autograd.grad(one + far, model.head, retain_graph=True)[0]
        same(
            slopes(got, [model.head], "the loss")[0],
            right,
            "the gradient of the model's weights",
            case,
            known,
        )
    return "four batches, one without dropout, one with alpha 0"
