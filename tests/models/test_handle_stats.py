"""Statistics of a handle for callbacks at every pass and for Prometheus."""

import re
import threading

import pytest
import torch
from tests.helpers.models import block_outputs, constant, model, padded, prompt, quadratic

import odesteer as ods
from odesteer.models.hooks.stats import Counts, StepStats, exposition
from odesteer.ode import Result

IDS = torch.cat([prompt(9, seed=1), prompt(9, seed=2), prompt(9, seed=3)])
SAMPLE = re.compile(r"^(odesteer_\w+)\{(.*)\} (\S+)$")


def samples(text: str) -> dict[tuple[str, str], float]:
    """As the format asks for: a sample belongs to the family above it, and comes once."""
    found: dict[tuple[str, str], float] = {}
    family = ""
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            family, kind = line.split()[2:]
            assert kind in ("counter", "summary")
        elif not line.startswith("# HELP "):
            name, labels, value = SAMPLE.match(line).groups()  # type: ignore[union-attr]
            assert name in (family, f"{family}_sum", f"{family}_count")
            assert (name, labels) not in found
            found[name, labels] = float(value)
    return found


def test_a_callback_is_told_every_pass_token_by_token() -> None:
    net, steering, told = model(), quadratic(), list[StepStats]()
    plain = block_outputs(net, IDS)[0][1].reshape(-1, steering.hidden_size)
    with steering.attach(net, positions="all") as handle:
        handle.subscribe(told.append)
        net(input_ids=IDS)
        net.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)
    one = told[0]
    assert (one.layer, one.tokens, len(told)) == (1, 27, 4)
    assert one.rows.tolist() == [0] * 9 + [1] * 9 + [2] * 9
    assert torch.allclose(one.log_odds_before, steering.log_odds(plain), atol=1e-4)
    assert torch.allclose(one.log_odds_after, steering.log_odds(steering(plain)), atol=1e-4)
    assert torch.allclose(one.displacement, (steering(plain) - plain).norm(dim=-1), atol=1e-4)
    assert [each.tokens for each in told[1:]] == [27, 3, 3]


def test_only_tokens_that_were_chosen_are_told_with_their_rows() -> None:
    net, told = model(), list[StepStats]()
    ids, mask = padded([prompt(4), prompt(6, seed=1)])
    with constant().attach(net, positions="all") as handle:
        handle.subscribe(told.append)
        net(input_ids=ids, attention_mask=mask)
    assert told[0].rows.tolist() == [0] * 4 + [1] * 6
    assert told[0].log_odds_before is None


def test_a_callback_ends_by_itself_and_measuring_with_it() -> None:
    net, one, other = model(), list[StepStats](), list[StepStats]()
    with quadratic().attach(net) as handle:
        end = handle.subscribe(one.append)
        handle.subscribe(other.append)
        net(input_ids=IDS)
        end()
        end()
        net(input_ids=IDS)
    assert (len(one), len(other)) == (1, 2)


def test_what_a_callback_raises_reaches_the_caller_and_the_model_is_clean_after() -> None:
    def broken(_: StepStats) -> None:
        raise LookupError("no monitor")

    net = model()
    plain = net(input_ids=IDS).logits
    with pytest.raises(LookupError, match="no monitor"), quadratic().attach(net) as handle:
        handle.subscribe(broken)
        net(input_ids=IDS)
    assert torch.equal(net(input_ids=IDS).logits, plain)


def test_prometheus_reads_what_stats_say() -> None:
    net = model()
    with quadratic().attach(net, positions="all", measure=True) as handle:
        net(input_ids=IDS)
        stats, found = handle.stats(), samples(handle.prometheus("good"))
    labels = 'steering="good",layer="1"'
    assert found["odesteer_steered_tokens_total", labels] == stats["steered"] == 27
    assert found["odesteer_moved_tokens_total", labels] == 27 * stats["moved"]
    for name in ("displacement", "relative_displacement"):
        total = found[f"odesteer_{name}_total", labels]
        assert total / 27 == pytest.approx(stats[name])
    for name in ("log_odds_before", "log_odds_after"):
        assert found[f"odesteer_{name}_count", labels] == 27
        assert found[f"odesteer_{name}_sum", labels] / 27 == pytest.approx(stats[name])


def test_prometheus_counts_how_tokens_ended():
    net = model()
    target = quadratic().with_strength(ods.Target(0.6, budget=0.5))
    with target.attach(net, positions="all", measure=True) as handle:
        net(input_ids=IDS)
        stats, found = handle.stats(), samples(handle.prometheus("good"))
    counts = {
        labels.split('result="')[1][:-1]: value
        for (name, labels), value in found.items()
        if name == "odesteer_ended_tokens_total"
    }
    assert set(counts) == {each.name.lower() for each in Result}
    assert sum(counts.values()) == 27
    assert all(value == pytest.approx(27 * stats[name]) for name, value in counts.items())


def test_unmeasured_only_tokens_are_exported() -> None:
    net = model()
    with constant().attach(net) as handle:
        net(input_ids=IDS)
    labels = 'steering="custom",layer="1"'
    assert samples(handle.prometheus()) == {
        ("odesteer_tokens_total", labels): 27,
        ("odesteer_steered_tokens_total", labels): 3,
    }


def test_the_names_are_those_of_the_server() -> None:
    from pathlib import Path

    import odesteer

    folder = Path(odesteer.__file__).parent / "backends" / "vllm"
    served = re.findall(
        r'"(odesteer_\w+)", ?"|"(odesteer_displacement)"',
        (folder / "middleware.py").read_text(),
    )
    names = {f"{a or b}_total" for a, b in served}
    sums = {"displacement": 1.0}
    ours = {name for name, _ in samples(exposition([Counts("a", 1, 1, 1, sums)]))}
    assert names == {"odesteer_steered_tokens_total", "odesteer_displacement_total"} <= ours


def test_several_layers_tell_each_and_are_one_text() -> None:
    net, told = model(), list[StepStats]()
    both = ods.Steering.of((quadratic(0), quadratic(1)))
    with both.attach(net, measure=True) as handles:
        end = handles.subscribe(told.append)
        net(input_ids=IDS)
        end()
        net(input_ids=IDS)
        found = samples(handles.prometheus())
    assert [one.layer for one in told] == [0, 1]
    for layer in (0, 1):
        labels = f'steering="custom",layer="{layer}"'
        assert found["odesteer_steered_tokens_total", labels] == 6


def test_one_steering_on_two_models_is_one_sample() -> None:
    twice = [Counts('a "b"\\', 3, 5, 2, {"displacement": 1.5})] * 2
    found = samples(exposition(twice))
    labels = 'steering="a \\"b\\"\\\\",layer="3"'
    assert found["odesteer_displacement_total", labels] == 3.0
    assert exposition([]) == ""


def test_threads_lose_no_token() -> None:
    net, told = model(), list[StepStats]()
    with quadratic().attach(net, positions="all", measure=True) as handle:
        handle.subscribe(told.append)

        def work() -> None:
            with torch.no_grad():
                for _ in range(20):
                    net(input_ids=IDS)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = samples(handle.prometheus())
    assert len(told) == 80
    assert found["odesteer_tokens_total", 'steering="custom",layer="1"'] == 80 * 27


def test_a_compiled_model_tells_as_well() -> None:
    net, told = model(), list[StepStats]()
    with quadratic().attach(net, positions="all") as handle:
        handle.subscribe(told.append)
        compiled = torch.compile(net, backend="eager")
        with torch.no_grad():
            compiled(input_ids=IDS)
            compiled(input_ids=IDS)
    assert [one.tokens for one in told] == [27, 27]


def test_a_trace_is_a_mask_of_the_steered_tokens() -> None:
    net = model()
    ids, mask = padded([prompt(4), prompt(6, seed=1)])
    how = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with constant(strength=5.0).attach(net, positions="prompt[:2]+generated[1:]") as handle:
        with pytest.raises(ValueError, match="no trace yet"):
            handle.trace()
        net(input_ids=ids[:, :3])
        tokens = net.generate(ids, **how)
        net.generate(ids, **how)
    trace = handle.trace()
    assert trace.int().tolist() == [[0, 0, 1, 1, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0, 1, 1]]
    with constant(strength=5.0).attach(net, positions=trace, rows=[1]) as handle:
        again = net.generate(ids, **how)
    assert torch.equal(again[1], tokens[1]) and not torch.equal(again[0], tokens[0])
    assert torch.equal(handle.trace(), trace & torch.tensor([[False], [True]]))


def test_each_thread_has_a_trace_of_its_own() -> None:
    net, traces = model(), {}
    with constant().attach(net, positions="all") as handle:

        def read(length: int) -> None:
            net(input_ids=prompt(length))
            traces[length] = handle.trace()

        read(5)
        thread = threading.Thread(target=read, args=(3,))
        thread.start()
        thread.join()
        assert {n: trace.shape[1] for n, trace in traces.items()} == {5: 5, 3: 3}
        assert handle.trace().shape == (1, 5)
