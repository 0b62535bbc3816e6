"""Read the table of downloads, `config/downloads.yaml`: each file's URL, checksum and folder.

The Snakefile reads the table every time that Snakemake parses it.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from gapinit.config.yaml_files import Settings, check_settings, read_yaml
from gapinit.data.locate import leaves_root
from gapinit.errors import GapinitError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
# Scheme, host, path; its last part is the file name, here and on a mirror.
URL = r"^https?://[^\s/?#@]+(/[^\s?#]*)?/[A-Za-z0-9][A-Za-z0-9._-]*(\?[^\s#]*)?$"


def _stays_inside(path: str) -> str:
    if not path or leaves_root(path):
        raise ValueError("expected a relative path that does not leave its folder")
    return path


Inside = Annotated[str, AfterValidator(_stays_inside)]


class Download(Settings):
    """One file of a dataset: downloaded from `url`, or (`manual`) provided by the user.

    `folder` is relative to the data folder. `holds` lists paths, relative to `folder`, that must
    exist after the file is unpacked (with `unpack: false`: copied there).
    """

    url: str | None = Field(default=None, pattern=URL)
    bytes: int | None = Field(default=None, ge=1)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    folder: Inside
    unpack: bool = True
    holds: tuple[Inside, ...] = Field(min_length=1)
    manual: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _url_or_manual(self) -> Download:
        if (self.url is None) == (self.manual is None):
            raise ValueError("expected either 'url' or 'manual'")
        if self.manual is not None:
            for key in ("bytes", "sha256"):
                if getattr(self, key) is not None:
                    raise ValueError(f"'{key}' needs 'url': with 'manual' nothing is downloaded")
        return self

    @property
    def file_name(self) -> str:
        """The file's name, here and on a mirror; empty for a manual entry."""
        return urlsplit(self.url or "").path.rpartition("/")[2]


def read_downloads(table: Path) -> dict[str, Download]:
    """Read and check the whole table; one error lists all wrong entries."""
    downloads: dict[str, Download] = {}
    problems: list[str] = []
    for name, entry in read_yaml(table).items():
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            problems.append(f"{table}: name {name!r}: expected letters, digits, '.', '_' and '-'")
            continue
        try:
            downloads[name] = check_settings(entry, Download, f"{table}: {name}")
        except GapinitError as error:
            problems.append(str(error))
    names = Counter(download.file_name.casefold() for download in downloads.values())
    for name, download in downloads.items():
        if download.url is not None and names[download.file_name.casefold()] > 1:
            problems.append(
                f"{table}: {name}: another entry has the file name '{download.file_name}'; "
                "file names must be unique, since a mirror is one flat folder"
            )
    if problems:
        raise GapinitError("\n".join(problems))
    return downloads


def find_download(table: Path, name: str) -> Download:
    """Return one entry of the table; an unknown name is an error that lists the entries."""
    downloads = read_downloads(table)
    if name not in downloads:
        close = difflib.get_close_matches(name, downloads, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"it has: {', '.join(downloads)}"
        raise GapinitError(f"{table}: no entry '{name}' ({hint})")
    return downloads[name]


def missing_paths(download: Download, data_folder: Path) -> list[Path]:
    """Return the paths of `holds` that do not exist."""
    folder = Path(data_folder) / download.folder
    return [folder / path for path in download.holds if not (folder / path).exists()]


def instructions(name: str, download: Download, data_folder: Path | str) -> str:
    """Return the instructions to the user for a manual entry, with its folder filled in."""
    folder = Path(data_folder) / download.folder
    text = " ".join((download.manual or "").split()).replace("{folder}", str(folder))
    return f"{name} has to be downloaded by hand: {text}"
