"""Policies: learning to act."""

from jaxreg.rl.lipschitz_imitation import (
    Trajectory,
    closed_loop_regret,
    covering_radius,
    imitation_error_bound,
    imitation_lagrangian,
    linear_state_bound,
    rollout,
)

__all__ = [
    "Trajectory",
    "closed_loop_regret",
    "covering_radius",
    "imitation_error_bound",
    "imitation_lagrangian",
    "linear_state_bound",
    "rollout",
]
