"""JAX told otherwise, for as long as a test takes."""

import contextlib

import jax


@contextlib.contextmanager
def configured(**options):
    """JAX with other options, for a while."""
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
