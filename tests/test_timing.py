"""Times of single kernels and messages, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from costmodel.expression import lift
from costmodel.masks import Mask
from costmodel.ops.communication import AllReduce
from costmodel.ops.mesh import Axis
from costmodel.ops.scan import Recurrence
from costmodel.rates import OVERHEADS
from costmodel.tensor import Tensor
from costmodel.timing import Times, times
from costmodel.trace import Tracer, Widths, trace

#: What a profile need not say of a kernel, and is then 0.
UNSAID = ("exposed", "fill", "filled", "kept", *OVERHEADS)


def seconds(run: Callable[..., Any], rates: Mapping[str, float], *shapes: tuple[int, ...], fuses: bool = True) -> float:
    """Of what runs on inputs of these shapes, at 2 bytes an element."""
    inputs = [Tensor.new(shape, 2) for shape in shapes]
    program = trace(Tracer(Widths(2, 4, 4), 64, fuses=fuses), lambda ops, *xs: run(ops, *xs[:-1]), inputs, {})
    formula = lift(times(program.forward).total)
    families = {symbol: ":".join(symbol.split(":")[:2]) for symbol in formula.symbols()}
    unsaid = dict.fromkeys((symbol for symbol in families if symbol.split(":")[0] in UNSAID), 0.0)
    said = {symbol: rates.get(symbol, rates.get(family)) for symbol, family in families.items()}
    return formula.approximate(unsaid | {symbol: rate for symbol, rate in said.items() if rate is not None})


def test_the_host_hands_over_every_kernel_and_message() -> None:
    # Two kernels in each of three steps of a ring, of which the last sends nothing, and one after it.
    def around(ops: Any, x: Tensor) -> Any:
        for _, (block,), _ in ops.rotate(Axis("ring", 3, 1), (x,)):
            ops.scale(ops.scale(block, 2), 2)
        return ops.scale(x, 2)

    found = times(
        trace(Tracer(Widths(2, 4, 4), 64), lambda ops, x, _: around(ops, x), [Tensor.new((50,), 2)], {}).forward
    )
    assert lift(found.host).approximate({"host": 3e-6}) == pytest.approx(9 * 3e-6)


@pytest.mark.parametrize(("host", "expected"), [(1.0, 5.0), (7.0, 7.0)])
def test_the_device_waits_for_a_slower_host(host: float, expected: float) -> None:
    assert (Times(2.0, host=host / 2) + Times(3.0, host=host / 2)).handed_over == expected
    assert Times(5.0, host=1.0).beside(Times(1.0, host=2.0)).host == 3.0


GEMM = {"ramp:gemm": 0.0, "launch:gemm": 1e-6, "matrix:gemm": 1e12, "memory:gemm": 1e9}


@pytest.mark.parametrize("exposed", [0.0, 0.25, 1.0])
def test_a_product_hides_part_of_its_shorter_side(exposed: float) -> None:
    # 2 x 100 x 200 x 300 = 12e6 FLOP take 12 us, (100 x 200 + 200 x 300 + 100 x 300) x 2 = 220e3 bytes 220 us.
    found = seconds(
        lambda ops, a, b: ops.contract("mk,kn->mn", a, b), GEMM | {"exposed:gemm": exposed}, (100, 200), (200, 300)
    )
    assert found == pytest.approx(1e-6 + 220e-6 + exposed * 12e-6)


@pytest.mark.parametrize(("rows", "copied"), [(100, 1), (1, 0)])
def test_a_product_copies_its_operands_unless_one_is_a_vector(rows: int, copied: int) -> None:
    # rows x 200 and 200 x 300 elements of 2 bytes, at 1e8 and 1e9 bytes a second.
    rates = GEMM | {"matrix:gemm": 1e18, "memory:gemm": 1e18, "left:gemm": 1e-8, "right:gemm": 1e-9}
    found = seconds(lambda ops, a, b: ops.contract("mk,kn->mn", a, b), rates, (rows, 200), (200, 300))
    assert found == pytest.approx(1e-6 + copied * (rows * 200 * 2e-8 + 200 * 300 * 2e-9))


@pytest.mark.parametrize(("elements", "kept"), [(250, 1.0), (375, 0.5), (500, 0.0), (1000, 0.0)])
def test_bytes_that_fit_a_cache_move_faster_and_of_twice_as_many_none_do(elements: int, kept: float) -> None:
    # In and out 4 bytes an element at 1e9 bytes a second; what is kept of 1000 bytes saves 0.6 ns each; 1 FLOP a ns.
    rates = {"launch": 0.0, "memory": 1e9, "vector": 1e9, "exposed": 1.0, "filled": 1e-3, "kept": 0.6e-9}
    rates |= {"cache": 0.0, "saved": 0.0}
    named = {f"{name}:elementwise" if name not in ("filled", "cache") else name: rate for name, rate in rates.items()}
    found = seconds(lambda ops, x: ops.scale(x, 2), named, (elements,))
    assert found == pytest.approx(elements * (4e-9 - kept * 4 * 0.6e-9 + 1e-9))


def test_lines_are_gone_through_one_by_one() -> None:
    rates = {"launch": 1e-6, "memory": 1e18, "vector": 1e18, "saved": 0.0, "line": 2e-8}
    named = {f"{name}:reduction": rate for name, rate in rates.items()} | {"cache": 0.0}
    assert seconds(lambda ops, x: ops.sum(x, (1,)), named, (50, 30)) == pytest.approx(1e-6 + 50 * 2e-8)


def test_blocks_of_queries_read_keys_again() -> None:
    # 2 heads x 256 queries in blocks of 64 read 512 keys and values of 32 x 2 bytes each, at 1 ns a byte.
    rates = {"launch": 0.0, "matrix": 1e18, "vector": 1e18, "special": 1e18, "memory": 1e18, "ramp": 0.0}
    named = {f"{name}:attention": rate for name, rate in (rates | {"again": 1e-9}).items()}
    operands = ((1, 2, 256, 32), (1, 2, 512, 32), (1, 2, 512, 32))
    found = seconds(lambda ops, q, k, v: ops.attention(q, k, v, Mask(), 1)[0], named, *operands)
    assert found == pytest.approx(2 * 4 * 2 * 512 * 32 * 2 * 1e-9, rel=1e-3)


def only(family: str, **rates: float) -> dict[str, float]:
    """Rates of a family of which all that is not said takes no time, beside a cache of 1000 bytes."""
    free = {"launch": 0.0, "matrix": 1e30, "vector": 1e30, "special": 1e30, "memory": 1e30, "ramp": 0.0, "saved": 0.0}
    return {f"{name}:{family}": rate for name, rate in (free | rates).items()} | {"cache": 1000.0}


@pytest.mark.parametrize(("summed", "apart"), [(2047, 0), (2048, 1)])
def test_a_product_writes_its_result_and_copies_rows_in_pages_of_their_own(summed: int, apart: int) -> None:
    # Rows of 2048 elements of 2 bytes are a page; 3 of them, and 3 x 5 results.
    rates = only("gemm", result=1e-3, apart=1e-6)
    found = seconds(lambda ops, a, b: ops.contract("mk,kn->mn", a, b), rates, (3, summed), (summed, 5))
    assert found == pytest.approx(3 * 5 * 2 * 1e-3 + apart * 3 * 4096 * 1e-6)


@pytest.mark.parametrize(("queries", "causal", "kernels"), [(60, True, 1), (64, True, 0), (60, False, 0)])
def test_attention_on_a_core(queries: int, causal: bool, kernels: int) -> None:
    # Keys and values of 2 heads, 64 x 32 elements of 2 bytes each, results, a tile of 64 x 64 scores, and one kernel
    # more for keys before a causal square.
    rates = only("attention", right=1e-3, result=1e-6, scores=1e-9, line=1.0, uneven=0.0)
    operands = ((1, 2, queries, 32), (1, 2, 64, 32), (1, 2, 64, 32))
    found = seconds(lambda ops, q, k, v: ops.attention(q, k, v, Mask(causal=causal), 1)[0], rates, *operands)
    moved = 2 * 2 * 64 * 32 * 2 * 1e-3 + 2 * queries * 32 * 2 * 1e-6
    assert found == pytest.approx(kernels + moved + 2 * 64 * 64 * 1e-9, rel=1e-9)


@pytest.mark.parametrize(("channels", "missed"), [(4, 200), (3, 0)])
def test_a_convolution_goes_over_its_sums_tap_by_tap(channels: int, missed: int) -> None:
    # 50 sums a channel of 2 bytes are read and written beside as many rows: 1200 bytes of 4 channels, for each tap.
    rates = only("convolution", between=1e-3, line=1.0)
    found = seconds(lambda ops, x, taps: ops.depthwise(x, taps), rates, (1, channels, 54), (channels, 5))
    assert found == pytest.approx(5 * (1 + missed * 1e-3))


@pytest.mark.parametrize(("rows", "missed"), [(25, 0.5), (10, 0.0)])
def test_rows_at_random_places_of_a_table_that_a_quarter_of_the_cache_does_not_hold(rows: int, missed: float) -> None:
    # 25 rows of 10 elements of 2 bytes are twice 250 bytes.
    rates = only("gather", far=1e-3, line=0.0)
    found = seconds(lambda ops, x, at: ops.gather(x, at, 0), rates, (rows, 10), (8,))
    assert found == pytest.approx(8 * missed * 1e-3)


def test_what_is_not_along_the_last_axis() -> None:
    reduction = only("reduction", line=1e-3, again=1e-6)
    assert seconds(lambda ops, x: ops.sum(x, (1,)), reduction, (6, 8)) == pytest.approx(6e-3)
    assert seconds(lambda ops, x: ops.sum(x, (0,)), reduction, (6, 8)) == pytest.approx(6 * 8 * 2 * 1e-6)
    assert seconds(lambda ops, x: ops.cumsum(x, 1), reduction, (6, 8)) == pytest.approx(0)
    assert seconds(lambda ops, x: ops.cumsum(x, 0), reduction, (6, 8)) == pytest.approx(6 * 8 * 1e-3)
    transform = only("fft", line=0.0, left=1e-6)
    for shape, copied in (((1, 8, 5), 0), ((3, 8, 1), 0), ((3, 8, 5), 1)):
        found = seconds(lambda ops, x: ops.real_fft(x, 1), transform, shape)
        assert found == pytest.approx(copied * 3 * 8 * 5 * 2 * 1e-6)


@pytest.mark.parametrize(("n", "heap"), [(64, True), (63, False)])
def test_the_largest_of_a_short_row_are_cut_off_instead_of_heaped(n: int, heap: bool) -> None:
    # Of 64, 1 + ln 64 are so far the largest; of 63 the values, 2 bytes each, and places, 8 bytes, are read twice.
    rates = only("sort", line=1e-3, again=1e-6)
    found = seconds(lambda ops, x: ops.top_k(x, 1)[0], rates, (5, n))
    assert found == pytest.approx(5 * (1 + math.log(64)) * 1e-3 if heap else 5 * 63 * 2 * 10 * 1e-6)


def test_a_product_takes_as_long_as_one_with_some_rows_columns_and_summands_more() -> None:
    # 12e6 FLOP, and 2 (100 x 200 + 200 x 300 + 100 x 300) = 220e3 for one more of each, at 1e9 FLOP/s.
    rates = {"launch:gemm": 1e-6, "matrix:gemm": 1e9, "memory:gemm": 1e15, "exposed:gemm": 0.0, "ramp:gemm": 3.0}
    found = seconds(lambda ops, a, b: ops.contract("mk,kn->mn", a, b), rates, (100, 200), (200, 300))
    assert found == pytest.approx(1e-6 + 12e-3 + 3 * 220e-6)


@pytest.mark.parametrize("ramp", [0.0, 50.0])
def test_queries_take_some_keys_until_full_rate(ramp: float) -> None:
    # 2 heads x 128 queries x (256 + ramp) keys x 4 x 32 FLOP at 1e9 FLOP/s.
    rates = {"launch": 1e-6, "matrix": 1e9, "vector": 1e15, "special": 1e15, "memory": 1e15, "ramp": ramp}
    rates |= {"exposed": 0.0, "fill": 1.0}
    found = seconds(
        lambda ops, q, k, v: ops.attention(q, k, v, Mask(), 1)[0],
        {f"{name}:attention": rate for name, rate in rates.items()},
        *((1, 2, 128, 32), (1, 2, 256, 32), (1, 2, 256, 32)),
    )
    assert found == pytest.approx(1e-6 + 2 * 128 * (256 + ramp) * 4 * 32 / 1e9)


@pytest.mark.parametrize(("heads", "queries", "times"), [(2, 128, 5.0), (2, 16, 40.0), (8, 256, 1.0)])
def test_few_tiles_of_queries_leave_a_part_of_the_device_idle(heads: int, queries: int, times: float) -> None:
    # 20 tiles of 64 queries fill it: 2 x 2 of them take 5 times as long as their work, 2 that are full by a quarter 40,
    # 8 x 4 no longer.
    rates = {"launch": 0.0, "matrix": 1e9, "vector": 1e15, "special": 1e15, "memory": 1e15, "ramp": 0.0}
    rates |= {"exposed": 0.0, "fill": 20.0}
    found = seconds(
        lambda ops, q, k, v: ops.attention(q, k, v, Mask(), 1)[0],
        {f"{name}:attention": rate for name, rate in rates.items()},
        *((1, heads, queries, 32), (1, heads, 256, 32), (1, heads, 256, 32)),
    )
    assert found == pytest.approx(times * heads * queries * 256 * 128 / 1e9)


@pytest.mark.parametrize(("causal", "exposed", "uneven"), [(False, 0.0, 9.0), (False, 0.5, 9.0), (True, 0.5, 0.1)])
def test_softmax_that_products_do_not_hide_and_uneven_work(causal: bool, exposed: float, uneven: float) -> None:
    # 64 x 64 pairs in one tile: 4 x 32 FLOP each at 1e9 FLOP/s, and 4 FLOP and an exponential each at 1e10 a second;
    # 64 x 33 FLOP and 64 logarithms when a row is done.
    rates = {"launch": 1e-6, "matrix": 1e9, "vector": 1e10, "special": 1e10, "memory": 1e15, "ramp": 0.0}
    rates |= {"exposed": exposed, "uneven": uneven, "fill": 1.0}
    found = seconds(
        lambda ops, q, k, v: ops.attention(q, k, v, Mask(causal), 1)[0],
        {f"{name}:attention": rate for name, rate in rates.items()},
        *((1, 1, 64, 32),) * 3,
    )
    products, softmax = 64 * 64 * 128 / 1e9, (64 * 64 * 5 + 64 * 34) / 1e10
    assert found == pytest.approx(1e-6 + (products + exposed * softmax) * (1 + uneven if causal else 1))


@pytest.mark.parametrize(("elements", "cached"), [(100, 400), (1000, 1000)])
def test_bytes_in_the_cache_are_read_sooner(elements: int, cached: int) -> None:
    # 4 bytes an element move, at 1 ns each, of which the first 1000 are 0.75 ns faster.
    rates = {"launch:elementwise": 1e-6, "vector:elementwise": 1e15, "memory:elementwise": 1e9}
    rates |= {"cache": 1000.0, "saved:elementwise": 0.75e-9}
    found = seconds(lambda ops, x: ops.scale(x, 2), rates, (elements,))
    assert found == pytest.approx(1e-6 + 4 * elements * 1e-9 - cached * 0.75e-9)


@pytest.mark.parametrize(
    ("elements", "expected"), [(40, 10e-6 + 6 * 1e-6 + 2 * 120e-9), (4 * 10**6, 10e-6 + 36e-6 + 12e-3)]
)
def test_the_faster_protocol_is_used(elements: int, expected: float) -> None:
    # An all-reduce over 4 ranks takes 6 steps and sends 3/2 of its bytes, at 1 ns each.
    rates = {"start:data": 10e-6, "latency:data:all_reduce": 6e-6, "sooner:data": 5e-6, "dearer:data": 1.0}
    rates |= {"tree:data": 1.0, "seconds_per_byte:data:all_reduce": 1e-9, "own:data": 0.0, "switched:data": 1.0}
    found = seconds(lambda ops, x: ops.apply(AllReduce(Axis("data", 4, 0)), x)[0], rates, (elements,))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(("elements", "tree", "expected"), [(400, 50e-6, 50e-6), (4 * 10**8, 50e-6, 84e-6)])
def test_an_all_reduce_takes_a_tree_where_steps_count_most(elements: int, tree: float, expected: float) -> None:
    # Over 8 ranks, 14 steps of 6 us in a ring; 50 us and 8 % less bandwidth in a tree. 7/4 of the bytes are sent.
    sent = 2 * elements * 7 / 4 * 1e-12
    rates = {"start:data": 0.0, "latency:data:all_reduce": 6e-6, "sooner:data": 0.0, "dearer:data": 0.0}
    rates |= {"seconds_per_byte:data:all_reduce": 1e-12, "own:data": 0.0, "switched:data": 1.0, "tree:data": tree}
    found = seconds(lambda ops, x: ops.apply(AllReduce(Axis("data", 8, 0)), x)[0], rates, (elements,))
    assert found == pytest.approx(expected + (sent / 0.92 if expected == tree else sent))


@pytest.mark.parametrize("exposed", [0.0, 1.0])
def test_a_scan_hides_part_of_its_work_behind_its_steps(exposed: float) -> None:
    # 8 steps of 3 us; 8 x 100 sums at 1e9 a second take 0.8 us.
    loop = Recurrence("sums", lambda ops, state, x, _: (ops.add(state[0], x[0]),), lambda ops, before, *_: (before[0],))
    rates = {"launch:scan": 1e-6, "step:scan": 3e-6, "vector:scan": 1e9, "memory:scan": 1e15, "exposed:scan": exposed}
    found = seconds(lambda ops, state, xs: ops.scan(loop, (state,), (xs,))[1], rates, (100,), (8, 100))
    assert found == pytest.approx(1e-6 + 24e-6 + exposed * 0.8e-6)


@pytest.mark.parametrize(("fuses", "launches", "moved"), [(True, 1, 2), (False, 2, 4)])
def test_what_a_mixer_fuses_is_one_kernel_where_libraries_have_it(fuses: bool, launches: int, moved: int) -> None:
    # 100 elements of 2 bytes, at 1 ns a byte: in and out once, or of each of the two parts.
    rates = {"launch": 1e-6, "memory": 1e9, "vector": 1e18, "special": 1e18, "saved": 0.0}
    named = {f"{name}:elementwise": rate for name, rate in rates.items()} | {"cache": 0.0}
    doubled_twice = lambda ops, x: ops.scale(ops.scale(x, 2), 2)  # noqa: E731
    found = seconds(lambda ops, x: ops.fused("doubled twice", doubled_twice, x), named, (100,), fuses=fuses)
    assert found == pytest.approx(launches * 1e-6 + moved * 200e-9)


def test_steps_of_a_scan_are_kernels_of_their_own_where_libraries_have_none() -> None:
    rates = {"launch": 1e-6, "memory": 1e18, "vector": 1e18, "saved": 0.0}
    named = {f"{name}:elementwise": rate for name, rate in rates.items()} | {"cache": 0.0}
    loop = Recurrence(
        "sums", lambda ops, state, x, _: (ops.add(state[0], x[0]),), lambda ops, before, after, x, _: after
    )
    found = seconds(lambda ops, h, x: ops.scan(loop, (h,), (x,), (), 1)[0], named, (3, 4), (3, 50, 4), fuses=False)
    assert found == pytest.approx(50 * 1e-6)


@pytest.mark.parametrize(("ranks", "switched", "expected"), [(2, 1.5e-9, 125.0), (8, 1.5e-9, 150.0), (8, 1.0, 181.25)])
def test_an_all_reduce_goes_through_the_switch_where_that_is_faster(
    ranks: int, switched: float, expected: float
) -> None:
    # 100 bytes: a ring sends 2 (P - 1) / P of them at 1 ns and copies 1 / P at 0.5 ns; a switch takes all at 1.5 ns.
    rates = {
        "start:data": 0.0,
        "latency:data:all_reduce": 0.0,
        "sooner:data": 0.0,
        "dearer:data": 0.0,
        "tree:data": 0.0,
    }
    rates |= {"switched:data": switched, "seconds_per_byte:data:all_reduce": 1e-9, "own:data": 0.5e-9}
    found = seconds(lambda ops, x: ops.apply(AllReduce(Axis("data", ranks, 0)), x)[0], rates, (50,))
    assert found == pytest.approx(expected * 1e-9)


@pytest.mark.parametrize(
    ("contention", "seconds_per_byte", "expected"),
    [(0.5, 1e-9, 550.0), (0.5, 4e-9, 700.0), (0.5, 7e-9, 950.0), (0.0, 4e-9, 650.0)],
)
def test_communication_slows_what_is_computed_beside_it(
    contention: float, seconds_per_byte: float, expected: float
) -> None:
    # 50 elements of 2 bytes go to the next of 2 ranks, in 100, 400 or 700 ns, beside the first of two kernels that move
    # 200 bytes in 250 ns each: max(250 + 0.5 x 100, 100) + 250, max(250 + 0.5 x 400, 400) + 250, and so on.
    def around(ops: Any, x: Tensor) -> Any:
        for _, (block,), _ in ops.rotate(Axis("ring", 2, 1), (x,)):
            ops.scale(block, 2)
        return x

    rates = {"launch:elementwise": 0.0, "vector:elementwise": 1e15, "memory:elementwise": 0.8e9, "cache": 0.0}
    rates |= {
        "saved:elementwise": 0.0,
        "start:ring": 0.0,
        "latency:ring:ring_shift": 0.0,
        "sooner:ring": 0.0,
        "dearer:ring": 0.0,
    }
    rates |= {"seconds_per_byte:ring:ring_shift": seconds_per_byte, "own:ring": 0.0, "contention:ring": contention}
    assert seconds(around, rates, (50,)) == pytest.approx(expected * 1e-9)
