"""Runs by their configuration: parts by name, everything that decides the numbers, and the run.

A `Config` has a `Component` for each part: a factory and its options, which `component` names and
`register` adds to. `build` makes the run, `load` opens one that was trained.
"""

from jaxdist.config.building import build, load, paced
from jaxdist.config.components import SLOTS, Component, component, read_component, register
from jaxdist.config.config import Augment, Config, Mesh, from_plain, read_run
from jaxdist.config.speed import Clock

__all__ = [
    "SLOTS",
    "Augment",
    "Clock",
    "Component",
    "Config",
    "Mesh",
    "build",
    "component",
    "from_plain",
    "load",
    "paced",
    "read_component",
    "read_run",
    "register",
]
