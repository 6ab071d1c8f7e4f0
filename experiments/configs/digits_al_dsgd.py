"""AL-DSGD on the bundled digits: 8 workers on two graphs in turn, a multilayer perceptron.

Command:   python -m experiments.train --config digits_al_dsgd --workdir runs/digits_al_dsgd
Skewed:    python -m experiments.train --config digits_al_dsgd --workdir runs/digits_al_dsgd_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  2 CPU cores
Time:      about 10 s of training
Expected:  test accuracy at the mean of the workers 0.982 +- 0.006 over the seeds 0, 1 and 2; skewed
           0.979 +- 0.004
"""

from experiments.configs.recipes import digits

config = digits("al_dsgd", topologies="al_dsgd(graph=2), al_dsgd(graph=1)")
