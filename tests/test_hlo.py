"""Reading the text of a compiled program."""

from __future__ import annotations

import pytest

from parivox.hlo import Collective, read_program, shape_bytes

TEXT = """HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[64,8]) -> f32[16,8] {
  %p = f32[64,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[64,8]{1,0:T(8,128)} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%sum
  ROOT %slice.1 = f32[16,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={16,8}
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%state), index=1
  %gathered = (f32[4]{0}, f32[16]{0}) all-gather-start(%x), dimensions={0}
  %whole = f32[16]{0} all-gather-done(%gathered)
  %work = f32[4]{0} fusion(%whole), kind=kLoop, calls=%sum, backend_config={"estimated_cycles":"100"}
  ROOT %next = (s32[], f32[4]{0}) tuple(%x, %work)
}

%condition (state.1: (s32[], f32[4])) -> pred[] {
  %state.1 = (s32[], f32[4]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (w: f32[64,8], v: bf16[3]) -> f32[16,8] {
  %w = f32[64,8]{1,0:T(8,128)} parameter(0)
  %v = bf16[3]{0} parameter(1)
  %both = (f32[64,8]{1,0:T(8,128)S(1)}, /*index=1*/bf16[3]{0}) all-reduce(%w, %v), to_apply=%sum
  %first = f32[16,8]{1,0} fusion(%w), kind=kCustom, calls=%all-reduce-scatter.1, backend_config={"estimated_cycles":"7"}
  %start = (s32[], f32[4]{0}) tuple(%v, %v)
  %loop = (s32[], f32[4]{0}) while(%start), condition=%condition, body=%body, backend_config={TRIPS}
  ROOT %out = f32[16,8]{1,0} copy(%first)
}
""".replace("{TRIPS}", '{"known_trip_count":{"n":"3"}}')


def test_what_devices_exchange_is_counted_with_its_bytes():
    found = read_program(TEXT)
    assert found.collectives == [
        Collective("all-reduce", 1, 64 * 8 * 4 + 3 * 2),
        Collective("reduce-scatter", 1, 64 * 8 * 4),
        Collective("all-gather", 3, 3 * 16 * 4),  # in a loop of three
    ]


def test_cycles_count_as_often_as_the_loop_runs():
    found = read_program(TEXT)
    assert found.cycles == 7 + 3 * 100 and found.loops == [3]


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    found = read_program(TEXT.replace(', backend_config={"known_trip_count":{"n":"3"}}', ""))
    assert found.cycles == 7 + 100 and found.loops == [None]


def test_double_precision_and_waiting_for_the_host_are_found():
    assert (read_program(TEXT).float64, read_program(TEXT).host) == ([], [])
    double = "  %d = f64[8]{0} convert(%w)\n  ROOT %out"
    call = '  %c = f32[] custom-call(%v), custom_call_target="xla_ffi_python_cpu_callback"\n  ROOT %out'
    feed = "  %o = token[] outfeed(%v)\n  ROOT %out"
    assert read_program(TEXT.replace("  ROOT %out", double)).float64 == ["%d = f64[8]{0} convert(%w)"]
    for planted in (call, feed):
        assert len(read_program(TEXT.replace("  ROOT %out", planted)).host) == 1


@pytest.mark.parametrize(
    ("type", "wanted"),
    [
        ("f32[24,8]{1,0:T(8,128)}", 768),
        ("(f32[2], /*index=1*/bf16[3,5])", 38),
        ("pred[]", 1),
        ("token[]", 0),
        ("c64[0,4]", 0),
    ],
)
def test_bytes_of_a_type(type, wanted):
    assert shape_bytes(type) == wanted


def test_another_text_is_refused():
    with pytest.raises(ValueError, match="nothing in it is marked ENTRY"):
        read_program("module @jit_step {}")
