# Stage 1, data: from nothing (or a local folder) to checked datasets and a backbone.
#
# in:   config/datasets/<dataset>.yaml, config/backbones/<backbone>.yaml
# out:  results/1_data/<dataset>/manifest.json      images and captions of every split
#       results/1_data/<dataset>/references_test.json
#       results/1_backbones/<backbone>/             a save_pretrained folder
#
# Datasets and backbones do not depend on the configuration: every configuration shares them.

DATA = f"{RESULTS}/1_data"
BACKBONES = f"{RESULTS}/1_backbones"


def local_annotations(wildcards):
    """The annotation files of a local folder, so that an edit of them reruns what follows."""
    if PLAN.dataset_setting(wildcards.dataset, "generator"):
        return []
    return PLAN.annotation_files(wildcards.dataset)


def local_options(wildcards):
    """Where a local folder is, as options of the command; nothing for generated datasets."""
    return PLAN.local_options(wildcards.dataset)


# A dataset is checked alone, before anything expensive starts beside it: it takes every core.
rule dataset:
    message:
        "Dataset {wildcards.dataset}: make or read it, and check every entry"
    input:
        settings=FOLDER / "config/datasets/{dataset}.yaml",
        annotations=local_annotations,
    output:
        manifest=f"{DATA}/{{dataset}}/manifest.json",
        references=f"{DATA}/{{dataset}}/references_test.json",
    params:
        folder=subpath(output.manifest, parent=True),
        local=local_options,
        version=PLAN.version("data"),
    log:
        f"{DATA}/logs/{{dataset}}.log",
    benchmark:
        f"{DATA}/benchmarks/{{dataset}}.tsv"
    conda:
        "../envs/gapinit.yaml"
    priority: 100
    threads: workflow.cores or 1
    resources:
        mem_mb=2000,
        runtime=60,
    wildcard_constraints:
        dataset=r"(?![^/]*-pretraining/)[A-Za-z0-9][A-Za-z0-9._-]*",
    shell:
        "python -m gapinit --log-file {log:q} data prepare --dataset {input.settings:q}"
        " --output {params.folder:q} {params.local}"


rule pretraining_data:
    message:
        "Pretraining texts and images {wildcards.dataset}-pretraining"
    input:
        settings=FOLDER / "config/datasets/{dataset}-pretraining.yaml",
    output:
        manifest=f"{DATA}/{{dataset}}-pretraining/manifest.json",
    params:
        folder=subpath(output.manifest, parent=True),
        version=PLAN.version("data"),
    log:
        f"{DATA}/logs/{{dataset}}-pretraining.log",
    benchmark:
        f"{DATA}/benchmarks/{{dataset}}-pretraining.tsv"
    conda:
        "../envs/gapinit.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    shell:
        "python -m gapinit --log-file {log:q} data prepare --dataset {input.settings:q}"
        " --output {params.folder:q}"


def pretraining_manifest(wildcards):
    """What a backbone is pretrained on."""
    dataset = PLAN.backbone_setting(wildcards.backbone, "pretraining")
    return f"{DATA}/{dataset}/manifest.json"


rule backbone:
    message:
        "Backbone {wildcards.backbone}: pretrain it (language first, then alignment)"
    input:
        settings=FOLDER / "config/backbones/{backbone}.yaml",
        data=pretraining_manifest,
    output:
        config=f"{BACKBONES}/{{backbone}}/config.json",
        weights=f"{BACKBONES}/{{backbone}}/model.safetensors",
    params:
        data=subpath(input.data, parent=True),
        folder=subpath(output.config, parent=True),
        version=PLAN.version("backbone"),
    log:
        f"{BACKBONES}/logs/{{backbone}}.log",
    benchmark:
        f"{BACKBONES}/benchmarks/{{backbone}}.tsv"
    conda:
        "../envs/gapinit.yaml"
    threads: 2
    resources:
        mem_mb=3000,
        runtime=60,
        gpu=0,
    shell:
        "python -m gapinit --log-file {log:q} backbone --settings {input.settings:q}"
        " --data {params.data:q} --output {params.folder:q} --threads {threads}"
