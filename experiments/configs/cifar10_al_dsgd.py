"""AL-DSGD on CIFAR-10: 8 workers on two graphs in turn, ResNet-50.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar10_al_dsgd --workdir runs/cifar10_al_dsgd
Skewed:    python -m experiments.train --config cifar10_al_dsgd --workdir
           runs/cifar10_al_dsgd_skewed --with "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  1, 2, 4 or 8 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    the AL-DSGD authors' code: the setting (see recipes.cifar10_decentralized), the form of
           the rule, and the coefficients of its README
"""

from experiments.configs.recipes import cifar10_decentralized

config = cifar10_decentralized(
    "al_dsgd",
    topologies="al_dsgd(graph=2), al_dsgd(graph=1)",
    variant="released",
    leader_weight=0.3,
    degree_weight=0.1,
    leader_pull=0.2,
    degree_pull=0.2,
)
