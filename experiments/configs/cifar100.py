"""CIFAR-100 with any rule: 4 workers, WideResNet-28-10.

Data:      tfds build cifar100 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar100 --rule lgrawa --workdir runs/cifar100
Hardware:  1, 2 or 4 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    what was read in the GRAWA authors' code stands in recipes.cifar100, the rules' values in
           settings.four_workers
"""

from experiments.configs import recipes
from experiments.configs.settings import four_workers

rules = four_workers()
config = recipes.cifar100("lgrawa")
