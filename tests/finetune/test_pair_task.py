"""The pair task, made from the standard library's functions."""

import ast
import collections

import pytest

from benchmarks.finetune.docstring_pairs import (
    DEV,
    LARGEST,
    LONGEST,
    SHORTEST_BODY,
    SHORTEST_TEXT,
    TRAIN,
    pair_task,
)
from benchmarks.finetune.errors import InputError
from benchmarks.finetune.stdlib_sources import Function, documented, library, sources
from benchmarks.finetune.task import open_task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def task():
    return open_task("stdlib-pairs")


def write_module(root, name, functions):
    """A module of functions (docstring, last line of a long enough body)."""
    lines = []
    for n, (text, last) in enumerate(functions):
        lines += [f"def f{n}(x):", f"    '''{text}'''"]
        lines += ["    values = [x, x + 1, x + 2, x + 3, x + 4, x + 5]"]
        lines += [f"    return values + ['{last}']"]
    (root / f"{name}.py").write_text("\n".join([*lines, "raise SystemExit", ""]))


def functions(name, count):
    return [
        (f"Return the {name} of all values, part {n}.", f"{name}{n}")
        for n in range(count)
    ]


def test_the_task_has_its_stated_size(task):
    assert task.labels == ["other", "own"]
    assert len(task.train) == 2 * TRAIN
    # Whole modules are taken, and Python versions differ a little.
    assert 0.9 * 2 * DEV <= len(task.dev) <= 2 * DEV
    for row in task.train + task.dev:
        assert SHORTEST_TEXT <= len(row["text"]) <= LONGEST
        assert SHORTEST_BODY <= len(row["text_b"]) <= LONGEST


@pytest.mark.parametrize("split", ["train", "dev"])
def test_neither_side_alone_tells_the_label(task, split):
    rows = getattr(task, split)
    for side in ("text", "text_b"):
        labels = collections.defaultdict(list)
        for row in rows:
            labels[row[side]].append(row["label"])
        uneven = [k for k, v in labels.items() if sorted(v) != ["other", "own"]]
        # The cut at the end of train may part one module's docstrings.
        assert len(uneven) <= (2 if split == "train" and side == "text" else 0)


def test_nothing_is_in_train_and_dev(task):
    for side in ("text", "text_b"):
        train, dev = ({row[side] for row in rows} for rows in (task.train, task.dev))
        assert not train & dev
    pairs = [(row["text"], row["text_b"]) for row in task.train + task.dev]
    assert len(pairs) == len(set(pairs))


def test_no_body_holds_its_docstring(task):
    assert not any(row["text"] in row["text_b"] for row in task.train + task.dev)


def test_labels_are_true_and_the_other_docstring_is_of_the_same_module(task):
    home, own = {}, set()
    for module, files in sources(library()).items():
        for source in files:
            for node, text in documented(source):
                if isinstance(node, Function):
                    body = " ".join(ast.unparse(part) for part in node.body[1:])
                    body = " ".join(body.split())
                    home[text] = home[body] = module
                    own.add((text, body))
    split_of = {}
    for split in ("train", "dev"):
        for row in getattr(task, split):
            pair = (row["text"], row["text_b"])
            assert (pair in own) == (row["label"] == "own")
            assert home[row["text"]] == home[row["text_b"]]
            # No module is on both sides.
            assert split_of.setdefault(home[row["text"]], split) == split


def test_sources_are_parsed_and_not_run(tmp_path):
    for name in ("alpha", "beta", "gamma", "delta", "_private"):
        write_module(tmp_path, name, functions(name, LARGEST + 10))
    (tmp_path / "broken.py").write_text("def (:\n")
    write_module(tmp_path, "single", functions("single", 1))
    train, dev = pair_task(tmp_path)
    assert (train, dev) == pair_task(tmp_path)
    texts = {row["text"].split()[2] for row in train + dev}
    assert texts == {"alpha", "beta", "gamma", "delta"}
    assert (len(train), len(dev)) == (3 * 2 * LARGEST, 2 * LARGEST)


def test_shared_docstrings_and_bodies_are_left_out(tmp_path):
    shared_text = [("One docstring that two modules share.", n) for n in "ab"]
    same_body = [(f"Another docstring of the same body {n}.", "c") for n in "xy"]
    write_module(tmp_path, "alpha", [*functions("alpha", 3), shared_text[0]])
    write_module(tmp_path, "beta", [*functions("beta", 3), shared_text[1]])
    write_module(tmp_path, "gamma", [*functions("gamma", 3), *same_body])
    write_module(tmp_path, "delta", functions("delta", 3))
    rows = [row for part in pair_task(tmp_path) for row in part]
    assert len(rows) == 2 * 12
    assert not any("share" in r["text"] or "same body" in r["text"] for r in rows)


def test_a_library_without_docstrings_is_an_error(tmp_path):
    with pytest.raises(InputError, match="name a task with `--task DIR`"):
        pair_task(tmp_path)
