"""An Inspect AI evaluation of a steered model.

    pip install 'odesteer[inspect]'
    python examples/inspect_eval.py

odesteer is a model provider of Inspect: any task, solver and scorer runs on "odesteer/MODEL",
from Python or as `inspect eval task.py --model odesteer/smollm2 -M steering=DIR -M angle=0.2`.
"""

from tempfile import TemporaryDirectory

from inspect_ai import Task, eval, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import Score, mean, scorer
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import odesteer as ods
from odesteer.evaluation.demo import contrast
from odesteer.models.loading import load_model

QUESTIONS = ["Describe the street outside your window.", "How was the concert?"]


@scorer(metrics=[mean()])
def mood():
    vader = SentimentIntensityAnalyzer()

    async def score(state, target) -> Score:
        text = state.output.completion
        return Score(value=vader.polarity_scores(text)["compound"], answer=text)

    return score


@task
def small_talk() -> Task:
    return Task(dataset=[Sample(input=question) for question in QUESTIONS], scorer=mood())


def main() -> dict[str, list[str]]:
    model, tokenizer = load_model("smollm2")
    melancholy, _ = contrast()
    steering = ods.fit(model, tokenizer, melancholy, layer=16, strength=ods.Angle(0.2), cache=True)

    answers = {}
    with TemporaryDirectory() as folder:
        steering.save_pretrained(f"{folder}/gloomy")
        for name, ours in ("plain", {}), ("steered", {"steering": f"{folder}/gloomy"}):
            [log] = eval(
                small_talk(),
                model="odesteer/smollm2",
                model_args={"do_sample": False, **ours},
                max_tokens=16,
                log_dir=f"{folder}/logs",
                display="none",
            )
            answers[name] = [sample.output.completion for sample in log.samples]
            value = log.results.scores[0].metrics["mean"].value
            print(f"{name}: mean mood {value:.2f}, {answers[name]}")
    return answers


if __name__ == "__main__":
    main()
