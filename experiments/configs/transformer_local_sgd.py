"""Local SGD on a small Transformer: 8 workers predict the next grey value of the bundled digits.

Command:   python -m experiments.train --config transformer_local_sgd --workdir
           runs/transformer_local_sgd
Hardware:  2 CPU cores
Time:      about 26 s of training
Expected:  test accuracy of the next grey value (17 classes) 0.545, loss 1.568 nats (seed 0)
"""

from experiments.configs.recipes import transformer

config = transformer("local_sgd", period=16)
