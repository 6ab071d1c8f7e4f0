"""LASGD (reconstructed) on a small Transformer: 8 workers, next grey value of the digits.

Command:   python -m experiments.train --config transformer_lasgd --workdir runs/transformer_lasgd
Hardware:  2 CPU cores
Time:      about 27 s of training
Expected:  test accuracy of the next grey value (17 classes) 0.545, loss 1.577 nats (seed 0)
"""

from experiments.configs.recipes import transformer

config = transformer("lasgd", period=16, delay=8)
