"""Eight CPU devices for every test, and no implicit broadcasting across ranks."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
