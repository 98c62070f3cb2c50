"""The figure helpers: what they write, what they label, what they refuse."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from explorer_records import record

from asa_mini.errors import InputError
from asa_mini.look import plots


@pytest.fixture(autouse=True)
def headless():
    plt.switch_backend("agg")
    plots.use_style()
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """What is displayed, while the project is an empty folder."""
    displayed = []
    monkeypatch.setattr(plots, "project_root", lambda: tmp_path)
    monkeypatch.setattr("IPython.display.display", displayed.append)
    return displayed


def test_show_figure_writes_both_kinds_displays_one_with_alt_text_and_closes(ax, tmp_path, shown):
    ax.plot([0, 1], [0, 1])
    assert plots.show_figure(ax.figure, "line", alt="A line.") is None
    folder = tmp_path / "build" / "figures"
    assert sorted(path.name for path in folder.iterdir()) == ["line.png", "line.svg"]
    assert (folder / "line.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "line.svg").read_text(encoding="utf-8")
    assert [image.alt for image in shown] == ["A line."]
    assert shown[0].data == (folder / "line.png").read_bytes()
    assert not plt.get_fignums()


def test_show_figure_is_reproducible(ax, tmp_path, shown):
    ax.plot([0, 1], [0, 1])
    for name in ("a", "b"):
        plots.show_figure(ax.figure, name, alt="")
    a, b = (tmp_path / "build" / "figures" / name for name in "ab")
    for kind in (".png", ".svg"):
        assert a.with_suffix(kind).read_bytes() == b.with_suffix(kind).read_bytes()


def test_a_failed_save_keeps_the_old_picture(ax, tmp_path, monkeypatch, shown):
    old = tmp_path / "build" / "figures" / "line.svg"
    old.parent.mkdir(parents=True)
    old.write_text("old", encoding="utf-8")

    def half_written(path, **options):
        path.write_text("half", encoding="utf-8")
        raise OSError("disk full")

    monkeypatch.setattr(ax.figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        plots.show_figure(ax.figure, "line", alt="")
    assert list(old.parent.iterdir()) == [old] and old.read_text(encoding="utf-8") == "old"


def test_trajectory_plot_labels_axes_and_draws_every_path(ax):
    paths = {"out": np.array([[0.0, 0.0], [1.0, 2.0]]), "still": np.array([[0.5, 0.5]])}
    plots.trajectory_plot(ax, paths, field=lambda theta, eta: (-theta, eta), title="two walks")
    assert "theta" in ax.get_xlabel() and "eta" in ax.get_ylabel()
    assert ax.get_title() == "two walks"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["out", "still"]
    assert ax.get_xlim() == ax.get_ylim() == pytest.approx((-2.2, 2.2))
    np.testing.assert_allclose(ax.get_lines()[0].get_xydata(), paths["out"])


@pytest.mark.parametrize("shape", [(5,), (5, 3), (0, 2), (2, 5, 2)])
def test_trajectory_plot_refuses_wrong_shapes(ax, shape):
    with pytest.raises(InputError, match=r"'walk' must hold finite points of shape \(T, 2\)"):
        plots.trajectory_plot(ax, {"walk": np.zeros(shape)})


def test_trajectory_plot_refuses_nan(ax):
    with pytest.raises(InputError, match="finite"):
        plots.trajectory_plot(ax, {"walk": np.array([[0.0, np.nan]])})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heatmap_labels_rows_as_queries_and_columns_as_keys(ax, dtype):
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=dtype, requires_grad=True)
    plots.attention_heatmap(ax, weights, ["a", "b"], title="one head")
    assert ax.get_xlabel().startswith("key") and ax.get_ylabel().startswith("query")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_title() == "one head"
    np.testing.assert_allclose(ax.collections[0].get_array().reshape(2, 2), [[0.25, 0.75], [1, 0]])
    assert "attention weight" in ax.figure.axes[-1].get_ylabel()  # the colour bar


def one_removed():
    """Two layers, two heads, three tokens; the adversary of layer 1 hides key 2 from query 0."""
    kept = np.ones((2, 3, 3), dtype=bool)
    kept[1, 0, 2] = False
    return replace(record("a b c", heads=2), kept=kept)


def test_map_pair_draws_both_maps_on_one_scale_and_what_was_removed():
    axes, drawn = plt.subplots(1, 2)[1], one_removed()
    plots.map_pair(axes, drawn, layer=1)
    for ax, weights in zip(axes, (drawn.clean, drawn.adversarial), strict=True):
        np.testing.assert_allclose(ax.collections[0].get_array().reshape(3, 3), weights[1].mean(0))
    assert axes[0].collections[0].get_clim() == axes[1].collections[0].get_clim()
    assert axes[1].get_lines()[0].get_xydata().tolist() == [[2.5, 0.5]]  # key 2, query 0
    assert not axes[0].get_lines()


@pytest.mark.parametrize("layer", [2, -1])
def test_map_pair_refuses(layer):
    with pytest.raises(InputError, match=f"no layer {layer}"):
        plots.map_pair(plt.subplots(1, 2)[1], one_removed(), layer)


def test_layer_profile_draws_values_and_intervals(ax):
    band = np.array([[0.5, 0.4, 0.6], [0.7, 0.6, 0.9]])
    plots.layer_profile(ax, {"plain": np.array([1, 2]), "ASA": band}, "entropy (nats)", colors={"ASA": "red"})
    assert ax.get_xlabel() == "layer" and ax.get_ylabel() == "entropy (nats)"
    plain, asa = ax.get_lines()
    assert list(plain.get_ydata()) == [1, 2] and list(asa.get_ydata()) == [0.5, 0.7]
    assert plain.get_linestyle() != asa.get_linestyle() and asa.get_color() == "red"
    corners = ax.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == 0.4 and corners[:, 1].max() == 0.9
    with pytest.raises(InputError, match="must be"):
        plots.layer_profile(ax, {"wrong": np.zeros((2, 2))}, "x")


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
