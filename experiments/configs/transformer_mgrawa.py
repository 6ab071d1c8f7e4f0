"""MGRAWA on a small Transformer: 8 workers predict the next grey value of the bundled digits.

Command:   python -m experiments.train --config transformer_mgrawa --workdir
           runs/transformer_mgrawa
Hardware:  2 CPU cores
Time:      1.5 minutes, on a machine that was shared
Expected:  test accuracy of the next grey value (17 classes) 0.545, loss 1.570 nats (seed 0)
"""

from experiments.configs.recipes import transformer

config = transformer("mgrawa", period=8)
