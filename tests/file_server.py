"""A file server on 127.0.0.1 that a test can tell to misbehave, and the files that it serves."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import threading
import zipfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

JPEG = "train2014/COCO_train2014_000000000009.jpg"


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def jpeg(seed: int = 0, size: int = 32) -> bytes:
    buffer = io.BytesIO()
    pixels = random.Random(seed).randbytes(size * size * 3)
    Image.frombytes("RGB", (size, size), pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


PHOTO = jpeg(0, 480)  # of several pieces


def published() -> dict[str, bytes]:
    """Make small files in the formats of the real ones."""
    images = {JPEG: PHOTO, "__MACOSX/._x": b"x", "train2014/": b""}
    karpathy = json.dumps({"dataset": "coco", "images": []}).encode()
    pope = {"question_id": 1, "image": "COCO_val2014_000000000042.jpg", "label": "yes"}
    return {
        "train2014.zip": zipped(images, zipfile.ZIP_STORED),
        "caption_datasets.zip": zipped({"dataset_coco.json": karpathy}),
        "coco_pope_random.json": json.dumps(pope).encode(),
    }


class Site:
    """The server: its files, its faults, and the requests that it received."""

    def __init__(self) -> None:
        self.reset({})
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def reset(self, files: dict[str, bytes]) -> None:
        """Serve these files without any fault."""
        self.files = files
        self.asked: list[dict[str, Any]] = []
        self.break_after: list[int] = []  # bytes of the body, for one request after another
        self.statuses: list[int] = []  # instead of an answer, for one request after another
        self.resumes = True
        self.headers: dict[str, str] = {}  # sent in place of the right ones
        self.redirect = ""
        self.stall: threading.Event | None = None

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.rpartition("/")[2]
        asked = {"path": handler.path, "range": handler.headers["Range"], "sent": 0}
        self.asked.append(asked)
        if self.redirect:
            handler.send_response(302)
            handler.send_header("Location", self.redirect)
            handler.end_headers()
            return
        if self.statuses or name not in self.files:
            handler.send_error(self.statuses.pop(0) if self.statuses else 404)
            return
        content = self.files[name]
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
        start = int(wanted[1]) if wanted and self.resumes else 0
        headers = {}
        if start and start >= len(content):
            handler.send_response(416)
            headers["Content-Range"] = f"bytes */{len(content)}"
        elif start:
            handler.send_response(206)
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        else:
            handler.send_response(200)
        body = content[start:]
        headers["Content-Length"] = str(len(body))
        for key, value in {**headers, **self.headers}.items():
            handler.send_header(key, value)
        handler.end_headers()
        stop = self.break_after.pop(0) if self.break_after else len(body)
        asked["sent"] = min(stop, len(body))
        handler.wfile.write(body[:stop])
        if self.stall is not None and stop < len(body):
            handler.wfile.flush()
            self.stall.wait(10)


class Table:
    """A table of downloads of a site's files, and where they are fetched."""

    def __init__(self, site: Site, path: Path) -> None:
        self.site, self.path = site, path

    def write(self, **changes: dict[str, Any]) -> Path:
        """Write the table, with changes of some entries."""
        pope = "coco_pope_random.json"
        content = {
            "images": self._entry("train2014.zip", "coco", "train2014", pinned=True),
            "splits": self._entry("caption_datasets.zip", "karpathy", "dataset_coco.json"),
            "pope": {**self._entry(pope, "coco/pope", pope), "unpack": False},
            "form": {
                "manual": "sign the form, put flickr30k-images/ into {folder}.",
                "folder": "flickr30k",
                "holds": ["flickr30k-images"],
            },
        }
        for name, change in changes.items():
            content[name] |= change
        self.path.write_text(yaml.safe_dump(content))
        return self.path

    def _entry(self, file: str, folder: str, held: str, pinned: bool = False) -> dict[str, Any]:
        content = self.site.files[file]
        digest = hashlib.sha256(content).hexdigest()
        known = {"bytes": len(content), "sha256": digest} if pinned else {}
        return {"url": f"{self.site.url}/{file}", "folder": folder, "holds": [held], **known}
