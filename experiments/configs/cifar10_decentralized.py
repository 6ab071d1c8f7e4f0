"""CIFAR-10 with any rule, as the AL-DSGD authors train: 8 workers on a graph, a ResNet-50.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar10_decentralized --rule al_dsgd
           --workdir runs/cifar10_al_dsgd
Skewed:    python -m experiments.train --config cifar10_decentralized --rule dpsgd
           --workdir runs/cifar10_skewed --with "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  1, 2, 4 or 8 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    the AL-DSGD authors' code (see recipes.cifar10_decentralized and settings.on_a_graph)
"""

from experiments.configs import recipes
from experiments.configs.settings import on_a_graph

rules = on_a_graph()
config = recipes.cifar10_decentralized("al_dsgd", **rules["al_dsgd"])
