"""Prints constraints for pip: the lowest version of each requirement in pyproject.toml."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["train"]:
    if lowest := re.match(r"([\w-]+)>=([\d.]+)", requirement):
        print("==".join(lowest.groups()))
