import math
import random

import numpy as np
import pytest
from PIL import Image

from local_stack.drawing import (
    Canvas,
    Drawing,
    Fabric,
    Fold,
    Path,
    Piece,
    Seam,
    background,
    ellipse,
    plain,
    smooth,
    svg,
    tube,
)

RED = (200, 30, 30)
BLUE = (30, 30, 200)


def square(side: float = 2.0) -> np.ndarray:
    return np.array([(0, 0), (side, 0), (side, side), (0, side)], dtype=float)


def test_a_path_in_svg_notation_is_the_path_built_by_hand() -> None:
    built = Path(0.5, -1).line(1, 2).curve(0, 0, -1, 0.25)
    assert svg("M0.5,-1 L1,2 Q0,0 -1,.25").points == pytest.approx(built.points)


def test_a_mirrored_path_is_symmetric() -> None:
    outline = Path(0, 0).line(1, 0.5).line(0, 2).mirrored
    assert outline.tolist() == [[0, 0], [1, 0.5], [0, 2], [0, 2], [-1, 0.5], [0, 0]]


def test_a_smooth_line_goes_through_its_points() -> None:
    points = [(0.0, 0.0), (1.0, 2.0), (3.0, 1.0)]
    line = smooth(*points)
    assert min(np.linalg.norm(line - points[1], axis=1)) < 1e-9
    assert line[0].tolist() == [0, 0]
    assert line[-1].tolist() == [3, 1]


def test_a_tube_has_its_widths() -> None:
    outline = tube([(0, 0), (0, 1), (0, 2)], [0.4, 0.4, 0.4])
    assert np.abs(outline[:, 0]) == pytest.approx(0.2)


@pytest.mark.parametrize("fill", [0.5, 0.9])
def test_the_drawing_takes_its_share_of_the_picture(fill: float) -> None:
    drawing = Drawing([Piece(square(), plain(RED))])
    alpha = np.asarray(Canvas(drawing, 200, 300, fill=fill).cut_out())[..., 3] > 127
    rows, columns = np.nonzero(alpha)
    assert abs(np.ptp(columns) + 1 - 200 * fill) <= 1
    assert abs(np.ptp(rows) + 1 - 200 * fill) <= 1
    # In the middle of both directions.
    assert abs(columns.mean() - 99.5) <= 1
    assert abs(rows.mean() - 149.5) <= 1


def test_a_turned_drawing_stays_inside_the_picture() -> None:
    drawing = Drawing([Piece(square(), plain(RED))])
    alpha = np.asarray(Canvas(drawing, 200, 200, fill=0.9, turn=math.pi / 4, shift=(1, -1)).cut_out())[..., 3]
    # A square on its corner covers half of the square around it.
    assert (alpha > 127).sum() == pytest.approx(0.5 * 180**2, rel=0.02)


def test_stripes_take_their_share_and_follow_the_cloth() -> None:
    cloth = Fabric("striped", RED, BLUE, period=0.5)
    across, down = np.meshgrid(np.arange(0, 2, 0.01, np.float32), np.arange(0, 2, 0.01, np.float32))
    lying = cloth.paint(across, down, 0.01)
    assert np.ptp(lying, axis=1).max() < 1e-3  # along a stripe nothing changes
    blue = lying[:, 0, 2] > 115
    assert blue.mean() == pytest.approx(0.42, abs=0.03)
    standing = cloth.turned(math.pi / 2).paint(across, down, 0.01)
    assert np.ptp(standing, axis=0).max() < 1e-3


@pytest.mark.parametrize("kind", ["checked", "dotted", "floral", "denim", "knit", "straw"])
def test_a_patterned_cloth_shows_two_colours(kind: str) -> None:
    across, down = np.meshgrid(np.arange(0, 2, 0.01, np.float32), np.arange(0, 2, 0.01, np.float32))
    painted = Fabric(kind, RED, (250, 250, 250)).paint(across, down, 0.01)
    assert painted.shape == (200, 200, 3)
    assert painted[..., 1].std() > 5
    assert painted.min() >= 0
    assert painted.max() <= 255


def test_a_floral_print_repeats() -> None:
    # Between the cells of the print, where rounding cannot decide.
    across, down = np.meshgrid(np.arange(0.005, 0.6, 0.01), np.arange(0.005, 0.6, 0.01))
    cloth = Fabric("floral", RED, BLUE, period=0.2)
    painted = cloth.paint(across, down, 0.01)
    assert painted.tolist() == cloth.paint(across + 0.6, down - 1.2, 0.01).tolist()
    assert painted.tolist() != cloth.paint(across + 0.3, down, 0.01).tolist()


def test_folds_darken_and_seams_draw_lines() -> None:
    line = np.array([(0, 1), (2, 1)], dtype=float)

    def middle(*, folds: list[Fold] = [], seams: list[Seam] = []) -> np.ndarray:  # noqa: B006
        canvas = Canvas(Drawing([Piece(square(), plain((150, 150, 150)), folds, seams)]), 200, 200, fill=1.0)
        return np.asarray(canvas.cut_out())[100, 60:140, :3].mean(axis=0)

    assert middle(folds=[Fold(line)]).mean() < middle().mean() - 10
    assert middle(seams=[Seam(line, 0.05)]).mean() < middle().mean() - 30
    coloured = middle(seams=[Seam(line, 0.05, RED)])
    assert coloured[0] - coloured[2] > 100


def test_a_mirrored_piece_is_the_other_sleeve() -> None:
    left = Piece(
        np.array([(0.2, 0), (1, 0), (1, 1)]), plain(RED), seams=[Seam(np.array([(0.5, 0), (1, 0)]), 0.1)]
    )
    assert left.mirrored.outline.tolist() == [[-0.2, 0], [-1, 0], [-1, 1]]
    assert left.mirrored.seams[0].points.tolist() == [[-0.5, 0], [-1, 0]]
    assert left.mirrored.seams[0].width == 0.1


def test_the_shadow_falls_beside_the_drawing() -> None:
    drawing = Drawing([Piece(ellipse(0, 0, 1, 1), plain(RED))])
    picture = Canvas(drawing, 200, 200, fill=0.5).over(
        np.full((200, 200, 3), 240, np.float32), random.Random(1)
    )
    grey = np.asarray(picture.convert("L"), float)
    below, far = grey[153:156, 95:110].mean(), grey[190:198, 2:10].mean()
    assert below < far - 10
    assert far == pytest.approx(240, abs=3)


@pytest.mark.parametrize("kind", ["plain", "gradient", "wall", "wood", "linen"])
def test_backgrounds_fill_the_picture(kind: str) -> None:
    ground = background(kind, 90, 120, random.Random(3))
    assert ground.shape == (120, 90, 3)
    assert ground.min() >= 0
    assert ground.max() <= 256
    assert Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8)).getextrema()[0][1] > 60
