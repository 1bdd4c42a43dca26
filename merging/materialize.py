"""A recipe into a live model, in place: only what changed since the last recipe is computed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from merging.checkpoint import content_hash
from merging.kernel import MergeFailed, Resolver, Task, check_finite_result, merge_tensor, torch_dtype
from merging.methods.registry import canonical
from merging.pool import Workspace
from merging.recipe import Assignment, Group, MergingError, Recipe
from merging.sources import Sources

__all__ = ["Applied", "Materializer", "MergeFailed", "Sources", "load_model"]


@dataclass(frozen=True)
class Applied:
    """What one :meth:`Materializer.apply` did.

    Attributes:
        changed_groups: groups with a tensor that was rewritten, in the layout's order.
        changed_tensors: canonical names of the tensors that were rewritten, sorted.
        seconds: wall time.
    """

    changed_groups: tuple[Group, ...]
    changed_tensors: tuple[str, ...]
    seconds: float


class _Written(NamedTuple):
    """What a live tensor holds: the outcome of this assignment over these aliases' contents."""

    assignment: Assignment
    contents: tuple[str, ...]
    source_dtype: str | None


class _Slot(NamedTuple):
    """Where a canonical tensor hangs in a module."""

    name: str
    parameters: Mapping[str, nn.Parameter | None]
    leaf: str


def load_model(base_path: Path | str, dtype: torch.dtype | str | None = None, device: str = "cpu") -> nn.Module:
    """Load the base as the live model: evaluation mode, no gradients, nothing from the network, no remote code.

    Args:
        base_path: model folder.
        dtype: of the live weights; None keeps what is stored.
        device: where the model lives.

    Raises:
        MergingError: not a causal language model that transformers can load, or an unknown dtype.
    """
    from transformers import AutoModelForCausalLM

    wanted = torch_dtype(dtype) if isinstance(dtype, str) else dtype
    try:
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(
                Path(base_path),
                dtype=wanted or "auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except Exception as error:  # transformers raises whatever its model classes raise
        raise MergingError(
            f"expected a causal language model that transformers can load at {base_path}; it refused "
            f"({type(error).__name__}: {error})"
        ) from error
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise MergingError(f"the model of {base_path} could not be moved to device {device!r}: {error}") from error
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


class Materializer:
    """Writes recipes into a live model that holds the base when it is handed over."""

    def __init__(self, sources: Sources, model: nn.Module) -> None:
        """Find every canonical tensor in the model, and check that the two agree bit for bit.

        Args:
            sources: the models to merge.
            model: as :func:`load_model` returned it, from the folder of the sources' base.

        Raises:
            MergingError: tensors without a live parameter, parameters without a tensor, or other weights than the
                base's.
        """
        self._sources = sources
        self._model = model
        self._live, self._slots = _map(sources, model)
        self._addresses = {name: tensor.data_ptr() for name, tensor in self._live.items()}
        self._check_holds_base()
        self._written: dict[str, _Written] = {}
        self._workspace = Workspace()
        self._dtypes: set[str | None] = set()

    @torch.no_grad()
    def apply(self, recipe: Recipe) -> Applied:
        """Bring the live model to a recipe. Afterwards its weights depend on the recipe alone, not on earlier ones.

        Raises:
            MergeFailed: the result is not finite. The model is then unusable until the next successful apply.
            MergingError: the recipe does not fit the sources, the methods or the model. Nothing was written.
        """
        start = time.perf_counter()
        self._check_in_place()
        changed = self._changes(recipe)
        ends = {}
        for name, (task, _) in changed.items():
            self._written.pop(name, None)
            ends[name] = merge_tensor(name, task, self._live[name], self._workspace)
        check_finite_result(ends)
        self._written |= {name: state for name, (_, state) in changed.items()}
        groups = {self._sources.layout.group(name) for name in changed}
        return Applied(
            tuple(group for group in self._sources.layout.groups if group in groups),
            tuple(changed),
            time.perf_counter() - start,
        )

    def digest(self) -> str:
        """Hash of the live canonical tensors, by the scheme of :attr:`merging.checkpoint.Checkpoint.content`: equal to
        that of the recipe's export. What is never merged enters as the base stores it."""
        sources = self._sources
        return content_hash(
            [*sources.tensors, *sources.frozen],
            lambda name: self._live[name] if name in self._live else sources.tensor(sources.base, name),
        )

    def _changes(self, recipe: Recipe) -> dict[str, tuple[Task, _Written]]:
        """Tensors that do not hold what the recipe says, with what to do. Checks the whole recipe first."""
        sources = self._sources
        resolver = Resolver(sources, recipe)
        check_names(sources, recipe)
        self._check_dtype(recipe)
        states: dict[Assignment, tuple[Task, _Written]] = {}
        changed = {}
        for name in sources.tensors:
            assignment = recipe.for_tensor(name, sources.layout.group(name))
            found = states.get(assignment)
            if found is None:
                task, spelled = resolver.task(assignment), canonical(assignment)
                contents = tuple(recipe.sources[alias].content for alias, _ in spelled.sources)
                found = states[assignment] = (task, _Written(spelled, contents, recipe.source_dtype))
            if self._written.get(name) != found[1]:
                changed[name] = found
        return changed

    def _check_dtype(self, recipe: Recipe) -> None:
        if recipe.dtype in self._dtypes:
            return
        wanted = torch_dtype(recipe.dtype)
        for name, live in self._live.items():
            expected = wanted or self._sources.tensors[name].dtype
            if live.dtype != expected:
                raise MergingError(
                    f"the recipe makes {name} in {expected}, but the live model holds it in {live.dtype}: what is "
                    "scored would not be what is exported. Give the recipe dtype "
                    f"{str(live.dtype).removeprefix('torch.')!r}, or load the model in "
                    f"{str(expected).removeprefix('torch.')}"
                )
        self._dtypes.add(recipe.dtype)

    def _check_in_place(self) -> None:
        """The parameters are still the memory that was mapped, and tied ones still one."""
        for name, parameters, leaf in self._slots:
            parameter = parameters.get(leaf)
            if parameter is None or parameter.data_ptr() != self._addresses[name]:
                raise MergingError(
                    f"a live parameter of {name} was moved, replaced or untied since the Materializer was built; build "
                    "a new one after changing a model"
                )

    def _check_holds_base(self) -> None:
        sources = self._sources
        different = [
            name
            for name, live in self._live.items()
            if not _equal_bits(live, sources.tensor(sources.base, name).to(live.dtype))
        ]
        if different:
            raise MergingError(
                f"expected the live model to hold the base {sources.path}, found other weights in {len(different)} "
                f"tensors: {', '.join(different[:5])}. Load it with load_model from that folder"
            )


def check_names(sources: Sources, recipe: Recipe) -> None:
    """Refuse a recipe that speaks of tensors or groups which the model does not have.

    Raises:
        MergingError: names at most five.
    """
    unknown = [name for name in recipe.tensors if name not in sources.tensors]
    if unknown:
        raise MergingError(f"the recipe names tensors that are not merged in {sources.path}: {', '.join(unknown[:5])}")
    known = set(sources.layout.groups)
    missing = [str(group) for group in recipe.groups if group not in known]
    if missing:
        raise MergingError(
            f"the recipe names groups that {sources.path} does not have: {', '.join(missing[:5])}; it has "
            f"{', '.join(str(group) for group in sources.layout.groups[:5])} and so on"
        )


def _map(sources: Sources, model: nn.Module) -> tuple[dict[str, Tensor], list[_Slot]]:
    """Canonical name -> live tensor, and where in the model's modules each of them hangs, tied ones twice."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    prefix = getattr(model, "base_model_prefix", "")
    live: dict[str, Tensor] = {}
    unmapped = []
    for name in sources.tensors:
        found = next((own for own in _spellings(name, prefix) if own in parameters or own in buffers), None)
        if found is None:
            unmapped.append(name)
        else:
            live[name] = parameters[found].data if found in parameters else buffers[found]
    ignored = [re.compile(each) for each in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    unmapped = [name for name in unmapped if not any(pattern.search(name) for pattern in ignored)]
    if unmapped:
        raise MergingError(
            f"{len(unmapped)} tensors of {sources.path} have no parameter in the live {type(model).__name__}: "
            f"{', '.join(unmapped[:5])}. Its class stores them in another layout, which is not supported yet"
        )
    return live, _check_cover(live, parameters, model)


def _spellings(name: str, prefix: str) -> Iterator[str]:
    """The same name with and without the prefix under which the headless model hangs."""
    yield name
    if prefix:
        yield f"{prefix}.{name}"
        if name.startswith(f"{prefix}."):
            yield name.removeprefix(f"{prefix}.")


def _check_cover(live: dict[str, Tensor], parameters: dict[str, nn.Parameter], model: nn.Module) -> list[_Slot]:
    """Every live parameter is one canonical tensor, no two of them the same; tied ones are found by their memory."""
    owners: dict[int, str] = {}
    for name, tensor in live.items():
        other = owners.setdefault(tensor.data_ptr(), name)
        if other != name and tensor.numel():
            raise MergingError(
                f"{other} and {name} are one parameter in the live {type(model).__name__} but two tensors on disk; "
                "load and save the models with transformers once, so that they are stored once"
            )
        if not tensor.is_contiguous():
            raise MergingError(f"the live parameter of {name} is not contiguous; load the model with load_model")
    slots = []
    lost = []
    for own, parameter in parameters.items():
        owner = owners.get(parameter.data_ptr())
        if owner is None:
            lost.append(own)
        else:
            module, _, leaf = own.rpartition(".")
            slots.append(_Slot(owner, model.get_submodule(module)._parameters, leaf))
    if lost:
        raise MergingError(
            f"{len(lost)} parameters of the live {type(model).__name__} are not in the checkpoint: "
            f"{', '.join(lost[:5])}. They would keep random values: use a checkpoint that was saved from this class"
        )
    return slots


def _equal_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    a, b = (each.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for each in (a, b))
    return torch.equal(a, b)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar: callers report progress in their own way."""
    from transformers.utils import logging

    active: Any = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if active:
            logging.enable_progress_bar()
