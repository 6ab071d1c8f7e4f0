"""A confidence penalty with 40% wrong labels, on the bundled digits: 1 worker, the CNN.

Command:   python -m experiments.train --config wrong_labels_confidence_penalty --workdir
           runs/wrong_labels_confidence_penalty
Hardware:  2 CPU cores
Time:      see experiments/RESULTS.md
Expected:  see experiments/RESULTS.md
Source:    ours; the form of the loss is a reconstruction (see jaxdist.losses)
"""

from experiments.configs.one_worker import wrong_labels

config = wrong_labels("output_regularized", kind="confidence_penalty", coef=1.0)
