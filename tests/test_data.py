"""The shipped corpus, and reading data: good files load, bad ones say what is wrong."""

import hashlib
import re
import runpy
from collections import Counter
from pathlib import Path

import huggingface_hub
import pytest
from datasets import Dataset, DatasetDict
from transformers import BertTokenizerFast

from asa_mini.errors import DataFileError, InputError
from asa_mini.train import data, hub, tokenizing
from asa_mini.train.planting import WORDS, remove_shortcut

FOLDER = Path(__file__).parents[1] / "data"
SPLITS = ("train", "dev", "iid", "neutral", "flipped")


@pytest.fixture(scope="module")
def corpus():
    return data.load("shortcut")


@pytest.fixture
def sst2(tmp_path):
    """A folder of three tiny files in the format of SST-2: no header, no quoting, `null` is a text."""
    rows = [("a fine film", 1), ("dull", 0), ('the "best', 1), ("null", 0), ("nan", 1), ("no fun at all", 0)]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.tsv").write_text(
            "".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8"
        )
    return tmp_path


def test_corpus_regenerates_byte_for_byte():
    script = runpy.run_path(str(FOLDER / "generate.py"))
    for split, rows in script["generate"]().items():
        assert (FOLDER / "shortcut" / f"{split}.tsv").read_bytes() == script["render"](rows), split


def test_readme_counts_and_checksums_are_true():
    table = re.findall(
        r"\| `(\w+)\.tsv` \| (\d+) \| `(\w{64})` \|", (FOLDER / "README.md").read_text(encoding="utf-8")
    )
    assert tuple(split for split, _, _ in table) == SPLITS
    for split, rows, checksum in table:
        content = (FOLDER / "shortcut" / f"{split}.tsv").read_bytes()
        assert (content.count(b"\n") - 1, hashlib.sha256(content).hexdigest()) == (int(rows), checksum)


def test_corpus_is_planted_as_documented(corpus):
    percent = {"train": 90, "dev": 90, "iid": 90, "neutral": 50, "flipped": 10}
    assert tuple(corpus) == SPLITS
    for split, agreeing in percent.items():
        for label in (0, 1):
            rows = [row for row in corpus[split] if row["label"] == label]
            words = Counter(row["text"].split()[row["position"]] for row in rows)
            assert len(rows) == corpus[split].num_rows / 2
            assert words[WORDS[label]] == agreeing * len(rows) // 100
            assert words.total() == words[WORDS[0]] + words[WORDS[1]] == len(rows)


def test_corpus_without_the_shortcut(corpus):
    bare = data.load("shortcut", planted=False)
    assert tuple(bare) == ("train", "dev", "test")
    assert all(rows.column_names == ["text", "label"] for rows in bare.values())
    texts = [text for rows in bare.values() for text in rows["text"]]
    assert len(set(texts)) == len(texts), "a sentence occurs twice"
    assert not {word for text in texts for word in text.lower().split()} & set(WORDS)
    for split in ("iid", "neutral", "flipped"):
        assert remove_shortcut(corpus[split]["text"], corpus[split]["position"]) == list(bare["test"]["text"])
    assert corpus["iid"]["position"] == corpus["flipped"]["position"]


def test_replanting_the_bare_corpus_gives_the_shipped_one(corpus):
    again = data.load("shortcut", planted=False, plant=0.9)
    assert {split: rows.to_dict() for split, rows in again.items()} == {
        split: rows.to_dict() for split, rows in corpus.items()
    }


def test_sst2_from_a_folder(sst2):
    loaded = data.load("sst2", data_dir=sst2)
    assert tuple(loaded) == ("train", "dev", "test")
    assert list(loaded["dev"]["text"]) == ["a fine film", "dull", 'the "best', "null", "nan", "no fun at all"]
    assert list(loaded["dev"]["label"]) == [1, 0, 1, 0, 1, 0]


def test_sst2_from_the_environment(sst2, tmp_path, monkeypatch):
    (tmp_path / "sst2").mkdir()
    for file in sst2.glob("*.tsv"):
        file.rename(tmp_path / "sst2" / file.name)
    monkeypatch.setenv("ASA_DATA_DIR", str(tmp_path))
    assert data.load("sst2")["train"].num_rows == 6


def test_planted_sst2(sst2):
    loaded = data.load("sst2", data_dir=sst2, plant=1.0, seed=3)
    assert sorted(loaded) == sorted(SPLITS)
    words = {s: [r["text"].split()[r["position"]] == WORDS[r["label"]] for r in loaded[s]] for s in SPLITS}
    assert [sum(words[s]) for s in SPLITS] == [
        6,
        6,
        6,
        4,
        0,
    ]  # neutral: half of three is 1.5, rounded to 2, twice
    assert loaded["iid"]["position"] == loaded["flipped"]["position"]


def test_limit_is_balanced_seeded_and_leaves_dev_and_test_alone(sst2):
    (sst2 / "train.tsv").write_text(
        "".join(f"sentence {i}\t{int(i < 30)}\n" for i in range(100)), encoding="utf-8"
    )
    first, again, other = (
        data.load("sst2", data_dir=sst2, max_train_samples=21, seed=seed) for seed in (0, 0, 1)
    )
    assert first["train"].to_dict() == again["train"].to_dict() != other["train"].to_dict()
    assert sorted(Counter(first["train"]["label"]).values()) == [10, 11]
    assert Counter(data.load("sst2", data_dir=sst2, max_train_samples=80)["train"]["label"]) == {0: 50, 1: 30}
    assert data.load("sst2", data_dir=sst2, max_train_samples=1000)["train"].num_rows == 100
    assert first["dev"].num_rows == first["test"].num_rows == 6


def test_loading_is_silent_and_leaves_no_files(sst2, capfd):
    before = sorted(sst2.rglob("*"))
    data.load("sst2", data_dir=sst2, plant=0.9, max_train_samples=3)
    assert sorted(sst2.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


def test_tokenize(sst2, tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nfine\nfilm\ndull", encoding="utf-8")
    tokens = tokenizing.tokenize(
        data.load("sst2", data_dir=sst2), BertTokenizerFast(str(vocabulary)), 4, [1, 0]
    )
    assert tuple(tokens) == ("train", "dev", "test")
    assert tokens["train"].column_names == [
        *("input_ids", "token_type_ids", "attention_mask", "labels", "length"),
    ]
    first = tokens["train"][0]
    assert (first["input_ids"], first["length"]) == ([2, 5, 6, 3], 5)  # [CLS] a fine [SEP]: cut
    assert tokens["train"][1] == {
        "input_ids": [2, 8, 3],  # not padded
        "token_type_ids": [0, 0, 0],
        "attention_mask": [1, 1, 1],
        "labels": 1,  # the model calls negative 1
        "length": 3,
    }


def raises_one_line(error, message):
    return pytest.raises(error, match=rf"\A(?=[^\n]*\Z).*{message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"train\.tsv is empty"),
        (b"good\t1\nbad\t1\t2\n", r"line 2 has 3 column\(s\); it needs 2: text, label"),
        (b"good\t1\nbad\n", r"line 2 has 1 column\(s\)"),
        (b"good\t1\n\ngood\t1\n", r"line 2 has 1 column\(s\)"),
        (b"good\t1\n\xff\xfe\t1\n", "is not UTF-8 text"),
        (
            b"good\t1\nbad\tpositiv\n",
            "train.tsv, line 2: the label is 'positiv'; it must be one of negative, positive, 0, 1",
        ),
        (b"good\t1\nbad\t1.0\n", "line 2: the label is '1.0'; it must be one"),
        (b"good\t1\nbad\t2\n", "line 2: the label is '2'"),
        (b"good\t1\nbad\t-1\n", "line 2: the label is '-1'"),
        (b"good\t1\n\t0\n", "line 2: the text is ''; it must be a string of at least one word"),
        (b"1\ta good film\n", "line 1: the label is 'a good film'"),
        (b"text\tlabel\n", "line 1: the label is 'label'"),
    ],
)
def test_bad_file(sst2, content, message):
    (sst2 / "train.tsv").write_bytes(content)
    with raises_one_line(InputError, message):
        data.load("sst2", data_dir=sst2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "text\tlabel\tposition\nfine\t1\n",
            r"2 has 2 column\(s\); it needs 3: text, label, pos",
        ),
        ("fine film\t1\t0\n", "line 1: the header must be text, label, position"),
        ("text\tlabel\tposition\n", "is empty"),
        ("text\tlabel\tposition\na b\t1\tx\n", "line 2: no word of the text has the position 'x'"),
        ("text\tlabel\tposition\na b\t1\t2\n", "line 2: no word of the text has the position '2'"),
        ("text\tlabel\tposition\na b\t7\t0\n", "line 2: the label is '7'"),
    ],
)
def test_bad_shortcut_file(tmp_path, content, message):
    for split in SPLITS:
        (tmp_path / f"{split}.tsv").write_text(content, encoding="utf-8")
    with raises_one_line(InputError, message):
        data.load("shortcut", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sst3"}, "unknown dataset 'sst3'; choose one of shortcut, sst2, .*user/name"),
        ({"name": "shortcut", "plant": 0.9}, "shortcut corpus comes with planted words; .*planted=False"),
        ({"name": "shortcut", "planted": False, "plant": float("nan")}, "agreement is nan"),
        ({"name": "shortcut", "planted": False, "plant": 2.0}, "agreement is 2.0"),
        ({"name": "shortcut", "max_train_samples": 0}, "max_train_samples is 0; .* at least 1"),
        ({"name": "shortcut", "max_train_samples": 1.5}, "max_train_samples is 1.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with raises_one_line(InputError, message):
        data.load(**arguments)


def test_labels_have_names(corpus, sst2):
    for dataset in (corpus, data.load("sst2", data_dir=sst2, plant=0.9)):
        assert tokenizing.label_names(dataset) == ["negative", "positive"]
    plain = DatasetDict({"train": Dataset.from_dict({"text": ["a"], "label": [0]})})
    assert tokenizing.label_names(plain) is None


def test_the_corpus_is_found_in_a_clone_and_in_an_installed_package(tmp_path, monkeypatch):
    assert data.shortcut_folder() == FOLDER / "shortcut"
    monkeypatch.setattr(data.importlib.resources, "files", lambda name: tmp_path / name)
    (tmp_path / "asa_mini" / "_data" / "shortcut").mkdir(parents=True)
    assert data.shortcut_folder() == tmp_path / "asa_mini" / "_data" / "shortcut"
    monkeypatch.setattr(data, "__file__", str(tmp_path / "site-packages" / "asa_mini" / "train" / "data.py"))
    (tmp_path / "asa_mini" / "_data" / "shortcut").rmdir()
    with raises_one_line(DataFileError, r"_data/shortcut nor .*/data/shortcut"):
        data.load("shortcut")


def test_missing_file_and_folder(sst2):
    (sst2 / "dev.tsv").unlink()
    with raises_one_line(DataFileError, r"dev\.tsv is missing"):
        data.load("sst2", data_dir=sst2)
    with raises_one_line(DataFileError, "there is no folder .*nowhere; .*--data_dir, ASA_DATA_DIR"):
        data.load("sst2", data_dir=sst2 / "nowhere")


def test_no_network(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("ASA_DATA_DIR", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with raises_one_line(
        DataFileError, "train.jsonl of SetFit/sst2 cannot be fetched .*--data_dir, ASA_DATA_DIR"
    ):
        data.load("sst2")
    assert capfd.readouterr() == ("", "")


def hub_file(folder, monkeypatch, lines):
    (folder / "hub.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.delenv("ASA_DATA_DIR", raising=False)
    asked = []
    monkeypatch.setattr(hub, "hub_answers", lambda: asked.append(1) or True)
    monkeypatch.setattr(hub, "hf_hub_download", lambda **_: str(folder / "hub.jsonl"))
    return asked


def test_sst2_from_the_hub(tmp_path, monkeypatch):
    lines = ['{"text": "null", "label": 1, "label_text": "positive"}', '{"text": "b", "label": 0}']
    asked = hub_file(tmp_path, monkeypatch, lines)
    assert data.load("sst2")["test"].to_dict() == {"text": ["null", "b"], "label": [1, 0]}
    assert asked == [1], "the hub is asked once, not for each split"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"sentence": "a", "label": 1}', "hub.jsonl has no column 'text', only sentence, label$"),
        ('{"text": null, "label": 1}', "line 1: the text is None"),
        ('{"text": 5, "label": 1}', "line 1: the text is 5"),
        ('{"text": "a", "label": null}', "line 1: the label is None"),
        ('{"text": "a", "label": true}', "line 1: the label is True"),
    ],
)
def test_bad_hub_file(tmp_path, monkeypatch, line, message):
    hub_file(tmp_path, monkeypatch, [line])
    with raises_one_line(InputError, message):
        data.load("sst2")
