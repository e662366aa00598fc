"""The command line's errors, the data's order, and what a run leaves behind."""

import json
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.checkpoints import Checkpoints
from benchmarks.finetune.checkpoint import load_encoder, open_checkpoint
from benchmarks.finetune.errors import InputError
from benchmarks.pod.__main__ import main
from benchmarks.pod.batches import Batches
from benchmarks.pod.cli import parse, settings
from benchmarks.pod.layout import param_shardings
from benchmarks.pod.log import Log
from benchmarks.pod.mesh import make_mesh
from benchmarks.pod.program import Program
from benchmarks.pod.work import RULES, open_work
from tests.finetune.conftest import DATA, write_task
from tests.problems import assert_same

from .conftest import STEPS, Unbroken
from .runs import (
    PATIENCE,
    Run,
    copy_until,
    finish,
    flags,
    losses,
    saved,
    started,
)

MESH = "data=4,model=2"


def _call(flags: dict[str, Any]) -> int:
    # In this process a cache would be that of all tests after this one.
    given = {name: x for name, x in flags.items() if name != "--compilation-cache"}
    pairs = [part for pair in given.items() for part in pair if part is not None]
    return main([str(part) for part in pairs])


def _error(capsys: pytest.CaptureFixture[str], flags: dict[str, Any]) -> str:
    """The one line that a run with wrong flags prints."""
    assert _call(flags) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"--recipe": "sgd"}, "invalid choice: 'sgd'"),
        (
            {"--set": "b1=2"},
            "dropout_lion has no option 'b1'; it has ['weight_decay', ",
        ),
        ({"--set": "keep_rate=x"}, "--set: keep_rate must be a number, got 'x'."),
        ({"--mesh": "data=2,data=4"}, "--mesh: must be like data=4,model=2"),
        ({"--mesh": "data=0"}, "--mesh: must be like data=4,model=2"),
        ({"--mesh": "data=3"}, "--mesh: data=3,model=1 is 3 devices, there are 8."),
        ({"--batch-size": 12}, "--batch-size: 12 is not divisible by data=8"),
        ({"--recipe": "lora"}, "--recipe: lora is for a decoder: tiny, 1b, 8b, 70b."),
        (
            {"--set": "keep_rate=2"},
            "--recipe: dropout_lion of synthetic: keep_rate",
        ),
        ({"--model": "encoder"}, "--model: an encoder needs --pretrained and --task."),
        ({"--model": "tiny", "--length": 2**20}, "--length: 1048576 is more than the "),
        ({"--json": None}, "--json: goes with --plan."),
        ({"--plan": "v5e:3"}, "--plan: target must be h100, as many as h100:8, or"),
        ({"--plan": "v9:2x2"}, "--plan: chips are known of v4, v5e, v5p, v6e, h100"),
        ({"--keep": 1}, "--keep: must be at least 2, got 1."),
        ({"--steps": 0}, "must be a positive integer, got '0'."),
        ({"--processes": 2}, "--coordinator is missing: --coordinator, --processes"),
        (
            {"--coordinator": "here", "--processes": 2, "--process-id": 0},
            "--coordinator: must be HOST:PORT, got 'here'.",
        ),
        (
            {"--coordinator": "here:1", "--processes": 2, "--process-id": 2},
            "--process-id: must lie in [0, 2), got 2.",
        ),
    ],
)
def test_wrong_flags_are_one_line(
    wrong: dict[str, Any],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"--size": "tiny", "--out": tmp_path / "out", **wrong}
    assert text in _error(capsys, given)


def test_a_folder_that_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").touch()
    assert "out cannot be written." in _error(capsys, {"--out": tmp_path / "out"})


def test_processes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "there:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    options = parse(["--out", str(tmp_path)])
    found = (options.coordinator, options.processes, options.process_id)
    assert found == ("there:1234", 4, 3)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "four")
    with pytest.raises(InputError, match="'four' is no count of processes"):
        parse(["--out", str(tmp_path)])
    # A pod's own way to find the others does not look there.
    assert parse(["--out", str(tmp_path), "--distributed"]).coordinator is None
    with pytest.raises(InputError, match="--distributed and --processes exclude"):
        parse(["--out", str(tmp_path), "--distributed", "--processes", "2"])


def test_others_that_do_not_come_are_an_error(tmp_path: Path) -> None:
    given = {
        "--size": "tiny",
        "--out": tmp_path / "out",
        "--coordinator": "127.0.0.1:1",  # a port that nobody listens at
        "--processes": 2,
        "--process-id": 1,
        "--timeout": 2,
    }
    run = Run(given, devices=1, log=tmp_path / "log")
    with started(run):
        run.process.join(PATIENCE)
    text = "error: process 0 does not answer at 127.0.0.1:1 within 2 seconds.\n"
    assert (run.process.exitcode, run.log.read_text()) == (2, text)


def test_a_run_with_other_settings_is_refused(
    unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_until(unbroken.out, STEPS, tmp_path / "out")
    given = unbroken.flags(tmp_path / "out", mesh=MESH)
    error = _error(capsys, {**given, "--set": "keep_rate=0.25"})
    assert error.startswith(f"error: the checkpoint of step {STEPS} was written with ")
    assert "keep_rate 0." in error and "this run has 0.25." in error
    error = _error(capsys, {**given, "--recipe": "lion"})
    assert f"with recipe {unbroken.recipe}, this run has lion; " in error


def test_a_finished_run_is_not_done_again(
    unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_until(unbroken.out, STEPS, tmp_path / "out")
    given = unbroken.flags(tmp_path / "out", mesh=MESH)
    log = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert _call(given) == 0
    assert f"going on after step {STEPS} of {STEPS}." in capsys.readouterr().out
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == log


def test_a_pretrained_encoder_on_a_text_task(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task")
    given = flags("lazy_lion", tmp_path / "cache", tmp_path / "out", mesh="data=2")
    encoder = {"--model": "encoder", "--pretrained": DATA / "tiny_bert"}
    encoder |= {"--task": task, "--length": 8, "--steps": 2, "--learning-rate": 1e-12}
    finish({**given, **encoder}, devices=2, log=tmp_path / "log")
    start = load_encoder(
        DATA / "tiny_bert" / "model.safetensors",
        open_checkpoint(DATA / "tiny_bert").config,
    )
    trained = saved(tmp_path / "out", 2)
    for keys, leaf in jax.tree.leaves_with_path(start):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        got = trained[f"params/encoder/{path}"]
        np.testing.assert_allclose(got, leaf, rtol=0, atol=1e-8, err_msg=path)
    assert len(losses(tmp_path / "out")) == 2


def test_msgpack_holds_a_run_as_orbax_does(unbroken: Unbroken, tmp_path: Path) -> None:
    copy_until(unbroken.out, STEPS, tmp_path / "out")
    given = unbroken.flags(tmp_path / "out", mesh=MESH)
    options = parse([str(part) for pair in given.items() for part in pair])
    mesh = make_mesh(options.mesh)
    program = Program(open_work(options, mesh), options, mesh)
    same = settings(options, dict(program.work.settings))
    store = Checkpoints(tmp_path / "out" / "checkpoints", settings=same)
    found = store.restore(program.shapes)
    store.close()
    assert found is not None
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), program.shapes)
    data = flax.serialization.to_bytes(jax.device_get(found.tree))
    back = flax.serialization.from_bytes(blank, data)
    assert_same(back, found.tree)
    on_disk = saved(unbroken.out, STEPS)
    leaves = jax.tree.leaves_with_path(back)
    assert len(leaves) == len(on_disk)
    for keys, leaf in leaves:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        assert np.asarray(leaf).tobytes() == on_disk[path].tobytes(), path


class _Numbers:
    """Examples that are their own numbers, and columns of them."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": rows, "columns": 100 * rows[:, None] + np.arange(4)}


def _batches(seed: int = 0) -> Batches:
    mesh = make_mesh({"data": 4, "model": 2})
    specs = {"x": PartitionSpec("data"), "columns": PartitionSpec("data", "model")}
    shapes = {"x": (8,), "columns": (8, 4)}
    like = {
        name: jax.ShapeDtypeStruct(
            shapes[name], jnp.int32, sharding=NamedSharding(mesh, spec)
        )
        for name, spec in specs.items()
    }
    return Batches(_Numbers(), like, seed=seed)


def test_batches_are_a_function_of_the_step() -> None:
    batches = _batches()
    first = [batches.numbers(step) for step in range(5)]
    again = [batches.numbers(step) for step in reversed(range(5))][::-1]
    np.testing.assert_array_equal(first, again)
    epochs = np.concatenate(first).reshape(4, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert (_batches(seed=1).numbers(0) != first[0]).any()
    placed = batches[3]["x"]
    np.testing.assert_array_equal(np.asarray(placed), first[3])
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2,)}


def test_a_batch_may_lie_on_both_axes() -> None:
    batches = _batches()
    placed = batches[3]["columns"]
    want = 100 * batches.numbers(3)[:, None] + np.arange(4)
    np.testing.assert_array_equal(np.asarray(placed), want)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 2)}


def test_kernels_are_split_over_the_model_axis(tmp_path: Path) -> None:
    options = parse(["--size", "tiny", "--out", str(tmp_path)])
    mesh = make_mesh({"data": 4, "model": 2})
    work = open_work(options, mesh)
    params = jax.eval_shape(work.fresh, jax.random.key(0))
    layer = param_shardings(params, RULES, mesh)["encoder"]["layers"][0]
    specs = {name: tuple(layer[name]["kernel"].spec) for name in ("up", "down")}
    assert specs == {"up": (None, "model"), "down": ("model", None)}
    assert tuple(layer["norm"]["scale"].spec) == ()
    odd = jax.ShapeDtypeStruct((4,), jnp.float32)
    params["encoder"]["layers"][0]["up"]["bias"] = odd
    with pytest.raises(InputError, match=r"model=8 does not divide axis 0 .* \(4,\)"):
        param_shardings(params, RULES, make_mesh({"data": 1, "model": 8}))


def test_the_log_drops_what_will_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Log(path, 0, active=True)
    for step in (1, 2, 3):
        log.add(step, {"loss": jnp.float32(step)})
    assert len(path.read_text().splitlines()) == 2  # the newest waits
    log.flush()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    again = Log(path, 2, active=True)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [
        1,
        2,
    ]
    assert again.last == {"step": 2, "loss": 2.0}
    silent = Log(tmp_path / "other", 0, active=False)
    silent.add(1, {"loss": jnp.float32(1)})
    silent.flush()
    assert not (tmp_path / "other").exists()
