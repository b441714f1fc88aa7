"""Checks of generation: every way of decoding agrees."""

import threading
from typing import Any

import torch

from odesteer.testing.suite.check import check, close, same
from odesteer.testing.suite.testbed import NEW, Testbed


@check("text")
def text(bench: Testbed) -> None:
    """Steering changes what is said, and only while it is on."""
    plain = bench.said(bench.model)
    with bench.attach() as steered:
        bench.changed(bench.said(steered.model), plain, "logits")
    same(bench.said(bench.model), plain, "logits after removal")


@check("cache")
def cache(bench: Testbed) -> None:
    """Generation with and without a cache says the same."""
    for name in bench.adapter.positions:
        with bench.attach(name) as steered:
            cached = bench.said(steered.model)
            close(bench.said(steered.model, use_cache=False), cached, name)


@check("meaning")
def meaning(bench: Testbed) -> None:
    """Every kind of positions means in generation what it says, from the first new token on."""
    for name in bench.adapter.positions:
        want = bench.slowly(name)
        with bench.attach(name) as steered:
            close(bench.said(steered.model), want, name)


@check("batch")
def batch(bench: Testbed) -> None:
    """A padded batch says what each prompt says alone."""
    for name in bench.adapter.positions:
        with bench.attach(name) as steered:
            together = bench.said(steered.model)
            for i, ids in enumerate(bench.prompts):
                close(together[i : i + 1], bench.said(steered.model, ids), f"{name}, prompt {i}")


@check("beams")
def beams(bench: Testbed) -> None:
    """Beam search with and without a cache says the same."""
    for name in bench.adapter.positions:
        with bench.attach(name) as steered:
            cached = bench.generate(steered.model, num_beams=2)
            uncached = bench.generate(steered.model, num_beams=2, use_cache=False)
            same(uncached, cached, name)


@check("sampling")
def sampling(bench: Testbed) -> None:
    """Sampling follows its seed, with and without a cache."""

    def sample(model: Any, seed: int, **how: Any) -> torch.Tensor:
        torch.manual_seed(seed)
        return bench.generate(model, do_sample=True, top_k=0, num_return_sequences=2, **how)

    with torch.random.fork_rng(devices=[]), bench.attach() as steered:
        one = sample(steered.model, 5)
        same(sample(steered.model, 5), one, "same seed")
        same(sample(steered.model, 5, use_cache=False), one, "without a cache")
        assert not torch.equal(sample(steered.model, 6), one), "another seed, the same tokens"


@check("assisted")
def assisted(bench: Testbed) -> None:
    """Assisted generation (a draft model, or tokens looked up in the prompt) says the same."""
    ids, draft = bench.prompts[1], bench.fresh(seed=1)
    for name in bench.adapter.positions:
        with bench.attach(name) as steered:
            want = bench.said(steered.model, ids)
            close(bench.said(steered.model, ids, assistant_model=draft), want, f"{name}, draft")
            looked_up = bench.said(steered.model, ids, prompt_lookup_num_tokens=3)
            close(looked_up, want, f"{name}, looked up")


@check("static")
def static(bench: Testbed) -> None:
    """A static cache says the same."""
    for name in bench.adapter.positions:
        with bench.attach(name) as steered:
            want = bench.said(steered.model)
            close(bench.said(steered.model, cache_implementation="static"), want, name)


@check("chunks")
def chunks(bench: Testbed) -> None:
    """A prompt that is read in chunks says the same."""
    for name in bench.adapter.positions:
        with bench.attach(name) as steered:
            want = bench.said(steered.model)
            close(bench.said(steered.model, prefill_chunk_size=4), want, name)


@check("embeddings")
def embeddings(bench: Testbed) -> None:
    """A prompt given as embeddings says the same."""
    ids = bench.prompts[1]
    embedded = bench.model.get_input_embeddings()(ids).detach()
    for name in bench.adapter.positions:
        with bench.attach(name) as steered:
            want = bench.said(steered.model, ids)
            close(bench.said(steered.model, ids, inputs_embeds=embedded), want, name)


@check("loop")
def loop(bench: Testbed) -> None:
    """A decoding loop written by hand says what `generate` says."""
    for name in bench.adapter.positions:
        with bench.attach(name) as steered, torch.no_grad():
            want = bench.said(steered.model, bench.prompts[1])
            ids, past, said = bench.prompts[1], dict[str, Any](), []
            for _ in range(NEW):
                out = steered.model(input_ids=ids, use_cache=True, **past)
                key = "cache_params" if hasattr(out, "cache_params") else "past_key_values"
                past = {key: getattr(out, key)}
                said.append(out.logits[:, -1])
                ids = said[-1].argmax(dim=-1, keepdim=True)
            close(torch.stack(said, dim=1), want, name)


@check("threads")
def threads(bench: Testbed) -> None:
    """Two threads on one steered model say what each says alone."""
    results: dict[int, list[torch.Tensor]] = {}
    with bench.attach() as steered:
        want = [bench.generate(steered.model, ids) for ids in bench.prompts[:2]]

        def work(i: int) -> None:
            results[i] = [bench.generate(steered.model, bench.prompts[i]) for _ in range(3)]

        running = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    assert set(results) == {0, 1}, "a thread failed"
    for i, rounds in results.items():
        for tokens in rounds:
            same(tokens, want[i], f"thread {i}")
