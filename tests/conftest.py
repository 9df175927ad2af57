"""Eight devices on every machine, so that what is said of sharding is tested, and no program compiled twice."""

import os
import shutil
import signal
import tempfile

import jax
import pytest

from tests.jax_options import configured

# JAX has to know before it starts.
jax.config.update("jax_num_cpu_devices", 8)

# Tests send it to themselves; where a shell runs them in the background it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

CACHE = "JAX_COMPILATION_CACHE_DIR"
OWNS_CACHE = CACHE not in os.environ
if OWNS_CACHE:
    # To compile is most of what tests do: all processes of a run, which inherit this, share what they have compiled.
    os.environ[CACHE] = tempfile.mkdtemp(prefix="jaxreg-tests-")
jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_unconfigure():
    if OWNS_CACHE:
        shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True)


@pytest.fixture(scope="module")
def quick_compilation():
    """For tests of short runs: to compile takes longer than to compute, and half as long without most optimizations."""
    with configured(jax_disable_most_optimizations=True):
        yield
