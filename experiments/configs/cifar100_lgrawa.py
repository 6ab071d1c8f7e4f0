"""LGRAWA on CIFAR-100: 4 workers, WideResNet-28-10.

Data:      tfds build cifar100 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar100_lgrawa --workdir runs/cifar100_lgrawa
Hardware:  1, 2 or 4 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    the rule's values are the GRAWA authors' for CIFAR-10 (sample script); see
           recipes.cifar100
"""

from experiments.configs.recipes import cifar100

config = cifar100("lgrawa", period=32, strength=0.5, prox=0.01)
