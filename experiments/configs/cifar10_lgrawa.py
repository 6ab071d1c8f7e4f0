"""LGRAWA on CIFAR-10: 4 workers, ResNet-20.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar10_lgrawa --workdir runs/cifar10_lgrawa
Hardware:  1, 2 or 4 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    the GRAWA authors' sample script: period 32, strength 0.5, prox 0.01
"""

from experiments.configs.recipes import cifar10

config = cifar10("lgrawa", period=32, strength=0.5, prox=0.01)
