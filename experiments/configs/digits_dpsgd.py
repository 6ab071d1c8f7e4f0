"""D-PSGD on the bundled digits: 8 workers on a ring, a multilayer perceptron.

Command:   python -m experiments.train --config digits_dpsgd --workdir runs/digits_dpsgd
Skewed:    python -m experiments.train --config digits_dpsgd --workdir runs/digits_dpsgd_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  2 CPU cores
Time:      about 4 s of training
Expected:  test accuracy at the mean of the workers 0.981 +- 0.004 over the seeds 0, 1 and 2; skewed
           0.981 +- 0.005
"""

from experiments.configs.recipes import digits

config = digits("dpsgd", topology="ring")
