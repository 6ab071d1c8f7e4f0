"""NoLoCo on MNIST: 8 workers, the CNN of two convolutions.

Data:      tfds build mnist --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config mnist_noloco --workdir runs/mnist_noloco
Skewed:    python -m experiments.train --config mnist_noloco --workdir runs/mnist_noloco_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=32)"
Hardware:  one GPU, or 8 CPU cores
Time:      not measured
Expected:  not run to the end by us
Source:    all hyper-parameters are ours
"""

from experiments.configs.recipes import mnist

config = mnist("noloco", period=8, momentum=0.5)
