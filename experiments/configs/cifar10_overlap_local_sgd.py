"""Overlap-Local-SGD on CIFAR-10: 4 workers, ResNet-20.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar10_overlap_local_sgd --workdir
           runs/cifar10_overlap_local_sgd
Hardware:  1, 2 or 4 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    the setting is the GRAWA authors' sample script (see recipes.cifar10); pull 0.6 and
           momentum 0.7 are those of the authors' script, the period is ours
"""

from experiments.configs.recipes import cifar10

config = cifar10("overlap_local_sgd", period=8)
