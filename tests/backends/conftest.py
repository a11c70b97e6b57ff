"""Eight simulated CPU devices for all tests; jax must hear of it before it starts."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
