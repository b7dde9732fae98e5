"""One answer of a causal language model, token by token: a prompt read once, then one position a step.

    decoder = Decoder(model)                                   # picks its step, and checks it against the model's
    for piece in pieces(decoder, tokenizer, ids, max_tokens=40, sampling=Sampling(temperature=0.7, seed=1)):
        print(piece.text, end="")

Keys and values lie in tensors made once an answer and are read as far as they are filled, so that nothing is copied
to grow them and no mask is needed (transformers' StaticCache pays for all its positions at every step). Steps, best
first; a step is taken when it gives the logits of the model's own pass over a short probe:
    native    whole layers in the compiled kernels, where their matrices are packed (runtime/native.py)
    lean      the model's modules without transformers' code around them (runtime/lean.py)
    model     the model's forward pass, with this file's cache; for any model whose layers attend to all positions
    dynamic   the same with transformers' DynamicCache: sliding windows, recurrent states, and what comes
Linear modules are called, never looked into: pruned and packed ones work. Batch 1, one answer at a time.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import BadInput, Unsupported, require
from secateur.runtime import lean, native
from secateur.runtime.sample import GREEDY, Sampling, choose, not_finite
from secateur.runtime.text import Stops, Text

CHUNK = 512  # tokens of a prompt read at once; between two of them an answer can be given up
ROUND = 256  # positions by which caches grow
OURS = ("native", "lean", "lean, compiled")  # steps of this package's own, bound to the keys and values
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}  # of the largest logit; half precision: HALF
HALF = 5e-2


@dataclass(frozen=True)
class Piece:
    """One token of an answer: its text (may be "": half a character, or held back), and at the end why it ended."""

    token: int
    text: str
    finish: str | None = None


def pieces(
    decoder: Decoder,
    tokenizer: Any,
    ids: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    ends: Sequence[int] | None = None,
    context: Sequence[int] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Piece]:
    """The answer to the prompt `ids`, a piece a token; the last one has finish "stop" (a stop string, or a token of
    `ends`, which is counted and has no text) or "length".

    Args:
        ends: tokens that end an answer; None: the model's own.
        context: tokens whose text the answer goes on from (some tokenizers write a space only between two words);
            None: the prompt; (): the answer stands for itself.
        cancelled: asked between two steps; once true, nothing more comes, not even a last piece.

    Raises:
        BadInput: what `tokens` refuses, and an empty stop string.
    """
    if not all(stop):
        raise BadInput("an empty string", where="stop", fix="leave it out")
    last = set(end_tokens(decoder.model) if ends is None else ends)
    text, stops = Text(tokenizer, ids if context is None else context), Stops(stop)
    for count, token in enumerate(
        tokens(decoder, ids, max_tokens=max_tokens, sampling=sampling, cancelled=cancelled), 1
    ):
        ended = token in last
        given, stopped = stops.push(text.flush() if ended else text.push(token))
        if not stopped and (ended or count == max_tokens):
            more, stopped = stops.push(text.flush())
            given += more if stopped else more + stops.flush()
        finish = "stop" if ended or stopped else "length" if count == max_tokens else None
        yield Piece(token, given, finish)
        if finish:
            return


def tokens(
    decoder: Decoder,
    ids: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[int]:
    """`max_tokens` tokens after the prompt `ids`; end tokens are tokens like others here.

    Raises:
        BadInput: no prompt, ids outside the vocabulary, more positions than the model has, logits that are NaN.
    """
    decoder.check(ids, max_tokens)
    random = torch.Generator()
    random.manual_seed(sampling.seed) if sampling.seed is not None else random.seed()
    logits = decoder.read(ids, len(ids) + max_tokens, cancelled)
    turn = decoder.turn
    for left in range(max_tokens, 0, -1):
        if logits is None or cancelled():
            return
        token = choose(logits, sampling, random)
        yield token
        if decoder.turn != turn:
            raise BadInput("another answer was begun before this one had ended", where="decoder")
        logits = decoder.step(token) if left > 1 and not cancelled() else None


class Decoder:
    """The state of one answer: keys, values, and how many positions they hold.

    Args:
        model: a causal language model of transformers in evaluation mode, linear modules replaced or not.
        compile: run the lean step through torch.compile (inductor, C++ wrapper). Once a machine and model that takes
            minutes, later seconds; what stops it is told in `notices`, and the step runs as it is.

    Attributes:
        way: "native", "lean", "lean, compiled", "model" or "dynamic".   notices: what was asked for and is not done.
        positions: the most tokens of prompt and answer together, or None.

    Raises:
        Unsupported: no causal language model with a cache.   BadInput: a model in training mode.
    """

    def __init__(self, model: nn.Module, *, compile: bool = False) -> None:
        self.model: Any = model
        self._takes = _takes(model)
        config = self.model.config.get_text_config()
        self.positions: int | None = getattr(config, "max_position_embeddings", None)
        self.vocabulary = self.model.get_input_embeddings().weight.shape[0]
        self.device = self.model.get_input_embeddings().weight.device
        self.notices: list[str] = []
        self.turn = self.length = 0
        self._capacity = 0
        self._cache: Any = None
        self._step: Callable[..., Tensor] | None = None
        self._compile = False
        self._line = torch.arange(0)
        self._ones: Tensor | None = None
        self.way = self._choose()
        if compile:
            self._try_to_compile()

    def check(self, ids: Sequence[int], max_tokens: int) -> None:
        """Refuse a prompt that cannot be answered, before anything is run."""
        if not len(ids) or max_tokens < 1:
            raise BadInput(
                f"{max_tokens} tokens after a prompt of {len(ids)}",
                where="prompt",
                fix="give 1 or more of both",
            )
        if self.positions is not None and len(ids) + max_tokens > self.positions:
            raise BadInput(
                f"{len(ids)} tokens of prompt and {max_tokens} of answer are more than the {self.positions} "
                "positions of the model",
                where="max_tokens",
                fix=f"ask for at most {max(self.positions - len(ids), 0)}, or shorten the prompt",
            )
        if not 0 <= min(ids) <= max(ids) < self.vocabulary:
            raise BadInput(f"a token outside 0..{self.vocabulary - 1}", where="prompt")

    @torch.inference_mode()
    def read(
        self, ids: Sequence[int], positions: int, cancelled: Callable[[], bool] = lambda: False
    ) -> Tensor | None:
        """Begin an answer: logits [vocabulary] after the prompt, with room for `positions`; None when cancelled."""
        self.turn += 1
        self._room(positions)
        prompt = torch.tensor([list(ids)], device=self.device)
        logits = None
        for part in prompt.split(CHUNK, 1):
            if cancelled():
                return None
            logits = self._forward(part)
        if isinstance(self._step, native.Native) and not self._step.current():
            self._step = None
        if self.way in OURS and self._step is None:
            self._step = self._bound()
        return logits

    @torch.inference_mode()
    def step(self, token: int) -> Tensor:
        """Logits [vocabulary] after one more token."""
        one = torch.tensor([[token]], device=self.device)
        if self._step is None or self.way not in OURS:
            return self._forward(one)
        at = self.length
        self.length += 1
        seen = self._line.narrow(0, 0, at + 1)
        if self._compile and self.way == "lean":  # being compiled: for any length at once
            torch._dynamo.mark_dynamic(seen, 0)
        return self._step(one, self._line.narrow(0, at, 1), seen)

    def _forward(self, ids: Tensor) -> Tensor:
        """The model's own pass over [1, n] further tokens."""
        more: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {}
        if self._ones is not None and ids.shape[1] == 1:
            more["attention_mask"] = self._ones[..., : self.length + 1]
        out = self.model(input_ids=ids, past_key_values=self._cache, use_cache=True, **more)
        self.length += ids.shape[1]
        self._cache = out.past_key_values
        return out.logits[0, -1]

    def _room(self, positions: int) -> None:
        """An empty cache for so many positions; tensors that are large enough are used again."""
        self.length = 0
        if self.way == "dynamic":
            self._cache = require("transformers", "hf").DynamicCache(config=self.model.config)
            return
        if self._cache is not None and positions <= self._capacity:
            for layer in self._cache.layers:
                layer.length = 0
            return
        self._capacity = -(-positions // ROUND) * ROUND
        if self._compile and self.positions is not None:  # one size, so that nothing is compiled again
            self._capacity = self.positions
        self._cache = self._step = None  # before new ones are made
        self._cache = rooms(self.model, self._capacity)
        self._line = torch.arange(self._capacity, device=self.device)
        if self.way == "model" and _grouped_half(self.model, self.device):
            self._ones = torch.ones(1, 1, 1, self._capacity, dtype=torch.bool)

    def _bound(self) -> Callable[..., Tensor]:
        layers = self._cache.layers
        keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
        if self.way == "native":
            return native.Native(self.model, keys, values)
        step = lean.Lean(self.model, keys, values, fused=self._compile)
        if not self._compile:
            return step
        return torch.compile(
            step.__call__, fullgraph=True, options={"cpp_wrapper": self.device.type == "cpu"}
        )

    def _choose(self) -> str:
        """The first step that agrees with the model's own pass over a few tokens."""
        with torch.inference_mode():
            ids = torch.tensor([self._probe_ids()], device=self.device)
            out = self.model(input_ids=ids)
        if getattr(out, "logits", None) is None:
            raise Unsupported("gives no logits of a next token", where=type(self.model).__name__)
        wanted = out.logits[0, -1]
        if not bool(wanted.isfinite().all()):
            raise not_finite(float(wanted.sum()))
        ways = ["model", "dynamic"] if plain_attention(self.model) else ["dynamic"]
        if ways[0] == "model" and lean.fits(self.model):
            ways.insert(0, "lean")
            if native.fits(self.model):
                ways.insert(0, "native")
        for way in ways:
            self.way, self._cache, self._ones = way, None, None
            try:
                if agree(self._probe(), wanted):
                    return way
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError):
                continue  # a model of another kind may raise anything at a cache that is not its own
        raise Unsupported("gives other logits with a cache than without", where=type(self.model).__name__)

    def _probe_ids(self) -> list[int]:
        return [(7 * i + 1) % self.vocabulary for i in range(6)]

    def _probe(self) -> Tensor:
        ids = self._probe_ids()
        found = self.read(ids[:3], len(ids))
        for token in ids[3:]:
            found = self.step(token)
        assert found is not None  # nobody cancels it
        return found

    def _try_to_compile(self) -> None:
        if self.way != "lean":
            why = (
                "the step runs in the compiled kernels"
                if self.way == "native"
                else "only models built like Llama have a step for it"
            )
            self.notices.append(f"not compiled: {why}")
            return
        plain = self._probe()
        self._compile, self._cache = True, None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch's compiler says about its own parts
            try:
                if agree(self._probe(), plain):
                    self.way = "lean, compiled"
                    return
                why = "its logits are others"
            except Exception as error:
                # no compiler, a module it cannot trace, a fault of its own: whatever it is, the plain step works
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        self.notices.append(f"not compiled: {why}")
        self._compile, self._cache = False, None


def end_tokens(model: Any) -> list[int]:
    """The ids that end an answer, as generation_config.json or config.json name them."""
    for config in (getattr(model, "generation_config", None), model.config):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return [int(token) for token in (found if isinstance(found, list | tuple) else [found])]
    return []


def plain_attention(model: Any) -> bool:
    """Whether every layer attends to all positions before it, so that one plain cache fits all."""
    utils = require("transformers.cache_utils", "hf")
    layers = utils.DynamicCache(config=model.config).layers
    return len(layers) > 0 and all(type(layer) is utils.DynamicLayer for layer in layers)


def rooms(model: Any, capacity: int) -> Any:
    """A cache for transformers' forward passes: layers of `capacity` positions that show those that are filled."""
    count = len(require("transformers.cache_utils", "hf").DynamicCache(config=model.config).layers)
    return require("transformers.cache_utils", "hf").Cache(
        layers=[_room_class()(capacity) for _ in range(count)]
    )


@functools.cache
def _room_class() -> Any:
    """A layer of a cache: keys and values [1, heads, capacity, size], made at the first update."""
    base: Any = require("transformers.cache_utils", "hf").CacheLayerMixin

    class Room(base):
        is_sliding = False

        def __init__(self, capacity: int) -> None:
            super().__init__()
            self.capacity, self.length = capacity, 0

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            shape = (key_states.shape[0], key_states.shape[1], self.capacity)
            self.keys = key_states.new_empty(*shape, key_states.shape[3])
            self.values = value_states.new_empty(*shape, value_states.shape[3])
            self.is_initialized = True

        def update(
            self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
        ) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            start, self.length = self.length, self.length + key_states.shape[2]
            self.keys[:, :, start : self.length] = key_states
            self.values[:, :, start : self.length] = value_states
            return self.keys[:, :, : self.length], self.values[:, :, : self.length]

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.length + query_length, 0

        def get_seq_length(self) -> int:
            return self.length

        def get_max_length(self) -> int:
            return self.capacity

    return Room


def _takes(model: Any) -> set[str]:
    """The arguments of the model's forward pass; refused if it is not one to decode with."""
    takes = set(inspect.signature(model.forward).parameters)
    config = getattr(model, "config", None)
    if (
        not {"input_ids", "past_key_values"} <= takes
        or config is None
        or getattr(config, "is_encoder_decoder", False)
    ):
        raise Unsupported("not a causal language model with a cache", where=type(model).__name__)
    if model.training:
        raise BadInput("is in training mode", where=type(model).__name__, fix="call model.eval()")
    return takes


def agree(found: Tensor, wanted: Tensor) -> bool:
    """Whether two rows of logits are the same up to what another order of sums does in their dtype."""
    bound = TOLERANCE.get(wanted.dtype, HALF) * max(float(wanted.abs().max()), 1e-6)
    return bool((found.double() - wanted.double()).abs().max() <= bound)


def _grouped_half(model: Any, device: torch.device) -> bool:
    """Whether torch would take its slow way for grouped queries, which it does in half precision without a mask."""
    config = model.config.get_text_config()
    heads, shared = (getattr(config, name, 0) for name in ("num_attention_heads", "num_key_value_heads"))
    return device.type == "cpu" and model.dtype in (torch.bfloat16, torch.float16) and 0 < shared < heads
