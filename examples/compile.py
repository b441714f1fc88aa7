"""Steering of a compiled model: attach, change the dose, take off.

    python examples/compile.py

The hook runs outside of the graphs, so a new dose compiles nothing. Decoder blocks are compiled
one by one here: they share their graphs, which takes seconds where the whole model takes minutes.
"""

from time import perf_counter

import odesteer as ods
from odesteer.evaluation.demo import contrast
from odesteer.models.loading import load_model

QUESTION = [{"role": "user", "content": "Describe the street outside your window."}]


def main() -> dict[str, str]:
    model, tokenizer = load_model("smollm2")
    melancholy, _ = contrast()
    steering = ods.fit(model, tokenizer, melancholy, layer=16, strength=ods.Angle(0.2), cache=True)
    inputs = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    for block in model.model.layers:
        block.compile()

    texts = {}

    def write(name: str) -> None:
        start = perf_counter()
        # With a cache, torch compiles the first blocks anew each and then gives up, steered or not.
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False, use_cache=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        texts[name] = tokenizer.decode(new, skip_special_tokens=True)
        print(f"{name:>12} ({perf_counter() - start:.1f} s): {texts[name]}")

    write("compiled")
    with steering.attach(model) as handle:
        write("steered")
        handle.set_strength(ods.Angle(0.1))
        write("half a dose")
    write("taken off")
    return texts


if __name__ == "__main__":
    main()
