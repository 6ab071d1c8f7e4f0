"""ImageNet at 224 x 224 with any rule: 8 workers, ResNet-50.

Data:      download ILSVRC2012 to DIR/downloads/manual, then tfds build imagenet2012
           --file_format=array_record --data_dir=DIR (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config imagenet --rule mgrawa --workdir runs/imagenet
           --data.data_dir DIR (--with "model=resnet18(stem='imagenet')" for the smaller one)
Hardware:  8 accelerators; on several hosts, the same command on each
Time:      not measured
Expected:  not run to the end by us
Source:    see recipes.imagenet; GRAWA's values are the rules' defaults, the others ours
"""

from experiments.configs import recipes
from experiments.configs.settings import eight_workers

rules = {name: to for name, to in eight_workers().items() if name not in ("mgrawa", "lgrawa")}
config = recipes.imagenet("resnet50", "mgrawa")
