"""The one table of all methods: a line a method, public name -> module:Class, imported when it is asked for."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from secateur.core.method import OneShot
from secateur.errors import BadInput, NoMatch, nearest

# Every method by how it is used: on a trained network, in a training (apply/training.py), on features (apply/heads.py).
TABLES = {
    "once": {
        "random": "secateur.methods.weights.random:Random",
        "magnitude": "secateur.methods.weights.magnitude:Magnitude",
        "wanda": "secateur.methods.weights.wanda:Wanda",
        "sparsegpt": "secateur.methods.weights.sparsegpt:SparseGPT",
        "l_obs": "secateur.methods.weights.l_obs:LOBS",
        "essential_sparsity": "secateur.methods.weights.essential_sparsity:EssentialSparsity",
    },
    "training": {
        "gmp": "secateur.methods.weights.gmp:GMP",
        "granet": "secateur.methods.weights.granet:GraNet",
        "rigl": "secateur.methods.weights.rigl:RigL",
        "set": "secateur.methods.weights.set:SET",
        "random_pruning": "secateur.methods.weights.random_pruning:RandomPruning",
        "snip": "secateur.methods.weights.snip:SNIP",
        "grasp": "secateur.methods.weights.grasp:GraSP",
        "synflow": "secateur.methods.weights.synflow:SynFlow",
        "lottery_ticket": "secateur.methods.weights.lottery_ticket:LotteryTicket",
        "edge_popup": "secateur.methods.weights.edge_popup:EdgePopup",
        "biprop": "secateur.methods.weights.biprop:Biprop",
        "lottery_jackpots": "secateur.methods.weights.lottery_jackpots:LotteryJackpots",
        "adasap": "secateur.methods.weights.adasap:AdaSAP",
        "cards": "secateur.methods.weights.cards:CARD",
    },
    "features": {
        "zero_shot": "secateur.methods.features.zero_shot:ZeroShot",
        "slr_avd": "secateur.methods.features.slr_avd:SLRAVD",
        "linear_probe": "secateur.methods.features.linear_probe:LinearProbe",
        "ridge_probe": "secateur.methods.features.ridge_probe:RidgeProbe",
    },
}


def names(*tables: str) -> list[str]:
    """Registered names in the tables' order; without an argument, those of every table."""
    return [name for table in tables or TABLES for name in TABLES[table]]


def find(name: str) -> type[Any]:
    """The class registered under `name`, imported now.

    Raises:
        NoMatch: no such method; the line names the nearest.
    """
    table = {name: where for rows in TABLES.values() for name, where in rows.items()}
    if name not in table:
        raise NoMatch(f"no method {name!r}", where="method", fix=nearest(name, table))
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def name_of(method: Any) -> str:
    """The registered name of a configured method (a class outside the tables answers with its own name)."""
    path = f"{type(method).__module__}:{type(method).__name__}"
    rows = (row for table in TABLES.values() for row in table.items())
    return next((name for name, where in rows if where == path), type(method).__name__.lower())


def make(name: str, **settings: Any) -> Any:
    """Build a method from its name and settings, as recipes and the command line do.

    Raises:
        NoMatch: an unknown method or setting, with the nearest names.
        BadInput: a value out of range.
    """
    cls = find(name)
    known = [f.name for f in dataclasses.fields(cls)]
    for key in settings:
        if key not in known:
            raise NoMatch(f"{name} has no setting {key!r}", where=key, fix=nearest(key, known))
    return cls(**settings)


def one_shot(method: OneShot | str) -> OneShot:
    """A method, by name or configured, that cuts a trained network once; BadInput for any other."""
    chosen = make(method) if isinstance(method, str) else method
    if not isinstance(chosen, OneShot):
        raise elsewhere(name_of(chosen))
    return chosen


def elsewhere(name: str) -> BadInput:
    """What to say of a method that does not cut a trained network once."""
    chooses = name in TABLES["features"]
    what = "chooses features" if chooses else "cuts while a network trains"
    fix = f"use `secateur {'features fit' if chooses else 'train RECIPE.toml'}`"
    return BadInput(f"{name} {what}", where="method", fix=fix)
