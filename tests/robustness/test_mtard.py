"""Multi-teacher distillation against the method in NumPy, and the fixed points of its balances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxreg.robustness import MtardState, mtard_init, mtard_update

RNG = np.random.default_rng(0)
LOGITS = [RNG.normal(0, 2, (5, 4)).astype(np.float32) for _ in range(4)]

step = jax.jit(mtard_update, static_argnames=["temperature_range"])


def divergence(student, teacher, temperature):
    q = softmax(teacher.astype(np.float64) / temperature, -1)
    return (q * (np.log(q) - log_softmax(student.astype(np.float64), -1))).sum(-1), -(q * np.log(q)).sum(-1).mean()


def test_follows_the_method_over_several_steps():
    state, options = mtard_init(), dict(weight_lr=0.2, beta=2.0, temperature_lr=0.05)
    weight, temperatures, initial = 0.5, [1.0, 1.0], None
    for _ in range(12):
        student_nat, student_adv, teacher_nat, teacher_adv = (
            RNG.normal(0, 2, (5, 4)).astype(np.float32) for _ in "1234"
        )
        losses, state = step(state, student_nat, student_adv, teacher_nat, 0.3 * teacher_adv, **options)
        nat, entropy_nat = divergence(student_nat, teacher_nat, temperatures[0])
        adv, entropy_adv = divergence(student_adv, np.float32(0.3) * teacher_adv, temperatures[1])
        initial = initial or (nat.mean(), adv.mean())
        relative = np.square([nat.mean() / initial[0], adv.mean() / initial[1]])
        weight -= 0.2 * (weight - relative[0] / relative.sum())
        np.testing.assert_allclose(losses, weight * nat + (1 - weight) * adv, rtol=1e-4, atol=1e-5)
        change = 0.05 * np.sign(entropy_adv - entropy_nat)
        temperatures = [np.clip(temperatures[0] + change, 1, 10), np.clip(temperatures[1] - change, 1, 10)]
        expected = [weight, *temperatures, *initial]
        np.testing.assert_allclose(state[:5], expected, rtol=1e-4)
    assert temperatures[0] > 1.3
    assert int(state.step) == 12


def test_first_step_leaves_the_weights():
    _, state = step(mtard_init(), *LOGITS, weight_lr=0.5)
    np.testing.assert_allclose(state.weight_nat, 0.5, rtol=1e-6)


def test_weights_settle_at_the_share_of_the_slower_loss():
    """Losses at 0.6 and 0.2 of their first: 0.6 / (0.6 + 0.2)."""
    _, state = step(mtard_init(), *LOGITS)
    nat, adv = divergence(LOGITS[0], LOGITS[2], 1.0)[0].mean(), divergence(LOGITS[1], LOGITS[3], 1.0)[0].mean()
    state = state._replace(initial_nat=jnp.float32(nat / 0.6), initial_adv=jnp.float32(adv / 0.2))
    for _ in range(60):
        _, state = step(state, *LOGITS, weight_lr=0.2, temperature_lr=0.0)
    np.testing.assert_allclose(state.weight_nat, 0.75, rtol=1e-4)


def test_temperatures_move_until_teachers_know_as_much():
    """The surer clean teacher is softened; entropy grows with the temperature. Equal teachers stay as they are."""
    teacher = LOGITS[2]
    state = mtard_init()
    for _ in range(200):
        _, state = step(state, *LOGITS[:2], 3 * teacher, 2 * teacher, temperature_lr=0.01)
    entropies = [
        divergence(teacher, k * teacher, t)[1] for k, t in ((3, state.temperature_nat), (2, state.temperature_adv))
    ]
    np.testing.assert_allclose(*entropies, rtol=0.02)
    np.testing.assert_allclose(state.temperature_nat, 1.5, atol=0.02)
    np.testing.assert_allclose(state.temperature_adv, 1.0, atol=0.011)
    _, state = mtard_update(mtard_init(), *LOGITS[:2], teacher, teacher)
    np.testing.assert_array_equal([state.temperature_nat, state.temperature_adv], [1.0, 1.0])
    for _ in range(5):
        _, state = step(state, *LOGITS[:2], 50 * teacher, 0 * teacher, temperature_lr=1.0, temperature_range=(1.0, 3.0))
    np.testing.assert_array_equal(state.temperature_nat, 3.0)


def test_a_student_like_its_teachers_has_no_loss_and_nothing_breaks():
    state = mtard_init()
    for _ in range(2):
        losses, state = step(state, *LOGITS[:2], *LOGITS[:2])
        np.testing.assert_allclose(losses, np.zeros(5), atol=1e-6)
    assert np.isfinite(jnp.stack(state[:5])).all()
    assert 0 <= state.weight_nat <= 1


def test_gradient_is_that_of_the_weighted_losses_alone():
    """The gradient of the divergence is softmax(student) - softmax(teacher), times the weight."""
    state = MtardState(*(jnp.float32(x) for x in (0.3, 1.0, 2.0, 1.0, 1.0)), jnp.array(4))

    def total(logits, state):
        losses, state = mtard_update(state, *logits, weight_lr=0.0)
        return losses.sum() + sum(state[:5]), state

    gradients = jax.jit(jax.grad(total, has_aux=True))(LOGITS, state)[0]
    for gradient, student, teacher, weight in zip(
        gradients[:2], LOGITS[:2], (LOGITS[2], LOGITS[3] / 2), (0.3, 0.7), strict=True
    ):
        np.testing.assert_allclose(gradient, weight * (softmax(student, -1) - softmax(teacher, -1)), atol=1e-6)
    for gradient in gradients[2:]:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight_lr": 1.5}, r"weight_lr must be in \[0, 1\], got 1.5"),
        ({"beta": -1.0}, r"beta must be in \[0, inf\), got -1.0"),
        ({"temperature_lr": -1.0}, r"temperature_lr must be in \[0, inf\), got -1.0"),
        ({"temperature_range": (3, 1)}, r"temperature_range must be in ascending order, got \(3, 1\)"),
        ({"temperature_range": (0.0, 1.0)}, r"the first of temperature_range must be in \(0, inf\), got 0.0"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        mtard_update(mtard_init(), *LOGITS, **wrong)


def test_state_keeps_its_precision_and_the_range_may_be_traced():
    with jax.enable_x64(True):
        logits = [jnp.asarray(x, jnp.float64) for x in LOGITS]
        run = jax.jit(lambda state, low: mtard_update(state, *logits, temperature_range=(low, 10))[1])
        before = mtard_init()
        after = run(before, 1)
    assert [leaf.dtype for leaf in after] == [leaf.dtype for leaf in before]
