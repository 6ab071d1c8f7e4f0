"""The index of the benchmarks: `python -m experiments.bench`."""

import argparse
import ast
from pathlib import Path


def benchmarks() -> dict[str, str]:
    """What there is: the first line of each benchmark, by name."""
    names = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        if f"python -m experiments.bench.{path.stem}" in text:
            names[path.stem] = text.splitlines()[0].partition(": `python -m")[0]
    return names


def main() -> None:
    """Prints it."""
    argparse.ArgumentParser(
        prog="python -m experiments.bench",
        description="Lists the benchmarks; python -m experiments.bench.NAME runs one.",
    ).parse_args()
    listed = benchmarks()
    width = max(map(len, listed))
    for name, line in listed.items():
        print(f"{name:{width}}  {line}")
    print("\npython -m experiments.bench.NAME runs one, with --help it shows its options")


if __name__ == "__main__":
    main()
