"""MATCHA on label-skewed Fashion-MNIST: 8 workers on a sparse graph, LeNet-5.

Data:      apt-get install dataset-fashion-mnist, or --data.path FOLDER with the four IDX files
Command:   python -m experiments.train --config fashion_mnist_matcha --workdir
           runs/fashion_mnist_matcha
Hardware:  2 CPU cores
Time:      see experiments/RESULTS.md
Expected:  see experiments/RESULTS.md, which compares the rules over 3 seeds
Source:    the graph and the budget are from the AL-DSGD authors' code, the rest ours
"""

from experiments.configs.recipes import fashion_mnist_skewed

config = fashion_mnist_skewed("matcha", topology="al_dsgd(graph=1, density=53.8)", budget=0.5)
