"""PowerNorm against closed forms, a NumPy transcription of many steps, and the gradient of PN-V."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import TypeCheckError

from jaxreg.layers import PowerNorm, group_scaling, keep_backward_stats, power_norm, power_norm_v, update_psi2

RNG = np.random.default_rng(0)
X, DY = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32) * np.array([1.0, 2.0, 0.5], np.float32)
GAMMA, BETA = np.array([0.5, -1.0, 2.0], np.float32), np.array([0.1, 0.0, -0.3], np.float32)
PSI2, NU = np.array([0.7, 3.0, 0.4], np.float32), np.array([0.2, -0.1, 0.3], np.float32)
EPS = 1e-5
MASK = np.arange(6) < np.array([[6], [4], [1], [5]])


def pull_back(x=X, gamma=GAMMA, nu=NU, dy=DY, **options):
    """y, the batch's mean, and the cotangents of x, gamma, beta, psi2 and nu."""
    arguments = (x, gamma, BETA, PSI2, nu)
    (y, batch_psi2), pull = jax.vjp(lambda *a: power_norm(*a, **options), *map(jnp.asarray, arguments))
    return y, batch_psi2, *pull((jnp.asarray(dy), jnp.ones_like(batch_psi2)))


def mean(values, mask=None):
    return np.asarray(values, np.float64)[np.ones(values.shape[:-1], bool) if mask is None else mask].mean(0)


@pytest.mark.parametrize("use_running", [False, True, jnp.array(False), jnp.array(True)], ids=str)
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "padded"])
def test_forward_and_backward_equations(use_running, mask):
    y, batch_psi2, dx, dgamma, dbeta, dpsi2, new_nu = pull_back(use_running=use_running, mask=mask, alpha_bwd=0.8)
    s = PSI2 if bool(use_running) else mean(X**2, mask)
    z, g = X / np.sqrt(s + EPS), GAMMA * DY
    correction = NU * z if mask is None else NU * z * mask[..., None]
    np.testing.assert_allclose(batch_psi2, mean(X**2, mask), rtol=1e-5)
    np.testing.assert_allclose(y, GAMMA * z + BETA, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, (g - correction) / np.sqrt(s + EPS), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dgamma, (DY * z).sum((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(dbeta, DY.sum((0, 1)), rtol=1e-4)
    np.testing.assert_array_equal(dpsi2, np.zeros(3))
    quadratic, product = mean(z**2, mask), mean(g * z, mask)
    np.testing.assert_allclose(new_nu, NU * (1 - 0.2 * quadratic) + 0.2 * product, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "padded"])
def test_with_the_batch_statistics_the_gradient_is_that_of_pn_v(mask):
    """Also with padding, if padding gets no cotangent."""
    dy = DY if mask is None else DY * mask[..., None]
    z = X / np.sqrt(mean(X**2, mask) + EPS)
    nu = mean(GAMMA * dy * z, mask).astype(np.float32)
    y, _, dx, dgamma, dbeta, _, _ = pull_back(nu=nu, dy=dy, use_running=False, mask=mask)
    expected, pull = jax.vjp(lambda *a: power_norm_v(*a, mask=mask), X, GAMMA, BETA)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip((dx, dgamma, dbeta), pull(jnp.asarray(dy)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6)


def test_padding_changes_nothing():
    dy = DY * MASK[..., None]
    options = dict(dy=dy, use_running=False, mask=MASK)
    ours, other = pull_back(**options), pull_back(x=np.where(MASK[..., None], X, 1e3).astype(np.float32), **options)
    np.testing.assert_array_equal(ours[0][MASK], other[0][MASK])
    np.testing.assert_array_equal(ours[2], other[2])
    assert not np.asarray(ours[2])[~MASK].any()
    np.testing.assert_array_equal(ours[1], other[1])
    np.testing.assert_allclose(ours[6], other[6], rtol=1e-6)


@pytest.mark.parametrize(("scale", "converges"), [(1.0, True), (3.0, True), (4.4, True), (4.55, False)])
def test_nu_settles_where_the_gradient_is_orthogonal_unless_inputs_are_too_large(scale, converges):
    """nu is multiplied by 1 - 0.1 mean(z^2) on each step, so it converges just if mean(z^2) < 20."""
    x, psi2 = jnp.asarray(scale * X / np.sqrt(mean(X**2))), jnp.ones(3) - EPS

    def step(nu, _):
        pull = jax.vjp(lambda x, nu: power_norm(x, GAMMA, BETA, psi2, nu, use_running=True)[0], x, nu)[1]
        dx, nu = pull(jnp.asarray(DY))
        return nu, dx

    nu, dx = jax.lax.scan(step, jnp.zeros(3), length=400)
    if converges:
        np.testing.assert_allclose(nu, mean(GAMMA * DY * np.asarray(x)) / scale**2, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(mean(np.asarray(dx[-1] * x)), np.zeros(3), atol=1e-3)
    else:
        assert (np.abs(nu) > 1e3).all()


class TestRunningMean:
    def test_it_is_first_the_mean_then_exponential(self):
        """The two assignments of the paper, one after the other."""
        batches = RNG.uniform(0.5, 2, (8, 2))
        psi2, expected = jnp.ones(2), np.ones(2)
        for k, batch in enumerate(batches, start=1):
            if k < 5:
                expected = expected * (k - 1) / k + batch / k
            expected = 0.9 * expected + 0.1 * batch
            psi2 = update_psi2(psi2, jnp.asarray(batch, jnp.float32), k, warmup_steps=5)
            np.testing.assert_allclose(psi2, expected, rtol=1e-5)

    def test_without_memory_the_same_batch_again_is_pn_v(self):
        layer = PowerNorm(warmup_steps=0, groups=0, alpha_fwd=0.0, use_running_average=False)
        variables = layer.init(jax.random.key(0), X)
        for _ in range(2):
            y, new = layer.apply(variables, X, mutable=["batch_stats"])
            variables = {**variables, **new}
        np.testing.assert_allclose(y, power_norm_v(X, jnp.ones(3), jnp.zeros(3)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(y, X / np.sqrt(mean(X**2) + EPS), rtol=1e-4, atol=1e-6)


class TestGroupScaling:
    x = RNG.normal(size=(5, 6)).astype(np.float32)

    @pytest.mark.parametrize("groups", [1, 2, 6])
    def test_every_group_of_a_token_has_quadratic_mean_one(self, groups):
        parts = self.x.reshape(5, groups, -1)
        expected = (parts / np.sqrt((parts**2).mean(-1, keepdims=True) + EPS)).reshape(5, 6)
        np.testing.assert_allclose(group_scaling(self.x, groups), expected, rtol=1e-5)

    @pytest.mark.parametrize("groups", [0, 4, 7])
    def test_groups_must_divide_the_channels(self, groups):
        with pytest.raises(ValueError, match=f"groups must divide the 6 channels, got {groups}"):
            group_scaling(self.x, groups)


class Reference:
    """The layer in float64 NumPy, one step at a time."""

    def __init__(self, channels, warmup, alpha):
        self.psi2, self.nu, self.k = np.ones(channels), np.zeros(channels), 0
        self.warmup, self.alpha = warmup, alpha

    def step(self, x, gamma, beta, dy):
        self.k += 1
        n = x.shape[0] * x.shape[1]
        batch = (x**2).sum((0, 1)) / n
        s = batch if self.k <= self.warmup else self.psi2
        z = x / np.sqrt(s + EPS)
        y = gamma * z + beta
        if self.k < self.warmup:
            self.psi2 = self.psi2 * (self.k - 1) / self.k + batch / self.k
        self.psi2 = self.alpha * self.psi2 + (1 - self.alpha) * batch
        g = gamma * dy(y)
        corrected = g - self.nu * z
        self.nu = self.nu + (1 - self.alpha) * (corrected * z).sum((0, 1)) / n
        return y, (dy(y) * z).sum((0, 1)), dy(y).sum((0, 1))


def test_training_follows_the_reference_through_the_warmup_and_after():
    """Ten steps of SGD on scale and shift, on fresh batches, nu kept by the optimizer wrapper."""
    layer = PowerNorm(warmup_steps=4, groups=0, use_running_average=False)
    optimizer = keep_backward_stats(optax.sgd(0.02))
    variables = layer.init(jax.random.key(0), X)
    np.testing.assert_array_equal(variables["batch_stats"]["count"], 0)
    stats = variables.pop("batch_stats")
    trained, state = variables, optimizer.init(variables)

    @jax.jit
    def step(trained, stats, state, x):
        def loss(trained):
            y, new = layer.apply({**trained, "batch_stats": stats}, x, mutable=["batch_stats"])
            return 0.5 * jnp.sum((y - 1) ** 2), new["batch_stats"]

        gradients, stats = jax.grad(loss, has_aux=True)(trained)
        updates, state = optimizer.update(gradients, state, trained)
        return optax.apply_updates(trained, updates), stats, state

    reference, gamma, beta = Reference(3, warmup=4, alpha=0.9), np.ones(3), np.zeros(3)
    for n in range(10):
        x = (X * (1 + 0.3 * np.sin(n))).astype(np.float32)
        trained, stats, state = step(trained, stats, state, x)
        _, dgamma, dbeta = reference.step(x.astype(np.float64), gamma, beta, lambda y: y - 1)
        gamma, beta = gamma - 0.02 * dgamma, beta - 0.02 * dbeta
        np.testing.assert_allclose(stats["psi2"], reference.psi2, rtol=1e-5)
        np.testing.assert_allclose(trained["backward_stats"]["nu"], reference.nu, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(trained["params"]["scale"], gamma, rtol=1e-4, atol=1e-5)
    assert int(stats["count"]) == 10

    evaluated = layer.clone(use_running_average=True).apply({**trained, "batch_stats": stats}, X)
    np.testing.assert_allclose(evaluated, gamma * X / np.sqrt(reference.psi2 + EPS) + beta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_a_batch_of_padding_leaves_the_statistics(warmup_steps):
    layer = PowerNorm(warmup_steps=warmup_steps, use_running_average=False)
    variables = layer.init(jax.random.key(0), X)
    _, new = layer.apply(variables, X, mutable=["batch_stats"])
    variables = {**variables, **new}

    def outputs(nu):
        mask = jnp.zeros(X.shape[:-1], bool)
        y, new = layer.apply({**variables, "backward_stats": nu}, X, mask=mask, mutable=["batch_stats"])
        return y.sum(), new["batch_stats"]

    nu, stats = jax.grad(outputs, has_aux=True)({"nu": jnp.asarray(NU)})
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    np.testing.assert_array_equal(nu["nu"], NU)


def test_the_statistics_meet_neither_clipping_nor_moments():
    """A huge nu leaves the clipped gradient as it is, and is taken over as it is."""
    optimizer = keep_backward_stats(optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.scale(-1.0)))
    trained = {"params": {"w": jnp.array([1.0, 2.0])}, "backward_stats": {"a": {"nu": jnp.array([0.5])}}}
    state = optimizer.init(trained)
    gradients = {"params": {"w": jnp.array([0.3, 0.4])}, "backward_stats": {"a": {"nu": jnp.array([1e6])}}}
    updates, state = optimizer.update(gradients, state, trained)
    after = optax.apply_updates(trained, updates)
    np.testing.assert_allclose(after["params"]["w"], [0.7, 1.6], rtol=1e-6)
    np.testing.assert_allclose(after["backward_stats"]["a"]["nu"], [1e6])
    assert all(leaf.shape == (2,) for leaf in jax.tree.leaves(state))


def test_seeds_can_be_vmapped():
    def one(x):
        return jax.grad(lambda nu: power_norm(x, GAMMA, BETA, PSI2, nu, use_running=False)[0].sum())(jnp.asarray(NU))

    stacked = jnp.stack([X, 2 * X])
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(stacked), [one(x) for x in stacked], rtol=1e-5)


def test_half_precision_tokens_keep_their_dtype_and_float32_statistics():
    x = X.astype(jnp.bfloat16)
    y, batch_psi2, dx, *_, new_nu = pull_back(x=x, dy=DY.astype(jnp.bfloat16), use_running=False)
    assert (y.dtype, dx.dtype, batch_psi2.dtype, new_nu.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(batch_psi2, mean(np.asarray(x, np.float32) ** 2), rtol=1e-5)
    assert power_norm_v(x, GAMMA, BETA).dtype == group_scaling(x).dtype == jnp.bfloat16


@pytest.mark.parametrize(("name", "value", "interval"), [("alpha_bwd", 1.0, "[0, 1)"), ("epsilon", 0.0, "(0, inf)")])
def test_bad_hyperparameters_are_named(name, value, interval):
    with pytest.raises(ValueError, match="must be in") as error:
        pull_back(use_running=False, **{name: value})
    assert str(error.value) == f"{name} must be in {interval}, got {value}"


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"warmup_steps must be in \[0, inf\), got -1"):
        update_psi2(PSI2, PSI2, 1, warmup_steps=-1)
    with pytest.raises(ValueError, match=r"alpha_fwd must be in \[0, 1\), got 1.0"):
        update_psi2(PSI2, PSI2, 1, warmup_steps=1, alpha_fwd=1.0)
    with pytest.raises(TypeCheckError, match="mask"):
        pull_back(use_running=False, mask=MASK[:3])
