"""Post-local SGD on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_post_local_sgd --workdir
           runs/digits_post_local_sgd
Hardware:  2 CPU cores
Time:      ?
Expected:  ?
"""

from experiments.configs.recipes import digits

config = digits("post_local_sgd", period=8, after=100)
