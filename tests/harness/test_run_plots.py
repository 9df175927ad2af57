import json

import matplotlib.image
import numpy as np
import pytest

from experiments.harness import run_plots
from experiments.harness.journal import METRICS, Journal
from experiments.harness.spikes import SPIKES, Spike


@pytest.fixture
def figures(monkeypatch):
    """What would have been written, by the name of the file."""
    found = {}

    def keep(figure, path):
        found[path.name] = figure
        return path

    monkeypatch.setattr("experiments.harness.run_plots.save", keep)
    monkeypatch.setattr("experiments.harness.spike_page.save", keep)
    return found


def panel(figure, label):
    """The panel with this label or title."""
    (axis,) = [axis for axis in figure.axes if label in (axis.get_ylabel(), axis.get_title(loc="left"))]
    return axis


def line(axis, label):
    (found,) = [line for line in axis.lines if line.get_label() == label]
    return found.get_xydata()


STEPS = np.arange(1, 41)
LOSSES = 5 / np.sqrt(STEPS)
WINDOW = {
    "step": STEPS.tolist(),
    "loss": LOSSES.tolist(),
    "update_norm": (0.1 * LOSSES).tolist(),
    "gradient_norms": {
        "head": [2.0] * 39 + [4.0],
        "blocks/mlp": [[1.0, 10.0, 100.0]] * 38 + [[1.0, 50.0, 100.0], [5.0, None, 100.0]],
        "embedding": [0.0] * 20 + [3.0] * 20,
    },
    "update_norms": {"head": [1.0] * 40},
}
SPIKE = Spike(40, "update_norm", 9.0, 1.0, 2.0, [7, 8], WINDOW)


def write_run(workdir):
    with Journal(workdir) as journal:
        for step, loss in zip(STEPS.tolist(), LOSSES.tolist(), strict=True):
            loss = float("nan") if step == 30 else loss
            journal.write(step, loss=loss, gradient_norm=2 * loss, update_norm=0.1 * loss)
            if step % 20 == 0:
                journal.write(step, validation_loss=loss + 1)
    (workdir / SPIKES).write_text(json.dumps(SPIKE._asdict()) + "\n")


def test_a_run_may_have_figures_and_names_of_its_own(figures, tmp_path):
    with Journal(tmp_path) as journal:
        for step in (1, 2):
            journal.write(step, loss=0.5 * step)
        journal.write(2, energy_distance=0.25)
    run_plots.plot_run(tmp_path, {"loss": "loss", "energy_distance": "energy distance"})
    assert [axis.get_ylabel() for axis in figures["run.png"].axes] == ["loss", "energy distance"]
    np.testing.assert_array_equal(panel(figures["run.png"], "energy distance").lines[0].get_xydata(), [[2, 0.25]])


def test_a_run_leaves_images_and_nothing_else(tmp_path):
    write_run(tmp_path)
    assert run_plots.plot_run(tmp_path) == tmp_path / "run.png"
    assert {path.name for path in tmp_path.iterdir()} == {METRICS, SPIKES, "run.png", "spikes"}
    assert [path.name for path in (tmp_path / "spikes").iterdir()] == ["step_40.png"]
    for path in (tmp_path / "run.png", tmp_path / "spikes" / "step_40.png"):
        image = matplotlib.image.imread(path)
        assert image.shape[1] > 600
        assert np.unique(image[..., :3].reshape(-1, 3), axis=0).shape[0] > 10


def test_a_run_is_plotted_as_its_journal_says(tmp_path, figures):
    write_run(tmp_path)
    run_plots.plot_run(tmp_path)
    assert set(figures) == {"run.png", "step_40.png"}
    figure = figures["run.png"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss (nats a token)", "gradient norm", "update norm"]
    loss, gradient, _ = figure.axes
    expected = np.where(STEPS == 30, np.nan, LOSSES)
    np.testing.assert_allclose(line(loss, "training batch"), np.stack([STEPS, expected], 1))
    np.testing.assert_allclose(line(loss, "held-out data"), [[20, LOSSES[19] + 1], [40, LOSSES[39] + 1]])
    np.testing.assert_allclose(line(gradient, "training batch")[:, 1], 2 * expected)
    np.testing.assert_array_equal(line(gradient, "spike")[:, 0], [40, 40])
    assert (loss.get_yscale(), gradient.get_yscale()) == ("linear", "log")


def test_of_a_long_run_the_running_median_is_shown_too(tmp_path, figures):
    with Journal(tmp_path) as journal:
        for step in range(1, 1001):
            journal.write(step, loss=1000.0 if step == 500 else step)
    run_plots.plot_run(tmp_path)
    steps, medians = line(figures["run.png"].axes[0], "training batch, running median").T
    np.testing.assert_allclose(medians, steps, atol=1)
    assert steps[0] < 10
    assert steps[-1] > 990


def test_a_run_without_losses_cannot_be_plotted(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl must hold a loss, got 1 lines without"):
        run_plots.plot_run(tmp_path)


def test_a_spike_is_shown_layer_by_layer_relative_to_medians(tmp_path, figures):
    run_plots.plot_spike(SPIKE, tmp_path / "spike.png")
    figure = figures["spike.png"]
    assert "Spike at step 40: update norm 9 (usually 1, at most 2)" in figure.subfigs[0].get_suptitle()
    axis = panel(figure, "gradient norm, relative to its median")
    assert [label.get_text() for label in axis.get_yticklabels()] == ["embedding", "blocks/mlp", "head"]
    ratios = axis.collections[0].get_array()
    assert ratios.shape == (5, 40)
    np.testing.assert_allclose(ratios[:, -2].filled(), [1, 1, 5, 1, 1])
    np.testing.assert_array_equal(ratios.mask[:, -1], [False, False, True, False, False])
    np.testing.assert_allclose(ratios[[0, 1, 3, 4], -1].filled(), [1, 5, 1, 2])
    assert ratios[0, 0] == 1e-3  # zero is very little, not unknown
    bottom, top = axis.get_ylim()
    assert bottom > top  # the embedding is above


def test_layers_with_names_of_their_own_are_in_the_order_of_their_numbers(tmp_path, figures):
    names = ["norm", *(f"block_{i}/mlp" for i in reversed(range(12))), "embedding"]
    window = {**WINDOW, "gradient_norms": {name: [1.0] * 40 for name in names}}
    run_plots.plot_spike(SPIKE._replace(window=window, value=None, median=None, upper=None), tmp_path / "spike.png")
    axis = panel(figures["spike.png"], "gradient norm, relative to its median")
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["embedding", *(f"block_{i}/mlp" for i in range(12)), "norm"]
    assert figures["spike.png"].subfigs[0].get_suptitle() == "Spike at step 40: update norm not finite"


def test_moments_and_attention_logits_have_panels_where_they_are_known(tmp_path, figures):
    logits = [[float(step), 2.0 * step] for step in range(40)]
    moments = {name: WINDOW["update_norms"] for name in ("first_moment_norms", "second_moment_norms")}
    run_plots.plot_spike(
        SPIKE._replace(window={**WINDOW, **moments, "max_attention_logits": logits}), tmp_path / "a.png"
    )
    shown = panel(figures["a.png"], "largest attention logit, by layer").collections[0].get_array()
    np.testing.assert_array_equal(shown, np.transpose(logits))
    for name in ("first", "second"):
        assert (
            panel(figures["a.png"], f"{name} moment norm, relative to its median").collections[0].get_array().size == 40
        )


def test_replays_are_beside_what_happened(tmp_path, figures):
    def lines(factor, lost=99):
        return [
            {"step": s, **{n: None if s >= lost else factor * s for n in ("loss", "gradient_norm", "update_norm")}}
            for s in range(10, 20)
        ]

    replays = {"spam": lines(2), "sgd": lines(3, lost=15), "failed": []}
    path = run_plots.plot_replay(lines(1), replays, tmp_path / "replay.png")
    assert path == tmp_path / "replay.png"
    axes = figures["replay.png"].axes
    assert [axis.get_title(loc="left") for axis in axes] == ["loss (nats a token)", "gradient norm", "update norm"]
    for axis in axes:
        assert axis.get_legend_handles_labels()[1] == ["what happened", "spam", "sgd"]
        for label, factor in (("what happened", 1), ("spam", 2)):
            np.testing.assert_array_equal(line(axis, label), [[s, factor * s] for s in range(10, 20)])
        (cross,) = [line for line in axis.lines if line.get_marker() == "X"]
        np.testing.assert_array_equal(cross.get_xydata(), [[14, 42]])


def test_the_sensitivity_curve_has_its_number_in_the_legend(tmp_path, figures):
    """By hand: ((3 - 2) + 0 + (4 - 2) + (4 - 2)) / 4, where the last two are no better than at first."""
    rates = [1e-3, 1e-2, 1e-1, 1.0]
    run_plots.plot_sensitivity(rates, {"adamw": [3.0, 2.0, 7.0, float("nan")]}, tmp_path / "s.png", worst=4.0)
    (axis,) = figures["s.png"].axes
    np.testing.assert_allclose(line(axis, "adamw (sensitivity 1.25)"), np.stack([rates, [3, 2, 4, 4]], 1))
    (crosses,) = [line for line in axis.lines if line.get_marker() == "x"]
    np.testing.assert_allclose(crosses.get_xydata(), [[0.1, 4], [1, 4]])
    assert (axis.get_xscale(), axis.get_xlabel()) == ("log", "learning rate")


def test_another_hyperparameter_can_be_on_the_axis(tmp_path, figures):
    run_plots.plot_sensitivity([0.9, 0.99], {"adamw": [2.0, None]}, tmp_path / "s.png", hyperparameter="b2")
    (axis,) = figures["s.png"].axes
    assert (axis.get_xscale(), axis.get_xlabel()) == ("linear", "b2")
    with pytest.raises(ValueError, match="losses must have 2 values for each run, got 1 for spam"):
        run_plots.plot_sensitivity([0.1, 0.2], {"spam": [1.0]}, tmp_path / "s.png")
    with pytest.raises(ValueError, match="worst must be given where no loss is finite, got None"):
        run_plots.plot_sensitivity([0.1, 0.2], {"spam": [None, None]}, tmp_path / "s.png")
