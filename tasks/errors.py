"""The errors a run can end with, by what should happen next.

Airflow imports these names while it parses the DAGs, so this module imports nothing.
"""


class FeatureIndexError(Exception):
    """Base of every error raised on purpose: its message says what is wrong and what to do."""


class ConfigurationError(FeatureIndexError):
    """Something a person has to change first; running again as it is would fail again."""


class ServiceUnavailableError(FeatureIndexError):
    """The catalogue, Elasticsearch or the data dir did not answer; a later attempt may succeed."""


class RunFailedError(FeatureIndexError):
    """The run did all it could and its report says why that is not enough."""
