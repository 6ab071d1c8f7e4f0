"""AutoDrop, on CIFAR-10: 1 worker, ResNet-18.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config autodrop_cifar10 --workdir runs/autodrop_cifar10
Hardware:  1 accelerator
Time:      not measured
Expected:  not run to the end by us
Source:    the AutoDrop authors' code, see the recipe
"""

from experiments.configs.one_worker import self_dropping

config = self_dropping("cifar10", "constant", "autodrop")
