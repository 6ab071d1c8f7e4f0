"""CHOCO-SGD on MNIST: 8 workers on a ring, the CNN of two convolutions.

Data:      tfds build mnist --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config mnist_choco --workdir runs/mnist_choco
Skewed:    python -m experiments.train --config mnist_choco --workdir runs/mnist_choco_skewed --with
           "shards=dirichlet(alpha=0.1, minimum=32)"
Hardware:  one GPU, or 8 CPU cores
Time:      not measured
Expected:  not run to the end by us
Source:    all hyper-parameters are ours
"""

from experiments.configs.recipes import mnist

config = mnist("choco", topology="ring", compress="top_k(fraction=0.1)", consensus_step=0.3)
