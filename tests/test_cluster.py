"""Slurm profile and leftover jobs; `make test-cluster` tests with a real Slurm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gapinit.errors import GapinitError
from gapinit.workflow.cluster import cancel_leftover_jobs

ROOT = Path(__file__).parent.parent
OURS = "gapinit_11111111-2222-3333-4444-555555555555"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the logs of a killed Snakemake, and fake `squeue` and `scancel` programs."""
    folder = tmp_path / "a workflow"
    (folder / ".snakemake/log").mkdir(parents=True)
    (folder / ".snakemake/locks").mkdir()
    (folder / ".snakemake/locks/0.input.lock").touch()
    (folder / ".snakemake/log/1.snakemake.log").write_text(f"...\nSLURM run ID: {OURS}\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    queue = tmp_path / "queue"
    queue.write_text(f"7 {OURS}\n8 gapinit_another-run\n9 {OURS}\n10 {OURS}-not\n")
    for name, text in {
        "squeue": f"cat '{queue}'",
        "scancel": f'for one in "$@"; do sed -i "/^$one /d" \'{queue}\'; done',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return folder


def test_only_this_folders_jobs_are_cancelled_and_the_folder_is_unlocked(slurm: Path) -> None:
    assert cancel_leftover_jobs(slurm) == ["7", "9"]
    assert (slurm.parent / "queue").read_text() == f"8 gapinit_another-run\n10 {OURS}-not\n"
    assert not (slurm / ".snakemake/locks").exists()
    assert cancel_leftover_jobs(slurm) == []


def test_a_job_that_does_not_end_keeps_the_lock(slurm: Path) -> None:
    (slurm.parent / "bin/scancel").write_text("#!/bin/sh\n")
    with pytest.raises(GapinitError, match=r"have not ended: 7 9\. Nothing is unlocked"):
        cancel_leftover_jobs(slurm, wait=0.1)
    assert (slurm / ".snakemake/locks").exists()


def test_a_running_snakemake_is_an_error(slurm: Path) -> None:
    program = slurm / "snakemake"
    program.write_text("import time; time.sleep(60)")
    alive = subprocess.Popen([sys.executable, str(program)], cwd=slurm)
    try:
        with pytest.raises(GapinitError, match=rf"Snakemake still runs in .*process {alive.pid}\)"):
            cancel_leftover_jobs(slurm)
    finally:
        alive.kill()
        alive.wait()
    assert len((slurm.parent / "queue").read_text().splitlines()) == 4


def test_without_slurm_or_a_run_of_it_there_is_an_error(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GapinitError, match="no call of Snakemake with the Slurm profile"):
        cancel_leftover_jobs(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(GapinitError, match="'squeue' is not on PATH"):
        cancel_leftover_jobs(slurm)


def test_the_profile_names_existing_rules() -> None:
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())
    text = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    rules = set(re.findall(r"^rule (\w+):", text, flags=re.M))
    assert set(profile["groups"]) <= rules and set(profile["set-threads"]) <= rules
    # Rules whose names depend on the plan declare their group themselves.
    own = re.findall(r'^ +group:\n +"(\w+)"', text, flags=re.M)
    assert set(profile["group-components"]) <= {*profile["groups"].values(), *own}
    assert profile["retries"] > 0 and "attempt" in profile["default-resources"]["mem_mb"]
    assert profile["slurm-no-requeue"] is True
    # A GPU job requests memory and time; a small job shares a submission with others.
    alone = {"retrieve", "unpack", "dataset", "pretraining_data", "backbone"}
    for part in re.split(r"^ *rule(?: |(?=:))", text, flags=re.M)[1:]:
        name = part.partition(":")[0]
        if "gpu=1" in part:
            assert "mem_mb=backbone_memory(" in part and "runtime=" in part, part[:80]
        else:
            assert name in alone or name in profile["groups"] or "group:" in part, part[:80]


PLANNED = """
import json, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

root = Path(sys.argv[1])
with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
    workflow = api.workflow(
        resource_settings=ResourceSettings(cores=4),
        config_settings=ConfigSettings(
            configfiles=[root / "config/test.yaml"], config=json.loads(sys.argv[2])
        ),
        snakefile=root / "Snakefile",
    )
    workflow.dag().execute_workflow(executor="dryrun")
    jobs = [
        [job.rule.name, job.threads, dict(job.resources.items()), list(map(str, job.output))]
        for job in workflow._workflow.dag.jobs
    ]
print("JOBS" + json.dumps(jobs, default=str))
"""


@pytest.mark.slow
def test_requested_time_grows_with_the_work_of_a_job(tmp_path: Path) -> None:
    """Runtime grows with seeds and datasets; shards divide it."""
    configuration = {
        "seeds": [1, 2],
        "shards": {"predict": 3},
        "training": {"seeds_per_job": 2},
    }
    command = [sys.executable, "-c", PLANNED, str(ROOT), json.dumps(configuration)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    jobs = json.loads(done.stdout.rpartition("JOBS")[2])
    train = [job for job in jobs if job[0] == "train_1_2"]
    assert train
    for _, _, resources, _ in train:
        assert (resources["gpu"], resources["runtime"]) == (1, 960)
    predict = [job for job in jobs if job[0].startswith("predict_")]
    assert {len(output) for *_, output in predict} >= {2, 6}, "two seeds on one dataset and three"
    for _, _, resources, output in predict:
        assert resources["runtime"] == -(-240 * len(output) // 3)
        assert all(re.search(r"\.[123]-of-3\.answers\.json$", path) for path in output)
    gather = [job for job in jobs if job[0].startswith("gather_")]
    assert len(predict) == 3 * len(gather)
