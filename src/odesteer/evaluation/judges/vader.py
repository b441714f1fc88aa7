"""Sentiment by VADER.

The compound score of VADER, from -1 (negative) to +1 (positive): a lexicon of 7,500 words
rated by people, with rules for negation and emphasis. It knows nothing of our contrast set
or barrier. In its paper it correlates with the mean of 20 human raters at r = 0.88 on
tweets; on longer or literary text it is weaker.

Source: Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
Social Media Text", ICWSM 2014, https://doi.org/10.1609/icwsm.v8i1.14550
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from odesteer.evaluation.case import Case
from odesteer.evaluation.judges.base import Direction, Judge, Score, each_text


@dataclass(frozen=True)
class VaderMood(Judge):
    """VADER's compound score; an empty text is unscored.

    Raises:
        ImportError: at the first score, if vaderSentiment is not installed.
    """

    name: ClassVar[str] = "vader"
    unit: ClassVar[str] = "VADER compound, -1 gloomy to +1 bright"
    higher_is: ClassVar[Direction] = "better"
    agreement: ClassVar[str] = (
        "AUC 0.925 between our bright and melancholy sentences (n = 768); r = 0.88 with the mean "
        "of 20 raters on tweets, by its authors"
    )

    def score(self, cases: Sequence[Case], generations: Sequence[str]) -> list[Score]:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError:
            raise ImportError(
                "The mood judge needs vaderSentiment: pip install 'odesteer[demo]'."
            ) from None
        analyzer = SentimentIntensityAnalyzer()
        return each_text(
            generations,
            lambda texts: [analyzer.polarity_scores(text)["compound"] for text in texts],
        )
