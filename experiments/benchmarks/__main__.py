"""Command line of the benchmarks: ``python -m experiments.benchmarks optimizers`` (or ``losses``, ``weights``, …).

A step that is timed alone, over and over, would hand its temporary memory back to the operating system each time and
get it anew, page by page: up to a millisecond a megabyte, which is not paid where the memory serves one computation
after the other. So the process starts itself again with an allocator (glibc's) that keeps what it has, but for
``pretrain``, where all loops keep their memory as the trainer does.
"""

import os
import sys

import tyro

from experiments.benchmarks import losses, optimizers, pretrain, weights
from experiments.harness.memory import keep_memory

BENCHMARKS = {
    "losses": losses.main,
    "optimizers": optimizers.main,
    "pretrain": pretrain.main,
    "weights": weights.main,
}
KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def main() -> int:
    """Runs the benchmark that the command line names, and returns the exit code."""
    try:
        return tyro.extras.subcommand_cli_from_dict(BENCHMARKS, prog="python -m experiments.benchmarks")
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if sys.argv[1:2] == ["pretrain"]:
        keep_memory()
    elif not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, os.environ | KEEP_MEMORY)
    sys.exit(main())
