"""Starts the processes of one JAX program: `python -m experiments.launch`, and scripts around it.

`tpu_pod.sh`, `slurm.sbatch` and `jobset.yaml` start the same command on many machines.
"""
