"""Eight devices on every machine, so that what is said of sharding is tested, and programs compiled once, quickly."""

import os
import shutil
import signal
import tempfile

import jax

# JAX has to know before it starts.
jax.config.update("jax_num_cpu_devices", 8)

# Tests send it to themselves; where a shell runs them in the background it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

# To compile is most of what tests do, and takes two thirds as long without most of LLVM's optimizations. Processes that
# tests start inherit this. With JAX_DISABLE_MOST_OPTIMIZATIONS=0 programs are tested as users compile them.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    jax.config.update("jax_disable_most_optimizations", True)

CACHE = "JAX_COMPILATION_CACHE_DIR"
OWNS_CACHE = CACHE not in os.environ
if OWNS_CACHE:
    # All processes of a run share what they have compiled.
    os.environ[CACHE] = tempfile.mkdtemp(prefix="jaxreg-tests-")
jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_unconfigure():
    if OWNS_CACHE:
        shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True)
