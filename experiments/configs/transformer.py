"""A small Transformer with any rule: 8 workers predict the next grey value of the bundled digits.

Command:   python -m experiments.train --config transformer --rule diloco --workdir runs/transformer
Hardware:  2 CPU cores
Time:      about 30 s of training
Expected:  test accuracy of the next grey value (17 classes) 0.545 to 0.546 with the five rules of
           "A small Transformer" in experiments/RESULTS.md
Source:    all hyper-parameters but the rules' defaults are ours, see settings.eight_workers
"""

from experiments.configs.recipes import transformer
from experiments.configs.settings import eight_workers

rules = eight_workers() | {"local_sgd": {"period": 16}, "lasgd": {"period": 16, "delay": 8}}
config = transformer("mgrawa", period=8)
