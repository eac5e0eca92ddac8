"""Checkpoints: folders that stand alone, that no crash leaves half written, in which no wrong byte goes unseen.

In: a model, its tokenizer, the tensors of its optimizers, the State of a run. Out: <folder>/step_000300, and from it
the same again. A step is written under a hidden name beside its final one, the manifest last, and then renamed.
"""

import json
import math
import os
import re
import shutil
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanochat.common import STAGES, Dist, base_dir
from nanochat.files import BadFile, hidden, publish, recover, remove, write_json
from nanochat.gpt import GPT, GPTConfig
from nanochat.sealed import check_keys, read_manifest, read_object, regular_size, seal, verify
from nanochat.tokenizer import Tokenizer
from nanochat.trainer import State

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
CONFIG, TOKENIZER, STATE = "config.json", "tokenizer.json", "state.json"
REQUIRED = (MODEL, CONFIG, TOKENIZER, STATE)
ABOUT = {"stage": "", "tag": "", "model": {}, "settings": {}}  # what config.json holds
MAX_HEADER_BYTES = 2**20  # of a safetensors file: what names its tensors; every name takes memory when it is read
SCRIPTS = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft", "rl": "chat_rl"}


class SaveError(OSError):
    """A checkpoint could not be written. The message says why; the checkpoints before it are intact."""


@dataclass(frozen=True)
class Checkpoint:
    model: GPT
    tokenizer: Tokenizer
    state: State
    settings: dict
    """The flags of the run that made it."""
    path: Path
    stage: str
    tag: str


def folder_of(stage: str, tag: str) -> Path:
    """Where the checkpoints of a run lie. SystemExit if the tag is not the name of one folder."""
    if stage not in STAGES:
        raise SystemExit(f"There is no stage {stage!r}. The stages are {', '.join(STAGES)}.")
    if not tag or tag.startswith(".") or re.search(r"[/\\\0]", tag):
        raise SystemExit(f"--model_tag={tag!r} is not the name of a folder. A tag is a plain name such as d4.")
    return base_dir() / "checkpoints" / stage / tag


def steps(folder: Path) -> list[Path]:
    """The step folders in `folder`, newest first; whole or damaged, since only `verify` can tell."""
    found = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{6,}", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (_saved_at(path), path.name), reverse=True)


def _step_name(step: int) -> str:
    return f"step_{step:06d}"


def _saved_at(path: Path) -> float:
    try:
        return read_manifest(path)["saved_at"]
    except BadFile:
        return path.stat().st_mtime if path.exists() else 0.0  # a run may be deleting it at this moment


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def save(
    folder: Path,
    model: GPT,
    tokenizer: Tokenizer,
    *,
    stage: str,
    state: State,
    settings,
    optimizer_tensors: dict[str, torch.Tensor] | None = None,
    keep_last: int | None = None,
    dist: Dist = Dist(),
) -> Path:
    """Write folder/step_<state.step> and wait until it is on the disk. The folder's name is the tag.

    Every rank calls it, the main one writes. settings is a dataclass or dict of JSON values. SaveError on every rank if
    the disk is full, the folder is read-only, or a weight is not finite. keep_last: see `prune`.
    """
    saver = Saver(folder, tokenizer, stage=stage, settings=settings, keep_last=keep_last, dist=dist)
    path = saver.save(model, state, optimizer_tensors)
    saver.close()
    return path


class Saver:
    """Saves in the background: training waits only while the tensors are copied to memory, and, if it saves again
    before the last one is written, for that. An error is raised by the next `save` or `close`, on every rank.

        with Saver(folder, tokenizer, stage="base", settings=cfg, keep_last=2, dist=dist) as saver:
            saver.save(model, state, optimizer_tensors)
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        *,
        stage: str,
        settings,
        keep_last: int | None = None,
        dist: Dist = Dist(),
    ):
        if stage not in STAGES:
            raise ValueError(f"There is no stage {stage!r}. The stages are {', '.join(STAGES)}.")
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last={keep_last}: at least one checkpoint must be kept.")
        self.folder, self.tokenizer, self.stage, self.settings = Path(folder), tokenizer, stage, settings
        self.keep_last, self.dist = keep_last, dist
        self.copies: dict[str, torch.Tensor] = {}
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self.pending: Future | None = None

    def save(self, model: GPT, state: State, optimizer_tensors: dict[str, torch.Tensor] | None = None) -> Path:
        """Copy everything to memory and start to write it. Returns the folder that will appear."""
        self.wait()
        path = self.folder / _step_name(state.step)
        if self.dist.is_main:
            model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
            weights = self._copy("model.", model.state_dict())
            moments = self._copy("optimizer.", optimizer_tensors or {})
            about = {
                "stage": self.stage,
                "tag": self.folder.name,
                "model": asdict(model.config),
                "settings": _plain(self.settings),
            }
            remembered = json.loads(json.dumps(_plain(state)))  # a copy: the run goes on changing its own
            self.pending = self.executor.submit(
                _write, path, weights, moments, about, remembered, self.tokenizer, self.keep_last
            )
        return path

    def _copy(self, prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Into buffers that every save uses again: pinned memory for a GPU, and no page is faulted in twice."""
        copies = {}
        for name, tensor in tensors.items():
            copy, cuda = self.copies.get(prefix + name), tensor.device.type == "cuda"
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=cuda)
                self.copies[prefix + name] = copy
            copies[name] = copy.copy_(tensor.detach(), non_blocking=cuda)  # Apple's GPU would not be waited for
        if any(tensor.device.type == "cuda" for tensor in tensors.values()):
            torch.cuda.synchronize()
        return copies

    def wait(self) -> None:
        """Until nothing is left to write. SaveError on every rank if the last save failed."""
        error = None
        if self.pending is not None:
            pending, self.pending = self.pending, None
            error = pending.exception()
        message = self.dist.gather_objects(str(error) if error else None)[0]  # also the barrier
        if message is not None:
            raise SaveError(message) from error

    def close(self) -> None:
        """Wait for the last save. SaveError if it failed."""
        try:
            self.wait()
        finally:
            self.executor.shutdown()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:  # the other ranks may never reach a barrier now
            self.executor.shutdown()
            if self.pending is not None and self.pending.exception():
                print(self.pending.exception(), file=sys.stderr)


def tidy(folder: Path) -> None:
    """Finish what crashes interrupted in the folder of a run."""
    for path in [*folder.glob(".*.old"), *folder.glob(".*.tmp")]:
        recover(path.with_name(path.name[1:-4]))


def prune(folder: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` step folders."""
    if keep_last < 1:
        raise ValueError(f"keep_last={keep_last}: at least one checkpoint must be kept.")
    for path in steps(folder)[keep_last:]:
        remove(path)


def _plain(value) -> dict:
    return asdict(value) if is_dataclass(value) else dict(value)


def _write(path, weights, moments, about, state, tokenizer, keep_last) -> None:
    temporary = hidden(path, "tmp")
    try:
        for name, tensor in weights.items():
            if not torch.isfinite(tensor).all():
                raise SaveError(f"the weight {name} holds numbers that are not finite")
        path.parent.mkdir(parents=True, exist_ok=True)
        tidy(path.parent)
        temporary.mkdir()
        save_file(weights, temporary / MODEL, metadata={"format": "pt"})
        if moments:
            save_file(moments, temporary / OPTIMIZER)
        write_json(temporary / CONFIG, json.loads(json.dumps(about, default=str)))
        write_json(temporary / STATE, state)
        tokenizer.save(temporary / TOKENIZER)
        for name, examples in ((CONFIG, ABOUT), (STATE, asdict(State()))):
            _read_checked(temporary / name, examples)  # what could not be read again must not replace what can
        for file in temporary.glob("*.safetensors"):
            _check_header(file)
        # The time says which checkpoint is the newest, so it must grow even if the clock was set back.
        before = max((_saved_at(other) for other in steps(path.parent)), default=0.0)
        seal(temporary, max(time.time(), math.nextafter(before, math.inf)))
        publish(temporary, path)
        if keep_last is not None:
            prune(path.parent, keep_last)
    except (OSError, SafetensorError, ValueError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(tensor.nbytes for tensor in (*weights.values(), *moments.values()))
        raise SaveError(
            f"Cannot save {path} ({needed / 1e6:,.0f} MB): {error}. The checkpoints before it are intact."
        ) from error


# ---------------------------------------------------------------------------------------------------------------------
# Reading: every file is held against the manifest before anything in it is believed


def find(stage: str, tag: str | None = None, step: int | None = None) -> Path:
    """The step folder that is meant: the newest where tag or step is not named. SystemExit if there is none."""
    root = base_dir() / "checkpoints" / stage
    folders = [folder_of(stage, tag)] if tag is not None else [p for p in root.glob("*") if p.is_dir()]
    there = [path for folder in folders for path in steps(folder)]
    found = [path for path in there if step is None or path.name == _step_name(step)]
    if found:
        return max(found, key=_saved_at)
    wanted = f"{stage} checkpoint" + (f" of {tag}" if tag else "") + (f" at step {step}" if step is not None else "")
    if there:
        names = sorted(f"{path.parent.name}/{path.name}" for path in there)
        raise SystemExit(f"There is no {wanted} under {root}. There is {', '.join(names[:20])}.")
    make = f"python -m scripts.{SCRIPTS.get(stage, 'base_train')}"
    raise SystemExit(
        f"There is no {wanted} under {root}. `{make}` makes one; `bash quickstart.sh` does it all from nothing."
    )


def latest_valid(folder: Path, dist: Dist = Dist()) -> Path | None:
    """The newest step folder in which every byte is right, or None if there is no step at all. Damaged ones are passed
    over with a message; SystemExit if all are damaged. Every rank calls it; the main one looks."""
    answer = None
    if dist.is_main:
        if folder.is_dir() and os.access(folder, os.W_OK):
            tidy(folder)
        candidates = steps(folder)
        for path in candidates:
            try:
                verify(path)
                answer = ("found", path)
                break
            except BadFile as error:
                print(f"{error} Falling back to the checkpoint before it.", file=sys.stderr)
        if candidates and answer is None:
            answer = ("none", f"Every checkpoint in {folder} is damaged. Move it away to start anew.")
    answer = dist.gather_objects(answer)[0]
    if answer and answer[0] == "none":
        raise SystemExit(answer[1])
    return answer and answer[1]


def load(
    stage: str = "sft",
    tag: str | None = None,
    step: int | None = None,
    *,
    path: Path | None = None,
    device: torch.device = torch.device("cpu"),
    dtype: torch.dtype | None = None,
) -> Checkpoint:
    """The checkpoint in `path`, or the one that `find` finds. BadFile if anything in it is wrong: it names the file and
    says what to do.

    dtype, for inference: matrices are cast to it and the model computes in it; vectors stay fp32.
    """
    path = Path(path) if path is not None else find(stage, tag, step)
    try:
        return _read(path, device, dtype)
    except BadFile as error:
        others = [other.name for other in steps(path.parent) if other != path]
        instead = f"{others[0]} is taken instead" if others else "train it again"
        raise BadFile(f"{error} Move {path} away: then {instead}.") from error


def _read(path: Path, device: torch.device, dtype: torch.dtype | None) -> Checkpoint:
    verify(path, REQUIRED)
    about = _read_checked(path / CONFIG, ABOUT)
    state = State(**_read_checked(path / STATE, asdict(State())))
    model = _read_model(path, about["model"], device, dtype)
    tokenizer = Tokenizer.load(path / TOKENIZER)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise BadFile(
            f"{path / TOKENIZER} has {tokenizer.vocab_size} tokens, but the model in {path / MODEL} has room for "
            f"{model.config.vocab_size}. The two files do not belong together."
        )
    return Checkpoint(model, tokenizer, state, about["settings"], path, about["stage"], about["tag"])


def tensors_of(optimizers: list) -> dict[str, torch.Tensor]:
    """What is saved as `optimizer_tensors`: all that they remember. A collective: every rank calls it."""
    return {name: tensor for optimizer in optimizers for name, tensor in optimizer.state_dict().items()}


def load_optimizers(path: Path, optimizers: list) -> None:
    """Put what `tensors_of` gave back, from the step folder `path`.

    BadFile if anything in it is wrong, or it belongs to another model.
    """
    verify(path, (OPTIMIZER,))
    tensors = _read_tensors(path / OPTIMIZER)
    try:
        for optimizer in optimizers:
            optimizer.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        raise BadFile(
            f"{path / OPTIMIZER} does not fit these optimizers ({error}): give the flags that the run began with."
        ) from error


def _read_checked(path: Path, examples: dict) -> dict:
    """The object in a JSON file; its keys and the types of its values are those of `examples`."""
    values = read_object(path, set(examples))
    for name, example in examples.items():
        if type(values[name]) is not type(example) and not (type(example) is float and type(values[name]) is int):
            raise BadFile(f"{path}: {name} is {values[name]!r:.80}, which is not of the type {type(example).__name__}.")
    return values


def _check_header(path: Path) -> None:
    """BadFile unless the length that a safetensors file begins with is one that its header may have."""
    size = regular_size(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise BadFile(
            f"{path} is not a valid safetensors file: its header would have {length:,} bytes, in a file of {size:,}; "
            f"at most {MAX_HEADER_BYTES:,} are read."
        )


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    _check_header(path)
    try:
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise BadFile(f"{path} is not a valid safetensors file ({error}).") from error


def _read_model(path: Path, values, device: torch.device, dtype: torch.dtype | None) -> GPT:
    config = _read_model_config(path, values)
    tensors = _read_tensors(path / MODEL)
    if config.n_layer > len(tensors):  # before a module is made for each
        raise BadFile(f"{path / CONFIG} says n_layer={config.n_layer}, but {path / MODEL} has {len(tensors)} tensors.")
    with torch.device("meta"):  # shapes without memory
        model = GPT(config)
    expected = model.state_dict()
    check_keys(tensors, set(expected), path / MODEL)
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = tuple(tensor.shape), tuple(expected[name].shape)
            raise BadFile(f"{path / MODEL}: {name} has the shape {shapes[0]}, but {CONFIG} asks for {shapes[1]}.")
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise BadFile(f"{path / MODEL}: {name} is of the type {tensor.dtype}, which is none of a weight.")
        cast = dtype if dtype is not None and tensor.ndim >= 2 else tensor.dtype
        tensors[name] = tensor.to(device, cast)
    model.load_state_dict(tensors, assign=True)
    if dtype is not None:
        model.compute_dtype = dtype
    return model


def _read_model_config(path: Path, values) -> GPTConfig:
    """Types are checked by hand, and no value may exceed the weights' bytes, so a wrong file cannot ask for memory."""
    where = f"{path / CONFIG}: model"
    check_keys(values, {field.name for field in fields(GPTConfig)}, where)
    limit = (path / MODEL).stat().st_size
    for field in fields(GPTConfig):
        value = values[field.name]
        fits = (
            isinstance(value, bool) if field.type is bool else type(value) in (field.type, int) and 0 < value <= limit
        )
        if not fits and not (type(value) is field.type and value == field.default):
            raise BadFile(f"{where}.{field.name} is {value!r:.80}, which is no sensible number.")
    try:
        return GPTConfig(**values)
    except (TypeError, ValueError) as error:
        raise BadFile(f"{where}: {error}") from error
