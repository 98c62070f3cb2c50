"""Planted mistakes in the solutions of ex05_attention_analysis: step -> (old text, new text, first line of
the check's message, a regular expression)."""

BUGS = {
    "row_entropy": [
        ("return -(weights", "return (weights", "the sign is wrong"),
        ("np.log(np", "np.log2(np", "this is in bits"),
        (".sum(-1)", ".sum(-2)", "runs over the queries"),
        (".sum(-1)", ".mean(-1)", "not their mean"),
        (".sum(-1)", ".sum()", "everything is summed"),
        (").sum(-1)", ").sum(-1) / np.log(weights.shape[-1] + 1e-12)", "do not divide by log L"),
        (
            "    return -(weights * np.log(np.where(weights > 0, weights, 1)))",
            "    with np.errstate(all='ignore'):\n        return -(weights * np.log(weights))",
            "0 log 0 gave NaN",
        ),
        (
            "    return -(weights * np.log(np.where(weights > 0, weights, 1)))",
            "    weights[weights == 0] = 1\n    return -(weights * np.log(weights))",
            "changed its argument in place",
        ),
    ],
    "masked_share": [
        ("1 - kept.mean(1)", "kept.mean(1)", "the share that was kept"),
        ("kept.mean(1)", "kept.mean(2)", "the share of each query"),
        ("1 - kept.mean(1)", "(~kept).sum(1)", "a number of queries"),
        ("kept.mean(1)", "kept.mean((0, 1))", "the layers are averaged away"),
        ("1 - kept.mean(1)", "100 * (1 - kept.mean(1))", "in per cent"),
        ("return 1", "1", "`return` missing"),
    ],
    "token_positions": [
        ("text.split(), is_split_into_words=True", "text", "punctuation was counted as words"),
        ("if word == place", "if (word or 0) == place", "special tokens belong to no word"),
        (
            "in enumerate(encoded.word_ids()) if",
            "in enumerate([x for x in encoded.word_ids() if x is not None]) if",
            r"\[CLS\] was forgotten",
        ),
        ("if word == place]", "if word == place][:1]", "return all of them"),
        ("    return [i for", "    return [place]\n    return [i for", "its tokens stand elsewhere"),
        ("    return [i for", "    return [place + 1]\n    return [i for", r"adding 1 for \[CLS\]"),
        ("[i for i", "[encoded.tokens()[i] for i", "not their text"),
        ("[i for i", "[encoded.input_ids[i] for i", "ids of the vocabulary"),
        ("[i for i", "[i + 1 for i", "do not add 1 to the index"),
        ("word == place", "word == place + 1", r"give \[CLS\] None: do not add 1"),
        ("text.split(), is_split", "text, is_split", r"wants a list of words here: text\.split"),
        ("word == place", "word == text.split().index(text.split()[place])", "index finds the first"),
        (
            "    encoded = tokenizer(text.split(), is_split_into_words=True)\n",
            "    encoded = tokenizer(text, return_offsets_mapping=True)\n"
            "    start = text.index(text.split()[place])\n"
            "    end = start + len(text.split()[place])\n"
            "    return [i for i, (s, e) in enumerate(encoded.offset_mapping) if e and start <= s < end]\n",
            "index finds the first",
        ),
        ("word == place]", "word == place].__iter__()", "must be a list"),
    ],
    "word_auroc": [
        ("0.5 * ", "0 * ", "not nothing"),
        ("0.5 * ", "", "not a whole win"),
        ("word > rest", "word < rest", "direction is wrong"),
        ("if start < end and i", "if i", "special tokens take part"),
        (" and i not in tokens", "", "competes with itself"),
        (" if start < end and i not in tokens", "", "all tokens take part"),
        (
            "(start, end) in enumerate(record.spans) if start < end and",
            "_ in enumerate(record.spans) if 0 < i < len(record.spans) - 1 and",
            "first and last are not always special",
        ),
        ("share[:, tokens]", "share[:, tokens[:1]]", "only the first piece counts"),
        ("measures.masked_share(record)", "1 - record.kept.mean(2)", r"share of each query \(row\)"),
        ("rest)).mean(1)", "rest)).sum(1)", "a number of tokens"),
        ("rest)).mean(1)", "rest)).mean()", "the layers are averaged away"),
        (
            "    return ((word > rest)",
            "    word = share[:, None, tokens]\n    rest = share[:, others][:, :, None]\n"
            "    return ((word > rest) + 0.5 * (word == rest)).mean((1, 2))\n    return ((word > rest)",
            "average the pieces' shares first",
        ),
    ],
    "paired_interval": [
        ("d = a - b", "d = b - a", "mean of b - a"),
        ("[d.mean(), low, high]", "[low, d.mean(), high]", "the order is"),
        ("[d.mean(), low, high]", "[d[draws].mean(), low, high]", "plain mean of a - b, is not right"),
        ("[2.5, 97.5]", "[0.025, 0.975]", "all lies below the mean"),
        ("[2.5, 97.5]", "[5, 95]", "that of 90 %"),
        ("[2.5, 97.5]", "[0.5, 99.5]", "that of 99 %"),
        ("[2.5, 97.5]", "[16, 84]", "a standard error"),
        ("d[draws].mean(1)", "d", "percentiles are of single sentences"),
        (
            "np.random.default_rng(seed).integers(len(d), size=(resamples, len(d)))",
            "np.array([np.random.default_rng(seed + i).permutation(len(d)) for i in range(resamples)])",
            "no width",
        ),
        (
            "d[draws].mean(1)",
            "a[draws].mean(1) - b[np.random.default_rng(seed + 9).permuted(draws)].mean(1)",
            "resampled separately",
        ),
        ("size=(resamples, len(d))", "size=(len(d), resamples)", r"runs over its n sentences: size"),
        ("d[draws].mean(1)", "d[draws].mean(0)", r"runs over its n sentences: size"),
        ("d[draws].mean(1)", "d[draws]", "percentiles are of single sentences"),
        (
            "np.random.default_rng(seed).integers(len(d), size=(resamples, len(d)))",
            "[np.random.default_rng(seed).integers(len(d), size=len(d)) for _ in range(resamples)]",
            "every draw is the same",
        ),
        (
            "    return np.array([d.mean(), low",
            "    low, high = 2 * d.mean() - high, 2 * d.mean() - low\n    return np.array([d.mean(), low",
            "right width, wrong place",
        ),
        (
            "    return np.array([d.mean(), low",
            "    half = 1.96 * d[draws].mean(1).std()\n"
            "    low, high = d.mean() - half, d.mean() + half\n"
            "    return np.array([d.mean(), low",
            r"not mean \+- 1\.96 standard errors",
        ),
        (
            "    return np.array([d.mean(), low",
            "    import warnings\n\n    from scipy.stats import bootstrap\n\n"
            "    with warnings.catch_warnings():\n        warnings.simplefilter('ignore')\n"
            "        rng = np.random.default_rng(seed)\n"
            "        ends = bootstrap((d,), np.mean, n_resamples=resamples, rng=rng).confidence_interval\n"
            "    low, high = ends\n    return np.array([d.mean(), low",
            "an end is not a number",
        ),
        ("default_rng(seed)", "default_rng()", "two calls differ"),
        ("default_rng(seed)", "default_rng(0)", "the seed changes nothing"),
        ("[d.mean(), low, high]", "[low, high]", "three numbers"),
        ("size=(resamples, len(d))", "size=(2000, len(d))", "`resamples` is not used"),
        ("size=(resamples, len(d))", "size=(resamples, len(d) // 2)", "as many sentences as there are"),
        ("integers(len(d)", "integers(len(d) - 1", "never drawn"),
    ],
    "untrained": [
        ("        torch.manual_seed(seed)\n", "", "two calls differ"),
        ("torch.manual_seed(seed)", "torch.manual_seed(0)", "all adversaries are the same"),
        ("torch.manual_seed(seed)", "torch.manual_seed(seeds[0])", "all adversaries are the same"),
        ("torch.manual_seed(seed)", "torch.manual_seed(len(scores))", "not with its place"),
        (
            "    for seed in seeds:\n        torch.manual_seed(seed)\n",
            "    torch.manual_seed(seeds[0])\n    for _ in seeds:\n",
            r"the seed is set once: call torch\.manual_seed",
        ),
        (
            "    for seed in seeds:\n        torch.manual_seed(seed)\n",
            "    torch.manual_seed(0)\n    for _ in seeds:\n",
            "belongs inside the loop",
        ),
        ("        wrapped.unwrap()\n", "", r"is `unwrap\(\)` missing in the loop\?"),
        ("capture(wrapped", "capture(model", "give `capture` the wrapped model"),
        (
            "        records = capture(wrapped, tokenizer, texts, max_length=64)\n        wrapped.unwrap()\n",
            "        wrapped.unwrap()\n        records = capture(model, tokenizer, texts, max_length=64)\n",
            "all scores are one half, nothing was hidden",
        ),
        (
            "        wrapped.unwrap()\n        scores.append(measures.shortcut_auroc(records, words))",
            "        scores.append(measures.shortcut_auroc(records, words))\n"
            "        if len(scores) < len(seeds):\n            wrapped.unwrap()",
            "the model is still wrapped",
        ),
        ("return np.stack(scores)", "return np.stack(scores).mean(1)", "the sentences are averaged away"),
        ("np.stack(scores)", "np.stack(scores, 1)", "axes are in the wrong order"),
        ("np.stack(scores)", "scores", "must be a NumPy array"),
    ],
    "verdict": [
        (
            "trained.mean(0).max()\n    luck = untrained.mean(1).max(1)",
            "trained.max(1).mean()\n    luck = untrained.max(2).mean(1)",
            "the maximum comes too early",
        ),
        ("untrained.mean(1).max(1)", "untrained.mean((1, 2))", "the maximum, not the mean"),
        (
            "untrained.mean(1).max(1)",
            "untrained.mean(1)[:, trained.mean(0).argmax()]",
            "not only the one that is best for you",
        ),
        ("(1 + (luck >= best).sum()) / (1 + len(luck))", "(luck >= best).mean()", "counts itself"),
        ("(1 + (luck >= best).sum())", "(luck >= best).sum()", r"the numerator is 1 \+ count, too"),
        ("(1 + len(luck))", "len(luck)", r"the denominator is 1 \+ S, too"),
        (
            "(1 + (luck >= best).sum()) / (1 + len(luck))",
            "1 + (luck >= best).sum() / 1 + len(luck)",
            "brackets",
        ),
        ("(1 + len(luck))", "1 + len(luck)", "p is above 1: put brackets"),
        (">=", ">", "count with >="),
        (">=", "<", "that REACH"),
        ("return best, luck,", "return best, luck.max(),", "one number for each"),
        ("untrained.mean(1).max(1)", "untrained.mean(0).max(1)", "the sentences are axis 1"),
        ("return best, luck", "return trained.mean(0), luck", "T must be one number"),
        ("return best, luck, (", "return best, (", "three things"),
    ],
    "suspects": [
        (".lower()", "", "capital letters"),
        (" if len(excess) >= least", "", "rare words take part"),
        ("len(excess) >= least", "len(excess) > least", "exactly `least`"),
        (" - share[others].mean()", "", "the others are missing"),
        (
            "share[tokens].mean() - share[others].mean()",
            "share[others].mean() - share[tokens].mean()",
            "the sign is wrong",
        ),
        ("measures.masked_share(record)", "(~record.kept).mean(2)", "shares of queries"),
        ("if tokens and others:", "if tokens:", "one word has no others: leave it out"),
        (
            "if tokens and others:",
            "if not tokens:\n                break\n            if others:",
            "the excess is not",
        ),
        ("if tokens and others:", "if others:", "a word without tokens has no share"),
        (" if start < end]", "]", "special tokens are among the others"),
        (" if i not in tokens]", "]", "the word is among the others"),
        ("record.tokens_of_word(place)", "record.tokens_of_word(place)[:1]", "only first pieces count"),
        ("np.mean(excess)", "np.sum(excess)", "take the mean"),
        ("[layer]", "[layer - 1]", "the wrong layer"),
        (
            "            if tokens and others:\n",
            "            if not others:\n"
            "                return {word: np.mean(x) for word, x in found.items() if len(x) >= least}\n"
            "            if tokens and others:\n",
            "continue, not break",
        ),
        (
            "record.tokens_of_word(place)",
            "record.tokens_of_word(record.text.lower().split().index(word))",
            r"from enumerate, not words\.index",
        ),
        (
            "enumerate(record.text.lower().split())",
            "((record.text.lower().split().index(x), x) for x in set(record.text.lower().split()))",
            "both are occurrences",
        ),
        (".lower().split()", ".lower().replace(',', '').split()", "punctuation belongs to the word"),
        (
            "enumerate(record.text.lower().split())",
            "enumerate(re.findall(r'\\w+', record.text.lower()))",
            "punctuation belongs to the word",
        ),
        ("share[others].mean())", "share.mean())", "all tokens are among the others"),
        ("np.mean(excess)", "excess", "one number, the mean of its list"),
        ("if len(excess) >= least}", "if len(excess) >= least}.items()", "must be a dictionary"),
    ],
}
