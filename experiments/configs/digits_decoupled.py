"""Decoupled DiLoCo (reconstructed) on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_decoupled --workdir runs/digits_decoupled
Hardware:  2 CPU cores
Time:      about 3 s of training
Expected:  test accuracy at the mean of the workers 0.972 with seed 0; 0.973 +- 0.002 over the
           seeds 0, 1 and 2
Source:    the outer optimizer is DiLoCo's; ours are the period, the quorum and the straggler, one
           of the workers, that arrives at every third sync
"""

from experiments.configs.recipes import digits

arrived = [[True] * 7 + [sync == 2] for sync in range(3)]  # the last one is a straggler
config = digits("decoupled", period=16, arrived=arrived, quorum=4)
