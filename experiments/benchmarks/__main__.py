"""Command line of the benchmarks: ``python -m experiments.benchmarks optimizers``."""

import sys

import tyro

from experiments.benchmarks import optimizers

BENCHMARKS = {"optimizers": optimizers.main}


def main() -> int:
    """Runs the benchmark that the command line names, and returns the exit code."""
    try:
        return tyro.extras.subcommand_cli_from_dict(BENCHMARKS, prog="python -m experiments.benchmarks")
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
