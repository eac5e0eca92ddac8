"""Text that others publish: one table of what there is, where it lies, and what it was made of.

In: the name of a source. Out: addresses. Nothing is fetched here but the list of an upstream set's files.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from nanochat.download import new_client

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Source:
    """What somebody publishes on the Hugging Face hub.

    Shards of pretraining text are called shard_00000.parquet to shard_<last>.parquet, and the last one is validation.
    Chat data are the `files`: the name under which tasks/ look for them, and the name on the hub. `upstream` is the
    folder that shards were made of, `column` its column with text, or with the ids of GPT-2's tokens.
    """

    what: str
    folder: str = ""
    last: int = 0
    shard_mb: int = 100
    files: tuple[tuple[str, str], ...] = ()
    upstream: str = ""
    column: str = "text"

    def url(self, file: str) -> str:
        return f"{HUB}/datasets/{self.folder}/{file}"


# Shards as repackaged for Karpathy's nanochat: shuffled documents, about 250 M characters each.
SOURCES = {
    "climbmix": Source(
        "NVIDIA's ClimbMix: 6,542 shards of web text, filtered and mixed by topic. CC BY-NC 4.0",
        "karpathy/climbmix-400b-shuffle/resolve/main",
        last=6542,
        upstream="nvidia/Nemotron-ClimbMix",
        column="tokens",
    ),
    "fineweb": Source(
        "FineWeb-Edu: 1,822 shards of educational web pages. ODC-By 1.0",
        "karpathy/fineweb-edu-100b-shuffle/resolve/main",
        last=1822,
        upstream="HuggingFaceFW/fineweb-edu/sample/100BT",
    ),
    "wiki": Source("lead sections of Wikipedia's 10,033 vital articles, 5 MB, from an installed package. CC BY-SA 4.0"),
    "smoltalk": Source(
        "smol-SmolTalk: 485,000 conversations for the chat stages, 0.9 GB. Apache 2.0",
        "HuggingFaceTB/smol-smoltalk/resolve/main/data",
        files=(
            ("smoltalk_test", "test-00000-of-00001.parquet"),
            *((f"smoltalk_train-{part:05d}-of-00004", f"train-{part:05d}-of-00004.parquet") for part in range(4)),
        ),
    ),
}
PUBLISHED = {name: source for name, source in SOURCES.items() if source.last}


def mirrored(url: str, mirror: str) -> str:
    """The same file on another server, which has the paths of the original: mirror + the path of `url`."""
    return mirror.rstrip("/") + urlsplit(url).path if mirror else url


def upstream_files(source: Source, mirror: str = "") -> list[str]:
    """Addresses of the parquet files that the shards were made of. SystemExit if the hub does not list them."""
    owner, repository, *folder = source.upstream.split("/")
    name = f"{owner}/{repository}"
    page = mirrored("/".join([f"{HUB}/api/datasets/{name}/tree/main", *folder]), mirror) + "?recursive=true"
    paths: list[str] = []
    with new_client() as client:
        while page:  # a thousand files a page
            try:
                answer = client.get(page)
            except httpx.HTTPError as error:
                raise SystemExit(f"{page} cannot be read: {error}. Is there a network?") from error
            if answer.status_code != 200:
                raise SystemExit(f"{page} answers HTTP {answer.status_code}: the files of {name} cannot be listed.")
            paths += [entry["path"] for entry in answer.json() if entry["path"].endswith(".parquet")]
            page = answer.links.get("next", {}).get("url", "")
    if not paths:
        raise SystemExit(f"{name} lists no parquet files. Fetch them yourself, and give their folder with --from.")
    return [mirrored(f"{HUB}/datasets/{name}/resolve/main/{path}", mirror) for path in sorted(paths)]
