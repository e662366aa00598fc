"""Strict JAX settings for tests and doctests; eight CPU devices for sharding."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import hypothesis
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

PROGRAMS = Path(__file__).parent.parent / "build" / "xla"

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The same examples in every run, and no limit on a busy machine.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    """Tests compile the same programs again and again: workers and runs share them."""
    jax.config.update("jax_compilation_cache_dir", str(PROGRAMS))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """For Optax's own functions that mix int counts with Python floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield
