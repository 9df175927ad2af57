"""Eight devices on every machine, so that what is said of sharding is tested; JAX has to know before it starts."""

import jax
import pytest

from tests.jax_options import configured

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module")
def quick_compilation():
    """For tests of short runs: to compile takes longer than to compute, and half as long without most optimizations."""
    with configured(jax_disable_most_optimizations=True):
        yield
