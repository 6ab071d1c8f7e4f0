"""D-PSGD, one of 8 workers 3 times as slow: neighbours wait for each other at every step.

Data:      apt-get install dataset-fashion-mnist, or --data.path FOLDER with the four IDX files
Command:   python -m experiments.train --config straggler_dpsgd --workdir
           runs/straggler_dpsgd
Hardware:  2 CPU cores
Time:      see experiments/RESULTS.md
Expected:  see experiments/RESULTS.md, which compares the rules over 3 seeds
Source:    all hyper-parameters but the rule's defaults are ours
"""

from experiments.configs.recipes import straggler

config = straggler("dpsgd", asynchronous=False, topology="ring")
