"""Elastic averaging SGD on CIFAR-10: 4 workers, ResNet-20.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar10_easgd --workdir runs/cifar10_easgd
Hardware:  1, 2 or 4 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    the GRAWA authors' sample script: period 4, alpha = 0.1 / W
"""

from experiments.configs.recipes import cifar10

config = cifar10("easgd", period=4, alpha=0.025)
