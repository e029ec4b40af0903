"""Which of the tensors in a file are a network's: they may have a prefix there, and so may the network's own.

A checkpoint of a ``LightningModule`` calls them ``net.conv1.weight``, one of ``DistributedDataParallel``
``module.conv1.weight``; ``torch.compile`` puts ``_orig_mod`` anywhere. A network is found by all its names and shapes
together, wherever they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Shape = tuple[int, ...]

_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Names that torch puts between those of the modules."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a network needs.

    Attributes:
        shapes: of what its state dict holds; ``None`` for what is no tensor or not initialised yet.
        optional: those that it can do without: counters of batch norms, which files of torch before 0.4.1 lack.
        tied: groups of names of one tensor each; one of them is enough.
    """

    shapes: Mapping[str, Shape | None]
    optional: frozenset[str] = frozenset()
    tied: Sequence[tuple[str, ...]] = ()

    @classmethod
    def by(cls, network: nn.Module) -> Wanted:
        """What ``network`` needs.

        >>> Wanted.by(nn.Linear(3, 2)).shapes
        {'weight': (2, 3), 'bias': (2,)}
        """
        state = network.state_dict(keep_vars=True)
        shapes = {
            name: tuple(x.shape) if isinstance(x, Tensor) and not is_lazy(x) else None for name, x in state.items()
        }
        groups: dict[int, list[str]] = {}
        for name, x in state.items():
            groups.setdefault(id(x), []).append(name)
        counters = frozenset(name for name in shapes if name.endswith("num_batches_tracked"))
        return cls(shapes, counters, [tuple(names) for names in groups.values() if len(names) > 1])


@dataclass(frozen=True, slots=True)
class Match:
    """A network in a file.

    Attributes:
        prefix: what its names have in front, without the last dot; ``""`` for nothing.
        names: of the network's tensors, in the file.
        unused: names in the file that have the prefix too and that neither the network nor another that fits has.
        own: what the network's own names have in front that those in the file haven't.
    """

    prefix: str
    names: Mapping[str, str]
    unused: tuple[str, ...]
    own: str = ""

    def module(self, name: str) -> str | None:
        """What the network calls the module that is ``name`` in the file; ``None`` for one of another network.

        >>> Match("net", {}, ()).module("net.conv1"), Match("net", {}, ()).module("loss")
        ('conv1', None)
        """
        prefix = f"{self.prefix}." if self.prefix else ""
        if not f"{name}.".startswith(prefix):
            return None
        return f"{self.own}.{name[len(prefix) :]}".strip(".")


def find_network(there: Mapping[str, Shape], wanted: Wanted) -> list[Match]:
    """Return every set of tensors in a file that has all names and shapes of a network, the shortest prefix first.

    Where one of them has nothing else under its prefix, those that have are left out: a network of six layers is
    no part of one of twelve that is there too. Where none fits, the network itself may be the one with a prefix: it
    is found if the file has all of its tensors without, and no others.

    Args:
        there: shapes of the tensors in the file, by name.
        wanted: what the network needs.

    >>> there = {"teacher.weight": (2, 3), "student.weight": (2, 3), "student.bias": (2,), "steps": ()}
    >>> [match.prefix for match in find_network(there, Wanted.by(nn.Linear(3, 2)))]
    ['student']
    """
    files = _by_plain_name(there)
    found = []
    for prefix in sorted(_prefixes(files, wanted), key=lambda prefix: (len(prefix), prefix)):
        match = _match(files, there, wanted, prefix)
        if match is not None:
            found.append(match)
    if not found:
        return _without_own_prefix(files, there, wanted)
    for i, match in enumerate(found):
        of_others = {at for other in found if other is not match for at in other.names.values()}
        found[i] = replace(match, unused=tuple(at for at in match.unused if at not in of_others))
    exact = [match for match in found if not match.unused]
    return exact or found


def describe_misfit(
    there: Mapping[str, Shape], wanted: Wanted, model: str = "model", prefix: str | None = None
) -> list[str]:
    """Return how tensors in a file differ from a network's: names missing, names unknown, shapes that differ.

    Args:
        there: shapes of the tensors in the file, by name.
        wanted: what the network needs.
        model: what to call the network.
        prefix: what its names have in front in the file; where they are most like it if ``None``.

    >>> describe_misfit({"net.weight": (3, 3), "net.bias": (2,)}, Wanted.by(nn.Linear(3, 2)))
    ['shapes differ: net.weight (3, 3) in the file, (2, 3) in the model']
    """
    files = _by_plain_name(there)
    shapes = {_plain(name): shape for name, shape in wanted.shapes.items()}
    if prefix is None:
        starts = sorted(_prefixes(files, wanted) | {""}, key=len)
        prefix = max(starts, key=lambda start: sum(start + name in files for name in shapes))
    missing = [name for name in shapes if prefix + name not in files and name not in wanted.optional]
    unexpected = [
        name for plain, name in files.items() if plain.startswith(prefix) and plain[len(prefix) :] not in shapes
    ]
    differ = [
        f"{files[prefix + name]} {there[files[prefix + name]]} in the file, {shape} in the {model}"
        for name, shape in shapes.items()
        if prefix + name in files and shape not in (None, there[files[prefix + name]])
    ]
    return [
        f"{what}: {few(names)}"
        for what, names in (
            (f"missing in the file{f' under {prefix!r}' if prefix else ''}", missing),
            (f"not in the {model}", unexpected),
            ("shapes differ", differ),
        )
        if names
    ]


def choose(labels: Sequence[str], asked: str | None, option: str) -> int:
    """Return which of the networks that fit is meant.

    Args:
        labels: what they are called.
        asked: the one that was asked for, if any.
        option: how to ask for one, with a place for its name.

    Raises:
        ValueError: it isn't there; or none was asked for and there are several. All are listed.

    >>> choose(["student", "teacher"], None, "--network {}")
    Traceback (most recent call last):
    ...
    ValueError: 2 networks in it fit the model: student, teacher. Say which is meant: --network student
    """
    if asked is None and len(labels) == 1:
        return 0
    if asked in labels:
        return labels.index(asked)
    listed = few(labels, 12)
    if asked is not None:
        raise ValueError(f"no network in it that fits the model is called {asked!r}; there is: {listed}")
    example = option.format(labels[0])
    raise ValueError(f"{len(labels)} networks in it fit the model: {listed}. Say which is meant: {example}")


def few(names: Sequence[str], most: int = 6) -> str:
    """Return the first names, and how many more there are.

    >>> few(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _plain(name: str) -> str:
    """A name without what torch puts in between."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _by_plain_name(there: Iterable[str]) -> dict[str, str]:
    """The names in a file by their plain ones; by themselves where two would be one."""
    names = list(there)
    plain = {_plain(name): name for name in names}
    return plain if len(plain) == len(names) else {name: name for name in names}


def _prefixes(files: Iterable[str], wanted: Wanted) -> set[str]:
    """What stands in front of one of the network's names somewhere in the file, the last dot included."""
    required = [name for name in wanted.shapes if name not in wanted.optional] or list(wanted.shapes)
    if not required:
        return set()
    longest = max(required, key=lambda name: name.count("."))
    anchors = [_plain(name) for name in next((names for names in wanted.tied if longest in names), (longest,))]
    return {
        name[: -len(anchor)]
        for name in files
        for anchor in anchors
        if name.endswith(anchor) and name[: -len(anchor)][-1:] in ("", ".")
    }


def _match(files: Mapping[str, str], there: Mapping[str, Shape], wanted: Wanted, prefix: str) -> Match | None:
    names = {}
    for name, shape in wanted.shapes.items():
        at = files.get(prefix + _plain(name))
        if at is not None:
            if shape is not None and there[at] != shape:
                return None
            names[name] = at
    used = set(names.values())
    for group in wanted.tied:
        names |= {name: names[held] for name in group if name not in names for held in group if held in names}
    if any(name not in names and name not in wanted.optional for name in wanted.shapes):
        return None
    unused = tuple(name for plain, name in files.items() if plain.startswith(prefix) and name not in used)
    return Match(prefix.rstrip("."), names, unused)


def _without_own_prefix(files: Mapping[str, str], there: Mapping[str, Shape], wanted: Wanted) -> list[Match]:
    common = _common_prefix([_plain(name) for name in wanted.shapes])
    for own in (".".join(common[: i + 1]) + "." for i in range(len(common))):
        inner = {_plain(name).removeprefix(own): name for name in wanted.shapes}
        bare = Wanted(
            {name: wanted.shapes[full] for name, full in inner.items()},
            frozenset(name for name, full in inner.items() if full in wanted.optional),
            [tuple(_plain(name).removeprefix(own) for name in group) for group in wanted.tied],
        )
        match = _match(files, there, bare, "")
        if match is not None and not match.unused:
            return [Match("", {inner[name]: at for name, at in match.names.items()}, (), own.rstrip("."))]
    return []


def _common_prefix(names: Sequence[str]) -> list[str]:
    """The modules that all names begin with."""
    paths = [name.split(".")[:-1] for name in names]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return common
