"""Overlap-Local-SGD on MNIST: 8 workers, the CNN of two convolutions.

Data:      tfds build mnist --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config mnist_overlap_local_sgd --workdir
           runs/mnist_overlap_local_sgd
Hardware:  one GPU, or 8 CPU cores
Time:      not measured
Expected:  not run to the end by us
Source:    pull 0.6 and momentum 0.7 are those of the authors' script, the period is ours
"""

from experiments.configs.recipes import mnist

config = mnist("overlap_local_sgd", period=8)
