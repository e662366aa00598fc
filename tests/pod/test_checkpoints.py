"""Damaged, unfinished and foreign checkpoints are told from good ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optaxtricks as ot
from benchmarks.checkpoints import CheckpointError, Checkpoints
from tests.problems import assert_same, small_tree

SETTINGS = {"learning_rate": 0.1, "keep_rate": 0.5, "betas": (0.9, 0.99)}


def _tx() -> optax.GradientTransformation:
    return optax.chain(ot.gradient_dropout(0.5, key=0), ot.lion(0.1))


def _tree(factor: float = 1.0, tx: optax.GradientTransformation | None = None) -> Any:
    params = jax.tree.map(lambda leaf: leaf * factor, small_tree())
    return {"params": params, "state": (tx or _tx()).init(params)}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def opened(tmp_path: Path, said: list[str]) -> Any:
    """Opens the test's folder; closes at the end what was opened."""
    stores = []

    def open_store(**changes: Any) -> Checkpoints:
        given: dict[str, Any] = {"settings": SETTINGS, "report": said.append, **changes}
        stores.append(Checkpoints(tmp_path / "run", **given))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def written(opened: Callable[..., Checkpoints]) -> Callable[..., Checkpoints]:
    """Writes steps 1 and 2, whose parameters are the small tree's once and twice."""
    store = opened(notes={"mesh": 8})
    for step in (1, 2):
        store.save(step, _tree(step))
    store.wait()
    return opened


def _biggest(folder: Path, step: int) -> Path:
    files = (p for p in (folder / str(step)).rglob("*") if p.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "is not as it was written": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "not as it was written": _flip,
    "is missing": Path.unlink,
}


def test_nothing_to_restore(opened: Callable[..., Checkpoints]) -> None:
    assert opened().restore(_tree()) is None


def test_the_newest_step_comes_back_to_the_bit(
    written: Callable[..., Checkpoints],
) -> None:
    found = written().restore(jax.eval_shape(_tree))
    assert found is not None
    assert (found.step, found.notes) == (2, {"mesh": 8})
    assert_same(found.tree, _tree(2))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=("truncated", "bit", "gone"))
def test_a_damaged_step_is_refused_and_the_one_before_used(
    written: Callable[..., Checkpoints],
    damage: Callable[[Path], Any],
    tmp_path: Path,
    said: list[str],
) -> None:
    text = next(text for text, same in DAMAGES.items() if same is damage)
    file = _biggest(tmp_path / "run", 2)
    damage(file)
    store = written()
    found = store.restore(_tree())
    assert found is not None and found.step == 1
    assert_same(found.tree, _tree(1))
    (line,) = said
    assert line.startswith("the checkpoint of step 2 is not used: file ")
    assert file.name in line and text in line
    # The number is free again, and what was damaged is still there to be looked at.
    store.save(2, _tree(3))
    store.wait()
    found = written().restore(_tree())
    assert found is not None and found.step == 2
    assert_same(found.tree, _tree(3))
    assert (tmp_path / "run" / "damaged-2").is_dir()


def test_a_damaged_manifest_is_refused(
    written: Callable[..., Checkpoints], tmp_path: Path, said: list[str]
) -> None:
    (part,) = (tmp_path / "run" / "manifests" / "2").iterdir()
    part.write_text(part.read_text().replace("0.1", "0.2"))
    found = written().restore(_tree())
    assert found is not None and found.step == 1
    assert said == ["the checkpoint of step 2 is not used: its manifest is damaged."]


def test_without_a_whole_step_nothing_is_restored_and_nothing_lost(
    written: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    for step in (1, 2):
        _flip(_biggest(tmp_path / "run", step))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no checkpoint is whole: step 2: "):
            written().restore(_tree())
    assert {"1", "2"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_what_was_not_finished_is_removed(
    written: Callable[..., Checkpoints], tmp_path: Path, said: list[str]
) -> None:
    folder = tmp_path / "run"
    for path in (folder / "manifests" / "2").iterdir():
        path.unlink()
    (folder / "3.orbax-checkpoint-tmp").mkdir()
    found = written().restore(_tree())
    assert found is not None and found.step == 1
    assert sorted(said) == [
        "checkpoint 2 was not finished; it is removed.",
        "checkpoint 3.orbax-checkpoint-tmp was not finished; it is removed.",
    ]
    names = {str(p.relative_to(folder)) for p in folder.glob("*")}
    assert names == {"1", "manifests"}


def test_other_settings_are_named(written: Callable[..., Checkpoints]) -> None:
    changed = {"learning_rate": 0.2, "betas": (0.9, 0.99), "window": 4}
    with pytest.raises(CheckpointError) as caught:
        written(settings=changed).restore(_tree())
    assert str(caught.value) == (
        "the checkpoint of step 2 was written with learning_rate 0.1, this run has "
        "0.2; with window nothing, this run has 4; with keep_rate 0.5, this run has "
        "nothing."
    )


def test_nested_settings_are_named_by_their_path(
    opened: Callable[..., Checkpoints],
) -> None:
    store = opened(settings={"lion": {"b1": 0.9}})
    store.save(1, _tree())
    store.wait()
    with pytest.raises(CheckpointError, match=r"with lion\.b1 0\.9, this run has 0\.5"):
        opened(settings={"lion": {"b1": 0.5}}).restore(_tree())


@pytest.mark.parametrize(
    ("tx", "text"),
    [
        (
            optax.chain(ot.gradient_dropout(0.5, key=0), ot.tiger(0.1)),
            r"has no leaf 'state/1/0/call', which this run has as NoneType; "
            r"has leaf 'state/1/1' as EmptyState, this run has it as tuple; ",
        ),
        (
            ot.lion(0.1),
            r"has no leaf 'state/0/mu/emb', which this run has as float32\[16, 8\]; ",
        ),
        (
            optax.chain(
                ot.gradient_dropout(0.5, key=0), ot.lion(0.1, mu_dtype=jnp.bfloat16)
            ),
            r"has leaf 'state/1/.*mu/emb' as float32\[16, 8\], this run has it as "
            r"bfloat16\[16, 8\]",
        ),
    ],
    ids=("tiger", "no-dropout", "bfloat16"),
)
def test_another_chain_is_told_by_its_state(
    written: Callable[..., Checkpoints], tx: optax.GradientTransformation, text: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"the checkpoint of step 2 {text}"):
        written().restore(_tree(tx=tx))


def test_stateless_links_of_a_chain_count_too(
    written: Callable[..., Checkpoints],
) -> None:
    longer = optax.chain(
        *[ot.gradient_dropout(0.5, key=0)], ot.lion(0.1), optax.scale(1.0)
    )
    with pytest.raises(
        CheckpointError, match=r"no leaf 'state/2', which .* EmptyState"
    ):
        written().restore(_tree(tx=longer))


def test_another_shape_is_named(written: Callable[..., Checkpoints]) -> None:
    tree = _tree()
    tree["params"]["emb"] = jnp.zeros((4, 8))
    text = r"'params/emb' as float32\[16, 8\], this run has it as float32\[4, 8\]"
    with pytest.raises(CheckpointError, match=text):
        written().restore(tree)


def test_old_steps_go_and_their_manifests_with_them(
    opened: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    store = opened(keep=2)
    for step in range(1, 5):
        store.save(step, _tree())
    store.wait()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"3", "4", "manifests"}
    manifests = {path.name for path in (tmp_path / "run" / "manifests").iterdir()}
    assert manifests == {"3", "4"}


def test_steps_must_grow(written: Callable[..., Checkpoints]) -> None:
    with pytest.raises(CheckpointError, match="step 2 is not after all others"):
        written().save(2, _tree())


def test_another_programs_checkpoints_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    with pytest.raises(CheckpointError, match="checkpoints without manifests"):
        Checkpoints(tmp_path, settings={})
    assert [path.name for path in tmp_path.iterdir()] == ["7"]


def test_a_single_checkpoint_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 2, got 1"):
        Checkpoints(tmp_path, settings={}, keep=1)


def test_a_failed_write_is_heard_of(
    opened: Callable[..., Checkpoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError("no space left")

    store = opened()
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.checkpoints.manifest.write", full)
        store.save(1, _tree())
        with pytest.raises(OSError, match="no space left"):
            store.wait()
