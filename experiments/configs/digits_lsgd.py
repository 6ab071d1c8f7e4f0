"""Leader SGD on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_lsgd --workdir runs/digits_lsgd
Hardware:  2 CPU cores
Time:      ?
Expected:  ?
"""

from experiments.configs.recipes import digits

config = digits("lsgd", period=4)
