"""Elastic averaging SGD with momentum on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_eamsgd --workdir runs/digits_eamsgd
Hardware:  2 CPU cores
Time:      ?
Expected:  ?
"""

from experiments.configs.recipes import digits

config = digits("eamsgd", period=4, momentum=0.9)
