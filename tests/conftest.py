"""Eight devices on every machine, so that what is said of sharding is tested; JAX has to know before it starts."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
