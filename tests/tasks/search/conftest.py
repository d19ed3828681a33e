"""What the tests of tasks/search share."""

import pytest

from tasks.search.index import SearchIndex
from tasks.search.queries import ItemQueries
from tests.shop_fixtures import search_connection


@pytest.fixture
def search(elasticsearch_url, index):
    """A SearchIndex over an index of the test's own, which is not there yet."""
    return SearchIndex(search_connection(elasticsearch_url), index)


@pytest.fixture
def queries(elasticsearch_url, index):
    """What pages ask of the same index."""
    return ItemQueries(search_connection(elasticsearch_url), index)
