"""SGD on CIFAR-10 with crops, flips and cutout: 1 worker, WideResNet-16-8.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config flat_cifar10_augmented_sgd --workdir
           runs/flat_cifar10_augmented_sgd
Hardware:  1 accelerator
Time:      not measured
Expected:  not run to the end by us
Source:    the LPF-SGD authors' code and supplement, see the recipe
"""

from experiments.configs.one_worker import augmented

config = augmented("plain")
