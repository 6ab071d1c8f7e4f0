"""LASGD (reconstructed) on CIFAR-10: 4 workers, ResNet-20.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar10_lasgd --workdir runs/cifar10_lasgd
Hardware:  1, 2 or 4 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    the setting is the GRAWA authors' sample script (see recipes.cifar10); all
           hyper-parameters are ours
"""

from experiments.configs.recipes import cifar10

config = cifar10("lasgd", period=8, delay=4)
