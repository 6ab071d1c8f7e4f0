"""MNIST with any rule: 8 workers, the CNN of two convolutions.

Data:      tfds build mnist --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config mnist --rule easgd --workdir runs/mnist_easgd
Skewed:    python -m experiments.train --config mnist --rule dpsgd --workdir runs/mnist_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=32)"
Hardware:  one GPU, or 8 CPU cores
Time:      not measured
Expected:  not run to the end by us
Source:    all hyper-parameters but the rules' defaults are ours, see settings.eight_workers
"""

from experiments.configs.recipes import mnist
from experiments.configs.settings import eight_workers

rules = eight_workers()
config = mnist("mgrawa", period=8)
