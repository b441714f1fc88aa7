"""Registration of the Inspect AI provider.

    inspect eval task.py --model odesteer/smollm2 -M steering=DIR -M angle=0.2 -M do_sample=false

By the entry point `inspect_ai`, which every start of Inspect loads, also where nothing is
steered: torch waits in `odesteer.integrations.inspect_ai_model` until the model is asked for.

Source: UK AI Security Institute, "Inspect AI: Framework for Large Language Model Evaluations",
https://inspect.aisi.org.uk/extensions.html
"""

from inspect_ai.model import ModelAPI, modelapi


@modelapi(name="odesteer")
def odesteer() -> type[ModelAPI]:
    """The model provider of names that begin with "odesteer/"."""
    from odesteer.integrations.inspect_ai_model import SteeredAPI

    return SteeredAPI
