"""Decoupled DiLoCo (reconstructed) on CIFAR-10: 4 workers, ResNet-20.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar10_decoupled --workdir runs/cifar10_decoupled
Hardware:  1, 2 or 4 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    the setting is the GRAWA authors' sample script (see recipes.cifar10), the outer
           optimizer is DiLoCo's; ours are the period, the quorum and the straggler, one of the
           workers, that arrives at every third sync
"""

from experiments.configs.recipes import cifar10

arrived = [[True] * 3 + [sync == 2] for sync in range(3)]  # the last one is a straggler
config = cifar10("decoupled", period=32, arrived=arrived, quorum=2)
