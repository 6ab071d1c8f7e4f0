"""CIFAR-10 with any rule, as the GRAWA authors train: 4 workers, ResNet-20.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar10 --rule mgrawa --workdir runs/cifar10_mgrawa
Skewed:    python -m experiments.train --config cifar10 --rule dpsgd --workdir runs/cifar10_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=128)"
Hardware:  1, 2 or 4 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    the setting is the GRAWA authors' sample script (see recipes.cifar10), the
           hyper-parameters those of settings.four_workers
"""

from experiments.configs import recipes
from experiments.configs.settings import four_workers

rules = four_workers()
config = recipes.cifar10("lgrawa")
