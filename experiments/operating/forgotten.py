"""What counts when a skill is to be unlearned: the share of wrong answers. An evaluator of the type ``python``."""


def score(item: dict[str, str], answer: str) -> float:
    """1 where the answer is wrong."""
    return float(answer.split() != item["answer"].split())
