import platform
import resource
import subprocess
import sys

from experiments.harness.memory import keep_memory

STEPS = """
import resource, sys
from experiments.harness.memory import keep_memory
kept = keep_memory() if sys.argv[1] == "keep" else False
import jax, jax.numpy as jnp

@jax.jit
def step(x):
    return jnp.sum(jnp.sort(jnp.stack([x, 2 * x]), axis=0))  # what is sorted is stored, 64 MB

x = jnp.ones([2**23])
for _ in range(5):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step(x).block_until_ready()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(how):
    done = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults) * resource.getpagesize()


def test_a_step_finds_the_memory_of_the_one_before():
    kept, fresh = run("keep")
    if platform.libc_ver()[0] != "glibc":
        assert not kept
        return
    assert kept
    assert fresh < 2**23  # of five times 64 MB
    assert run("leave")[1] > 4 * fresh


def test_nothing_is_changed_where_there_is_an_accelerator(monkeypatch):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [group])
    assert keep_memory() is False
