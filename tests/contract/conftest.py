"""What a case needs of its surroundings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.cases import CASES

HERE = Path(__file__).parent


def _case_of(item: Any) -> Any:
    chosen = getattr(getattr(item, "callspec", None), "params", {})
    return chosen.get("case", CASES.get(chosen.get("name", "")))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Variants of other rows are slow."""
    for item in items:
        case = _case_of(item) if item.path.is_relative_to(HERE) else None
        if case is not None and case.slow:
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
