"""DiLoCo on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_diloco --workdir runs/digits_diloco
Hardware:  2 CPU cores
Time:      about 3 s of training
Expected:  test accuracy at the mean of the workers 0.975 with seed 0; 0.968 +- 0.013 over the
           seeds 0, 1 and 2
Source:    the outer learning rate 0.7 and momentum 0.9 are those of the code read, the period
           is ours
"""

from experiments.configs.recipes import digits

config = digits("diloco", period=16)
