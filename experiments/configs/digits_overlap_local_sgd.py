"""Overlap-Local-SGD on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_overlap_local_sgd --workdir
           runs/digits_overlap_local_sgd
Hardware:  2 CPU cores
Time:      about 3 s of training
Expected:  test accuracy at the mean of the workers 0.975 with seed 0; 0.975 +- 0.006 over the
           seeds 0, 1 and 2
Source:    pull 0.6 and momentum 0.7 are those of the authors' script, the period is ours
"""

from experiments.configs.recipes import digits

config = digits("overlap_local_sgd", period=8)
