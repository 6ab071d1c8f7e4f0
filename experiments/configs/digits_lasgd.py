"""LASGD (reconstructed) on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_lasgd --workdir runs/digits_lasgd
Hardware:  2 CPU cores
Time:      about 3 s of training
Expected:  test accuracy at the mean of the workers 0.986 with seed 0; 0.985 +- 0.004 over the
           seeds 0, 1 and 2
Source:    all hyper-parameters are ours
"""

from experiments.configs.recipes import digits

config = digits("lasgd", period=8, delay=4)
