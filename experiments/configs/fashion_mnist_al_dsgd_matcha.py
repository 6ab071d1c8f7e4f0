"""AL-DSGD over MATCHA on label-skewed Fashion-MNIST: 8 workers, sparse graphs, LeNet-5.

Data:      apt-get install dataset-fashion-mnist, or --data.path FOLDER with the four IDX files
Command:   python -m experiments.train --config fashion_mnist_al_dsgd_matcha --workdir
           runs/fashion_mnist_al_dsgd_matcha
Hardware:  2 CPU cores
Time:      see experiments/RESULTS.md
Expected:  see experiments/RESULTS.md, which compares the rules over 3 seeds
Source:    the graphs and the weights are from the AL-DSGD authors' code, as is the size of the
           pulls (its default, not its README's); the rest is ours
"""

from experiments.configs.recipes import fashion_mnist_skewed

config = fashion_mnist_skewed(
    "al_dsgd",
    topologies="al_dsgd(graph=2, density=53.8), al_dsgd(graph=1, density=53.8)",
    variant="paper",
    leader_pull=0.1,
    degree_pull=0.1,
    leader_weight=0.3,
    degree_weight=0.1,
    budget=0.5,
)
