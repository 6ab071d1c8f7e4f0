"""Decoupled DiLoCo (reconstructed) on MNIST: 8 workers, the CNN of two convolutions.

Data:      tfds build mnist --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config mnist_decoupled --workdir runs/mnist_decoupled
Hardware:  one GPU, or 8 CPU cores
Time:      not measured
Expected:  not run to the end by us
Source:    the outer optimizer is DiLoCo's; ours are the period, the quorum and the straggler, one
           of the workers, that arrives at every third sync
"""

from experiments.configs.recipes import mnist

arrived = [[True] * 7 + [sync == 2] for sync in range(3)]  # the last one is a straggler
config = mnist("decoupled", period=16, arrived=arrived, quorum=4)
