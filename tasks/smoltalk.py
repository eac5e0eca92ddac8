"""SmolTalk: general conversations of several turns, for training.

In: smoltalk_train and smoltalk_test, the set made for small models (Allal et al., 2025, https://arxiv.org/abs/2502.02737).
Out: conversations; there is nothing to grade.
"""

from nanochat.sources import SOURCES
from tasks.published import PublishedTask

FILES = {stem: SOURCES["smoltalk"].url(file) for stem, file in SOURCES["smoltalk"].files}


class SmolTalk(PublishedTask):
    name = "SmolTalk"
    files = {
        "train": ("smoltalk_train", FILES["smoltalk_train-00000-of-00004"]),  # and the three parts after it
        "test": ("smoltalk_test", FILES["smoltalk_test"]),
    }
    columns = ("messages",)

    def conversation(self, row: dict) -> dict:
        return {"messages": [{"role": m["role"], "content": m["content"]} for m in row["messages"]]}
