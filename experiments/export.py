"""Writes a run's model into one file: `python -m experiments.export RUN OUT.safetensors`.

The mean of the workers, the rule's centre (`--which center`) or a worker (`--which 3`), of the last
checkpoint or that of `--step`. The file is a NumPy archive or one of safetensors, by its ending;
the names are "params/..." and "state/..." (`jaxdist.training.portable`). `--start` of
`experiments.train` begins from it.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from experiments import cli

PROG = "python -m experiments.export"


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, and writes the file."""
    parser = cli.Parser(prog=PROG, description="Writes a run's model into one file.")
    parser.add_argument("run", type=cli.path, metavar="RUN", help="the folder of a run")
    parser.add_argument("out", type=cli.path, metavar="OUT", help="a .safetensors or .npz file")
    parser.add_argument("--which", default="mean", help="mean, center, or a worker's number")
    parser.add_argument("--step", type=int, help="of a checkpoint that is kept; default: the last")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    cli.add_import(parser)
    args = parser.parse_args(argv)
    with cli.clean_errors(args.traceback):
        cli.run_imports(args.imports)
        _export(args)


def _export(args: argparse.Namespace) -> None:
    from jaxdist import __version__
    from jaxdist.config import load
    from jaxdist.training import portable

    portable.check_free(args.out, force=args.force)
    cli.check_devices()
    loaded = load(args.run, step=args.step)
    model = loaded.portable(
        args.which,
        jaxdist=__version__,
        run=str(args.run.absolute()),
        config=json.dumps(loaded.run.description),
    )
    portable.write(args.out, model, force=args.force)
    numbers = sum(x.size for x in model.leaves.values())
    print(
        f"{args.out}: {model.about['which']} of {args.run} at step {loaded.step}, "
        f"{numbers:,} numbers in {len(model.leaves)} leaves"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
