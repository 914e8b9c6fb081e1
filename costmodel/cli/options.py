"""Options that several commands share, and the question they make together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from costmodel.errors import InputError
from costmodel.units import parse_count
from costmodel.workload import GRADIENTS, PHASES, WIDTHS, Phase, Workload

if TYPE_CHECKING:
    from costmodel.model import Model
    from costmodel.subject import Subject

F = TypeVar("F", bound=Callable[..., Any])


def apply(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown in the order given."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


# Completion ---------------------------------------------------------------------------------------------------------


def _starting(names: Iterable[str], incomplete: str, prefix: str = "") -> list[CompletionItem]:
    return [CompletionItem(prefix + name) for name in names if name.startswith(incomplete)]


def complete_mixer(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of mixers."""
    from costmodel.mixer import mixers

    return _starting(mixers.names(), incomplete)


def complete_strategy(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of strategies."""
    from costmodel.strategy import strategies

    return _starting(strategies.names(), incomplete)


def complete_cluster(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """``8x`` and the name of a profile."""
    from costmodel.hardware import profiles

    count, cross, name = incomplete.rpartition("x") if incomplete[:1].isdigit() else ("", "", incomplete)
    return _starting(profiles(), name, count + cross)


# The options --------------------------------------------------------------------------------------------------------

SUBJECT = apply(
    click.option("--model", metavar="FILE", type=click.Path(), help="A model: its Hugging Face config.json."),
    click.option(
        "--mixer",
        metavar="NAME",
        shell_complete=complete_mixer,
        help="One layer of a token mixer alone: a name (costmodel list mixers) or file.py:NAME.",
    ),
    click.option(
        "--set",
        "sizes",
        metavar="KEY=N",
        multiple=True,
        help="A hyperparameter of the mixer, such as heads=32; repeat for more.",
    ),
    click.option("--width", metavar="N", help="Model width of the mixer.  [default: heads x head dimension]"),
)
CAUSAL = click.option(
    "--causal/--full",
    default=None,
    help="Whether a token sees only earlier ones.  [default: causal, where the mixer can be]",
)
DOCUMENTS = click.option(
    "--documents",
    metavar="N|L,...",
    help="Documents packed into each sequence: how many equal ones, or their lengths: 4Ki,60Ki.",
)
CACHED = click.option("--cached", metavar="N", help="Tokens that a prefill follows on: each sequence's, in its cache.")
GRADIENT = click.option(
    "--gradient",
    type=click.Choice(list(GRADIENTS)),
    default="fp32",
    show_default=True,
    help="Precision of gradients that ranks pass on and add to, as those of keys and values in a ring.",
)
WORKLOAD = apply(
    click.option("--batch", metavar="N", default="1", show_default=True, help="Sequences, over all devices."),
    click.option(
        "--dtype", type=click.Choice(list(WIDTHS)), help="Of weights and activations.  [default: the model's]"
    ),
    CAUSAL,
    DOCUMENTS,
    CACHED,
    GRADIENT,
    click.option("--whole-logits", is_flag=True, help="Train with the logits of all tokens held at once."),
    click.option("--cache-bytes", metavar="X", help="Bytes of one element of the KV cache; 1 for an 8-bit cache."),
)
CLUSTER = click.option(
    "--cluster",
    metavar="NxPROFILE",
    required=True,
    shell_complete=complete_cluster,
    help="Devices: 8xh100, 4xrtx4090 (costmodel list profiles) or 8x./mine.toml.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON; every key names its unit.")
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Print everything there is.")


# From options to a question -----------------------------------------------------------------------------------------


def parse_sizes(given: tuple[str, ...]) -> dict[str, int]:
    """Hyperparameters from ``("heads=32", "kv_heads=8")``; 0 stands for none.

    Raises:
        InputError: for what is not ``KEY=N``, or given twice.
    """
    sizes: dict[str, int] = {}
    for text in given:
        key, equals, number = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise InputError("--set", text, "must be a name and a number", "for example --set heads=32")
        if key in sizes:
            raise InputError("--set", text, f"{key} is given twice")
        sizes[key] = 0 if number == "0" else parse_count(number, f"--set {key}")
    return sizes


def parse_documents(text: str | None, length: int) -> tuple[int, ...]:
    """Lengths of the documents that a sequence is packed with: of so many equal ones, or as given; none for ``None``.

    Raises:
        InputError: for what is neither, and for a number that does not divide the tokens.
    """
    if text is None:
        return ()
    if "," in text:
        return tuple(parse_count(part, "--documents") for part in text.split(","))
    number = parse_count(text, "--documents")
    size, rest = divmod(length, number)
    if rest:
        rule = f"{length} tokens are not so many equal documents"
        raise InputError("--documents", text, rule, "give a number that divides them, or lengths: 4Ki,60Ki")
    return (size,) * number


def parse_cached(text: str | None) -> int:
    """Tokens that a prefill follows on; none for ``None``.

    Raises:
        InputError: for what is no number above 0.
    """
    return 0 if text is None else parse_count(text, "--cached")


def parse_cache_bytes(text: str | None) -> float | None:
    """Bytes of an element of the cache.

    Raises:
        InputError: for what is no number above 0 and up to 16.
    """
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.125 <= value <= 16:
        raise InputError("--cache-bytes", text, "must be a number from 0.125 to 16", "1 for an 8-bit cache")
    return value


@dataclass(frozen=True)
class Question:
    """What is to be run, apart from its length and pass."""

    subject: Subject
    model: Model | None
    options: Mapping[str, Any]

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> Question:
        """The subject of ``--model`` or ``--mixer``.

        Raises:
            InputError: unless exactly one of the two is given, or for a bad value.
        """
        from costmodel.huggingface import read_config
        from costmodel.subject import from_mixer, from_model

        path, mixer, width = options["model"], options["mixer"], options["width"]
        if (path is None) == (mixer is None):
            given = "neither" if path is None else f"--model {path} --mixer {mixer}"
            raise InputError("--model or --mixer", given, "give one of the two", "for example --mixer attention")
        if mixer is not None:
            if options["whole_logits"]:
                raise InputError("--whole-logits", True, "a mixer alone has no logits", "it is for --model")
            sizes = parse_sizes(options["sizes"])
            wide = None if width is None else parse_count(width, "--width")
            return cls(from_mixer(mixer, wide, **sizes), None, options)
        for option, value in (("--set", " ".join(options["sizes"])), ("--width", width)):
            if value:
                raise InputError(option, value, "is for --mixer", f"change {path} instead")
        model = read_config(path)
        return cls(from_model(model), model, options)

    @property
    def dtype(self) -> str:
        """Of weights and activations: as asked, or as the config states; bf16 for a mixer alone.

        Raises:
            InputError: for a config's dtype that no device runs matrices in.
        """
        asked: str | None = self.options["dtype"]
        if asked or self.model is None:
            return asked or "bf16"
        if self.model.dtype not in DTYPES:
            rule = "no device has a rate for it"
            raise InputError(f"dtype of {self.options['model']}", self.model.dtype, rule, "give --dtype")
        return DTYPES[self.model.dtype]

    def workload(self, length: int, phase: Phase) -> Workload:
        """One step of it.

        Raises:
            InputError: for a bad value.
        """
        batch, cache = parse_count(self.options["batch"], "--batch"), parse_cache_bytes(self.options["cache_bytes"])
        asked = self.options["causal"]
        causal = self.subject.causal if asked is None else asked
        return Workload(
            length,
            batch,
            phase,
            causal,
            self.dtype,
            cache,
            parse_cached(self.options["cached"]),
            self.options["whole_logits"],
            parse_documents(self.options["documents"], length),
            self.options["gradient"],
        )


#: What a dtype is called in a config and here.
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8", "float8_e5m2": "fp8"}
PASSES = click.Choice(list(PHASES))
