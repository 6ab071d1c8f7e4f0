"""SAM on CIFAR-10: 1 worker, ResNet-18.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config flat_cifar10_sam --workdir runs/flat_cifar10_sam
Hardware:  1 accelerator
Time:      not measured
Expected:  not run to the end by us
Source:    the LPF-SGD authors' code and supplement, see the recipe
"""

from experiments.configs.one_worker import one_worker

config = one_worker("cifar10", "sam", rho=0.05)
