"""Checks of `ex04_training`: the objective, the step of two players, the control, fair comparisons."""

import math
import statistics
from functools import partial

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from asa_classroom.checks import training_terms as terms
from asa_classroom.checks.old_harness import CheckFailed, Ladder, call, fail, hinted, require, same
from asa_classroom.checks.training_terms import entries
from asa_mini.wrap import AsaConfig, wrap

ladder = Ladder("ex04_training")
TERMS = ("loss", "task_loss", "divergence", "kept_units")

pay = ladder.step(terms.pay)
divergence = ladder.step(terms.divergence)
objective = ladder.step(terms.objective)
joint_pass = ladder.step(terms.joint_pass)


@ladder.step
def plain_steps(student):
    for steps, attacked, layers in ((740, 3, 4), (1000, 6, 6), (500, 0, 6), (0, 2, 2), (9, 2, 2)):
        share = attacked / layers
        known = {
            "the adversary's cost is missing": 2 * steps,
            "the adversary is paid for in attacked layers only: use attacked / layers": steps * (2 + 1 / 9),
            "the adversary works on the second half only": steps * (2 + share * 2 / 9),
            "the adversary's input is detached: its backward pass costs 1, not 2": steps * (2 + share / 6),
            "the adversary's backward pass is missing": steps * (2 + share / 18),
            "divide by the 3 units of a plain step": steps * (6 + share / 3),
            "divide all units of the ASA step by 3, the adversary's too": steps * (2 + share / 3),
            "this is how many ASA steps fit, the other way round": steps / (2 + share / 9),
            "`attacked` layers are a part of `layers`: share their cost among all of them": steps
            * (2 + attacked / 9),
            "a plain step, too, runs all layers": steps * (6 * layers + attacked / 3) / 3,
            "an ASA step runs two halves": steps * (1 + share / 9),
        }
        known = {hint: round(value) for hint, value in known.items()}
        right = steps * (2 + share / 9)
        known["round to the nearest: int() and // cut off"] = math.floor(right)
        known["round to the nearest, not upwards"] = math.ceil(right)
        known["round to the nearest whole step"] = right
        got, case = call(student, steps, attacked, layers), f"{steps} steps, {attacked} of {layers} layers"
        same(got, round(right), "the number of plain steps", case, known, tolerance=1e-9)
        require(isinstance(got, int), f"the number must be an int, not a {type(got).__name__}")
    return "five budgets, one of R-Drop, one of no steps"


rdrop_loss = ladder.step(terms.rdrop_loss)


@ladder.step
def paired_gain(student):
    scores = {  # (method, split) -> accuracy by seed; seeds 7 and 9 have one method only, seed 1 is a tie
        ("new", "flipped"): {7: 90.0, 3: 60.0, 0: 71.0, 1: 55.0, 2: 50.0},
        ("old", "flipped"): {0: 64.0, 1: 55.0, 2: 53.0, 3: 52.0, 9: 20.0},
        ("other", "flipped"): {0: 99.0, 1: 98.0, 5: 1.0},
        ("new", "iid"): {0: 95.0, 1: 91.0, 2: 97.0},
        ("old", "iid"): {5: 90.0, 1: 92.0},
    }
    names = ("method", "split", "seed", "accuracy")
    rows = [(*which, s, a) for which, table in scores.items() for s, a in table.items()]
    runs = [dict(zip(names, row, strict=True)) for row in rows]
    for method, base, split in (("new", "old", "flipped"), ("old", "new", "flipped"), ("new", "old", "iid")):
        mine, theirs = scores[method, split], scores[base, split]
        gains = [a - theirs[seed] for seed, a in mine.items() if seed in theirs]
        several, n, case = len(gains) > 1, len(gains), f"{method} against {base} on {split}"
        alone = "seed {} has only one of the two methods: compare the seeds that both have"
        hints = {f"its cell: {seed}\n": alone.format(seed) for seed in mine.keys() ^ theirs.keys()}
        got = hinted(hints, call, student, [dict(run) for run in runs], split, method, base)
        seeds, ahead, mean, std = entries(got, ("seeds", "ahead", "mean", "std"))
        last = [{s: a for m, _, s, a in rows if m == name} for name in (method, base)]  # whatever its split
        by_place = [a - b for a, b in zip(mine.values(), theirs.values(), strict=False)]
        known = {
            "only seeds that both methods have can be compared": max(len(mine), len(theirs)),
            "seeds of both methods count, not those of either": len(mine.keys() | theirs.keys()),
        }
        same(seeds, n, "the number of seeds", case, known)
        known = {
            "the sign is wrong: method minus base": -statistics.mean(gains),
            "rows of other splits are in it: take those of `split` alone": statistics.mean(
                last[0][seed] - last[1][seed] for seed in last[0].keys() & last[1].keys()
            ),
            "these are runs in order, not pairs of the same seed": statistics.mean(by_place[:n]),
            "the means are not paired: take the difference within each seed": statistics.mean(mine.values())
            - statistics.mean(theirs.values()),
        }
        same(mean, statistics.mean(gains), "the mean gain", case, known)
        known = {
            "a tie is not ahead: count the gains above 0": sum(gain >= 0 for gain in gains),
            "these are the seeds on which the base is ahead": sum(gain < 0 for gain in gains),
            "`ahead` is a number of seeds, not a share": sum(gain > 0 for gain in gains) / n,
        }
        same(ahead, sum(gain > 0 for gain in gains), "the number of seeds ahead", case, known)
        if several:
            shared = [a for seed, a in mine.items() if seed in theirs]
            known = {
                "divide by n - 1, not by n": statistics.pstdev(gains),
                "this is the variance: take its square root": statistics.variance(gains),
                "this is the spread of the method, not that of the gains": statistics.stdev(shared),
                "this is the standard error: do not divide by the root of n": statistics.stdev(gains)
                / n**0.5,
            }
            same(std, statistics.stdev(gains), "the standard deviation", case, known)
        else:
            require(std is None, "one seed has no spread: std must be None, neither 0 nor nan")
    return "three comparisons, ties, missing seeds, a single seed"


def _encoder(frozen: bool = False) -> BertForSequenceClassification:
    """A random encoder in double precision and evaluation mode, always the same."""
    torch.manual_seed(1)
    sizes = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
    sizes |= dict(vocab_size=30, max_position_embeddings=12, initializer_range=0.3)
    config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
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


def _compare(got: list, run: partial, names: list[str], case: str, ways: dict[str, dict]) -> None:
    """Compare with what `run()` returns. `ways`: {hint: the options with which `run` makes that mistake}."""
    try:
        for mine, right, name in zip(got, run(), names, strict=True):
            same(mine, right, name, case, tolerance=1e-6)
    except CheckFailed:  # only now, since each of these is a training run
        wrong = {hint: run(**options) for hint, options in ways.items()}
        for i, (mine, right, name) in enumerate(zip(got, run(), names, strict=True)):
            try:
                same(mine, right, name, case, {hint: x[i] for hint, x in wrong.items()}, tolerance=1e-6)
            except CheckFailed as error:
                if not isinstance(right, Tensor) or right.ndim != 1:
                    raise
                norms = ", ".join(  # a row of a thousand weights tells nothing
                    f"{of} {x.norm():.3g}"
                    for of, x in (("expected", right), ("got", mine), ("of the difference", mine - right))
                )
                fail("\n".join([*str(error).splitlines()[:2], f"  {'norm':18}  {norms}"]))


def _two_steps(
    lr, adversary_lr, limit, frozen, clip="apart", clear=True, late=False, term="loss"
) -> list[Tensor]:
    """What two steps change in the encoder and in the adversaries, and the terms (2, 4) of both."""
    model = wrap(_encoder(frozen), AsaConfig(0.3)).train()
    encoder, adversary = (list(m.parameters()) for m in (model.model, model.adversaries))
    players = {"apart": [encoder, adversary], "together": [encoder + adversary], "encoder": [encoder]}
    players |= {"adversary": [adversary], "each": [[p] for p in encoder + adversary]}
    before, rows = [_weights(m) for m in (model.model, model.adversaries)], []
    for _ in range(2):
        if clear:
            model.zero_grad()
        out = model(**_batch())
        out[term].backward()
        for player in players.get(clip, []):
            nn.utils.clip_grad_norm_(player, limit)
        if clip == "value":
            nn.utils.clip_grad_value_(model.parameters(), limit)
        with torch.no_grad():
            for player, rate in ((encoder, lr), (adversary, adversary_lr)):
                for p in player:
                    p -= 0 if p.grad is None else rate * p.grad
            out = model(**_batch()) if late else out
        rows.append([out[name].item() for name in TERMS])
    after = [_weights(m) for m in (model.model, model.adversaries)]
    return [a - b for a, b in zip(after, before, strict=True)] + [torch.tensor(rows, dtype=torch.float64)]


@ladder.step
def TwoPlayers(student):
    require(isinstance(student, type), "TwoPlayers must be a class")
    for lr, adversary_lr, limit, frozen in ((0.2, 0.5, 0.1, False), (0.01, 0.003, 1e6, True)):
        ways = {
            "both players are clipped together: clip each by itself": dict(clip="together"),
            "nothing is clipped: clip after backward, before the step; make parameters() a list": dict(
                clip=""
            ),
            "only the encoder is clipped: clip the adversary, too; make parameters() a list": dict(
                clip="encoder"
            ),
            "the encoder is not clipped: parameters() runs dry, make it a list": dict(clip="adversary"),
            "clip the norm, not each value": dict(clip="value"),
            "every tensor is clipped by itself: one call of clip_grad_norm_ for each player": dict(
                clip="each"
            ),
            "the loss is negated: the reversal is in the wrapped model already": dict(
                lr=-lr, adversary_lr=-adversary_lr
            ),
            "go back from `loss`, not from `task_loss`": dict(term="task_loss"),
            "go back from `loss`, not from `divergence`": dict(term="divergence"),
            "gradients of earlier steps pile up: call zero_grad in every step": dict(clear=False),
            "the adversary does not learn at its own rate": dict(adversary_lr=lr),
            "the two rates are swapped": dict(lr=adversary_lr, adversary_lr=lr),
            "the adversary goes the wrong way: the reversal is in the model": dict(
                adversary_lr=-adversary_lr
            ),
            "the adversary never moves: is it in the optimizer?": dict(adversary_lr=0.0),
            "the encoder never moves: is it in the optimizer?": dict(lr=0.0),
            "return the terms of the step's own forward pass, before the update": dict(late=True),
        }
        model = wrap(_encoder(frozen), AsaConfig(0.3)).train()
        before = [_weights(m) for m in (model.model, model.adversaries)]
        require(callable(getattr(student, "step", None)), "the class needs a method `step`")
        trainer = call(student, model, lr, adversary_lr, limit)
        rows = [entries(call(trainer.step, _batch()), TERMS) for _ in range(2)]
        require(all(type(x) is float for row in rows for x in row), "the terms must be floats: use .item()")
        got = [_weights(m) - old for m, old in zip((model.model, model.adversaries), before, strict=True)]
        require(any(x.any() for x in got), "no weight has moved: is the optimizer's step() called?")
        got.append(torch.tensor(rows, dtype=torch.float64))
        names = [f"what two steps change in the {name}" for name in ("encoder", "adversaries")]
        case = f"two steps, lr {lr}, adversary_lr {adversary_lr}, limit {limit}"
        run = partial(_two_steps, lr=lr, adversary_lr=adversary_lr, limit=limit, frozen=frozen)
        _compare(got, run, [*names, f"the table of both steps ({', '.join(TERMS)})"], case, ways)
    return "two steps each, clipped and not, with frozen embeddings"


def _attack(
    tau, steps, lr, seed, clear=True, sign=1, share=torch.mean, term="divergence", turned=False
) -> list[float]:
    """Divergence and kept share after the adversaries have played."""
    model = _encoder()
    torch.manual_seed(seed)
    model = wrap(model, AsaConfig(tau)).train()
    optimizer = torch.optim.AdamW(model.adversaries.parameters(), lr=lr)
    for _ in range(steps):
        if clear:
            optimizer.zero_grad()
        (sign * model(**_batch()).loss).backward()
        optimizer.step()
    out = model(**_batch())
    return [out[term].item(), share(out.kept_share).item()][:: -1 if turned else 1]


@ladder.step
def attack(student):
    asleep = "the wrapped model is in evaluation mode, where it does not attack: call .train()"
    bare = "wrap takes an AsaConfig, not a number: AsaConfig(temperature=temperature)"
    hints = {"'SequenceClassifierOutput' object has no": asleep, "wrap takes an AsaConfig": bare}
    for tau, steps, lr, seed in ((0.8, 8, 0.03, 4), (2.0, 5, 0.05, 3), (0.0, 0, 0.02, 5)):
        ways = {
            "measured before the last update: run one more forward pass": dict(steps=max(steps - 1, 0)),
            "the adversaries never learned: go back from `loss`, then call the optimizer's step": dict(
                steps=0
            ),
            "the pay is missing: go back from `loss`, not from `divergence`": dict(tau=0.0),
            "go back from `loss` as it is: the pay and the reversal are in it": dict(tau=0.0, sign=-1),
            "gradients of earlier steps pile up: call zero_grad in every step": dict(clear=False),
            "the temperature does not reach AsaConfig": dict(tau=0.5),
            "give AsaConfig the temperature itself: it takes the square": dict(tau=tau**2),
            "the loss is negated: the reversal is in the wrapped model already": dict(sign=-1),
            "the learning rate is not used": dict(lr=1e-3),
            "take the mean over the layers, not the first one": dict(share=lambda x: x[0]),
            "take the mean over the layers, not the last one": dict(share=lambda x: x[-1]),
            "take the mean over the layers, not their sum": dict(share=torch.sum),
            "this is the loss: return the divergence": dict(term="loss"),
            "the order is wrong: first the kept share, then the divergence": dict(turned=True),
        }
        model, results = _encoder(), []
        before = _weights(model)
        for outside in (0, 1):
            torch.manual_seed(outside)
            results.append(hinted(hints, call, student, model, _batch(), tau, steps, lr, seed))
            moved = "the encoder has moved: the optimizer takes model.adversaries.parameters() alone"
            require(torch.equal(_weights(model), before), moved)
            hooks = any(module._forward_pre_hooks for module in model.modules())
            require(not hooks, "the model is still wrapped: call unwrap() at the end")
        pair = isinstance(results[0], (tuple, list)) and len(results[0]) == 2
        require(pair, "return two numbers, (kept_share, divergence)")
        require(all(type(x) is float for x in results[0]), "both results must be floats: use .item()")
        apart = "two calls with one seed differ: call torch.manual_seed(seed) before wrap"
        require(results[0] == results[1], apart)
        run = partial(_attack, tau=tau, steps=steps, lr=lr, seed=seed)
        names = ["the divergence", "the kept share"]  # a share of few units can be right by chance
        case = f"temperature {tau}, {steps} steps, lr {lr}, seed {seed}"
        _compare([*reversed(results[0])], run, names, case, ways)
    return "three temperatures, one without any step"
