"""Where computations on a CPU get their temporary memory."""

import ctypes
import importlib.metadata
import importlib.util

import jax

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_memory() -> bool:
    """Has the process keep the memory it has been given, for what it computes next.

    XLA:CPU asks for the temporary memory of a step anew at every step. glibc takes large blocks from the operating
    system, page by page, and hands them back at once: up to a millisecond a megabyte, which can be a third of a step.
    It can be told not to, but for the first thread alone: so from then on a computation is begun by the thread that
    calls it, which waits until it is done. The process's memory never shrinks.

    To be called before JAX computes anything. Nothing happens where the C library isn't glibc, or where JAX has an
    accelerator to compute on.

    Returns:
        Whether memory is kept.
    """
    if importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu") is not None:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError is Windows'
        return False
    kept = all(mallopt(option, value) for option, value in ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0)))
    if kept:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    return kept
