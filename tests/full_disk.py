"""A disk that takes no more."""

import contextlib
import math
import resource

from tests.jax_options import configured


@contextlib.contextmanager
def full_disk():
    """Lets no file of this process grow beyond a kilobyte, nor JAX leave halves of programs for others to read."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with configured(jax_persistent_cache_min_compile_time_secs=math.inf):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
