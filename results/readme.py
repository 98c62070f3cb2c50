"""Write the tables of README.md from the measured files beside this script: python results/readme.py"""

import json
from pathlib import Path

import pandas as pd

from asa_mini.train.files import write_text
from asa_results import tables
from asa_results.tables import gains, markdown_table, read_attention, read_runs, stored_runs, summarise

README = Path(__file__).parents[1] / "README.md"
STEP_COST = Path(__file__).with_name("bench_step_cpu.json")
BEGIN, END = "<!-- measured: python results/readme.py -->\n", "<!-- end of measured -->"
PLANTED_SPLITS = ["iid", "neutral", "flipped"]


def measured() -> str:
    """The Markdown between the two marks; what is not measured yet gives no section."""
    step = json.loads(STEP_COST.read_text(encoding="utf-8"))
    title = "**Cost of a step** against the same model's plain step (PyTorch's own attention)"
    sections = [f"{title}. {source([step])}\n\n{step_cost(step['rows'])}\n"]
    for part, table, title in (
        ("attention", gpu_attention, "**Attention on a GPU**, forward and backward (notebook 06)"),
        ("step", step_cost, "**Cost of a step on a GPU**, BERT-base with random weights, bf16"),
    ):
        if run := tables.read_gpu(part):
            sections.append(f"{title}. {source([run])}\n\n{table(run['rows'])}\n")
    for table, title in (
        (planted, "**Real sentences with a planted shortcut word** (SST-2, agreement 0.9)"),
        (shortcut, "**The shipped corpus**, four layers, frozen embeddings (notebook 04)"),
        (sst2, "**SST-2, all sentences**, nothing planted"),
        (priors, "**Hand-made priors on attention**, shipped corpus without the word (notebook 01)"),
        (attention, "**What attention looks like**, shipped corpus (notebook 05)"),
        (attention_sst2, "**The same on SST-2** with the planted word, 7 epochs"),
    ):
        if runs := stored_runs(table.__name__):
            sections.append(f"{title}. {source(runs)}\n\n{table()}\n")
    return "\n".join(sections)


def source(runs: list[dict]) -> str:
    """How, where and when: the command of each run, without repetition."""
    how = [f"`{run['command']}`" for run in runs]
    precision = {True: ", bf16 autocast", False: ", float32", None: ""}
    where = [
        f"{run['device']}{precision[run.get('config', {}).get('bf16')]}, torch {run['versions']['torch']}"
        for run in runs
    ]
    when = [run["date"] for run in runs]
    return ", ".join("; ".join(dict.fromkeys(column)) for column in (how, where, sorted(when))) + "."


def step_cost(rows: list[dict]) -> str:
    table = {
        (row["batch_size"], row["length"], row["kind"]): {
            "seconds": f"{row['seconds']:.2f}",
            "x plain": f"{row['ratio']:.2f}",
            "quartiles": f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
            "peak MiB": f"{row['peak_mib']:.0f}",
        }
        for row in rows
    }
    return markdown_table(pd.DataFrame.from_dict(table, orient="index").rename_axis(["B", "L", "step"]))


def gpu_attention(rows: list[dict]) -> str:
    table = markdown_table(tables.attention_times(rows))
    return f"Milliseconds at 16,384 tokens, 12 heads of 64, bf16, next to plain attention by name:\n\n{table}"


def against_plain(runs: pd.DataFrame, epochs: float, longer: float) -> str:
    """The question of this repository: `flipped` at equal steps, and at equal compute."""
    steps = gains(runs, "flipped", ("plain", epochs), epochs)
    compute = gains(runs, "flipped", ("plain", longer), epochs).drop("plain", errors="ignore")
    table = steps.add_suffix(", equal steps").join(compute.add_suffix(", equal compute"))
    return (
        f"Points on `flipped` against plain training, {epochs:g} epochs each (equal steps), and against "
        f"plain training for {longer:g} epochs, which costs as much or a little more (equal compute):\n\n"
        f"{markdown_table(table)}"
    )


def planted() -> str:
    runs = read_runs("planted")
    last = summarise(runs, PLANTED_SPLITS)
    best = read_runs("planted", "best")
    best = best[best["epochs"] == best["epochs"].max()]
    late = gains(runs, "flipped", ("plain", 7.0), 7.0)
    return (
        f"Accuracy in %, mean ± standard deviation over the seeds:\n\n{markdown_table(last)}\n\n"
        f"{against_plain(runs, 3.0, 7.0)}\n\n"
        f"The same after 7 epochs each (equal steps):\n\n{markdown_table(late)}\n\n"
        f"The longest runs again, with the weights of their lowest dev loss:\n\n"
        f"{markdown_table(summarise(best, PLANTED_SPLITS))}"
    )


def shortcut() -> str:
    bare = read_runs("shortcut_unplanted").assign(method="plain, trained without the word")
    runs = read_runs("shortcut")
    table = markdown_table(summarise(pd.concat([bare, runs]), PLANTED_SPLITS))
    return f"{table}\n\n{against_plain(runs, 2.0, 4.0)}"


def sst2() -> str:
    runs = read_runs("sst2")
    runs["method"] += runs["learning_rate"].map(", rate {:g}".format)
    return markdown_table(summarise(runs, ["dev", "test"]))


def priors() -> str:
    """Test accuracy by number of training sentences, and the gain on plain training, seed by seed."""
    runs = read_runs("priors").query("split == 'test'")
    table = {}
    for rows, group in runs.groupby("train_rows"):
        scores = group.pivot_table(index="seed", columns="method", values="accuracy", sort=False)
        for method, values in scores.items():
            gain = values - scores["plain"]
            table[method, rows] = {"test": f"{values.mean():.1f} ± {values.std():.1f}"}
            if method != "plain":
                ahead = f"{(gain > 0).sum()} of {len(gain)} seeds"
                table[method, rows] |= {"points": f"{gain.mean():+.1f}", "ahead": ahead}
    frame = pd.DataFrame.from_dict(table, orient="index").fillna("").rename_axis(["method", "sentences"])
    return markdown_table(frame.sort_index(level=1, sort_remaining=False))


def attention(name: str = "attention") -> str:
    """Means over layers and test sentences, seed by seed against plain; AUROC in the best layer."""
    runs = read_attention(name)
    table = tables.against_plain(runs, "entropy").add_prefix("entropy ")
    table = table.join(tables.against_plain(runs, "received").add_prefix("attention "))
    best = runs.groupby(["method", "seed"])["auroc"].max().unstack("seed")
    table["AUROC by seed"] = [
        " ".join(f"{100 * x:.0f}" for x in best.loc[method].dropna()) for method in table.index
    ]
    return (
        "Clean attention on `neutral`, minus plain training, mean over layers, sentences and seeds: entropy "
        "of the rows (nats) and attention on the planted word. AUROC (%): how well the adversary's mask "
        "singles out the planted word, best layer; 50 is chance, but untrained ones stray far from it "
        "(notebook 05, on the shipped corpus); R-Drop has no mask.\n\n" + markdown_table(table)
    )


def attention_sst2() -> str:
    return attention("attention_sst2")


def main() -> None:
    text = README.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    write_text(README, f"{text[:start]}\n{measured()}\n{text[end:]}")


if __name__ == "__main__":
    main()
