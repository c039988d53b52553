"""Pictures that the tests of the loader read."""

from __future__ import annotations

import pytest

from mmssl.data.sources import Source, open_source
from tests.media import make_image_tree


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """16 pictures for training (rows 6 to 21, two classes) and 6 for testing."""
    root = tmp_path_factory.mktemp("pictures")
    make_image_tree(root / "data", each=8, size=24)
    return open_source(root / "data", "image", out=root, workers=1, cache=root / "cache")
