"""What of a module besides its weights an evaluation that broke off may leave behind: hooks, modes, settings."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from typing import Any

from torch import nn

# The registers of hooks that nn.Module keeps in each instance (torch 2.13).
_REGISTERS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)


class ModuleState:
    """A module's hooks, modes (training or evaluation) and token settings, as they are when this is made.

    An exception can arise at any instruction where an alarm raises it, and evaluators are strangers' code: that each
    puts back what it changed is hoped for, and this is what does not depend on it.

    Modules that the model lets go of meanwhile are not kept for this, and of those that it takes in nothing is known:
    where candidates are made of other modules, whoever hangs them up makes them anew after an evaluation broke off.

    Args:
        module: with all modules below it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parts = [
            (
                weakref.ref(part),
                part.training,
                {name: copy.copy(getattr(part, name)) for name in _REGISTERS if hasattr(part, name)},
            )
            for part in module.modules()
        ]
        self._settings = [(config, getattr(config, "pad_token_id", None)) for config in _configs(module)]

    def restore(self) -> None:
        """Put all of it back. Registers are filled anew in place, since handles refer to them."""
        for reference, training, registers in self._parts:
            part = reference()
            if part is None:
                continue
            part.training = training
            for name, content in registers.items():
                register: OrderedDict[int, Any] = getattr(part, name)
                if register != content:
                    register.clear()
                    register.update(content)
        for config, token in self._settings:
            if getattr(config, "pad_token_id", None) != token:
                config.pad_token_id = token


def _configs(module: nn.Module) -> list[Any]:
    config = getattr(module, "config", None)
    if config is None:
        return []
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return [each for each in ([config] if text is config else [config, text]) if hasattr(each, "pad_token_id")]
