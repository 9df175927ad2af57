"""Signatures, patches and extrapolations against projections, round trips and counts worked out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxreg.weights import (
    dare,
    decouple_inject,
    extrapolate,
    patch,
    quantize_signature,
    replace_by_mean,
    robust_signature,
    shallow_layers,
    unpatch,
)


def model(seed, dtype=np.float32, batch=()):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=[*batch, *shape]).astype(dtype)

    return {
        "Conv_0": {"kernel": normal(3, 3, 2, 4), "bias": normal(4)},
        "Dense_0": {"kernel": normal(16, 5), "bias": normal(5)},
        "count": np.full(batch, seed),
    }


def floating(tree):
    return {name: layer for name, layer in tree.items() if name != "count"}


def assert_close(actual, wanted, **tolerance):
    jax.tree.map(lambda a, w: np.testing.assert_allclose(a, w, **tolerance), actual, wanted)


class TestSignature:
    def test_it_is_orthogonal_to_the_clean_update_in_every_leaf(self):
        robust, clean, start = model(1), model(2), model(3)
        signature = robust_signature(robust, clean, start)
        for path, leaf in jax.tree_util.tree_leaves_with_path(floating(signature)):
            layer, name = (key.key for key in path)
            d_s = (clean[layer][name] - start[layer][name]).astype(np.float64)
            assert abs(np.sum(leaf * d_s)) <= 1e-5 * np.linalg.norm(leaf) * np.linalg.norm(d_s)
        np.testing.assert_array_equal(signature["count"], 0)

    def test_it_leaves_what_the_clean_task_explains_and_no_more(self):
        start, d_s = np.float32([1.0, -2.0, 0.5]), np.float32([2.0, 1.0, 0.0])
        orthogonal = np.float32([1.0, -2.0, 7.0])
        np.testing.assert_allclose(robust_signature(start + 3 * d_s, start + d_s, start), 0, atol=1e-6)
        np.testing.assert_allclose(robust_signature(start + orthogonal, start + d_s, start), orthogonal, rtol=1e-6)
        mixed = robust_signature(start + orthogonal - 0.7 * d_s, start + d_s, start)
        np.testing.assert_allclose(mixed, orthogonal, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("size", [0.0, 1e-30])
    def test_a_clean_update_of_next_to_nothing_divides_by_nothing(self, size):
        signature = robust_signature(np.float32([3.0, 4.0]), np.float32([size, 0.0]), np.zeros(2, np.float32))
        np.testing.assert_allclose(signature, [3.0 * (size == 0), 4.0], atol=1e-6)

    def test_several_corruptions_are_vmapped(self):
        robust, clean, start = model(1, batch=(3,)), model(2), model(3)
        stacked = jax.vmap(robust_signature, (0, None, None))(robust, clean, start)
        alone = robust_signature(jax.tree.map(lambda leaf: leaf[1], robust), clean, start)
        assert_close(jax.tree.map(lambda leaf: leaf[1], stacked), alone, rtol=1e-5, atol=1e-6)


class TestPatch:
    @settings(max_examples=10, deadline=None)
    @given(strength=st.floats(-3, 3), seed=st.integers(0, 99))
    def test_what_was_patched_in_can_be_taken_out(self, strength, seed):
        params, signatures = model(seed), model(seed + 1, batch=(3,))
        patched = patch(params, signatures, strength=strength)
        assert_close(unpatch(patched, signatures, strength=strength), params, rtol=1e-5, atol=1e-5)

    def test_signatures_add_up_at_their_strengths(self):
        params, signatures = model(0), model(1, batch=(3,))
        strength = np.float32([1.0, 0.5, -2.0])
        patched = patch(params, signatures, strength=strength)
        wanted = jax.tree.map(lambda p, s: p + np.tensordot(strength / 3, s, 1), floating(params), floating(signatures))
        assert_close(floating(patched), wanted, rtol=1e-5, atol=1e-6)
        one_by_one = params
        for i, weight in enumerate(strength):
            alone = jax.tree.map(lambda s, i=i: s[[i]], signatures)
            one_by_one = patch(one_by_one, alone, strength=weight / 3)
        assert_close(one_by_one, patched, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(patched["count"], params["count"])

    def test_deep_layers_stay_as_they_are(self):
        params, signatures = model(0), model(1, batch=(2,))
        patched = jax.jit(patch)(params, signatures, layers=shallow_layers(params, keep=1))
        assert_close(patched["Dense_0"], params["Dense_0"], rtol=0)
        assert not np.allclose(patched["Conv_0"]["bias"], params["Conv_0"]["bias"])

    def test_half_precision_stays_and_strengths_can_be_traced(self):
        params, signatures = model(0, jnp.bfloat16), model(1, batch=(2,))
        patched = jax.jit(lambda strength: patch(params, signatures, strength=strength))(jnp.float32(0.5))
        assert jax.tree.map(jnp.result_type, patched) == jax.tree.map(jnp.result_type, params)

    def test_what_is_no_stack_is_refused(self):
        params, alone = {"k": np.zeros((3, 4), np.float32)}, {"k": np.ones((3, 4), np.float32)}
        for call in (patch, unpatch):
            with pytest.raises(
                ValueError, match=r"^signatures\['k'\] must have shape \[corruptions, 3, 4\], got \[3, 4\]"
            ):
                call(params, alone)
        with pytest.raises(ValueError, match=r"^models\['k'\] must have shape \[models, 3, 4\], got \[3, 4\]"):
            replace_by_mean(params, alone, mask={"k": True})
        with pytest.raises(ValueError, match=r"^clean\['k'\] must have shape \[2, 3, 4\], got \[3, 4\]"):
            robust_signature({"k": np.ones((2, 3, 4), np.float32)}, alone, params)


class TestShallowLayers:
    params = {
        "params": {
            **{f"Conv_{n}": {"kernel": np.zeros((3, 3, 1, 1)), "bias": np.zeros(1)} for n in (0, 1, 2, 10)},
            "BatchNorm_0": {"scale": np.zeros(1)},
            "Dense_0": {"kernel": np.zeros((1, 1))},
        },
    }

    @pytest.mark.parametrize(
        ("keep", "order", "chosen"),
        [
            (0, None, set()),
            (3, None, {"Conv_0", "Conv_1", "Conv_2"}),
            (4, None, {"Conv_0", "Conv_1", "Conv_2", "Conv_10"}),
            (9, None, {"Conv_0", "Conv_1", "Conv_2", "Conv_10", "Dense_0"}),
            (1, ["params/Dense_0", "params/Conv_2"], {"Dense_0"}),
        ],
    )
    def test_names_are_taken_in_their_natural_order_or_the_one_given(self, keep, order, chosen):
        mask = shallow_layers(self.params, keep=keep, order=order)["params"]
        assert {name for name, layer in mask.items() if all(layer.values())} == chosen
        assert {name for name, layer in mask.items() if any(layer.values())} == chosen

    def test_bad_arguments_are_named(self):
        with pytest.raises(ValueError, match=r"keep must be in \[0, inf\), got -1"):
            shallow_layers(self.params, keep=-1)
        with pytest.raises(ValueError, match=r"order must name layers.*got \['params/BatchNorm_0'\]"):
            shallow_layers(self.params, order=["params/Conv_0", "params/BatchNorm_0"])


def test_normalizations_become_the_mean_of_the_robust_models():
    params, models = model(0), model(1, batch=(4,))
    mask = jax.tree.map(lambda _: False, params) | {"Conv_0": {"kernel": False, "bias": True}}
    replaced = replace_by_mean(params, models, mask=mask)
    np.testing.assert_allclose(replaced["Conv_0"]["bias"], models["Conv_0"]["bias"].mean(0), rtol=1e-6)
    np.testing.assert_array_equal(replaced["Conv_0"]["kernel"], params["Conv_0"]["kernel"])
    np.testing.assert_array_equal(replaced["count"], params["count"])


class TestQuantization:
    v = np.random.default_rng(0).normal(size=(40, 25)).astype(np.float32)

    @pytest.mark.parametrize("levels", [2, 16, 2**16])
    def test_linear_errors_are_at_most_half_a_step(self, levels):
        quantized = np.asarray(quantize_signature(self.v, levels=levels))
        assert np.abs(quantized - self.v).max() <= (np.ptp(self.v) / (2 * (levels - 1))) * (1 + 1e-4) + 1e-6
        assert len(np.unique(quantized)) <= levels
        np.testing.assert_allclose([quantized.min(), quantized.max()], [self.v.min(), self.v.max()], rtol=1e-5)

    @pytest.mark.parametrize("method", ["linear", "log", "tanh"])
    def test_few_values_remain_and_many_levels_change_nothing(self, method):
        few = quantize_signature({"a": self.v}, levels=16, method=method)["a"]
        assert len(np.unique(few)) <= 16
        np.testing.assert_allclose(quantize_signature(self.v, levels=10**6, method=method), self.v, atol=2e-4)

    def test_log_keeps_signs_and_zeros_and_relative_precision(self):
        v = np.float32([0.0, -0.25, 0.3, 8.0])
        # From 2^-2 to 2^3 in 5 steps of a factor 2: ten levels, five for each sign, have steps of 2^(5/4).
        quantized = quantize_signature(v, levels=10, method="log")
        np.testing.assert_allclose(quantized, [0.0, -0.25, 0.25, 8.0], rtol=1e-5)

    def test_tanh_by_hand(self):
        v = np.float32([-0.5, 0.1, 0.5])
        # Three levels of tanh: its ends and the middle, which is zero.
        np.testing.assert_allclose(quantize_signature(v, levels=3, method="tanh"), [-0.5, 0, 0.5], atol=1e-6)
        assert np.isfinite(quantize_signature(np.float32([-30.0, 0.0, 30.0]), method="tanh")).all()

    @pytest.mark.parametrize("method", ["linear", "log", "tanh"])
    def test_constants_and_empty_leaves_are_no_error(self, method):
        tree = {"zero": np.zeros(3, np.float32), "same": np.full(3, -0.7, np.float32), "none": np.zeros(0, np.float32)}
        assert_close(quantize_signature(tree, method=method), tree, rtol=1e-5)

    def test_bad_levels_are_named(self):
        with pytest.raises(ValueError, match=r"levels must be in \[2, inf\), got 1"):
            quantize_signature(self.v, levels=1)


class TestExtrapolate:
    def test_zero_is_the_pretrained_model_and_minus_one_the_finetuned(self):
        pretrained, finetuned = model(0), model(1)
        assert_close(floating(extrapolate(pretrained, finetuned, alpha=0.0)), floating(pretrained), rtol=0)
        assert_close(
            floating(extrapolate(pretrained, finetuned, alpha=-1.0)), floating(finetuned), rtol=1e-5, atol=1e-6
        )

    def test_it_steps_away_from_the_finetuned_model(self):
        moved = extrapolate({"w": np.float32([1.0])}, {"w": np.float32([3.0])}, alpha=0.25)
        np.testing.assert_allclose(moved["w"], [0.5])

    def test_what_only_the_finetuned_model_has_is_kept(self):
        pretrained, adapter = model(0), {"kernel": np.ones((2, 2), np.float32)}
        finetuned = {**model(1), "adapter": adapter}
        for tree in (extrapolate(pretrained, finetuned), *decouple_inject(jax.random.key(0), pretrained, finetuned)):
            assert jax.tree.structure(tree) == jax.tree.structure(finetuned)
            np.testing.assert_array_equal(tree["adapter"]["kernel"], 1.0)
            np.testing.assert_array_equal(tree["count"], finetuned["count"])

    def test_models_with_nothing_in_common_are_refused(self):
        start, wrapped = {"w": np.zeros(2, np.float32)}, {"params": {"w": np.ones(2, np.float32)}}
        for call in (extrapolate, functools.partial(decouple_inject, jax.random.key(0))):
            with pytest.raises(ValueError, match="must share floating leaves, got paths such as w and params/w"):
                call(start, wrapped)
            with pytest.raises(ValueError, match=r"^finetuned\['params/w'\] must have shape \[2\], got \[2, 1\]"):
                call(wrapped, {"params": {"w": np.ones((2, 1), np.float32)}})


class TestDare:
    def test_it_keeps_the_mean_and_the_stated_share(self):
        delta = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
        samples = np.asarray(jax.vmap(lambda key: dare(key, delta))(jax.random.split(jax.random.key(0), 20000)))
        deviation = np.abs(delta) * np.sqrt(0.7 / 0.3 / 20000)
        assert (np.abs(samples.mean(0) - delta) <= 4.5 * deviation + 1e-6).all()
        share = np.mean(samples != 0)
        assert abs(share - 0.3) <= 3 * np.sqrt(0.21 / samples.size)
        np.testing.assert_allclose(
            samples[samples != 0], np.broadcast_to(delta / 0.3, samples.shape)[samples != 0], 1e-6
        )

    def test_without_rescaling_entries_stay_or_go(self):
        delta = np.ones((50, 50), np.float32)
        assert set(np.unique(dare(jax.random.key(1), delta, drop=0.5, rescale=False))) == {0.0, 1.0}
        np.testing.assert_array_equal(dare(jax.random.key(1), delta, drop=0.0), delta)

    def test_vectors_are_not_dropped_and_leaves_differ(self):
        delta = {
            "bias": np.ones(1000, np.float32),
            "a": np.ones((20, 20), np.float32),
            "b": np.ones((20, 20), np.float32),
        }
        sparse = dare(jax.random.key(2), delta)
        np.testing.assert_array_equal(sparse["bias"], 1.0)
        assert not np.array_equal(sparse["a"], sparse["b"])

    @pytest.mark.parametrize("value", [-0.1, 1.0])
    def test_bad_shares_are_named(self, value):
        with pytest.raises(ValueError, match=rf"drop must be in \[0, 1\), got {value}"):
            dare(jax.random.key(0), np.ones((2, 2), np.float32), drop=value)


class TestDecouple:
    def test_without_dropping_both_models_have_closed_forms(self):
        pretrained, finetuned = model(0), model(1)
        dyn, con = decouple_inject(jax.random.key(0), pretrained, finetuned, drop=0.0, con_alpha=0.9)
        wanted = jax.tree.map(lambda p, f: p - 0.75 * 0.25 * (f - p), floating(pretrained), floating(finetuned))
        assert_close(floating(dyn), wanted, rtol=1e-5, atol=1e-6)
        wanted = jax.tree.map(lambda p, f: 0.9 * f + 0.25 * (f - p), floating(pretrained), floating(finetuned))
        assert_close(floating(con), wanted, rtol=1e-5, atol=1e-6)

    def test_float64_is_not_rounded_on_the_way(self):
        pretrained, finetuned = (floating(model(seed, np.float64)) for seed in (0, 1))
        with jax.enable_x64(True):
            _, con = decouple_inject(jax.random.key(0), pretrained, finetuned, drop=0.0)
        wanted = jax.tree.map(lambda p, f: f + 0.25 * (f - p), pretrained, finetuned)
        assert_close(con, wanted, rtol=1e-14, atol=1e-14)

    def test_entries_are_those_of_the_starts_or_moved_by_the_rescaled_change(self):
        pretrained, finetuned = model(0), model(1)
        dyn, con = decouple_inject(jax.random.key(0), pretrained, finetuned)
        start, end = pretrained["Dense_0"]["kernel"], finetuned["Dense_0"]["kernel"]
        for moved, base, step in (
            (dyn["Dense_0"]["kernel"], start, -0.75 * 0.25 / 0.3),
            (con["Dense_0"]["kernel"], end, 0.25 / 0.3),
        ):
            at_base = np.isclose(moved, base, rtol=1e-6)
            np.testing.assert_allclose(np.asarray(moved)[~at_base], (base + step * (end - start))[~at_base], rtol=1e-4)
            assert 0.5 < at_base.mean() < 0.9
