"""MATCHA on the bundled digits: 8 workers on a graph of AL-DSGD's, a multilayer perceptron.

Command:   python -m experiments.train --config digits_matcha --workdir runs/digits_matcha
Skewed:    python -m experiments.train --config digits_matcha --workdir runs/digits_matcha_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  2 CPU cores
Time:      about 7 s of training
Expected:  test accuracy at the mean of the workers 0.985 +- 0.004 over the seeds 0, 1 and 2; skewed
           0.977 +- 0.006
"""

from experiments.configs.recipes import digits

config = digits("matcha", topology="al_dsgd(graph=1)", budget=0.5)
