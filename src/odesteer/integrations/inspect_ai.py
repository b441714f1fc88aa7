"""Registration of the Inspect AI provider.

    inspect eval task.py --model odesteer/smollm2 -M steering=DIR -M angle=0.2 -M do_sample=false

Every start of Inspect loads the entry point `inspect_ai`, so torch is imported only with
`odesteer.integrations.inspect_ai_model`, when the model is used.

Source: UK AI Security Institute, "Inspect AI: Framework for Large Language Model Evaluations",
https://inspect.aisi.org.uk/extensions.html
"""

from inspect_ai.model import ModelAPI, modelapi


@modelapi(name="odesteer")
def odesteer() -> type[ModelAPI]:
    """Return the model provider of names that begin with "odesteer/"."""
    from odesteer.integrations.inspect_ai_model import SteeredAPI

    return SteeredAPI
