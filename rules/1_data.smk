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


# A dataset is checked alone, before anything expensive starts beside it: it takes every core.
rule dataset:
    input:
        settings=FOLDER / "config/datasets/{dataset}.yaml",
        annotations=local_annotations,
    output:
        manifest=f"{DATA}/{{dataset}}/manifest.json",
        references=f"{DATA}/{{dataset}}/references_test.json",
    log:
        f"{DATA}/logs/{{dataset}}.log",
    benchmark:
        f"{DATA}/benchmarks/{{dataset}}.tsv"
    wildcard_constraints:
        dataset=r"(?![^/]*-pretraining/)[A-Za-z0-9][A-Za-z0-9._-]*",
    priority: 100
    conda:
        "../envs/gapinit.yaml"
    threads: workflow.resource_settings.cores or 1
    resources:
        expected_s=8,
        mem_mb=2000,
        runtime=60,
    params:
        folder=subpath(output.manifest, parent=True),
        local=local_options,
        version=PLAN.version("data"),
    message:
        "Dataset {wildcards.dataset}: make or read it, and check every entry"
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
        mem_mb=2000,
        runtime=60,
    params:
        folder=subpath(output.manifest, parent=True),
        version=PLAN.version("data"),
    message:
        "Pretraining texts and images {wildcards.dataset}-pretraining"
    shell:
        "python -m gapinit --log-file {log:q} data prepare --dataset {input.settings:q}"
        " --output {params.folder:q}"


rule backbone:
    input:
        settings=FOLDER / "config/backbones/{backbone}.yaml",
        data=pretraining_manifest,
    output:
        config=f"{BACKBONES}/{{backbone}}/config.json",
        weights=f"{BACKBONES}/{{backbone}}/model.safetensors",
    log:
        f"{BACKBONES}/logs/{{backbone}}.log",
    benchmark:
        f"{BACKBONES}/benchmarks/{{backbone}}.tsv"
    conda:
        "../envs/gapinit.yaml"
    threads: 2
    resources:
        expected_s=240,
        mem_mb=3000,
        runtime=60,
        gpu=0,
    params:
        data=subpath(input.data, parent=True),
        folder=subpath(output.config, parent=True),
        version=PLAN.version("backbone"),
    message:
        "Backbone {wildcards.backbone}: pretrain it (language first, then alignment)"
    shell:
        "python -m gapinit --log-file {log:q} backbone --settings {input.settings:q}"
        " --data {params.data:q} --output {params.folder:q} --threads {threads}"
