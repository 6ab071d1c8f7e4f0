"""Streaming DiLoCo on a small Transformer: 8 workers, next grey value of the digits.

Command:   python -m experiments.train --config transformer_streaming_diloco --workdir
           runs/transformer_streaming_diloco
Hardware:  2 CPU cores
Time:      about 27 s of training
Expected:  test accuracy of the next grey value (17 classes) 0.546, loss 1.574 nats (seed 0)
"""

from experiments.configs.recipes import transformer

config = transformer("streaming_diloco", period=16, fragments=4, delay=2)
