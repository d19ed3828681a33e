"""Draws the rendered shop's garments: what each is made of, and how its photograph is taken."""

import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from local_stack.drawing import (
    Canvas,
    Colour,
    Drawing,
    Fabric,
    Fold,
    Path,
    Piece,
    Points,
    Seam,
    background,
    ellipse,
    fluffy,
    lightness,
    mix,
    plain,
    shifted,
    smooth,
    svg,
    tube,
)

CATEGORIES: dict[str, str] = {
    "00000010": "dress",
    "00000020": "hat",
    "00000030": "longsleeve",
    "00000040": "outwear",
    "00000050": "pants",
    "00000060": "shirt",
    "00000070": "shoes",
    "00000080": "shorts",
    "00000090": "skirt",
    "00000100": "t-shirt",
}
"""The shop's categories: id and name."""

COLOURS: dict[str, Colour] = {
    "white": (246, 245, 241),
    "ivory": (238, 228, 208),
    "black": (42, 41, 46),
    "charcoal": (82, 85, 92),
    "grey": (164, 167, 172),
    "navy": (41, 56, 96),
    "sky blue": (142, 186, 222),
    "cobalt": (48, 92, 178),
    "teal": (38, 124, 128),
    "mint": (164, 212, 190),
    "sage": (150, 168, 138),
    "olive": (112, 116, 70),
    "forest": (44, 88, 66),
    "mustard": (218, 170, 62),
    "butter": (246, 222, 150),
    "peach": (246, 188, 152),
    "coral": (236, 116, 98),
    "rust": (182, 88, 52),
    "red": (196, 48, 52),
    "burgundy": (116, 36, 54),
    "blush": (236, 196, 192),
    "rose": (214, 116, 138),
    "lilac": (190, 172, 214),
    "plum": (98, 58, 100),
    "camel": (196, 152, 104),
    "tan": (168, 122, 84),
    "chocolate": (94, 64, 50),
}
_INDIGO: dict[str, Colour] = {
    "indigo": (52, 72, 112),
    "stone wash": (104, 132, 172),
    "light wash": (156, 182, 208),
    "black": (52, 53, 60),
}
_METAL: Colour = (196, 190, 178)


@dataclass(frozen=True)
class Photograph:
    """One garment's picture as a shop would hold it."""

    name: str
    """What a shop would call it, such as `striped t-shirt, navy`."""
    data: bytes
    extension: str
    """jpg, png, webp or gif."""


def draw(category_id: str, seed: int) -> Photograph:
    """Draw a garment of one of CATEGORIES; the same seed gives the same picture."""
    rng = random.Random(f"{category_id} {seed}")
    category = CATEGORIES[category_id]
    sewn = _SEWN[category](rng)
    return _photograph(sewn, category, rng)


@dataclass(frozen=True)
class _Sewn:
    drawing: Drawing
    name: str
    hangs: bool = False
    """It can be shown on a hanger."""
    stands: bool = False
    """It stands on the floor instead of lying flat."""


# Cloth ------------------------------------------------------------------------------------------


def _cloth(rng: random.Random, kinds: dict[str, int]) -> tuple[str, Fabric]:
    """A fabric of one of the kinds (by weight), and its colour's name."""
    kind = rng.choices(list(kinds), weights=list(kinds.values()))[0]
    palette = _INDIGO if kind == "denim" else COLOURS
    name, colour = rng.choice(list(palette.items()))
    if kind in ("denim", "knit", "straw"):
        accent = (
            mix(colour, (255, 255, 255), 0.7) if lightness(colour) < 150 else mix(colour, (60, 50, 50), 0.6)
        )
    else:
        others = [c for c in COLOURS.values() if abs(lightness(c) - lightness(colour)) > 70]
        accent = rng.choice([*others, COLOURS["white"] if lightness(colour) < 150 else COLOURS["navy"]])
    period = rng.choice((0.14, 0.2, 0.28))
    angle = rng.choice((0, 0, 0, math.pi / 2)) if kind == "striped" else 0.0
    return name, Fabric(kind, colour, accent, period, angle, rng.randrange(1000))


def _called(fabric: Fabric, colour: str, noun: str) -> str:
    pattern = "" if fabric.kind in ("plain", "leather") else f"{fabric.kind} "
    return f"{pattern}{noun}, {colour}"


def _line(*points: tuple[float, float]) -> Points:
    return np.array(points, dtype=float)


def _fold(width: float, strength: float, *points: tuple[float, float]) -> Fold:
    return Fold(smooth(*points), width, strength)


def _seam(
    width: float, *points: tuple[float, float], colour: Colour | None = None, dash: float = 0.0
) -> Seam:
    return Seam(smooth(*points), width, colour, dash)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return _line((left, top), (right, top), (right, bottom), (left, bottom))


def _trim(colour: Colour) -> Colour:
    """A button or lace that shows on this colour."""
    return (240, 236, 228) if lightness(colour) < 140 else mix(colour, (60, 44, 36), 0.62)


# Tops -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Top:
    """Measures of a top: half widths, and depths from the shoulder's highest point."""

    neck: float = 0.34
    neck_depth: float = 0.30
    shoulder: float = 0.88
    armhole: float = 0.74
    chest: float = 0.80
    waist: float = 0.76
    hem: float = 0.80
    length: float = 2.15
    v_neck: bool = False

    def neckline(self) -> Path:
        """From the middle of the front up to the shoulder."""
        path = Path(0, self.neck_depth)
        if self.v_neck:
            return path.curve(self.neck * 0.62, self.neck_depth * 0.42, self.neck, 0)
        return path.curve(self.neck * 0.92, self.neck_depth * 0.96, self.neck, 0)

    def side(self, path: Path) -> Path:
        """From the neck along the shoulder, the armhole and the side down to the hem."""
        middle = (self.armhole + self.length) / 2
        return (
            path.line(self.shoulder, 0.17)
            .curve(self.chest * 0.93, self.armhole * 0.6, self.chest, self.armhole)
            .curve(self.waist - 0.03, middle, self.hem, self.length)
        )

    def body(self) -> Points:
        """The front's outline."""
        return (
            self.side(self.neckline())
            .curve(self.hem * 0.4, self.length + 0.06, 0, self.length + 0.06)
            .mirrored
        )

    def back(self) -> Points:
        """What shows of the back inside the neck."""
        return self.neckline().curve(self.neck * 0.5, -0.07, 0, -0.06).mirrored

    def folds(self, rng: random.Random) -> list[Fold]:
        """Creases from the armpits and at the waist."""
        creases = []
        for side in (-1, 1):
            creases.append(
                _fold(
                    0.07,
                    rng.uniform(0.3, 0.55),
                    (side * (self.chest - 0.03), self.armhole + 0.05),
                    (side * self.chest * 0.62, self.armhole + rng.uniform(0.2, 0.4)),
                    (side * self.chest * 0.4, self.armhole + rng.uniform(0.5, 0.8)),
                )
            )
            height = self.armhole + (self.length - self.armhole) * rng.uniform(0.45, 0.65)
            creases.append(
                _fold(
                    0.06,
                    rng.uniform(0.2, 0.45),
                    (side * (self.waist - 0.02), height),
                    (side * self.waist * 0.7, height + 0.1),
                    (side * self.waist * 0.35, height + 0.06),
                )
            )
            start = rng.uniform(0.15, 0.55) * self.hem * side
            creases.append(
                _fold(
                    0.08,
                    rng.uniform(0.2, 0.4),
                    (start, self.length),
                    (start * 0.92, self.length - 0.35),
                    (start * 0.95, self.length - rng.uniform(0.5, 0.9)),
                )
            )
        return creases

    def hem_stitch(self, colour: Colour | None = None) -> Seam:
        """The row of stitches above the hem."""
        bottom = self.length - 0.06
        return _seam(
            0.014, (-self.hem, bottom), (0, bottom + 0.06), (self.hem, bottom), colour=colour, dash=0.03
        )


def _neckband(top: _Top, fabric: Fabric, width: float = 0.085) -> Piece:
    right = top.neckline().points
    whole = np.concatenate([(right * (-1, 1))[::-1], right[1:]])
    outline = tube(list(map(tuple, whole[::2])), [width] * len(whole[::2]))
    return Piece(outline, fabric, lift=0.02, depth=0.7)


def _short_sleeve(top: _Top, fabric: Fabric, rng: random.Random, length: float = 0.62) -> Piece:
    slope = rng.uniform(0.85, 1.1)
    reach, drop = length * math.cos(slope), length * math.sin(slope)
    tip = (top.shoulder + reach, 0.2 + drop)
    under = (tip[0] - 0.36, tip[1] + 0.20)
    path = (
        Path(top.neck + 0.2, 0.06)
        .line(top.shoulder - 0.06, 0.14)
        .curve(top.shoulder + reach * 0.45, 0.16 + drop * 0.25, *tip)
        .curve((tip[0] + under[0]) / 2 + 0.02, (tip[1] + under[1]) / 2 + 0.04, *under)
        .line(top.chest - 0.02, top.armhole + 0.03)
        .line(top.neck + 0.2, 0.5)
    )
    inner = (-0.045, -0.065)
    hem = _seam(
        0.014, (tip[0] + inner[0], tip[1] + inner[1]), (under[0] + inner[0], under[1] + inner[1]), dash=0.03
    )
    crease = _fold(0.07, 0.45, (top.chest, top.armhole), (top.chest + 0.12, 0.55), (top.shoulder + 0.1, 0.36))
    return Piece(path.points, fabric.turned(-0.5), folds=[crease], seams=[hem], lift=0.03)


def _long_sleeve(
    drawing: Drawing,
    top: _Top,
    fabric: Fabric,
    rng: random.Random,
    *,
    cuff: Fabric | None = None,
    length: float = 2.0,
    width: float = 0.52,
) -> None:
    """Both sleeves, hanging beside the body, each with a cuff where there is one."""
    spread = rng.uniform(0.18, 0.42)
    start = (top.shoulder - 0.2, 0.36)
    elbow = (top.shoulder + 0.14 + spread * 0.5, 0.15 + length * 0.5)
    wrist = (top.shoulder + 0.12 + spread, 0.15 + length)
    down = np.subtract(wrist, elbow) / np.hypot(*np.subtract(wrist, elbow))
    across = np.array((down[1], -down[0]))
    edges = [
        (np.add(elbow, across * width * k * 0.4), np.add(wrist, across * width * k * 0.28)) for k in (1, -1)
    ]
    outer = smooth((top.shoulder * 0.7, 0.115), (top.shoulder + 0.035, 0.2), *map(tuple, edges[0]))
    inner = smooth(*map(tuple, edges[1][::-1]), (top.chest - 0.02, top.armhole + 0.02))
    outline = np.concatenate([_line((top.neck + 0.2, 0.08)), outer, inner, _line((top.neck + 0.2, 0.6))])
    folds = [
        _fold(
            0.05,
            rng.uniform(0.3, 0.6),
            (elbow[0] - width * 0.4, elbow[1] + shift),
            (elbow[0], elbow[1] + shift + 0.08),
            (elbow[0] + width * 0.22, elbow[1] + shift + 0.02),
        )
        for shift in (-0.16, 0.05, 0.3)
    ]
    folds.append(_fold(0.09, 0.25, (start[0] + 0.15, start[1] + 0.2), elbow, (wrist[0], wrist[1] - 0.2)))
    drawing.both(Piece(outline, fabric.turned(-0.12), folds=folds, lift=0.05))
    if cuff:
        above = tuple(wrist - down * 0.05)
        below = tuple(wrist + down * 0.16)
        ribs = (
            _ribs((wrist[0] - 0.14, wrist[1]), (wrist[0] + 0.14, wrist[1]), 0.3)
            if cuff.kind == "knit"
            else []
        )
        drawing.both(
            Piece(tube([above, below], [width * 0.58, width * 0.52]), cuff, seams=ribs, lift=0.02, depth=0.8)
        )


def _ribs(left: tuple[float, float], right: tuple[float, float], height: float) -> list[Seam]:
    """Upright rib lines between two points, as in a cuff or a hem."""
    count = max(3, round((right[0] - left[0]) / 0.06))
    seams = []
    for number in range(1, count):
        x = left[0] + (right[0] - left[0]) * number / count
        y = left[1] + (right[1] - left[1]) * number / count
        seams.append(_seam(0.012, (x, y - height), (x, y + height)))
    return seams


def _rib_hem(top: _Top, fabric: Fabric, height: float = 0.17) -> Piece:
    bottom = top.length
    path = (
        Path(0, bottom - 0.02)
        .line(top.hem + 0.005, bottom - 0.06)
        .line(top.hem - 0.05, bottom + height - 0.04)
        .curve(top.hem * 0.4, bottom + height + 0.01, 0, bottom + height + 0.01)
    )
    return Piece(
        path.mirrored, fabric, seams=_ribs((-top.hem, bottom), (top.hem, bottom), 0.3), lift=0.02, depth=0.7
    )


def _t_shirt(rng: random.Random) -> _Sewn:
    colour, fabric = _cloth(rng, {"plain": 6, "striped": 4, "dotted": 1, "floral": 1, "knit": 1})
    width = rng.uniform(0.94, 1.08)
    top = _Top(
        neck=rng.uniform(0.3, 0.38),
        neck_depth=rng.uniform(0.24, 0.36),
        v_neck=rng.random() < 0.25,
        chest=0.8 * width,
        waist=0.77 * width,
        hem=0.8 * width,
        length=rng.uniform(2.0, 2.35),
    )
    contrast = rng.random() < 0.3
    trim = plain(fabric.accent) if contrast else fabric.shade(0.1)
    drawing = Drawing()
    drawing.sew(top.back(), fabric.shade(0.35))
    drawing.both(
        _short_sleeve(top, plain(fabric.accent) if contrast and fabric.kind == "plain" else fabric, rng)
    )
    drawing.sew(top.body(), fabric, folds=top.folds(rng), seams=[top.hem_stitch()], lift=0.03)
    drawing.add(_neckband(top, trim))
    if fabric.kind == "plain" and rng.random() < 0.65:
        rng.choice((_print_sun, _print_heart, _print_bars, _print_mountain))(drawing, fabric, rng)
    elif rng.random() < 0.4:
        drawing.add(_patch_pocket(0.38, 0.82, 0.19, fabric))
    return _Sewn(drawing, _called(fabric, colour, "t-shirt"), hangs=True)


def _print_sun(drawing: Drawing, fabric: Fabric, rng: random.Random) -> None:
    warm = plain(rng.choice((COLOURS["mustard"], COLOURS["coral"], fabric.accent)))
    drawing.sew(ellipse(0, 0.98, 0.3, 0.3), warm, lift=0, depth=0.1)
    for number in range(4):
        y = 1.02 + number * 0.075
        drawing.sew(_box(-0.34, y, 0.34, y + 0.02 + number * 0.008), plain(fabric.colour), lift=0, depth=0)


def _print_heart(drawing: Drawing, fabric: Fabric, rng: random.Random) -> None:
    heart = svg("M0,0.86 Q0.08,0.68 0.22,0.7 Q0.42,0.76 0.32,0.98 Q0.22,1.14 0,1.3")
    drawing.sew(
        heart.mirrored, plain(rng.choice((COLOURS["red"], COLOURS["rose"], fabric.accent))), lift=0, depth=0.1
    )


def _print_bars(drawing: Drawing, fabric: Fabric, rng: random.Random) -> None:
    shades = rng.sample(list(COLOURS.values()), 2)
    for number, shade in enumerate([fabric.accent, *shades]):
        y = 0.76 + number * 0.14
        drawing.sew(_box(-0.72, y, 0.72, y + 0.1), plain(shade), lift=0, depth=0)


def _print_mountain(drawing: Drawing, _: Fabric, rng: random.Random) -> None:
    sky = plain(rng.choice((COLOURS["peach"], COLOURS["sky blue"], COLOURS["butter"])))
    drawing.sew(ellipse(0, 1.0, 0.34, 0.34), sky, lift=0, depth=0.1)
    ridge = svg("M-0.33,1.08 L-0.12,0.84 L0,0.98 L0.13,0.78 L0.33,1.08")
    ridge.curve(0.25, 1.33, 0, 1.34).curve(-0.25, 1.33, -0.33, 1.08)
    drawing.sew(
        ridge.points,
        plain(rng.choice((COLOURS["teal"], COLOURS["plum"], COLOURS["forest"]))),
        lift=0,
        depth=0.1,
    )
    drawing.sew(ellipse(-0.14, 0.82, 0.06, 0.06, 24), plain(COLOURS["white"]), lift=0, depth=0)


def _patch_pocket(x: float, y: float, half: float, fabric: Fabric) -> Piece:
    """A pocket sewn on, its top edge at y."""
    outline = _line(
        (x - half, y),
        (x + half, y),
        (x + half, y + half * 1.9),
        (x, y + half * 2.35),
        (x - half, y + half * 1.9),
    )
    inner = 0.03
    stitch = _line(
        (x - half + inner, y),
        (x - half + inner, y + half * 1.85),
        (x, y + half * 2.2),
        (x + half - inner, y + half * 1.85),
        (x + half - inner, y),
    )
    return Piece(
        outline,
        fabric,
        seams=[Seam(stitch, 0.012, None, 0.03), _seam(0.012, (x - half, y + 0.06), (x + half, y + 0.06))],
        lift=0.015,
        depth=0.5,
    )


def _longsleeve(rng: random.Random) -> _Sewn:
    colour, fabric = _cloth(rng, {"knit": 4, "plain": 3, "striped": 4})
    if fabric.kind == "striped":
        fabric = Fabric("striped", fabric.colour, fabric.accent, rng.choice((0.14, 0.2)), 0, 0)
    sweat = rng.random() < 0.6
    top = _Top(
        neck=rng.uniform(0.3, 0.36),
        neck_depth=rng.uniform(0.2, 0.3),
        v_neck=rng.random() < 0.2,
        chest=0.82,
        waist=0.8,
        hem=0.8,
        length=rng.uniform(1.95, 2.25),
    )
    rib = Fabric("knit", *(fabric.shade(0.12).colour, fabric.shade(0.3).colour))
    drawing = Drawing()
    drawing.sew(top.back(), fabric.shade(0.35))
    _long_sleeve(drawing, top, fabric, rng, cuff=rib, length=rng.uniform(1.75, 1.95))
    if sweat:
        drawing.add(_rib_hem(top, rib))
    drawing.sew(
        top.body(), fabric, folds=top.folds(rng), seams=[] if sweat else [top.hem_stitch()], lift=0.03
    )
    noun = "jumper" if fabric.kind == "knit" else "longsleeve"
    if rng.random() < 0.25 and not top.v_neck:
        neck = Path(0, top.neck_depth + 0.03).curve(top.neck * 0.9, top.neck_depth, top.neck + 0.02, 0.02)
        neck.curve(top.neck - 0.06, -0.12, top.neck - 0.05, -0.24).curve(0.1, -0.28, 0, -0.28)
        drawing.sew(
            neck.mirrored,
            rib,
            seams=_ribs((-0.4, 0), (0.4, 0), 0.4),
            lift=0.03,
            folds=[_fold(0.04, 0.6, (-0.3, -0.02), (0, 0.06), (0.3, -0.02))],
        )
        noun = f"roll-neck {noun}"
    else:
        drawing.add(_neckband(top, rib, 0.1))
        if rng.random() < 0.3 and fabric.kind == "plain":
            _print_bars(drawing, fabric, rng)
    name = f"{noun}, {colour}" if "jumper" in noun else _called(fabric, colour, noun)
    return _Sewn(drawing, name, hangs=rng.random() < 0.4)


def _shirt(rng: random.Random) -> _Sewn:
    colour, fabric = _cloth(
        rng, {"plain": 4, "striped": 3, "checked": 4, "floral": 1, "denim": 1, "dotted": 1}
    )
    if fabric.kind == "striped":
        fabric = Fabric("striped", fabric.colour, fabric.accent, 0.12, math.pi / 2, 0)
    top = _Top(
        neck=0.3,
        neck_depth=0.26,
        chest=0.78,
        waist=rng.uniform(0.68, 0.76),
        hem=0.78,
        length=rng.uniform(2.2, 2.45),
    )
    short = rng.random() < 0.3
    drawing = Drawing()
    drawing.sew(top.back(), fabric.shade(0.35))
    if short:
        drawing.both(_short_sleeve(top, fabric, rng, 0.66))
    else:
        _long_sleeve(drawing, top, fabric, rng, cuff=fabric.shade(0.05), length=rng.uniform(1.85, 2.0))
    outline = (
        top.side(top.neckline())
        .curve(top.hem * 0.93, top.length + 0.16, top.hem * 0.6, top.length + 0.22)
        .curve(top.hem * 0.3, top.length + 0.26, 0, top.length + 0.24)
        .mirrored
    )
    yoke = _seam(0.014, (-top.shoulder, 0.34), (0, 0.44), (top.shoulder, 0.34))
    drawing.sew(outline, fabric, folds=top.folds(rng), seams=[yoke], lift=0.03)
    bottom = top.length + 0.24
    placket = _box(-0.075, top.neck_depth, 0.075, bottom)
    edges = [_seam(0.01, (side * 0.055, 0), (side * 0.055, 3), dash=0.03) for side in (-1, 1)]
    drawing.sew(placket, fabric.shade(-0.06), seams=edges, lift=0.015, depth=0.35)
    button = _trim(fabric.colour)
    for number in range(6):
        drawing.button(0, top.neck_depth + 0.16 + number * (bottom - top.neck_depth - 0.4) / 5, 0.034, button)
    if rng.random() < 0.6:
        drawing.add(_patch_pocket(0.38, 0.78, 0.19, fabric))
    drawing.both(_collar_half(top, fabric))
    drawing.button(0, top.neck_depth + 0.02, 0.034, button)
    return _Sewn(drawing, _called(fabric, colour, "short-sleeved shirt" if short else "shirt"), hangs=True)


def _collar_half(top: _Top, fabric: Fabric) -> Piece:
    """The right wing of a shirt's collar."""
    depth = top.neck_depth
    path = (
        Path(0.01, depth + 0.01)
        .curve(top.neck * 0.55, depth * 0.75, top.neck * 0.8, -0.1)
        .curve(top.neck * 0.96, -0.08, top.neck + 0.05, 0.0)
        .curve(top.neck + 0.02, depth * 0.8, 0.29, depth + 0.24)
        .line(0.01, depth + 0.01)
    )
    stitch = _seam(
        0.01,
        (top.neck + 0.0, 0.06),
        (top.neck - 0.02, depth * 0.8),
        (0.275, depth + 0.18),
        (0.04, depth),
        dash=0.03,
    )
    return Piece(path.points, fabric.shade(-0.05).turned(0.5), seams=[stitch], lift=0.05, depth=0.5)


# Outwear ----------------------------------------------------------------------------------------


def _outwear(rng: random.Random) -> _Sewn:
    return rng.choice((_coat, _coat, _puffer, _bomber, _parka))(rng)


def _coat(rng: random.Random) -> _Sewn:
    """A long wool coat with lapels."""
    colour, fabric = _cloth(rng, {"plain": 4, "checked": 1})
    top = _Top(
        neck=0.34,
        neck_depth=0.95,
        v_neck=True,
        shoulder=0.92,
        chest=0.86,
        waist=rng.uniform(0.76, 0.86),
        hem=rng.uniform(0.92, 1.08),
        length=rng.uniform(2.7, 3.3),
    )
    drawing = Drawing()
    drawing.sew(top.back(), fabric.shade(0.5))
    lining = svg("M0,1 L0.36,0 L0,-0.05")
    drawing.sew(lining.mirrored, plain(mix(fabric.accent, (30, 26, 34), 0.45)), lift=0)
    _long_sleeve(drawing, top, fabric, rng, cuff=fabric.shade(0.05), length=2.05, width=0.58)
    drawing.sew(top.body(), fabric, folds=top.folds(rng), lift=0.04)
    _coat_front(drawing, top, fabric, rng)
    belted = rng.random() < 0.4
    if belted:
        y = 1.5
        half = top.waist + 0.03
        drawing.sew(
            _box(-half, y, half, y + 0.15),
            fabric.shade(0.06),
            lift=0.04,
            seams=[
                _seam(0.01, (-1, y + 0.025), (1, y + 0.025), dash=0.03),
                _seam(0.01, (-1, y + 0.125), (1, y + 0.125), dash=0.03),
            ],
        )
        drawing.sew(
            tube([(0.04, y + 0.1), (0.14, y + 0.42), (0.12, y + 0.66)], [0.13, 0.12, 0.12]),
            fabric.shade(0.06),
            lift=0.04,
        )
        drawing.sew(_box(-0.02, y - 0.02, 0.15, y + 0.17), fabric, lift=0.03)
    return _Sewn(drawing, _called(fabric, colour, "belted coat" if belted else "coat"), hangs=True)


def _coat_front(drawing: Drawing, top: _Top, fabric: Fabric, rng: random.Random) -> None:
    bottom = top.length + 0.06
    drawing.sew(
        _box(-0.06, 0.95, 0.2, bottom),
        fabric,
        lift=0.0,
        depth=0.0,
        seams=[_seam(0.022, (0.19, 0.9), (0.19, bottom))],
    )
    for side in (-1, 1):
        flap = _line((side * 0.34, 1.86), (side * 0.7, 1.8), (side * 0.71, 1.94), (side * 0.35, 2.0))
        drawing.sew(flap, fabric.shade(0.05), lift=0.03, depth=0.5)
    button = _trim(fabric.colour)
    double = rng.random() < 0.5
    for number in range(3):
        for x in (0.08, -0.26) if double else (0.07,):
            drawing.button(x, 1.12 + number * 0.3, 0.05, button)
    lapel = svg(
        "M0.06,1.02 Q0.1,0.9 0.36,0.66 L0.44,0.46 L0.36,0.4 L0.46,0.3 Q0.42,0.1 0.36,-0.04 Q0.3,0.4 0.06,1.02"
    )
    drawing.both(
        Piece(
            lapel.points,
            fabric.shade(-0.05),
            lift=0.06,
            depth=0.6,
            seams=[_seam(0.014, (0.36, 0.4), (0.24, 0.33))],
        )
    )
    collar = svg("M0,-0.1 Q0.22,-0.12 0.37,-0.05 L0.46,0.28 L0.37,0.38 Q0.34,0.16 0.26,0.04 Q0.12,0 0,0")
    drawing.sew(collar.mirrored, fabric.shade(-0.03), lift=0.04, depth=0.6)


def _puffer(rng: random.Random) -> _Sewn:
    """A quilted jacket with a zip."""
    colour, fabric = _cloth(rng, {"plain": 1})
    top = _Top(
        neck=0.34,
        neck_depth=0.12,
        shoulder=0.92,
        chest=0.92,
        waist=0.92,
        hem=0.86,
        length=rng.uniform(1.95, 2.25),
    )
    drawing = Drawing()
    _long_sleeve(drawing, top, fabric, rng, cuff=fabric.shade(0.2), length=1.95, width=0.66)
    sleeves = drawing.pieces[:2]
    step = rng.uniform(0.2, 0.27)
    lines = np.arange(0.3, top.length, step)
    quilted = []
    for sleeve in sleeves:
        folds, seams = _quilting(lines, 1.9)
        quilted.append(Piece(sleeve.outline, sleeve.fabric, folds, seams, 1.3, 0.05))
    drawing.pieces[:2] = quilted
    folds, seams = _quilting(lines, 1.0)
    drawing.sew(top.body(), fabric, folds=folds, seams=seams, depth=1.3, lift=0.05)
    drawing.add(_rib_hem(top, fabric.shade(0.15), 0.12))
    collar = svg("M0,0.2 Q0.3,0.2 0.4,0.06 Q0.42,-0.14 0.34,-0.26 Q0.2,-0.3 0,-0.3")
    drawing.sew(
        collar.mirrored,
        fabric.shade(0.04),
        folds=[_fold(0.06, 0.7, (-0.5, -0.05), (0.5, -0.05))],
        seams=[_seam(0.014, (-0.5, -0.05), (0.5, -0.05))],
        lift=0.05,
        depth=1.2,
    )
    _zip(drawing, -0.28, top.length + 0.12, fabric)
    for side in (-1, 1):
        drawing.sew(
            tube([(side * 0.5, 1.35), (side * 0.62, 1.75)], [0.035, 0.035]), fabric.shade(0.45), lift=0.01
        )
    return _Sewn(drawing, f"puffer jacket, {colour}", hangs=rng.random() < 0.4)


def _quilting(heights: np.ndarray, half: float) -> tuple[list[Fold], list[Seam]]:
    folds, seams = [], []
    for y in heights:
        line = smooth(
            (-half, y - 0.02), (-half / 2, y + 0.03), (0, y - 0.01), (half / 2, y + 0.03), (half, y - 0.02)
        )
        folds.append(Fold(line, 0.09, 0.75))
        folds.append(Fold(shifted(line, 0, 0.12), 0.07, -0.3))
        seams.append(Seam(line, 0.014))
    return folds, seams


def _zip(drawing: Drawing, top: float, bottom: float, fabric: Fabric) -> None:
    drawing.sew(_box(-0.045, top, 0.045, bottom), fabric.shade(0.3), lift=0.01, depth=0.3)
    drawing.sew(
        _box(-0.016, top, 0.016, bottom),
        plain(_METAL),
        lift=0,
        depth=0,
        seams=[_seam(0.03, (0, top), (0, bottom), colour=mix(_METAL, (0, 0, 0), 0.45), dash=0.02)],
    )
    drawing.sew(
        _line((-0.025, top + 0.03), (0.025, top + 0.03), (0.02, top + 0.18), (-0.02, top + 0.18)),
        plain(_METAL),
        lift=0.03,
    )


def _bomber(rng: random.Random) -> _Sewn:
    """A short jacket with ribbed hem and cuffs, or a denim jacket."""
    colour, fabric = _cloth(rng, {"plain": 2, "leather": 1, "denim": 2})
    denim = fabric.kind == "denim"
    top = _Top(neck=0.32, neck_depth=0.12, shoulder=0.94, chest=0.88, waist=0.86, hem=0.8, length=1.85)
    rib = fabric.shade(0.08) if denim else Fabric("knit", fabric.shade(0.25).colour, fabric.shade(0.5).colour)
    drawing = Drawing()
    drawing.sew(top.back(), fabric.shade(0.5))
    _long_sleeve(drawing, top, fabric, rng, cuff=rib, length=1.9, width=0.6)
    thread: Colour | None = (214, 160, 84) if denim else None
    yoke = [
        _seam(0.016, (-1, 0.66), (-0.1, 0.7), colour=thread, dash=0.035),
        _seam(0.016, (0.1, 0.7), (1, 0.66), colour=thread, dash=0.035),
    ]
    panels = [
        _seam(0.016, (side * 0.3, 0.7), (side * 0.2, 1.9), colour=thread, dash=0.035) for side in (-1, 1)
    ]
    drawing.sew(top.body(), fabric, folds=top.folds(rng), seams=[*yoke, *panels] if denim else [], lift=0.04)
    drawing.add(_rib_hem(top, rib, 0.19))
    if denim:
        drawing.sew(_box(-0.08, 0.1, 0.08, 2.02), fabric.shade(-0.05), lift=0.02, depth=0.4)
        for number in range(6):
            drawing.button(0, 0.36 + number * 0.31, 0.04, (196, 150, 92))
        for side in (-1, 1):
            drawing.add(_patch_pocket(side * 0.48, 0.68, 0.19, fabric))
        drawing.both(_collar_half(top, fabric))
    else:
        _zip(drawing, 0.02, top.length + 0.19, fabric)
        collar = svg("M0,0.16 Q0.26,0.16 0.38,0.04 Q0.36,-0.1 0.28,-0.14 Q0.2,0.02 0,0.03")
        drawing.sew(collar.mirrored, rib, seams=_ribs((-0.4, 0), (0.4, 0), 0.3), lift=0.04)
        for side in (-1, 1):
            drawing.sew(
                tube([(side * 0.46, 1.2), (side * 0.6, 1.6)], [0.06, 0.06]), fabric.shade(0.3), lift=0.02
            )
    kind = "denim" if denim else ("leather" if fabric.kind == "leather" else "bomber")
    return _Sewn(drawing, f"{kind} jacket, {colour}", hangs=True)


def _parka(rng: random.Random) -> _Sewn:
    """A hooded parka with a furry edge."""
    colour, fabric = _cloth(rng, {"plain": 1})
    top = _Top(
        neck=0.36,
        neck_depth=0.14,
        shoulder=0.92,
        chest=0.9,
        waist=0.86,
        hem=0.98,
        length=rng.uniform(2.5, 2.8),
    )
    drawing = Drawing()
    fur = plain(mix((206, 182, 150), (120, 96, 76), rng.random() * 0.6))
    hood = svg("M0,-0.62 Q0.5,-0.62 0.56,-0.1 Q0.56,0.16 0.4,0.24 L0,0.3")
    _long_sleeve(drawing, top, fabric, rng, cuff=fabric.shade(0.1), length=1.95, width=0.6)
    seam = _seam(0.02, (-0.9, 1.42), (0, 1.48), (0.9, 1.42))
    drawing.sew(top.body(), fabric, folds=top.folds(rng), seams=[seam, top.hem_stitch()], lift=0.04)
    drawing.sew(_box(-0.1, 0.2, 0.1, top.length + 0.05), fabric.shade(0.05), lift=0.03, depth=0.4)
    for number in range(5):
        drawing.button(0, 0.5 + number * 0.42, 0.045, _trim(fabric.colour))
    for side in (-1, 1):
        drawing.add(_patch_pocket(side * 0.5, 1.72, 0.25, fabric.shade(0.03)))
        drawing.sew(_box(side * 0.24, 1.68, side * 0.76, 1.83), fabric.shade(0.06), lift=0.03)
    drawing.sew(hood.mirrored, fabric.shade(0.06), lift=0.05)
    face = ellipse(0, -0.18, 0.42, 0.42, 150)
    drawing.add(_fur(face, 0.12, fur, rng))
    drawing.sew(
        ellipse(0, -0.18, 0.31, 0.32), plain(mix(fabric.colour, (24, 20, 28), 0.6)), lift=0, depth=-0.8
    )
    return _Sewn(drawing, f"parka, {colour}")


# Trousers and skirts ----------------------------------------------------------------------------


def _trousers(
    rng: random.Random, fabric: Fabric, *, length: float, hem: float, waist: float = 0.6
) -> Drawing:
    """Trousers or shorts whose legs are `length` long and `hem` wide at the end."""
    drawing = Drawing()
    hip, crotch, spread = waist + 0.14, 1.02, 0.06 + 0.03 * length
    outer = hip + spread
    inner = max(0.04, outer - hem)
    denim = fabric.kind == "denim"
    thread: Colour | None = (214, 160, 84) if denim else None
    drawing.sew(
        Path(0, -0.05).curve(waist * 0.6, -0.06, waist, -0.1).line(waist, 0.1).line(0, 0.14).mirrored,
        fabric.shade(0.4),
    )
    path = (
        Path(0, 0.08)
        .line(waist, 0.04)
        .curve(hip, 0.4, hip + 0.02, 0.8)
        .curve(hip + 0.03, length * 0.6, outer, length)
        .curve((outer + inner) / 2, length + 0.07, inner, length + 0.03)
        .curve(inner * 0.7 + 0.01, (length + crotch) / 2, 0.0, crotch)
    )
    folds = []
    for side in (-1, 1):
        middle = side * (outer + inner) / 2
        folds += [
            _fold(
                0.06,
                rng.uniform(0.3, 0.6),
                (side * 0.03, crotch + 0.02),
                (side * 0.26, crotch - rng.uniform(0.05, 0.25)),
                (side * 0.5, crotch - rng.uniform(0.1, 0.3)),
            )
            for _ in range(2)
        ]
        if length > 2:
            knee, ankle = length * 0.58, length - 0.2
            folds += [
                _fold(0.05, rng.uniform(0.15, 0.5), (middle - 0.26, y), (middle, y + 0.07), (middle + 0.2, y))
                for y in (knee - 0.12, knee + 0.08, knee + 0.24, ankle)
            ]
        if not denim:
            folds.append(_fold(0.05, 0.35, (side * 0.36, 0.2), (middle, length)))
    inseam = [
        _seam(0.012, (side * 0.015, crotch - 0.02), (side * (inner + 0.02), length)) for side in (-1, 1)
    ]
    hems = [
        _seam(
            0.014,
            (side * (inner - 0.05), length - 0.08),
            (side * (inner + outer) / 2, length - 0.04),
            (side * (outer + 0.05), length - 0.11),
            colour=thread,
            dash=0.035,
        )
        for side in (-1, 1)
    ]
    pockets = [
        _seam(
            0.02,
            (side * 0.36, 0.1),
            (side * 0.42, 0.36),
            (side * (hip + 0.02), 0.46),
            colour=thread,
            dash=0.035 if denim else 0,
        )
        for side in (-1, 1)
    ]
    centre = _seam(0.02, (0, 0.1), (0, crotch))
    fly = _seam(0.014, (0.15, 0.1), (0.15, 0.5), (0.01, 0.74), colour=thread, dash=0.035)
    drawing.sew(path.mirrored, fabric, folds=folds, seams=[*inseam, *hems, *pockets, centre, fly], lift=0.03)
    return drawing


def _waistband(drawing: Drawing, fabric: Fabric, waist: float, *, elastic: bool) -> None:
    band = (
        Path(0, 0.0)
        .curve(waist * 0.6, -0.01, waist + 0.01, -0.06)
        .line(waist + 0.02, 0.1)
        .curve(waist * 0.6, 0.15, 0, 0.16)
    )
    if elastic:
        drawing.sew(
            band.mirrored, fabric.shade(0.06), seams=_ribs((-waist, 0.05), (waist, 0.05), 0.2), lift=0.02
        )
        lace = _trim(fabric.colour)
        for side in (-1, 1):
            drawing.sew(
                tube([(side * 0.03, 0.08), (side * 0.09, 0.3), (side * 0.07, 0.5)], [0.035, 0.035, 0.04]),
                plain(lace),
                lift=0.02,
            )
        return
    thread: Colour | None = (214, 160, 84) if fabric.kind == "denim" else None
    drawing.sew(
        band.mirrored,
        fabric.shade(0.05),
        seams=[_seam(0.012, (-waist, 0.08), (0, 0.13), (waist, 0.08), colour=thread, dash=0.035)],
        lift=0.02,
        depth=0.7,
    )
    for x in (-0.42, -0.2, 0.2, 0.42):
        drawing.sew(_box(x - 0.03, -0.03, x + 0.03, 0.17), fabric.shade(0.08), lift=0.015)
    drawing.button(0.02, 0.07, 0.045, (196, 150, 92) if fabric.kind == "denim" else _trim(fabric.colour))


def _pants(rng: random.Random) -> _Sewn:
    colour, fabric = _cloth(rng, {"denim": 5, "plain": 5, "checked": 1, "striped": 1})
    if fabric.kind == "striped":
        fabric = Fabric("striped", fabric.colour, mix(fabric.colour, fabric.accent, 0.4), 0.1, math.pi / 2, 0)
    shape, hem = rng.choice((("slim", 0.36), ("straight", 0.48), ("straight", 0.52), ("wide", 0.68)))
    elastic = fabric.kind == "plain" and rng.random() < 0.4
    length = rng.uniform(2.75, 3.15)
    drawing = _trousers(rng, fabric, length=length, hem=hem)
    _waistband(drawing, fabric, 0.6, elastic=elastic)
    noun = "jeans" if fabric.kind == "denim" else ("joggers" if elastic else "trousers")
    name = f"{shape} {noun}, {colour}" if noun == "jeans" else _called(fabric, colour, f"{shape} {noun}")
    return _Sewn(drawing, name)


def _shorts(rng: random.Random) -> _Sewn:
    colour, fabric = _cloth(rng, {"denim": 3, "plain": 4, "floral": 2, "checked": 1, "striped": 1})
    elastic = fabric.kind != "denim" and rng.random() < 0.6
    drawing = _trousers(rng, fabric, length=rng.uniform(1.35, 1.75), hem=rng.uniform(0.66, 0.76), waist=0.62)
    _waistband(drawing, fabric, 0.62, elastic=elastic)
    return _Sewn(drawing, _called(fabric, colour, "shorts"))


def _skirt_cloth(
    waist: float, hem: float, top: float, length: float, waves: int, rng: random.Random, *, flare: float = 0.5
) -> tuple[Points, list[Fold]]:
    """The outline of a falling skirt with a waving hem, and its folds."""
    across = np.linspace(hem, -hem, waves * 8 + 1)
    depth = 0.025 + 0.02 * rng.random()
    bottom = length + 0.10 * (1 - (across / hem) ** 2) + depth * np.cos(across / hem * math.pi * waves)
    right = (
        Path(waist, top)
        .curve(waist + (hem - waist) * flare * 0.6, top + (length - top) * 0.45, hem, bottom[0])
        .points
    )
    outline = np.concatenate([right, np.stack([across, bottom], axis=1), (right * (-1, 1))[::-1]])
    folds = []
    for number in range(-waves + 1, waves):
        share = (number + rng.uniform(-0.2, 0.2)) / waves
        start = top + (length - top) * rng.uniform(0.02, 0.4)
        part = (start - top) / (length - top)
        x0 = share * (waist + (hem - waist) * part * flare)
        middle = share * (waist + (hem - waist) * (0.3 + 0.5 * flare))
        folds.append(
            _fold(
                0.07 + 0.03 * rng.random(),
                rng.uniform(0.35, 0.75),
                (x0, start),
                (middle, (start + length) / 2),
                (share * hem * 0.98, length + 0.1),
            )
        )
    return outline, folds


def _skirt(rng: random.Random) -> _Sewn:
    colour, fabric = _cloth(
        rng, {"plain": 4, "checked": 3, "floral": 3, "dotted": 2, "denim": 1, "striped": 1}
    )
    shape = rng.choice(("pleated", "pleated", "flared", "pencil", "tiered"))
    length = rng.uniform(1.25, 1.9) if shape != "pencil" else rng.uniform(1.5, 1.8)
    drawing = Drawing()
    waist = 0.52
    drawing.sew(Path(0, -0.09).line(waist, -0.12).line(waist, 0.05).line(0, 0.1).mirrored, fabric.shade(0.4))
    if shape == "pencil":
        _pencil_skirt(drawing, fabric, waist, length, rng)
    elif shape == "tiered":
        for number in (2, 1, 0):
            top, bottom = 0.05 + length * number / 3, 0.05 + length * (number + 1) / 3
            upper, lower = waist + 0.17 * number, waist + 0.17 * number + 0.3
            outline, folds = _skirt_cloth(
                upper, lower, top - (0.05 if number else 0), bottom, 7, rng, flare=1.2
            )
            drawing.sew(outline, fabric, folds=folds, lift=0.06)
    else:
        hem = rng.uniform(0.95, 1.25)
        waves = rng.randint(7, 9) if shape == "pleated" else rng.randint(3, 5)
        outline, folds = _skirt_cloth(waist, hem, 0.05, length, waves, rng, flare=1.0)
        seams = [Seam(fold.points, 0.012) for fold in folds] if shape == "pleated" else []
        drawing.sew(outline, fabric, folds=folds, seams=seams)
    band = Path(0, 0).line(waist + 0.01, -0.04).line(waist + 0.03, 0.1).curve(waist * 0.6, 0.15, 0, 0.15)
    drawing.sew(band.mirrored, fabric.shade(0.1), lift=0.02, depth=0.7)
    if rng.random() < 0.4 and shape != "tiered":
        for number in range(4):
            drawing.button(0, 0.07 + number * length / 5, 0.04, _trim(fabric.colour))
    return _Sewn(drawing, _called(fabric, colour, f"{shape} skirt"))


def _pencil_skirt(drawing: Drawing, fabric: Fabric, waist: float, length: float, rng: random.Random) -> None:
    path = (
        Path(0, 0.05)
        .line(waist, 0.02)
        .curve(0.78, 0.35, 0.76, 0.8)
        .curve(0.72, length * 0.8, 0.66, length)
        .curve(0.3, length + 0.07, 0, length + 0.07)
    )
    darts = [_seam(0.014, (side * 0.26, 0.1), (side * 0.29, 0.42)) for side in (-1, 1)]
    slit = _seam(0.022, (0.3, length - 0.4), (0.32, length + 0.1))
    folds = [
        _fold(0.05, 0.35, (side * 0.74, 0.75), (side * 0.45, 0.8 + rng.random() * 0.1), (side * 0.15, 0.78))
        for side in (-1, 1)
    ]
    folds.append(_fold(0.06, 0.5, (0.3, length - 0.7), (0.32, length)))
    drawing.sew(path.mirrored, fabric, folds=folds, seams=[*darts, slit])


def _dress(rng: random.Random) -> _Sewn:
    colour, fabric = _cloth(rng, {"plain": 4, "floral": 5, "dotted": 2, "checked": 1, "striped": 1})
    sleeves = rng.choice(("straps", "none", "none", "short", "long"))
    waist_y = rng.uniform(1.2, 1.4)
    length = rng.uniform(2.5, 3.6)
    top = _Top(
        neck=rng.uniform(0.32, 0.42),
        neck_depth=rng.uniform(0.3, 0.55),
        v_neck=rng.random() < 0.5,
        shoulder=0.62 if sleeves in ("none", "straps") else 0.78,
        armhole=0.68,
        chest=0.66,
        waist=0.54,
        hem=0.52,
        length=waist_y,
    )
    drawing = Drawing()
    if sleeves != "straps":
        drawing.sew(top.back(), fabric.shade(0.4))
    if sleeves == "short":
        drawing.both(_short_sleeve(top, fabric, rng, rng.uniform(0.4, 0.6)))
    elif sleeves == "long":
        _long_sleeve(drawing, top, fabric, rng, cuff=fabric.shade(0.08), length=1.7, width=0.44)
    hem = rng.uniform(0.85, 1.35)
    outline, folds = _skirt_cloth(
        0.52, hem, waist_y - 0.02, length, rng.randint(4, 7), rng, flare=rng.uniform(0.9, 1.5)
    )
    drawing.sew(outline, fabric, folds=folds, lift=0.03)
    if sleeves == "straps":
        _strap_bodice(drawing, top, fabric, rng)
    else:
        drawing.sew(top.body(), fabric, folds=top.folds(rng)[:4], lift=0.02)
        if rng.random() < 0.5:
            drawing.add(_neckband(top, fabric.shade(0.15), 0.05))
        elif rng.random() < 0.4:
            for number in range(4):
                drawing.button(0, top.neck_depth + 0.12 + number * 0.2, 0.034, _trim(fabric.colour))
    belt = plain(fabric.accent) if rng.random() < 0.5 else fabric.shade(0.15)
    drawing.sew(_box(-0.54, waist_y - 0.06, 0.54, waist_y + 0.06), belt, lift=0.02, depth=0.7)
    if rng.random() < 0.3:
        for side in (-1, 1):
            drawing.sew(ellipse(side * 0.13, waist_y, 0.13, 0.075), belt, lift=0.03)
            drawing.sew(
                tube(
                    [(side * 0.03, waist_y), (side * 0.12, waist_y + 0.3), (side * 0.14, waist_y + 0.5)],
                    [0.05, 0.07, 0.09],
                ),
                belt,
                lift=0.03,
            )
        drawing.sew(ellipse(0, waist_y, 0.05, 0.06), belt.shade(0.1), lift=0.02)
    size = "maxi" if length > 3.2 else ("midi" if length > 2.85 else "summer")
    return _Sewn(drawing, _called(fabric, colour, f"{size} dress"), hangs=True)


def _strap_bodice(drawing: Drawing, top: _Top, fabric: Fabric, rng: random.Random) -> None:
    back = svg("M0,0.5 L0.5,0.45 L0.6,0.8 L0,0.85")
    drawing.sew(back.mirrored, fabric.shade(0.4), lift=0)
    drawing.both(
        Piece(
            tube([(0.38, 0.02), (0.4, 0.3), (0.4, 0.52)], [0.07, 0.07, 0.09]), fabric.shade(0.08), lift=0.02
        )
    )
    front = (
        Path(0, 0.56 + 0.1 * rng.random())
        .curve(0.2, 0.4, 0.42, 0.42)
        .curve(0.56, 0.5, 0.64, 0.7)
        .curve(0.6, 1.0, 0.52, top.length)
        .line(0, top.length + 0.03)
    )
    cups = [_fold(0.06, 0.4, (side * 0.1, 0.95), (side * 0.34, 1.0), (side * 0.55, 0.88)) for side in (-1, 1)]
    seams = [_seam(0.012, (side * 0.3, 0.95), (side * 0.24, top.length)) for side in (-1, 1)]
    drawing.sew(front.mirrored, fabric, folds=cups, seams=seams, lift=0.02)


# Hats and shoes ---------------------------------------------------------------------------------


def _hat(rng: random.Random) -> _Sewn:
    return rng.choice((_cap, _bucket_hat, _brimmed_hat, _brimmed_hat, _beanie))(rng)


def _cap(rng: random.Random) -> _Sewn:
    colour, fabric = _cloth(rng, {"plain": 4, "denim": 1, "checked": 1})
    drawing = Drawing()
    visor_cloth = plain(fabric.accent) if rng.random() < 0.4 else fabric.shade(0.06)
    under = svg("M0.2,0.86 Q1.1,0.72 1.78,1.02 Q1.3,1.14 0.5,1.08 L0.2,1")
    drawing.sew(under.points, visor_cloth.shade(0.5))
    dome = svg("M-1,1 Q-1.06,0.1 -0.12,0 Q0.88,0.04 0.94,0.86 Q0.1,1.06 -1,1")
    panels = [
        _seam(0.018, (-0.12, 0), (-0.5, 0.35), (-0.62, 1.02)),
        _seam(0.018, (-0.12, 0), (0.22, 0.3), (0.32, 1.0)),
        _seam(0.018, (-0.12, 0), (0.62, 0.28), (0.82, 0.9)),
        _seam(0.014, (-1, 0.9), (0, 0.95), (0.95, 0.78), dash=0.04),
    ]
    drawing.sew(
        dome.points,
        fabric,
        seams=panels,
        folds=[_fold(0.08, 0.3, (-0.8, 0.4), (-0.6, 0.7), (-0.75, 0.95))],
        depth=1.4,
    )
    for x, y in ((-0.36, 0.34), (0.02, 0.34), (0.52, 0.36)):
        drawing.sew(ellipse(x, y, 0.028, 0.028, 16), fabric.shade(0.5), lift=0)
    visor = svg("M0.08,0.93 Q0.6,0.78 0.95,0.8 Q1.6,0.82 1.82,1.02 Q1.2,0.98 0.6,1.08 Q0.2,1.1 0.08,0.93")
    rows = [
        _seam(0.01, (0.3, 0.95 + k), (0.9, 0.86 + k), (1.62, 0.96 + k), dash=0.03) for k in (0, 0.05, 0.1)
    ]
    drawing.sew(visor.points, visor_cloth, seams=rows, lift=0.05)
    drawing.sew(ellipse(-0.12, 0.0, 0.075, 0.045, 24), visor_cloth, lift=0.02)
    if rng.random() < 0.6:
        badge = plain(fabric.accent)
        drawing.sew(ellipse(0.56, 0.6, 0.16, 0.17), badge, lift=0.015, depth=0.5)
        drawing.sew(ellipse(0.56, 0.6, 0.08, 0.09), fabric, lift=0, depth=0.3)
    return _Sewn(drawing, _called(fabric, colour, "cap"))


def _bucket_hat(rng: random.Random) -> _Sewn:
    colour, fabric = _cloth(rng, {"plain": 3, "checked": 2, "floral": 2, "denim": 1, "striped": 1})
    drawing = Drawing()
    drawing.sew(ellipse(0, 0.98, 1.0, 0.2), fabric.shade(0.5))
    brim = svg("M0,0.82 L0.68,0.68 Q0.9,0.85 1.12,1.1 Q0.6,1.34 0,1.34")
    rows = [
        _seam(0.012, (-0.72 - k, 0.8 + 0.8 * k), (0, 0.99 + k), (0.72 + k, 0.8 + 0.8 * k), dash=0.035)
        for k in (0, 0.09, 0.18, 0.27)
    ]
    drawing.sew(
        brim.mirrored,
        fabric,
        seams=rows,
        folds=[_fold(0.1, 0.3, (x, 0.9), (x * 1.25, 1.3)) for x in (-0.5, 0.2, 0.6)],
    )
    crown = svg("M0,0.02 Q0.46,0 0.54,0.14 Q0.64,0.5 0.7,0.76 Q0.4,0.93 0,0.93")
    drawing.sew(
        crown.mirrored,
        fabric,
        folds=[
            _fold(0.09, 0.35, (-0.3, 0.2), (-0.34, 0.6), (-0.28, 0.85)),
            _fold(0.08, 0.3, (0.34, 0.3), (0.4, 0.8)),
        ],
        seams=[
            _seam(0.014, (0.5, 0.16), (0, 0.24), (-0.5, 0.16)),
            _seam(0.012, (-0.7, 0.7), (0, 0.86), (0.7, 0.7), dash=0.035),
        ],
        lift=0.05,
    )
    return _Sewn(drawing, _called(fabric, colour, "bucket hat"))


def _brimmed_hat(rng: random.Random) -> _Sewn:
    straw = rng.random() < 0.55
    if straw:
        colour = "natural"
        fabric = Fabric("straw", mix((226, 198, 150), (188, 150, 100), rng.random()), (150, 108, 66))
    else:
        colour, fabric = _cloth(rng, {"plain": 1})
    wide = rng.uniform(1.25, 1.6)
    drawing = Drawing()
    tilt = rng.uniform(0.2, 0.34)
    rings = [Seam(ellipse(0, 0.98, wide * k, tilt * k + 0.02), 0.012) for k in (0.78, 0.9)]
    drawing.sew(ellipse(0, 0.98, wide, tilt), fabric, seams=rings, depth=1.2)
    if rng.random() < 0.5:
        crown = svg("M0,0.06 Q0.2,0 0.42,0.06 Q0.58,0.2 0.66,0.94 Q0.4,1.12 0,1.12")
        dent = [_fold(0.07, 0.8, (-0.16, 0.06), (-0.1, 0.3), (0, 0.36), (0.1, 0.3), (0.16, 0.06))]
    else:
        crown = svg("M0,0.1 Q0.62,0.08 0.66,0.94 Q0.4,1.12 0,1.12")
        dent = [_fold(0.08, 0.25, (0.3, 0.3), (0.42, 0.8))]
    drawing.sew(crown.mirrored, fabric, folds=dent, depth=1.4, lift=0.08)
    band_colour = rng.choice(
        [c for c in COLOURS.values() if abs(lightness(c) - lightness(fabric.colour)) > 50]
    )
    band = svg("M0,0.9 Q0.4,0.9 0.645,0.74 L0.665,0.93 Q0.4,1.12 0,1.12")
    drawing.sew(band.mirrored, plain(band_colour), lift=0.02, depth=0.8)
    if rng.random() < 0.6:
        drawing.sew(
            _line((0.3, 0.84), (0.5, 0.74), (0.54, 1.02), (0.32, 1.1)),
            plain(mix(band_colour, (0, 0, 0), 0.12)),
            lift=0.03,
        )
        drawing.sew(
            _line((0.38, 0.86), (0.44, 0.83), (0.46, 1.02), (0.4, 1.05)),
            plain(mix(band_colour, (0, 0, 0), 0.25)),
            lift=0.02,
        )
    return _Sewn(drawing, f"straw hat, {colour}" if straw else f"felt hat, {colour}")


def _fur(outline: Points, length: float, fabric: Fabric, rng: random.Random) -> Piece:
    """A hairy piece: a pompom, or the edge of a hood."""
    centre = outline.mean(axis=0)
    hairs = []
    for end in outline:
        start = centre + (end - centre) * rng.uniform(0.1, 0.95)
        tip = start + (end - centre) * rng.uniform(0.1, 0.2) + rng.uniform(-0.02, 0.02)
        shade = fabric.shade(rng.uniform(-0.35, 0.35))
        hairs.append(Seam(np.array([start, tip]), 0.016, shade.colour))
    return Piece(fluffy(outline, length, rng), fabric, seams=hairs, depth=1.3)


def _beanie(rng: random.Random) -> _Sewn:
    colour, fabric = _cloth(rng, {"knit": 3, "striped": 1})
    drawing = Drawing()
    dome = svg("M0,0 Q0.5,0 0.7,0.5 Q0.8,0.8 0.78,1.15 L0,1.2")
    ribs = [_seam(0.014, (0.06 * k, 0.02), (0.12 * k, 0.5), (0.13 * k, 1.2)) for k in range(-6, 7)]
    folds = [Fold(shifted(seam.points, 0.05, 0), 0.05, 0.35) for seam in ribs]
    if rng.random() < 0.6:
        pompom = plain(fabric.accent if rng.random() < 0.5 else fabric.colour)
        drawing.add(_fur(ellipse(0, -0.14, 0.25, 0.25, 110), 0.1, pompom, rng))
    drawing.sew(dome.mirrored, fabric, folds=folds, seams=ribs, depth=1.4)
    cuff_cloth = (
        plain(fabric.accent)
        if rng.random() < 0.25
        else Fabric("knit", fabric.colour, fabric.shade(0.3).colour)
    )
    cuff = svg("M0,0.86 Q0.5,0.84 0.8,0.74 Q0.86,0.95 0.82,1.2 Q0.4,1.32 0,1.32")
    drawing.sew(cuff.mirrored, cuff_cloth, seams=_ribs((-0.82, 1.0), (0.82, 1.0), 0.4), lift=0.06)
    return _Sewn(drawing, f"beanie, {colour}" if fabric.kind == "knit" else _called(fabric, colour, "beanie"))


def _shoes(rng: random.Random) -> _Sewn:
    make, noun = rng.choice(
        (
            (_sneaker, "sneakers"),
            (_sneaker, "sneakers"),
            (_high_top, "high-tops"),
            (_pump, "heels"),
            (_boot, "ankle boots"),
            (_loafer, "loafers"),
        )
    )
    kinds = (
        {"plain": 3, "denim": 1, "checked": 1} if "sneak" in noun or "high-top" in noun else {"leather": 1}
    )
    colour, fabric = _cloth(rng, kinds)
    state = rng.getstate()
    near = make(fabric, rng)
    rng.setstate(state)  # the other shoe is the same one
    far = make(fabric.shade(0.12), rng)
    shift = (rng.uniform(0.3, 0.55), -rng.uniform(0.3, 0.42))
    pair = Drawing([*far.moved(*shift, 0.93).pieces, *near.pieces])
    return _Sewn(pair, _called(fabric, colour, noun), stands=True)


def _sole(drawing: Drawing, colour: Colour, height: float, line: Colour) -> None:
    path = (
        Path(-1.02, 0.74)
        .curve(-1.08, 0.9, -1.02, 0.74 + height)
        .line(0.8, 0.75 + height)
        .curve(1.16, 0.75 + height, 1.18, 0.72)
        .curve(0.9, 0.8, 0.2, 0.78)
        .line(-1.02, 0.74)
    )
    stripe = _seam(
        0.022,
        (-1.05, 0.76 + height * 0.5),
        (0.2, 0.79 + height * 0.5),
        (1.1, 0.73 + height * 0.4),
        colour=line,
    )
    tread = _seam(0.05, (-1.0, 0.74 + height), (0.9, 0.75 + height), colour=mix(line, (40, 36, 34), 0.5))
    drawing.sew(path.points, plain(colour), seams=[stripe, tread], lift=0.02, depth=0.7)


def _laces(drawing: Drawing, along: list[tuple[float, float]], colour: Colour) -> None:
    for x, y in along:
        drawing.sew(
            tube([(x - 0.13, y - 0.05), (x, y - 0.045), (x + 0.08, y + 0.07)], [0.05, 0.055, 0.05]),
            plain(colour),
            lift=0.025,
        )


def _sneaker(fabric: Fabric, rng: random.Random) -> Drawing:
    drawing = Drawing()
    inside = svg("M-0.98,0.1 Q-0.6,-0.02 -0.2,0.05 L-0.15,0.3 L-0.95,0.4")
    drawing.sew(inside.points, fabric.shade(0.5))
    tongue = svg("M-0.36,0.2 Q-0.28,-0.12 -0.1,-0.1 Q0.08,0.02 0.3,0.32 L0,0.5")
    drawing.sew(tongue.points, fabric.shade(0.12))
    upper = svg(
        "M-1.02,0.8 Q-0.98,0.5 -1.04,0.1 Q-0.96,-0.02 -0.84,0.08 Q-0.6,0.28 -0.34,0.12 "
        "Q-0.1,0.16 0.28,0.4 Q0.62,0.44 0.88,0.52 Q1.14,0.62 1.14,0.82 L-1.02,0.8"
    )
    seams = [
        _seam(0.018, (-0.34, 0.14), (-0.14, 0.5), (0.1, 0.62), (0.34, 0.42)),
        _seam(0.018, (-0.7, 0.24), (-0.64, 0.5), (-0.74, 0.8)),
        _seam(0.018, (0.5, 0.46), (0.52, 0.62), (0.66, 0.8)),
    ]
    drawing.sew(
        upper.points,
        fabric,
        seams=seams,
        lift=0.02,
        depth=1.2,
        folds=[_fold(0.05, 0.35, (0.3, 0.5), (0.4, 0.64), (0.36, 0.76))],
    )
    toe = svg("M0.62,0.8 Q0.66,0.5 0.86,0.52 Q1.14,0.62 1.15,0.82")
    style = rng.random()
    trim = plain(mix(fabric.accent, (255, 255, 255), 0.15))
    if style < 0.5:
        drawing.sew(toe.points, plain((240, 238, 232)), lift=0.015, depth=1.2)
    heel = svg("M-1.03,0.8 Q-0.99,0.5 -1.045,0.16 L-0.86,0.26 Q-0.8,0.5 -0.82,0.8")
    drawing.sew(heel.points, trim, lift=0.015)
    if style > 0.35:
        flash = svg("M-0.62,0.62 Q-0.2,0.78 0.26,0.46 Q-0.1,0.64 -0.5,0.52")
        drawing.sew(flash.points, trim, lift=0.015, depth=0.4)
    _sole(drawing, rng.choice(((244, 242, 236), (244, 242, 236), (206, 160, 110))), 0.2, fabric.accent)
    _laces(drawing, [(-0.14, 0.13), (0.0, 0.21), (0.13, 0.29), (0.26, 0.37)], (246, 245, 240))
    return drawing


def _high_top(fabric: Fabric, rng: random.Random) -> Drawing:
    drawing = Drawing()
    drawing.sew(ellipse(-0.58, -0.5, 0.4, 0.1), fabric.shade(0.5))
    tongue = svg("M-0.4,0 Q-0.3,-0.72 -0.12,-0.66 Q-0.06,-0.2 0.3,0.34 L0,0.5")
    drawing.sew(tongue.points, fabric.shade(0.1))
    upper = svg(
        "M-1.02,0.8 Q-0.94,0.3 -1,-0.48 Q-0.6,-0.4 -0.26,-0.52 Q-0.22,-0.1 -0.04,0.14 "
        "Q0.1,0.36 0.34,0.42 Q0.7,0.46 0.9,0.54 Q1.14,0.62 1.14,0.82 L-1.02,0.8"
    )
    seams = [
        _seam(0.016, (-0.4, -0.5), (-0.36, 0.1), (0.02, 0.6), (0.3, 0.62), dash=0.04),
        _seam(0.016, (-0.8, -0.48), (-0.82, 0.2), (-0.8, 0.8)),
    ]
    drawing.sew(
        upper.points,
        fabric,
        seams=seams,
        lift=0.02,
        depth=1.2,
        folds=[_fold(0.06, 0.4, (-0.7, 0.1), (-0.4, 0.16), (-0.2, 0.1))],
    )
    badge = plain((244, 242, 236))
    drawing.sew(ellipse(-0.62, -0.1, 0.16, 0.16), badge, lift=0.01, depth=0.4)
    drawing.sew(ellipse(-0.62, -0.1, 0.08, 0.08), plain(fabric.accent), lift=0, depth=0.2)
    toe = svg("M0.6,0.8 Q0.64,0.5 0.86,0.52 Q1.14,0.62 1.15,0.82")
    drawing.sew(toe.points, badge, lift=0.015, depth=1.2)
    _sole(drawing, (244, 242, 236), 0.19, rng.choice((COLOURS["red"], COLOURS["navy"], fabric.accent)))
    _laces(
        drawing,
        [(-0.28, -0.36), (-0.24, -0.2), (-0.18, -0.05), (-0.08, 0.09), (0.05, 0.22), (0.2, 0.33)],
        (246, 245, 240),
    )
    return drawing


def _pump(fabric: Fabric, rng: random.Random) -> Drawing:
    drawing = Drawing()
    height = rng.uniform(0.0, 0.35)
    heel = (
        Path(-0.98, 0.3)
        .curve(-0.92, 0.6, -0.93, 1.02 + height)
        .line(-0.8, 1.02 + height)
        .curve(-0.78, 0.7, -0.56, 0.48)
    )
    drawing.sew(heel.points, fabric.shade(0.2))
    ground = 1.0 + height
    drawing.sew(
        Path(-0.96, -0.1).curve(-0.5, 0.2, 0.3, ground - 0.42).line(0.2, ground - 0.1).line(-0.9, 0.4).points,
        plain((206, 172, 140)),
        lift=0,
    )
    upper = (
        svg("M-1,-0.16 Q-1.06,0.2 -0.96,0.42")
        .curve(-0.5, 0.5, -0.02, ground - 0.08)
        .curve(0.3, ground + 0.02, 0.9, ground)
        .curve(1.24, ground - 0.02, 1.3, ground - 0.1)
        .curve(1.1, ground - 0.26, 0.74, ground - 0.4)
        .curve(0.5, ground - 0.5, 0.36, ground - 0.5)
        .curve(0.3, ground - 0.24, -0.1, ground - 0.4)
        .curve(-0.6, 0.2, -1.0, -0.16)
    )
    drawing.sew(
        upper.points,
        fabric,
        depth=1.5,
        folds=[_fold(0.05, -0.6, (0.6, ground - 0.3), (0.9, ground - 0.2), (1.15, ground - 0.12))],
    )
    sole = tube([(-0.04, ground - 0.06), (0.4, ground + 0.01), (1.26, ground - 0.05)], [0.04, 0.05, 0.04])
    drawing.sew(sole, plain((60, 48, 46)), lift=0)
    if rng.random() < 0.5:
        for side in (-1, 1):
            drawing.sew(
                ellipse(0.55 + side * 0.1, ground - 0.46 + side * 0.03, 0.11, 0.07),
                fabric.shade(-0.15),
                lift=0.02,
            )
        drawing.sew(ellipse(0.55, ground - 0.46, 0.045, 0.05), fabric.shade(0.1), lift=0.01)
    return drawing


def _boot(fabric: Fabric, rng: random.Random) -> Drawing:
    drawing = Drawing()
    top = -rng.uniform(0.5, 0.9)
    drawing.sew(ellipse(-0.58, top + 0.02, 0.4, 0.09), fabric.shade(0.55))
    drawing.sew(_line((-1.0, 0.84), (-0.42, 0.84), (-0.48, 1.12), (-0.98, 1.12)), plain((58, 46, 42)))
    upper = (
        Path(-1.0, 0.9)
        .curve(-0.9, 0.4, -0.98, top)
        .curve(-0.58, top + 0.1, -0.18, top)
        .curve(-0.2, 0.0, -0.02, 0.28)
        .curve(0.2, 0.42, 0.6, 0.46)
        .curve(1.14, 0.56, 1.14, 0.9)
        .line(-1.0, 0.9)
    )
    drawing.sew(
        upper.points,
        fabric,
        depth=1.5,
        folds=[
            _fold(0.05, 0.6, (-0.3, 0.3), (-0.1, 0.4), (0.04, 0.36)),
            _fold(0.05, 0.5, (-0.34, 0.42), (-0.1, 0.5), (0.1, 0.44)),
            _fold(0.06, -0.5, (0.5, 0.56), (0.8, 0.6), (0.98, 0.7)),
        ],
        seams=[_seam(0.016, (0.1, 0.4), (0.2, 0.66), (0.16, 0.9))],
        lift=0.02,
    )
    if rng.random() < 0.55:
        gusset = (
            Path(-0.78, top + 0.07)
            .line(-0.4, top + 0.07)
            .curve(-0.46, 0.1, -0.56, 0.26)
            .curve(-0.7, 0.1, -0.78, top + 0.07)
        )
        drawing.sew(gusset.points, Fabric("knit", (52, 50, 54), (90, 88, 92)), lift=0, depth=0.5)
        drawing.sew(
            tube([(-0.96, top - 0.1), (-0.94, top + 0.12)], [0.07, 0.07]), fabric.shade(0.2), lift=0.02
        )
    else:
        _laces(drawing, [(-0.2, top + 0.15 + k * (0.12 - top) / 5) for k in range(5)], _trim(fabric.colour))
    sole = svg("M-1.02,0.88 L1.14,0.88 Q1.24,0.98 1.1,1.06 Q0.4,1.1 0.1,0.98 L-0.42,0.96 L-1.02,0.98")
    drawing.sew(sole.points, plain((58, 46, 42)), lift=0.01, depth=0.5)
    return drawing


def _loafer(fabric: Fabric, rng: random.Random) -> Drawing:
    drawing = Drawing()
    drawing.sew(
        svg("M-0.96,0.16 Q-0.4,0.1 0.16,0.3 L0.1,0.6 L-0.9,0.6").points,
        plain(mix(fabric.colour, (214, 180, 146), 0.75)),
    )
    upper = svg(
        "M-1.02,0.84 Q-0.98,0.5 -1.02,0.16 Q-0.7,0.5 -0.1,0.42 Q0.06,0.38 0.14,0.24 "
        "Q0.3,0.22 0.5,0.36 Q1.1,0.48 1.16,0.84 L-1.02,0.84"
    )
    apron = _seam(0.02, (0.3, 0.58), (0.6, 0.56), (0.98, 0.6), (1.04, 0.68))
    drawing.sew(
        upper.points,
        fabric,
        seams=[apron, _seam(0.016, (-0.6, 0.4), (-0.58, 0.6), (-0.66, 0.84))],
        depth=1.4,
        folds=[_fold(0.06, -0.5, (0.66, 0.5), (0.9, 0.56), (1.04, 0.7))],
    )
    strap = tube([(0.2, 0.22), (0.28, 0.44), (0.18, 0.72)], [0.2, 0.2, 0.18])
    drawing.sew(
        strap,
        fabric.shade(0.08),
        lift=0.03,
        seams=[_seam(0.03, (0.2, 0.4), (0.32, 0.42), colour=mix(fabric.colour, (0, 0, 0), 0.6))],
    )
    if rng.random() < 0.4:
        drawing.sew(tube([(0.18, 0.42), (0.36, 0.44)], [0.05, 0.05]), plain((214, 178, 96)), lift=0.02)
    drawing.sew(
        svg("M-1.04,0.82 L1.18,0.82 Q1.2,0.9 1.08,0.92 L-0.4,0.92 L-0.44,1.02 L-1.03,1.02").points,
        plain((66, 50, 44)),
        lift=0.01,
        depth=0.5,
    )
    return drawing


_SEWN: dict[str, Callable[[random.Random], _Sewn]] = {
    "dress": _dress,
    "hat": _hat,
    "longsleeve": _longsleeve,
    "outwear": _outwear,
    "pants": _pants,
    "shirt": _shirt,
    "shoes": _shoes,
    "shorts": _shorts,
    "skirt": _skirt,
    "t-shirt": _t_shirt,
}


# The photograph ---------------------------------------------------------------------------------


def _hanger(rng: random.Random) -> Drawing:
    """A hanger to lie under a top's shoulders, its hook above."""
    wood = plain(rng.choice(((190, 146, 100), (150, 108, 76), (226, 210, 188), (70, 62, 60))))
    hook = smooth((0, -0.12), (0, -0.34), (0.11, -0.42), (0.1, -0.58), (-0.03, -0.62), (-0.1, -0.54))
    drawing = Drawing()
    drawing.sew(tube(list(map(tuple, hook[::6])), [0.035] * len(hook[::6])), plain(_METAL), lift=0.02)
    arms = svg("M0,-0.14 Q0.2,-0.1 0.58,0.13 L0.56,0.24 Q0.2,0.05 0,0.02")
    drawing.sew(arms.mirrored, wood, lift=0.03, depth=1.2)
    return drawing


def _photograph(sewn: _Sewn, category: str, rng: random.Random) -> Photograph:
    drawing = sewn.drawing
    hung = sewn.hangs and rng.random() < 0.45
    if hung:
        drawing = Drawing([*_hanger(rng).pieces, *drawing.pieces])
    long_side = rng.choice((240, 300, 320, 360, 400, 400, 400, 480, 480, 500, 512, 600, 600, 640, 720, 900))
    width, height = rng.choice(((1, 1), (1, 1), (3, 4), (3, 4), (4, 5), (4, 3)))
    unit = long_side / max(width, height)
    width, height = round(width * unit), round(height * unit)
    if hung:
        ground, turn = rng.choice(("plain", "gradient", "wall", "wall")), 0.0
    elif sewn.stands:
        ground, turn = rng.choice(("plain", "gradient", "wood")), 0.0
    else:
        ground = rng.choice(("plain", "plain", "gradient", "wood", "linen"))
        turn = rng.gauss(0, 0.07) if category != "hat" else rng.gauss(0, 0.03)
    canvas = Canvas(
        drawing,
        width,
        height,
        fill=rng.uniform(0.74, 0.92),
        shift=(rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3)),
        turn=turn,
    )
    if rng.random() < 0.04:
        return Photograph(sewn.name, _saved(canvas.cut_out(), "PNG", compress_level=1), "png")
    picture = canvas.over(background(ground, width, height, rng), rng)
    data, extension = _encoded(picture, rng)
    return Photograph(sewn.name, data, extension)


def _encoded(picture: Image.Image, rng: random.Random) -> tuple[bytes, str]:
    """The picture's file and extension: mostly a plain JPEG, sometimes what else shops hold."""
    kind = rng.choices(
        ("jpeg", "turned", "cmyk", "grey", "png", "webp", "gif"), weights=(78, 5, 2, 1, 4, 6, 4)
    )[0]
    quality = rng.randint(80, 94)
    if kind == "png":
        return _saved(picture, "PNG", compress_level=1), "png"
    if kind == "webp":
        return _saved(picture, "WEBP", quality=quality, method=0), "webp"
    if kind == "gif":
        return _saved(picture.quantize(255, method=Image.Quantize.FASTOCTREE), "GIF"), "gif"
    if kind == "cmyk":
        return _saved(picture.convert("CMYK"), "JPEG", quality=quality), "jpg"
    if kind == "grey":
        return _saved(picture.convert("L"), "JPEG", quality=quality), "jpg"
    if kind == "turned":
        # The orientation tag says how a viewer has to turn the picture to have it upright.
        tag, back = rng.choice(
            ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270))
        )
        exif = Image.Exif()
        exif[0x0112] = tag
        return _saved(picture.transpose(back), "JPEG", quality=quality, exif=exif), "jpg"
    return _saved(picture, "JPEG", quality=quality), "jpg"


def _saved(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()
