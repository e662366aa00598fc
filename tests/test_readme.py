"""The README's code runs as it stands."""

import re
from pathlib import Path

import jax
import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_there_is_code():
    assert BLOCKS


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.splitlines()[0])
def test_code_runs(code):
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(code, str(README), "exec"), {"__name__": "readme"})


def test_the_first_screen_has_ten_lines_of_code():
    assert len(BLOCKS[0].strip().splitlines()) <= 12
