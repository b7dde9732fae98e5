"""settle(model), which accelerate() ends with: the weights of packed layers move into huge pages (runtime/pages.py)."""

from __future__ import annotations

from torch import Tensor, nn

from secateur.runtime import pages
from secateur.runtime.linear import PackedLinear


def settle(model: nn.Module) -> int:
    """Move the memory of a model's packed layers, and return its bytes. Values stay, and every tensor is the object it
    was; tensors of the model that share memory with one of them (tied ends, a dense form) go on sharing it.

    Nothing moves where the system has no huge pages. Weights on a mapped file are copied off it.
    """
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    if not layers or not pages.there_are():
        return 0
    sharing: dict[int, list[Tensor]] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor) in (Tensor, nn.Parameter) and tensor.is_cpu and tensor.numel():
            sharing.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    mine = [t for layer in layers for t in layer.buffers() if t.numel() and not pages.holds(t)]
    moved = sum(_move(sharing[at]) for at in dict.fromkeys(t.untyped_storage().data_ptr() for t in mine))
    for layer in layers:
        layer.moved()
    return moved


def _move(tensors: list[Tensor]) -> int:
    """Tensors on one storage, moved together."""
    storage = tensors[0].untyped_storage()
    whole = pages.room(storage.nbytes())
    whole.untyped_storage().copy_(storage)
    for tensor in tensors:
        place = tensor.storage_offset(), tensor.shape, tensor.stride()
        tensor.data = tensor.new_empty(0).set_(whole.untyped_storage(), *place)
    return storage.nbytes()
