"""secateur cuts a neural network down to the part that matters, proves that what is left holds, and makes it smaller.

    import secateur

    result = secateur.compress("smollm2-135m", secateur.Wanda(sparsity=0.5), out="smollm2-half")
    print(result.plan.sparsity, result.folder)

The names in `__all__` and the classes of the methods (`secateur.Wanda`, `secateur.SparseGPT`, ...) are the whole public
interface. All of it is imported when it is first used: `import secateur` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Plan",
    "Terms",
    "accelerate",
    "apply",
    "check_method",
    "compare",
    "compress",
    "evaluate",
    "list_methods",
    "load",
    "make",
    "plan",
    "save",
    "sweep",
    "train",
]

if TYPE_CHECKING:
    from secateur.api import Terms, apply, compare, compress, evaluate, list_methods, load, plan, save, sweep
    from secateur.check import check_method
    from secateur.core.plan import Plan
    from secateur.registry import make
    from secateur.runtime.accelerate import accelerate
    from secateur.training import train

_WHERE = {
    "Plan": "secateur.core.plan",
    "accelerate": "secateur.runtime.accelerate",
    "make": "secateur.registry",
    "check_method": "secateur.check",
    "train": "secateur.training",
}
_VERBS = ("apply", "evaluate")  # folders of this package that are also functions of its interface


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(_WHERE.get(name, "secateur.api")), name)
    if name[:1].isupper():  # secateur.Wanda: a method by its class
        table = importlib.import_module("secateur.registry")
        for registered in table.names():
            if table.find(registered).__name__ == name:
                return table.find(registered)
    raise AttributeError(f"module 'secateur' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Verb(ModuleType):
    """A folder that can be called: `secateur.apply(plan, model)` works beside `secateur.apply.mask`.

    Importing a submodule sets it as an attribute of the package, so a function of the same name would be replaced by
    the folder as soon as anything imports it.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module("secateur.api"), name)(*args, **kwargs)


for _name in _VERBS:
    importlib.import_module(f"secateur.{_name}")
    sys.modules[f"secateur.{_name}"].__class__ = _Verb
