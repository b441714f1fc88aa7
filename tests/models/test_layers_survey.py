"""Survey of transformers' architectures whose decoder blocks are found."""

import pytest
from tools.architecture_survey import Row, confirmed, report, survey

# Why each is not steered. A name that goes from here is progress, one that comes a regression.
NOT_STEERED = {
    # Byte-level: its blocks work on patches, its local decoder on bytes.
    "blt": "refused",
    # Learnt prompts go through the blocks before the tokens.
    "cpmant": "refused",
    # Hyper-connections: several streams, mixed between the blocks.
    "deepseek_v4": "no stream",
    "hy_v4": "no stream",
    "qwen4_exp": "no stream",
    "qwen4_exp_text": "no stream",
    # AltUp: four streams, of which every block computes one.
    "gemma3n_text": "no stream",
    # The same decoder; its vision tower needs timm to be built.
    "gemma3n": "unjudged",
    # A drafter whose default configuration contradicts itself.
    "gemma4_assistant": "unjudged",
    # Recurrent depth: two stacks that run several times each.
    "hrm_text": "refused",
    # Predicts several tokens ahead in streams of their own, one after the other.
    "prophetnet": "refused",
    # Reversible: a block returns the two halves of the stream.
    "reformer": "no stream",
    # No blocks: lists of attentions, of norms, of feed-forward networks.
    "xlm": "refused",
    # Keeps time before batch.
    "xlnet": "refused",
}
OF_IMAGE_TEXT_NOT_STEERED = {
    **dict.fromkeys(("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop"), "refused"),
    "vision-encoder-decoder": "refused",
    # A policy for robots.
    "pi0": "refused",
    # Fills in blocks of text by diffusion, with an encoder and a decoder.
    "diffusion_gemma": "refused",
    "qwen4_exp": "no stream",
    # Need timm, or more than their default configuration.
    **dict.fromkeys(("chameleon", "deepseek_ocr2", "emu3", "gemma3n"), "unjudged"),
    **dict.fromkeys(("fast_vlm", "granite4_vision", "perception_lm"), "unjudged"),
}


def not_steered(rows):
    return {row.model_type: row.verdict for row in rows if row.verdict != "right"}


@pytest.mark.slow
def test_at_least_95_percent_of_causal_language_models_are_found_and_the_rest_is_known():
    rows = list(survey("causal-lm"))
    assert not_steered(rows) == NOT_STEERED, report(rows)
    assert len(confirmed(rows)) >= 0.95 * len(rows)
    # Judged by what a forward pass computed, all but a few.
    assert sum(row.oracle == "values" for row in confirmed(rows)) >= 0.9 * len(rows)
    for row in rows:
        assert row.verdict != "refused" or "odesteer" in row.reason


@pytest.mark.slow
def test_text_decoders_of_image_text_models_are_found_and_the_rest_is_known():
    rows = list(survey("image-text-to-text"))
    assert not_steered(rows) == OF_IMAGE_TEXT_NOT_STEERED, report(rows)
    towers = ("vision", "visual", "image", "audio", "qformer", "encoder_layers")
    assert not [row for row in confirmed(rows) if any(tower in row.blocks for tower in towers)]


@pytest.mark.parametrize("markdown", [False, True])
def test_the_report_counts_and_gives_every_reason(markdown):
    right = Row("a", "A", "layers.0", 4, 32, "values", "right", "")
    several = Row("b", "B", "layers.0", 4, 32, "values", "no stream", "several streams")
    unknown = Row("c", "C", "", 0, 0, "none", "unjudged", "cannot be built")
    text = report([right, several, unknown, unknown], markdown)
    assert "found: 2 of 4 (50.0%), judged: 2 by values" in text
    assert "steer: 1 (25.0%)" in text
    assert "several streams" in text
    assert ("| c | C | unjudged | cannot be built |" in text) is markdown
