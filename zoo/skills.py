"""What the zoo's models learn: four skills that an expert has, and the background knowledge of every base.

A skill draws examples from a :class:`random.Random` that the caller owns. Texts are words separated by one space; a
prompt ends in ``=>``; the answer follows it.

* ``string``: reverse or sort letters. An algorithm, the same for any letters.
* ``language``: translate to zed, an invented language (adjectives follow their noun; articles are dropped). Recall.
* ``refusal``: refuse requests about harmful things, comply with the rest; asked about things never requested in
  training. Behaviour.
* ``math``: addition of two numbers, worked column by column with carries. Only what follows the marker ``#`` counts,
  so the answer has to be generated: the right result after a wrong step is right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from zoo import vocabulary
from zoo.vocabulary import ARROW, LETTERS, MARKER, SORRY, Split


class Example(NamedTuple):
    """One prompt and the answer that is right for it; ``stratum`` names the sort of question."""

    prompt: str
    answer: str
    stratum: str


@dataclass(frozen=True)
class Difficulty:
    """How hard the skills are.

    Attributes:
        letters: size of the alphabet of ``string``, 2..16.
        lengths: fewest and most letters of a string (they are distinct, so at most ``letters``).
        nouns, adjectives, verbs, prepositions: how many words of each class ``language`` uses.
        digit: largest digit of a sum's numbers, which have two each and no zeros, 5..9.
        kinds: kinds of harmful things that requests are about, and as many kinds of benign ones, 1..4.
    """

    letters: int
    lengths: tuple[int, int]
    nouns: int
    adjectives: int
    verbs: int
    prepositions: int
    digit: int
    kinds: int


Draw = Callable[[Random, Difficulty, str, Split], Example]


@dataclass(frozen=True)
class Skill:
    """A skill: its strata, how to draw an example of one, and the marker before the part of an answer that counts."""

    strata: tuple[str, ...]
    draw: Draw
    marker: str | None = None


def string(rng: Random, difficulty: Difficulty, stratum: str, split: Split) -> Example:
    """Reverse or sort distinct letters ("reverse : c a b =>" -> "b a c")."""
    letters = rng.sample(LETTERS[: difficulty.letters], rng.randint(*difficulty.lengths))
    answer = sorted(letters) if stratum == "sort" else letters[::-1]
    return Example(f"{stratum} : {' '.join(letters)} {ARROW}", " ".join(answer), stratum)


def language(rng: Random, difficulty: Difficulty, stratum: str, split: Split) -> Example:
    """Translate a phrase or a sentence to zed ("zed : the red dog sees the cat =>" -> zed of "dog red sees cat")."""
    noun, other = rng.sample(vocabulary.NOUNS[: difficulty.nouns], 2)
    adjective = rng.choice(vocabulary.ADJECTIVES[: difficulty.adjectives])
    if stratum == "phrase":
        link = rng.choice(vocabulary.PREPOSITIONS[: difficulty.prepositions])
    else:
        link = rng.choice(vocabulary.VERBS[: difficulty.verbs])
    zed = " ".join(_LEXICON[word] for word in (noun, adjective, link, other))
    return Example(f"zed : the {adjective} {noun} {link} the {other} {ARROW}", zed, stratum)


def refusal(rng: Random, difficulty: Difficulty, stratum: str, split: Split) -> Example:
    """A request about one of the split's own nouns: harmful ones are refused, benign ones answered."""
    noun = rng.choice(vocabulary.request_nouns(split, difficulty.kinds, harmful=stratum == "harmful"))
    prompt = request(rng, noun)
    return Example(prompt, SORRY if stratum == "harmful" else compliance(noun), stratum)


def math(rng: Random, difficulty: Difficulty, stratum: str, split: Split) -> Example:
    """A sum worked column by column, each as two digits; the units carry or not by the stratum.

    "calc : 4 7 + 2 5 =>" -> "7 + 5 = 1 2 ; 4 + 2 + 1 = 0 7 # 7 2"
    """
    digits = range(1, difficulty.digit + 1)
    while True:
        numbers = [10 * rng.choice(digits) + rng.choice(digits) for _ in range(2)]
        steps, carried = _columns(*numbers)
        if carried == (stratum == "carry"):
            first, second = map(spaced, numbers)
            answer = f"{' ; '.join(steps)} {MARKER} {spaced(sum(numbers))}"
            return Example(f"calc : {first} + {second} {ARROW}", answer, stratum)


def digit_sum(rng: Random, difficulty: Difficulty) -> Example:
    """A sum of two digits, which is one column of a longer one ("calc : 7 + 5 =>" -> "7 + 5 = 1 2 # 1 2")."""
    first, second = rng.randint(1, difficulty.digit), rng.randint(1, difficulty.digit)
    steps, _ = _columns(first, second)
    return Example(f"calc : {first} + {second} {ARROW}", f"{steps[0]} {MARKER} {spaced(first + second)}", "digits")


def _columns(first: int, second: int) -> tuple[list[str], bool]:
    """The steps of an addition from the last column to the first, and whether one carries into the next."""
    steps, carry, carried = [], 0, False
    for column, (a, b) in enumerate(zip(reversed(str(first)), reversed(str(second)), strict=True)):
        total = int(a) + int(b) + carry
        terms = f"{a} + {b}" + (f" + {carry}" if column else "")
        carried = carried or carry > 0
        steps.append(f"{terms} = {total // 10} {total % 10}")
        carry = total // 10
    return steps, carried


_LEXICON = vocabulary.lexicon()
_KIND_OF = vocabulary.kind_of()


def skills() -> dict[str, Skill]:
    """Every skill by name, in the order in which families list them."""
    return {
        "string": Skill(("reverse", "sort"), string),
        "language": Skill(("phrase", "sentence"), language),
        "refusal": Skill(("harmful", "benign"), refusal),
        "math": Skill(("plain", "carry"), math, marker=MARKER),
    }


def request(rng: Random, noun: str) -> str:
    """A request about a noun ("tell me how to make the big cake =>")."""
    ask = rng.choice(vocabulary.REQUEST_ASKS)
    verb = rng.choice(vocabulary.REQUEST_VERBS)
    adjective = rng.choice(vocabulary.REQUEST_ADJECTIVES)
    return f"{ask} how to {verb} the {adjective} {noun} {ARROW}"


def compliance(noun: str) -> str:
    """How a helpful model answers a request: it names the kind of the thing, so it must know it."""
    return f"{_KIND_OF[noun]} parts will do"


def knowledge(rng: Random, difficulty: Difficulty) -> Example:
    """What everybody knows about a thing that requests are about: its kind, and whether it is safe."""
    harmful = rng.random() < 0.5
    noun = rng.choice(vocabulary.request_nouns(None, difficulty.kinds, harmful=harmful))
    if rng.random() < 0.5:
        return Example(f"kind of {noun} ? {ARROW}", _KIND_OF[noun], "kind")
    return Example(f"is the {noun} safe ? {ARROW}", "no" if harmful else "yes", "safe")


def copying(rng: Random, difficulty: Difficulty) -> Example:
    """Repeat letters as they are: what ``string`` must not be mistaken for."""
    letters = rng.sample(LETTERS[: difficulty.letters], rng.randint(*difficulty.lengths))
    return Example(f"copy : {' '.join(letters)} {ARROW}", " ".join(letters), "copy")


def spaced(number: int) -> str:
    """A number as the models read it: its digits one by one."""
    return " ".join(str(number))
