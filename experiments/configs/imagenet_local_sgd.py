"""Local SGD on ImageNet: 8 workers, ResNet-18 at 224 x 224.

Data:      download ILSVRC2012 to DIR/downloads/manual, then tfds build imagenet2012
           --file_format=array_record --data_dir=DIR (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config imagenet_local_sgd --workdir
           runs/imagenet_local_sgd --data.data_dir DIR
Hardware:  8 accelerators; on several hosts, the same command on each
Time:      not measured
Expected:  not run to the end by us
Source:    see recipes.imagenet
"""

from experiments.configs.recipes import imagenet

config = imagenet("resnet18", "local_sgd", period=8)
