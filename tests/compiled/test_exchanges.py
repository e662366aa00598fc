"""Products, loops and collectives in programs that are known by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.compiled.chips import CHIPS, chip_of, links_of
from benchmarks.compiled.collectives import collectives
from benchmarks.compiled.flops import flops
from benchmarks.compiled.hlo import parse
from benchmarks.compiled.traffic import traffic
from benchmarks.pod.mesh import make_mesh

MESH = (("data", 4), ("model", 2))
# As XLA for TPUs writes it: a product with three batch entries, in a loop from 2 to 7
# whose trips are told by its condition alone, beside a gather that three fusions name.
CHAINED = Path(__file__).with_name("chained.txt").read_text()


def test_a_chained_gather_counts_once_a_round() -> None:
    module = parse(CHAINED)
    seen = traffic(module)
    assert [loop.trips for loop in seen.loops] == [5]
    found = {one.kind: one for one in collectives(module, MESH)}
    gather, scatter = found["all-gather"], found["reduce-scatter"]
    assert (gather.axes, gather.times, gather.size) == ("data", 5, 2 * 32 * 16)
    assert gather.sent == 2 * 32 * 16 * 3 / 4
    assert (scatter.axes, scatter.times, scatter.size) == ("data", 1, 4 * 64)
    assert scatter.sent == 4 * 64 * 3 / 4
    permute, whole = found["collective-permute"], found["all-reduce"]
    assert (permute.axes, permute.sent) == ("model", 4 * 64)
    assert (whole.axes, whole.sent) == ("data+model", 2 * 4 * 64 * 7 / 8)
    # Operands of the product, its result; of the gather its shard and its result.
    round_ = 4 * (60 + 84 + 105) + 2 * (8 * 16 + 32 * 16)
    work = [w for w in seen.work if w.times == 5 and w.instruction.op == "fusion"]
    assert sum(w.read + w.written for w in work) == round_


def test_batch_entries_of_a_product_do_not_meet() -> None:
    module = parse(CHAINED)
    assert flops(module, traffic(module)) == 5 * 2 * 3 * 5 * 4 * 7


@pytest.mark.parametrize(
    ("equation", "shapes", "count"),
    [
        ("ij,jk->ik", ((8, 16), (16, 32)), 2 * 8 * 16 * 32),
        ("bij,bjk->bik", ((3, 8, 16), (3, 16, 32)), 2 * 3 * 8 * 16 * 32),
        ("bqhd,bkhd->bhqk", ((2, 5, 3, 8), (2, 7, 3, 8)), 2 * 2 * 3 * 5 * 7 * 8),
    ],
)
def test_products_of_a_real_program(
    equation: str, shapes: tuple[tuple[int, ...], ...], count: int
) -> None:
    @jax.jit
    def scanned(x: jax.Array, y: jax.Array) -> jax.Array:
        one = lambda total, scale: (
            total + jnp.einsum(equation, scale * x, y).sum(),
            None,
        )
        return jax.lax.scan(one, jnp.zeros(()), jnp.arange(1.0, 5.0))[0]

    text = scanned.lower(*map(jnp.ones, shapes)).compile().as_text()
    assert text is not None
    module = parse(text)
    assert flops(module, traffic(module)) == 4 * count


def test_collectives_of_a_real_program() -> None:
    mesh = make_mesh(dict(MESH))
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    x, w = (
        put(np.ones((8, 16), np.float32), "data"),
        put(np.ones((16, 6)), None, "model"),
    )
    w = w.astype(jnp.float32)
    total = jax.jit(lambda x, w: (x @ w).sum(axis=0))
    text = total.lower(x, w).compile().as_text()
    assert text is not None
    found = collectives(parse(text), MESH)
    assert {(one.kind, one.axes) for one in found} == {("all-reduce", "data")}
    assert sum(one.sent for one in found) == 2 * 4 * 3 * 3 / 4


def test_links_of_a_chip_in_the_midst() -> None:
    links = {"v5e:1x1": 0, "v5e:2x2": 2, "v5e:2x4": 3, "v5e:4x4": 4, "v5e:16x16": 4}
    links |= {"v4:2x2x1": 2, "v5p:4x4x4": 6, "h100": 0, "h100:8": 18}
    assert {target: links_of(target) for target in links} == links
    assert chip_of("v6e:4x4") == CHIPS["v6e"]
    with pytest.raises(
        ValueError, match=r"chips are known of v4, .*, got 'tpu7x:2x2x1'"
    ):
        chip_of("tpu7x:2x2x1")
