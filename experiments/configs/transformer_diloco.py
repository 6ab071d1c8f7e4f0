"""DiLoCo on a small Transformer: 8 workers predict the next grey value of the bundled digits.

Command:   python -m experiments.train --config transformer_diloco --workdir runs/transformer_diloco
Hardware:  2 CPU cores
Time:      about 28 s of training
Expected:  test accuracy of the next grey value (17 classes) 0.546, loss 1.569 nats (seed 0)
"""

from experiments.configs.recipes import transformer

config = transformer("diloco", period=16)
