"""Optax's promotion, and the random words that a list of layers shares with a stack."""

import pytest

from tests.transforms.stacks import share_words


@pytest.fixture(autouse=True)
def as_in_a_stack(standard_promotion: None, monkeypatch: pytest.MonkeyPatch) -> None:
    share_words(monkeypatch)
