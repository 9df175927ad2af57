"""Robustness: attacks on inputs, bounds that hold against all of them, and training by either."""

from jaxreg.robustness.attacks import fgsm, pgd, project_to_ball

__all__ = ["fgsm", "pgd", "project_to_ball"]
