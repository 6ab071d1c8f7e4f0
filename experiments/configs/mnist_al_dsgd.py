"""AL-DSGD on MNIST: 8 workers on two graphs in turn, the CNN of two convolutions.

Data:      tfds build mnist --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config mnist_al_dsgd --workdir runs/mnist_al_dsgd
Skewed:    python -m experiments.train --config mnist_al_dsgd --workdir runs/mnist_al_dsgd_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=32)"
Hardware:  one GPU, or 8 CPU cores
Time:      not measured
Expected:  not run to the end by us
Source:    all hyper-parameters are ours
"""

from experiments.configs.recipes import mnist

config = mnist("al_dsgd", topologies="al_dsgd(graph=2), al_dsgd(graph=1)")
