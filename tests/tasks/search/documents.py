"""Documents as others and we write them."""

import pytest

from tasks.search.mapping import FEATURE, URL, VERSION
from tests.shop_fixtures import some_vector

HALF_WORDS = pytest.mark.xdist_group("half words")
"""Of tests that find half words, and of the one that forbids them to all who use the server."""


def put(client, index, item_id, /, **fields):
    """Write a document whole and refresh."""
    client.index(index=index, id=item_id, document=fields, refresh=True)


def with_feature(url, version="v1", seed=1):
    """The fields that we add."""
    return {FEATURE: some_vector(seed).tolist(), VERSION: version, URL: url}
