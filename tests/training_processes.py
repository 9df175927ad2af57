"""How tests train: in processes of their own, so that they can be killed, and compiling little."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import jax

from experiments.harness.journal import METRICS
from tests.jax_options import configured

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def compilation_cache(directory):
    """Programs are compiled once, for this process and those that it starts."""
    names = {"jax_compilation_cache_dir": str(directory), "jax_persistent_cache_min_compile_time_secs": 0.1}
    with configured(**names):
        yield


class Process:
    """A training script in a process of its own, with one CPU device unless told otherwise."""

    def __init__(self, script, arguments, devices=1):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", script, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def output(self):
        output, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, output
        return output

    def kill_at(self, workdir, step, number):
        """Sends a signal once the run has logged a step."""
        while self.process.poll() is None:
            try:
                if len((workdir / METRICS).read_bytes().splitlines()) >= step:
                    break
            except FileNotFoundError:
                pass  # it has not begun
            time.sleep(0.002)
        self.process.send_signal(number)
        return self.process.communicate(timeout=300)[0]
