"""The text of a card."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from merging.recipe import Recipe
from search.card.facts import CardFacts
from search.card.loading import Loading
from search.card.markdown import code, fenced, folded, plain, table
from search.card.parents import Parent, licences
from search.card.scores import claim_sections, score_sections
from search.ranges import duration
from search.report.hop_texts import PATH_HEADER, counts_text, hops_in, path_rows, scales_text
from search.report.markup import count, listed

_MOST_RECIPE_LINES = 160
_MOST_PATH_ROWS = 16


def body(facts: CardFacts, loading: Loading) -> str:
    """Markdown after the front matter."""
    parts = [f"# {plain(facts.title)}", _lead(facts)]
    if facts.picture is not None:
        parts.append(_picture(facts))
    parts += _section("Scores", score_sections(facts))
    parts += _section("What may be claimed", claim_sections(facts))
    parts += _section("How to load it", _load(facts, loading))
    parts += _section("Parents", _parents(facts))
    parts += _section("How it was made", _made(facts))
    parts += _section("How to make it again", _again(facts))
    parts += _section("Files", _files(facts))
    parts += _section("Limits", _limits(facts))
    return "\n\n".join(parts) + "\n"


def _section(title: str, parts: Iterator[str]) -> list[str]:
    found = [each for each in parts if each]
    return [f"## {title}", *found] if found else []


def _lead(facts: CardFacts) -> str:
    text = _kind(facts)
    if facts.results is None:
        return text + "Made with paretomerge; it was not scored."
    text += f"Found by paretomerge, which searches for Pareto-optimal merges: candidate {facts.candidate} of "
    text += f"{len(facts.results.candidates)} in the run {plain(facts.results.name)}"
    return text + (f", {plain(facts.rule)}." if facts.rule else ".")


def _kind(facts: CardFacts) -> str:
    """What sort of model it is, and of whom."""
    path = hops_in(facts.recipe)
    if path is not None:
        names = {each.alias: plain(each.name) for each in facts.parents}
        names |= {each.alias: f"{plain(each.alias)} (itself a merge)" for each in facts.parents if each.made_by}
        aliases = dict.fromkeys(hop.alias for hop in path)
        scaled = ", each with a scale that is folded into its weights" if scales_text(path) else ""
        return (
            f"A model of {count(len(path), 'block')} that are layers of {listed([names[each] for each in aliases])}, "
            f"one after the other{scaled}: a path through layers that are as their models have them. "
        )
    experts = [plain(each.name) for each in facts.parents[1:] if each.made_by is None]
    of = f" and {count(len(experts), 'fine-tune')} of it ({listed(experts)})" if experts else ""
    return f"A merge of {plain(facts.parents[0].name)}{of}, by {listed([plain(each) for each in facts.methods])}. "


def _picture(facts: CardFacts) -> str:
    from search.report.picture import describe_picture

    if facts.results is None:
        return ""
    said = plain(describe_picture(facts.results, facts.candidate), 1500)
    split = facts.results.split
    own = split if facts.scored in facts.results.scores[split] else "search"
    star = "the star" if own == split else f"the star, at its {own} scores"
    caption = (
        f"Dots are candidates by their search scores; the front, this merge ({star}), the parents and the baselines "
        f"stand at their {split} scores with 95 % intervals. The holdout is not in the picture."
    )
    return f"![{said}]({facts.picture})\n\n*{caption}*"


def _load(facts: CardFacts, loading: Loading) -> Iterator[str]:
    yield fenced(loading.lines(facts.repository or "path/to/this/folder"), "python")
    chosen = facts.companions
    yield f"Tokenizer, chat template and generation settings: {plain(chosen.said)}."
    if chosen.differences:
        yield "The parents do not agree on them:"
        yield "\n".join(f"- {plain(each)}" for each in chosen.differences)
    if facts.scored_otherwise:
        yield (
            "**The candidates were scored with the base's tokenizer and generation settings**, which end answers at "
            "other tokens than these: expect answers, and scores, to differ a little."
        )


def _parents(facts: CardFacts) -> Iterator[str]:
    rows = []
    for index, each in enumerate(facts.parents):
        role = "base" if index == 0 else "expert" if each.made_by is None else f"made by {_methods(each.made_by)}"
        role += f", {each.form}" if each.form else ""
        revision = f" at {code(each.revision[:12])}" if each.revision else ""
        licence = "" if each.made_by is not None else plain(each.license or "not stated")
        rows.append([plain(each.alias), f"{plain(each.name)}{revision}", role, licence, code(each.content)])
    yield table(["alias", "model", "role", "licence", "hash of its weights"], rows)
    yield (
        "A hash is SHA-256 over the sorted names, dtypes, shapes and bytes of the tensors; it does not depend on how "
        "they are spread over files."
    )
    yield _licence(facts.parents)


def _licence(parents: tuple[Parent, ...]) -> str:
    found = licences(parents)
    if len(found) == 1 and "" not in found:
        return (
            f"All parents state the licence {plain(next(iter(found)))}; the merge is a work derived from all of them."
        )
    stated = [f"{', '.join(aliases)}: {name or 'not stated'}" for name, aliases in found.items()]
    why = f"the parents' differ ({plain('; '.join(stated))})" if len(found) > 1 else "no parent states one"
    return (
        f"**Licence: none is stated here**, since {why}. The merge is derived from all of them: what any of them "
        "demands or forbids may hold for it. Find that out before you use or share it."
    )


def _made(facts: CardFacts) -> Iterator[str]:
    if facts.results is not None:
        yield _search(facts)
    if rows := _coefficients(facts.recipe):
        yield "Coefficients over the groups of tensors (a depth × a kind of module), smallest to largest:"
        yield table(["method", "model", "groups", "coefficient, mean", "from", "to"], rows)
    yield from _path(facts.recipe)
    yield f"The recipe, {code('recipe.yaml')} (hash {code(facts.recipe.hash[:16])}):"
    yield folded("recipe.yaml", fenced(facts.recipe.to_yaml(), "yaml", _MOST_RECIPE_LINES))
    if facts.mergekit is not None:
        yield "The same merge for mergekit, which reads models by their path or id:"
        yield folded("mergekit.yaml", fenced(facts.mergekit, "yaml", _MOST_RECIPE_LINES))
    else:
        yield "There is no config of mergekit that says the same."
    versions = {"Python": platform.python_version(), **facts.versions}
    yield f"Written with {plain(', '.join(f'{name} {version}' for name, version in versions.items()), 600)}."


def _search(facts: CardFacts) -> str:
    results = facts.results
    if results is None:
        return ""
    settings = results.config.search
    optimizer = getattr(settings.optimizer, "name", str(settings.optimizer))
    # what "auto" took, where the optimizers said so
    names = dict.fromkeys(str(each["optimizer"]) for each in results.notes.values() if "optimizer" in each)
    took = f" ({plain(listed(list(names)))})" if set(names) - {optimizer} else ""
    states = [each.state for each in results.candidates]
    seconds = results.seconds.get("materialize", 0.0) + results.seconds.get("evaluate", 0.0)
    counts = [
        (states.count("failed"), "failed"),
        (states.count("censored"), "stopped early"),
        (states.count("duplicate"), "repeated"),
    ]
    fate = ", ".join(f"{number} {what}" for number, what in counts if number)
    text = (
        f"Search: optimizer {plain(optimizer)}{took}, seed {settings.seed}; {len(states)} of "
        f"{count(settings.budget.candidates, 'candidate')} proposed{f' ({fate})' if fate else ''}, "
        f"{results.items} items scored, {duration(seconds)} of merging and evaluating. "
        f"Engine: {plain(results.started.engine)}."
    )
    if results.config.first is not None:
        text += f" Before it, {plain(results.config.first.name)} was found by a search of its own."
    if results.constraints.all:
        text += f" Constraints: {plain('; '.join(map(str, results.constraints.all)), 1000)}."
    return text


def _coefficients(recipe: Recipe) -> list[list[str]]:
    """Rows: method and model -> in how many groups, and with which coefficients."""
    found: dict[tuple[str, str], list[float]] = {}
    for each in (*recipe.groups.values(), *recipe.tensors.values()):
        for alias, values in each.sources:
            value = dict(values).get("coefficient")
            if isinstance(value, int | float):
                found.setdefault((each.method, alias), []).append(float(value))
    return [
        [plain(method), plain(alias), str(len(values)), *(f"{each:.3f}" for each in (
            sum(values) / len(values), min(values), max(values)))]
        for (method, alias), values in sorted(found.items())
    ]  # fmt: skip


def _path(recipe: Recipe) -> Iterator[str]:
    """Of a path through layers: how many there are, and which."""
    path = hops_in(recipe)
    if path is None:
        return
    yield (
        f"The path: {plain(counts_text(path), 1000)}. A scale multiplies the hidden state before its block; "
        f"{_outside(recipe)}."
    )
    header, *rows = [[plain(cell) for cell in row] for row in (PATH_HEADER, *path_rows(path))]
    whole = table(header, rows)
    yield whole if len(rows) <= _MOST_PATH_ROWS else folded("the path, block by block", whole)


def _outside(recipe: Recipe) -> str:
    """Whose embedding, head and final norm a path has: one model's in a search, of several where a config says so."""
    owners: dict[str, list[str]] = {}
    for group, each in recipe.groups.items():
        if group.depth is None:
            owners.setdefault(each.sources[0][0], []).append("final norm" if group.kind == "norm" else group.kind)
    if len(owners) == 1:
        return f"embedding, head and final norm are {plain(next(iter(owners)))}'s"
    return "; ".join(
        f"{listed(parts)} {'is' if len(parts) == 1 else 'are'} {plain(alias)}'s" for alias, parts in owners.items()
    )


def _again(facts: CardFacts) -> Iterator[str]:
    if facts.repeat:
        yield fenced("\n".join(facts.repeat), "console")
    yield (
        "The same recipe over the same parents gives the same weights, bit for bit; parents with other contents are "
        f"refused. The weights of this folder hash to {code(facts.verified.content)}."
    )


def _files(facts: CardFacts) -> Iterator[str]:
    yield table(["file", "SHA-256"], [[code(name), code(digest)] for name, digest in facts.verified.files.items()])
    yield (
        f"After writing, all {count(facts.verified.tensors, 'tensor')} were read back, and each had the bits that the "
        "recipe gives."
    )


def _limits(facts: CardFacts) -> Iterator[str]:
    limits = [
        "Merging combines weights; it adds no knowledge and no safety training. What the parents refuse, know or get "
        "wrong may have become stronger or weaker.",
    ]
    if facts.results is None:
        limits.append("Nothing was measured: score it (`paretomerge evaluate`) before you rely on it.")
    else:
        limits += [
            "Only what the tables name was measured, with those items, prompts and decoding settings. Other tasks, "
            "languages and prompts were not looked at.",
            "Whether the parents were trained on the items was not checked.",
            "The intervals know of the choice of items only. One search is one search.",
        ]
    yield "\n".join(f"- {each}" for each in limits)


def _methods(recipe: Recipe) -> str:
    return listed([plain(each) for each in sorted({each.method for each in recipe.groups.values()})])
