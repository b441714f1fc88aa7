"""Training with TRL on what a steered model writes.

    pip install trl datasets
    python examples/trl_generation.py

One step of GRPO whose completions the steered model generates. TRL scores them in another pass,
which sees prompt and completion as one text; with `positions="all"` the steering acts in both
alike. Gradients pass through it as if its displacement were constant. It is no part of the
weights: they have learnt from it, and are plain weights when the `with` block ends.
"""

from tempfile import mkdtemp

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import odesteer as ods
from odesteer.evaluation.demo import contrast
from odesteer.models.loading import load_model

QUESTION = [{"role": "user", "content": "Describe the street outside your window."}]
SETTINGS = GRPOConfig(
    output_dir=mkdtemp(),  # stays empty: nothing is saved
    max_steps=1,
    num_generations=4,
    per_device_train_batch_size=4,
    max_completion_length=16,
    learning_rate=1e-5,
    bf16=False,
    save_strategy="no",
    report_to="none",
)


def brevity(completions, **_) -> list[float]:
    """The reward, instead of yours: minus the number of letters."""
    texts = [one[0]["content"] for one in completions]
    print("written:", *texts, sep="\n  ")
    return [-float(len(text)) for text in texts]


def main():
    model, tokenizer = load_model("smollm2")
    melancholy, _ = contrast()
    steering = ods.fit(model, tokenizer, melancholy, layer=16, strength=ods.Angle(0.1), cache=True)

    trainer = GRPOTrainer(
        model,
        brevity,
        args=SETTINGS,
        train_dataset=Dataset.from_list([{"prompt": QUESTION}]),
        processing_class=tokenizer,
    )
    before = model.lm_head.weight.detach().clone()
    with steering.attach(model, positions="all"):
        trainer.train()
    change = (model.lm_head.weight - before).abs().max().item()
    print(f"largest change of a weight: {change:.1e}")
    return model


if __name__ == "__main__":
    main()
