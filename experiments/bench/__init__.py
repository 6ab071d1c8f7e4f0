"""Benchmarks: `python -m experiments.bench.NAME` prints a table and, last, one line of JSON.

A speed is a ratio from one interleaved run of both sides, so that what else the machine does hits
both alike.
"""
