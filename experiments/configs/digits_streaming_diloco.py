"""Streaming DiLoCo on the bundled digits: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits_streaming_diloco --workdir
           runs/digits_streaming_diloco
Hardware:  2 CPU cores
Time:      about 3 s of training
Expected:  test accuracy at the mean of the workers 0.981 with seed 0; 0.982 +- 0.006 over the
           seeds 0, 1 and 2
Source:    mix 0.5 and outer learning rate 0.4 are from memory of the paper, the rest is ours
"""

from experiments.configs.recipes import digits

config = digits("streaming_diloco", period=16, fragments=4, delay=2)
