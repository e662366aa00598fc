"""The default task, made from the standard library's docstrings."""

import collections

from benchmarks.finetune.docstrings import LARGEST, SMALLEST, docstring_task
from benchmarks.finetune.task import open_task


def test_the_task_has_its_stated_size():
    task = open_task()
    # Python versions differ a little in their docstrings.
    assert 20 <= len(task.labels) <= 32
    assert 1400 <= len(task.train) <= 2200
    assert 550 <= len(task.dev) <= 950
    sizes = collections.Counter(row["label"] for row in task.train + task.dev)
    assert min(sizes.values()) >= SMALLEST and max(sizes.values()) <= LARGEST
    texts = [row["text"] for row in task.train + task.dev]
    assert len(texts) == len(set(texts))


def test_sources_are_parsed_and_not_run(tmp_path):
    body = "raise SystemExit\n"
    body += "".join(f'def f{n}():\n    """Text  {n}."""\n' for n in range(70))
    for name in ("alpha", "beta", "_private", "test"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "part.py").write_text(body.replace("Text", f"The {name}"))
    (tmp_path / "alpha" / "broken.py").write_text("def (:\n")
    train, dev = docstring_task(tmp_path)
    assert (train, dev) == docstring_task(tmp_path)
    assert {row["label"] for row in train} == {"alpha", "beta"}
    assert (len(train), len(dev)) == (98, 42)
    assert all("  " not in row["text"] for row in train)


def test_texts_of_two_modules_are_left_out(tmp_path):
    for name in ("alpha", "beta"):
        lines = [f'def f{n}():\n    """{name} {n}."""\n' for n in range(60)]
        lines.append('def g():\n    """Shared."""\n')
        (tmp_path / f"{name}.py").write_text("".join(lines))
    train, dev = docstring_task(tmp_path)
    assert len(train + dev) == 120
    assert "Shared." not in {row["text"] for row in train + dev}
