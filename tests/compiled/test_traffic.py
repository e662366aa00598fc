"""Programs whose bytes, launches and collectives are known by hand."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.compiled import memory, ptx
from benchmarks.compiled.hlo import Array, arrays, parse
from benchmarks.compiled.traffic import Exchange, traffic

# Of an array of 4 kB: its sum, then a kernel that reads it again and writes it.
TWICE = """
HloModule twice, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%scale (p0: f32[1024], p1: f32[]) -> f32[1024] {
  %p0 = f32[1024]{0} parameter(0)
  %p1 = f32[] parameter(1)
  %all = f32[1024]{0} broadcast(%p1), dimensions={}
  ROOT %product = f32[1024]{0} multiply(%p0, %all)
}

ENTRY %main (a: f32[1024], b: pred[7]) -> (f32[1024], pred[7]) {
  %a = f32[1024]{0} parameter(0)
  %b = pred[7]{0} parameter(1)
  %zero = f32[] constant(0)
  %total = f32[] reduce(%a, %zero), dimensions={0}, to_apply=%add
  %scaled = f32[1024]{0} fusion(%a, %total), kind=kLoop, calls=%scale
  ROOT %both = (f32[1024]{0}, /*index=1*/pred[7]{0}) tuple(%scaled, %b)
}
"""


def test_an_array_that_is_read_twice() -> None:
    seen = traffic(parse(TWICE))
    # The bools pass through: nothing reads or writes them.
    assert seen.least == 2 * 4096
    assert seen.moved == (4096 + 4 + 4) + (4096 + 4 + 4096)
    assert seen.launches == 2 and seen.cycles is None
    assert not seen.exchanges and not seen.loops and not seen.host
    assert "%scaled" in seen.heaviest(1)[0]
    assert memory.temporaries(parse(TWICE)) == 4  # the sum


# A loop of five rounds. Each takes one row out of a table and puts another in.
LOOP = """
HloModule loop

%row (table: f32[64,32], at: s32[]) -> f32[1,32] {
  %table = f32[64,32]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %none = s32[] constant(0)
  ROOT %one = f32[1,32]{1,0} dynamic-slice(%table, %at, %none), \
dynamic_slice_sizes={1,32}
}

%put (into: f32[64,32], one.1: f32[1,32], at.1: s32[]) -> f32[64,32] {
  %into = f32[64,32]{1,0} parameter(0)
  %one.1 = f32[1,32]{1,0} parameter(1)
  %at.1 = s32[] parameter(2)
  %none.1 = s32[] constant(0)
  ROOT %now = f32[64,32]{1,0} dynamic-update-slice(%into, %one.1, %at.1, %none.1)
}

%body (state: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %state = (s32[], f32[64,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %rows = f32[64,32]{1,0} get-tuple-element(%state), index=1
  %taken = f32[1,32]{1,0} fusion(%rows, %i), kind=kLoop, calls=%row
  %given = f32[64,32]{1,0} fusion(%rows, %taken, %i), kind=kLoop, calls=%put
  ROOT %next = (s32[], f32[64,32]{1,0}) tuple(%i, %given)
}

%condition (state.1: (s32[], f32[64,32])) -> pred[] {
  %state.1 = (s32[], f32[64,32]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %end = s32[] constant(5)
  ROOT %more = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main (start: s32[], t: f32[64,32]) -> (s32[], f32[64,32]) {
  %start = s32[] parameter(0)
  %t = f32[64,32]{1,0} parameter(1)
  %init = (s32[], f32[64,32]{1,0}) tuple(%start, %t)
  ROOT %done = (s32[], f32[64,32]{1,0}) while(%init), condition=%condition, \
body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_a_loop_counts_as_often_as_it_runs() -> None:
    seen = traffic(parse(LOOP))
    assert [loop.trips for loop in seen.loops] == [5]
    row, index, answer = 32 * 4, 4, 1
    taken, given = row + index + row, row + index + row
    assert seen.moved == 5 * (taken + given + index + 4 + answer)
    assert seen.launches == 5 * 3
    untold = LOOP.replace("known_trip_count", "else")
    for text, trips in ((untold, 5), (untold.replace("=LT", "=NE"), None)):
        (found,) = traffic(parse(text)).loops
        assert found.trips == trips


# As a TPU does it: a part of an array goes into VMEM, space 1, while others are busy.
TPU = """
HloModule tpu

ENTRY %main (g: bf16[256,128], h: f32[8]) -> f32[8] {
  %g = bf16[256,128]{1,0:T(8,128)(2,1)} parameter(0)
  %h = f32[8]{0:T(128)} parameter(1)
  %s = ((bf16[256,128]{1,0}), bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) \
slice-start(%g), slice={[0:64], [0:128]}
  %near = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} slice-done(%s)
  %seen = bf16[64,128]{1,0:S(1)} custom-call(%near), custom_call_target="ConcatBitcast"
  %begun = (f32[8]{0}, f32[8]{0}) all-reduce-start(%h), to_apply=%add
  %ended = f32[8]{0} all-reduce-done(%begun)
  ROOT %out = f32[8]{0} convolution(%seen, %ended), \
backend_config={"estimated_cycles":"70"}
}
"""


def test_what_lies_on_the_chip_is_not_main_memory() -> None:
    seen = traffic(parse(TPU))
    sliced, vector = 64 * 128 * 2, 8 * 4
    assert seen.moved == sliced + 2 * vector + 2 * vector
    assert seen.cycles == 70
    (one,) = seen.exchanges
    assert (one.kind, one.array) == ("all-reduce", Array("f32", (8,)))
    assert memory.temporaries(parse(TPU)) == vector  # the sum over devices


HOST = TWICE.replace(
    "reduce(%a, %zero), dimensions={0}",
    'custom-call(%a), custom_call_target="xla_ffi_python_cpu_callback"',
)


def test_what_talks_to_the_host_is_told() -> None:
    (line,) = traffic(parse(HOST)).host
    assert line.startswith("%total")


def test_a_compiled_program_is_read() -> None:
    run = jax.jit(lambda x: (x * 2).sum()).lower(jnp.ones(4096)).compile()
    seen = traffic(parse(run.as_text() or ""))
    assert seen.least == 4096 * 4 + 4
    assert seen.least <= seen.moved <= 3 * seen.least


def test_shapes() -> None:
    found = arrays("(pred[3]{0}, (f8e4m3fn[2,5]{1,0:T(8,128)S(1)}, token[]), s4[3])")
    assert [one.bytes for one in found] == [3, 10, 0, 2]
    assert [one.space for one in found] == [0, 1, 0, 0]
    assert Exchange("all-gather", found[0], "").array.dims == (3,)


def test_a_text_without_a_program() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule nothing")


def test_what_the_assembler_says() -> None:
    report = """
ptxas info    : Compiling entry function 'loop_add_fusion' for 'sm_90a'
ptxas info    : Function properties for loop_add_fusion
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 250 registers, used 1 barriers, 640 bytes cmem[0]
"""
    assert ptx.parse(report) == [ptx.Kernel("loop_add_fusion", 250, 28)]
