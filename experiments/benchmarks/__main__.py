"""Command line of the benchmarks: ``python -m experiments.benchmarks optimizers``."""

import sys

import tyro

from experiments.benchmarks import optimizers

BENCHMARKS = {"optimizers": optimizers.main}

if __name__ == "__main__":
    sys.exit(tyro.extras.subcommand_cli_from_dict(BENCHMARKS, prog="python -m experiments.benchmarks"))
