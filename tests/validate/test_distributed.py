"""The public entry, ``validate.distributed``: what it gives, what it refuses, and ``torchrun``."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import validate
from costmodel.errors import InputError, UnknownNameError
from costmodel.mixer import mixers
from costmodel.model import MlpSpec
from costmodel.strategies.ring import ring
from costmodel.strategy import strategies
from costmodel.subject import from_mixer
from tests.cli.test_readme import python_block
from tests.validate.cases import Case
from tests.validate.drawing import layers, refusal
from tests.validate.under_torchrun import LAYOUTS
from validate.launch import Rank, RankPool
from validate.template import whole_layer

SIZES = {"width": 6, "heads": 4, "kv_heads": 2, "head_dim": 4}
(LAYER,) = from_mixer("attention", **SIZES).layers


def test_one_process_needs_no_launcher() -> None:
    layer = validate.distributed("attention", "whole", {}, dtype=torch.float64, **SIZES)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    weights = {name: w.detach() for name, w in layer.weights.items()}
    torch.testing.assert_close(layer(layer.shard(x)), whole_layer(layer.layer, x, weights, causal=True))
    assert torch.equal(layer.unshard(layer.shard(x)), x)


def test_a_layer_is_a_torch_module() -> None:
    layer = validate.distributed("attention", "whole", {}, **SIZES)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "weights.w_q": (6, 4, 4),
        "weights.w_k": (6, 2, 4),
        "weights.w_v": (6, 2, 4),
        "weights.w_o": (4, 4, 6),
    }
    assert layer.state_dict().keys() == dict(layer.named_parameters()).keys()


@pytest.mark.parametrize(
    ("mixer", "strategy", "mesh", "told"),
    [
        ("atention", "whole", {}, "no mixer named 'atention'. Did you mean 'attention'?"),
        ("attention", "zagzig", {}, "no strategy named 'zagzig'. Did you mean 'zigzag'?"),
        ("attention", "ring", {"context": 2}, "it has 2 ranks, and 1 are running; start them with torchrun"),
        ("attention", "ring", {}, "strategy 'ring' needs axes of at least 2 ranks: context"),
        ("attention", "whole", {"contxt": 1}, "no axis named 'contxt'. Did you mean 'context'?"),
        ("attention", "whole", {"context": 0}, "context: 0 is not valid: an axis has at least 1 rank"),
    ],
)
def test_what_does_not_go_together_is_refused(mixer: str, strategy: str, mesh: dict[str, int], told: str) -> None:
    with pytest.raises(InputError) as caught:
        validate.distributed(mixer, strategy, mesh)
    assert told in str(caught.value)


def test_unknown_sizes_and_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'heads'"):
        validate.distributed("attention", "whole", {}, head=3)
    with pytest.raises(AttributeError, match="module 'validate' has no attribute 'distribute'"):
        _ = validate.distribute  # type: ignore[attr-defined]


def test_routed_experts_are_refused() -> None:
    with pytest.raises(InputError, match="routed experts are modelled, but not run"):
        validate.distributed(replace(LAYER, mlp=MlpSpec(8, experts=2)), "whole", {})


def test_wrong_calls_are_refused() -> None:
    layer = validate.distributed("attention", "whole", {}, **SIZES)
    with pytest.raises(InputError, match=r"shape of x: \(2, 5\) is not valid: it is \[B, n, 6\]"):
        layer(torch.zeros(2, 5))
    with pytest.raises(InputError, match="other passes than decode"):
        layer.decode(torch.zeros(2, 1, 6), [torch.zeros(2, 2, 5, 4)] * 2, 5)
    with pytest.raises(InputError, match="shape of weight 'w_k': None is not valid: the layer's has shape"):
        layer.load({"w_q": torch.zeros(6, 4, 4)})


def test_tokens_that_a_chunk_does_not_divide_are_refused() -> None:
    """Reformer hashes to as many buckets as there are chunks, so that its weights depend on both."""
    with pytest.raises(InputError, match=r"reformer\.chunk: 64 is not valid: must divide the 1000 tokens"):
        validate.distributed("reformer", "whole", {}, length=1000)


def test_importing_the_package_does_not_load_torch() -> None:
    source = "import sys, validate; assert 'torch' not in sys.modules; assert callable(validate.distributed)"
    subprocess.run([sys.executable, "-c", source], check=True)


# On ranks -------------------------------------------------------------------------------------------------------------


def told_on(rank: Rank, case: Case, more_tokens_on_last: int) -> str:
    """What a rank says of its shapes; nothing if it runs."""
    made = case.on(rank.index)
    spread = case.ranks // case.mesh.get("data", 1)
    tokens = case.length // spread + (more_tokens_on_last if rank.index == rank.size - 1 else 0)
    x = torch.zeros(case.batch // case.mesh.get("data", 1), tokens, case.layer.sizes["D"], dtype=torch.float64)
    second = case.layer.mixer.memory(case.layer.sizes)
    given = [] if second is None else [x.new_zeros(x.shape[0], -(-second.tokens // spread), second.width)]
    try:
        made(x, *given)
    except InputError as error:
        return str(error)
    return ""


def test_ranks_with_unequal_tokens_all_say_so(pool: RankPool) -> None:
    case = Case(LAYER, ring, {"context": 3}, length=12, causal=False)
    for text in pool.run(told_on, case, 1, ranks=3):
        assert "every rank needs the same: rank 0 has (1, 4, 6); rank 1 has (1, 4, 6); rank 2 has (1, 5, 6)" in text
        assert "cut with shard(...)" in text
    assert pool.run(told_on, case, 0, ranks=3) == ["", "", ""]


@st.composite
def careless(draw: st.DrawFn, name: str) -> Case:
    """A case whose sizes nobody made fit, but for the tensor axis, which cuts weights when they are made."""
    strategy = strategies.get(name)
    mesh = dict.fromkeys(strategy.axes, 2)
    mixer = draw(st.sampled_from([m for m in mixers.names() if issubclass(mixers.get(m).carry, strategy.carries)]))
    ranks = 2 ** len(mesh)
    return Case(
        draw(layers(mixers.get(mixer), 1, 1, 1)),
        strategy,
        mesh,
        length=ranks * draw(st.integers(1, 4)),
        causal=draw(st.booleans()),
        kernel=draw(st.sampled_from(["fused", "vanilla"])),
        phase=draw(st.sampled_from(["train", "forward", "prefill"])),
    )


def exists(case: Case) -> bool:
    """Whether there is such a layer for so many tokens at all, with whole parts of its weights for each rank."""
    try:
        case.on(0)
    except ValueError:
        return False
    return True


#: Strategies that some mixer hands its carry to.
USED = [
    name
    for name in strategies.names()
    if any(issubclass(mixers.get(mixer).carry, strategies.get(name).carries) for mixer in mixers.names())
]


@pytest.mark.parametrize("name", USED)
def test_what_a_strategy_refuses_is_refused_on_every_rank(pool: RankPool, name: str) -> None:
    @settings(max_examples=15)
    @given(careless(name))
    def check(case: Case) -> None:
        reason = refusal(case)
        assume(exists(case))
        if reason is not None:
            told = pool.run(told_on, case, 0, ranks=case.ranks)
            assert all(f"'{name}' is not valid: it does not apply here: " in text and reason in text for text in told)

    check()


def under_torchrun(*arguments: str) -> str:
    """What two processes print that run a program."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path) -> None:
    under_torchrun(str(Path(__file__).with_name("under_torchrun.py")), str(tmp_path), "2")
    for rank in range(2):
        *layouts, everyone = (tmp_path / str(rank)).read_text().splitlines()
        errors = {layout: float(error) for layout, error in map(str.split, layouts)}
        assert errors.keys() == {*LAYOUTS}
        assert max(errors.values()) < 1e-10
        assert everyone == "[(0, 2), (1, 2)]"


@pytest.mark.slow
def test_the_example_shown_under_torchrun(tmp_path: Path) -> None:
    """Of 2048 tokens of a rank, 2 heads of 64 entries of 4 bytes, keys and values go on once forward and once back.

    Their gradients go two ranks on, to be home; half of 655360 weights' gradients goes on twice to be summed; and an
    output of 512 entries for each token goes on once, to be shown.
    """
    (tmp_path / "example.py").write_text(python_block("running.md", r"import torch\n"))
    keys_and_values = 2 * 2048 * 2 * 64 * 4
    sent = (1 + 1 + 2) * keys_and_values + 655360 * 4 + 2048 * 512 * 4
    told = f"torch.Size([1, 4096, 512]) {{'context': Traffic(bytes={sent}, messages={2 * 4 + 2 + 1})}}"
    printed = under_torchrun(str(tmp_path / "example.py"))  # by two processes, whose lines may run into each other
    assert printed.replace("\n", "") == told * 2
