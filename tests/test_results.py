"""Reading results/*.json, and that what is committed there can be read."""

import importlib.util
import json

import pandas as pd
import pytest

from asa_mini.errors import DataFileError
from asa_mini.look import results


def run(method, temperature, epochs, seed, accuracy, best):
    config = {
        "method": method,
        "temperature": temperature,
        "epochs": epochs,
        "seed": seed,
        "learning_rate": 1e-4,
    }
    scores = {"iid": {"n": 10, "accuracy": accuracy}, "flipped": {"n": 10, "accuracy": accuracy / 2}}
    row = {"config": config, "results": scores, "rows": {"train": 90}, "seconds_per_step": 0.5}
    return row | {"best": {"epoch": 1.0, "results": {"iid": {"n": 10, "accuracy": best}}}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    rows = [
        run("naive", 0.5, 2.0, 0, 0.8, 0.7),
        run("naive", 0.5, 2.0, 1, 0.6, 0.5),
        run("asa", 0.3, 4.0, 0, 0.9, 1),
    ]
    (tmp_path / "made.json").write_text(json.dumps({"rows": rows}))
    return tmp_path


def test_runs_become_rows_in_percent(folder):
    runs = results.read_runs("made")
    assert list(runs["method"]) == ["plain"] * 4 + ["ASA 0.3"] * 2
    assert list(runs["accuracy"]) == pytest.approx([80, 40, 60, 30, 90, 45])


def test_best_weights_are_another_reading_of_the_same_runs(folder):
    assert list(results.read_runs("made", "best")["accuracy"]) == pytest.approx([70, 50, 100])


def test_summary_gives_mean_and_spread_over_seeds(folder):
    table = results.summarise(results.read_runs("made"), ["iid"])
    assert table.loc[("plain", "2"), "iid"] == "70.0 ± 14.1"
    assert table.loc[("plain", "2"), "seeds"] == 2
    assert table.loc[("ASA 0.3", "4"), "iid"] == "90.0"  # no spread from a single seed


def test_gains_are_paired_by_seed(folder):
    rows = json.loads((folder / "made.json").read_text())["rows"]
    rows += [
        run("asa", 0.3, 2.0, 0, 0.7, 0),
        run("asa", 0.3, 2.0, 1, 0.8, 0),
        run("asa", 0.3, 2.0, 2, 0.1, 0),
    ]
    (folder / "made.json").write_text(json.dumps({"rows": rows}))
    table = results.gains(results.read_runs("made"), "iid", ("plain", 2.0), 2.0)
    # Seed 0 loses 10 points, seed 1 gains 20, seed 2 has nothing to be compared with.
    assert table.loc["ASA 0.3"].to_dict() == {"points": "+5.0", "ahead": "1 of 2 seeds"}


def test_markdown_table():
    frame = pd.DataFrame({"b": [1]}, index=pd.Index(["x"], name="a"))
    assert results.markdown_table(frame) == "| a | b |\n| --- | --- |\n| x | 1 |"


def test_missing_results_name_the_command(folder):
    with pytest.raises(DataFileError, match=r"experiments\.py sst2"):
        results.read_runs("sst2")


def test_readme_shows_what_was_measured():
    """README's tables are generated; a number typed by hand, or a new measurement not shown, fails here."""
    script = results.FOLDER / "readme.py"
    spec = importlib.util.spec_from_file_location("readme", script)
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    text = readme.README.read_text()
    shown = text[text.index(readme.BEGIN) + len(readme.BEGIN) : text.index(readme.END)]
    assert shown == f"\n{readme.measured()}\n", "run: python results/readme.py"
    assert shown.strip()


def test_attention_of_every_run_by_layer_and_against_plain(folder):
    rows = []
    runs = [("naive", 0, [1, 2]), ("asa", 0, [3, 2]), ("naive", 1, [5, 5]), ("asa", 1, [4, 5])]
    for method, seed, entropy in [*runs, ("asa", 2, [9, 9])]:  # seed 2 has no plain run to compare with
        row = run(method, 0.3, 2.0, seed, 0.5, 0)
        rows.append(row | {"attention": {"n": 9, "by_layer": {"entropy": entropy, "kept": [1, 1]}}})
    (folder / "looks.json").write_text(json.dumps({"rows": rows}))
    table = results.read_attention("looks")
    assert len(table) == 10
    chosen = table[(table["method"] == "ASA 0.3") & (table["seed"] == 1)]
    assert list(chosen["layer"]) == [0, 1] and list(chosen["entropy"]) == [4, 5]
    against = results.against_plain(table, "entropy")
    assert dict(against.loc["ASA 0.3"]) == {"difference": "+0.250", "higher": "1 of 2 seeds"}
