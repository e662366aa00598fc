"""Strict JAX settings for tests and doctests; eight CPU devices for sharding."""

import os
from collections.abc import Iterator

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The same examples in every run, and no limit on a busy machine.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """For Optax's own functions that mix int counts with Python floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield
