"""Draw a scene as a small RGB image, in one of two domains.

`studio` is flat and clean. `outdoor` shows the same facts with other shades and textures, outlined
shapes, uneven light and more noise.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

from gapinit.data.scenes.world import Scene, SceneObject

RGB = tuple[int, int, int]
Point = tuple[float, float]

OBJECT_PALETTE: dict[str, RGB] = {
    "red": (214, 32, 36),
    "orange": (244, 134, 22),
    "yellow": (242, 220, 40),
    "green": (36, 150, 56),
    "cyan": (52, 202, 214),
    "blue": (38, 70, 214),
    "purple": (132, 44, 176),
    "pink": (246, 130, 190),
}
BACKGROUND_PALETTE: dict[str, RGB] = {
    "white": (240, 240, 240),
    "gray": (136, 136, 136),
    "black": (26, 26, 26),
    "beige": (214, 192, 150),
}
OVERSAMPLING = 4
CELL_CENTRES = (0.24, 0.5, 0.76)
RADIUS = {"small": 0.12, "large": 0.19}  # as a share of the image's side


@dataclass(frozen=True)
class Domain:
    """The look of a domain: shades, outline, light and noise."""

    darkening: float
    fade: float
    outlined: bool
    light: float
    noise: float


# ASSUME: the two looks. No source describes procedural substitutes for COCO and Flickr30k.
DOMAINS = {
    "studio": Domain(darkening=1.0, fade=0.0, outlined=False, light=0.0, noise=4.0),
    "outdoor": Domain(darkening=0.86, fade=0.12, outlined=True, light=0.16, noise=8.0),
}

_STAR = [
    (radius * math.sin(turn * math.pi / 5), -radius * math.cos(turn * math.pi / 5))
    for turn, radius in enumerate((1.05, 0.44) * 5)
]
_POLYGONS: dict[str, list[Point]] = {
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0.0, -0.98), (0.98, 0.8), (-0.98, 0.8)],
    "cross": [
        *[(-0.34, -1.0), (0.34, -1.0), (0.34, -0.34), (1.0, -0.34), (1.0, 0.34), (0.34, 0.34)],
        *[(0.34, 1.0), (-0.34, 1.0), (-0.34, 0.34), (-1.0, 0.34), (-1.0, -0.34), (-0.34, -0.34)],
    ],
    "star": _STAR,
    "diamond": [(0.0, -1.08), (0.74, 0.0), (0.0, 1.08), (-0.74, 0.0)],
    "bar": [(-1.1, -0.36), (1.1, -0.36), (1.1, 0.36), (-1.1, 0.36)],
}
RING_HOLE = 0.52


def render(scene: Scene, domain: str, size: int, rng: random.Random) -> Image.Image:
    """Draw `scene` as a `size` x `size` RGB image, with jitter and noise from `rng`."""
    look = DOMAINS[domain]
    canvas = _background(scene, domain, size * OVERSAMPLING, rng)
    for item in scene.objects:
        _draw_object(canvas, item, scene.background.colour, look, rng)
    small = canvas.resize((size, size), Image.Resampling.BOX)
    return _light_and_noise(small, look, rng)


def _shade(colour: RGB, look: Domain, rng: random.Random) -> RGB:
    """Return a palette colour in the domain's look, with random variation."""
    brightness = look.darkening * rng.uniform(0.93, 1.06)
    faded = [(1 - look.fade) * channel + look.fade * 128 for channel in colour]
    red, green, blue = (
        max(0, min(255, round(channel * brightness + rng.uniform(-6, 6)))) for channel in faded
    )
    return (red, green, blue)


def _background(scene: Scene, domain: str, side: int, rng: random.Random) -> Image.Image:
    base = _shade(BACKGROUND_PALETTE[scene.background.colour], DOMAINS[domain], rng)
    contrast = 44 if sum(base) < 3 * 128 else -44
    other = tuple(max(0, min(255, channel + contrast)) for channel in base)
    canvas = Image.new("RGB", (side, side), base)
    draw = ImageDraw.Draw(canvas)
    texture = scene.background.texture
    if texture == "plain":
        return canvas
    step = round(side * (0.19 if domain == "studio" else 0.24))
    offset = rng.randrange(step)
    if texture == "striped":
        slant = side if domain == "outdoor" else 0
        for top in range(offset - step - slant, side + slant, step):
            low, high = top, top + step // 2
            corners = [(0, low), (side, low + slant), (side, high + slant), (0, high)]
            draw.polygon(corners, fill=other)
        return canvas
    starts = range(offset - step, side, step)
    for (row, top), (column, left) in product(enumerate(starts), repeat=2):
        if texture == "dotted":
            draw.ellipse([left, top, left + 0.5 * step, top + 0.5 * step], fill=other)
        elif (row + column) % 2 == 0:
            draw.rectangle([left, top, left + step - 1, top + step - 1], fill=other)
    return canvas


def _draw_object(
    canvas: Image.Image, item: SceneObject, behind: str, look: Domain, rng: random.Random
) -> None:
    side = canvas.width
    radius = RADIUS[item.size] * side * rng.uniform(0.95, 1.06)
    centre = (
        side * (CELL_CENTRES[item.column] + rng.uniform(-0.025, 0.025)),
        side * (CELL_CENTRES[item.row] + rng.uniform(-0.025, 0.025)),
    )
    tilt = rng.uniform(-0.1, 0.1)
    if look.outlined:
        line = 0.03 * side
        edge = (225, 225, 225) if behind == "black" else (24, 24, 24)
        canvas.paste(edge, mask=_mask(item.shape, side, centre, radius + line, tilt, line))
    fill = _shade(OBJECT_PALETTE[item.colour], look, rng)
    canvas.paste(fill, mask=_mask(item.shape, side, centre, radius, tilt))


def _mask(
    shape: str, side: int, centre: Point, radius: float, tilt: float, line: float = 0.0
) -> Image.Image:
    """Return the silhouette of a shape; `line` is the outline's width inside a ring's hole."""
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    x, y = centre
    if shape in ("circle", "ring"):
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
        if shape == "ring":
            hole = max(1.0, (radius - line) * RING_HOLE - line)
            draw.ellipse([x - hole, y - hole, x + hole, y + hole], fill=0)
        return mask
    cosine, sine = math.cos(tilt), math.sin(tilt)
    corners = [
        (x + radius * (px * cosine - py * sine), y + radius * (px * sine + py * cosine))
        for px, py in _POLYGONS[shape]
    ]
    draw.polygon(corners, fill=255)
    return mask


def _light_and_noise(image: Image.Image, look: Domain, rng: random.Random) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    if look.light:
        slope = rng.uniform(-look.light, look.light)
        light = np.linspace(1 - slope, 1 + slope, image.height, dtype=np.float32)
        pixels = pixels * light[:, None, None]
    grain = np.random.default_rng(rng.getrandbits(64)).standard_normal(
        pixels.shape, dtype=np.float32
    )
    noisy = np.clip(np.rint(pixels + look.noise * grain), 0, 255)
    return Image.fromarray(noisy.astype(np.uint8))
