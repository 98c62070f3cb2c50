"""Reading results/*.json, and that what is committed there can be read."""

import runpy
import uuid
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import tiny_text

from asa_mini import AsaConfig
from asa_mini.errors import DataFileError, InputError
from asa_mini.train.config import TrainConfig
from asa_mini.train.files import write_json
from asa_results import tables
from asa_results.figures import loss_terms


def script(name):
    """What is in a file of results/, which is no package."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "results" / f"{name}.py")))


def run(method, temperature, epochs, seed, accuracy, best):
    config = TrainConfig(
        method=method, asa=AsaConfig(temperature), num_train_epochs=epochs, seed=seed, learning_rate=1e-4
    )
    scores = {"iid": {"n": 10, "accuracy": accuracy}, "flipped": {"n": 10, "accuracy": accuracy / 2}}
    row = {"config": asdict(config), "results": scores, "rows": {"train": 90}, "seconds_per_step": 0.5}
    return row | {"best": {"epoch": 1.0, "results": {"iid": {"n": 10, "accuracy": best}}}}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """store(experiment, runs): write measured runs where they are read."""
    monkeypatch.setenv("ASA_RESULTS_DIR", str(tmp_path))

    def store(name, runs):
        (tmp_path / name).mkdir(exist_ok=True)
        for row in runs:
            write_json(tmp_path / name / f"{uuid.uuid4()}.json", row)  # any order of names will do

    store(
        "made",
        [
            run("asa", 0.3, 4.0, 0, 0.9, 1),
            run("naive", 0.5, 2.0, 1, 0.6, 0.5),
            run("naive", 0.5, 2.0, 0, 0.8, 0.7),
        ],
    )
    return store


def test_runs_become_rows_in_percent(store):
    runs = tables.read_runs("made")
    assert list(runs["method"]) == ["plain"] * 2 + ["ASA 0.3"] * 2 + ["plain"] * 2
    assert list(runs["accuracy"]) == pytest.approx([80, 40, 90, 45, 60, 30])


def test_best_weights_are_another_reading_of_the_same_runs(store):
    assert list(tables.read_runs("made", "best")["accuracy"]) == pytest.approx([70, 100, 50])


def test_summary_gives_mean_and_spread_over_seeds(store):
    table = tables.summarise(tables.read_runs("made"), ["iid"])
    assert table.loc[("plain", "2"), "iid"] == "70.0 ± 14.1"
    assert table.loc[("plain", "2"), "seeds"] == 2
    assert table.loc[("ASA 0.3", "4"), "iid"] == "90.0"  # no spread from a single seed


def test_gains_are_paired_by_seed(store):
    store("made", [run("asa", 0.3, 2.0, seed, right, 0) for seed, right in enumerate((0.7, 0.8, 0.1))])
    table = tables.gains(tables.read_runs("made"), "iid", ("plain", 2.0), 2.0)
    # Seed 0 loses 10 points, seed 1 gains 20, seed 2 has nothing to be compared with.
    assert table.loc["ASA 0.3"].to_dict() == {"points": "+5.0", "ahead": "1 of 2 seeds"}


def test_markdown_table():
    frame = pd.DataFrame({"b": [1]}, index=pd.Index(["x"], name="a"))
    assert tables.markdown_table(frame) == "| a | b |\n| --- | --- |\n| x | 1 |"


def test_missing_results_say_how_to_get_them(store, tmp_path, monkeypatch):
    with pytest.raises(DataFileError, match=r"experiments\.py sst2"):
        tables.read_runs("sst2")
    monkeypatch.setenv("ASA_RESULTS_DIR", str(tmp_path / "none"))
    with pytest.raises(DataFileError, match=r"no folder .*none with measured runs: .*ASA_RESULTS_DIR"):
        tables.read_runs("made")


def test_gpu_times_are_shown_where_there_are_some(store, tmp_path):
    assert tables.read_gpu("attention") is None
    case = {"padded": False, "dropout": 0.1, "length": 512}
    times = {"flash": {"seconds": 0.001}, "triton": {"seconds": 0.0015}, "reference": {"error": "no memory"}}
    rows = [case | {"kind": kind} | found for kind, found in times.items()]
    write_json(tmp_path / "gpu_attention.json", {"device": "a GPU", "error": None, "rows": rows})
    run = tables.read_gpu("attention")
    shown = tables.attention_times(run["rows"]).loc[False, 0.1, 512]
    assert run["device"] == "a GPU" and len(run["rows"]) == 2
    assert (shown["ASA, kernels"], shown["ASA / flash"], shown["ASA / cuDNN"]) == ("1.50", "1.50", "")
    write_json(tmp_path / "gpu_attention.json", {"error": "no time", "rows": rows[2:]})
    assert tables.read_gpu("attention") is None


def test_readme_shows_what_was_measured():
    """README's tables are generated; a number typed by hand, or a new measurement not shown, fails here."""
    readme = script("readme")
    text = readme.README.read_text(encoding="utf-8")
    shown = text[text.index(readme.BEGIN) + len(readme.BEGIN) : text.index(readme.END)]
    assert shown == f"\n{readme.measured()}\n", "run: python results/readme.py"
    assert shown.strip()


def test_attention_of_every_run_by_layer_and_against_plain(store):
    rows = []
    runs = [("naive", 0, [1, 2]), ("asa", 0, [3, 2]), ("naive", 1, [5, 5]), ("asa", 1, [4, 5])]
    for method, seed, entropy in [*runs, ("asa", 2, [9, 9])]:  # seed 2 has no plain run to compare with
        row = run(method, 0.3, 2.0, seed, 0.5, 0)
        rows.append(row | {"attention": {"n": 9, "by_layer": {"entropy": entropy, "kept": [1, 1]}}})
    store("looks", rows)
    table = tables.read_attention("looks")
    assert len(table) == 10
    chosen = table[(table["method"] == "ASA 0.3") & (table["seed"] == 1)]
    assert list(chosen["layer"]) == [0, 1] and list(chosen["entropy"]) == [4, 5]
    against = tables.against_plain(table, "entropy")
    assert dict(against.loc["ASA 0.3"]) == {"difference": "+0.250", "higher": "1 of 2 seeds"}


def test_an_experiment_writes_one_file_a_run_and_skips_what_is_there(tmp_path, monkeypatch, capsys):
    """Two commands with other seeds, side by side, lose nothing of each other's."""
    monkeypatch.setenv("ASA_RESULTS_DIR", str(tmp_path))
    experiments = script("experiments")
    model = {"name": tiny_text.save_model(tmp_path / "model", max_position_embeddings=64)}
    data = {"name": "sst2", "max_train_samples": 8}
    folder = tiny_text.write_files(tmp_path / "data")
    made = [
        experiments.Table("tiny", SimpleNamespace(seeds=[seed], bf16=False, data_dir=folder), data, model)
        for seed in (0, 1)
    ]
    for _ in range(2):
        for seed, table in enumerate(made):
            table.run("asa", seed, 1e-3, 1.0, 0.3)
    assert capsys.readouterr().out.count("tiny: asa") == 2
    assert len(list((tmp_path / "tiny").iterdir())) == 2
    first = tables.stored_runs("tiny")[0]
    assert first["data"] == data and first["config"]["asa"]["temperature"] == 0.3
    assert list(tables.read_runs("tiny")["seed"].unique()) == [0, 1]
    assert first["best"]["results"] == first["results"]


def test_an_experiment_without_its_data_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert script("experiments").main(["planted", "--data_dir", str(tmp_path / "none")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "no folder" in err and len(err.splitlines()) == 1


def test_loss_terms_draws_each_term_and_each_layer():
    plt.switch_backend("agg")
    terms = [
        {"step": i, "task_loss": 1 / i, "divergence": i / 10, "kept_share": [0.5, i / 4]} for i in (1, 2, 3)
    ]
    left, right = axes = plt.subplots(1, 2)[1]
    loss_terms(axes, terms)
    assert [list(line.get_ydata()) for line in left.get_lines()] == [[1, 1 / 2, 1 / 3], [0.1, 0.2, 0.3]]
    assert [list(line.get_ydata()) for line in right.get_lines()] == [[50, 50, 50], [25, 50, 75]]
    assert list(right.get_lines()[0].get_xdata()) == [1, 2, 3]
    with pytest.raises(InputError, match="no divergence"):
        loss_terms(axes, [{"step": 1, "loss": 0.5}])
    plt.close("all")
