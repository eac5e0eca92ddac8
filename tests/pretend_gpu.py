"""A CUDA GPU that is not there: tensors that say they are on it and hold their numbers on the CPU.

In: code that asks for "cuda". Out: the numbers that a CPU computes by the branches that a GPU takes; errors where a GPU
would raise, for tensors or generators of two devices in one operation; and a list of the lines at which the host would
wait for the GPU. What it cannot show: kernels, what torch.compile makes (it is left out), speed.

    with gpu() as waits:
        model.to("cuda")
"""

import contextlib
import copy
import traceback
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torch._dynamo  # before anything is replaced
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from nanochat import gpt, muon

GPU = torch.device("cuda", 0)
NAME = "NVIDIA H100 80GB HBM3"
aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select, aten._unique2}
HERE = Path(__file__).parent.parent

TorchGenerator = torch.Generator

waits: list[str] = []
unfinished: list[tuple[torch.Tensor, torch.Tensor]] = []  # (to, from) of copies that nobody has waited for


class OnGpu(torch.Tensor):
    """A tensor without memory; its numbers are in `held`. For C++ it is one of the meta device."""

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        with torch.inference_mode(False):
            like = torch.empty_strided(held.size(), held.stride(), dtype=held.dtype, device="meta")
            self = torch.Tensor._make_subclass(cls, like)
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


generators: list[torch.Generator] = []  # of the GPU


class Generator(TorchGenerator):
    def __new__(cls, device="cpu"):
        made = TorchGenerator("cpu")
        generators.extend([made] if torch.device(device).type == "cuda" else [])
        return made


def on_gpu(x) -> bool:
    return isinstance(x, OnGpu)


def held(x):
    return x.held if on_gpu(x) else x


def put(x):
    return OnGpu(x) if type(x) is torch.Tensor else x


def wait(what: str) -> None:
    """Remember the line of our own code that is running."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(HERE) and path.name != "pretend_gpu.py" and "site-packages" not in path.parts:
            waits.append(f"{path.name}: {what}: {frame.line}")
            return


def synchronize(device=None) -> None:
    while unfinished:
        to, source = unfinished.pop()
        to.copy_(source)


def dispatch(func, args, kwargs):
    kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
    name, leaves = func._schema.name, tree_leaves((args, kwargs))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    here, devices = any(map(on_gpu, tensors)), [x for x in leaves if isinstance(x, torch.device)]
    # What C++ asks for of its own, it asks for on the meta device.
    to_gpu = devices[0].type in (("cuda", "meta") if here else ("cuda",)) if devices else here
    if any(isinstance(x, TorchGenerator) and (x._cdata in [g._cdata for g in generators]) != to_gpu for x in leaves):
        raise RuntimeError(f"{func}: the generator is not on the device of the tensor")
    if here and any(x.is_meta and not on_gpu(x) for x in tensors):
        raise NotImplementedError(f"{func}: C++ has put numbers on the device that it believes in, where they are lost")
    if name == "aten::_pin_memory":
        assert not here, "only memory of the CPU can be pinned"
        pinned = args[0].clone()
        pinned.is_pinned_memory = True
        return pinned
    if name == "aten::copy_" and here and not all(map(on_gpu, tensors)):
        return copy_between(*args)
    if name in ("aten::_to_copy", "aten::to") and to_gpu != here:
        late = kwargs.get("non_blocking") and hasattr(args[0], "is_pinned_memory")
        if here or not late:
            wait("read" if here else "write")
    elif here:
        check(func, name, args, tensors)
    if not here and not to_gpu:
        return func(*args, **kwargs)
    real = lambda x: (torch.device("cpu") if to_gpu else x) if isinstance(x, torch.device) else held(x)  # noqa: E731
    out = func(*tree_map(real, args), **tree_map(real, kwargs))
    if not to_gpu:
        return out
    out = tree_map(put, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if here else out


def check(func, name: str, args, tensors) -> None:
    """RuntimeError for a mixture of devices that a GPU does not take."""
    if func.overloadpacket in READS:
        wait("read")
    indices = args[1] if name.startswith("aten::index") and isinstance(args[1], (list, tuple)) else ()
    if any(isinstance(x, torch.Tensor) and (x.dtype == torch.bool or not on_gpu(x)) for x in indices):
        wait("read")  # of how many are true, or the indices are copied first
    others = [x for x in tensors if not on_gpu(x) and x.dim() and not any(x is index for index in indices)]
    if others or (func._schema.is_mutable and not on_gpu(tensors[0])):
        kinds = [(str(x.device), tuple(x.shape), x.dtype) for x in tensors]
        raise RuntimeError(f"{func}: tensors on two devices: {kinds}")


def copy_between(to, source, non_blocking=False):
    if non_blocking and on_gpu(source):
        to.fill_(-1)  # what is there until the copy is done
        unfinished.append((to, source.held.clone()))
        return to
    wait("read" if on_gpu(source) else "write")
    held(to).copy_(held(source))
    return to


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """What C++ would do before it dispatches, for the device that it believes in."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        args, kwargs = tuple(map(with_index, args)), {k: with_index(v) for k, v in kwargs.items()}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == GPU and not on_gpu(args[0]):
            return func(*args, **kwargs | {"device": "cpu"}).to(GPU)
        if func in (torch.where, torch.Tensor.where):  # C++ would put numbers on its device
            like = next((x for x in args if on_gpu(x) and x.dtype != torch.bool), None)
            args = args if like is None else tuple(x if torch.is_tensor(x) else like.new_full((), x) for x in args)
        if not (args and on_gpu(args[0])):
            return func(*args, **kwargs)
        if func is torch.Tensor.tolist:
            wait("read")
            return args[0].held.tolist()
        if func is torch.Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is torch.Tensor.__getitem__ and isinstance(args[1], list):  # as C++ would make of it, with its numbers
            args = args[0], torch.tensor(args[1]).to(GPU)
        if func is torch.Tensor.__setitem__ and not torch.is_tensor(args[2]):
            args = (*args[:2], args[0].new_full((), args[2]))
        if func == torch.Tensor.data.__set__:
            args[0].held = args[1].held
        return attention(*args, **kwargs) if func is F.scaled_dot_product_attention else func(*args, **kwargs)


def with_index(x):
    return GPU if (type(x) is str and x == "cuda") or (isinstance(x, torch.device) and x.type == "cuda") else x


def attention(q, k, v, attn_mask=None, is_causal=False, scale=None, enable_gqa=False):
    assert q.dtype == k.dtype == v.dtype and (enable_gqa or q.size(1) == k.size(1))
    k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    if is_causal:
        attn_mask = torch.ones(q.size(-2), k.size(-2), dtype=torch.bool, device=GPU).tril()
    scores = q @ k.mT * scale
    return (scores if attn_mask is None else scores.masked_fill(~attn_mask, -torch.inf)).softmax(-1) @ v


@contextlib.contextmanager
def gpu():
    """One GPU in this thread. Yields the list of lines at which the host waits."""
    properties = {
        "is_available": True, "_lazy_init": None, "set_device": None, "device_count": 1, "current_device": 0,
        "get_device_name": NAME, "get_device_capability": (9, 0), "mem_get_info": (79 << 30, 80 << 30),
        "max_memory_allocated": 1 << 30, "reset_peak_memory_stats": None, "empty_cache": None,
        "is_bf16_supported": True,
        "get_device_properties": SimpleNamespace(name=NAME, total_memory=80 << 30, major=9, minor=0),
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, value in properties.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, value=value, **__: copy.copy(value)))
        stack.enter_context(mock.patch.object(torch.cuda, "synchronize", synchronize))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch, "compile", lambda function, **_: function))
        for module in (gpt, muon):
            stack.enter_context(mock.patch.object(module, "cannot_compile", lambda: ""))
        stack.enter_context(Dispatch()), stack.enter_context(Functions())
        waits.clear(), generators.clear()
        yield waits
        assert not unfinished, "a copy was read, or left, before it was done"
