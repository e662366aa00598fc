"""What a case needs of its surroundings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.cases import CASES

HERE = Path(__file__).parent
# Where a variant may differ from the row it varies: in numbers, layouts, places.
VARIED = {"test_numbers.py", "test_restore.py", "test_sharding.py", "test_state.py"}


def _case_of(item: Any) -> Any:
    chosen = getattr(getattr(item, "callspec", None), "params", {})
    return chosen.get("case", CASES.get(chosen.get("name", "")))


def _varies(item: pytest.Item) -> bool:
    case = _case_of(item) if item.path.is_relative_to(HERE) else None
    return case is not None and case.slow


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Variants of other rows are slow, and asked for what may differ."""
    items[:] = [x for x in items if x.path.name in VARIED or not _varies(x)]
    for item in filter(_varies, items):
        item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """JAX's dtype promotion as the test's case wants it."""
    case = _case_of(request.node)
    if case is None or case.promotion == "strict":
        yield
    else:
        with jax.numpy_dtype_promotion(case.promotion):
            yield
