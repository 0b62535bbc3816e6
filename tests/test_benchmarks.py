"""What the benchmark programs share: turns, medians, arithmetic, the table. Nothing is timed."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.default_grid import (
    keep_times,
    kept_times,
    plan_of,
    read_times,
    rows_alone,
    run_alone,
)
from benchmarks.flops import Work, full_flops, products, tail_flops
from benchmarks.measure import Result, Spread, Target, alternate, ratios
from benchmarks.scaled import CONFIG
from benchmarks.table import BEGIN, END, draw, gain, read_results, redraw_table
from gapinit.config.yaml_files import read_yaml
from gapinit.errors import GapinitError
from gapinit.workflow.plan import make_plan
from gapinit.workflow.shared_jobs import evaluation_jobs


def result(value: float = 12.0, bound: Any = "at least", target: float = 10.0) -> Result:
    row = Target("a step", "the peer", Spread([value - 1, value, value + 1]), bound, target)
    return Result("step", [row], {"seconds": Spread([1.0, 2.0])}, {"turns": 3})


def test_turns_alternate_and_ratios_are_taken_turn_by_turn() -> None:
    called: list[str] = []
    own, theirs = iter([9.0, 1.0, 2.0, 4.0]), iter([9.0, 10.0, 10.0, 20.0])

    def ours() -> float:
        called.append("ours")
        return next(own)

    def peer() -> float:
        called.append("peer")
        return next(theirs)

    found = alternate(ours, peer, turns=3)
    assert found == ([1.0, 2.0, 4.0], [10.0, 10.0, 20.0]), "the warm-up is not kept"
    assert called[2:] == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert ratios(*found).values == [10.0, 5.0, 5.0] and ratios(*found).median == 5.0


def test_spread() -> None:
    spread = Spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (spread.median, spread.quartiles) == (3.0, (2.0, 4.0))
    assert spread.as_json()["min"] == 1.0 and spread.as_json()["n"] == 5
    assert Spread([7.0]).quartiles == (7.0, 7.0)
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread([])


@pytest.mark.parametrize(
    ("value", "bound", "met"),
    [
        (10.0, "at least", True),
        (9.9, "at least", False),
        (9.9, "at most", True),
        (11, "at most", 0),
    ],
)
def test_a_target_is_met_or_not(value: float, bound: str, met: bool) -> None:
    [row] = result(value, bound).as_json()["targets"]
    assert row["met"] == bool(met) and (gain(row) >= 1) == bool(met)


def test_the_table_is_redrawn_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n", encoding="utf-8")
    result().write(tmp_path)
    found = read_results(tmp_path, ["missing", "step"])
    redraw_table(readme, found)
    once = readme.read_text(encoding="utf-8")
    assert once.startswith("above\n") and once.endswith("below\n") and "old" not in once
    assert (
        "| a step | the peer | at least 10.00 × | 12.00 × (11.50 × to 12.50 ×, 3) | met |" in once
    )
    redraw_table(readme, found)
    assert readme.read_text(encoding="utf-8") == once
    draw(tmp_path / "figure.svg", found)
    assert "<svg" in (tmp_path / "figure.svg").read_text(encoding="utf-8")
    readme.write_text("no markers", encoding="utf-8")
    with pytest.raises(GapinitError, match="expected the markers"):
        redraw_table(readme, found)
    assert readme.read_text(encoding="utf-8") == "no markers"


def shape(d: int = 8, vocabulary: int = 50) -> Any:
    text = SimpleNamespace(hidden_size=d, ffn_dim=4 * d, vocab_size=vocabulary, num_hidden_layers=4)
    vision = SimpleNamespace(
        image_size=4, patch_size=2, hidden_size=4, intermediate_size=8, num_hidden_layers=1
    )
    former = SimpleNamespace(
        hidden_size=4,
        intermediate_size=8,
        num_hidden_layers=2,
        cross_attention_frequency=2,
        encoder_hidden_size=4,
    )
    return SimpleNamespace(
        get_text_config=lambda: text,
        vision_config=vision,
        qformer_config=former,
        num_query_tokens=2,
    )


def test_operations_are_those_of_a_module_counted_by_torch() -> None:
    """One adapted layer and the output matrix, counted by torch's own counter."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    work, d, vocabulary = Work([5, 5], [2, 2]), 8, 50
    linear = [torch.nn.Linear(d, d) for _ in range(4)] + [torch.nn.Linear(d, 4 * d)]
    linear += [torch.nn.Linear(4 * d, d), torch.nn.Linear(d, vocabulary)]
    for module in linear:
        module.requires_grad_(False)
    x, rows = torch.randn(work.tokens, d), torch.randn(work.learned, d)
    with FlopCounterMode(display=False) as counter:
        linear[0](x), linear[1](x), linear[2](rows)  # k, v and q have no backward product
        adapter = torch.zeros(d, requires_grad=True)
        linear[6](linear[5](linear[4](linear[3](rows + adapter)))).sum().backward()
    found = sum(2 * m * k * n for m, k, n in products(work, shape(), 1))
    assert found == counter.get_total_flops()


def test_the_tail_is_a_part_of_the_whole() -> None:
    work = Work([10, 12, 9], [3, 5, 2])
    assert 0 < tail_flops(work, shape(), 2) < full_flops(work, shape(), 2)
    assert tail_flops(work, shape(), 1) < tail_flops(work, shape(), 2)


def test_the_kept_jobs_are_those_of_the_default_grid() -> None:
    """Each job that the default plan asks for was measured in the run whose times are kept."""
    times, _ = kept_times()
    list(rows_alone(plan_of("scenes"), times))
    assert times.missing == 0


def test_rows_alone_add_up_their_jobs(tmp_path: Path) -> None:
    default, small = (read_yaml(CONFIG / f"{name}.yaml") for name in ("default", "test"))
    plan = make_plan(
        {**default, **small, "experiments": ["test-captioning"], "figures": [], "seeds": [1, 2]}
        | {"training": {**small["training"], "seeds_per_job": 2}},
        CONFIG,
    )
    runs = [run for rows in plan.rows.values() for row in rows for run in row.runs]
    out = tmp_path / "test" / "benchmarks"
    data, backbone = plan.in_domain, plan.config.backbone
    jobs = {
        out / "4_train" / row / f"seed{'-'.join(map(str, seeds))}.tsv": 5.0 * len(seeds)
        for seeds, rows in plan.chunks().items()
        for row in rows
    }
    for it in evaluation_jobs(plan):
        names = "_".join(it.seeds).replace("seed", "").replace("-", "_")
        for row in it.rows:
            folder = out / "5_evaluate" / row
            jobs[folder / f"predict_{it.name}.tsv"] = 2.0 * len(it.paths())
            for dataset in it.datasets:
                jobs[folder / f"score_{names}_on_{dataset}.tsv"] = 1.0 * len(it.seeds)
    jobs[out / "3_gap" / backbone / "in-domain-24.tsv"] = 0.5
    jobs[out / "5_evaluate" / "features" / backbone / f"{data}.tsv"] = 3.0
    jobs[tmp_path / "1_data" / "benchmarks" / f"{data}.tsv"] = 100.0
    logs = tmp_path / "test" / "logs"
    cached = {
        logs / "2_states" / backbone / f"{data}.log": 7.0,
        logs / "4_train" / "trunk" / backbone / data / "naive.log": 11.0,
        tmp_path / "1_backbones" / "logs" / f"{backbone}.log": 1000.0,
    }
    for path, value in jobs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\tcpu_time\n9\t{value}\n", encoding="utf-8")
    for path, value in cached.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"10 of 10\ntook 3.00 s, {value:.2f} s of CPU time\n", encoding="utf-8")
    jobs |= cached
    times = read_times(tmp_path, plan)
    assert times.total == pytest.approx(sum(jobs.values()))
    gap_init = next(run for run in runs if run.method == "gap-init" and not run.noise)
    zero_shot = next(run for run in runs if not run.trained)
    alone = run_alone(plan, gap_init, "test-captioning", times)
    assert alone == pytest.approx(7 + 0.5 + 11 * (gap_init.epochs or 1) + 5 + 3 + 2 + 1)
    assert run_alone(plan, zero_shot, "test-captioning", times) == pytest.approx(3 + 2 + 1)
    for given, made in rows_alone(plan, times):
        assert made == pytest.approx(given + 1100)
    keep_times(times, tmp_path / "kept.csv")
    kept, where = kept_times(tmp_path / "kept.csv")
    assert "cores" in where
    assert [*chain(*rows_alone(plan, kept))] == pytest.approx([*chain(*rows_alone(plan, times))])
    with pytest.raises(GapinitError, match="no benchmark files"):
        read_times(tmp_path / "elsewhere", plan)
    next(iter(cached)).write_text("interrupted\n", encoding="utf-8")
    with pytest.raises(GapinitError, match=r"\.log: the last line"):
        read_times(tmp_path, plan)
