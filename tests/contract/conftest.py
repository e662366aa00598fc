"""What a case needs of its surroundings."""

from collections.abc import Iterator

import jax
import pytest

from tests.cases import CASES


@pytest.fixture(autouse=True)
def promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """JAX's dtype promotion as the test's case wants it."""
    chosen = getattr(getattr(request.node, "callspec", None), "params", {})
    case = chosen.get("case", CASES.get(chosen.get("name", "")))
    if case is None or case.promotion == "strict":
        yield
    else:
        with jax.numpy_dtype_promotion(case.promotion):
            yield
