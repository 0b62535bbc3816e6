"""What can be wrong with images, Karpathy splits and COCO captions, and what is then told."""

from __future__ import annotations

from typing import Any

from PIL import Image

from .damages import (
    Change,
    Damages,
    Section,
    copy,
    edit,
    link_out,
    remove,
    truncate,
    without,
    write,
)
from .dataset_folders import name_2014

IMAGE = "images/train2014/COCO_train2014_000000000002.jpg"
IMAGE_ENTRY = "named by dataset_coco.json images[1]"
K = "dataset_coco.json"
C = "annotations/captions_train2017.json"
V = "annotations/captions_val2017.json"

DAMAGES: Damages = {}
karpathy = Section(DAMAGES, "karpathy", K)
flickr30k = Section(DAMAGES, "flickr30k", "dataset_flickr30k.json")
captions = Section(DAMAGES, "captions2017", C)
single = Section(DAMAGES, "single", "mine.json")

karpathy(remove(IMAGE), "images[1] | names the image 'COCO_train")
karpathy(truncate(IMAGE), f"{IMAGE} | {IMAGE_ENTRY} | damaged image")
karpathy(write(IMAGE, ""), f"{IMAGE} | {IMAGE_ENTRY} | damaged image")
karpathy(write(IMAGE, "<html>"), f"{IMAGE} | {IMAGE_ENTRY} | or none of JPEG")
karpathy(
    lambda root: Image.new("1", (20_000, 10_000)).save(root / IMAGE, "PNG"),
    f"{IMAGE} | {IMAGE_ENTRY} | too many pixels",
)
karpathy(
    lambda root: Image.new("RGB", (4, 30)).save(root / IMAGE),
    f"{IMAGE} | {IMAGE_ENTRY} | too small: 4 x 30",
)
karpathy(
    lambda root: ((root / IMAGE).unlink(), (root / IMAGE).mkdir()), "images[1] | names the image"
)
karpathy(link_out(IMAGE), f"{IMAGE} | {IMAGE_ENTRY} | a link that leads out")
karpathy(
    lambda root: ((root / IMAGE).unlink(), (root / IMAGE).symlink_to("nowhere")),
    "images[1] | names the image",
)
karpathy(
    link_out("images/train2014"),
    "images/train2014 | named by dataset_coco.json images[0] | a link that leads out of",
)


def image(number: int, **changes: Any) -> Change:
    return edit(K, lambda content: content["images"][number].update(changes))


karpathy(image(1, filename="/etc/passwd"), "images[1] | '/etc/passwd' leaves the image root")
karpathy(image(1, filepath="../data/images/train2014"), "images[1] | leaves the image root")
karpathy(image(1, filename="..\\x.jpg"), "images[1] | leaves the image root")
karpathy(image(1, cocoid=1), "images[1] | duplicate image id 1, already used by images[0]")
karpathy(image(1, imgid=0), "images[1] | duplicate imgid 0, already used by images[0]")
karpathy(without(K, "images", 1, "cocoid"), "images[1] | the key 'cocoid' is missing")
karpathy(without(K, "images", 1, "filepath"), "images[1] | the key 'filepath' is missing")
karpathy(
    edit(K, lambda c: c["images"][1]["sentences"][1].update(sentid=10)),
    "images[1].sentences[1] | duplicate annotation id (sentid) 10",
)
karpathy(image(1, sentences=[{"raw": " \t\n"}]), "images[1].sentences[0] | the caption is empty")
karpathy(image(1, sentences=[]), "images[1] | has no caption")
karpathy(image(1, sentences="a"), "images[1] | 'sentences': expected a list, found 'a'")
karpathy(image(1, sentences=[{}]), "images[1].sentences[0] | the key 'raw' is missing")
karpathy(image(1, cocoid=1.5), "images[1] | 'cocoid': expected a whole number, found 1.5")
karpathy(without(K, "images", 1, "filename"), "images[1] | the key 'filename' is missing")
karpathy(image(1, split="dev"), "images[1] | expected one of")
karpathy(without(K, "images", 1, "split"), "images[1] | the key 'split' is missing (cocoid 2)")
karpathy(image(1, cocoid="2"), "images[1] | 'cocoid': expected a whole number, found '2'")
karpathy(
    image(1, sentences=[{"raw": 5}]), "images[1].sentences[0] | 'raw': expected a string, found 5"
)
karpathy(edit(K, lambda c: c["images"].append("x")), "images[7] | expected an object, found 'x'")
karpathy(
    image(1, split="dev", filename="no.jpg"),
    "images[1] | expected one of",
    "images[1] | names the image 'no.jpg'",
)
karpathy(
    lambda root: (image(1, split="dev")(root), (root / IMAGE).write_text("")),
    "images[1] | 'split': expected one of",
    f"{IMAGE} | {IMAGE_ENTRY} | damaged image",
)
karpathy(
    edit(K, lambda c: c.update(images=[i for i in c["images"] if i["split"] != "val"])),
    "split 'val' | has no images",
)
karpathy(
    edit(K, lambda c: c.update(images=[])),
    *[f"split '{split}' | has no images" for split in ("train", "val", "test")],
)
karpathy(
    edit(K, lambda c: c.pop("images")),
    " | expected the key 'images' at the top level, found 'dataset'",
)
karpathy(truncate(K), " | not valid JSON")
karpathy(write(K, "[" * 100_000), " | nested too deeply")
karpathy(write(K, '{"images": ' + "9" * 5000 + "}"), " | not readable JSON")
karpathy(lambda root: (root / K).write_bytes(b"\xff\xfe{}"), " | not valid JSON")
karpathy(write(K, ""), " | not valid JSON")
karpathy(write(K, "[1]"), " | expected an object at the top")
karpathy(link_out(K), " | a link that leads out of")
karpathy(
    image(5, filename=name_2014(2), filepath="train2014"),
    "images[1] | is in the split 'train' and, as images[5], in 'test'",
)
karpathy(
    copy(IMAGE, f"images/val2014/{name_2014(6)}"),
    "images[1] | and COCO_val2014_000000000006.jpg) is in the split 'train' and, as images[5]",
)
karpathy(
    copy(f"images/val2014/{name_2014(4)}", f"images/val2014/{name_2014(6)}"),
    "images[3] | is in the split 'restval' and, as images[5], in 'test'",
)
karpathy(
    edit(
        K,
        lambda c: c["images"].append(
            {**c["images"][1], "split": "test", "sentences": [{"raw": "a"}]}
        ),
    ),
    "images[7] | duplicate image id 2, already used by images[1]",
    "images[1] | is in the split 'train' and, as images[7], in 'test'",
)
flickr30k(remove("flickr30k-images/1001.jpg"), "images[1] | names the image '1001.jpg'")
flickr30k(
    without("dataset_flickr30k.json", "images", 1, "imgid"),
    "images[1] | the key 'imgid' is missing",
)


def note(number: int, **changes: Any) -> Change:
    return edit(C, lambda content: content["annotations"][number].update(changes))


captions(remove("train2017/000000000002.jpg"), "images[1] | names the image '000000000002.jpg'")
captions(
    note(2, caption=""),
    "annotations[2] | the caption is empty. Write one or remove the entry. (id 20)",
)
captions(without(C, "annotations", 2, "caption"), "annotations[2] | the key 'caption' is missing")
captions(note(2, caption=None), "annotations[2] | 'caption': expected a string, found null")
captions(note(2, caption="a \ud800"), "annotations[2] | found half of a character pair")
captions(note(2, id=10), "annotations[2] | duplicate annotation id 10")
captions(note(2, id=True), "annotations[2] | 'id': expected a whole number, found true")
captions(note(2, id=2**70), "annotations[2] | 'id': expected a number of at most 64 bits")
captions(note(2, image_id=99), "annotations[2] | 'image_id': 99")
captions(
    edit(C, lambda c: c.update(annotations=c["annotations"][2:])),
    "images[0] | image 1 has no caption",
)
captions(edit(C, lambda c: c["images"][1].update(id=1)), "images[1] | duplicate image id 1")
captions(
    edit(C, lambda c: c["images"][1].update(id="2")),
    "images[1] | 'id': expected a whole number, found '2'",
)
captions(edit(C, lambda c: c["images"].append(None)), "images[3] | expected an object, found null")
captions(
    edit(C, lambda c: c["images"][1].update(file_name="")),
    "images[1] | 'file_name': expected a file name, found ''",
)
captions(edit(C, lambda c: c.update(images=[], annotations=[])), " | has no captioned images")
captions(edit(C, lambda c: c.update(images={})), " | 'images': expected a list, found an object")
captions(edit(C, lambda c: c.update(annotations=7)), " | 'annotations': expected a list, found 7")
captions(remove(V), f"{V} |  | no such file, but captions_train2017")
captions(truncate(C), " | not valid JSON")
captions(
    lambda root: (
        copy("train2017/000000000002.jpg", "val2017/000000000002.jpg")(root),
        edit(V, lambda c: c["images"].append({"id": 99, "file_name": "000000000002.jpg"}))(root),
        edit(V, lambda c: c["annotations"].append({"id": 9, "image_id": 99, "caption": "a"}))(root),
    ),
    "images[1] | in the split 'train' and, as images[2] of captions_val2017.json, in 'val'",
)
captions(
    edit(
        V,
        lambda c: (
            c["images"][0].update(id=2),
            [n.update(image_id=2) for n in c["annotations"][:2]],
        ),
    ),
    "images[1] | image 2 (000000000002.jpg and 000000000006.jpg) is in the split 'train'",
)
captions(
    copy("train2017/000000000002.jpg", "val2017/000000000006.jpg"),
    "images[1] | the picture (000000000002.jpg and 000000000006.jpg) is in the split",
)
single(
    edit("mine.json", lambda c: c["annotations"][0].pop("id")),
    "annotations[0] | the key 'id' is missing",
)
single(write("mine.json", "null"), " | expected annotations or questions, found null")
single(
    copy("images/1.jpg", "images/3.jpg"),
    "images[3] | the picture (3.jpg and 1.jpg) is also that of images[1]",
)
single(write("mine.json", "{"), " | not valid JSON")
