"""LGRAWA on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_lgrawa --workdir runs/digits_lgrawa
Hardware:  2 CPU cores
Time:      ?
Expected:  ?
"""

from experiments.configs.recipes import digits

config = digits("lgrawa", period=8)
