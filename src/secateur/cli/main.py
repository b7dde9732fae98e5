"""`secateur VERB ...`: finds the verb's file, runs it, and turns whatever happens into one line and an exit status.

0 done   2 the user's input (the six errors, usage)   74 the system (disk, permission)   70 our bug   130 Ctrl-C
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from secateur.cli.parser import Parser
from secateur.errors import NoMatch, SecateurError, nearest

VERBS = {
    "demo": "cut a real language model in half and look at the result (no download)",
    "compress": "cut a model and write the smaller checkpoint",
    "plan": "find out what a method would cut, and write that as a file",
    "apply": "cut a model as a plan file says",
    "evaluate": "perplexity, choice questions, lm-evaluation-harness, speed",
    "sweep": "quality at every sparsity of a grid, and where it breaks down",
    "compare": "several methods on equal terms: one table, one page",
    "report": "the page of a results.json",
    "list": "the methods: unit, when, needs, paper",
    "show": "what a checkpoint holds, measured from its weights",
    "verify": "check every byte of a checkpoint against its manifest",
    "generate": "continue a prompt",
    "serve": "answer OpenAI clients over HTTP: chat and completions, streamed",
    "accelerate": "run each layer the way that was measured as its fastest here: bytes and speed",
    "forecast": "what a cut or rounding would gain on this machine, before any cutting",
    "export": "write a model as dense safetensors, GGUF or ONNX",
    "train": "train a network and cut it on the way, from a TOML file",
    "deck": "make one robust classifier of several trained ones",
    "finetune": "train a cut language model on, with its zeros kept; LoRA too",
    "plasticity": "how well a classifier gets over a cut: before, after, retrained",
    "stability": "from which step on a training ends in one place: where a lottery ticket may rewind to",
    "features": "choose features instead of weights: describe, fit, explain, evaluate (CLIP and its like)",
    "stragglers": "which layers spoil the blend of a zero-shot and a fine-tuned network, and their repair",
    "run": "a whole job written down in a TOML file",
}
LINE = 160


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status; nothing is raised, whatever happens."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    # What other packages have to say goes to their own users; ours get one line.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            return _dispatch(words)
    except SystemExit as stop:  # argparse after --help
        return stop.code if isinstance(stop.code, int) else 0
    except BaseException as error:
        if debug:
            raise
        return _tell(error)


def _dispatch(words: list[str]) -> int:
    from secateur import __version__

    if words and words[0] == "--version":
        print(f"secateur {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    verb = next((word for word in words if not word.startswith("-")), "")
    if words[0].startswith("-") and words[0] not in ("--debug", "--quiet"):
        raise NoMatch(f"no flag {words[0]}", fix="put flags after the command")
    if verb not in VERBS:
        raise NoMatch(f"no command {verb!r}", fix=nearest(verb, VERBS))
    words.remove(verb)
    typed = [verb, *words]
    module = importlib.import_module(f"secateur.cli.{verb}")
    parser = Parser(prog=f"secateur {verb}", description=VERBS[verb].capitalize() + ".")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")
    args = module.arguments(parser, list(words))
    args.typed = typed
    return module.run(args) or 0


def _help() -> str:
    width = max(map(len, VERBS)) + 2
    lines = [f"  {verb:<{width}}{what}" for verb, what in VERBS.items()]
    head = "secateur cuts a neural network down to the part that matters, and proves what is left.\n"
    return "\n".join([head, "usage: secateur COMMAND ...      secateur COMMAND --help", "", *lines])


def _tell(error: BaseException) -> int:
    """Print the error's one line; return its exit status."""
    worker = os.environ.get("RANK", "0")
    name = "secateur" if worker == "0" else f"secateur, worker {worker}"
    if isinstance(
        error, BrokenPipeError
    ):  # `secateur list | head`: the reader has gone, and that is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, KeyboardInterrupt):
        status, line = 130, "interrupted; what was there before is untouched"
    elif isinstance(error, SecateurError):
        status, line = error.exit_status, fold(error, LINE - len(name) - 2)
    elif isinstance(error, OSError):
        path = " ".join(str(p) for p in (error.filename, error.filename2) if p is not None)
        line = f"{path}: {error.strerror or error}" if path else str(error.strerror or error)
        status = 74
    else:
        words = " ".join(str(error).split())
        fix = "; this is a bug in secateur: run again with --debug"
        status, line = 70, f"{type(error).__name__}: {words}"[: LINE - len(name) - 2 - len(fix)] + fix
    print(f"{name}: {line}"[:LINE] if status != 74 else f"{name}: {line}", file=sys.stderr)
    return status


def fold(error: SecateurError, limit: int) -> str:
    """The error as one line of at most `limit` characters: a long place loses its head, a long reason its end; what to
    do stays whole as long as it can."""
    line = str(error)
    if len(line) <= limit:
        return line
    where, what, fix = (" ".join(part.split()) for part in (error.where, error.what, error.fix))
    over = len(line) - limit
    if len(where) > 30:
        cut = min(over + 1, len(where) - 29)
        where, over = "…" + where[cut:], over - cut + 1
    if over > 0 and len(what) > 40:
        cut = min(over + 1, len(what) - 39)
        what, over = what[:-cut] + "…", over - cut + 1
    line = (f"{where}: " if where else "") + what + (f"; {fix}" if fix else "")
    return line if len(line) <= limit else line[: limit - 1] + "…"
