"""DaSGD (reconstructed) on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_dasgd --workdir runs/digits_dasgd
Hardware:  2 CPU cores
Time:      about 3 s of training
Expected:  test accuracy at the mean of the workers 0.983 with seed 0; 0.981 +- 0.003 over the
           seeds 0, 1 and 2
Source:    all hyper-parameters are ours
"""

from experiments.configs.recipes import digits

config = digits("dasgd", period=8, delay=4)
