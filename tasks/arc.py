"""ARC: school science questions with three to five choices, in an easy and a challenge set.

In: arc_easy_<split> and arc_challenge_<split> (Clark et al., 2018, https://arxiv.org/abs/1803.05457).
Out: multiple-choice conversations.
"""

from pathlib import Path

from tasks.published import HUB, PublishedTask, ask

SUBSETS = ("Easy", "Challenge")


def files_of(subset: str) -> dict[str, tuple[str, str]]:
    address = f"{HUB}/allenai/ai2_arc/resolve/main/ARC-{subset}"
    return {
        split: (f"arc_{subset.lower()}_{split}", f"{address}/{split}-00000-of-00001.parquet")
        for split in ("train", "validation", "test")
    }


class ARC(PublishedTask):
    kind = "categorical"
    columns = ("question", "choices", "answerKey")

    def __init__(self, subset: str, split: str = "test", folder: Path | None = None):
        if subset not in SUBSETS:
            raise ValueError(f"ARC: subset must be one of {', '.join(SUBSETS)}, not {subset!r}.")
        self.name, self.files = f"ARC-{subset}", files_of(subset)
        super().__init__(split, folder)
        self.chance = sum(1 / len(row["choices"]["text"]) for row in self.rows) / len(self.rows)

    def conversation(self, row: dict) -> dict:
        """The published labels, A to E or 1 to 5, become A to E for all."""
        choices = row["choices"]
        return ask(row["question"], choices["text"], list(choices["label"]).index(row["answerKey"]))
