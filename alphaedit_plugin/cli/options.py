"""The options of the commands, each declared once. A class is a group of options under a heading of the help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from ..comparison.names import check_name, names_in
from ..editors.registry import GRAMMAR, check_names
from ..errors import HyperparameterError

if TYPE_CHECKING:
    from cyclopts import Token

    from ..nullspace.projection import Criterion

ARGUMENTS = Group("Arguments", sort_key=-1)
PREPARATION = Group("Preparation", sort_key=40)
MODEL = Group("Model", sort_key=50)


class Place(str):
    """A word that is the path of a file or folder, or the name of a model, a data set or a corpus."""


class Contender(str):
    """The name of anything that edits in a comparison: `memit+P`, `easyedit:FT`, `in-context`, `FILE.py:FUNCTION`."""


def parse_layers(type_: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
    """`4-8` or `4,5,6`, in ascending order. Raises HyperparameterError if it names no layer, or one twice."""
    keyword, text = tokens[0].keyword, ",".join(token.value for token in tokens)
    chosen: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            chosen += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        raise HyperparameterError(f"{keyword} {text!r} is not a list of layers such as 4-8 or 4,5,6") from None
    if not chosen or len(set(chosen)) != len(chosen):
        raise HyperparameterError(f"{keyword} {text!r} names no layer, or one twice")
    return tuple(sorted(chosen))


def parse_method(type_: Any, tokens: Sequence[Token]) -> str:
    """A method's name. Raises HyperparameterError if there is no such method."""
    check_names(tokens[0].value)
    return tokens[0].value


def parse_contenders(type_: Any, tokens: Sequence[Token]) -> tuple[Contender, ...]:
    """Commas separate names too, except inside brackets. Raises HyperparameterError for a word that is no method."""
    found = []
    for token in tokens:
        for name in names_in(token.value):
            try:
                check_name(name)
            except HyperparameterError as failure:
                said = f"{failure} (a model goes first: alphaedit compare MODEL --methods …)"
                raise HyperparameterError(
                    said if token.keyword == "--methods" else f"{token.keyword}: {failure}"
                ) from None
            found.append(Contender(name))
    if not found:
        raise HyperparameterError(f"{tokens[0].keyword} names no method")
    return tuple(found)


def parse_parameters(type_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    """Words KEY=VALUE. Raises HyperparameterError for one that is none."""
    for token in tokens:
        key, equals, value = token.value.partition("=")
        if not (key and equals and value):
            raise HyperparameterError(f"{token.keyword}: {token.value!r} is not KEY=VALUE, such as timeout_min=240")
    return tuple(token.value for token in tokens)


positive = Number(gte=1)

Model = Annotated[
    Place, Parameter(group=ARGUMENTS, help="Model folder, Hugging Face name, .gguf file, or the demo model.")
]
Method = Annotated[
    str,
    Parameter(
        converter=parse_method,
        metavar="METHOD",
        help=f"{GRAMMAR}; `alphaedit methods` lists them.",
    ),
]
Pilot = Annotated[
    Place | None,
    Parameter(
        metavar="DATA",
        help="Facts to try it with, the first 20 of a file in any format of `compare`. Default: those that ship.",
    ),
]
Cache = Annotated[
    Path | None,
    Parameter(help="Where computed results are kept. Default: $ALPHAEDIT_CACHE, or the platform's cache folder."),
]
AllowFailures = Annotated[
    bool,
    Parameter(
        help="Exit with 0 even if a fact is not learned, and try facts that cannot be, instead of refusing them."
    ),
]
Chat = Annotated[bool, Parameter(help="Teach and ask every prompt as the turn of a user in the model's chat template.")]
Public = Annotated[bool, Parameter(help="Publish for everybody. Default: what is made now is private.")]
Quiet = Annotated[bool, Parameter(alias="-q", help="Show no progress bars.")]


@Parameter(name="*", group=PREPARATION)
@dataclass(frozen=True)
class Preparing:
    """Where covariances come from, and which directions count as null."""

    layers: Annotated[
        tuple[int, ...] | None,
        Parameter(
            converter=parse_layers,
            n_tokens=1,
            metavar="LAYERS",
            help="Layers to edit, such as 4-8 or 4,5,6. Default: those of the model's hyperparameters.",
        ),
    ] = None
    corpus: Annotated[
        Place | None,
        Parameter(
            metavar="TEXT",
            help="Text for the covariances: a file, a folder, a .jsonl or the name of a data set. "
            "Default: text that the model itself writes.",
        ),
    ] = None
    stats_dir: Annotated[
        Path | None, Parameter(help="Folder of .npz statistics of EasyEdit, MEMIT or ROME, used instead of text.")
    ] = None
    tokens: Annotated[int | None, Parameter(help="Tokens of text to use. Default: 10 × the width of a key.")] = None
    threshold: Annotated[
        float | None, Parameter(help="Eigenvalues below it are null. Default: the method's; 2e-2 in the paper.")
    ] = None
    energy: Annotated[
        float | None,
        Parameter(help="Instead of --threshold: share of the keys' energy that the null space may hold."),
    ] = None
    nullity: Annotated[
        float | None,
        Parameter(help="Instead of --threshold: number of dimensions that are null, or below 1 their share."),
    ] = None
    hparams: Annotated[Path | None, Parameter(help="Hyperparameter YAML in EasyEdit's format.")] = None

    def criterion(self) -> Criterion | None:
        """None if no option asks for one. Raises NullSpaceError for more than one, or a number out of range."""
        if self.threshold is self.energy is self.nullity is None:
            return None
        from ..nullspace.projection import Criterion

        return Criterion(threshold=self.threshold, energy=self.energy, nullity=self.nullity)


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True)
class Placing:
    """How to load a model whose precision is known."""

    device: Annotated[
        str,
        Parameter(
            metavar="DEVICE",
            help="cpu, cuda, cuda:1, …; auto: the accelerator if there is one, else the CPU; spread: over all that "
            "there are, by accelerate.",
        ),
    ] = "auto"
    trust_remote_code: Annotated[bool, Parameter(help="Allow code that comes with the model to run.")] = False
    cache: Cache = None


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True)
class Loading(Placing):
    """How to load a model."""

    dtype: Annotated[
        str, Parameter(metavar="DTYPE", help="float32, bfloat16, float16, float64, or auto: the model's own.")
    ] = "auto"
