"""Cross-entropy with 40% wrong labels, on the bundled digits: 1 worker, the CNN.

Command:   python -m experiments.train --config wrong_labels_cross_entropy --workdir
           runs/wrong_labels_cross_entropy
Hardware:  2 CPU cores
Time:      see experiments/RESULTS.md
Expected:  see experiments/RESULTS.md
Source:    ours; the form of the loss is a reconstruction (see jaxdist.losses)
"""

from experiments.configs.one_worker import wrong_labels

config = wrong_labels("cross_entropy")
