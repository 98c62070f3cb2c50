"""The check of `ex00_tour` for an attention function: scores under two masks, weights, output, gradients."""

import torch
from torch import nn

from asa_classroom.checks.encoders import adversary_of, of_case, random_batch
from asa_classroom.checks.old_harness import attempt, call, require, same
from asa_mini import asa_attention


def attention(student):
    for case, dtype, dim, lengths, masked, hide in (
        ("a hidden row, padding", torch.float64, 3, (5, 3), True, True),
        ("padding, keep not given", torch.float32, 4, (2, 5), True, False),
        ("attention_mask=None", torch.float32, 4, (3, 3), False, True),
        ("one token, no masks", torch.float64, 2, (1, 1), False, False),
    ):
        length = max(lengths)
        q, k, v = qkv = [torch.randn(2, 2, length, dim, dtype=dtype, requires_grad=True) for _ in range(3)]
        keep = (torch.rand(2, length, length) < 0.6) | (not hide)
        keep[1, 0] = not hide
        allowed = random_batch(*lengths)["attention_mask"].bool()[:, None, None].expand(-1, 1, length, -1)
        one_hot = torch.eye(length, dtype=dtype).expand(2, 2, -1, -1)
        right = [
            asa_attention(q, k, x, *adversary_of(keep)(q), allowed, scaling=0.7)[0] for x in (v, one_hot)
        ]
        output, weights = right[0].transpose(1, 2), right[1]
        options = {"scaling": 0.7, "dropout": 0.0, "position_ids": None} | ({"keep": keep} if hide else {})
        with of_case(case):
            pair = call(student, nn.Module(), *qkv, allowed if masked else None, **options)
        require(isinstance(pair, (tuple, list)) and len(pair) == 2, "return two tensors: output and weights")
        scores, hidden, padded = q @ k.mT, ~keep[:, None], ~allowed
        hiding, padding, infinite = (hidden, -1e4), (padded, torch.finfo(dtype).min), (hidden, -torch.inf)
        turned = (~hidden, -1e4), (~padded, padding[1])

        def soft(*fills, s=0.7 * scores, axis=-1):
            for where, number in fills:
                s = s.masked_fill(where, number)
            return s.softmax(axis)

        known = {
            "the scores are not scaled: multiply by `scaling`": soft(hiding, padding, s=scores),
            "`scaling` is given: use it, not 1 / sqrt(D)": soft(hiding, padding, s=scores / dim**0.5),
            "the softmax runs over the queries: each row must sum to 1": soft(hiding, padding, axis=-2),
            "neither mask is used: masked_fill returns a new tensor, keep what it returns": soft(),
            "both masks are turned round: True means may be seen": soft(*turned),
            "both masks are turned round: True means it may be seen": soft(*turned[::-1]),
            "`keep` is not used": soft(padding),
            "`keep` is turned round: True means kept": soft((~hidden, -1e4), padding),
            "`keep` belongs to sentences, not to heads: keep[:, None]": soft((~keep, -1e4), padding),
            "attention_mask is not used: padding is attended to": soft(hiding),
            "attention_mask is turned round: True may be seen": soft(hiding, (~padded, -1e30)),
            "a hidden row attends to padding: padded scores must be far lower": soft((padded, -1e4), hiding),
            "a hidden row attends to padding: fill padded scores last": soft(padding, hiding),
            "a hidden row is NaN: hidden units get -10000, not -inf": soft((padded, -torch.inf), infinite),
            "a hidden row sees padding alone: use -10000, not -inf": soft(infinite, padding),
            "a hidden row is NaN or sees padding alone: use -10000, not -inf": soft(padding, infinite),
            "-10000 is added: it must take the score's place": soft(padding, s=0.7 * scores - 1e4 * hidden),
            "hidden weights are zeroed after the softmax: rows must sum to 1": soft(padding) * ~hidden,
        }
        same(pair[1], weights, "the matrix of weights", case, known)
        known = {
            "the output is (B, H, L, D): swap H and L at the end": right[0],
            "reshape mixes heads and tokens: swap the axes with transpose(1, 2)": right[0].reshape_as(output),
        }
        same(pair[0], output, "the output", case, known)
        require(pair[0].requires_grad, "the output has no gradient: is something detached?")
        attempt((pair[0] ** 2).sum().backward)
        slopes = torch.autograd.grad((output**2).sum(), qkv)
        same([x.grad for x in qkv], list(slopes), "the gradient of query, key and value", case)
    return "a hidden row beside padding, each mask alone, one token without masks"
