"""Layers to run: what a case is, what each rank measures of it, and what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from costmodel.arrangement import Way
from costmodel.ops.primitive import Reading
from costmodel.strategy import Strategy, strategies
from costmodel.subject import Layer
from costmodel.workload import Phase, Workload
from validate.communication import Traffic
from validate.counting import FlopCounter, GradientSums, Watched, keeping
from validate.executor import Executor
from validate.expected import Expected
from validate.launch import Rank, RankPool
from validate.layer import DistributedLayer
from validate.mesh import Mesh
from validate.task import Task
from validate.template import whole_layer

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True)
class Case:
    """One layer on one mesh; its tensors follow from ``seed``."""

    layer: Layer
    strategy: Strategy
    mesh: Mapping[str, int]
    length: int
    batch: int = 1
    causal: bool = True
    kernel: str = "fused"
    phase: Phase = "train"
    dtype: str = "fp64"
    flash: bool = True
    seed: int = 0
    cached: int = 0
    context_inside: bool = False
    gradient: str | None = None
    documents: tuple[int, ...] = ()

    @property
    def ranks(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def way(self) -> Way:
        return Way(self.strategy, self.kernel, self.mesh.get("tensor", 1) > 1)

    @property
    def workload(self) -> Workload:
        workload = Workload(self.length, self.batch, self.phase, self.causal, cached=self.cached)
        return replace(workload, documents=self.documents)

    def on(self, rank: int, counts: bool = False) -> DistributedLayer:
        """The layer on a rank, with the case's weights; counting takes as long as running."""
        mesh, gradient = Mesh.of(self.mesh, rank, self.context_inside), self.gradient and DTYPES[self.gradient]
        executor = Watched if counts else Executor
        ops = executor(DTYPES[self.dtype], mesh, flash=self.flash, timeout_s=20, gradient=gradient)
        made = DistributedLayer(self.layer, Task(self.way, self.causal, self.phase, self.length, self.documents), ops)
        made.load(self.weights(made.whole_shapes))
        return made

    def weights(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Random weights that keep numbers near 1, in float64."""
        random = torch.Generator().manual_seed(self.seed)
        drawn = {name: torch.randn(shape, generator=random, dtype=torch.float64) for name, shape in shapes.items()}
        return {name: w * (w.shape[0] ** -0.5 if w.dim() > 1 else 1) for name, w in drawn.items()}

    def memory(self) -> tuple[Tensor, ...]:
        """A random second sequence [B, L_M, D_M], if the mixer reads one."""
        second = self.layer.mixer.memory(self.layer.sizes)
        random = torch.Generator().manual_seed(self.seed + 2)
        shapes = [] if second is None else [(self.batch, second.tokens, second.width)]
        return tuple(torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)

    def embedded(self) -> tuple[Tensor, ...]:
        """Random embeddings of the tokens [B, T + L, D], if the layer is shared."""
        random = torch.Generator().manual_seed(self.seed + 3)
        shape = self.batch, self.cached + self.length, self.layer.sizes["D"]
        return (torch.randn(shape, generator=random, dtype=torch.float64),) if self.layer.shared else ()

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Random input, and gradient of the output, [B, T + L, D]."""
        random = torch.Generator().manual_seed(self.seed + 1)
        shape = self.batch, self.cached + self.length, self.layer.sizes["D"]
        return tuple(torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


# On each rank ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What one rank did.

    Attributes:
        out: its part of the output; ``gradient``: of the input's gradient; ``memory``: of that of a second sequence.
        weights: its parts of the weights' gradients, summed over copies.
        sent: what its transport sent, by axis, before that sum.
        flops: of products, by torch's counter; ``useful``: by masks written out.
        classes: of every primitive that ran, by class.
        kept: bytes that autograd keeps, without weights and tables.
    """

    out: Tensor
    sent: Mapping[str, Traffic]
    flops: int
    useful: int
    classes: Mapping[str, int]
    kept: int = 0
    gradient: Tensor | None = None
    memory: Tensor | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)


def run_case(
    rank: Rank, case: Case, earlier: Sequence[Tensor] = (), values: bool = True, counts: bool = True
) -> Outcome:
    """Run a case; counting takes as long as running, and so does adding up gradients: either may be left out.

    Args:
        earlier: what ``cache_of`` gives for the case.
    """
    made = case.on(rank.index, counts)
    if case.phase == "decode" or case.cached:
        return _after_cache(made, case, earlier, counts)
    whole, seed = (t.to(DTYPES[case.dtype]) for t in case.tokens())
    train = case.phase == "train"
    x = made.shard(whole).clone().requires_grad_(train)
    dtype = DTYPES[case.dtype]
    parts = [made.shard_memory(t.to(dtype)) for t in case.memory()] + [made.shard(t.to(dtype)) for t in case.embedded()]
    second = [part.clone().requires_grad_(train) for part in parts]
    counter, keeper, sums = (
        (FlopCounter(), keeping(), GradientSums(made.ops)) if counts else (nullcontext(), nullcontext(), nullcontext())
    )
    with torch.set_grad_enabled(train), counter, sums, keeper as kept:
        out = made(x, *second)
        saved = kept.bytes(without=[*made.weights.values(), *made.tables(made.padded(case.length))]) if counts else 0
        if train:
            out.backward(made.shard(seed))
    done = _outcome(made, out.detach(), counter.total if counts else 0, saved)
    if not (train and values):
        return done
    made.sum_gradients()
    weights = {name: w.grad for name, w in made.weights.items() if w.requires_grad}
    return replace(done, gradient=x.grad, weights=weights, memory=second[0].grad if second else None)


def _outcome(made: DistributedLayer, out: Tensor, flops: int, saved: int = 0) -> Outcome:
    """With what the executor counted, if it did."""
    useful, classes = (made.ops.useful, dict(made.ops.classes)) if isinstance(made.ops, Watched) else (0, {})
    return Outcome(out, dict(made.ops.transport.sent), flops, useful, classes, saved)


def _earlier(case: Case) -> int:
    """Tokens that one process decodes, and caches, before the ranks go on."""
    return case.cached or case.length - 1


def cache_of(case: Case) -> list[Tensor]:
    """What one process keeps in float64 of the tokens before those that the ranks decode or prefill, if they do."""
    if case.phase != "decode" and not case.cached:
        return []
    x, whole = case.tokens()[0], alone(replace(case, phase="decode"))
    kept = whole.layer.mixer.cache(whole.block(case.cached or case.length).sizes, _kept_tokens(case))
    cache = [torch.full((case.batch, *k.shape), k.start, dtype=torch.float64) for k in kept]
    if case.memory():
        cache = _prefilled(case)
    with torch.no_grad():
        for token in range(_earlier(case)):
            beside = [t[:, token : token + 1] for t in case.embedded()]
            whole.decode(x[:, token : token + 1], _seen(case, cache, token), token + 1, *beside)
    for t, k in zip(cache, kept, strict=True):
        if k.tokens and not case.memory():
            t[:, :, _earlier(case) :] = torch.nan  # the room for the new token must not be read
    return cache


def _after_cache(made: DistributedLayer, case: Case, cache: Sequence[Tensor], counts: bool) -> Outcome:
    """Decode the last token, or prefill the last tokens."""
    first, dtype = _earlier(case), DTYPES[case.dtype]
    kept = case.layer.mixer.cache(case.layer.sizes, _kept_tokens(case))
    with torch.no_grad(), FlopCounter() if counts else nullcontext() as counter:
        own = made.shard_cache(_seen(case, cache, (case.cached or case.length) - 1))
        given = [t.to(made.ops.dtypes[k.precision]).clone() for t, k in zip(own, kept, strict=True)]
        new, *beside = (made.shard(t[:, first:]).to(dtype) for t in (case.tokens()[0], *case.embedded()))
        if case.cached:
            room = new.shape[1] * case.mesh.get("tensor", 1)
            out = made.extend(new, [_with_room(t, room) for t in given], case.cached, *beside)
        else:
            out = made.decode(new, given, case.length, *beside)
    return _outcome(made, out, counter.total if counts else 0)


def _with_room(cached: Tensor, new: int) -> Tensor:
    """A rank's cached keys, and places for its new ones that must not be read before they are written."""
    return torch.cat([cached, cached.new_full((*cached.shape[:2], new, *cached.shape[3:]), torch.nan)], 2)


def alone(case: Case) -> DistributedLayer:
    """The layer on one process, in float64."""
    return replace(case, strategy=strategies.get("whole"), mesh={}, dtype="fp64", gradient=None).on(0)


def _kept_tokens(case: Case) -> int:
    """Tokens of a cache along tokens, before a window leaves any out."""
    second = case.memory()
    return second[0].shape[1] if second else case.cached or case.length


def _prefilled(case: Case) -> list[Tensor]:
    """What prefill keeps, on one process."""
    made, found = alone(replace(case, phase="prefill")), []
    vars(made.ops)["keep"] = found.append
    with torch.no_grad():
        made(case.tokens()[0], *case.memory())
    return found


def _seen(case: Case, cache: Sequence[Tensor], token: int) -> list[Tensor]:
    """Of caches along tokens, the part that a token sees, itself included."""
    kept = case.layer.mixer.cache(case.layer.sizes, _kept_tokens(case))
    if case.memory():
        return [*cache]
    first = max(0, token + 1 - (case.layer.window or token + 1))
    return [t[:, :, first : token + 1] if k.tokens else t for t, k in zip(cache, kept, strict=True)]


def run_both(rank: Rank, case: Case, earlier: Sequence[Tensor] = ()) -> tuple[Outcome, Outcome]:
    """In float64, to compare values; and in the case's own dtype, whose width the counts of bytes depend on."""
    exact = replace(case, dtype="fp64", gradient=None)
    if exact == case:
        done = run_case(rank, case, earlier)
        return done, done
    return run_case(rank, exact, earlier, counts=False), run_case(rank, case, earlier, values=False)


# Values ---------------------------------------------------------------------------------------------------------------

#: Of numbers near 1 after some hundred float64 operations, whose unit roundoff is 1.1e-16.
TOLERANCE = 1e-10


def check_values(case: Case, outcomes: Sequence[Outcome]) -> None:
    """Output and gradients of every rank equal those of the layer written out.

    Raises:
        AssertionError: naming what differs.
    """
    on_ranks = [case.on(rank) for rank in range(case.ranks)]
    end = case.cached + case.length
    room = alone(case).padded(case.length) - case.length  # up to whole pieces of the mixer, which its definition needs
    x, seed = case.tokens()
    weights = case.weights(on_ranks[0].whole_shapes)
    trained = {name: w.requires_grad_() for name, w in weights.items() if name not in case.layer.mixer.fixed}
    second = [t.requires_grad_() for t in (*case.memory(), *case.embedded())]
    given = [pad(t, (0, 0, 0, room)) for t in (x.requires_grad_(), *(second if case.layer.shared else []))]
    memory = [] if case.layer.shared else second
    lengths = (*case.documents, room) if case.documents else (given[0].shape[1],)
    parts = zip(*(t.split(lengths, 1) for t in given), strict=True)  # each document is what it is alone
    wanted = torch.cat(
        [whole_layer(case.layer, t, weights, case.causal, *memory, *more) for t, *more in parts if t.shape[1]], 1
    )[:, :end]
    last = wanted[:, -1:] if case.phase == "decode" else wanted[:, case.cached :]
    for made, outcome in zip(on_ranks, outcomes, strict=True):
        tokens = made.places(case.batch, case.length)[1] < case.length
        _check_close(f"output on rank {made.mesh.rank}", outcome.out[:, tokens], made.shard(last.detach())[:, tokens])
    if case.phase != "train":
        return
    wanted.backward(seed)
    for made, outcome in zip(on_ranks, outcomes, strict=True):
        _check_close(f"gradient of x on rank {made.mesh.rank}", outcome.gradient, made.shard(x.grad))
        for t in second:
            part = made.shard(t.grad) if case.layer.shared else made.shard_memory(t.grad)
            _check_close(f"gradient of the second sequence on rank {made.mesh.rank}", outcome.memory, part)
        assert outcome.weights.keys() == trained.keys()
        for name, w in trained.items():
            _check_close(f"gradient of {name} on rank {made.mesh.rank}", outcome.weights[name], made.cut(name, w.grad))


def _check_close(what: str, actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None, what
    limit = TOLERANCE * max(1.0, float(expected.abs().max())) if expected.numel() else 0.0  # of padding alone
    torch.testing.assert_close(actual, expected, rtol=0, atol=limit, msg=lambda text: f"{what}: {text}")


# Counts ---------------------------------------------------------------------------------------------------------------


def expected(case: Case) -> Expected:
    """The layer as the planner traces it."""
    gradient = case.gradient and DTYPES[case.gradient]
    dtype, inside = DTYPES[case.dtype], case.context_inside
    return Expected(case.layer, case.way, case.workload, case.mesh, dtype, inside, gradient)


def check_flops(known: Expected, outcomes: Sequence[Outcome]) -> None:
    """FLOPs on every rank: of products as torch counts them, useful ones by written-out masks, others as they ran."""
    for reading, what in ((Reading.DENSE, "flops"), (Reading.USEFUL, "useful")):
        formula = known.program.flops(reading).get("contraction", 0)
        for rank, outcome in enumerate(outcomes):
            counted, predicted = getattr(outcome, what), known.value(formula, rank)
            assert counted == predicted, f"{what} on rank {rank}: counted {counted}, predicted {predicted}: {formula}"


def check_classes(case: Case, known: Expected, outcomes: Sequence[Outcome]) -> None:
    """FLOPs of every class, on every rank.

    What broadcasting stretched is summed up again going backward; where it stretched to a size of 1 there is nothing
    to sum, which a formula of that size does not know: its reductions are then an upper bound. Logarithms of Fourier
    transforms are rounded, in the order in which they are added up.
    """
    formulas = known.program.flops(Reading.DENSE)
    tensor, ulysses = (case.mesh.get(name, 1) for name in ("tensor", "ulysses"))
    cut = [case.layer.sizes[size.symbol] // tensor for size in case.layer.mixer.sizes.values() if size.cut]
    heads = *cut, *(size // ulysses for size in cut)
    data = case.mesh.get("data", 1)
    tokens = case.batch // data, known.length * data // case.ranks
    bound = 1 in (*case.layer.sizes.values(), *heads, *tokens)
    for rank, outcome in enumerate(outcomes):
        for kind in formulas.keys() | outcome.classes.keys():
            counted, formula = outcome.classes.get(kind, 0), formulas.get(kind, 0)
            predicted = known.value(formula, rank)
            agree = counted <= predicted if kind == "reduction" and bound else counted == predicted
            if kind in ("fft", "sort"):  # logarithms are rounded
                agree = math.isclose(counted, predicted, rel_tol=1e-12)
            assert agree, f"{kind} on rank {rank}: counted {counted}, predicted {predicted}: {formula}"


def check_wire(known: Expected, outcomes: Sequence[Outcome]) -> None:
    """Bytes and messages that every rank sent, along every axis."""
    for rank, outcome in enumerate(outcomes):
        predicted = known.sent(rank)
        assert predicted.keys() <= outcome.sent.keys()
        for axis, sent in outcome.sent.items():
            told = predicted.get(axis, Traffic())
            assert sent == told, f"sent on rank {rank} along {axis}: {sent}, not {told}"


def check_kept(known: Expected, outcomes: Sequence[Outcome]) -> None:
    """Bytes that autograd keeps between forward and backward."""
    if known.workload.phase == "train":
        formula = known.saved
        for rank, outcome in enumerate(outcomes):
            predicted = known.value(formula, rank)
            assert outcome.kept == predicted, f"kept on rank {rank}: {outcome.kept}, predicted {predicted}: {formula}"


def check_case(pool: RankPool, case: Case) -> None:
    """Everything."""
    done = pool.run(run_both, case, cache_of(case), ranks=case.ranks, timeout_s=60)
    exact, counted = zip(*done, strict=True)
    check_values(case, exact)
    known = expected(case)
    check_flops(known, counted)
    check_classes(case, known, counted)
    check_wire(known, counted)
    check_kept(known, counted)
