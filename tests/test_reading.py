"""Your own files and the tasks' formats: what stands there is read, and a bad row is named by its line."""

import json
from dataclasses import replace

import pytest
from datasets import Dataset

from asa_mini.errors import AsaError, DataFileError, InputError
from asa_mini.train import data, hub
from asa_mini.train.data import load_files, load_task
from asa_mini.train.tasks import KINDS, METRICS, TASKS, Hub, find_task
from asa_mini.train.tokenizing import kind_of, label_names

OWN = {  # file, content, options of load_files -> kind, labels, columns
    "CSV with BOM, CRLF, quotes, words for nothing": (
        ("a.csv", b'\xef\xbb\xbftext,label\r\n"a ""fine"", film",good\r\nnull,bad\r\n"NA\r\n2",ugly\r\n', {}),
        ("classification", ["bad", "good", "ugly"], {"text": ['a "fine", film', "null", "NA\r\n2"]}),
    ),
    "TSV with a tab in a text, numbers sorted as numbers": (
        ("a.tsv", b'id\tt\tstars\n0\t"a\tb"\t10\n1\tc\t9\n2\td\t-2\n', {"text": "t", "label": "stars"}),
        ("classification", ["-2", "9", "10"], {"text": ["a\tb", "c", "d"], "label": [2, 1, 0]}),
    ),
    "JSON lines with true and false, pairs": (
        ("a.jsonl", b'{"q": "a", "p": "b", "label": true}\n{"q": "c", "p": "d", "label": false}', {
            "text": "q", "text_pair": "p",
        }),
        ("classification", ["False", "True"], {"text_pair": ["b", "d"], "label": [1, 0]}),
    ),
    "a JSON list": (
        ("a.json", b'[{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]', {}),
        ("classification", ["x", "y"], {"label": [0, 1]}),
    ),
    "scores": (
        ("a.csv", b"text,label\na,1.5\nb,2\n", {}), ("regression", None, {"label": [1.5, 2.0]}),
    ),
    "whole numbers that are scores": (
        ("a.csv", b"text,label\na,1\nb,2\n", {"kind": "regression"}), ("regression", None, {"label": [1, 2]}),
    ),
    "several labels": (
        ("a.jsonl", b'{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": []}\n', {}),
        ("multi_label", ["x", "y"], {"label": [[0, 1], []]}),
    ),
    "several labels in a table": (
        ("a.csv", b'text,label\na,"[""x"", ""y""]"\nb,[]\n', {}),
        ("multi_label", ["x", "y"], {"label": [[0, 1], []]}),
    ),
    "CoNLL with documents and four columns": (
        ("a.conll", b"-DOCSTART- -X- -X- O\n\nEU N I B-ORG\nrejects V I O\n\n\nhe N I O\n", {}),
        ("tokens", ["B-ORG", "O"], {"tokens": [["EU", "rejects"], ["he"]], "label": [[0, 1], [1]]}),
    ),
    "choices": (
        ("a.jsonl", b'{"text": "a", "choices": ["x", "y"], "label": "1"}\n', {}),
        ("multiple_choice", None, {"choices": [["x", "y"]], "label": [1]}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("given", OWN.values(), ids=OWN)
def test_own_files(tmp_path, given):
    (name, content, options), (kind, labels, columns) = given
    (tmp_path / name).write_bytes(content)
    task, found = load_files({"train": tmp_path / name}, **options)
    assert (task.kind, kind_of(found), label_names(found)) == (kind, kind, labels)
    assert {name: found["train"][name][:] for name in columns} == columns


def test_parquet(tmp_path):
    rows = {"text": ["null", "b"], "label": [3, 1]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    _, found = load_files({"train": tmp_path / "a.parquet"})
    assert (found["train"]["text"][:], found["train"]["label"][:]) == (["null", "b"], [1, 0])


BAD = [  # file, content, options, message
    ("a.csv", "", {}, "a.csv is empty"),
    ("a.csv", "text,label\n", {}, "a.csv is empty"),
    ("a.csv", "text,label\na,x\nb\n", {}, r"line 3 has 1 column\(s\); it needs 2: text, label"),
    ("a.csv", 'text,label\na,x\n"b" c,y\n', {}, "line 3: .* needs quotes around it"),
    ("a.csv", 'text,label\n"two\nlines",x\nb,\n', {"labels": ("x", "y")}, "line 4: the label is ''; .* x, y"),
    ("a.csv", "text,label\na,x\nb,\nc,y\n", {}, "line 3: the label is ''; it must be one of x, y"),
    ("a.csv", "text,text\na,x\n", {}, "line 1: each column needs a name of its own"),
    ("a.csv", "words,label\na,x\n", {}, "no column 'text', only words, label; name it with --text_column"),
    ("a.csv", "text,y\na,x\n", {}, "no column 'label', only text, y; name it with --label_column"),
    ("a.csv", "text,label\na,x\n", {"text_pair": "b"}, "no column 'b', .* --text_pair_column"),
    ("a.csv", "text,label\na,x\nb,x\n", {}, "every label in column 'label' is 'x'"),
    ("a.csv", "text,label\na,1.5\nb,x\n", {"kind": "regression"}, "line 3: the score is 'x'"),
    ("a.csv", "text,label\na,1\nb,2\n", {"kind": "multi_label"}, "line 2: the labels are 1; they must"),
    ("a.csv", "text,label\na,[1\nb,[]\n", {}, "line 2: the labels are '.1'; they must be a JSON list"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b",\n', {}, "line 2: this is no JSON"),
    ("a.jsonl", '{"text": "a", "label": 1}\n[1]\n', {}, "line 2: this must be a JSON object"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', {"labels": "xy"}, "line 2: the label is None"),
    ("a.jsonl", '{"text": 5, "label": 1}\n{"text": "b", "label": 2}\n', {}, "line 1: the text is 5"),
    ("a.conll", "a O\nb\n", {}, "line 2 is 'b'; it needs a word and its tag"),
    ("a.conll", "a O\nb B-x\n", {"labels": ("O",), "kind": "tokens"}, "line 2: the label is 'B-x'"),
    ("a.parquet", "text", {}, "a.parquet is no Parquet file"),
    ("a.xlsx", "text", {}, "unknown suffix; its name must end in one of .csv, .tsv"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options", "message"), BAD)
def test_bad_files(tmp_path, name, content, options, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=rf"\A(?=[^\n]*\Z).*{name}.*{message}"):
        load_files({"train": tmp_path / name}, **options)


def test_a_label_that_only_dev_has(tmp_path):
    for name, labels in (("train", "xy"), ("dev", "x0")):  # nor is a number a name
        rows = "".join(f"a,{label}\n" for label in labels)
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    files = {name: tmp_path / f"{name}.csv" for name in ("train", "dev")}
    with pytest.raises(InputError, match=r"dev\.csv, line 3: the label is '0'; it must be one of x, y"):
        load_files(files)


DIALOGUES = [
    [["W: a", "M: b"], [{"question": f"q{i}?", "choice": list("xyz"), "answer": "y"} for i in (1, 2)], "d1"],
    [["W: c"], [{"question": "q3?", "choice": list("xyz"), "answer": "z"}], "d2"],
]
FORMATS = {  # task -> files, and its test rows
    "dream": ({"test.json": json.dumps(DIALOGUES)}, {
        "text": ["W: a M: b", "W: a M: b", "W: c"],
        "choices": [["q1? x", "q1? y", "q1? z"], ["q2? x", "q2? y", "q2? z"], ["q3? x", "q3? y", "q3? z"]],
        "label": [1, 1, 2],
    }),
    "dream_first": ({"test.json": json.dumps(DIALOGUES)}, {"text": ["W: a M: b", "W: c"], "label": [1, 2]}),
    "mnli_hard": ({"s1.test": "a\nb\n", "s2.test": "c\nd\n", "labels.test": "neutral\nentailment\n"}, {
        "text": ["a", "b"], "text_pair": ["c", "d"], "label": [1, 0],
    }),
    "stsb": ({"test.csv": 'g\tf\ty\t1\t2.500\t"a\tb\ng\tf\ty\t1\t5\tc\td\tlicence\tmore\n'}, {
        "text": ['"a', "c"], "text_pair": ["b", "d"], "label": [2.5, 5.0],
    }),
    "mrpc": ({"test.tsv": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t5\t6\ta\tb\n"}, {
        "text": ["a"], "text_pair": ["b"], "label": [1],
    }),
    "hans": ({"test.tsv": "gold_label\tsentence1\tsentence2\theuristic\nnon-entailment\ta\tb\tlexical\n"}, {
        "text_pair": ["b"], "label": [1], "group": ["lexical, non-entailment"],
    }),
    "advglue_mnli_mm": ({"dev.json": '{"mnli-mm": [{"premise": "a", "hypothesis": "b", "label": 2}]}'}, {
        "text": ["a"], "text_pair": ["b"], "label": [2],
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_formats_of_the_tasks(tmp_path, name):
    files, expected = FORMATS[name]
    for file, content in files.items():
        (tmp_path / file).write_text(content, encoding="utf-8")
    _, found = load_task(find_task(name), tmp_path, training=False)
    (rows,) = found.values()
    assert {column: rows[column][:] for column in expected} == expected


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("stsb", "test.csv", "g\tf\ty\t1\t5.1\ta\tb\n", "line 1: the score is '5.1'; .* from 0 to 5"),
        (
            "dream",
            "test.json",
            '[[["a"], [{"question": "q", "choice": ["x", "y"]}], "d"]]',
            "has no 'answer'",
        ),
        ("dream", "test.json", '[[["a"], "d"]]', "test.json, dialogue 1 is broken"),
        ("dream", "test.json", json.dumps(DIALOGUES).replace('"y"}', '"w"}'), "dialogue 1: the label is 'w'"),
        ("mrpc", "test.tsv", "a\tb\n", "line 1: the header must be Quality, #1 ID"),
        ("mnli_hard", "s1.test", "a\nb\n", "s2.test is missing"),
        ("advglue_rte", "dev.json", "{}", "dev.json must hold a list of objects under 'rte'"),
        ("hellaswag", "test.jsonl", '{"ctx": "a", "endings": ["x"], "label": 0}', "line 1: column 'endings'"),
        ("qqp", "none", "", "holds none of the files of qqp: train.tsv, dev.tsv"),
    ],
)
def test_bad_files_of_tasks(tmp_path, name, file, content, message):
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(AsaError, match=message):
        load_task(find_task(name), tmp_path, training=False)


def test_the_table_is_complete():
    for task in TASKS.values():
        assert task.files and task.kind in KINDS
        assert bool(task.labels) == (task.kind in ("classification", "tokens")), task.name
    assert set(METRICS) == set(KINDS)
    with pytest.raises(InputError, match="needs a commit of 40 hex digits, but has 'main'"):
        Hub("someone/some-set", "main", {})


def test_no_copy_on_the_hub(monkeypatch):
    monkeypatch.delenv("ASA_DATA_DIR", raising=False)
    with pytest.raises(
        DataFileError, match=r"hans is in no repository .*test.tsv \(--data_dir, ASA_DATA_DIR\)"
    ):
        data.load("hans")


def test_files_of_the_hub_that_follow_each_other(tmp_path, monkeypatch):
    """One split of several files, in another format than the local one."""
    monkeypatch.delenv("ASA_DATA_DIR", raising=False)
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    monkeypatch.setattr(hub, "hf_hub_download", lambda **given: str(tmp_path / given["filename"]))
    for n in (0, 1):
        rows = {"premise": [f"a{n}"], "hypothesis": ["b"], "label": [n]}
        Dataset.from_dict(rows).to_parquet(tmp_path / f"{n}.parquet")
    files = {"train": ("0.parquet", "1.parquet"), "dev": "1.parquet"}
    task = replace(find_task("anli"), hub=Hub("a/b", "0" * 40, files))
    _, found = load_task(task)
    assert {split: rows["label"][:] for split, rows in found.items()} == {"train": [0, 1], "dev": [1]}
