"""DPPF on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_dppf --workdir runs/digits_dppf
Hardware:  2 CPU cores
Time:      ?
Expected:  ?
"""

from experiments.configs.recipes import digits

config = digits("dppf", period=8, pull=0.5, push=0.05)
