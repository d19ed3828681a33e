"""A sample of the kill test; `make torture` is the long one."""

import random

import pytest

from tests.torture.kills import chosen
from tests.torture.shop import running_shop
from tests.torture.stage_rounds import KILLED, STOPPED, StageRounds

CHUNKS = 2
KILLS = [
    ("download", "middle", KILLED),
    ("extract", "end", KILLED),
    ("index", "middle", STOPPED),
]

pytestmark = pytest.mark.slow


def test_run_with_killed_stages_leaves_what_an_undisturbed_one_leaves(
    tmp_path, search_client, elasticsearch_url
):
    rng = random.Random(4816)
    kills = [chosen(stage, moment, CHUNKS, way, rng) for stage, moment, way in KILLS]
    with running_shop(tmp_path, search_client, elasticsearch_url, CHUNKS, pictures_in_chunk=10) as shop:
        hits = StageRounds(shop).run(1, kills)
    # One may come after its stage's end: it takes longer one time than another.
    assert len(hits) > 1
