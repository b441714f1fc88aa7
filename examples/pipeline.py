"""A transformers pipeline whose model is steered.

    python examples/pipeline.py

The pipeline holds the model itself, so what is attached to the model acts in it, whether the
pipeline was made before or after, and is gone from it when the `with` block ends.
"""

from transformers import pipeline

import odesteer as ods
from odesteer.evaluation.demo import contrast
from odesteer.models.loading import load_model

QUESTION = [{"role": "user", "content": "Describe the street outside your window."}]


def main() -> tuple[str, str]:
    model, tokenizer = load_model("smollm2")  # or any causal language model of transformers
    melancholy, _ = contrast()
    steering = ods.fit(model, tokenizer, melancholy, layer=16, strength=ods.Angle(0.2), cache=True)

    write = pipeline("text-generation", model=model, tokenizer=tokenizer)

    def answer() -> str:
        found = write(QUESTION, max_new_tokens=16, do_sample=False)
        return found[0]["generated_text"][-1]["content"]

    with steering.attach(model):
        steered = answer()
    plain = answer()
    print(f"plain:   {plain}\nsteered: {steered}")
    return plain, steered


if __name__ == "__main__":
    main()
