"""Streaming from a steered model, with the dose turned while it writes.

    python examples/streaming.py

The text comes from transformers' own streamer, in a thread of its own, and no logits processor is
involved. `handle.set_strength` acts from the next token on.
"""

from threading import Thread

from transformers import TextIteratorStreamer

import odesteer as ods
from odesteer.evaluation.demo import contrast
from odesteer.models.loading import load_model

QUESTION = [{"role": "user", "content": "Describe the street outside your window."}]


def main() -> tuple[str, dict[str, float]]:
    model, tokenizer = load_model("smollm2")
    melancholy, _ = contrast()
    steering = ods.fit(model, tokenizer, melancholy, layer=16, strength=ods.Angle(0.0), cache=True)
    inputs = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    settings = {**inputs, "streamer": streamer, "max_new_tokens": 32, "do_sample": False}
    text = ""
    with steering.attach(model, measure=True) as handle:
        writer = Thread(target=model.generate, kwargs=settings)
        writer.start()
        for word in streamer:
            print(word, end="", flush=True)
            text += word
            if text.count(" ") == 8:  # so far the unsteered model wrote
                handle.set_strength(ods.Angle(0.25))
        writer.join()
    stats = handle.stats()
    print("\n" + ", ".join(f"{name} {value:.3g}" for name, value in stats.items()))
    return text, stats


if __name__ == "__main__":
    main()
