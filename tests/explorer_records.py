"""Random attention records for the tests of the explorer, and what a notebook would display of them."""

import json
import re

import numpy as np
from IPython.display import HTML

from asa_mini.look import explorer
from asa_mini.look.capture import AttentionRecord

NASTY = "</script><script>window.ran=1</script> <img src=x onerror=window.ran=1> &lt; \u2028 שלום"


def record(text="it has all of it", layers=2, heads=3, seed=0, attacked=True) -> AttentionRecord:
    """Random maps of the words of `text`; in layer 0 the adversary takes all units of the last token."""
    rng = np.random.default_rng(seed)
    tokens = text.split()
    length = len(tokens)
    clean = rng.dirichlet(np.full(length, 0.3), (layers, heads, length))
    kept = rng.random((layers, length, length)) < 0.6 if attacked else np.ones((layers, length, length), bool)
    kept[0, -1] &= not attacked
    left = clean * kept[:, None] + 1e-9 * kept[:, None]
    left = np.where(kept.any(-1)[:, None, :, None], left, 1)  # as the model does it: uniform
    probabilities = rng.dirichlet(np.ones(2), 2)
    adversarial = left / left.sum(-1, keepdims=True)
    return AttentionRecord(text, tokens, np.zeros((length, 2), int), clean, adversarial, kept, *probabilities)


RECORDS = [
    record(),
    record(NASTY, seed=1),
    record(" ".join(["Donaudampfschiff"] * 30 + list("abc") * 10), seed=2),
]
MARKED = [[1], [], [0, 5]]


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def shown(monkeypatch, *arguments, **options) -> HTML:
    """What `show_explorer` displays."""
    outputs = []
    monkeypatch.setattr("IPython.display.display", outputs.append)
    explorer.show_explorer(*arguments, **options)
    return outputs[0]
