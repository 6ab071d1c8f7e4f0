"""Elastic averaging SGD with momentum on CIFAR-10: 4 workers, ResNet-20.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar10_eamsgd --workdir runs/cifar10_eamsgd
Hardware:  1, 2 or 4 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    the setting is the GRAWA authors' sample script (see recipes.cifar10), alpha = 0.9 / W
           from memory of the EASGD paper, the momentum ours
"""

from experiments.configs.recipes import cifar10

config = cifar10("eamsgd", period=4, alpha=0.225, momentum=0.9)
