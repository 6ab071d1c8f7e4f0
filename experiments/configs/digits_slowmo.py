"""SlowMo on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_slowmo --workdir runs/digits_slowmo
Hardware:  2 CPU cores
Time:      about 3 s of training
Expected:  test accuracy at the mean of the workers 0.986 with seed 0; 0.985 +- 0.002 over the
           seeds 0, 1 and 2
Source:    the slow momentum 0.5 is that of the code read for 8 nodes, the period is ours
"""

from experiments.configs.recipes import digits

config = digits("slowmo", period=16)
