"""The same family of text skills at several widths: is it easier to merge larger models?

Depth, vocabulary, difficulty, items and the stream of training examples are the same at every width. What had to differ
was tuned on training seed 0, on selection items, before anything was merged: how many examples the base sees, so that
all bases know about as much of ``string`` (a wider model learns faster), and the learning rate of the experts, so that
all are about as good at their own skill, and their task vectors about as long beside the base. On other seeds the bases
match less (docs/size_effect.md).

Without ``math``, which costs more than the other three together.
"""

from __future__ import annotations

from typing import Final

from zoo.family import SKILLS, Phase, Shape
from zoo.sized import SizedFamily


def _sized(
    shape: Shape, said: str, base: int, lr: float, about: str = "one of several sizes with matched experts"
) -> SizedFamily:
    """A width.

    Args:
        shape: of every member.
        said: beside the number of parameters, for people.
        base: examples that the base sees.
        lr: of the string and language experts; refusal's is 2/3 of it, as in ``skills``.
        about: it, for people.
    """
    return SizedFamily(
        name=f"skills-w{shape.hidden}",
        summary=f"three skills at width {shape.hidden}, {said}: {about}",
        shape=shape,
        difficulty=SKILLS.difficulty,
        base=Phase(base, lr=3e-3, schedule="linear", muon_lr=0.012),
        experts={
            "string": (Phase(16_000, lr=lr),),
            "language": (Phase(16_000, lr=lr),),
            "refusal": (Phase(6_000, lr=round(lr / 1.5, 6)),),
        },
        sizes=SKILLS.sizes,
    )


W64: Final = _sized(Shape(64, layers=4, heads=4, mlp=176), "0.23 M parameters", base=62_000, lr=2.25e-3)
W112: Final = _sized(Shape(112, layers=4, heads=4, mlp=304), "0.65 M parameters", base=32_000, lr=1.3e-3)
W192: Final = _sized(Shape(192, layers=4, heads=4, mlp=512), "1.8 M parameters", base=21_000, lr=1e-3)

# Written for a GPU and never trained: none was at hand. Wider and longer trained, for merges that the small ones are
# too weak for; nothing of them is tuned to match the three.
_UNTRIED: Final = "needs a GPU or hours, not tuned"

W352: Final = _sized(Shape(352, layers=4, heads=4, mlp=944), "6.1 M parameters", base=48_000, lr=5e-4, about=_UNTRIED)
W704: Final = _sized(Shape(704, layers=4, heads=4, mlp=1888), "24 M parameters", base=48_000, lr=2.5e-4, about=_UNTRIED)
