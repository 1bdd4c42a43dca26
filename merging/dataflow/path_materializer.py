"""Paths through the layers of models, in a live model: modules are hung up anew, and only scales make weights.

Every layer of every model is in memory once, as the sources hold it; a candidate is an order in which they are run. So
without scales it costs as much as it takes to write a list, and a path of a hundred hops as much memory as one of ten.
A hop with a scale has what writes to the residual stream for itself (:mod:`merging.dataflow.scaled_writers`): in a
Llama a third of its layer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from merging.arena import Home
from merging.calibration.contract import Calibration
from merging.checkpoint import content_hash
from merging.dataflow.blocks import Blocks
from merging.dataflow.folding import folded, writer_factors
from merging.dataflow.hops import Hop, LiveConfig, check_places, hang, hop_of, numbers_of
from merging.dataflow.live_path import LiveHop, LivePath, path_of
from merging.dataflow.scaled_writers import OwnWriters, ScaledWriters
from merging.dataflow.writers import find_writers
from merging.kernel import Resolver, check_finite_result, merge_tensor, torch_dtype
from merging.live import map_live
from merging.materialize import Applied
from merging.methods.registry import canonical
from merging.recipe import Assignment, Group, MergingError, Recipe
from merging.restack import for_recipe
from merging.sources import Sources


class PathMaterializer:
    """Lays paths through the layers of models in a live model that holds the base when it is handed over.

    As :class:`merging.materialize.Materializer`, for recipes of another kind: every block is one layer of one model as
    it is, perhaps with a scale, and so is every tensor outside the blocks (:func:`merging.dataflow.live_path.path_of`).

    Attributes:
        calibration: taken for the sake of whoever has either materializer; paths need none.
    """

    def __init__(
        self, sources: Sources, model: nn.Module, *, home: Home = "auto", calibration: Calibration | None = None
    ) -> None:
        """Take the live model apart, and the sources in. Afterwards it is the base.

        Args:
            sources: the models whose layers there are.
            model: as :func:`merging.live.load_model` returned it, from the folder of the sources' base, on one device.
            home: where the sources are kept: see :func:`merging.arena.hold`. What lies beside the live model is the
                live model; only what lies elsewhere, or in another dtype, is copied, each layer once.
            calibration: see the attribute.

        Raises:
            MergingError: what :class:`merging.materialize.Materializer` refuses; several stacks of layers or none; or
                layers that are not the same at another place of the model.
        """
        self._sources = sources
        self._model = model
        self.calibration = calibration
        if getattr(model, "hf_device_map", None) and len({str(each.device) for each in model.parameters()}) > 1:
            raise MergingError(
                "the live model is spread over several devices, and paths through layers are run on one: give each "
                "worker one device (workers.gpus: 1), or smaller models"
            )
        map_live(sources, model)  # for what it checks
        _let_record(model)
        self._blocks = Blocks(sources, model, home)
        self._numbered = numbers_of(self._blocks.templates)
        self._config = LiveConfig(model, sources.config, len(self._blocks.templates))
        check_places(model, self._config, self._blocks.templates, self._numbered, self._blocks.where)
        self._scaled: ScaledWriters | None = None
        self._factors: tuple[float, ...] = ()
        self._dtypes: set[tuple[str | None, str]] = set()
        self._path: LivePath | None = None
        self._recipe = self._plain()
        self._live: dict[str, Tensor] = {}
        self.apply(self._recipe)

    @property
    def sources(self) -> Sources:
        """The models whose layers there are."""
        return self._sources

    @property
    def model(self) -> nn.Module:
        """The live model. Its blocks are other modules after each :meth:`apply`."""
        return self._model

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The live tensors of the present path, under the names that its export has. Read-only: several names may be
        one tensor, and that the sources'."""
        return MappingProxyType(self._live)

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes of weights that were in any path so far: (the sources' own memory, copies of it)."""
        return self._blocks.bytes

    @property
    def scaled_bytes(self) -> int:
        """Bytes of the weights that hops with scales have for themselves: as many as the path that needed most of them
        took. The next path has the same memory."""
        return 0 if self._scaled is None else self._scaled.bytes

    @torch.no_grad()
    def apply(self, recipe: Recipe) -> Applied:
        """Bring the live model to a path. Afterwards it depends on the recipe alone, not on earlier ones.

        Raises:
            MergeFailed: a weight is not finite in the live dtype. The model is as it was, unless it is a product with a
                scale: then it is unusable until the next successful apply.
            MergingError: the recipe is no path, or does not fit the sources or the model. The model is as it was.
        """
        start = time.perf_counter()
        path = path_of(recipe, self._sources, self._blocks.anatomy)
        self._check_dtype(recipe, path)
        factors = (1.0,) * len(path.hops) if recipe.scales is None else writer_factors(recipe.scales)
        hops = self._hops(path)
        own = self._own(recipe, path, factors)
        around = self._blocks.around(path.outside)
        layers = [hop.layer for hop in path.hops]
        for number, (hop, writers) in enumerate(zip(hops, own, strict=True)):
            hop.put(number, {} if writers is None else writers.parameters)
        hang(self._blocks.stack, [hop.module for hop in hops])
        self._config.follow(layers)
        self._blocks.drop_others((hop.alias, hop.layer) for hop in path.hops)
        changed = self._changed(path, factors)
        self._path, self._factors, self._recipe = path, factors, recipe
        self._live = self._named(path, own) | around
        groups = dict.fromkeys(group for group, _ in changed)
        return Applied(tuple(groups), tuple(name for _, name in changed), time.perf_counter() - start)

    def forget(self) -> None:
        """Take nothing for granted: the next :meth:`apply` makes all hops anew, and compares every weight that it uses
        with the files. For after something else may have written to the model, or left hooks in it."""
        self._blocks.doubt()
        if self._scaled is not None:
            self._scaled.doubt()
        self._path = None

    def digest(self) -> str:
        """Hash of the live tensors, by the scheme of :attr:`merging.checkpoint.Checkpoint.content`: equal to that of
        the recipe's export, in which the scales are folded into weights."""
        recipe = folded(self._recipe, self._sources)
        view = for_recipe(self._sources, recipe)
        resolver = Resolver(view, recipe)
        dtype = torch_dtype(recipe.dtype)

        def value(name: str) -> Tensor:
            if name not in view.tensors:
                return view.tensor(view.base, name)
            if name in self._live:
                return self._live[name]
            out = torch.empty(view.tensors[name].shape, dtype=dtype or view.tensors[name].dtype)
            task = resolver.task(recipe.for_tensor(name, view.layout.group(name)))
            check_finite_result({name: merge_tensor(name, task, out)}, {name: out})
            return out

        return content_hash([*view.tensors, *view.frozen], value)

    def _plain(self) -> Recipe:
        """The base as a path."""
        base = self._sources.base
        take = canonical(Assignment.of("passthrough", {base: {}}))
        live = {name: self._blocks.dtype(name) or info.dtype for name, info in self._sources.tensors.items()}
        as_stored = all(info.dtype == live[name] for name, info in self._sources.tensors.items())
        return Recipe(
            base,
            self._sources.refs,
            dict.fromkeys(self._sources.layout.groups, take),
            dtype=None if as_stored else str(next(iter(live.values()))).removeprefix("torch."),
            tokenizer=self._sources.tokenizer,
        )

    def _hops(self, path: LivePath) -> list[Hop]:
        used: Counter[tuple[str, int]] = Counter()
        found = []
        for alias, layer, _ in path.hops:
            block = self._blocks.block(alias, layer)
            found.append(hop_of(block, used[alias, layer], self._numbered))
            used[alias, layer] += 1
        return found

    def _own(self, recipe: Recipe, path: LivePath, factors: Sequence[float]) -> Sequence[OwnWriters | None]:
        """[hops] the weights that each has for itself."""
        if set(factors) == {1.0}:
            return [None] * len(path.hops)
        if self._scaled is None:
            writers = find_writers(self._sources)
            self._scaled = ScaledWriters(self._sources, self._blocks.anatomy, self._blocks.inside, writers)
        try:
            return self._scaled.of(recipe, path.hops, factors)
        except BaseException:
            self._path = None  # memory of its hops may be half written
            raise

    def _check_dtype(self, recipe: Recipe, path: LivePath) -> None:
        """What is exported has the dtype in which it is run: a block that of its model, the others the base's."""
        wanted = torch_dtype(recipe.dtype)
        aliases = {hop.alias for hop in path.hops} | set(path.outside.values())
        for alias in sorted(aliases):
            if (recipe.dtype, alias) in self._dtypes:
                continue
            for name in self._sources.tensors:
                of = self._sources.base if name in path.outside else alias
                expected, live = wanted or self._sources.info(of, name).dtype, self._blocks.dtype(name)
                if live is not None and live != expected:
                    raise MergingError(
                        f"the recipe makes {name} of {alias!r} in {expected}, but the live model holds it in {live}: "
                        "what is scored would not be what is exported. Give the recipe dtype "
                        f"{str(live).removeprefix('torch.')!r} (models.dtype), or load the model in "
                        f"{str(expected).removeprefix('torch.')}"
                    )
            self._dtypes.add((recipe.dtype, alias))

    def _named(self, path: LivePath, own: Sequence[OwnWriters | None]) -> dict[str, Tensor]:
        """The blocks' tensors under the names of the export."""
        anatomy = self._blocks.anatomy
        shared = {
            anatomy.renamed(name, layer, number): tensor
            for number, (alias, layer, _) in enumerate(path.hops)
            for name, tensor in self._blocks.block(alias, layer).tensors.items()
        }
        return shared | {
            anatomy.named(rest, number): tensor
            for number, writers in enumerate(own)
            if writers is not None
            for rest, tensor in writers.tensors.items()
        }

    def _changed(self, path: LivePath, factors: Sequence[float]) -> list[tuple[Group, str]]:
        """What another layer or model gives than before: (group, name in the export)."""
        anatomy, layout = self._blocks.anatomy, self._sources.layout
        before: LivePath = self._path or LivePath((), {})
        outside = [
            (layout.group(name), name) for name, alias in path.outside.items() if before.outside.get(name) != alias
        ]
        inside = [
            (Group(layout.group(name).kind, number, anatomy.stack), anatomy.renamed(name, hop.layer, number))
            for number, hop in enumerate(path.hops)
            for name in self._others(hop, factors[number], number)
        ]
        return sorted([*outside, *inside], key=lambda each: (each[0].order, each[1]))

    def _others(self, hop: LiveHop, factor: float, number: int) -> Iterable[str]:
        """The tensors of a hop's layer that differ from those of the present path's hop at that place."""
        before = () if self._path is None else self._path.hops
        if number >= len(before) or before[number][:2] != hop[:2]:
            return self._blocks.anatomy.layers[hop.layer]
        if self._scaled is None or self._factors[number] == factor:
            return ()
        return self._scaled.names(hop.layer)


def _let_record(model: nn.Module) -> None:
    """Have the library install now what records hidden states and attentions: it does so once, on the modules that it
    finds, and copies of those have it too."""
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:  # other versions record otherwise
        return
    install: Callable[[nn.Module], None] = partial(maybe_install_capturing_hooks)
    install(model)
