"""Distilling a clean and a robust teacher into one student.

A network trained against attacks is less accurate on clean images. The student therefore gets a teacher for each kind:
one trained on clean images for these, one trained against attacks for attacked ones. Two things are kept in balance:
how fast the student learns from either, by the weights of their losses, and how much either knows, by the temperatures
of their predictions.

A step, with attacks on the student::

    attacked = pgd(student, params, x, labels, key, epsilon=8 / 255, step_size=2 / 255, random_start="gaussian",
                   bounds=(0.0, 1.0))
    losses, state = mtard_update(
        state, student(params, x), student(params, attacked), clean_teacher(x), robust_teacher(attacked)
    )
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.losses import soft_cross_entropy
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_ascending, check_range


class MtardState(NamedTuple):
    """State of :func:`mtard_update`.

    Attributes:
        weight_nat: weight of the clean teacher; that of the robust one is what is left of 1.
        temperature_nat: of the clean teacher's predictions.
        temperature_adv: of the robust teacher's predictions.
        initial_nat: mean loss against the clean teacher at the first step.
        initial_adv: mean loss against the robust teacher at the first step.
        step: updates so far.
    """

    weight_nat: Float[Array, ""]
    temperature_nat: Float[Array, ""]
    temperature_adv: Float[Array, ""]
    initial_nat: Float[Array, ""]
    initial_adv: Float[Array, ""]
    step: Int[Array, ""]


@checked
def mtard_init() -> MtardState:
    r"""State of :func:`mtard_update` before the first step: equal weights, temperatures of 1.

    Args:
        None.

    Returns:
        The state.
    """
    return MtardState(*(jnp.array(value, jnp.float32) for value in (0.5, 1.0, 1.0, 1.0, 1.0)), jnp.array(0))


@checked
def mtard_update(
    state: MtardState,
    student_nat: Float[Array, "batch classes"],
    student_adv: Float[Array, "batch classes"],
    teacher_nat: Float[Array, "batch classes"],
    teacher_adv: Float[Array, "batch classes"],
    *,
    weight_lr: ScalarLike = 0.025,
    beta: ScalarLike = 1.0,
    temperature_lr: ScalarLike = 1e-3,
    temperature_range: tuple[ScalarLike, ScalarLike] = (1.0, 10.0),
) -> tuple[Float[Array, "batch"], MtardState]:
    r"""MTARD: distillation from two teachers, with balanced weights and temperatures.

    .. math::
        L &= w\, L^{\text{nat}} + (1 - w)\, L^{\text{adv}}, \qquad
        L^a = \operatorname{KL}\bigl(\operatorname{softmax}(t^a / \tau^a) \,\|\, \operatorname{softmax}(s^a)\bigr) \\
        w &\leftarrow w - r_w \Bigl(w - \frac{(l^{\text{nat}})^\beta}{(l^{\text{nat}})^\beta + (l^{\text{adv}})^\beta}
        \Bigr), \qquad l^a = L^a / L^a_0 \\
        \tau^{\text{nat}} &\leftarrow \tau^{\text{nat}} + r_\tau d, \quad \tau^{\text{adv}} \leftarrow
        \tau^{\text{adv}} - r_\tau d, \qquad d = \operatorname{sign}(H^{\text{adv}} - H^{\text{nat}})

    with mean losses of the batch, :math:`L_0` those of the first step, and the mean entropies ``H`` of the teachers'
    predictions. The weight is updated before it is used, the temperatures afterwards.

    Args:
        state: from :func:`mtard_init`, or the last call.
        student_nat: the student's logits of clean inputs.
        student_adv: its logits of attacked inputs.
        teacher_nat: logits of the clean teacher, of the clean inputs.
        teacher_adv: logits of the robust teacher, of the attacked inputs.
        weight_lr: ``r_w`` in [0, 1] (authors' code: 0.025, a tenth of it after each decay of the learning rate); 0
            keeps the weights equal.
        beta: ``beta >= 0``, how sharply the slower loss is preferred (authors' code: 1).
        temperature_lr: ``r_tau >= 0`` (paper: 0.001 for 300 epochs); 0 keeps the temperatures at 1.
        temperature_range: least and largest temperature (paper: 1 and 10).

    Returns:
        The loss of each example, at least float32, and the new state. No gradient flows to teachers, weights and
        temperatures.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Zhao et al., *Mitigating the Accuracy-Robustness Trade-off via Multi-Teacher Adversarial Distillation*, TPAMI
        2024, arXiv 2306.16170.
    """
    check_range("weight_lr", weight_lr, "[0, 1]")
    check_range("beta", beta, "[0, inf)")
    check_range("temperature_lr", temperature_lr, "[0, inf)")
    low, high = temperature_range
    check_range("the first of temperature_range", low, "(0, inf)")
    check_ascending("temperature_range", temperature_range)
    losses_nat, entropy_nat = _divergence(student_nat, teacher_nat, state.temperature_nat)
    losses_adv, entropy_adv = _divergence(student_adv, teacher_adv, state.temperature_adv)
    mean_nat, mean_adv = (jax.lax.stop_gradient(jnp.mean(losses)) for losses in (losses_nat, losses_adv))
    first = state.step == 0
    initial_nat = jnp.where(first, mean_nat, state.initial_nat)
    initial_adv = jnp.where(first, mean_adv, state.initial_adv)
    # The share of l^beta as a sigmoid of logarithms is defined where both losses vanish.
    gap = _log_ratio(mean_nat, initial_nat) - _log_ratio(mean_adv, initial_adv)
    weight = state.weight_nat - weight_lr * (state.weight_nat - jax.nn.sigmoid(beta * gap))
    change = temperature_lr * jnp.sign(entropy_adv - entropy_nat)
    new = MtardState(
        weight,
        jnp.clip(state.temperature_nat + change, low, high),
        jnp.clip(state.temperature_adv - change, low, high),
        initial_nat,
        initial_adv,
        state.step + 1,
    )
    new = jax.tree.map(lambda kept, old: kept.astype(old.dtype), new, state)
    return weight * losses_nat + (1 - weight) * losses_adv, jax.lax.stop_gradient(new)


def _divergence(logits, teacher_logits, temperature):
    """KL of each example from the softened teacher to the student, and the teacher's mean entropy."""
    log_probs = jax.nn.log_softmax(jax.lax.stop_gradient(at_least_float32(teacher_logits)) / temperature)
    probs = jnp.exp(log_probs)
    entropy = -jnp.sum(probs * log_probs, axis=-1)
    return soft_cross_entropy(logits, probs) - entropy, jnp.mean(entropy)


def _log_ratio(loss, initial):
    # A loss that starts at zero counts as one that has not changed.
    known = initial > 0
    return jnp.where(known, jnp.log(jnp.maximum(loss, 1e-30) / jnp.where(known, initial, 1.0)), 0.0)
