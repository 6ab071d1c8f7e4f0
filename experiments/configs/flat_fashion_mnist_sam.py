"""SAM on Fashion-MNIST: 1 worker, LeNet-5.

Data:      apt-get install dataset-fashion-mnist, or --data.path FOLDER with the four IDX files
Command:   python -m experiments.train --config flat_fashion_mnist_sam --workdir
           runs/flat_fashion_mnist_sam
Hardware:  2 CPU cores
Time:      see experiments/RESULTS.md
Expected:  see experiments/RESULTS.md
Source:    MNIST's values in the LPF-SGD authors' code, with a tenth of the epochs
"""

from experiments.configs.one_worker import one_worker

config = one_worker("fashion_mnist", "sam", rho=0.05)
