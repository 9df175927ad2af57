import pytest

from experiments.harness.claim import Claim, Comparison, Criterion, points


def claim(**changes):
    fields = dict(
        slug="example",
        paper="An example",
        arxiv="0000.00000",
        says="a is better than b",
        metric="loss",
        better="lower",
        worst=1.0,
        min_effect=0.1,
        method="a",
        baselines=("b",),
        grid={"learning_rate": (0.1, 0.2)},
        steps=1,
    )
    return Claim(**{**fields, **changes})


def test_points_are_all_combinations():
    assert points({"x": (1, 2), "y": (3, 4)}) == [
        {"x": 1, "y": 3},
        {"x": 1, "y": 4},
        {"x": 2, "y": 3},
        {"x": 2, "y": 4},
    ]
    assert points({}) == [{}]


def test_arms_are_the_baselines_the_method_and_those_compared_beside():
    beside = (Comparison("other", baselines=("c",)), Comparison("variant", method="a2"), Comparison("same again"))
    also = (Criterion("error", "lower", worst=1.0, margin=0.1, baselines=("perfect",)),)
    assert claim(beside=beside, also=also).arms == ("b", "a", "perfect", "c", "a2")


def test_a_variant_is_an_arm_with_settings_and_the_grid_of_its_arm():
    grid = {"clip": (1.0, 2.0)}
    variant = claim(variants={"b2": ("b", {"size": 3.0})}, arm_grid={"b": grid})
    assert variant.resolve("b2") == ("b", {"size": 3.0})
    assert variant.grid_of("b2") == grid
    assert variant.resolve("a") == ("a", {})
    assert variant.grid_of("a") == {"learning_rate": (0.1, 0.2)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(arm_grid={"b": {"learning_rate": (0.1, 0.2, 0.3)}}), r"same budget.*'b': 3, 'a': 2"),
        (dict(min_effect=None), "either min_effect .* or margin"),
        (dict(margin=0.1), "either min_effect .* or margin"),
        (dict(min_effect=-0.1), "must be >= 0, got -0.1"),
        (dict(better="larger"), "better must be 'lower' or 'higher', got 'larger'"),
        (dict(baselines=()), "at least one baseline"),
        (dict(tuning_seeds=2), "tuning_seeds must be >= 4, got 2"),
        (dict(axis={"learning_rate": (0.1,)}), r"\['learning_rate'\] cannot be tuned and be the axis"),
        (dict(same_runs=True, arm_grid={"b": {"clip": (1.0, 2.0)}}), "share their grid"),
    ],
)
def test_contradictory_claims_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        claim(**changes)
