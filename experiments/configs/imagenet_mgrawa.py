"""MGRAWA on ImageNet: 8 workers, ResNet-50 at 224 x 224.

Data:      download ILSVRC2012 to DIR/downloads/manual, then tfds build imagenet2012
           --file_format=array_record --data_dir=DIR (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config imagenet_mgrawa --workdir runs/imagenet_mgrawa
           --data.data_dir DIR
Hardware:  8 accelerators; on several hosts, the same command on each
Time:      not measured
Expected:  not run to the end by us
Source:    the rule's values are the GRAWA authors' for CIFAR-10 (sample script); see
           recipes.imagenet
"""

from experiments.configs.recipes import imagenet

config = imagenet("resnet50", "mgrawa", period=32, strength=0.5, prox=0.01)
