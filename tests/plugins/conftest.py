"""What the tests of the pages share."""

from tests.plugins.site import site

__all__ = ["site"]
