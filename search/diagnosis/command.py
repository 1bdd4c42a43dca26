"""``paretomerge diagnose`` from its options to what it prints; the command itself only reads options."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from search.diagnosis.finding import Finding
from search.diagnosis.subject import Subject, subject_of
from search.errors import SearchError

if TYPE_CHECKING:
    from rich.console import Console

    from merging import Materializer
    from merging.diagnose.results import Diagnosis, Spectra
    from merging.sources import Sources
    from search.config import LoadedConfig
    from search.diagnosis.probing import Curves
    from search.diagnosis.progress import Bar
    from search.diagnosis.scoring import Scorer

INTERRUPTED = 130
"""Exit status of a command that the user has stopped."""


@dataclass(frozen=True)
class Asked:
    """The options of the command, as they were given; see :func:`search.cli.diagnose.diagnose`."""

    models: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    density: float = 0.2
    rank: int = 16
    spectra: Spectra = "all"
    data: tuple[str, ...] = ()
    config: Path | None = None
    curves: str | None = None
    items: int = 64
    device: str | None = None
    tokenizer: str = "base"
    allow_pickle: bool = False
    html: Path | None = None
    map: str | None = None
    json: bool = False


@dataclass(frozen=True)
class Data:
    """What merges are to be scored with.

    Attributes:
        loaded: a config, for its evaluators; None where files are given.
        files: expert -> its texts; None -> everybody's.
        wanted: curves.
    """

    loaded: LoadedConfig | None
    files: dict[str | None, Path]
    wanted: tuple[str, ...]


def run(asked: Asked) -> int:
    """Diagnose, and say what was found.

    Returns:
        The exit status: 0, or 130 where the user stopped; what was known by then is said.

    Raises:
        SearchError, MergingError, EvaluatorError, ZooError: a mistake in what was asked.
    """
    from rich.console import Console

    from merging.hub_models import downloading
    from search.diagnosis.progress import bar
    from search.report.terminal import forgiving

    with downloading(partial(print, file=sys.stderr, flush=True)):
        subject = subject_of(asked.models, asked.overrides)
    data = _data(asked, subject)
    _check_html(asked.html)
    error_console = Console(stderr=True)
    finding: Finding | None = None
    interrupted = False
    try:
        with bar(error_console) as shown:
            sources = subject.load(tokenizer=asked.tokenizer, allow_pickle=asked.allow_pickle)
            finding = _finding(subject, _measured(asked, sources, shown), None)
            for curves in _drawn(asked, subject, sources, data, shown) if data is not None else ():
                finding = replace(finding, curves=curves)
    except KeyboardInterrupt:
        interrupted = True
        said = "interrupted; nothing was written" if finding is None else "interrupted; what is known so far:"
        print(said, file=sys.stderr)
        if finding is None:
            return INTERRUPTED
        if finding.curves is not None:
            finding = replace(finding, curves=replace(finding.curves, broken_off=True))
    _show(asked, _finding(subject, finding.diagnosis, finding.curves), Console(file=forgiving()))
    return INTERRUPTED if interrupted else 0


def _measured(asked: Asked, sources: Sources, shown: Bar) -> Diagnosis:
    from merging.diagnose import Settings, diagnose
    from search.diagnosis.progress import WEIGHTS

    settings = Settings(density=asked.density, rank_k=asked.rank, spectra=asked.spectra)
    return diagnose(
        sources,
        settings,
        lambda done, total, name: shown.at(WEIGHTS, done, total, name),
        device=asked.device or "cpu",
    )


def _finding(subject: Subject, diagnosis: Diagnosis, curves: Curves | None) -> Finding:
    from merging.diagnose.verdicts import verdict
    from search import __version__
    from search.diagnosis.paths import paths_of

    return Finding(
        diagnosis,
        verdict(diagnosis, curves),
        subject.references,
        curves,
        left_out=subject.left_out,
        paths=None if subject.loaded is None else paths_of(subject.loaded.config, diagnosis),
        version=__version__,
    )


def _show(asked: Asked, finding: Finding, console: Console) -> None:
    from search.report.console import print_json
    from search.report.terminal import visible

    if asked.json:
        print_json(finding.as_data())
    else:
        from search.diagnosis.console import print_finding
        from search.diagnosis.quantities import QUANTITIES

        chosen = next((each for each in QUANTITIES if each.key == asked.map), None)
        print_finding(finding, console, chosen)
    if asked.html is not None:
        from search.diagnosis.page import write_page

        write_page(finding, asked.html)  # last: a full disk does not take what took hours with it
        if not asked.json:
            console.print(visible(f"page: {asked.html}"), markup=False, highlight=False, soft_wrap=True)


def _check_html(path: Path | None) -> None:
    """Tell now what would else be told after hours."""
    if path is None:
        return
    if path.is_dir():
        raise SearchError(f"--html {path}: expected a file to write, found a folder; add a file's name")
    if not path.absolute().parent.is_dir():
        raise SearchError(f"--html {path}: there is no folder {path.parent}; make it first")


# -- with data ---------------------------------------------------------------------------------------------------------


def _data(asked: Asked, subject: Subject) -> Data | None:
    """What merges are to be scored with; None where the weights alone are looked at."""
    from search.diagnosis.probing import parse_curves
    from search.diagnosis.scoring import check_texts, parse_data

    if asked.data and asked.config is not None:
        raise SearchError("expected --data or --config, found both; leave one of them out")
    files = parse_data(asked.data, tuple(subject.experts)) if asked.data else {}
    loaded = None
    if asked.config is not None:
        from search.config import load_config

        loaded = load_config(asked.config)
    elif not files and asked.curves is not None:
        loaded = subject.loaded  # a search's own evaluators are asked where curves are wanted
    if loaded is None and not files:
        if asked.curves is not None:
            raise SearchError(
                f"--curves {asked.curves}: curves score merges, and there is nothing to score them with; add "
                "--data FILE with texts, or --config CONFIG with evaluators"
            )
        return None
    wanted = parse_curves(asked.curves)
    for path in files.values():
        check_texts(path, asked.items)
    return Data(loaded, files, wanted)


def _drawn(asked: Asked, subject: Subject, sources: Sources, data: Data, shown: Bar) -> Iterator[Curves]:
    from search.diagnosis.probing import count_points, draw

    shown.say(f"{count_points(data.wanted, len(subject.experts))} merges are to be scored")
    with _live(asked, subject, sources, data) as (materializer, scorer):
        yield from draw(materializer, scorer, data.wanted, told=shown.at)


@contextmanager
def _live(asked: Asked, subject: Subject, sources: Sources, data: Data) -> Iterator[tuple[Materializer, Scorer]]:
    """A live model that merges are written into, and what asks it."""
    import torch

    from evaluators import open_engine
    from merging import Materializer, load_model
    from search.diagnosis.scoring import ConfigScorer, TextScorer

    settings = data.loaded.config.engine if data.loaded is not None else None
    device = asked.device or (settings.device if settings is not None else "cpu")
    if settings is not None and settings.threads is not None:
        torch.set_num_threads(settings.threads)
    dtype = data.loaded.config.models.dtype if data.loaded is not None else None
    model = load_model(subject.base, dtype=dtype, device=device)
    materializer = Materializer(sources, model)
    engine = open_engine(
        model,
        subject.base,
        kind="hf" if settings is None else settings.kind,
        batch_tokens=None if settings is None else settings.batch_tokens,
        device=device,
        tensors=materializer.tensors,
        vllm=None if settings is None else settings.vllm,
    )
    if data.loaded is not None:
        yield materializer, ConfigScorer(data.loaded, engine, asked.items)
    else:
        yield materializer, TextScorer(data.files, engine, asked.items)
