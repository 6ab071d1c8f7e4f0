"""NoLoCo on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_noloco --workdir runs/digits_noloco
Skewed:    python -m experiments.train --config digits_noloco --workdir runs/digits_noloco_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  2 CPU cores
Time:      about 5 s of training, 10 s in all
Expected:  test accuracy at the mean of the workers ? over the seeds 0, 1 and 2; skewed ?
"""

from experiments.configs.recipes import digits

config = digits("noloco", period=8)
