"""What the compiled suite needs of its surroundings."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    """JAX's compilation cache reads no program back for devices that are not there."""
