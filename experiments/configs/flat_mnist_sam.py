"""SAM on MNIST: 1 worker, LeNet-5.

Data:      tfds build mnist --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config flat_mnist_sam --workdir runs/flat_mnist_sam
Hardware:  1 accelerator
Time:      not measured
Expected:  not run to the end by us
Source:    the LPF-SGD authors' code and supplement, see the recipe
"""

from experiments.configs.one_worker import one_worker

config = one_worker("mnist", "sam", rho=0.05)
