"""NoLoCo on CIFAR-10: 8 workers, ResNet-50.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar10_noloco --workdir runs/cifar10_noloco
Skewed:    python -m experiments.train --config cifar10_noloco --workdir runs/cifar10_noloco_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  1, 2, 4 or 8 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    the setting is the AL-DSGD authors' (see recipes.cifar10_decentralized), the momentum
           ours (see digits_noloco), the rest the rule's defaults
"""

from experiments.configs.recipes import cifar10_decentralized

config = cifar10_decentralized("noloco", period=50, momentum=0.5)
