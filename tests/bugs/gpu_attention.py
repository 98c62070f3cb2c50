"""Planted mistakes in the solutions of ex06_gpu_attention: step -> (old text, new text, first line of the
check's message, a regular expression)."""

import torch

LOAD = r"tl\.load reads outside"
STORE = r"tl\.store writes outside"
SHARED = "written by several programs: each does"
ADDRESS = "a tensor is an address here: read with"
METHOD = r"in a kernel write tl\.exp\(s\)"
AND_TESTED = "is the score tested, and is it `&`"
AND_REAL = r"padding is kept: `\(s > 0\) & real`"
AND_KEPT = "rows that keep some, not -inf: is it `&`"
AND_BEYOND = r"sees every key: `\(n == 0\) & real`"
GIVEN = r"_kernel`, line \d+ of its cell: (load_rows|'int' object|'dtype' object)"
UNDEFINED = "a tl.load's mask leaves out: give it an"
BLOCKS = "too many places at once"
PLACE = "only the first (word|tile) is right: a bit's place"
# What nobody sees in a compiled kernel, or what is right or undefined there.
INTERPRETED = {
    *(LOAD, SHARED, ADDRESS, METHOD, AND_TESTED, AND_REAL, AND_KEPT, AND_BEYOND),
    *(GIVEN, UNDEFINED, BLOCKS, PLACE),
}
CARRIED = "        top = new_top\n"
WHOLE = "tl.load(key_mask + keys, mask=keys < length, other=0) != 0"

BUGS = {
    "vector_add": [
        ("total, mask=inside", "total", STORE),
        ("tl.load(x + i, mask=inside)", "tl.load(x + i)", LOAD),
        ("i < n", "i <= n", "outside its tensor"),
        ("tl.program_id(0) * BLOCK + ", "", "only the first block is written"),
        ("tl.program_id(0) * BLOCK", "tl.program_id(0)", r"\d of 20 numbers of `out` were never written"),
        ("mask=inside) + tl", "mask=inside) - tl", "this is x - y"),
        (" + tl.load(y + i, mask=inside)", "", "this is x alone"),
        ("tl.store(out + i, total", "tl.store(x + i, total", "writes into its inputs"),
        ("tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)", "tl.arange(0, 64)", SHARED),
        ("tl.program_id(0) * BLOCK", "tl.program_id(0) * 0", "only the first block is written"),
        ("tl.load(x + i, mask=inside) + tl.load(y + i, mask=inside)", "x[i] + y[i]", ADDRESS),
        ("tl.store(out + i, total, mask=inside)", "out[i] = total", ADDRESS),
        ("BLOCK)\n    inside", "BLOK)\n    inside", "stopped with .*BLOK"),
        ("block=16):\n    ", "block=16):\n    raise NotImplementedError('no launcher')\n    ", "no launcher"),
    ],
    "softmax_rows": [
        (', other=float("-inf")', ", other=0.0", r"places beyond the row count as e\^0"),
        (', other=float("-inf")', "", UNDEFINED),
        ("row - tl.max(row, 0)", "row", "NaN: is the row's maximum subtracted"),
        ("e / tl.sum(e, 0)", "e", "not divided by their sum"),
        ("x + start + j", "x + j", "every row is the softmax of row 0"),
        ("start = tl.program_id(0) * n_columns", "start = 0", r"80 of 120 numbers of `out` were never"),
        ("tl.program_id(0) * n_columns", "tl.program_id(0) * BLOCK", "outside its tensor"),
        ("e / tl.sum(e, 0), mask=inside", "e / tl.sum(e, 0)", STORE),
        ("tl.exp(row - tl.max(row, 0))", "(row - tl.max(row, 0)).exp()", METHOD),
        ("e / tl.sum(e, 0)", "row - tl.log(tl.sum(e, 0)) - tl.max(row, 0)", "the logarithm of the softmax"),
    ],
    "online_softmax": [
        (" * (top - origin).exp()", "", "sum is not rescaled when the maximum moves"),
        ("torch.maximum(top, s.amax(1))", "s.amax(1)", "the maximum of the last block"),
        ("(s - origin[:, None]).exp()", "(s - s.amax(1)[:, None]).exp()", "the running sum is not right"),
        (
            "total * (top - origin).exp() + (s - origin[:, None]).exp()",
            "total + (s - s.amax(1)[:, None]).exp()",
            "every block has its own ruler",
        ),
        ("(top - origin).exp()", "(origin - top).exp()", "NaN: -inf - -inf is NaN"),
        ('torch.where(new_top == float("-inf"), 0.0, new_top)', "new_top", "NaN: -inf - -inf is NaN"),
        ("total * (top - origin).exp() + ", "", "the exponentials of the last block alone"),
        (CARRIED, "", "the maximum stays -inf: is"),
        ("return top, total", "return total, top", "in the wrong order"),
        ("x.split(block, dim=1)", "[x]", "too many columns at once"),
        ("return top, total", "return total", "return two tensors"),
        (
            "total * (top - origin).exp() + (s - origin[:, None]).exp()",
            "total + s.exp()",
            "no maximum is subtracted",
        ),
    ],
    "online_softmax_rows": [
        ("total * tl.exp(top - origin)", "total", "the sum is not rescaled when the maximum moves"),
        (
            "total * tl.exp(top - origin) + tl.sum(tl.exp(s - origin), 0)",
            "total + tl.sum(tl.exp(s - tl.max(s, 0)), 0)",
            "every block is summed with its own ruler",
        ),
        ('tl.where(new_top == float("-inf"), 0.0, new_top)', "new_top", "NaN: -inf - -inf"),
        (CARRIED, "", "the maximum is not carried along: is"),
        (
            "top = new_top",
            "top = new_top\n        total = tl.sum(tl.exp(s - top), 0)",
            "only the last block is",
        ),
        ("tl.exp(s - top) / total", "tl.exp(s - top)", "not divided by the sum"),
        (
            'mask=j < n_columns, other=float("-inf")',
            "mask=j < n_columns, other=0.0",
            "the softmax is not right",
        ),
        (
            "tl.exp(s - top) / total",
            "tl.exp(s - tl.max(s, 0)) / tl.sum(tl.where(j < n_columns, tl.exp(s - tl.max(s, 0)), 0.0), 0)",
            "a softmax of its own",
        ),
        ("range(0, n_columns, BLOCK)", "range(0, BLOCK, BLOCK)", "were never written"),
        ("j = first + tl.arange(0, BLOCK)", "j = tl.arange(0, 1024)", BLOCKS),
        ("s = tl.load(x + start + j, mask=j < n_columns)", "s = tl.load(x + start + j)", LOAD),
    ],
    "pack_mask": [
        (".to(torch.int32)", "", "beyond int32: bit 31 is its sign"),
        ("<< torch.arange(32)", "<< torch.arange(32).flip(0)", "in reverse order"),
        (".unflatten(1, (-1, 32))", ".unflatten(1, (32, -1)).mT", "dealt out in turn"),
        ("% 32))", "% 32), value=True)", "beyond the last unit are 1"),
        ("pad(mask", "pad(~mask", "swapped"),
        ("torch.int32)", "torch.float32)", "the wrong dtype|the packed mask is not right"),
        ("-mask.shape[1] % 32", "32", "wrong shape|unflatten"),
    ],
    "unpack_mask": [
        (" & 1).bool()", ").bool()", "higher bits are still there"),
        ("(j % 32)", "(31 - j % 32)", "in reverse order"),
        (
            "((words[:, j // 32] >> (j % 32)) & 1).bool()",
            "words[:, j // 32] & (1 << j % 32).int() > 0",
            "bit 31",
        ),
        ("j // 32] >> (j % 32)", "j % words.shape[1]] >> (j // words.shape[1])", "dealt out in turn"),
        (".bool()", " == 0", "swapped"),
        (".bool()", "", "wrong dtype"),
        ("torch.arange(length)", "torch.arange(32 * words.shape[1])", "wrong shape"),
    ],
    "mask_words": [
        ("scores > 0", "scores >= 0", "s = 0 is kept, too"),
        (" & real[None, :]", "", "padding is kept"),
        ("tl.dot(q_tile, tl.trans(k_tile))", "tl.trans(tl.dot(q_tile, tl.trans(k_tile)))", "stopped with"),
        ("adversary_q, rows", "adversary_k, rows", "the packed mask is not right"),
        (
            "load_rows(adversary_q, rows, features, E, length, E)\n    k_tile = load_rows(adversary_k",
            "load_rows(adversary_k, rows, features, E, length, E)\n    k_tile = load_rows(adversary_q",
            "queries and keys are swapped",
        ),
        ("other=0) != 0", "other=1) == 0", "key_mask is read the wrong way round"),
        ("scores > 0", "scores <= 0", "kept and masked are swapped"),
        ("<< tl.arange(0, 32)", "<< 31 - tl.arange(0, 32)", "in reverse order"),
        (" << tl.arange(0, 32)[None, :]", "", "number of kept units"),
        ("rows * n_words + word", "rows + word * length", "the packed mask is not right"),
        ("tl.sum(bits, 1), mask=rows < length", "tl.sum(bits, 1)", STORE),
        ("rows * n_words + word", "rows * n_words", "numbers of `words` were never written"),
        ("> 0) & real", "> 0) and real", AND_TESTED),
        ("(scores > 0) & real", "scores > 0 & real", AND_REAL),
        ("features, E, length, E)\n    scores", "features, E, length)\n    scores", GIVEN),
        ("(scores > 0) & real[None, :]", "real[None, :] and (scores > 0)", AND_REAL),
        ("scores > 0", "scores == scores", "every real key is kept"),
        ("<< tl.arange(0, 32)[None, :]", "<< keys[None, :]", PLACE),
    ],
    "tiled_attention": [
        ('        scores = tl.where(real[None, :], scores, float("-inf"))\n', "", "no key is masked"),
        (WHOLE, "keys < length", "padding is attended to"),
        (" * scale\n", "\n", r"1/sqrt\(D\) is missing"),
        (
            'real[None, :], scores, float("-inf")',
            "real[None, :], scores, 0.0",
            r"masked scores are 0, and e\^0",
        ),
        ("other=0) != 0", "other=1) == 0", "key_mask is read the wrong way round"),
        ("length, other=0", "length, other=1", "keys beyond the length are attended to"),
        ("length, other=0", "length", UNDEFINED),
        ("load_rows(k, keys", "load_rows(k, first_key", GIVEN),
        ("    result = result / tl", "    out = result / tl", GIVEN),
        (CARRIED, "", "`top` stays -inf, so only the last tile"),
        ("rescale[:, None]", "rescale", "stopped with .*incompatible"),
        ("total)[:, None]", "total)[None, :]", "stopped with .*incompatible"),
        ("result * rescale[:, None]", "result", "`result` is not rescaled"),
        ("total * rescale", "total", "`total` is not rescaled"),
        ("tl.exp(top - origin)", "1.0 + 0.0 * top", "NaN"),
        ("tl.exp(top - origin)", "tl.zeros_like(top) + 1.0", "nothing is rescaled"),
        ("    result = result / tl.where(total == 0, 1.0, total)[:, None]\n", "", "not divided by the sum"),
        ("tl.where(total == 0, 1.0, total)[:, None]", "total[:, None]", "NaN: a tile, or a row"),
        ('tl.where(new_top == float("-inf"), 0.0, new_top)', "new_top", "NaN: a tile, or a row"),
        ('real[None, :], scores, float("-inf")', "real[None, :], scores, -1e9", "without a real key"),
        ("real[None, :]", "real[:, None]", "stopped with"),
        ("keys = first_key + tl.arange(0, N)", "keys = tl.arange(0, N)", "the output is not right"),
    ],
    "masked_attention": [
        ("kept, scores, uniform", "real[None, :], scores, uniform", "the bit mask is ignored"),
        (
            "nothing[:, None] & real[None, :]",
            "nothing[:, None] & (keys < length)[None, :]",
            "attends to padding: ",
        ),
        ("nothing[:, None] & real[None, :]", "nothing[:, None]", "sees every key"),
        ("nothing[:, None] & real[None, :], 0.0", "real[None, :] & False, 0.0", "nothing kept gives zeros"),
        ("real[None, :], 0.0,", "real[None, :], scores,", "attends unevenly"),
        (
            'tl.where(nothing[:, None] & real[None, :], 0.0, float("-inf"))',
            'tl.where(real[None, :], 0.0, float("-inf"))',
            "masked units score 0 in rows that keep some",
        ),
        ("nothing[:, None] & real", "nothing[:, None] and real", AND_KEPT),
        ("nothing[:, None] & real[None, :]", "real[None, :] and nothing[:, None]", AND_BEYOND),
        (
            "nothing[:, None] & real",
            "tl.load(row_kept + rows, mask=rows < length)[:, None] == 0 & real",
            AND_BEYOND,
        ),
        ("keys < length, other=0", "keys < length, other=1", "to keys beyond the length"),
        (">> tl.arange(0, 32)[None, :]", ">> keys[None, :]", PLACE),
        (CARRIED, "", "`top` stays -inf, so only the last tile"),
        ("rescale[:, None]", "rescale", "stopped with .*incompatible"),
        ("kept = ((packed", "kept = real[None, :] & ((~packed", "swapped"),
        (">> tl.arange(0, 32)[None, :]", ">> (31 - tl.arange(0, 32))[None, :]", "in reverse order"),
        (" & 1) != 0", ") != 0", "higher bits are still there"),
        ("rows * n_words + first_key // 32", "rows * n_words", "the output is not right"),
        ("tl.where(total == 0, 1.0, total)[:, None]", "total[:, None]", "NaN: a tile, or a row"),
        ("row_kept + rows, mask=rows < length, other=1", "row_kept + rows", LOAD),
    ],
}

if torch.cuda.is_available():
    BUGS = {step: [bug for bug in listed if bug[2] not in INTERPRETED] for step, listed in BUGS.items()}
