"""From the seconds of a few blocks to those of a model, and of a larger one; as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LARGE = (4096, 32)
"""Width and blocks of the 7 B Llama that costs are projected to; its MLP is 2.69 times as wide."""


@dataclass(frozen=True)
class Power:
    """seconds of a block = seconds at a width · (width / that width)^exponent."""

    width: int
    seconds: float
    exponent: float

    @staticmethod
    def through(widths: Sequence[int], seconds: Sequence[float]) -> Power:
        """Through the two largest widths.

        Args:
            widths: ascending, at least two.
            seconds: > 0.
        """
        exponent = math.log(seconds[-1] / seconds[-2]) / math.log(widths[-1] / widths[-2])
        return Power(widths[-1], seconds[-1], exponent)

    def at(self, width: int, exponent: float | None = None) -> float:
        """Seconds of a block of another width, with the measured exponent or a given one."""
        return float(self.seconds * (width / self.width) ** (self.exponent if exponent is None else exponent))


def whole(seconds: float, measured: int | None, blocks: int) -> float:
    """Of all blocks, which are alike, from those that were measured; None: all of them."""
    return seconds if measured is None else seconds * blocks / measured


def show(result: Mapping[str, Any]) -> str:
    """Everything that was measured, in Markdown."""
    model, machine = result["model"], ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    before, after = (" ".join(f"{each:.2f}" for each in result[f"load {when}"]) for when in ("before", "after"))
    head = (
        f"{result['command']}\n\n{machine}; {result['threads']} thread(s); load average before {before}, after "
        f"{after}\n\n"
        f"Llama, {model['title']} parameters (width {model['hidden']}, {model['layers']} blocks), {model['experts']} "
        f"experts in bfloat16, live model in float32; {model['inputs']} inputs of {model['length']} tokens an expert\n"
    )
    parts = [head, _statistics(result), _products(result)]
    if result["virtual"]:
        parts.append(_virtual(result))
    if result["widths"]:
        parts.append(_projected(result))
    return "\n".join(parts)


def _statistics(result: Mapping[str, Any]) -> str:
    lines = [
        "| collected for | CPU s | s a 1000 tokens | wall s | on disk GB | loaded GB | peak GB | peak − loaded GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, found in result["statistics"].items():
        tokens = found["tokens"] * result["model"]["experts"]
        cells = [f"{found['busy']:.1f}", f"{1000 * found['busy'] / tokens:.2f}", f"{found['wall']:.1f}"]
        cells += [f"{found[name] / 1e9:.2f}" for name in ("disk", "loaded", "peak")]
        lines.append(f"| {method} | {' | '.join(cells)} | {(found['peak'] - found['loaded']) / 1e9:.2f} |")
    return "\n".join([*lines, ""])


def _products(result: Mapping[str, Any]) -> str:
    blocks, sampled = result["model"]["layers"], result["model"]["sampled"]
    said = f"{sampled} of {blocks} blocks" if sampled else "whole model"
    lines = [
        f"| product ({said}) | CPU s | wall s | whole model, CPU s | candidate ms | task arithmetic ms | ratio "
        "| peak − loaded GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, found in result["products"].items():
        cells = [f"{found['product']:.1f}", f"{found['wall']:.1f}", f"{whole(found['product'], sampled, blocks):.0f}"]
        cells += [f"{1e3 * found['own']:.1f}", f"{1e3 * found['plain']:.1f}", f"{found['own'] / found['plain']:.2f}"]
        lines.append(f"| {method} | {' | '.join(cells)} | {(found['peak'] - found['loaded']) / 1e9:.2f} |")
    return "\n".join([*lines, ""])


def _virtual(result: Mapping[str, Any]) -> str:
    found, experts = result["virtual"], result["model"]["experts"]
    return (
        f"As a virtual expert ({found['method']}): made in {found['busy']:.1f} CPU s, peak "
        f"{found['peak'] / 1e9:.2f} GB; "
        f"a candidate of {experts} experts {1e3 * found['plain']:.1f} ms, of {experts} experts and it "
        f"{1e3 * found['own']:.1f} ms, {found['own'] / found['plain']:.2f} times as long\n"
    )


def _projected(result: Mapping[str, Any]) -> str:
    widths: list[int] = result["widths"]["widths"]
    wide, blocks = LARGE
    columns = " | ".join(f"width {width}" for width in widths)
    lines = [
        f"| seconds of a block | {columns} | exponent | 7 B, measured exponent, h | 7 B, exponent 3, h |",
        "|---" * (len(widths) + 4) + "|",
    ]
    for what, seconds in result["widths"]["seconds"].items():
        power = Power.through(widths, seconds)
        cells = [f"{each:.2f}" for each in seconds]
        hours = [blocks * power.at(wide, exponent) / 3600 for exponent in (None, 3.0)]
        cells += [f"{power.exponent:.2f}", f"{hours[0]:.1f}", f"{hours[1]:.1f}"]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    rows = result["widths"]["tokens"]
    lines.append(
        f"\n7 B: width {wide}, {blocks} blocks, {result['model']['experts']} experts; statistics of {rows} tokens."
    )
    return "\n".join([*lines, ""])
