"""What the tests of tasks/search share."""

import pytest

from tasks.search.index import SearchIndex
from tests.shop_fixtures import search_connection


@pytest.fixture
def search(elasticsearch_url, index):
    """A SearchIndex over an index of the test's own, which is not there yet."""
    return SearchIndex(search_connection(elasticsearch_url), index)
