import platform
import resource
import subprocess
import sys

from experiments.harness.memory import keep_memory

STEPS = 20
STORED = 2**26  # bytes a step

SCRIPT = f"""
import resource, sys
from experiments.harness.memory import keep_memory
kept = keep_memory() if sys.argv[1] == "keep" else False
import jax, jax.numpy as jnp

@jax.jit
def step(index):
    return jnp.sum(jnp.zeros([{STORED // 4}]).at[index].set(1.0))  # what is written to is stored

index = jnp.arange(8)
for _ in range(5):
    step(index).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({STEPS}):
    step(index).block_until_ready()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(how):
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults) * resource.getpagesize()


def test_a_step_finds_the_memory_of_the_one_before():
    kept, fresh = run("keep")
    if platform.libc_ver()[0] != "glibc":
        assert not kept
        return
    assert kept
    # A heap between whose blocks something small was put has to grow once more, which is no fault of the steps.
    assert fresh <= STEPS / 5 * STORED
    _, fresh = run("leave")
    assert fresh >= STEPS * STORED


def test_nothing_is_changed_where_there_is_an_accelerator(monkeypatch):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [group])
    assert keep_memory() is False
