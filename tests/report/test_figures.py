"""Where marks and names stand in the figures; the browser's tests look at them drawn."""

from dataclasses import dataclass
from itertools import combinations, pairwise

import pytest
from matplotlib.figure import Figure

from surm.report.drawing import legend_below
from surm.report.figures import _draw_counts, _draw_strips, _family_name, strips
from surm.report.training_figures import learning_curves
from tests.report import made_up


@dataclass
class Counted:
    name: str
    trainable_parameters: int
    mean: float = 50.0
    ends: tuple[float | None, float | None] = (None, None)


def test_methods_of_nearly_one_count_share_a_strip():
    counts = {
        "probe": 0,
        "norms": 9_984,
        "circulant": 13_824,
        "XS": 13_122,
        "LoRA": 13_824,
        "gated": 13_878,
        "BitFit": 26_112,
    }
    layout = strips([Counted(name, count) for name, count in counts.items()])
    assert list(layout.shared) == ["13,122 to 13,878"]
    center, left, right = layout.shared["13,122 to 13,878"]
    assert center == pytest.approx((13_122 * 13_878) ** 0.5)
    inside = [name for name, x in layout.xs.items() if left < x < right]
    assert inside == ["XS", "circulant", "LoRA", "gated"]
    steps = [b / a for a, b in pairwise(layout.xs[name] for name in inside)]
    assert steps == pytest.approx(steps[:1] * 3)
    assert layout.xs["probe"] == layout.head_only == 9_984 / 12
    assert layout.xs["norms"] == 9_984 < left
    assert layout.xs["BitFit"] == 26_112 > right


def test_methods_of_one_count_are_counted_once():
    layout = strips([Counted("LoRA", 27_648), Counted("circulant", 27_648)])
    assert list(layout.shared) == ["27,648 each"]
    assert layout.head_only is None


def test_the_counts_of_strips_side_by_side_do_not_run_into_each_other():
    figure = Figure(figsize=(5.8, 4.8))
    axes = figure.subplots()
    counts = [18, 6_912, 6_921, 9_216, 9_984, 13_122, 13_842, 26_112, 27_648, 22_713_216]
    methods = [Counted(str(count), count) for count in counts]
    layout = strips(methods)
    _draw_strips(axes, layout)
    _draw_counts(axes, layout, methods)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_the_counts_of_a_strip_stand_where_its_marks_are_not():
    figure = Figure()
    axes = figure.subplots()
    axes.set_ylim(0, 100)
    low = [Counted("probe", 10, mean=20.0, ends=(5.0, 35.0)), Counted("bias", 10, mean=30.0)]
    high = [Counted("LoRA", 1000, mean=90.0), Counted("circulant", 1000, mean=60.0)]
    apart = [Counted("rank 1", 10**5, mean=7.0), Counted("full", 10**5, mean=95.0)]
    layout = strips(low + high + apart)
    _draw_strips(axes, layout)
    _draw_counts(axes, layout, low + high + apart)
    heights = {
        text.get_text(): axes.transData.inverted().transform(text.get_window_extent())[:, 1] for text in axes.texts
    }
    assert heights["10 each"].min() > 35
    assert heights["1,000 each"].max() < 60
    assert 7 < heights["100,000 each"].min() < heights["100,000 each"].max() < 95


def test_a_score_of_one_epoch_stands_on_the_epochs_of_the_loss(make_experiment):
    task = make_experiment({"LoRA r=1": 0.9})
    for run in task.finished[0].finished:
        evaluated = [row for row in made_up.history(0.9, run.seed) if "evaluation" in row][-1:]
        run.happened["history"] = [row for row in run.happened["history"] if "evaluation" not in row] + evaluated
    loss, score = learning_curves([task]).draw().axes
    assert loss.get_xlim() == score.get_xlim()
    assert score.get_xlim()[0] < 1 < 3 < score.get_xlim()[1] < 4


@pytest.mark.parametrize(
    ("names", "family", "said"),
    [
        (["LoRA r=1 (q, k, v, o)"], "LoRA", "LoRA r=1 (q, k, v, o)"),
        (["LoRA r=1 (q, k, v, o)", "LoRA r=4 (q, k, v, o)"], "LoRA", "LoRA r=1 / r=4 (q, k, v, o)"),
        (
            ["bottleneck, size 1, Houlsby adapter", "bottleneck, size 16, Houlsby adapter"],
            "bottleneck",
            "bottleneck size 1 / size 16, Houlsby adapter",
        ),
        (["circulant", "circulant, direct"], "circulant", "circulant default / direct"),
        (["LoRA r=1", "LoRA r=1 (q, v)"], "LoRA", "LoRA r=1 / r=1 (q, v)"),
    ],
)
def test_the_legend_names_what_members_of_a_family_share_once(names, family, said):
    assert _family_name(names, family) == said


@pytest.mark.parametrize(("length", "columns"), [(10, 4), (25, 2), (200, 1)])
def test_a_legend_has_as_many_columns_as_fit(length, columns):
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes in figure.subplots(1, 2):
        for number in range(4):
            axes.plot([0], [0], label=f"{number}".ljust(length, "m"))
    legend_below(figure)
    assert len(figure.legends) == 1
    assert figure.legends[0]._ncols == columns


def test_a_long_legend_makes_the_figure_higher_not_the_panel_lower():
    heights = []
    for number in (2, 20):
        figure = Figure(figsize=(5.8, 4.8), layout="constrained")
        axes = figure.subplots()
        for name in range(number):
            axes.plot([0], [0], label=str(name) * 30)
        legend_below(figure)
        figure.canvas.draw()
        heights.append(axes.get_window_extent().height)
    assert heights[1] >= heights[0] * 0.9
