"""Stochastic gradient push on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_sgp --workdir runs/digits_sgp
Skewed:    python -m experiments.train --config digits_sgp --workdir runs/digits_sgp_skewed --with
           "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  2 CPU cores
Time:      about 5 s of training
Expected:  test accuracy at the mean of the workers 0.982 +- 0.004 over the seeds 0, 1 and 2; skewed
           0.978 +- 0.005
"""

from experiments.configs.recipes import digits

config = digits("sgp", topology="one_peer_exponential")
