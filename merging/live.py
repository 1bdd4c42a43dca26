"""Live models: loading any architecture that transformers knows, and its tensors under their names on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from merging.conversion import Placement, Strided, place, row_major
from merging.kernel import torch_dtype
from merging.recipe import MergingError
from merging.sources import Sources

# Where accelerate puts the modules of a model: "auto", or module name -> device.
DeviceMap = str | Mapping[str, str | int | torch.device]


def load_model(
    base_path: Path | str,
    dtype: torch.dtype | str | None = None,
    device: str = "cpu",
    device_map: DeviceMap | None = None,
) -> nn.Module:
    """Load the base as the live model: evaluation mode, no gradients, nothing from the network, no remote code.

    The class is the one that ``architectures`` in config.json names; where it names none that transformers has, the
    causal language model of the config, or else its headless model.

    Args:
        base_path: model folder.
        dtype: of the live weights; None keeps what is stored.
        device: where the model lives.
        device_map: spreads the model over several devices instead, by accelerate: ``auto`` fills all that this process
            sees alike. Every weight stays on its device: what they have no room for
            is refused, not moved to and fro.

    Raises:
        MergingError: not a model that transformers can load, an unknown dtype, or devices that it does not fit on.
    """
    wanted = torch_dtype(dtype) if isinstance(dtype, str) else dtype
    path = Path(base_path)
    if device_map is not None:
        _check_accelerate()
    try:
        with _quiet():
            model = _load(path, wanted, device_map)
    except Exception as error:  # transformers raises whatever its model classes raise
        raise MergingError(
            f"expected a causal language model that transformers can load, or another architecture that it knows, at "
            f"{path}; it refused ({type(error).__name__}: {error})"
        ) from error
    try:
        model = _spread(model, path) if device_map is not None else model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise MergingError(f"the model of {path} could not be moved to device {device!r}: {error}") from error
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class LiveMap:
    """The tensors of a checkpoint in a live model. Build with :func:`map_live`.

    Attributes:
        tensors: canonical name -> live tensor: a view of a parameter's or buffer's memory, in the shape that is stored.
            Contiguous, but where the live layout is a transpose or a slice along another axis than the first.
        unused: canonical names of what the model's class says it does not load (extra prediction layers): there is no
            live tensor for them. Sorted.
    """

    tensors: Mapping[str, Tensor]
    unused: tuple[str, ...]
    _slots: tuple[_Slot, ...]

    def check_in_place(self) -> None:
        """Check that the parameters are still the memory that was mapped, and tied ones still one.

        Raises:
            MergingError: names the first that is not.
        """
        for name, holder, leaf, address, strides in self._slots:
            tensor = holder.get(leaf)
            if tensor is None or tensor.data_ptr() != address or tensor.stride() != strides:
                raise MergingError(
                    f"a live parameter of {name} was moved, replaced or untied since the Materializer was built; build "
                    "a new one after changing a model"
                )


class _Slot(NamedTuple):
    """Where a canonical tensor hangs in a module, and the memory that was there."""

    name: str
    holder: Mapping[str, Tensor | None]
    leaf: str
    address: int
    strides: tuple[int, ...]


def map_live(sources: Sources, model: nn.Module) -> LiveMap:
    """Find every canonical tensor in a live model that holds the base, and check that the two agree bit for bit.

    What transformers fuses on loading is found as views. What it splits (one matrix on disk, several parameters live)
    is joined: the parameters are moved, with their values, into one memory of the stored layout.

    Args:
        sources: the models to merge.
        model: as :func:`load_model` returned it, from the folder of the sources' base.

    Raises:
        MergingError: tensors without a live parameter, parameters without a tensor, a layout that is no view, or other
            weights than the base's.
    """
    places = place(model, {name: info.shape for name, info in sources.tensors.items()})
    unused = _unused(places.unplaced, model, sources)
    live = _named_tensors(model)
    tensors = _join(places, live, sources)
    for name, where in places.views.items():
        tensors[name] = _view(name, where, live[where.within], sources.tensors[name].shape)
    slots = _cover(places, live, tensors, model)
    _check_holds_base(sources, tensors)
    return LiveMap(dict(sorted(tensors.items())), unused, slots)


def _load(path: Path, dtype: torch.dtype | None, device_map: DeviceMap | None) -> nn.Module:
    import transformers

    options: dict[str, Any] = {
        "dtype": dtype or "auto",
        "local_files_only": True,
        "use_safetensors": True,
    }
    if device_map is not None:
        options["device_map"] = device_map if isinstance(device_map, str) else dict(device_map)
    cls = _named_class(path)
    if cls is None:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        cls = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
        options["trust_remote_code"] = False  # a question of the auto classes only: a named class is the library's own
    model: nn.Module = cls.from_pretrained(path, **options)
    return model


def _check_accelerate() -> None:
    from importlib.util import find_spec

    if find_spec("accelerate") is None:
        raise MergingError(
            "a model that lies on several devices needs accelerate, which is not installed: pip install accelerate"
        )


def _spread(model: nn.Module, path: Path) -> nn.Module:
    """A model that accelerate placed, refused where part of it lies nowhere or moves in and out.

    Raises:
        MergingError: it does not fit on the devices.
    """
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    moved = places & ({"disk"} if places <= {"cpu", "disk"} else {"cpu", "disk"})
    nowhere = [name for name, each in _named_tensors(model).items() if each.is_meta]
    if moved or nowhere:
        size = sum(each.numel() * each.itemsize for each in model.parameters())
        where = ", ".join(sorted(moved)) or "nowhere"
        raise MergingError(
            f"the model of {path} needs {size / 1e9:.1f} GB for its weights, and this worker's devices do not hold all "
            f"of it: part of it would lie on {where}. Every candidate is written and run where it lies: give each "
            "worker more devices (workers.gpus) or larger ones; `paretomerge plan` says how many"
        )
    return model


def _named_class(path: Path) -> Any:
    """The class of transformers that config.json names, or None."""
    import transformers

    try:
        names = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return None  # transformers says what is wrong with it
    for name in names:
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return None


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, tied ones under all their names."""
    return {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }


def _unused(names: tuple[str, ...], model: nn.Module, sources: Sources) -> tuple[str, ...]:
    """What has no live tensor because the class ignores it by its own account; anything else is refused."""
    ignored = [re.compile(each) for each in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    lost = [name for name in names if not any(pattern.search(name) for pattern in ignored)]
    if lost:
        raise MergingError(
            f"{len(lost)} tensors of {sources.path} have no parameter in the live {type(model).__name__}: "
            f"{', '.join(lost[:5])}. They would be merged but never run: load the models with that class and save them "
            "once, so that the checkpoints hold what the model has"
        )
    return tuple(sorted(names))


def _view(name: str, where: Strided, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) == shape and where.strides == row_major(shape):
        return tensor.data
    if not tensor.is_contiguous():
        raise MergingError(f"the live parameter of {name} is not contiguous; load the model with load_model")
    return tensor.data.as_strided(shape, where.strides, tensor.storage_offset() + where.offset)


def _join(places: Placement, live: Mapping[str, Tensor], sources: Sources) -> dict[str, Tensor]:
    """Canonical tensors that are several live ones: one memory for each, of which the live ones become views."""
    joined: dict[str, Tensor] = {}
    for own, where in places.pieces.items():
        tensor = live[own]
        whole = joined.get(where.within)
        if whole is None:
            shape = sources.tensors[where.within].shape
            whole = joined[where.within] = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
        if (tensor.dtype, tensor.device) != (whole.dtype, whole.device):
            raise MergingError(
                f"{where.within} is one tensor on disk and several live ones, which are not of one dtype on one device "
                f"({whole.dtype} on {whole.device}, {own} {tensor.dtype} on {tensor.device}); load the model with "
                "load_model"
            )
        piece = whole.as_strided(tuple(tensor.shape), where.strides, where.offset)
        tensor.data = piece.copy_(tensor.data)
    return joined


def _cover(
    places: Placement, live: Mapping[str, Tensor], tensors: Mapping[str, Tensor], model: nn.Module
) -> tuple[_Slot, ...]:
    """Check that every element of every parameter is that of one canonical tensor; tied ones are found by their memory.

    Returns:
        Where each mapped tensor hangs, tied ones once for each place.
    """
    held: dict[int, list[str]] = {}
    for name, where in places.views.items():
        if tensors[name].numel():
            held.setdefault(live[where.within].data_ptr(), []).append(name)
    joined = {live[own].data_ptr(): where.within for own, where in places.pieces.items()}
    constant = set(getattr(model, "_keys_to_ignore_on_save", None) or ())  # computed by the class, in no checkpoint
    parameters = dict(model.named_parameters(remove_duplicate=False))
    slots: list[_Slot] = []
    lost = []
    for own, tensor in live.items():
        owners = held.get(tensor.data_ptr(), [])
        stored = sum(tensors[name].numel() for name in owners)
        if stored > tensor.numel():
            raise MergingError(
                f"{owners[0]} and {owners[1]} are one parameter in the live {type(model).__name__} but two tensors on "
                "disk; load and save the models with transformers once, so that they are stored once"
            )
        if tensor.data_ptr() in joined:
            slots.append(_slot(joined[tensor.data_ptr()], own, tensor, model))
        elif owners and stored == tensor.numel():
            slots.append(_slot(owners[0], own, tensor, model))
        elif own in parameters and own not in constant and tensor.numel():
            lost.append(own)
    if lost:
        raise MergingError(
            f"{len(lost)} parameters of the live {type(model).__name__} are not in the checkpoint: "
            f"{', '.join(lost[:5])}. They would keep random values: use a checkpoint that was saved from this class"
        )
    return tuple(slots)


def _slot(name: str, own: str, tensor: Tensor, model: nn.Module) -> _Slot:
    module, _, leaf = own.rpartition(".")
    parent = model.get_submodule(module)
    holder = parent._parameters if leaf in parent._parameters else parent._buffers
    return _Slot(name, holder, leaf, tensor.data_ptr(), tensor.stride())


def _check_holds_base(sources: Sources, tensors: Mapping[str, Tensor]) -> None:
    different = []
    for name, live in tensors.items():
        with sources.borrowed(name):  # no page of a file that is mapped for this stays in memory
            if not _equal_bits(live, sources.tensor(sources.base, name).to(live.dtype)):
                different.append(name)
    if different:
        raise MergingError(
            f"expected the live model to hold the base {sources.path}, found other weights in {len(different)} "
            f"tensors: {', '.join(different[:5])}. Load it with load_model from that folder"
        )


def _equal_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    a, b = (each.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for each in (a, b))
    return torch.equal(a, b)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and loading report: what it would warn of, map_live refuses."""
    from transformers.utils import logging

    bar: Any = logging.is_progress_bar_enabled()
    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
