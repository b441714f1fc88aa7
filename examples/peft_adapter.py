"""A LoRA adapter on a steered model, and a steering on a model with an adapter.

    python examples/peft_adapter.py

Both orders give the same text, and each comes off without the other: `disable_adapter` leaves
the steering on, and the steering's `with` block leaves the adapter on.
"""

import torch
from peft import LoraConfig, get_peft_model

import odesteer as ods
from odesteer.evaluation.demo import contrast
from odesteer.models.loading import load_model

QUESTION = [{"role": "user", "content": "Describe the street outside your window."}]
# A random adapter stands for one that was trained; PEFT's own start would change nothing.
ADAPTER = LoraConfig(
    r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False
)


def main() -> dict[str, str]:
    model, tokenizer = load_model("smollm2")
    melancholy, _ = contrast()
    steering = ods.fit(model, tokenizer, melancholy, layer=16, strength=ods.Angle(0.2), cache=True)
    inputs = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

    def write(one) -> str:
        output = one.generate(**inputs, max_new_tokens=16, do_sample=False)
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    texts = {"plain": write(model)}
    with steering.attach(model):  # the steering first
        torch.manual_seed(0)
        adapted = get_peft_model(model, ADAPTER)
        texts["steering, then adapter"] = write(adapted)
        with adapted.disable_adapter():
            texts["steering"] = write(adapted)
    texts["adapter"] = write(adapted)
    with steering.attach(adapted):  # the adapter first
        texts["adapter, then steering"] = write(adapted)

    for name, text in texts.items():
        print(f"{name:>22}: {text}")
    return texts


if __name__ == "__main__":
    main()
