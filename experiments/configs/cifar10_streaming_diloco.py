"""Streaming DiLoCo on CIFAR-10: 4 workers, ResNet-20.

Data:      tfds build cifar10 --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config cifar10_streaming_diloco --workdir
           runs/cifar10_streaming_diloco
Hardware:  1, 2 or 4 accelerators
Time:      not measured
Expected:  not run to the end by us
Source:    the setting is the GRAWA authors' sample script (see recipes.cifar10); mix 0.5 and
           outer learning rate 0.4 are from memory of the paper, the rest is ours
"""

from experiments.configs.recipes import cifar10

config = cifar10("streaming_diloco", period=32, fragments=4, delay=4)
