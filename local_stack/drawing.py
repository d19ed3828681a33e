"""How the rendered shop's pictures are painted: outlines, fabrics, light and backgrounds.

A drawing is a list of pieces of cloth, back to front, in units of its own (x to the right, y down,
a shoulder is about 1 wide). Masks are drawn enlarged and reduced again, which smooths their edges;
light is computed at a quarter of the size, where a blur costs little.
"""

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Points = NDArray[np.float64]
"""Points of a line or an outline, [n, 2]."""
Plane = NDArray[np.float32]
"""One number a pixel, [height, width]."""
Pixels = NDArray[np.float32]
"""RGB from 0 to 255, [height, width, 3]."""

LIGHT_STEP = 4
"""Light is computed for every fourth pixel."""


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """`one` with a `share` (0 to 1) of `other`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def lightness(colour: Colour) -> float:
    """How light a colour looks, 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


class Path:
    """A line built step by step."""

    def __init__(self, x: float, y: float) -> None:
        self._points: list[tuple[float, float]] = [(x, y)]

    def line(self, x: float, y: float) -> "Path":
        """Go straight."""
        self._points.append((x, y))
        return self

    def curve(self, pull_x: float, pull_y: float, x: float, y: float, steps: int = 14) -> "Path":
        """Go in a curve drawn towards the pull (a quadratic Bézier)."""
        start_x, start_y = self._points[-1]
        for step in range(1, steps + 1):
            t = step / steps
            a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t * t
            self._points.append((a * start_x + b * pull_x + c * x, a * start_y + b * pull_y + c * y))
        return self

    @property
    def points(self) -> Points:
        """The line so far."""
        return np.array(self._points)

    @property
    def mirrored(self) -> Points:
        """The outline of this right half together with its mirror image in x = 0."""
        half = self.points
        return np.concatenate([half, half[::-1] * (-1, 1)])


def shifted(points: Points, x: float, y: float) -> Points:
    """The points, moved."""
    moved: Points = points + np.array((x, y))
    return moved


def svg(text: str) -> Path:
    """A path in SVG's notation: M, L and Q, a letter a step, absolute coordinates."""
    path = Path(0, 0)
    for command, rest in re.findall(r"([MLQ])([^MLQ]*)", text):
        numbers = [float(number) for number in re.split(r"[ ,]+", rest.strip())]
        if command == "M":
            path = Path(*numbers)
        elif command == "L":
            path.line(*numbers)
        else:
            path.curve(*numbers)
    return path


def fluffy(outline: Points, length: float, rng: random.Random) -> Points:
    """The outline with hairs of about this length."""
    centre = outline.mean(axis=0)
    away = outline - centre
    away /= np.linalg.norm(away, axis=1)[:, None]
    hairs = np.array([rng.uniform(0, 1) if number % 2 else -0.6 for number in range(len(outline))])
    ragged: Points = outline + away * hairs[:, None] * length
    return ragged


def ellipse(x: float, y: float, width: float, height: float, steps: int = 48) -> Points:
    """The outline of an ellipse with these radii."""
    angles = np.linspace(0, 2 * math.pi, steps, endpoint=False)
    return np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], axis=1)


def smooth(*points: tuple[float, float], steps: int = 12) -> Points:
    """A Catmull-Rom curve through the points."""
    through = np.array([points[0], *points, points[-1]], dtype=float)
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    spans = []
    for a, b, c, d in zip(through, through[1:], through[2:], through[3:], strict=False):
        spans.append(
            0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        )
    return np.concatenate([*spans, through[-1:]])


def tube(points: Sequence[tuple[float, float]], widths: Sequence[float]) -> Points:
    """The outline of a band along a smooth line, with its width at each point: a sleeve, a strap."""
    middle = smooth(*points)
    at = np.linspace(0, len(widths) - 1, len(middle))
    half = np.interp(at, np.arange(len(widths)), widths)[:, None] / 2
    along = np.gradient(middle, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1)[:, None]
    return np.concatenate([middle + across * half, (middle - across * half)[::-1]])


@dataclass(frozen=True)
class Fabric:
    """A cloth: `kind` is plain, striped, checked, dotted, floral, denim, knit, straw or leather."""

    kind: str
    colour: Colour
    accent: Colour
    period: float = 0.3
    """Units from one stripe, dot or flower to the next."""
    angle: float = 0.0
    """Radians the pattern is turned by."""
    seed: int = 0

    def shade(self, share: float) -> "Fabric":
        """The same cloth, darker (or lighter where the share is negative), as on its inside."""
        target: Colour = (18, 16, 28) if share > 0 else (255, 255, 255)
        return replace(
            self, colour=mix(self.colour, target, abs(share)), accent=mix(self.accent, target, abs(share))
        )

    def turned(self, angle: float) -> "Fabric":
        """The same cloth cut at an angle."""
        return replace(self, angle=self.angle + angle)

    def paint(self, x: Plane, y: Plane, pixel: float) -> Pixels:
        """The colours at x, y (units), where `pixel` is the size of a pixel in units."""
        if self.angle:
            cos, sin = math.cos(self.angle), math.sin(self.angle)
            x, y = x * cos + y * sin, y * cos - x * sin
        base = np.array(self.colour, np.float32)
        accent = np.array(self.accent, np.float32)
        if self.kind == "floral":
            return self._flowers(x, y, pixel)
        share = self._pattern(x, y, pixel)
        if share is None:
            return np.broadcast_to(base, (*x.shape, 3)).astype(np.float32)
        return base + share[..., None] * (accent - base)

    def _pattern(self, x: Plane, y: Plane, pixel: float) -> Plane | None:
        """The share of the accent in the colour, 0 to 1."""
        match self.kind:
            case "striped":
                return _bands(y, self.period, 0.42, pixel)
            case "checked":
                return _checks(x, y, self.period * 1.5, pixel)
            case "dotted":
                return _dots(x, y, self.period * 0.8, pixel)
            case "denim":
                return _twill(x, y, pixel)
            case "knit":
                return _stitches(x, y, pixel)
            case "straw":
                return _weave(x, y, pixel)
        return None

    def _flowers(self, x: Plane, y: Plane, pixel: float) -> Pixels:
        period = self.period * 3
        side = max(24, round(period / pixel))
        tile = np.asarray(_flower_tile(self, side), np.float32)
        across = ((x / period) % 1 * side).astype(np.intp) % side
        down = ((y / period) % 1 * side).astype(np.intp) % side
        painted: Pixels = tile[down, across]
        return painted


def _bands(at: Plane, period: float, share: float, pixel: float) -> Plane:
    """1 on bands that take `share` of each period, 0 between them, smooth over one pixel."""
    distance = np.abs((at / period) % 1 - 0.5) * period
    return np.clip((share * period / 2 - distance) / pixel + 0.5, 0, 1).astype(np.float32)


def _checks(x: Plane, y: Plane, period: float, pixel: float) -> Plane:
    wide = 0.45 * (_bands(x, period, 0.45, pixel) + _bands(y, period, 0.45, pixel))
    half = period / 2
    fine = 0.35 * np.maximum(_bands(x + half, period, 0.07, pixel), _bands(y + half, period, 0.07, pixel))
    return np.minimum(wide + fine, 1)


def _dots(x: Plane, y: Plane, period: float, pixel: float) -> Plane:
    row = np.floor(y / period)
    dx = ((x / period + row % 2 / 2) % 1 - 0.5) * period
    dy = (y / period % 1 - 0.5) * period
    return np.clip((period * 0.24 - np.hypot(dx, dy)) / pixel + 0.5, 0, 1).astype(np.float32)


def _twill(x: Plane, y: Plane, pixel: float) -> Plane:
    worn = 0.5 + 0.5 * np.cos(np.clip((y - 1.1) / 1.3, -math.pi, math.pi))
    return 0.22 * _bands(x + y, max(0.035, 3 * pixel), 0.4, pixel) + 0.16 * worn.astype(np.float32)


def _stitches(x: Plane, y: Plane, pixel: float) -> Plane:
    stitch = max(0.075, 4 * pixel)
    zigzag = np.abs((x / stitch) % 1 - 0.5) * stitch
    return 0.3 * _bands(y + zigzag, stitch, 0.4, pixel)


def _weave(x: Plane, y: Plane, pixel: float) -> Plane:
    strand = max(0.06, 4 * pixel)
    over = ((np.floor(x / strand / 2) + np.floor(y / strand)) % 2).astype(np.float32)
    return 0.25 * over + 0.35 * _bands(y, strand, 0.25, pixel)


def _flower_tile(fabric: Fabric, side: int) -> Image.Image:
    """A square of the floral print that meets itself at its edges."""
    rng = random.Random(fabric.seed)
    large = side * 2
    tile = Image.new("RGB", (large, large), fabric.colour)
    pen = ImageDraw.Draw(tile)
    leaf = mix(fabric.colour, (70, 120, 80), 0.65)
    heart: Colour = (245, 200, 80) if lightness(fabric.accent) < 190 else (214, 120, 60)
    petals = [fabric.accent, mix(fabric.accent, (255, 255, 255), 0.35)]
    for number in range(9):
        # One to a cell of a 3 by 3 grid, so that no two cover each other much.
        x = (number % 3 + rng.uniform(0.25, 0.75)) * large / 3
        y = (number // 3 + rng.uniform(0.25, 0.75)) * large / 3
        size = rng.uniform(0.07, 0.12) * large
        turn, petal = rng.uniform(0, 6.3), rng.choice(petals)
        for shift_x in (-large, 0, large):
            for shift_y in (-large, 0, large):
                _flower(pen, x + shift_x, y + shift_y, size, turn, petal, leaf, heart)
    return tile.resize((side, side), Image.Resampling.BOX)


def _flower(
    pen: ImageDraw.ImageDraw,
    x: float,
    y: float,
    size: float,
    turn: float,
    petal: Colour,
    leaf: Colour,
    heart: Colour,
) -> None:
    def disc(angle: float, away: float, radius: float, colour: Colour) -> None:
        centre_x, centre_y = x + away * math.cos(angle), y + away * math.sin(angle)
        pen.ellipse((centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius), fill=colour)

    for angle in (turn, turn + 0.5, turn + 2.4):
        disc(angle, size * 1.15, size * 0.3, leaf)
    for number in range(5):
        disc(turn + number * 2 * math.pi / 5, size * 0.55, size * 0.45, petal)
    disc(0, 0, size * 0.3, heart)


@dataclass(frozen=True)
class Fold:
    """A soft crease: dark along the line, light beside it; a negative strength turns that round."""

    points: Points
    width: float = 0.08
    strength: float = 0.5


@dataclass(frozen=True)
class Seam:
    """A sharp line on a piece. Without a colour it darkens the cloth; `dash` is a stitch's length."""

    points: Points
    width: float = 0.018
    colour: Colour | None = None
    dash: float = 0.0


@dataclass(frozen=True)
class Piece:
    """One piece of cloth."""

    outline: Points
    fabric: Fabric
    folds: Sequence[Fold] = ()
    seams: Sequence[Seam] = ()
    depth: float = 1.0
    """How rounded it looks."""
    lift: float = 0.04
    """Units above what lies below: the width of the shadow it throws there."""

    def placed(self, move: tuple[float, float], stretch: tuple[float, float]) -> "Piece":
        """The same piece elsewhere, its coordinates multiplied by `stretch` first."""
        size = abs(stretch[0])
        return replace(
            self,
            outline=self.outline * stretch + move,
            folds=[replace(f, points=f.points * stretch + move, width=f.width * size) for f in self.folds],
            seams=[
                replace(s, points=s.points * stretch + move, width=s.width * size, dash=s.dash * size)
                for s in self.seams
            ],
            lift=self.lift * size,
        )

    @property
    def mirrored(self) -> "Piece":
        """The mirror image in x = 0."""
        twin = self.placed((0, 0), (-1, 1))
        return replace(twin, fabric=twin.fabric.turned(-2 * twin.fabric.angle))


@dataclass
class Drawing:
    """Pieces, back to front."""

    pieces: list[Piece] = field(default_factory=list)

    def add(self, *pieces: Piece) -> None:
        """Put pieces on top."""
        self.pieces.extend(pieces)

    def sew(
        self,
        outline: Points,
        fabric: Fabric,
        *,
        folds: Sequence[Fold] = (),
        seams: Sequence[Seam] = (),
        depth: float = 1.0,
        lift: float = 0.04,
    ) -> None:
        """Put a new piece on top."""
        self.add(Piece(outline, fabric, folds, seams, depth, lift))

    def both(self, piece: Piece) -> None:
        """Put a piece on top, and its mirror image."""
        self.add(piece, piece.mirrored)

    def button(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Put a button with its holes on top."""
        hole = mix(colour, (0, 0, 0), 0.6)
        holes = [
            Seam(
                np.array([(x + side * radius * 0.3, y), (x + side * radius * 0.3, y + 0.01)]),
                radius / 3,
                hole,
            )
            for side in (-1, 1)
        ]
        self.add(Piece(ellipse(x, y, radius, radius, 20), plain(colour), seams=holes, lift=radius / 2))

    def moved(self, x: float, y: float, scale: float = 1.0) -> "Drawing":
        """The same drawing elsewhere, and smaller or larger."""

        return Drawing([piece.placed((x, y), (scale, scale)) for piece in self.pieces])


def plain(colour: Colour) -> Fabric:
    """A cloth of one colour."""
    return Fabric("plain", colour, colour)


class Canvas:
    """Paints a drawing into the middle of a picture of `width` by `height` pixels.

    Args:
        fill: share of the width or height, whichever is tighter, that the drawing takes.
        shift: how far off the middle it lies, as shares of the free width and height (-1 to 1).
        turn: radians it is turned by.
    """

    def __init__(
        self,
        drawing: Drawing,
        width: int,
        height: int,
        *,
        fill: float = 0.85,
        shift: tuple[float, float] = (0.0, 0.0),
        turn: float = 0.0,
    ) -> None:
        cos, sin = math.cos(turn), math.sin(turn)
        self._turn = np.array([(cos, sin), (-sin, cos)])
        corners = np.concatenate([piece.outline for piece in drawing.pieces]) @ self._turn
        low, high = corners.min(axis=0), corners.max(axis=0)
        size = np.array((width, height), dtype=float)
        self.scale = float((size * fill / (high - low)).min())
        free = size - (high - low) * self.scale
        self._offset = free / 2 * (1 + np.array(shift)) - low * self.scale
        self.width, self.height = width, height
        self.colours = np.zeros((height, width, 3), np.float32)
        self.alpha = np.zeros((height, width), np.float32)
        for piece in drawing.pieces:
            self._paint(piece)

    def over(self, background: Pixels, rng: random.Random) -> Image.Image:
        """The picture: background, the shadow on it, the drawing, and a little grain."""
        shadow = 1 - 0.34 * self._shadow(0.030, 0.022) - 0.30 * self._shadow(0.006, 0.006)
        picture = background * shadow[..., None]
        picture *= 1 - self.alpha[..., None]
        picture += self.colours
        noise = np.frombuffer(rng.randbytes(self.width * self.height), np.uint8).reshape(self.alpha.shape)
        picture += noise[..., None] * np.float32(4 / 255) - np.float32(2)
        return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))

    def cut_out(self) -> Image.Image:
        """The drawing alone, RGBA, on nothing."""
        colours = self.colours / np.maximum(self.alpha, 1 / 255)[..., None]
        layers = np.concatenate([colours, self.alpha[..., None] * 255], axis=2)
        return Image.fromarray(np.clip(layers, 0, 255).astype(np.uint8), "RGBA")

    def _shadow(self, blur: float, offset: float) -> Plane:
        """The drawing's shadow on the background, 0 to 1; both distances are shares of the picture."""
        side = min(self.width, self.height)
        small = (max(1, self.width // LIGHT_STEP), max(1, self.height // LIGHT_STEP))
        mask = Image.fromarray((self.alpha * 255).astype(np.uint8)).resize(small, Image.Resampling.BOX)
        moved = Image.new("L", small)
        step = round(side * offset / LIGHT_STEP)
        moved.paste(mask, (step, step + step // 2))
        soft = moved.filter(ImageFilter.GaussianBlur(side * blur / LIGHT_STEP))
        return np.asarray(soft.resize((self.width, self.height), Image.Resampling.BILINEAR), np.float32) / 255

    def _to_pixels(self, points: Points) -> Points:
        pixels: Points = points @ self._turn * self.scale + self._offset
        return pixels

    def _paint(self, piece: Piece) -> None:
        outline = self._to_pixels(piece.outline)
        margin = 2 + 2 * piece.lift * self.scale
        left, top = (max(0, math.floor(v)) for v in outline.min(axis=0) - margin)
        right, bottom = np.minimum(np.ceil(outline.max(axis=0) + margin), (self.width, self.height)).astype(
            int
        )
        width, height = int(right - left), int(bottom - top)
        if width < 2 or height < 2:
            return
        corner = np.array((left, top))
        enlarged = 3 if width * height < 200_000 else 2

        def stroke(lines: Sequence[tuple[Points, float]]) -> Plane:
            image = Image.new("L", (width * enlarged, height * enlarged))
            pen = ImageDraw.Draw(image)
            for points, thickness in lines:
                at = (self._to_pixels(points) - corner) * enlarged
                pen.line(
                    list(map(tuple, at)),
                    fill=255,
                    width=max(enlarged, round(thickness * self.scale * enlarged)),
                    joint="curve",
                )
            return np.asarray(image.reduce(enlarged), np.float32) / 255

        image = Image.new("L", (width * enlarged, height * enlarged))
        ImageDraw.Draw(image).polygon(list(map(tuple, (outline - corner) * enlarged)), fill=255)
        mask = image.reduce(enlarged)
        cover = np.asarray(mask, np.float32) / 255

        rows = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(self._offset[1])
        columns = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(self._offset[0])
        back = (self._turn / self.scale).astype(np.float32)
        x = columns * back[0, 0] + rows * back[0, 1]
        y = columns * back[1, 0] + rows * back[1, 1]
        colours = piece.fabric.paint(x, y, 1 / self.scale)

        light = self._light(piece, mask, corner)
        for seam in piece.seams:
            amount = stroke([(line, seam.width) for line in _dashes(seam)])
            if seam.colour is None:
                light = light * (1 - 0.42 * amount)
            else:
                colours += amount[..., None] * (np.array(seam.colour, np.float32) - colours)
        colours *= np.minimum(light, 1)[..., None]
        colours += (255 - colours) * np.maximum(light - 1, 0)[..., None]

        region = (slice(top, bottom), slice(left, right))
        if piece.lift:
            self.colours[region] *= 1 - 0.45 * self._thrown(piece, mask)[..., None]
        self.colours[region] *= 1 - cover[..., None]
        self.colours[region] += colours * cover[..., None]
        self.alpha[region] += (1 - self.alpha[region]) * cover

    def _thrown(self, piece: Piece, mask: Image.Image) -> Plane:
        """The shadow that a piece throws on what lies below it, 0 to 1."""
        small = mask.reduce(2)
        step = max(1, round(piece.lift * self.scale / 4))
        moved = Image.new("L", small.size)
        moved.paste(small, (step // 2, step))
        soft = moved.filter(ImageFilter.GaussianBlur(max(1.0, piece.lift * self.scale / 3)))
        return np.asarray(soft.resize(mask.size, Image.Resampling.BILINEAR), np.float32) / 255

    def _light(self, piece: Piece, mask: Image.Image, corner: Points) -> Plane:
        """What a piece's colours are multiplied by: below 1 is shade, above 1 is shine."""
        small = mask.reduce(LIGHT_STEP)
        unit = self.scale / LIGHT_STEP
        edge = np.asarray(small.filter(ImageFilter.GaussianBlur(0.05 * unit)), np.float32) / 255
        round_ = np.asarray(small.filter(ImageFilter.GaussianBlur(0.16 * unit)), np.float32) / 255
        light = 1.02 - 0.30 * piece.depth * np.clip(2 - 2 * edge, 0, 1) ** 1.5
        if min(round_.shape) > 1:
            down, across = np.gradient(round_)
            light += 0.11 * piece.depth * unit * (across * 0.8 + down * 0.6)
        if piece.folds:
            light += self._creases(piece.folds, small.size, corner)
        smoothed = Image.fromarray(light.astype(np.float32)).resize(mask.size, Image.Resampling.BILINEAR)
        return np.asarray(smoothed, np.float32)

    def _creases(self, folds: Sequence[Fold], size: tuple[int, int], corner: Points) -> Plane:
        image = Image.new("L", size, 128)
        pen = ImageDraw.Draw(image)
        unit = self.scale / LIGHT_STEP
        for fold in folds:
            at = (self._to_pixels(fold.points) - corner) / LIGHT_STEP
            width = max(1, round(fold.width * unit))
            beside = shifted(at, fold.width * unit * 0.9, -fold.width * unit * 0.3)
            pen.line(list(map(tuple, beside)), fill=round(128 + 60 * fold.strength), width=width)
            pen.line(list(map(tuple, at)), fill=round(128 - 110 * fold.strength), width=width)
        typical = sum(fold.width for fold in folds) / len(folds)
        soft = image.filter(ImageFilter.GaussianBlur(max(0.6, typical * unit * 0.55)))
        return (np.asarray(soft, np.float32) - 128) / 220


def _dashes(seam: Seam) -> list[Points]:
    """The seam's line, cut into stitches where it has them."""
    if not seam.dash:
        return [seam.points]
    steps = np.linalg.norm(np.diff(seam.points, axis=0), axis=1)
    along = np.concatenate([[0], np.cumsum(steps)])
    stitches = []
    for start in np.arange(0, along[-1], seam.dash * 1.7):
        at = np.array((start, min(start + seam.dash, along[-1])))
        stitches.append(
            np.stack(
                [np.interp(at, along, seam.points[:, 0]), np.interp(at, along, seam.points[:, 1])], axis=1
            )
        )
    return stitches


def background(kind: str, width: int, height: int, rng: random.Random) -> Pixels:
    """A ground for a picture: `kind` is plain, gradient, wall, wood or linen."""
    return _BACKGROUNDS[kind](width, height, rng)


_PALE: tuple[Colour, ...] = (
    (250, 250, 249),
    (244, 241, 236),
    (236, 238, 240),
    (245, 234, 226),
    (228, 236, 232),
    (232, 230, 242),
    (252, 240, 214),
    (222, 232, 240),
)


def _noise(width: int, height: int, cells: tuple[int, int], rng: random.Random) -> Plane:
    """Smooth noise from -1 to 1 with this many cells across and down."""
    across, down = cells
    small = np.frombuffer(rng.randbytes(across * down), np.uint8).reshape(down, across)
    large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(large, np.float32) / 127.5 - 1


def _flat(colour: Colour, light: Plane) -> Pixels:
    return np.array(colour, np.float32) * light[..., None]


def _vignette(width: int, height: int, strength: float) -> Plane:
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    return 1 - strength * ((x + 0.25) ** 2 + (y + 0.35) ** 2)


def _plain_ground(width: int, height: int, rng: random.Random) -> Pixels:
    return _flat(rng.choice(_PALE), _vignette(width, height, 0.025))


def _gradient(width: int, height: int, rng: random.Random) -> Pixels:
    base = rng.choice(_PALE)
    deep = np.array(
        mix(base, rng.choice(((90, 120, 150), (170, 120, 100), (110, 130, 110))), 0.42), np.float32
    )
    slant = rng.uniform(-0.5, 0.5)
    x = np.linspace(0, slant, width, dtype=np.float32)[None, :]
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    share = np.clip(x + y, 0, 1)[..., None] ** 1.4
    return np.array(base, np.float32) * (1 - share) + deep * share


def _wall(width: int, height: int, rng: random.Random) -> Pixels:
    paint = mix(
        rng.choice(_PALE),
        rng.choice(((150, 170, 160), (200, 160, 140), (150, 160, 185), (205, 190, 150))),
        0.45,
    )
    light = _vignette(width, height, 0.07) + 0.012 * _noise(width, height, (40, 40), rng)
    ground = _flat(paint, light)
    floor = round(height * rng.uniform(0.84, 0.9))
    board = max(2, round(height * 0.03))
    ground[floor:] = _planks(width, height - floor, rng, 2) * 0.92
    ground[floor - board : floor] = np.array(mix(paint, (255, 255, 255), 0.6), np.float32)
    ground[floor - board : floor - board + 1] *= 0.86
    ground[floor : floor + max(1, board // 3)] *= 0.75
    return ground


def _planks(width: int, height: int, rng: random.Random, count: int) -> Pixels:
    tone: Colour = rng.choice(((206, 170, 128), (176, 134, 96), (222, 208, 188), (150, 108, 76)))
    light = np.ones((height, width), np.float32)
    light += 0.05 * _noise(width, height, (4, max(2, height // 3)), rng)
    light += 0.04 * _noise(width, height, (3, max(2, height // 12)), rng)
    edges = [round(height * number / count) for number in range(count + 1)]
    for top, bottom in pairwise(edges):
        light[top:bottom] *= rng.uniform(0.92, 1.05)
        light[top : top + max(1, height // 300)] *= 0.62
        joint = rng.randrange(width)
        light[top:bottom, joint : joint + max(1, width // 300)] *= 0.66
    return _flat(tone, light)


def _wood(width: int, height: int, rng: random.Random) -> Pixels:
    planks = _planks(width, height, rng, rng.randint(4, 7)) * _vignette(width, height, 0.06)[..., None]
    return np.minimum(planks, 255)


def _linen(width: int, height: int, rng: random.Random) -> Pixels:
    weave = 0.022 * _noise(width, height, (max(2, width // 2), 6), rng)
    weave += 0.022 * _noise(width, height, (6, max(2, height // 2)), rng)
    weave += 0.03 * _noise(width, height, (4, 4), rng)
    return np.minimum(
        _flat(mix(rng.choice(_PALE), (190, 175, 155), 0.3), _vignette(width, height, 0.04) + weave), 255
    )


_BACKGROUNDS: dict[str, Callable[[int, int, random.Random], Pixels]] = {
    "plain": _plain_ground,
    "gradient": _gradient,
    "wall": _wall,
    "wood": _wood,
    "linen": _linen,
}
