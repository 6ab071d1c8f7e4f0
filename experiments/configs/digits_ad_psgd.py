"""Gossip in the random pairs of AD-PSGD on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_ad_psgd --workdir runs/digits_ad_psgd
Skewed:    python -m experiments.train --config digits_ad_psgd --workdir runs/digits_ad_psgd_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  2 CPU cores
Time:      about 7 s of training
Expected:  test accuracy at the mean of the workers 0.982 +- 0.003 over the seeds 0, 1 and 2; skewed
           0.977 +- 0.004
"""

from experiments.configs.recipes import digits

config = digits("ad_psgd")
