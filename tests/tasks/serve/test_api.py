"""Tests of what tasks/serve/api.py takes; tests of the process itself do the rest."""

import json

import pytest
from pydantic import ValidationError

from tasks.serve.api import SaveAllImageInfo
from tasks.settings import Settings


def test_a_category_is_what_the_shop_s_pattern_matches() -> None:
    settings = Settings(category_pattern="[a-z]+/[a-z]+")
    whole = {"item_id": "1", "item_name": "x", "category_id": "shoes/boots", "img_url": "http://a/b"}
    taken = SaveAllImageInfo.model_validate_json(json.dumps(whole), context=settings)
    assert taken.category_id == "shoes/boots"
    for other in ("00000030", "shoes/", "shoes/boots\n"):
        with pytest.raises(ValidationError, match="FEATURES_CATEGORY_PATTERN"):
            SaveAllImageInfo.model_validate_json(json.dumps(whole | {"category_id": other}), context=settings)
