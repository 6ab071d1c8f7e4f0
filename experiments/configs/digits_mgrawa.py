"""MGRAWA on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_mgrawa --workdir runs/digits_mgrawa
Hardware:  2 CPU cores
Time:      ?
Expected:  ?
"""

from experiments.configs.recipes import digits

config = digits("mgrawa", period=8)
