"""Leader SGD on Fashion-MNIST: 8 workers, LeNet-5.

Data:      apt-get install dataset-fashion-mnist, or --data.path FOLDER with the four IDX files
Command:   python -m experiments.train --config fashion_mnist_lsgd --workdir
           runs/fashion_mnist_lsgd
Hardware:  2 CPU cores
Time:      see experiments/RESULTS.md
Expected:  see experiments/RESULTS.md, which compares the rules over 3 seeds
Source:    all hyper-parameters but the rule's defaults are ours; one period for all rules, so
           that they send the same bytes but for a few numbers a sync
"""

from experiments.configs.recipes import fashion_mnist

config = fashion_mnist("lsgd", period=16)
