"""PCB-merging against closed forms, invariances and a NumPy transcription of the authors' arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxreg.weights import (
    lcsc_search,
    linear_combination,
    pcb_merge,
    pcb_parts,
    pcb_population,
    pcb_scores,
)
from tests.weights.small_models import model


def reference_scores(tau, ratio, q, inter):
    """Scores and clipped task vectors by sorted lists in float64."""
    tau = np.asarray(tau, np.float64)
    tasks, size = tau.shape

    def min_max(row):
        return (row - row.min()) / (row.max() - row.min())

    sizes = np.abs(tau)
    for row in sizes:
        order = np.sort(row)
        np.clip(row, order[int(size * q)], order[int(size * (1 - q) - 1)], out=row)
    scores = []
    for i in range(tasks):
        within = np.exp(tasks * min_max(sizes[i]) ** 2)
        if inter == "sum":
            between = np.tanh(tau[i] * tau.sum(0))
        else:
            signed = [np.sign(tau[j]) * min_max(sizes[j]) for j in range(tasks)]
            between = sum(np.tanh(signed[i] * signed[j]) for j in range(tasks))
        beta = within * between
        scores.append(min_max(np.maximum(beta, np.sort(beta)[int(size * (1 - ratio))])))
    return np.stack(scores), np.sign(tau) * sizes


def vectors(tasks, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(tasks, SIZE)).astype(np.float32)


SIZE = 200
ZERO = np.zeros(SIZE, np.float32)
static = ("clip_quantile", "inter")
jit_merge = jax.jit(pcb_merge, static_argnames=static)  # eagerly, every operation would be compiled by itself
jit_scores = jax.jit(pcb_scores, static_argnames=static)


@pytest.mark.parametrize("inter", ["sum", "pair"])
@pytest.mark.parametrize(("ratio", "q", "scale"), [(0.1, 1e-4, 1.0), (0.25, 0.01, 0.03), (0.7, 0.1, 2.0)])
def test_scores_and_merge_follow_the_authors_arithmetic(inter, ratio, q, scale):
    tau = vectors(3, scale=scale)
    scores, clipped = reference_scores(tau, ratio, q, inter)
    np.testing.assert_allclose(pcb_scores(tau, ratio=ratio, clip_quantile=q, inter=inter), scores, rtol=2e-4, atol=2e-6)
    lams = np.float32([0.8, 1.0, 1.3])
    merged = jit_merge(ZERO, tau, ratio=ratio, lams=lams, clip_quantile=q, inter=inter)
    expected = (lams[:, None] * scores * clipped).sum(0) / np.maximum(scores.sum(0), 1e-12)
    near_the_threshold = (scores > 0) & (scores < 1e-3)  # where a quotient of two tiny scores is rounding
    np.testing.assert_allclose(np.where(near_the_threshold.any(0), expected, merged), expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.5, 1.0])
def test_one_task_keeps_its_own_largest_entries(ratio):
    tau = vectors(1)
    merged = np.asarray(jit_merge(ZERO, tau, ratio=ratio, clip_quantile=0.0))
    kept = merged != 0
    assert abs(kept.sum() - ratio * SIZE) <= 1
    np.testing.assert_allclose(merged[kept], tau[0][kept], rtol=1e-5)
    assert np.abs(tau[0][kept]).min() >= np.abs(tau[0][~kept]).max()


def test_identical_tasks_merge_to_the_common_vector():
    tau = np.repeat(vectors(1), 3, axis=0)
    merged = np.asarray(jit_merge(ZERO, tau, ratio=0.2, clip_quantile=0.0))
    kept = merged != 0
    assert abs(kept.sum() - 40) <= 1
    np.testing.assert_allclose(merged[kept], tau[0][kept], rtol=1e-5)


def test_disjoint_tasks_add_up_without_halving():
    tau = vectors(3)
    tau[0, 80:], tau[1, :120], tau[2] = 0, 0, 0  # the third task changed nothing
    merged = np.asarray(jit_merge(ZERO, tau, ratio=0.2, clip_quantile=0.0))
    kept = merged != 0
    assert abs(kept[:80].sum() - 40) <= 1
    assert abs(kept[120:].sum() - 40) <= 1
    np.testing.assert_allclose(merged[kept], tau.sum(0)[kept], rtol=1e-5)


def test_dropped_entries_are_exactly_zero_and_the_best_is_one():
    scores = np.asarray(jit_scores(vectors(3), ratio=0.1))
    np.testing.assert_array_equal((scores > 0).sum(1), 19)  # the twentieth sets the zero
    np.testing.assert_allclose(scores.max(1), 1.0, rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(3)), inter=st.sampled_from(["sum", "pair"]), seed=st.integers(0, 99))
def test_the_order_of_tasks_does_not_matter(order, inter, seed):
    tau, lams = vectors(3, seed), vectors(1, seed + 1)[0, :3]
    merged = jit_merge(ZERO, tau, lams=lams, ratio=0.3, inter=inter)
    permuted = jit_merge(ZERO, tau[list(order)], lams=lams[list(order)], ratio=0.3, inter=inter)
    np.testing.assert_allclose(permuted, merged, rtol=1e-3, atol=1e-5)


def test_entries_on_which_tasks_disagree_lose():
    tau = np.float32([[1.0, 0.9, 0.5, 0.1], [1.0, -1.5, 0.5, 0.1]])
    scores = pcb_scores(tau, ratio=0.75, clip_quantile=0.0)
    assert scores[0, 1] == 0
    assert scores[0, 0] == 1


@pytest.mark.parametrize("inter", ["sum", "pair"])
@pytest.mark.parametrize("tau", [np.zeros((2, 5), np.float32), np.full((2, 5), 0.3, np.float32)])
def test_constant_task_vectors_give_no_nan(tau, inter):
    np.testing.assert_array_equal(pcb_scores(tau, inter=inter), 0.0)


def test_many_tasks_do_not_overflow():
    scores = pcb_scores(vectors(150), ratio=0.1)
    assert jnp.isfinite(scores).all()
    np.testing.assert_allclose(scores.max(1), 1.0, rtol=1e-6)


def test_combinations_of_the_parts_are_merges():
    pretrained, finetuned = model(0), model(1, batch=(3,))
    lams = np.float32([0.8, 1.3, -0.2])
    parts = jax.jit(pcb_parts)(pretrained, finetuned, ratio=0.5)
    assert jax.tree.map(jnp.shape, parts) == jax.tree.map(lambda leaf: (4, *leaf.shape), pretrained)
    jax.tree.map(lambda part, leaf: np.testing.assert_array_equal(part[0], leaf), parts, pretrained)
    combined = linear_combination(parts, np.float32([1 - lams.sum(), *lams]))
    merged = jit_merge(pretrained, finetuned, ratio=0.5, lams=lams)
    jax.tree.map(
        lambda part, leaf: np.testing.assert_allclose(part, leaf, rtol=1e-4, atol=1e-5),
        combined["dense"],
        merged["dense"],
    )


def test_strengths_can_be_searched():
    tau, lams = vectors(3), np.float32([0.8, 1.2, 1.0])
    wanted = jit_merge(ZERO, tau, ratio=0.5, lams=lams)
    start = pcb_population(jax.random.key(0), 3)
    np.testing.assert_allclose(start.sum(1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(start[0, 1:], 1.0)
    assert 0.8 <= start[:, 1:].min() < 0.9
    assert 1.2 < start[:, 1:].max() <= 1.3
    found = jax.jit(
        lambda key: lcsc_search(
            key,
            pcb_parts(ZERO, tau, ratio=0.5),
            lambda merged: jnp.sum(jnp.square(merged - wanted)),
            population_init=start,
            num_epochs=5,
            children_per_epoch=16,
        )
    )(jax.random.key(1))
    np.testing.assert_allclose(found.coefficients[1:], lams, atol=0.1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_merged_models_have_the_dtypes_and_counters_of_the_pretrained(dtype):
    pretrained, finetuned = model(0, dtype), model(1, dtype, batch=(2,))
    merged = jit_merge(pretrained, finetuned)
    assert jax.tree.map(jnp.result_type, merged) == jax.tree.map(jnp.result_type, pretrained)
    np.testing.assert_array_equal(merged["count"], 0)


def test_ratios_and_strengths_can_be_traced_and_vmapped():
    tau = vectors(3)
    ratios = np.float32([0.1, 0.25, 0.5])
    merge = jax.vmap(lambda ratio, lam: pcb_merge(ZERO, tau, ratio=ratio, lams=lam))
    merged = jax.jit(merge)(ratios, 2 * ratios)
    for row, ratio in zip(merged, ratios, strict=True):
        alone = jit_merge(ZERO, tau, ratio=float(ratio), lams=2 * float(ratio))
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("merge", [pcb_merge, pcb_parts])
def test_a_single_model_has_to_be_a_stack_of_one(merge):
    with pytest.raises(ValueError, match=r"^finetuned\['w'\] must have shape \[tasks, 3, 4\], got \[3, 4\]"):
        merge({"w": jnp.zeros([3, 4])}, {"w": jnp.ones([3, 4])})


@pytest.mark.parametrize(("name", "value"), [("ratio", 0.0), ("ratio", 1.5), ("clip_quantile", 0.5)])
def test_bad_hyperparameters_are_named(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be in .*, got {value}"):
        pcb_merge(ZERO, vectors(2), **{name: value})
