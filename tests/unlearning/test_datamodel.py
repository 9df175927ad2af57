"""Datamodels against exact solutions and scikit-learn, unlearning against retraining."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.linear_model

from jaxreg.unlearning import dmm_unlearn, fit_datamodel, leave_out_ridge, matching_loss, predict_oracle

RNG = np.random.default_rng(0)
MASKS = (RNG.random((60, 12)) < 0.5).astype(np.float32)


class TestFitDatamodel:
    def test_additive_outputs_are_recovered_exactly(self):
        weights, bias = RNG.normal(size=(12, 3, 2)), RNG.normal(size=(3, 2))
        outputs = np.tensordot(MASKS, weights, 1) + bias
        ours, our_bias = jax.jit(fit_datamodel)(MASKS.astype(bool), outputs.astype(np.float32), l2=0.0)
        np.testing.assert_allclose(ours, weights, atol=1e-5)
        np.testing.assert_allclose(our_bias, bias, atol=1e-5)

    @pytest.mark.parametrize("models", [8, 60], ids=["fewer models than examples", "more"])
    def test_ridge_equals_scikit_learn(self, models):
        outputs = RNG.normal(size=(models, 4)).astype(np.float32)
        theirs = sklearn.linear_model.Ridge(alpha=models * 0.03).fit(MASKS[:models], outputs)
        ours, bias = fit_datamodel(MASKS[:models], outputs, l2=0.03)
        np.testing.assert_allclose(ours, theirs.coef_.T, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(bias, theirs.intercept_, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize(("models", "l2"), [(60, 0.0), (60, 0.02), (8, 0.02)])  # of few models l1 alone takes any
    def test_lasso_equals_scikit_learn(self, models, l2):
        outputs = RNG.normal(size=models).astype(np.float32)
        l1 = 0.03
        net = sklearn.linear_model.ElasticNet(alpha=l1 + l2, l1_ratio=l1 / (l1 + l2), tol=1e-7, max_iter=100_000)
        theirs = net.fit(MASKS[:models], outputs)
        ours, bias = fit_datamodel(MASKS[:models], outputs, l2=max(l2, 1e-7), l1=l1, iterations=2000)
        np.testing.assert_allclose(ours, theirs.coef_, atol=2e-4)
        np.testing.assert_allclose(bias, theirs.intercept_, atol=2e-4)

    @pytest.mark.parametrize(("name", "value"), [("l2", -1.0), ("l1", -1.0), ("iterations", 0)])
    def test_bad_hyperparameters_are_named(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be in"):
            fit_datamodel(MASKS, MASKS, **{name: value})


def test_prediction_takes_the_forgotten_contributions_away():
    weights = jnp.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    predicted = predict_oracle(jnp.array([500.0, 600.0]), weights, jnp.array([True, False, True]))
    np.testing.assert_allclose(predicted, [399.0, 398.0])


def test_matching_loss_by_hand():
    logits, targets = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[3.0, 2.0], [0.0, 1.0]])
    np.testing.assert_allclose(matching_loss(logits, targets), [2.0, 0.5])
    np.testing.assert_array_equal(jax.grad(lambda t: matching_loss(logits, t).sum())(targets), 0.0)


class TestLinearRegression:
    x = RNG.normal(size=(40, 5))
    y = RNG.normal(size=(40, 2)) + x[:, :2]
    forget = np.array([3, 7, 8, 30])
    kept = np.setdiff1d(np.arange(40), forget)

    def retrained(self, l2):
        x, y = self.x[self.kept], self.y[self.kept]
        return np.linalg.solve(x.T @ x + l2 * np.eye(5), x.T @ y)

    @pytest.mark.parametrize("l2", [0.0, 0.7])
    @pytest.mark.parametrize("as_mask", [False, True])
    def test_leaving_out_equals_retraining(self, l2, as_mask):
        forget = np.isin(np.arange(40), self.forget) if as_mask else self.forget
        ours = leave_out_ridge(self.x.astype(np.float32), self.y.astype(np.float32), forget, l2=l2)
        np.testing.assert_allclose(ours, self.retrained(l2), atol=1e-5)

    def test_matching_the_exact_prediction_is_retraining_and_ascent_is_not(self):
        x, y = self.x.astype(np.float32), self.y.astype(np.float32)
        trained, retrained = np.linalg.lstsq(x, y, rcond=None)[0], self.retrained(0.0)
        predicted = x @ leave_out_ridge(x, y, self.forget)

        def apply_fn(w, x):
            return x @ w

        matched = jax.jit(
            lambda: dmm_unlearn(jnp.asarray(trained), apply_fn, x, predicted, steps=1000, optimizer=optax.sgd(0.3))
        )()
        np.testing.assert_allclose(matched, retrained, atol=1e-5)

        x_f, y_f = x[self.forget], y[self.forget]
        ascended = jnp.asarray(trained)
        distances = []
        for _ in range(200):
            ascended = ascended + 0.02 * x_f.T @ (x_f @ ascended - y_f)
            distances.append(np.linalg.norm(ascended - retrained))
        assert distances[-1] > 10 * np.linalg.norm(trained - retrained)
        assert min(distances) > 0.05 * np.linalg.norm(trained - retrained)


@pytest.mark.parametrize("models", [8, 60], ids=["fewer models than examples", "more"])
def test_nothing_is_multiplied_in_less_than_float32(models):
    def exact(masks, outputs, forget):
        weights, bias = fit_datamodel(masks, outputs, l1=0.1)
        return weights, predict_oracle(bias, weights, forget), leave_out_ridge(masks, outputs, masks[:, 0] > 0)

    program = jax.jit(exact).lower(MASKS[:models], MASKS[:models], np.zeros(12, bool)).as_text()
    assert program.count("dot_general") == program.count("precision = [HIGHEST, HIGHEST]")


def test_steps_are_needed():
    with pytest.raises(ValueError, match=r"steps must be in \[1, inf\), got 0"):
        dmm_unlearn(jnp.ones([2, 2]), lambda w, x: x @ w, jnp.ones([3, 2]), jnp.ones([3, 2]), steps=0,
                    optimizer=optax.sgd(0.1))  # fmt: skip
