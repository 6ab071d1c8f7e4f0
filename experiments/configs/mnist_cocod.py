"""CoCoD-SGD on MNIST: 8 workers, the CNN of two convolutions.

Data:      tfds build mnist --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config mnist_cocod --workdir runs/mnist_cocod
Hardware:  one GPU, or 8 CPU cores
Time:      not measured
Expected:  not run to the end by us
Source:    all hyper-parameters are ours
"""

from experiments.configs.recipes import mnist

config = mnist("cocod", period=8)
