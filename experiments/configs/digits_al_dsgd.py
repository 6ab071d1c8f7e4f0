"""AL-DSGD on the bundled digits: 8 workers on two graphs in turn, a multilayer perceptron.

Command:   python -m experiments.train --config digits_al_dsgd --workdir runs/digits_al_dsgd
Skewed:    python -m experiments.train --config digits_al_dsgd --workdir runs/digits_al_dsgd_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  2 CPU cores
Time:      about 5 s of training, 10 s in all
Expected:  test accuracy at the mean of the workers ? over the seeds 0, 1 and 2; skewed ?
"""

from experiments.configs.recipes import digits

config = digits("al_dsgd", topologies="al_dsgd(graph=2), al_dsgd(graph=1)")
