"""How the taps of the tests are cached, and a whole cache to compare with."""

import pytest

from optaxtricks._core import tap_files
from tests.nn.tap_data import cached, files


@pytest.fixture
def each_batch_a_block(monkeypatch):
    """Every batch is stored when it comes, however small it is."""
    monkeypatch.setattr(tap_files, "BLOCK_BYTES", 1)


@pytest.fixture
def whole(tmp_path, each_batch_a_block):
    """The files of a cache that nothing interrupted."""
    cached(tmp_path / "whole")
    return files(tmp_path / "whole")
