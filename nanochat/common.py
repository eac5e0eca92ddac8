"""What every module shares: where artifacts live, which device and ranks there are, progress and metrics.

In: the environment of the process (paths, torchrun's ranks). Out: Path, Dist, Progress, MetricsLog.
Nothing here knows about models or tokens.
"""

import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from nanochat.files import BadFile, write_bytes

STAGES = ("base", "mid", "sft", "rl")


def base_dir() -> Path:
    """Folder of all artifacts: `$NANOCHAT_BASE_DIR`, or `~/.cache/nanochat`. Made on first use."""
    path = Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat").expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Devices and ranks


@dataclass(frozen=True)
class Dist:
    """This process among its peers. The collectives do nothing when it is alone, so callers never ask."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    local_world_size: int = 1
    """ranks on this machine"""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """Reduce in place over all ranks; op is "sum", "max" or "min". Returns the tensor."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=getattr(dist.ReduceOp, op.upper()))
        return tensor

    def reduce_scatter(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks of a tensor (world_size * n, ...); this rank's n rows of it."""
        if self.world_size == 1:
            return tensor
        if self.device.type == "cpu":  # gloo has no reduce_scatter in every version
            return self.all_reduce(tensor).chunk(self.world_size)[self.rank]
        shard = tensor.new_empty(len(tensor) // self.world_size, *tensor.shape[1:])
        _new_or_old("reduce_scatter_single", "reduce_scatter_tensor")(shard, tensor.contiguous())
        return shard

    def all_gather(self, shard: torch.Tensor) -> torch.Tensor:
        """The shards (n, ...) of all ranks in rank order, (world_size * n, ...)."""
        if self.world_size == 1:
            return shard
        whole = shard.new_empty(self.world_size * len(shard), *shard.shape[1:])
        _new_or_old("all_gather_single", "all_gather_into_tensor")(whole, shard.contiguous())
        return whole

    def gather_objects(self, value) -> list:
        """Every rank's value, in rank order, on every rank (plain data only: the wire format is torch's own)."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def print(self, *args, **kwargs) -> None:
        """Print on the main rank only."""
        if self.is_main:
            print(*args, **kwargs, flush=True)


def _new_or_old(new: str, old: str):
    """torch 2.13 renamed collectives, and warns at the old names."""
    return getattr(dist, new, None) or getattr(dist, old)


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA, then Apple's GPU, then the CPU. SystemExit if a device is asked for that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SystemExit(f"--device={name} is none that torch knows. Use auto, cuda, mps or cpu.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device=cuda, but torch sees no CUDA GPU here. Use --device=auto, or install a CUDA build.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SystemExit("--device=mps, but torch sees no Apple GPU here. Use --device=auto.")
    return device


@contextmanager
def setup(device: str = "auto") -> Iterator[Dist]:
    """Join the ranks that torchrun started (or be alone), and leave them on the way out. SystemExit if one of them is
    lost meanwhile: the next sum over all ranks fails, by gloo at once, by NCCL when torchrun ends this process."""
    chosen = pick_device(device)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    if chosen.type == "cuda":
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")
    if world_size > 1:
        # Numbers that the hosts exchange in a step go by gloo on GPUs, too: NCCL would have them wait for the GPU.
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        device_id = chosen if chosen.type == "cuda" else None
        dist.init_process_group(backend, timeout=timedelta(minutes=10), device_id=device_id)
    try:
        yield Dist(rank, local_rank, world_size, chosen, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    except RuntimeError as error:
        if world_size > 1 and any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "Connection closed")):
            raise SystemExit(
                f"Rank {rank} of {world_size} lost another rank ({str(error).splitlines()[0]:.200}). The cause is in "
                "the output of the rank that ended first. The newest checkpoint is whole: --resume goes on from it."
            ) from error
        raise
    if world_size > 1:  # after an error the others may be gone, and waiting for them would take minutes
        dist.destroy_process_group()


def compute_dtype(device: torch.device) -> torch.dtype:
    """What a model answers and is judged in: bf16 on GPUs that multiply it, else fp32."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def training_dtype(device: torch.device, name: str = "auto") -> torch.dtype:
    """What a model is trained in: "float32", "bfloat16", or "auto", which is bf16 where the hardware multiplies it at
    least twice as fast. Some of Intel's CPUs know bf16 without AMX, and are slower with it (dev/LOG.md)."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    cpu = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    if cpu.get("amx_bf16") or (cpu.get("avx512_bf16") and "AMD" in cpu.get("cpu_name", "")):
        return torch.bfloat16
    return compute_dtype(device)


@functools.cache
def cannot_compile() -> str:
    """Why torch.compile would fail on a GPU of this machine: what its compiler Triton needs and a fresh machine may
    lack; "" if all is there."""
    folders = sysconfig.get_paths()["include"], sysconfig.get_config_var("INCLUDEPY") or ""
    missing = [] if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") else ["a C compiler"]
    missing += [] if any(Path(folder, "Python.h").exists() for folder in folders) else ["Python's headers"]
    if not missing:
        return ""
    return f"This machine lacks {' and '.join(missing)}: the GPU runs uncompiled, slowly. apt install gcc python3-dev"


def tokens_at_once(device: torch.device) -> int:
    """Tokens in one forward of an evaluation: with more of them none is computed faster."""
    return 2048 if device.type == "cpu" else 65536


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all work queued so far, so that a clock reads true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process has held, on the GPU if it uses one, else resident in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_machine(device: torch.device) -> dict:
    """What the report says of the machine: processor, cores, memory, GPU, versions, commit. JSON values only."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    machine = {
        "platform": platform.platform(terse=True),
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "commit": git_commit(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        machine["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if device.type == "cuda":
        machine["gpus"] = torch.cuda.device_count()
    return machine


def git_commit() -> str:
    """Short hash of the checkout that this file is in, with `+` if it has changes; "" outside git."""
    here = Path(__file__).resolve().parent

    def run(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return run("rev-parse", "--short", "HEAD") + ("+" if run("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


# ---------------------------------------------------------------------------------------------------------------------
# What a person sees while work goes on, and what is kept of it


def format_seconds(seconds: float) -> str:
    """65.2 -> "1:05", 3700 -> "1:01:40"."""
    seconds = max(0, round(seconds))
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """One line that says which stage runs, how far it is, how fast, and how long it will take.

    On a terminal the line redraws itself; in a log file a new line is written every `every` seconds.
    """

    def __init__(
        self, stage: str, total: float, unit: str = "step", dist: Dist = Dist(), done: float = 0, every: float = 10
    ):
        self.stage, self.total, self.unit, self.dist, self.every = stage, total, unit, dist, every
        self.start = time.monotonic()
        self.counted = self.start, done  # where the rate is counted from
        self.shown = float("-inf")
        self.live = dist.is_main and sys.stderr.isatty()

    def update(self, done: float, **fields) -> None:
        """`fields` are shown as they are, name then value: update(12, loss="3.21", rate="6,012 tok/s").

        With the unit "%" only the part of `total` is shown.
        """
        now = time.monotonic()
        finished = done >= self.total
        if not self.dist.is_main or (now - self.shown < (0.1 if self.live else self.every) and not finished):
            return
        self.shown = now
        then, before = self.counted
        left = (now - then) / (done - before) * (self.total - done) if done > before else None
        if left is not None and then == self.start:
            self.counted = now, done  # what came first took longer: it was compiled
        if done - before == 1 and self.unit != "%":
            left = None  # one is too few to know
        fraction = min(1.0, done / self.total) if self.total else 1.0
        time_text = "" if left is None else f"{format_seconds(left)} left"
        time_text = f"{format_seconds(now - self.start)} taken" if finished else time_text
        values = "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in fields.items())
        amount = f"{100 * fraction:.0f}%" if self.unit == "%" else f"{done:,.0f}/{self.total:,.0f} {self.unit}"
        words = "  ".join(filter(None, [amount, values, time_text]))
        room = os.get_terminal_size(sys.stderr.fileno()).columns if self.live else 0
        size = min(20, max(4, room - len(words) - 19)) if room else 20  # a narrow terminal has a short bar
        full = round(size * fraction)
        line = f"{self.stage:<16} {'━' * full}{'╌' * (size - full)} {words}"
        if self.live:
            sys.stderr.write("\r\x1b[K" + (line[: room - 1] if room else line) + ("\n" if finished else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def message(self, text: str) -> None:
        """A line above the bar."""
        if self.dist.is_main:
            sys.stderr.write(("\r\x1b[K" if self.live else "") + text + "\n")
            sys.stderr.flush()
            self.shown = float("-inf") if self.live else self.shown


class MetricsLog:
    """Values by step in a JSONL file. Opened at step N it forgets what was logged after N, so that a resumed
    run ends with the same file as one that was never interrupted. What a full disk does not take is kept in memory and
    tried again with the next row."""

    def __init__(self, path: Path, step: int = 0, dist: Dist = Dist()):
        self.path, self.dist = path, dist
        self.waiting, self.failing = b"", False
        self.copy_to = None  # a function of numbers by name, and the step
        if dist.is_main:
            kept = [row for row in self.read(path) if row["step"] <= step] if step > 0 else []
            write_bytes(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def log(self, step: int, **values) -> None:
        """Numbers by name; also lists, of samples that are worth watching."""
        if not self.dist.is_main:
            return
        if self.copy_to:
            self.copy_to({name: value for name, value in values.items() if not isinstance(value, list)}, step)
        self.waiting += (json.dumps({"step": step, **values}) + "\n").encode()
        try:
            with open(self.path, "ab", buffering=0) as file:
                while self.waiting:
                    self.waiting = self.waiting[file.write(self.waiting) :]
            self.failing = False
        except OSError as error:
            if not self.failing:
                print(f"\n{self.path} cannot be written now: {error.strerror}. Trying again.", file=sys.stderr)
            self.failing = True

    @staticmethod
    def read(path: Path) -> list[dict]:
        """Every row; [] if there is no file. A last line cut short by a crash is left out. BadFile naming the line if
        another one is no object of numbers and lists (samples) with a whole "step"."""
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        rows = []
        for number, line in enumerate(lines[:-1], start=1):  # what comes after the last newline is cut short
            try:
                row = json.loads(line)
                if type(row["step"]) is not int or not all(
                    isinstance(value, int | float | list) for value in row.values()
                ):
                    raise ValueError("it should be numbers or samples by name, with a whole step")
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise BadFile(f"{path}, line {number}, is damaged ({error}). Mend it or move it away.") from error
            rows.append(row)
        return rows
