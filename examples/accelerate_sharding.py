"""Steering of a model that accelerate has spread over devices.

    python examples/accelerate_sharding.py

Here the devices are the CPU and the disk, so that it runs anywhere; with GPUs the map says
`"model.layers.0": 0` and so on, or `device_map="auto"`. The steering goes to the device of the
activations it is given.
"""

from tempfile import TemporaryDirectory

from accelerate import dispatch_model

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

    def write() -> str:
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    with steering.attach(model):
        texts = {"whole, steered": write()}
    # The steered block lies on the disk, with the next one, and is read when it is its turn.
    places = {f"model.layers.{i}": "disk" if i in (16, 17) else "cpu" for i in range(30)}
    places |= {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu"}
    places |= {"model.norm": "cpu", "lm_head": "cpu"}
    with TemporaryDirectory() as folder:
        dispatch_model(model, places, main_device="cpu", offload_dir=folder)
        with steering.attach(model):
            texts["spread, steered"] = write()
        texts["spread"] = write()

    for name, text in texts.items():
        print(f"{name:>15}: {text}")
    return texts


if __name__ == "__main__":
    main()
