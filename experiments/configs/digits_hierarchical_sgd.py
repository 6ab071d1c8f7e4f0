"""Hierarchical local SGD on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_hierarchical_sgd --workdir
           runs/digits_hierarchical_sgd
Hardware:  2 CPU cores
Time:      ?
Expected:  ?
"""

from experiments.configs.recipes import digits

config = digits("hierarchical_sgd", periods={2: 2, 8: 8})
