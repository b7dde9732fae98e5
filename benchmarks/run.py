"""The benchmarks:  make bench ARGS="speed | feeds | quality | sparse-size | stream | all"

and those that are scripts with options of their own, which follow the name (--help tells them):
corruptions | adasap | cards | training | rewinding | jackpots | upkeep | features | stragglers |
softmax_path | sparse_kernels | decode | forecast | end_to_end

Each writes benchmarks/results/NAME.json and prints its table. README.md beside this file says what each costs. `all`
runs both kinds; of its options the scripts are given --show alone.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("speed", "feeds", "quality", "sparse-size", "stream")
SCRIPTS = (
    *("corruptions", "adasap", "cards", "training", "rewinding", "jackpots", "upkeep", "features"),
    *("stragglers", "softmax_path", "sparse_kernels", "decode", "forecast", "end_to_end"),
)


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    sys.path.insert(0, str(HERE))
    if argv and argv[0] in SCRIPTS:
        return script(argv[0], argv[1:])
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", nargs="?", default="all", choices=(*NAMES, *SCRIPTS, "all"))
    parser.add_argument(
        "--peer-python", help="a Python that imports llmcompressor 0.14.0.1; without it the peer is left out"
    )
    parser.add_argument("--repeats", type=int, default=1, help="speed: the smallest of so many runs counts")
    parser.add_argument(
        "--methods", nargs="+", default=["wanda", "sparsegpt"], help="speed and feeds: which methods"
    )
    parser.add_argument("--match", nargs="+", help="speed: only rows whose name holds one of these")
    parser.add_argument(
        "--sparsities", type=float, nargs="+", default=[0.5, 0.7], help="feeds: fractions to cut"
    )
    parser.add_argument("--seeds", type=int, default=3, help="feeds and quality: calibration seeds")
    parser.add_argument(
        "--keep", action="store_true", help="take results of equal jobs from benchmarks/.cache"
    )
    parser.add_argument(
        "--show", action="store_true", help="measure nothing: print the tables of the results"
    )
    parser.add_argument("--cached", action="store_true", help="speed and feeds: only rows that .cache holds")
    args = parser.parse_args(argv)
    if args.name in SCRIPTS:
        parser.error(f"put {args.name} first, then its options")
    from common import read

    for name in NAMES if args.name == "all" else (args.name,):
        module = importlib.import_module(name.replace("-", "_"))
        if not args.show:
            module.run(args)
        print(f"\n## {name}\n\n{module.tables(read(name))}\n")
    if args.name != "all":
        return 0
    return max(script(name, ["--show"] if args.show else []) for name in SCRIPTS)


def script(name: str, argv: list[str]) -> int:
    """Run NAME.py as if it had been called with these words, which it writes into its results."""
    sys.argv = [str(HERE / f"{name}.py"), *argv]
    return importlib.import_module(name).main(argv)


if __name__ == "__main__":
    sys.exit(main())
