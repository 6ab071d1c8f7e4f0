"""SlowMo on MNIST: 8 workers, the CNN of two convolutions.

Data:      tfds build mnist --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config mnist_slowmo --workdir runs/mnist_slowmo
Hardware:  one GPU, or 8 CPU cores
Time:      not measured
Expected:  not run to the end by us
Source:    the slow momentum 0.5 is that of the code read for 8 nodes, the period is ours
"""

from experiments.configs.recipes import mnist

config = mnist("slowmo", period=16)
