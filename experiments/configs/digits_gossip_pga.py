"""Gossip-PGA on the bundled digits: 8 workers on a ring, a multilayer perceptron.

Command:   python -m experiments.train --config digits_gossip_pga --workdir runs/digits_gossip_pga
Skewed:    python -m experiments.train --config digits_gossip_pga --workdir
           runs/digits_gossip_pga_skewed --with "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  2 CPU cores
Time:      about 5 s of training
Expected:  test accuracy at the mean of the workers 0.981 +- 0.004 over the seeds 0, 1 and 2; skewed
           0.981 +- 0.005
"""

from experiments.configs.recipes import digits

config = digits("gossip_pga", topology="ring", global_period=16)
