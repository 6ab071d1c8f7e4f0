"""MGRAWA on a small Transformer: 8 workers predict the next grey value of the bundled digits.

Command:   python -m experiments.train --config transformer_mgrawa --workdir
           runs/transformer_mgrawa
Hardware:  2 CPU cores
Time:      1.5 minutes, on a machine that was shared
Expected:  test accuracy of the next grey value (17 classes) 0.545, loss 1.570 nats (seed 0)
"""

from experiments.components import component
from experiments.config import Config

config = Config(
    data=component("data", "digit_sequences"),
    model=component("model", "transformer", width=64, depth=2),
    rule=component("rule", "mgrawa", period=8),
    optimizer=component("optimizer", "adamw"),
    schedule=component("schedule", "cosine", warmup=0.1),
    workers=8,
    batch_size=16,
    learning_rate=3e-3,
    epochs=20,
    eval_every=44,
)
