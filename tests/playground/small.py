"""A page's worth of what is small: a desk, a contrast, a shelf, a setting."""

from tests.helpers import models as tiny

from odesteer.data import Contrast
from odesteer.playground.library import FittableContrast, SavedSteering, SharedModel, Source
from odesteer.playground.session import Controls

PLACES = ["mat", "tree", "moon", "on the mat", "under the tree", "on the moon"]
GOOD = [f"the {who} is good {place}" for who in ("cat", "dog", "bird") for place in PLACES]
BAD = [text.replace("good", "bad") for text in GOOD]


def shared(chat: bool = True) -> SharedModel:
    """A random model whose every token is a word."""
    tokenizer = tiny.tokenizer(chat=chat)
    tokenizer.add_tokens([f"w{i}" for i in range(len(tokenizer), tiny.VOCABULARY)])
    return SharedModel(tiny.model(), tokenizer, "tiny")


def contrast() -> Contrast:
    return Contrast.from_pairs(positive=GOOD, negative=BAD)


def library() -> dict[str, Source]:
    """A contrast, and a steering that was saved."""
    return {
        "good": FittableContrast(contrast, "contrast()"),
        "curved": SavedSteering(tiny.quadratic(), "kept/it"),
    }


def controls(expression: str = "good", **changes: object) -> Controls:
    values = {"layer": 1, "dose": "angle", "amount": 0.2, "max_new_tokens": 6, **changes}
    return Controls(expression=expression, **values)
