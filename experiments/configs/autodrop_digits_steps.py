"""The step schedule that AutoDrop is compared with, on the bundled digits: 1 worker, the CNN.

Command:   python -m experiments.train --config autodrop_digits_steps --workdir
           runs/autodrop_digits_steps
Hardware:  2 CPU cores
Time:      see experiments/RESULTS.md
Expected:  see experiments/RESULTS.md
Source:    the AutoDrop authors' code, see the recipe
"""

from experiments.configs.one_worker import self_dropping

config = self_dropping("digits", "drops")
