"""CoCoD-SGD on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_cocod --workdir runs/digits_cocod
Hardware:  2 CPU cores
Time:      about 3 s of training
Expected:  test accuracy at the mean of the workers 0.989 with seed 0; 0.984 +- 0.004 over the
           seeds 0, 1 and 2
Source:    all hyper-parameters are ours
"""

from experiments.configs.recipes import digits

config = digits("cocod", period=8)
