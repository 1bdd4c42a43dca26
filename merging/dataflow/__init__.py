"""Models as paths through the blocks of others: hops with scales, folded into ordinary weights.

A hop's scale multiplies the hidden state before its block. In a pre-norm model every reader of the residual stream
stands behind a norm, and a norm does not see a factor on its input (but for its epsilon, see
:mod:`merging.dataflow.folding`). So the stream may be kept divided by the product C of all scales so far, if everything
that is added to it is divided by C as well: the outputs of the *residual writers*, ``o_proj`` and ``down_proj`` in a
Llama. That is how a path is exported, as an ordinary model (:func:`folded`), and how it is run: a live hop has writers
of its own, multiplied by :func:`writer_factors` and rounded as an export rounds them
(:mod:`merging.dataflow.scaled_writers`). So the model that is scored is the one that is exported, bit for bit.

The public names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merging.dataflow.folding import folded, writer_factors
    from merging.dataflow.path_materializer import PathMaterializer
    from merging.dataflow.writers import residual_writers

_HOMES = {
    "PathMaterializer": "merging.dataflow.path_materializer",
    "folded": "merging.dataflow.folding",
    "residual_writers": "merging.dataflow.writers",
    "writer_factors": "merging.dataflow.folding",
}

__all__ = ["PathMaterializer", "folded", "residual_writers", "writer_factors"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'merging.dataflow' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
