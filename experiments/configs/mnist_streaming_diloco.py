"""Streaming DiLoCo on MNIST: 8 workers, the CNN of two convolutions.

Data:      tfds build mnist --file_format=array_record (once; needs jaxdist[prepare])
Command:   python -m experiments.train --config mnist_streaming_diloco --workdir
           runs/mnist_streaming_diloco
Hardware:  one GPU, or 8 CPU cores
Time:      not measured
Expected:  not run to the end by us
Source:    mix 0.5 and outer learning rate 0.4 are from memory of the paper, the rest is ours
"""

from experiments.configs.recipes import mnist

config = mnist("streaming_diloco", period=16, fragments=4, delay=2)
