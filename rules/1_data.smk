# Stage 1, data: from nothing (or a local folder) to checked datasets and a backbone.
#
# in:   config/datasets/<dataset>.yaml, config/backbones/<backbone>.yaml, config/downloads.yaml
# out:  <data>/downloads/<file>, <data>/unpacked/<download>.json   downloads
#       results/1_data/<dataset>/manifest.json      samples of every split
#       results/1_data/<dataset>/references/        references for scoring predictions
#       results/1_backbones/<backbone>/             a save_pretrained folder
#
# Datasets and backbones do not depend on the configuration: all configurations share them.
#
# Snakemake's cache (`--cache`) identifies a job by `params` and by its shell text with unfilled
# wildcards. So every cached rule, and every rule before it, passes wildcards through `params`.

DATA = f"{RESULTS}/1_data"
BACKBONES = f"{RESULTS}/1_backbones"
RETRIEVED = CONFIG.data


rule retrieve:
    output:
        f"{RETRIEVED}/downloads/{{file}}",
    log:
        f"{RETRIEVED}/logs/{{file}}.retrieve.log",
    wildcard_constraints:
        file="|".join(map(re.escape, FILES)),
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=600,
        runtime=1440,
    params:
        table=DOWNLOADS_TABLE,
        name=download_of,
        mirror=f"--mirror {shlex.quote(CONFIG.mirror)}" if CONFIG.mirror else "",
    message:
        "Retrieve {wildcards.file}"
    shell:
        "python -m gapinit --log-file {log:q} data retrieve --downloads {params.table:q}"
        " --name {params.name:q} --output {output:q} {params.mirror}"


# High priority: instructions for manual downloads appear before gigabytes are downloaded.
rule unpack:
    input:
        archive=archive_of,
    output:
        f"{RETRIEVED}/unpacked/{{download}}.json",
    log:
        f"{RETRIEVED}/logs/{{download}}.unpack.log",
    wildcard_constraints:
        download="|".join(map(re.escape, DOWNLOADS)),
    priority: 200
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=60,
        runtime=240,
    params:
        table=DOWNLOADS_TABLE,
        name=lambda wildcards: wildcards.download,
        folder=subpath(output[0], ancestor=2),
        archive=lambda wildcards, input: [f"--archive={path}" for path in input],
    message:
        "Unpack {wildcards.download}"
    shell:
        "python -m gapinit --log-file {log:q} data unpack --downloads {params.table:q}"
        " --name {params.name} {params.archive:q} --root {params.folder:q}"
        " --output {output:q}"


# The check of a dataset uses every core, so it runs alone and before expensive jobs. On a Slurm
# node Snakemake evaluates `threads` again and must not get more than it requested.
rule dataset:
    input:
        settings=FOLDER / "config/datasets/{dataset}.yaml",
        files=dataset_files,
    output:
        manifest=f"{DATA}/{{dataset}}/manifest.json",
        references=directory(f"{DATA}/{{dataset}}/references"),
    log:
        f"{DATA}/logs/{{dataset}}.log",
    benchmark:
        f"{DATA}/benchmarks/{{dataset}}.tsv"
    wildcard_constraints:
        dataset=r"(?![^/]*-pretraining/)[A-Za-z0-9][A-Za-z0-9._-]*",
    priority: 100
    conda:
        "../envs/gapinit.yaml"
    threads: (workflow.resource_settings.cores if workflow.is_main_process else None) or 1
    resources:
        expected_s=8,
        mem_mb=memory(2000),
        runtime=60,
    params:
        folder=subpath(output.manifest, parent=True),
        local=local_options,
        version=PLAN.version("data"),
    message:
        "Dataset {wildcards.dataset}: generate or read it, and check every entry"
    shell:
        "python -m gapinit --log-file {log:q} data prepare --dataset {input.settings:q}"
        " --output {params.folder:q} {params.local}"


rule pretraining_data:
    input:
        settings=FOLDER / "config/datasets/{dataset}-pretraining.yaml",
    output:
        manifest=f"{DATA}/{{dataset}}-pretraining/manifest.json",
    log:
        f"{DATA}/logs/{{dataset}}-pretraining.log",
    benchmark:
        f"{DATA}/benchmarks/{{dataset}}-pretraining.tsv"
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=16,
        mem_mb=memory(2000),
        runtime=60,
    params:
        folder=subpath(output.manifest, parent=True),
        version=PLAN.version("data"),
    message:
        "Pretraining texts and images {wildcards.dataset}-pretraining"
    shell:
        "python -m gapinit --log-file {log:q} data prepare --dataset {input.settings:q}"
        " --output {params.folder:q}"


# Weights depend on the number of threads, so a param fixes it even if fewer cores are available.
rule backbone:
    input:
        settings=FOLDER / "config/backbones/{backbone}.yaml",
        data=pretraining_manifest,
    output:
        directory(f"{BACKBONES}/{{backbone}}"),
    log:
        f"{BACKBONES}/logs/{{backbone}}.log",
    cache: "omit-software"
    conda:
        "../envs/gapinit.yaml"
    threads: resource("threads", 2)
    resources:
        expected_s=240,
        mem_mb=memory(3000),
        runtime=60,
        gpu=0,
    params:
        data=lambda wildcards, input: [f"--data={Path(path).parent}" for path in input.data],
        threads=resource("threads", 2),
        version=PLAN.version("backbone"),
    message:
        "Backbone {wildcards.backbone}: pretrain it, or download its weights"
    shell:
        "env HF_HUB_OFFLINE=0 python -m gapinit --log-file {log:q} backbone --settings {input.settings:q}"
        " {params.data:q} --output {output:q} --threads {params.threads}"
