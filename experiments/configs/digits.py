"""The bundled digits with any rule: 8 workers, a multilayer perceptron.

Command:   python -m experiments.train --config digits --rule easgd --workdir runs/digits_easgd
Skewed:    python -m experiments.train --config digits --rule dpsgd --workdir runs/digits_skewed
           --with "shards=dirichlet(alpha=0.1, minimum=16)"
Hardware:  2 CPU cores
Time:      about 5 s of training
Expected:  see "The digits" in experiments/RESULTS.md, which compares all rules over 3 seeds
Source:    all hyper-parameters but the rules' defaults are ours, see settings.eight_workers
"""

from experiments.configs.recipes import digits
from experiments.configs.settings import eight_workers

rules = eight_workers()
config = digits("mgrawa", period=8)
