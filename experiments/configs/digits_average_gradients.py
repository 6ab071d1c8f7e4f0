"""All-reduce SGD on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_average_gradients --workdir
           runs/digits_average_gradients
Hardware:  2 CPU cores
Time:      ?
Expected:  ?
"""

from experiments.configs.recipes import digits

config = digits("average_gradients")
