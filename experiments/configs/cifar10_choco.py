"""CHOCO-SGD on CIFAR-10: 8 workers on a graph of AL-DSGD's, ResNet-50.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar10_choco --workdir runs/cifar10_choco
Skewed:    python -m experiments.train --config cifar10_choco --workdir runs/cifar10_choco_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  1, 2, 4 or 8 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    the setting and the graph are those of the AL-DSGD authors' code (see
           recipes.cifar10_decentralized), the compression ours
"""

from experiments.configs.recipes import cifar10_decentralized

config = cifar10_decentralized(
    "choco", topology="al_dsgd(graph=1)", compress="top_k(fraction=0.1)", consensus_step=0.3
)
