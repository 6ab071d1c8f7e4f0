"""LGRAWA on Fashion-MNIST: 8 workers, LeNet-5.

Data:      apt-get install dataset-fashion-mnist, or --data.path FOLDER with the four IDX files
Command:   python -m experiments.train --config fashion_mnist_lgrawa --workdir
           runs/fashion_mnist_lgrawa
Hardware:  2 CPU cores
Time:      ?
Expected:  ?
Source:    all hyper-parameters but the rule's defaults are ours; one period for all rules, so
           that all send the same bytes
"""

from experiments.configs.recipes import fashion_mnist

config = fashion_mnist("lgrawa", period=16)
