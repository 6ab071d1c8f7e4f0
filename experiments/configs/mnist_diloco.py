"""DiLoCo on MNIST: 8 workers, the CNN of two convolutions.

Data:      tfds build mnist --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config mnist_diloco --workdir runs/mnist_diloco
Hardware:  one GPU, or 8 CPU cores
Time:      not measured
Expected:  not run to the end by us
Source:    the outer learning rate 0.7 and momentum 0.9 are those of the code read, the period
           is ours
"""

from experiments.configs.recipes import mnist

config = mnist("diloco", period=16)
