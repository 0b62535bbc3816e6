"""Print a diagnosis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gapinit.progress import print_table, show_bytes
from gapinit.workflow.doctor.gpu import BANDWIDTH, LOADING

if TYPE_CHECKING:
    from gapinit.workflow.doctor import Diagnosis


def print_diagnosis(found: Diagnosis) -> None:
    """Print downloads, disk space, GPU memory and time, work, and what is missing."""
    config = found.plan.config
    count = len(found.plan.rows)
    print(f"Configuration '{config.name}': {count} table{'s' * (count != 1)}.")
    _downloads(found)
    _disk(found)
    _gpu(found)
    _jobs(found)
    for note in found.notes:
        print(f"\nnote: {note}")
    if not found.missing:
        print("\nNothing is missing.")
        return
    print(f"\nMissing, {len(found.missing)}:")
    for problem in found.missing:
        print(f"  - {problem}")


def _downloads(found: Diagnosis) -> None:
    if found.files:
        rows = []
        for file in found.files:
            about = "" if file.known else "~"
            size = "?" if file.bytes is None else f"{about}{show_bytes(file.bytes)}"
            rows.append((file.name, size, file.state, ", ".join(file.datasets)))
        fetched = [file for file in found.files if file.state == "to fetch"]
        total = sum(file.bytes or 0 for file in fetched)
        rows.append(("total", show_bytes(total), "to fetch", f"{len(fetched)} files"))
        print_table("Datasets' files", ("file", "size", "state", "read by"), rows)
    listed = []
    for one in found.weights:
        size = "?" if one.bytes is None else show_bytes(one.bytes) if one.bytes else ""
        licence = f"{one.licence} (accept it first)" if one.gated else one.licence
        listed.append((one.backbone, one.repository, size, licence, one.state))
    columns = ("backbone", "repository", "weights", "licence", "state")
    print_table("Backbones", columns, listed)
    fetched_bytes = sum(one.bytes or 0 for one in found.weights if one.state == "to fetch")
    if fetched_bytes:
        print(f"  weights to fetch: {show_bytes(fetched_bytes)}")


def _disk(found: Diagnosis) -> None:
    totals: dict[tuple[str, str], list[int]] = {}
    for need in found.needs:
        # The runs of one backbone share a line.
        totals.setdefault((need.kind, need.name), []).append(0 if need.there else need.bytes)
    rows = [
        (kind, name, str(len(counts)), show_bytes(sum(counts)) if sum(counts) else "there")
        for (kind, name), counts in totals.items()
    ]
    kinds = dict.fromkeys(kind for kind, _ in totals)
    for kind in kinds:
        whole = sum(sum(counts) for (one, _), counts in totals.items() if one == kind)
        rows.append((kind, "total", "", show_bytes(whole)))
    title = f"Disk space, to be written below {found.plan.config.results}/{found.plan.config.name}"
    print_table(title, ("stage", "for", "files", "size"), rows)
    for disk in found.disks:
        enough = "enough" if disk.bytes <= disk.free else "NOT ENOUGH"
        print(
            f"  total with downloads: {show_bytes(disk.bytes)} at {disk.path}, "
            f"{show_bytes(disk.free)} free: {enough}"
        )


def _gpu(found: Diagnosis) -> None:
    rows = []
    for work in found.work:
        hours = f"{work.seconds / 3600:.2f}"
        rows.append((work.stage, work.backbone, str(work.jobs), show_bytes(work.memory), hours))
    total = sum(work.seconds for work in found.work) / 3600
    rows.append(("total", "", str(sum(work.jobs for work in found.work)), "", f"{total:.2f}"))
    columns = ("stage", "backbone", "jobs", "GPU memory", "GPU-hours")
    print_table("GPU jobs (estimates)", columns, rows)
    cards = ", ".join(f"{gpu.name} ({show_bytes(gpu.bytes)})" for gpu in found.gpus) or "none"
    print(f"  GPUs of this machine: {cards}")
    print(
        f"  ASSUMED: {found.tflops:g} TFLOP/s in bfloat16 (--tflops), an eighth of it in float32, "
        f"{BANDWIDTH / 1e12:g} TB/s in decoding;\n"
        f"  every job loads its weights at {show_bytes(LOADING)}/s. Reading images, tokenising and "
        "scoring are not counted."
    )
    if total:
        days = f"{total:.1f} hours" if total < 48 else f"{total / 24:.1f} days"
        print(f"  On one GPU: {days}")


def _jobs(found: Diagnosis) -> None:
    jobs = found.jobs
    rows = (
        ("datasets", len(jobs.datasets)),
        ("backbones", len(jobs.backbones)),
        ("states", len(jobs.states)),
        ("gaps", len(jobs.gaps)),
        ("trunks", len(jobs.trunks)),
        ("training runs", len(jobs.trained)),
        ("feature files", len(jobs.features)),
        ("predictions, each scored", len(jobs.predictions)),
        ("total; seeds and datasets of a row share jobs", jobs.count),
    )
    print_table("Work", ("", ""), [(name, f"{count:,}") for name, count in rows])
