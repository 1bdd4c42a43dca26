"""What a model writes with its own ``generate``, as inputs: the prompt or the encoder's input, and what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evaluators.calibration.arguments import cached, encodes_and_decodes, rows
from evaluators.calibration.inputs import Input, is_sequence


class Writing:
    """Follows one call of a model's ``generate``.

    A decoder's input is put together from what the decoder is given step by step: that is what it read, with the
    tokens that a model begins with by itself (Whisper's language and task), whatever ``generate`` returns of them.

    Args:
        module: whose method it is.
        args, kwargs: of the call.
    """

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._module = module
        self._given = dict(kwargs)
        if args and isinstance(args[0], Tensor):  # ``inputs``
            self._given[str(getattr(module, "main_input_name", "input_ids"))] = args[0]
        if isinstance(self._given.get("inputs"), Tensor):
            self._given[str(getattr(module, "main_input_name", "input_ids"))] = self._given.pop("inputs")
        settings = kwargs.get("generation_config") or getattr(module, "generation_config", None)
        ends = kwargs.get("eos_token_id", getattr(settings, "eos_token_id", None))
        self._ends = set() if ends is None else {ends} if isinstance(ends, int) else {int(each) for each in ends}
        self._read: Tensor | None = None
        self._begun = 0

    def see(self, given: Mapping[str, Any]) -> None:
        """One step: arguments of the module's ``forward``, by name."""
        tokens = given.get("decoder_input_ids")
        if not isinstance(tokens, Tensor):
            return
        tokens = tokens.detach().to("cpu", torch.int64, copy=True)
        before = self._read
        if before is not None and cached(given) == before.shape[1] and len(tokens) == len(before):
            self._read = torch.cat([before, tokens], dim=1)
        elif before is not None and tokens.shape == (len(before), before.shape[1] + 1):
            self._read = tokens  # read whole at every step, without a cache
        else:
            self._read, self._begun = tokens, tokens.shape[1]

    def inputs(self, output: Any) -> list[Input]:
        """One a row of the call.

        Args:
            output: what ``generate`` returned: tokens [rows, length], or a record that has them as ``sequences``.
        """
        given = rows(self._module, self._given)
        tokens = _sequences(output)
        if encodes_and_decodes(self._module):
            said = self._decoded(tokens, len(given))
            return [{**row, "decoder_input_ids": each} for row, each in zip(given, said, strict=True)]
        if tokens is None or not given or "input_ids" not in given[0]:
            return given
        each = len(tokens) // len(given)
        return [self._continued(row, tokens[place * each]) for place, row in enumerate(given)]

    def _decoded(self, tokens: Tensor | None, count: int) -> list[Tensor]:
        read = self._read
        if read is None:
            return [start_token(self._module)] * count
        if len(read) != count:  # beams, whose steps are in another order than the rows
            if tokens is None or len(tokens) < count:
                return [start_token(self._module)] * count
            begins = read[:1, : self._begun]
            said = tokens[:: len(tokens) // count][:count].to(read)
            repeated = torch.equal(said[:1, : self._begun], begins)
            read = said if repeated else torch.cat([begins.expand(count, -1), said], dim=1)
        return [self.ended(row[None], self._begun) for row in read]

    def _continued(self, row: Input, tokens: Tensor) -> Input:
        """A prompt and what follows it; what is said of each place of the prompt alone is left out."""
        prompt = row["input_ids"]
        length = self._given["input_ids"].shape[1]
        answer = tokens[length:][None]
        rest = {name: value for name, value in row.items() if not is_sequence(name, value, prompt.shape[1])}
        return {**rest, "input_ids": torch.cat([prompt, self.ended(answer, 0).to(prompt)], dim=1)}

    def ended(self, tokens: Tensor, begun: int) -> Tensor:
        """Tokens [1, n] up to the first that ends a text, the first ``begun`` not looked at."""
        for place in range(begun, tokens.shape[1]):
            if int(tokens[0, place]) in self._ends:
                return tokens[:, :place]
        return tokens


def write(module: nn.Module, given: Input, tokens: int, device: torch.device) -> Input:
    """An encoder's input, with what the model itself writes about it, greedily.

    Args:
        module: with encoder and decoder.
        given: the encoder's input.
        tokens: at most so many. For 0, and where the model cannot write, what the decoder reads is left to the model
            (a classifier shifts the text itself), or is the token that its texts begin with.
        device: where inputs go.
    """
    asked = {name: value.to(device) for name, value in given.items()}
    if tokens < 1 or not getattr(module, "can_generate", bool)():
        try:
            module(**asked)
        except Exception:  # models raise what they like where something is missing
            return {**given, "decoder_input_ids": start_token(module)}
        return dict(given)
    settings = {"max_new_tokens": tokens, "do_sample": False, "num_beams": 1}
    output = module.generate(**asked, **settings)  # type: ignore[operator]
    read = _sequences(output)
    if read is None:
        return {**given, "decoder_input_ids": start_token(module)}
    return {**given, "decoder_input_ids": Writing(module, (), settings).ended(read[:1].cpu(), 1)}


def start_token(module: nn.Module) -> Tensor:
    """[1, 1], int64: the token that a decoder's texts begin with."""
    for settings in (getattr(module, "generation_config", None), getattr(module, "config", None)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            token = getattr(settings, name, None)
            if isinstance(token, int):
                return torch.tensor([[token]], dtype=torch.int64)
    return torch.zeros(1, 1, dtype=torch.int64)


def _sequences(output: Any) -> Tensor | None:
    found = getattr(output, "sequences", output)
    return found if isinstance(found, Tensor) and found.ndim == 2 else None
