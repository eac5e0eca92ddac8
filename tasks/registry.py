"""The names of the tasks that are evaluated, and of the files they need.

In: a name, a split, a folder. Out: a Task; its module is imported only then.
"""

from importlib import import_module
from pathlib import Path

from tasks.common import Task
from tasks.published import MissingFile

# name -> (module, class, arguments before the split, splits to evaluate on: the first that is on this machine)
PUBLISHED = {
    "ARC-Easy": ("tasks.arc", "ARC", ("Easy",), ("test", "validation")),
    "ARC-Challenge": ("tasks.arc", "ARC", ("Challenge",), ("test", "validation")),
    "MMLU": ("tasks.mmlu", "MMLU", (), ("test", "validation")),
    "GSM8K": ("tasks.gsm8k", "GSM8K", (), ("test",)),
    "HumanEval": ("tasks.humaneval", "HumanEval", (), ("test",)),
}


def build(name: str, split: str, folder: Path | None = None) -> Task:
    """A published task. MissingFile if its file is not in the folder."""
    module, kind, arguments, _ = PUBLISHED[name]
    return getattr(import_module(module), kind)(*arguments, split, folder)


def evaluation_task(name: str, folder: Path | None = None) -> Task:
    """A published task on its test split, or on its validation split if only that is here (`task.split` tells)."""
    missing = []
    for split in PUBLISHED[name][-1]:
        try:
            return build(name, split, folder)
        except MissingFile as error:
            missing.append(error)
    raise missing[0]


def evaluation_tasks(names: tuple[str, ...] = (), folder: Path | None = None) -> tuple[list[Task], list[str]]:
    """The tasks of these names, or all that this machine has the files for; and a note on the others.

    SystemExit for an unknown name, or for a named task whose file is missing.
    """
    from tasks.mixtures import built_in_tasks

    built_in = {task.name: task for task in built_in_tasks()}
    unknown = [name for name in names if name not in PUBLISHED and name not in built_in]
    if unknown:
        raise SystemExit(f"No task is called {', '.join(unknown)}. There are: {', '.join([*PUBLISHED, *built_in])}.")
    tasks, left_out = [], []
    for name in names or (*PUBLISHED, *built_in):
        try:
            tasks.append(built_in[name] if name in built_in else evaluation_task(name, folder))
        except MissingFile:
            if names:
                raise
            left_out.append(name)
    notes = [f"Not asked, since their files are not here: {', '.join(left_out)} (`python -m tasks.published`)."]
    return tasks, notes if left_out else []


def practice(name: str) -> tuple[Task, Task]:
    """What reinforcement learning practises on, and what it is watched by: the training and the validation split, never
    the test. SystemExit for a name that has not both, or whose answers are letters."""
    from tasks.mixtures import built_in_tasks

    fit = {task.name: type(task) for task in built_in_tasks() if "validation" in task.splits}
    if name == "GSM8K":
        return build(name, "train"), build(name, "validation")
    if name not in fit:
        raise SystemExit(
            f"{name!r} is nothing to practise: it needs graded answers, a training and a validation split. "
            f"There are: {', '.join(['GSM8K', *fit])}."
        )
    return fit[name]("train"), fit[name]("validation")


def published_files() -> list[tuple[str, str, str]]:
    """(stem, address, split) of every published file, SmolTalk's four training parts one by one."""
    from tasks.arc import SUBSETS, files_of
    from tasks.gsm8k import GSM8K
    from tasks.humaneval import HumanEval
    from tasks.mmlu import MMLU
    from tasks.smoltalk import FILES, SmolTalk

    sets = [*map(files_of, SUBSETS), MMLU.files, GSM8K.files, HumanEval.files, SmolTalk.files]
    files = {stem: (stem, url, split) for group in sets for split, (stem, url) in group.items()}
    del files["smoltalk_train"]
    parts = [(stem, url, "train") for stem, url in FILES.items() if "train" in stem]
    return [*files.values(), *parts]
