"""Every file of examples/ runs, on tiny files and a tiny model."""

import json
import runpy
from pathlib import Path

import pytest
import tiny_text
from transformers import BertForMaskedLM, BertModel

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXTS = [f"a {word} film" for word in (*tiny_text.GOOD, *tiny_text.BAD)]


def json_lines(**columns):
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(between, **columns):
    lines = [columns, *zip(*columns.values(), strict=True)]
    return "".join(between.join(map(str, line)) + "\n" for line in lines)


TURNS = [i % 4 for i in range(len(TEXTS))]
FILES = {  # example -> the suffix and the content of its files
    "own_classes": ("csv", table(",", review=TEXTS, topic=[f"topic {i}" for i in TURNS])),
    "pairs": ("jsonl", json_lines(premise=TEXTS, hypothesis=TEXTS[::-1], label=[i % 3 for i in TURNS])),
    "regression": ("tsv", table("\t", sentence1=TEXTS, sentence2=TEXTS[::-1], score=[i / 2 for i in TURNS])),
    "tagger": ("conll", "".join(f"a O\n{text.split()[1]} B-X\nfilm O\n\n" for text in TEXTS)),
    "multiple_choice": (
        "jsonl",
        json_lines(text=TEXTS, choices=[["good", "a dull story"]] * len(TEXTS), label=[i % 2 for i in TURNS]),
    ),
    "masked_words": ("txt", "\n".join(TEXTS)),
}


def test_none_is_forgotten():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_example(tmp_path, capsys, name):
    suffix, content = FILES[name]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.{suffix}").write_text(content, encoding="utf-8")
    masked = name == "masked_words"
    kind = BertForMaskedLM if masked else BertModel
    model = tiny_text.save_model(tmp_path / "model", kind, max_position_embeddings=128)
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    given = (tmp_path / "train.txt", model, tmp_path / "run") if masked else (tmp_path, model)
    main(*map(str, given), max_steps=2)
    assert (tmp_path / "run" / "config.json").is_file()
    assert capsys.readouterr().out.splitlines()[-1]
