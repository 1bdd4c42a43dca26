"""An adapter and its base, read as one model: what a merge takes an adapter for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from merging.bounded import printable
from merging.checkpoint import Checkpoint
from merging.composed import Change, Composed
from merging.conversion import Shape, row_major
from merging.lora.adapter import Adapter, Module
from merging.lora.edits import Edit, Edited, LowRank, Magnitudes, Rows, Stack, Whole, Within
from merging.lora.naming import Names, Place
from merging.matrices import parts
from merging.recipe import MergingError

_LISTED = 5


def open_adapter(path: Path | str, base: Checkpoint, *, allow_pickle: bool = False) -> Composed:
    """Read an adapter as the model that it makes of its base. Only headers are read, and weights that it replaces.

    LoRA and rsLoRA, also of convolutions, embeddings, Conv1D and stacks of experts, stay factored; DoRA, trained tokens
    and whole modules (``modules_to_save``, biases) are composed when they are asked for. All agrees with
    ``merge_and_unload`` of peft in float32.

    Args:
        path: folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: the model that it was trained on.
        allow_pickle: see :meth:`merging.lora.adapter.Adapter.open`.

    Raises:
        MergingError: no such adapter, one of another kind, or one that does not fit the base.
    """
    adapter = Adapter.open(Path(path), allow_pickle=allow_pickle)
    built = _Builder(adapter, base, Names(base))
    built.replace()
    built.adapt()
    built.check_found()
    return Composed(adapter.path, base, built.changes(), notes=(*_notes(adapter, base), *built.notes))


@dataclass
class _Builder:
    """Collects what an adapter does to each tensor of the base."""

    adapter: Adapter
    base: Checkpoint
    names: Names
    edits: dict[str, list[Edit]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def replace(self) -> None:
        """Whole tensors."""
        for name, tensor in self.adapter.whole.items():
            places = self._places(name)
            if not places:
                self.lost.append(name)
            for place in places:
                self._check_shape(name, self.adapter.info(tensor).shape, place.live)
                self._replace_one(name, place, tensor)

    def _replace_one(self, name: str, place: Place, tensor: str) -> None:
        def value() -> Tensor:
            held = self.adapter.read(tensor)
            if place.view is None:
                return held
            flat = held.contiguous()
            return flat.as_strided(self._shape(place), place.view.strides, flat.storage_offset() + place.view.offset)

        edits = self.edits.setdefault(place.name, [])
        if place.piece is not None:
            edits.append(Within(Whole(value), place.live, place.piece.strides, place.piece.offset))
        elif not self._is_base(place.name, value()):
            self._check_tie(name, place, value())
            edits[:] = [Whole(value)]

    def _check_tie(self, name: str, place: Place, value: Tensor) -> None:
        """A head that is one with its embedding is replaced with it, by the same numbers, or not at all."""
        tied = self.names.tied(place.name)
        given = [self.adapter.whole[each] for each in tied if each in self.adapter.whole]
        same = all(torch.equal(self.adapter.read(each), value) for each in given)
        if len(tied) > 1 and not (same and (len(given) == len(tied) or self.adapter.settings.data.get("ensure_weight_tying"))):
            raise MergingError(
                f"expected {self.adapter.path} to leave {' and '.join(sorted(tied))} one tensor, as the base "
                f"{self.base.path} has them (tie_word_embeddings), found that it trained {printable(name)} apart; an untied "
                "fine-tune cannot be merged into a tied base: save the base with tie_word_embeddings=false, and give that"
            )

    def adapt(self) -> None:
        """Low-rank changes, and trained tokens."""
        counts = Counter(each.name for each in self.adapter.modules if "A" in each.parts)
        for module in self.adapter.modules:
            if "A" in module.parts:
                self._linear(module) or self._parameter(module, counts[module.name]) or self._lose(module)
            elif "embedding_A" in module.parts:
                self._embedding(module)
            if "tokens" in module.parts:
                self._tokens(module)

    def check_found(self) -> None:
        """Refuse an adapter of other modules.

        Raises:
            MergingError: names some of them.
        """
        if not self.lost:
            return
        listed = ", ".join(printable(each, 120) for each in self.lost[:_LISTED])
        more = f" and {len(self.lost) - _LISTED} more" if len(self.lost) > _LISTED else ""
        made_for = f" It says that it was trained on {printable(self.adapter.settings.base)}." if self.adapter.settings.base else ""
        heads = [each for each in self.lost if "." not in each or re.match(r"^(classifier|score|\w*head)\b", each)]
        advice = (
            "a head that the base does not have cannot be merged into it: load the base with that head "
            "(AutoModelForSequenceClassification or the like), save it with save_pretrained, and give that folder as base"
            if len(heads) == len(self.lost)
            else "give the model that it was trained on as the base"
        )
        raise MergingError(
            f"expected {self.adapter.path} to be an adapter of the base {self.base.path}, found {len(self.lost)} "
            f"tensors that it would change and the base does not have: {listed}{more}.{made_for} Do this: {advice}"
        )

    def changes(self) -> Mapping[str, Change]:
        """Canonical name -> what becomes of it."""
        return {name: Edited(tuple(edits), self._dtype(name, edits)) for name, edits in self.edits.items()}

    def _dtype(self, name: str, edits: list[Edit]) -> torch.dtype:
        """float32, or float64 where the base has that; a tensor that is replaced keeps the dtype that it was saved in."""
        if len(edits) == 1 and isinstance(edits[0], Whole):
            return edits[0].value().dtype
        base = self.base.tensors[name].dtype
        return base if base == torch.float64 else torch.float32

    def _linear(self, module: Module) -> None:
        """A linear layer, a Conv1D, a convolution, or the input projection of a torch attention layer."""
        a, b = (self.adapter.info(module.parts[part]).shape for part in "AB")
        places = self._places(f"{module.name}.weight") or self._places(f"{module.name}.in_proj_weight")
        if not places:
            self.lost.append(f"{module.name}.weight")
        rank = self._check_rank(module.name, a[0] if a else 0, a)
        scale = self.adapter.settings.scale_of(module.name)
        for place in places:
            turned = self._is_turned(module, place, a, b, rank)
            self._add(place, module, self._low_rank(module.parts["A"], module.parts["B"], rank, scale, turned), int(turned))
        if "bias" in module.parts:
            self._bias(module, scale)

    def _low_rank(self, one: str, other: str, rank: int, scale: float, turned: bool) -> LowRank:
        """scale·B·A, or its transpose; convolutions seen as matrices [out, in·kernel]."""
        left = lambda: self.adapter.read_float(other).reshape(-1, rank) * scale  # noqa: E731
        right = lambda: self.adapter.read_float(one).reshape(rank, -1)  # noqa: E731
        if turned:
            return LowRank(lambda: right().T, lambda: left().T)
        return LowRank(left, right)

    def _is_turned(self, module: Module, place: Place, a: Shape, b: Shape, rank: int) -> bool:
        """Whether the live weight is [in, out], as that of a Conv1D; by its shape, and by its kind where it is square."""
        numel = torch.Size(place.live).numel()
        rows = place.live[0] if place.live else 0
        outputs, inputs = b[0] if b else 0, torch.Size(a[1:]).numel()
        flat = torch.Size(b).numel() == outputs * rank and outputs * inputs == numel
        if flat and len(a) > 2 and (rows, *place.live[1:]) == (outputs, *a[1:]):
            return False
        straight, turned = (rows, numel // rows if rows else 0) == (outputs, inputs), place.live == (inputs, outputs)
        if not flat or len(a) != 2 or not (straight or turned):
            raise MergingError(self._misfit(module.name, a, b, place))
        if straight and turned:
            bias = self.base.tensors.get(f"{place.name.rpartition('.')[0]}.bias")
            found = parts(place.name, place.live, self.base.config, bias=bias.shape[-1] if bias else 0)
            return bool(found) and found[0].turned
        return turned

    def _bias(self, module: Module, scale: float) -> None:
        """``lora_bias``: what B adds to every output."""
        tensor = module.parts["bias"]
        places = self._places(f"{module.name}.bias")
        if not places:
            self.lost.append(f"{module.name}.bias")
        for place in places:
            self._check_shape(f"{module.name}.bias", self.adapter.info(tensor).shape, place.live)
            edit = LowRank(lambda: self.adapter.read_float(tensor)[:, None] * scale, lambda: torch.ones(1, 1))
            self._add(place, None, edit, 0)

    def _embedding(self, module: Module) -> None:
        a, b = (self.adapter.info(module.parts[f"embedding_{part}"]).shape for part in "AB")
        places = self._places(f"{module.name}.weight")
        if not places:
            self.lost.append(f"{module.name}.weight")
        rank = self._check_rank(module.name, a[0] if a else 0, a)
        scale = self.adapter.settings.scale_of(module.name)
        for place in places:
            if len(a) != 2 or b[1:] != (rank,) or place.live != (a[1], b[0]):
                raise MergingError(self._misfit(module.name, a, b, place))
            made = self._low_rank(module.parts["embedding_A"], module.parts["embedding_B"], rank, scale, True)
            self._add(place, module, made, 1)

    def _tokens(self, module: Module) -> None:
        settings, tensor = self.adapter.settings.tokens, module.parts["tokens"]
        name = next((each for each in settings if each and re.match(rf"(.*\.)?{re.escape(each)}$", module.name)), "")
        indices, shape = settings.get(name), self.adapter.info(tensor).shape
        places = self._places(f"{module.name}.weight")
        if not places:
            self.lost.append(f"{module.name}.weight")
        for place in places:
            rows = place.live[0]
            fits = indices is not None and shape == (len(indices), *place.live[1:]) and place.view is place.piece is None
            if indices is None or not fits or max(indices, default=0) >= rows:
                raise MergingError(
                    f"expected trained tokens {list(shape)} of {printable(module.name)} in {self.adapter.path} to be rows "
                    f"of the base's {list(place.live)} that trainable_token_indices names, found {indices}; the adapter "
                    "is damaged, or belongs to another base"
                )
            before = self.edits.setdefault(place.name, [])
            before.append(Rows(indices, lambda: self.adapter.read_float(tensor)))

    def _parameter(self, module: Module, count: int) -> None:
        """A bare parameter, such as a stack of experts (``target_parameters``)."""
        a, b = (self.adapter.info(module.parts[part]).shape for part in "AB")
        name, shape = self._adapted_parameter(module, count, a, b)
        experts = shape[0] if len(shape) == 3 else 1
        rank = a[0] // experts
        self._check_rank(name, rank, a)
        scale = self.adapter.settings.scale_of(name)
        turned = self._is_expert_turned(module, shape, a, b)
        for place in self._places(name):
            self._add_parameter(place, module, experts, rank, scale, turned)

    def _adapted_parameter(self, module: Module, count: int, a: Shape, b: Shape) -> tuple[str, Shape]:
        """Which parameter of its module. PEFT wraps the module once for each, the first innermost."""
        held = [each for each in self.names.parameters(module.name) if len(each[1]) in (2, 3)]
        ends = self.adapter.settings.parameters
        named = [each for each in held if any(each[0] == end or each[0].endswith(f".{end}") for end in ends)] or held
        fitting = [each for each in named if _fits(each[1], a, b)]
        in_order = named[count - 1 - module.depth] if len(named) == count else None
        if in_order in fitting and in_order is not None:
            return in_order
        if len(fitting) == 1:
            return fitting[0]
        raise MergingError(
            f"expected lora_A {list(a)} and lora_B {list(b)} of {printable(module.name)} in {self.adapter.path} to fit one "
            f"of that module's parameters in the base {self.base.path}, found {len(fitting)} that they fit among "
            f"{', '.join(f'{name} {list(shape)}' for name, shape in named) or 'none'}; give the base that it was trained on"
        )

    def _is_expert_turned(self, module: Module, shape: Shape, a: Shape, b: Shape) -> bool:
        """Whether the live parameter is [experts, in, out]."""
        straight, turned = shape[-2:] == (b[0], a[1]), shape[-2:] == (a[1], b[0])
        return self.names.is_turned(module.name) if straight and turned and len(shape) == 3 else not straight

    def _add_parameter(
        self, place: Place, module: Module, experts: int, rank: int, scale: float, turned: bool
    ) -> None:
        """PEFT keeps A as [experts·r, in], and B as [out, r·experts], the experts fastest."""

        def left() -> Tensor:
            held = self.adapter.read_float(module.parts["B"])
            return held.reshape(held.shape[0], rank, experts).permute(2, 0, 1) * scale

        def right() -> Tensor:
            held = self.adapter.read_float(module.parts["A"])
            return held.reshape(experts, rank, held.shape[1])

        one, other = (lambda: right().mT, lambda: left().mT) if turned else (left, right)
        if len(place.live) == 2:
            self._add(place, None, LowRank(lambda: one()[0], lambda: other()[0]), 0)
            return
        if place.view is None and place.piece is None:
            self.edits.setdefault(place.name, []).append(Stack(one, other))
            return
        if place.view is None:
            raise MergingError(self._no_view(place))
        _, rows, columns = place.live
        shape, (strides, offset) = self._shape(place), place.view[2:0:-1]
        number, rest = divmod(offset, rows * columns)
        row, column = divmod(rest, columns)
        if len(shape) == 2 and strides == (columns, 1):
            down, along = slice(row, row + shape[0]), slice(column, column + shape[1])
            edit: Edit = LowRank(lambda: one()[number][down], lambda: other()[number][:, along])
        elif len(shape) == 2 and strides == (1, columns):
            down, along = slice(row, row + shape[1]), slice(column, column + shape[0])
            edit = LowRank(lambda: other()[number][:, along].T, lambda: one()[number][down].T)
        elif len(shape) == 3 and strides == (rows * columns, columns, 1) and not number:
            down, along = slice(row, row + shape[1]), slice(column, column + shape[2])
            edit = Stack(lambda: one()[:, down], lambda: other()[:, :, along])
        elif len(shape) == 3 and strides == (rows * columns, 1, columns) and not number:
            down, along = slice(row, row + shape[2]), slice(column, column + shape[1])
            edit = Stack(lambda: other()[:, :, along].mT, lambda: one()[:, down].mT)
        else:
            raise MergingError(self._no_view(place))
        self.edits.setdefault(place.name, []).append(edit)

    def _add(self, place: Place, module: Module | None, low_rank: LowRank, axis: int) -> None:
        """A product, and its magnitudes, at a place of the base."""
        magnitude = None if module is None else module.parts.get("magnitude")
        if self.adapter.settings.dora and module is not None and magnitude is None:
            raise MergingError(
                f"expected a lora_magnitude_vector of {printable(module.name)} in {self.adapter.path}, whose config says "
                "use_dora, found none; was the adapter saved or downloaded completely?"
            )
        edit: Edit = low_rank
        if magnitude is not None and module is not None:
            outputs = place.live[axis]
            self._check_shape(f"{module.name}.lora_magnitude_vector", (self.adapter.info(magnitude).numel,), (outputs,))
            edit = Magnitudes(low_rank, lambda: self.adapter.read_float(magnitude), axis)
        if place.piece is not None:
            edit = self._in_piece(place, edit)
        elif place.view is not None:
            edit = self._in_view(place, edit)
        self.edits.setdefault(place.name, []).append(edit)

    def _in_piece(self, place: Place, edit: Edit) -> Edit:
        """The edit of a live tensor that is rows of one on disk: zeros elsewhere keep it factored."""
        piece, shape = place.piece, self._shape(place)
        if piece is None:
            return edit
        columns = torch.Size(shape[1:]).numel()
        if isinstance(edit, LowRank) and piece.strides == row_major(place.live) and columns == _columns(place.live):
            start, low_rank = piece.offset // columns, edit

            def left() -> Tensor:
                held = low_rank.left()
                padded = held.new_zeros(shape[0], held.shape[1])
                padded[start : start + len(held)] = held
                return padded

            return LowRank(left, low_rank.right)
        return Within(edit, place.live, piece.strides, piece.offset)

    def _in_view(self, place: Place, edit: Edit) -> Edit:
        """The edit of a live tensor, of which a part is one on disk."""
        view, shape = place.view, self._shape(place)
        if view is None:
            return edit
        columns = _columns(place.live)
        row, column = divmod(view.offset, columns)
        dora = isinstance(edit, Magnitudes)
        low_rank = edit.low_rank if isinstance(edit, Magnitudes) else edit
        if not isinstance(low_rank, LowRank) or len(shape) != 2 or len(place.live) != 2 or dora:
            raise MergingError(self._no_view(place))
        left, right = low_rank.left, low_rank.right
        if view.strides == (columns, 1):
            down, along = slice(row, row + shape[0]), slice(column, column + shape[1])
            return LowRank(lambda: left()[down], lambda: right()[:, along])
        if view.strides == (1, columns):
            down, along = slice(row, row + shape[1]), slice(column, column + shape[0])
            return LowRank(lambda: right()[:, along].T, lambda: left()[down].T)
        raise MergingError(self._no_view(place))

    def _places(self, name: str) -> tuple[Place, ...]:
        try:
            return self.names.find(name)
        except MergingError as error:
            raise MergingError(
                f"the adapter {self.adapter.path} changes {printable(name)}, a name that its base does not have on disk, "
                f"and where transformers puts it cannot be told: {error}"
            ) from error

    def _shape(self, place: Place) -> Shape:
        return self.base.tensors[place.name].shape

    def _is_base(self, name: str, value: Tensor) -> bool:
        """Whether a replacement is what the base has already."""
        own = self.base.read(name)
        return own.shape == value.shape and torch.equal(own.to(value.dtype), value)

    def _is_given(self, tensor: str) -> bool:
        """Whether a tensor that the base does not have says nothing: integers that count batches."""
        return not self.adapter.info(tensor).dtype.is_floating_point

    def _check_rank(self, module: str, rank: int, a: Shape) -> int:
        expected = self.adapter.settings.rank_of(module)
        if rank != expected:
            raise MergingError(
                f"expected rank {expected} for {printable(module)} in {self.adapter.path}, as its config says, found "
                f"lora_A {list(a)}; an adapter that was saved in parts (ZeRO-3, FSDP) must be gathered and saved again"
            )
        return rank

    def _check_shape(self, name: str, found: Shape, expected: Shape) -> None:
        if tuple(found) == tuple(expected):
            return
        rows = len(found) == len(expected) and found[1:] == expected[1:]
        embedding = rows and re.search(r"embed|wte|shared|lm_head|output", name)
        advice = (
            "its vocabulary was resized for new tokens: fold it into its base with peft (merge_and_unload, then "
            "save_pretrained, with its tokenizer), and give that folder, whose tokens are then matched"
            if embedding
            else "give the model that it was trained on as the base"
        )
        raise MergingError(
            f"expected {printable(name)} in {self.adapter.path} in the base's shape {list(expected)}, found {list(found)}; "
            f"{advice}"
        )

    def _misfit(self, module: str, a: Shape, b: Shape, place: Place) -> str:
        return (
            f"expected lora_A and lora_B of {printable(module)} in {self.adapter.path} to fit the base's {place.name} "
            f"{list(place.live)}, found {list(a)} and {list(b)}; give the model that it was trained on as the base"
        )

    def _no_view(self, place: Place) -> str:
        return (
            f"expected the live parameter of {place.name} to be rows of one tensor, so that what {self.adapter.path} adds "
            "to it can be told; fold it into its base with peft (merge_and_unload, then save_pretrained), and give that "
            "folder"
        )


def _columns(shape: Shape) -> int:
    return torch.Size(shape[1:]).numel()


def _wrapped(modules: tuple[Module, ...]) -> dict[str, int]:
    """Modules that are adapted more than once, by parameter -> how often."""
    counts: dict[str, int] = {}
    for each in modules:
        if "A" in each.parts:
            counts[each.name] = counts.get(each.name, 0) + 1
    return {name: count for name, count in counts.items() if count > 1}


def _fits(shape: Shape, a: Shape, b: Shape) -> bool:
    """Whether a parameter of this shape may have these factors."""
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        return False
    experts = shape[0] if len(shape) == 3 else 1
    ends = (shape[-2:] == (b[0], a[1])) or (len(shape) == 3 and shape[-2:] == (a[1], b[0]))
    return bool(experts) and a[0] % experts == 0 and ends


def _notes(adapter: Adapter, base: Checkpoint) -> tuple[str, ...]:
    """What the adapter says of its base, where that is another one than is given."""
    said = adapter.settings.base
    if not said:
        return ()
    own = {str(base.path), base.path.name, str(base.config.get("_name_or_path") or "")}
    name = re.split(r"[/\\]", said.rstrip("/\\"))[-1]
    same = said in own or name in {re.split(r"[/\\]", each)[-1] for each in own} or name in base.path.resolve().parts
    if same or f"models--{said.replace('/', '--')}" in base.path.absolute().parts:
        return ()
    return (
        f"the adapter {adapter.path} says that it was trained on {printable(said)}, and is read over {base.path}: on other "
        "weights than those it was trained on it is another model",
    )
