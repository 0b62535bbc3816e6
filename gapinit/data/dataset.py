"""The data stage: generate or find a dataset, check it and write its manifest."""

from __future__ import annotations

from pathlib import Path

from gapinit.artifacts.artifacts import sha256, write_json
from gapinit.artifacts.storage_errors import naming
from gapinit.config.yaml_files import check_settings, read_yaml
from gapinit.data.check import check_images
from gapinit.data.defects import Defects
from gapinit.data.folder import FolderSettings, load_folder
from gapinit.data.manifest import MANIFEST_VERSION, Kind, images_digest, write_manifest
from gapinit.data.pretraining import ALT_TEXT, CORPUS, read_pretraining
from gapinit.data.references import write_references
from gapinit.data.scenes.settings import ScenesSettings
from gapinit.errors import GapinitError


def read_dataset_settings(dataset_yaml: Path) -> ScenesSettings | FolderSettings:
    """Read a dataset file; with the key `generator` the dataset is generated, else a folder."""
    content = read_yaml(dataset_yaml)
    if "generator" in content:
        return check_settings(content, ScenesSettings, str(dataset_yaml))
    return check_settings(content, FolderSettings, str(dataset_yaml))


def dataset_kind(settings: ScenesSettings | FolderSettings) -> Kind:
    """Return the kind of a dataset's samples."""
    if isinstance(settings, FolderSettings):
        return settings.format
    kind = settings.kind()
    if kind is None:
        raise GapinitError(f"dataset '{settings.name}' is for pretraining only")
    return kind


def prepare_dataset(
    dataset_yaml: Path,
    output: Path,
    *,
    data_root: Path | None = None,
    annotations: Path | None = None,
) -> None:
    """Write `output/manifest.json` and `output/references/`.

    A generated dataset is first written into `output`, then read and checked as any other. The
    manifest is written last: a folder with a manifest is complete.
    """
    settings = read_dataset_settings(dataset_yaml)
    if isinstance(settings, FolderSettings):
        manifest = load_folder(settings, data_root, annotations)
    elif data_root is not None or annotations is not None:
        raise GapinitError(
            f"{dataset_yaml}: '{settings.name}' is generated and takes no data_root and no "
            "annotations. For your own folder use the dataset 'local'."
        )
    else:
        from gapinit.data.scenes.write import make_scenes

        with naming(output):
            (output / "manifest.json").unlink(missing_ok=True)
        make_scenes(settings, output)
        if settings.layout == "pretraining":
            _write_pretraining_manifest(settings.name, output)
            return
        manifest = load_folder(settings.as_folder(), output)
    write_references(manifest, output / "references")
    write_manifest(output / "manifest.json", manifest)


def _write_pretraining_manifest(name: str, output: Path) -> None:
    with Defects() as defects:
        pairs, corpus = read_pretraining(output, defects)
        images = dict.fromkeys(image for image, _ in pairs)
        checked = check_images(images, defects)
    content = {
        "kind": "pretraining",
        "manifest_version": MANIFEST_VERSION,
        "name": name,
        "root": ".",
        "annotations": {file: sha256(output / file) for file in (ALT_TEXT, CORPUS)},
        "images_digest": images_digest(checked, output),
        "counts": {"images": len(images), "alt_texts": len(pairs), "corpus_lines": len(corpus)},
    }
    write_json(output / "manifest.json", content)
