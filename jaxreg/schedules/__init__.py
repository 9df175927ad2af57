"""Schedules: functions from the step to a learning rate, as optax takes them."""

from jaxreg.schedules.wsd import cyclic_cosine, wsd, wsd_s

__all__ = ["cyclic_cosine", "wsd", "wsd_s"]
