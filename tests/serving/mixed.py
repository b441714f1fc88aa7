"""Requests as different as requests of one batch can be."""

from typing import Any

from odesteer.backends.vllm import ask

# Longer than two blocks of the cache, so that there is something to share.
SHARED = (
    "The following is a conversation with a friend. The friend is honest, answers in a few words "
    "and never repeats what was said before. They have known each other since school, live in the "
    "same small town by the sea, and meet every Friday evening in the old harbour to talk about "
    "the week, their families, and the weather, which is rarely good at this time of the year. "
)
ENDS = (
    "How was your week? It was",
    "What do you think of the new mayor? I think",
    "Tell me about your sister. She",
)
SHORT = ("The weather today is", "My favourite thing about mornings is that", "Once upon a time")
TWO = {"odesteer": '[{"name": "flow", "angle": 0.1}, {"name": "vector", "strength": 0.5}]'}

ASKS: tuple[dict[str, Any] | None, ...] = (
    None,
    ask("vector"),
    ask("vector", strength=-1.5),
    ask("vector", start="all"),
    ask("flow"),
    ask("flow", positions="prompt[1:-2]+generated[1:4]"),
    ask("flow", angle=-0.2),
    ask("flow", angle=0.4, target=0.8, start="all"),
    ask("aimed"),
    ask("turn", strength=0.6),
    ask("turn", strength=-0.6, start="all"),
    ask("prompted"),
    ask("heads", start="all"),
    ask("layers"),
    ask("layers", angle=0.1, start=5),
    ask("both", angle=0.2),
    TWO,
    None,
    ask("prompted", start="generated", strength=2.0),
    ask("vector", strength=0.0),
    ask("flow", angle=0.3, start=3),
    ask("vector", angle=0.1),
    ask("layers", target=0.9, angle=0.3),
    None,
)

# Tokens of the longest answer that a test asks for: so many that requests grow out of the cache
# that they share.
LONGEST = 40


def requests() -> list[tuple[str, dict[str, Any] | None]]:
    """24 prompts with what they ask for; half of them begin alike."""
    prompts = [SHARED + end for end in ENDS] + list(SHORT)
    return [(prompts[i % len(prompts)], extra) for i, extra in enumerate(ASKS)]
