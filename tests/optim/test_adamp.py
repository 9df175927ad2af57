"""AdamP and SGDP against a NumPy transcription of the paper's algorithms, geometry and optax's AdamW and SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreg.optim import adamp, project_radial, radial_projection, sgdp


def reference_projection(w, g, u, *, delta=0.1, wd_ratio=0.1, eps=1e-8):
    """The paper's projection in float64, output channels last: first by channel, then as a whole."""
    if w.ndim < 2:
        return u, 1.0
    for columns in (w.shape[-1], 1):
        rows_w, rows_g, rows_u = (x.reshape(-1, columns).T.astype(np.float64) for x in (w, g, u))
        norms = np.linalg.norm(rows_w, axis=1) * np.linalg.norm(rows_g, axis=1)
        cosine = np.abs((rows_w * rows_g).sum(1)) / norms
        if cosine.max() < delta / np.sqrt(rows_w.shape[1]):
            unit = rows_w / (np.linalg.norm(rows_w, axis=1, keepdims=True) + eps)
            projected = rows_u - unit * (unit * rows_u).sum(1, keepdims=True)
            return projected.T.reshape(w.shape), wd_ratio
    return u, 1.0


def reference_adamp(w, gradients, *, lr, b1, b2, eps, weight_decay, **options):
    w, m, v = w.astype(np.float64), 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        u, factor = reference_projection(w, g, u, eps=eps, **options)
        w = w * (1 - lr * weight_decay * factor) - lr * u
        yield w


def reference_sgdp(w, gradients, *, lr, momentum, dampening, nesterov, weight_decay, **options):
    w, m = w.astype(np.float64), 0.0
    for g in gradients:
        m = momentum * m + (1 - dampening) * g
        u, factor = reference_projection(w, g, g + momentum * m if nesterov else m, **options)
        w = w * (1 - lr * weight_decay * factor / (1 - momentum)) - lr * u
        yield w


def orthogonal(g, w, axes):
    """Takes out of ``g`` its part along ``w``, summing over ``axes``."""
    return g - w * (g * w).sum(axes, keepdims=True) / (w * w).sum(axes, keepdims=True)


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# What the gradient says, and which of the two views then passes.
GRADIENTS = {
    "by channel": lambda w, g: orthogonal(g, w, tuple(range(w.ndim - 1))),
    "as a whole": lambda w, g: orthogonal(g + 3 * w * np.linspace(-1, 1, w.shape[-1], dtype=np.float32), w, None),
    "not at all": lambda w, g: g + w,
}
SHAPES = {"matrix": (6, 4), "kernel": (3, 2, 4, 5), "cube": (3, 5, 2)}


class TestProjection:
    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    @pytest.mark.parametrize("kind", GRADIENTS)
    def test_follows_the_paper(self, kind, shape):
        w, u = normal(0, shape), normal(1, shape)
        g = GRADIENTS[kind](w, normal(2, shape))
        expected, factor = reference_projection(w, g, u)
        assert (factor == 1.0) == (kind == "not at all")
        ours, our_factor = project_radial(w, g, u)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(our_factor, factor, rtol=1e-7)

    def test_projected_directions_are_orthogonal_to_the_weight(self):
        w, u = normal(0, (30, 7)), normal(1, (30, 7))
        by_channel, _ = project_radial(w, GRADIENTS["by channel"](w, u), u)
        np.testing.assert_allclose((by_channel * w).sum(0), np.zeros(7), atol=1e-5)
        whole, _ = project_radial(w, GRADIENTS["as a whole"](w, u), u)
        np.testing.assert_allclose((whole * w).sum(), 0.0, atol=2e-5)
        assert np.abs((whole * w).sum(0)).min() > 0.1

    def test_the_worst_channel_decides_for_all(self):
        w, u = normal(0, (30, 7)), normal(1, (30, 7))
        g = GRADIENTS["by channel"](w, normal(2, (30, 7)))
        g[:, 3] += 10 * w[:, 3]
        ours, factor = project_radial(w, g, u)
        np.testing.assert_array_equal(ours, u)
        assert factor == 1.0

    @pytest.mark.parametrize(("share", "projected"), [(0.099, True), (0.101, False)])
    def test_threshold_is_delta_by_the_root_of_the_length(self, share, projected):
        """A cosine of share / sqrt(16) by construction, the same in each of two channels and hence in all."""
        cosine = share / 4
        w, g = np.zeros((16, 2), np.float32), np.zeros((16, 2), np.float32)
        w[0], g[0], g[1] = 2.0, cosine, np.sqrt(1 - cosine**2)
        _, factor = project_radial(w, g, g, wd_ratio=0.3)
        assert float(factor) == pytest.approx(0.3 if projected else 1.0)

    def test_channels_may_lie_along_another_axis(self):
        w, u = normal(0, (5, 3, 4)), normal(1, (5, 3, 4))
        g = orthogonal(normal(2, (5, 3, 4)), w, (1, 2))
        ours, _ = project_radial(w, g, u, channel_axis=0)
        np.testing.assert_allclose(ours, orthogonal(u, w, (1, 2)), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("shape", [(), (9,), (0, 3)])
    def test_vectors_and_empty_leaves_are_left_alone(self, shape):
        u = normal(1, shape)
        ours, factor = project_radial(jnp.ones(shape), jnp.zeros(shape), u)
        np.testing.assert_array_equal(ours, u)
        assert factor == 1.0

    @pytest.mark.parametrize("eps", [0.0, 1e-8])
    def test_zero_weights_and_gradients_are_harmless(self, eps):
        u = normal(1, (4, 3))
        np.testing.assert_array_equal(project_radial(jnp.zeros([4, 3]), jnp.ones([4, 3]), u, eps=eps)[0], u)
        dead = jnp.ones([4, 3]).at[:, 1].set(0.0)
        np.testing.assert_allclose(
            project_radial(dead, jnp.zeros([4, 3]), u, eps=eps)[0],
            u - np.array([1, 0, 1]) * u.mean(0),
            rtol=1e-5,
            atol=1e-6,
        )


def weights_along(optimizer, w, gradients):
    """Weights after each step; gradients are functions of the weight and the step."""
    state, update = optimizer.init(w), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, w)
        w = optax.apply_updates(w, updates)
        yield w


def mixed_gradients(w, steps=12):
    """Some are orthogonal to the initial weight by channel, some as a whole, some not; weights hardly move."""
    kinds = list(GRADIENTS.values())
    return [kinds[step % 3](w, normal(10 + step, w.shape)) for step in range(steps)]


@pytest.mark.parametrize("shape", [*SHAPES.values(), (7,)], ids=[*SHAPES, "vector"])
def test_adamp_follows_the_paper(shape):
    settings = dict(b1=0.8, b2=0.95, eps=1e-8, weight_decay=0.7, delta=0.2, wd_ratio=0.3)
    w = normal(0, shape)
    gradients = mixed_gradients(w)
    ours = list(weights_along(adamp(1e-3, **settings), w, gradients))
    np.testing.assert_allclose(ours, list(reference_adamp(w, gradients, lr=1e-3, **settings)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES.values(), (7,)], ids=[*SHAPES, "vector"])
def test_sgdp_follows_the_paper(shape, nesterov):
    settings = dict(momentum=0.8, dampening=0.3, nesterov=nesterov, weight_decay=0.1, delta=0.2, wd_ratio=0.3, eps=1e-8)
    w = normal(0, shape)
    gradients = mixed_gradients(w)
    ours = list(weights_along(sgdp(1e-3, **settings), w, gradients))
    np.testing.assert_allclose(ours, list(reference_sgdp(w, gradients, lr=1e-3, **settings)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_projection_they_are_adamw_and_sgd(nesterov):
    w = normal(0, (6, 4))
    gradients = mixed_gradients(w)
    pairs = [
        (
            adamp(0.01, delta=0.0, weight_decay=0.1, nesterov=nesterov),
            optax.adamw(0.01, weight_decay=0.1, nesterov=nesterov),
        ),
        (sgdp(0.01, delta=0.0, nesterov=nesterov), optax.sgd(0.01, momentum=0.9, nesterov=nesterov)),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(
            list(weights_along(ours, w, gradients)), list(weights_along(theirs, w, gradients)), rtol=2e-6, atol=1e-6
        )


class TestScaleInvariantWeights:
    """Theorem: where the update is orthogonal to the weight, the norm grows by Pythagoras and by nothing else."""

    @staticmethod
    def loss(w):
        """Depends on the direction of every column only."""
        unit = w / jnp.linalg.norm(w, axis=0)
        return jnp.sum(jnp.square(unit - jnp.linspace(-1.0, 1.0, w.size).reshape(w.shape)))

    def norms(self, optimizer, steps=40, lr=0.05):
        w = jnp.asarray(normal(0, (6, 4)))
        state, update = optimizer.init(w), jax.jit(optimizer.update)
        for _ in range(steps):
            updates, state = update(jax.grad(self.loss)(w), state, w)
            new = optax.apply_updates(w, updates)
            yield tuple(np.sum(np.square(np.asarray(x, np.float64))) for x in (w, updates, new))
            w = new

    @pytest.mark.parametrize("optimizer", [sgdp(0.05), adamp(0.05)], ids=["sgdp", "adamp"])
    def test_norms_grow_by_the_square_of_the_step(self, optimizer):
        for before, step, after in self.norms(optimizer):
            np.testing.assert_allclose(after, before + step, rtol=1e-6)

    def test_momentum_makes_them_grow_faster(self):
        *_, (_, _, plain) = self.norms(optax.sgd(0.05, momentum=0.9))
        *_, (_, _, projected) = self.norms(sgdp(0.05))
        assert plain > 1.2 * projected


def test_any_direction_can_be_projected_and_its_state_is_float32():
    w = {"kernel": jnp.asarray(normal(0, (6, 4)), jnp.bfloat16)}
    g = {"kernel": jnp.asarray(GRADIENTS["by channel"](np.asarray(w["kernel"], np.float32), normal(1, (6, 4))))}
    g = jax.tree.map(lambda x: x.astype(jnp.bfloat16), g)
    optimizer = radial_projection(optax.scale_by_adam())
    updates, state = optimizer.update(g, optimizer.init(w), w)
    assert updates["kernel"].dtype == jnp.bfloat16
    assert state.inner_state.mu["kernel"].dtype == state.inner_state.nu["kernel"].dtype == jnp.float32
    lion = radial_projection(optax.scale_by_lion(), delta=1.0)
    updates, _ = lion.update(g, lion.init(w), w)
    inner = np.sum(np.asarray(updates["kernel"], np.float64) * np.asarray(w["kernel"], np.float64), axis=0)
    np.testing.assert_allclose(inner, np.zeros(4), atol=0.05)


def test_masked_leaves_do_not_decay_but_are_projected():
    w = {"a": normal(0, (6, 4)), "b": normal(0, (6, 4))}
    g = jax.tree.map(lambda x: GRADIENTS["by channel"](x, normal(1, (6, 4))), w)
    settings = dict(weight_decay=0.5, momentum=0.0, wd_ratio=0.25)
    optimizer = sgdp(1.0, mask=lambda params: {"a": True, "b": False}, **settings)
    updates, _ = optimizer.update(g, optimizer.init(w), w)
    np.testing.assert_allclose(updates["b"], -g["b"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(updates["a"], -g["a"] - 0.125 * w["a"], rtol=1e-4, atol=1e-6)


def test_weight_decay_may_be_a_schedule():
    w, g = jnp.array([2.0, -4.0]), jnp.zeros(2)
    optimizer = radial_projection(optax.identity(), weight_decay=lambda count: 0.1 * (count + 1))
    first, state = optimizer.update(g, optimizer.init(w), w)
    second, _ = optimizer.update(g, state, w)
    np.testing.assert_allclose(first, 0.1 * w, rtol=1e-6)
    np.testing.assert_allclose(second, 0.2 * w, rtol=1e-6)


@pytest.mark.parametrize("optimizer", [adamp(0.1), sgdp(0.1)], ids=["adamp", "sgdp"])
def test_missing_parameters_are_named(optimizer):
    w = jnp.ones([2, 2])
    with pytest.raises(ValueError, match=r"needs the current parameters: call update\(updates, state, params\)"):
        optimizer.update(w, optimizer.init(w))


@pytest.mark.parametrize(
    ("make", "name", "value", "interval"),
    [
        (adamp, "b1", 1.0, "[0, 1)"),
        (adamp, "b2", -0.1, "[0, 1)"),
        (adamp, "eps", -1e-8, "[0, inf)"),
        (adamp, "weight_decay", -0.1, "[0, inf)"),
        (adamp, "delta", -0.1, "[0, inf)"),
        (adamp, "wd_ratio", 1.1, "[0, 1]"),
        (sgdp, "momentum", 1.0, "[0, 1)"),
        (sgdp, "dampening", 1.5, "[0, 1]"),
        (sgdp, "weight_decay", -0.1, "[0, inf)"),
        (sgdp, "delta", -0.1, "[0, inf)"),
        (sgdp, "wd_ratio", -0.1, "[0, 1]"),
        (sgdp, "eps", -1.0, "[0, inf)"),
    ],
)
def test_bad_hyperparameters_are_named(make, name, value, interval):
    with pytest.raises(ValueError, match="must be in") as error:
        make(1e-3, **{name: value})
    assert str(error.value) == f"{name} must be in {interval}, got {value}"
