"""Fashion-MNIST with any rule: 8 workers, LeNet-5.

Data:      apt-get install dataset-fashion-mnist, or --data.path FOLDER with the four IDX files
Command:   python -m experiments.train --config fashion_mnist --rule easgd --workdir runs/fashion
Skewed:    python -m experiments.train --config fashion_mnist --rule dpsgd
           --workdir runs/fashion_skewed --with "shards=dirichlet(alpha=0.1, minimum=32)"
Hardware:  2 CPU cores
Time:      about 100 s of training
Expected:  experiments/RESULTS.md compares the rules of the configurations fashion_mnist_*
Source:    all hyper-parameters but the rules' defaults are ours, see settings.eight_workers
"""

from experiments.configs import recipes
from experiments.configs.settings import eight_workers

rules = eight_workers()
config = recipes.fashion_mnist("mgrawa", period=8)
