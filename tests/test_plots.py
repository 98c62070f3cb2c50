"""The figure helpers: what they write, what they label, what they refuse."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from asa_mini import plots
from asa_mini.errors import InputError


@pytest.fixture(autouse=True)
def headless():
    plt.switch_backend("agg")
    plots.use_style()
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


def test_save_figure_writes_both_kinds_and_nothing_else(ax, tmp_path):
    ax.plot([0, 1], [0, 1])
    assert plots.save_figure(ax.figure, "line", tmp_path / "new" / "folder") is None
    written = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert written == ["line.png", "line.svg"]
    assert (tmp_path / "new" / "folder" / "line.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "new" / "folder" / "line.svg").read_text(encoding="utf-8")


def test_save_figure_is_reproducible(ax, tmp_path):
    ax.plot([0, 1], [0, 1])
    for folder in ("a", "b"):
        plots.save_figure(ax.figure, "line", tmp_path / folder)
    for name in ("line.png", "line.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_relative_folder_starts_at_the_project_root(ax, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "project_root", lambda: tmp_path)
    plots.save_figure(ax.figure, "line")
    assert (tmp_path / "build" / "figures" / "line.png").is_file()


def test_a_failed_save_keeps_the_old_picture(ax, tmp_path, monkeypatch):
    (tmp_path / "line.png").write_text("old")

    def half_written(path, content):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(plots.Path, "write_bytes", half_written)
    with pytest.raises(OSError, match="disk full"):
        plots.save_figure(ax.figure, "line", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["line.png"]
    assert (tmp_path / "line.png").read_text() == "old"


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden"])
def test_save_figure_refuses_a_name_with_folders(ax, tmp_path, name):
    with pytest.raises(InputError, match="plain file name"):
        plots.save_figure(ax.figure, name, tmp_path)


def test_show_figure_carries_alt_text_and_closes(ax, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "project_root", lambda: tmp_path)
    monkeypatch.setattr("IPython.display.display", shown.append)
    plots.show_figure(ax.figure, "line", alt="A line.")
    assert [image.alt for image in shown] == ["A line."]
    assert shown[0].data == (tmp_path / "build" / "figures" / "line.png").read_bytes()
    assert not plt.get_fignums()


def test_trajectory_plot_labels_axes_and_draws_every_path(ax):
    paths = {"out": np.array([[0.0, 0.0], [1.0, 2.0]]), "still": np.array([[0.5, 0.5]])}
    plots.trajectory_plot(ax, paths, field=lambda theta, eta: (-theta, eta), title="two walks")
    assert "theta" in ax.get_xlabel() and "eta" in ax.get_ylabel()
    assert ax.get_title() == "two walks"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["out", "still"]
    assert ax.get_xlim() == ax.get_ylim() == pytest.approx((-2.2, 2.2))
    np.testing.assert_allclose(ax.get_lines()[0].get_xydata(), paths["out"])


def test_trajectory_plot_of_a_field_alone(ax):
    plots.trajectory_plot(ax, {}, field=lambda theta, eta: (-eta, theta), limit=1.5)
    assert ax.get_xlim() == (-1.5, 1.5)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (0, 2), (2, 5, 2)])
def test_trajectory_plot_refuses_wrong_shapes(ax, shape):
    with pytest.raises(InputError, match=r"'walk' must hold finite points of shape \(T, 2\)"):
        plots.trajectory_plot(ax, {"walk": np.zeros(shape)})


def test_trajectory_plot_refuses_nan_and_nothing(ax):
    with pytest.raises(InputError, match="finite"):
        plots.trajectory_plot(ax, {"walk": np.array([[0.0, np.nan]])})
    with pytest.raises(InputError, match="nothing to draw"):
        plots.trajectory_plot(ax, {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heatmap_labels_rows_as_queries_and_columns_as_keys(ax, dtype):
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=dtype, requires_grad=True)
    plots.attention_heatmap(ax, weights, ["a", "b"], title="one head")
    assert ax.get_xlabel().startswith("key") and ax.get_ylabel().startswith("query")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_title() == "one head"
    np.testing.assert_allclose(ax.collections[0].get_array().reshape(2, 2), [[0.25, 0.75], [1, 0]])
    assert "attention weight" in ax.figure.axes[-1].get_ylabel()  # the colour bar


def test_heatmap_of_a_mask_has_a_legend_and_no_colour_bar(ax):
    plots.attention_heatmap(ax, np.array([[True, False], [True, True]]), ["a", "b"])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["kept", "masked"]
    assert ax.figure.axes == [ax]


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (2,), (1, 2, 2)])
def test_heatmap_refuses_wrong_shapes(ax, shape):
    with pytest.raises(InputError, match=r"2 tokens need a map of shape \(2, 2\)"):
        plots.attention_heatmap(ax, torch.zeros(shape), ["a", "b"])


def test_heatmap_refuses_nan(ax):
    with pytest.raises(InputError, match="NaN"):
        plots.attention_heatmap(ax, torch.tensor([[float("nan")]]), ["a"])
