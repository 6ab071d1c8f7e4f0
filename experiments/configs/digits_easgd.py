"""Elastic averaging SGD on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_easgd --workdir runs/digits_easgd
Hardware:  2 CPU cores
Time:      ?
Expected:  ?
"""

from experiments.configs.recipes import digits

config = digits("easgd", period=4)
