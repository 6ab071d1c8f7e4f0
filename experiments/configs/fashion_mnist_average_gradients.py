"""All-reduce on Fashion-MNIST: 8 workers, LeNet-5.

Data:      apt-get install dataset-fashion-mnist, or --data.path FOLDER with the four IDX files
Command:   python -m experiments.train --config fashion_mnist_average_gradients --workdir
           runs/fashion_mnist_average_gradients
Hardware:  2 CPU cores
Time:      see experiments/RESULTS.md
Expected:  see experiments/RESULTS.md, which compares the rules over 3 seeds
Source:    the hyper-parameters are ours, those of the other rules on Fashion-MNIST; it sends
           sixteen times their bytes
"""

from experiments.configs.recipes import fashion_mnist

config = fashion_mnist("average_gradients")
