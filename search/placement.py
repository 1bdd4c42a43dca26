"""Where everything that a search keeps in memory lies: on which device, in main memory or in its files.

Pure arithmetic on bytes. Where the sources go is decided by the function that decides it in the run,
:func:`merging.arena.choose`.

What is reckoned, for each worker (T tokens in a batch, d bytes an element, and of the model L blocks, keys of k
elements, width h, feed-forward width f, a vocabulary of V tokens; see :class:`merging.sizes.Widths`):

- weights of the live model, as its headers say; where it is spread over n devices, 1/n and one block on each,
- keys and values: 2·L·k·d bytes a token, for up to 8·T tokens (:data:`GENERATION`), or T while a prompt is only scored,
- activations: T·(6·h + 4·f)·d bytes, for what a block holds at once: its input, the normed one, queries, keys, values
  and the result, and up to four in the feed-forward network. Attention is taken as computed in tiles, without T²,
- logits: min(T·V, 2²⁷)·(4 + d) bytes,
- where sources lie elsewhere than the live model: the largest tensor of each, on its way to be merged.

Where the live model is a path through the models' layers (``space.data_flow``), the sources are its weights: each layer
once, however often it is run, and L is the number of hops. Where they lie elsewhere, those of one path are copied. If
hops have scales, each has what writes to the residual stream for itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from merging.arena import Home, Where, choose
from merging.sizes import ModelSizes, Widths

GB = 10**9

# As evaluators.engines.hf has them (a test compares): tokens of generation for each token of a batch, tokens of a batch
# on a CPU and on a device, and logits that exist at once.
GENERATION = 8
BATCH_TOKENS = {"cpu": 1024, "device": 16384}
LOGITS = 2**27

# A batch is halved no further than to these tokens, or to one request.
LEAST_TOKENS = 64

# Main memory of a worker process beside all of this: Python, torch, transformers.
PROCESS = 1 * GB

# Memory of a device that the driver, the libraries' kernels and fragments of torch's allocator take.
CONTEXT = 1 * GB

_PATH = "layers of a path"
_SCALED = "weights of hops with scales"

# Refusals look no further for how many devices it would take.
_MOST_DEVICES = 64


@dataclass(frozen=True)
class Machine:
    """What there is to lie in.

    Attributes:
        devices: bytes of each; none where CPUs do the work.
        host: bytes of main memory that are free.
    """

    devices: tuple[int, ...]
    host: int


@dataclass(frozen=True)
class Work:
    """What is asked of the models.

    Attributes:
        batch_tokens: of the engine; what it takes by itself if None.
        longest: tokens of the longest request with its answer: one of them must fit.
        workers: processes of a machine; as many as the devices are enough for, one without, if None.
        gpus: devices of each worker; as few whole ones as will do if None.
        own_weights: the engine keeps a copy of the weights beside the live model (vLLM).
        shared: the workers are several, and keep sources in main memory once for all of them.
    """

    batch_tokens: int | None = None
    longest: int = 2048
    workers: int | None = None
    gpus: float | None = None
    own_weights: bool = False
    shared: bool = False


@dataclass(frozen=True)
class Part:
    """Something that lies somewhere.

    Attributes:
        what: for people.
        where: "device", "host", "shared" (in main memory, once for all workers) or "files".
        size: bytes; for each worker, where it is not once for all of them.
        once: for all workers of the machine together.
    """

    what: str
    where: Where
    size: int
    once: bool = False


@dataclass(frozen=True)
class Placement:
    """Where things lie, or why they cannot.

    Attributes:
        parts: everything.
        workers: of the machine: as many as are wanted and as there are devices for.
        gpus: devices of each worker: 0 on CPUs, below 1 where workers share one.
        device_left: bytes that are left of a worker's share of its fullest device; None on CPUs.
        host_left: bytes of main memory that are left.
        batch_tokens: that fit: half, a quarter, … of what was asked for where that does not.
        asked_tokens: what was asked for.
        problem: what does not fit; "" where all does.
        remedies: what would; one of them is enough.
    """

    parts: tuple[Part, ...]
    workers: int
    gpus: float
    device_left: int | None
    host_left: int
    batch_tokens: int
    asked_tokens: int
    problem: str = ""
    remedies: tuple[str, ...] = field(default=())

    @property
    def fits(self) -> bool:
        """Whether the search can be run."""
        return not self.problem


def place(sizes: ModelSizes, machine: Machine, work: Work) -> Placement:
    """Where base, experts, live model, keys and values and activations lie on one machine."""
    found = _laid(sizes, machine, work)
    return found if found.fits else replace(found, remedies=tuple(_remedies(sizes, machine, work, found)))


def _laid(sizes: ModelSizes, machine: Machine, work: Work) -> Placement:
    """As :func:`place`, without what to do."""
    if not machine.devices:
        return _on_cpus(sizes, machine, work)
    if work.gpus is not None:
        return _on_devices(sizes, machine, work, work.gpus)
    tried = [_on_devices(sizes, machine, work, float(gpus)) for gpus in range(1, len(machine.devices) + 1)]
    return next((each for each in tried if each.fits), tried[-1])


def _on_cpus(sizes: ModelSizes, machine: Machine, work: Work) -> Placement:
    workers = work.workers or 1
    copies = 1 if work.shared else workers
    weights = sizes.live * (2 if work.own_weights else 1)
    left = machine.host - workers * (PROCESS + weights)
    where = choose(_home(work), copies * _total(sizes), max(0, left))
    path = sizes.path if where == "files" else 0
    left -= copies * _total(sizes) if where != "files" else workers * path
    left -= workers * sizes.scaled
    asked = work.batch_tokens or BATCH_TOKENS["cpu"]
    tokens, used = _batch(sizes, work, asked, left / workers)
    left -= workers * sum(used.values())
    parts = (
        _process(),
        *_models(sizes, work, "host", where),
        *_parts({_PATH: path, _SCALED: sizes.scaled, **used}, "host"),
    )
    found = Placement(parts, workers, 0.0, None, left, tokens, asked)
    if left >= 0:
        return found
    live = f"{workers} live models of {_gb(sizes.live)} each" if workers > 1 else f"a live model of {_gb(sizes.live)}"
    live = live if sizes.live else "layers of all models"
    needed, there = _gb(machine.host - left), _gb(machine.host)
    return replace(found, problem=f"{live} and what it takes to run need {needed} of main memory, and {there} are free")


def _on_devices(sizes: ModelSizes, machine: Machine, work: Work, gpus: float) -> Placement:
    each, most = _share(machine.devices, gpus)
    workers = min(most, work.workers or most)
    copies = 1 if work.shared else max(1, workers)
    spread = max(1, math.ceil(gpus))
    context = math.ceil(CONTEXT * min(1.0, gpus))
    weights = _on_one(sizes.live, sizes.piece, spread) * (2 if work.own_weights else 1)
    free, host = each - context - weights, machine.host - workers * PROCESS
    beside = _on_one(_total(sizes), sizes.piece * len(sizes.sources), spread)
    where = choose(_home(work), copies * _total(sizes), max(0, host), [(beside, max(0, free))])
    passing = 0 if where == "device" else sizes.path or sizes.tensor * len(sizes.sources)
    free -= sizes.scaled + (beside if where == "device" else passing)
    host -= copies * _total(sizes) if where in ("host", "shared") else 0
    asked = work.batch_tokens or BATCH_TOKENS["device"]
    tokens, used = _batch(sizes, work, asked, free, spread)
    left = free - sum(used.values())
    parts = (
        _process(),
        Part("driver and kernels", "device", context * spread),
        *_models(sizes, work, "device", where),
        *(
            [Part(_PATH if sizes.path else "tensors of all sources, passing", "device", passing * spread)]
            if passing
            else []
        ),
        *_parts({_SCALED: sizes.scaled, **{what: size * spread for what, size in used.items()}}, "device"),
    )
    found = Placement(parts, workers, gpus, left, host, tokens, asked)
    if left < 0 or not workers:
        on = f"its {gpus:g} of a device" if gpus < 1 else "one device" if gpus == 1 else f"each of its {gpus:g} devices"
        live = f"{'the live model' if spread == 1 else 'its part of the live model'} {_gb(weights)}"
        if sizes.path:
            layers = f"{_PATH} {_gb(passing)}" if passing else f"layers of all models {_gb(beside)}"
            live = f"{layers}, {_SCALED} {_gb(sizes.scaled)}" if sizes.scaled else layers
        there = f"there are {_gb(each)}" if workers else f"this machine has {len(machine.devices)}"
        return replace(
            found, problem=f"a worker needs {_gb(each - left)} on {on} ({live}, the rest to run it), and {there}"
        )
    if host < 0:
        needed, there = _gb(machine.host - host), _gb(machine.host)
        return replace(found, problem=f"{workers} worker processes need {needed} of main memory, and {there} are free")
    return found


def _remedies(sizes: ModelSizes, machine: Machine, work: Work, found: Placement) -> list[str]:
    """What would be enough, each by itself."""
    if found.device_left is not None and (found.device_left < 0 or not found.workers):
        return _more_or_larger_devices(sizes, machine, work, found)
    remedies = [f"{_gb(machine.host - found.host_left, up=True)} of free main memory"]
    for fewer in range(found.workers - 1, 0, -1):
        if _laid(sizes, machine, replace(work, workers=fewer)).fits:
            remedies.append(f"{fewer} of the {found.workers} workers (workers: {{count: {fewer}}})")
            break
    return remedies


def _more_or_larger_devices(sizes: ModelSizes, machine: Machine, work: Work, found: Placement) -> list[str]:
    size, have, remedies = min(machine.devices), len(machine.devices), []
    for more in range(math.floor(found.gpus) + 1 if found.workers else 1, _MOST_DEVICES + 1):
        alike = Machine((size,) * more, machine.host)
        if _on_devices(sizes, alike, replace(work, workers=1), float(more)).fits:
            lacking = "" if more <= have else f", of which this machine has {have}"
            devices = "a whole device" if more == 1 else f"{more} devices"
            remedies.append(f"{devices} of {_gb(size)} for each worker (workers: {{kind: ray, gpus: {more}}}){lacking}")
            break
    if found.workers and found.device_left is not None and found.gpus >= 1:
        needed = _gb(size - found.device_left, up=True)
        remedies.append(f"devices of {needed}" if found.gpus > 1 else f"a device of {needed}")
    return remedies


def _total(sizes: ModelSizes) -> int:
    return sum(sizes.sources.values())


def _process() -> Part:
    return Part("Python, torch and transformers", "host", PROCESS)


def _home(work: Work) -> Home:
    return "shared" if work.shared else "auto"


def _share(devices: Sequence[int], gpus: float) -> tuple[int, int]:
    """(bytes that a worker may take of each of its devices, workers that the machine has devices for)."""
    if gpus < 1:
        return math.floor(min(devices) * gpus), len(devices) * math.floor(1 / gpus + 1e-9)
    return min(devices), len(devices) // math.ceil(gpus)


def _on_one(size: int, piece: int, spread: int) -> int:
    """Of what is spread over devices, what the fullest one holds: pieces are not divided."""
    return size if spread == 1 else min(size, math.ceil(size / spread) + piece)


def _working(sizes: ModelSizes, work: Work, tokens: int, spread: int = 1) -> dict[str, int]:
    """Bytes that running the model takes on one device, with so many tokens in a batch. Nothing where the config does
    not say what it depends on."""
    widths = sizes.widths
    if widths is None:
        return {}
    batch = max(tokens, work.longest)
    generated = max(GENERATION * tokens, work.longest)
    keys = math.ceil(keys_and_values(widths, generated, sizes.itemsize) / spread)
    return {
        "keys and values": 0 if work.own_weights else keys,  # vLLM takes what is left
        "activations": activations(widths, batch, sizes.itemsize),
        "logits": logits(widths, batch, sizes.itemsize),
    }


def keys_and_values(widths: Widths, tokens: int, itemsize: int) -> int:
    """Bytes of the cache for so many tokens."""
    return 2 * widths.layers * widths.keys * itemsize * tokens


def activations(widths: Widths, tokens: int, itemsize: int) -> int:
    """Bytes of what a forward pass over so many tokens holds at once, logits left out."""
    return tokens * (6 * widths.hidden + 4 * widths.intermediate) * itemsize


def logits(widths: Widths, tokens: int, itemsize: int) -> int:
    """Bytes of the logits of so many tokens: in the model's dtype, and in float32."""
    return min(tokens * widths.vocabulary, LOGITS) * (4 + itemsize)


def _batch(sizes: ModelSizes, work: Work, asked: int, room: float, spread: int = 1) -> tuple[int, dict[str, int]]:
    """The batch as it is asked for, or halved until it fits or is at its least; and what it takes on one device."""
    tokens = asked
    while tokens > LEAST_TOKENS and sum(_working(sizes, work, tokens, spread).values()) > room:
        tokens = max(LEAST_TOKENS, tokens // 2)
    return tokens, _working(sizes, work, tokens, spread)


def _models(sizes: ModelSizes, work: Work, live: Where, sources: Where) -> list[Part]:
    own = [Part("the engine's own copy of it", live, sizes.live)] if work.own_weights else []
    once = sources in ("shared", "files")
    return [
        *([Part("live model", live, sizes.live)] if sizes.live else []),
        *own,
        *(Part(_named(alias), sources, size, once) for alias, size in sizes.sources.items()),
    ]


def _named(alias: str) -> str:
    return alias if alias == "base" else f"expert {alias}"


def _parts(used: Mapping[str, int], where: Where) -> list[Part]:
    return [Part(what, where, size) for what, size in used.items() if size]


def _gb(size: float, *, up: bool = False) -> str:
    """For people, in three digits; ``up`` rounds to what is enough."""
    if up:
        size = math.ceil(size / (GB / 10)) * (GB / 10)
    return f"{size / GB:.3g} GB" if size >= 0.01 * GB else f"{size / 10**6:.3g} MB"


def assumed(parameters: int, experts: int, itemsize: int) -> ModelSizes:
    """Sizes of a family of which nothing is known but how many parameters each model has.

    A plain transformer is taken: 12·L·h² parameters with blocks of width h, h = 128·L, feed-forward networks of 8/3·h,
    keys as wide as the blocks (grouped ones take less), and a vocabulary of 128,000.
    """
    layers = max(1, round((parameters / 12 / 128**2) ** (1 / 3)))
    hidden = 128 * layers
    size = parameters * itemsize
    return ModelSizes(
        parameters=parameters,
        sources={"base": size} | {str(number + 1): size for number in range(experts)},
        live=size,
        piece=max(12 * hidden**2, 128_000 * hidden) * itemsize,
        tensor=128_000 * hidden * itemsize,
        itemsize=itemsize,
        widths=Widths(layers, hidden, hidden, 8 * hidden // 3, 128_000),
    )
