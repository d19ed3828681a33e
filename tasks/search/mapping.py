"""The fields of our documents, what an index must be to take them, and which model its features are of."""

import base64
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigurationError
from tasks.inference import fingerprint
from tasks.inference.model import Identity
from tasks.search.client import IndexClient

log = logging.getLogger(__name__)

FEATURE = "imagenet_feature"
VERSION = "imagenet_feature_version"
URL = "imagenet_feature_img_url"
IMAGE = "imagenet_feature_image"
AT = "imagenet_feature_at"
COMPACT = "imagenet_feature_compact"
COMPACT_VERSION = "imagenet_feature_compact_version"
GROUP = "imagenet_feature_group"


def _vector(dims: int) -> dict[str, Any]:
    # The index type is named: what Elasticsearch takes by default depends on its version and licence.
    index_options = {"type": "int8_hnsw"}
    return {
        "type": "dense_vector",
        "dims": dims,
        "similarity": "cosine",
        "index": True,
        "index_options": index_options,
    }


FIELDS: dict[str, dict[str, Any]] = {
    FEATURE: _vector(2048),
    VERSION: {"type": "keyword"},
    URL: {"type": "keyword", "ignore_above": 8191},
    IMAGE: {"type": "keyword"},
    AT: {"type": "date"},
    COMPACT: _vector(128),
    COMPACT_VERSION: {"type": "keyword"},
    GROUP: {"type": "keyword"},
}
"""The fields we add to the shop's documents."""

FINGERPRINTS = "imagenet_feature_fingerprints"
"""What we add to the mapping's `_meta`: the fingerprint of the model that made the features of a version, by
version. It lies in the index, since it is there that features must not mix."""

PACKED = [{"field": FEATURE, "format": "binary"}]
"""Features as base64: as numbers they take eight times as long to read."""
PACKED_COMPACT = {"field": COMPACT, "format": "binary"}
"""Compact vectors, likewise."""

_OLDEST_SERVER = (9, 3)


def check_server(index: IndexClient) -> None:
    """Refuse a server that is too old.

    Raises:
        ConfigurationError: naming its version.
    """
    from elasticsearch import AuthorizationException

    try:
        # The root answers versions too, but not on every distribution of the server.
        nodes = index.client.nodes.info(filter_path="nodes.*.version")["nodes"].values()
        versions = [node["version"] for node in nodes]
    except AuthorizationException:
        versions = [index.client.info()["version"]["number"]]
    oldest = min(versions, key=_major_and_minor)
    if _major_and_minor(oldest) < _OLDEST_SERVER:
        raise ConfigurationError(f"Elasticsearch at {index.url} is {oldest}; the features need 9.3 or newer.")


def compatible_mapping(index: IndexClient) -> tuple[str, Mapping[str, Any]]:
    """The one index behind a name and its mapping, once that is seen to take the feature.

    Raises:
        ConfigurationError: it cannot take it, or the name stands for several.
    """
    found = index.client.indices.get(index=index.name)
    (concrete, described), *others = found.items()
    if others or index.name not in (concrete, *described["aliases"]):
        raise ConfigurationError(
            f"FEATURES_INDEX={index.name} stands for {', '.join(sorted(found))}. "
            "It must be the name of one index, or an alias of one."
        )
    alias = described["aliases"].get(index.name, {})
    if restrictions := [word for word in ("filter", "index_routing", "search_routing") if alias.get(word)]:
        raise ConfigurationError(
            f"FEATURES_INDEX={index.name} is an alias of {concrete} with {' and '.join(restrictions)}: what "
            "it finds, reads and writes are not the same documents. Set it to the index itself, or to an "
            "alias without filter and routing."
        )
    mode = described["settings"]["index"].get("mapping", {}).get("source", {}).get("mode")
    _check_mapping(concrete, described["mappings"], keeps_source=mode != "disabled")
    return concrete, described["mappings"]


def _major_and_minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _check_mapping(index: str, mapping: Mapping[str, Any], *, keeps_source: bool) -> None:
    source = mapping.get("_source", {})
    if not keeps_source or source.get("enabled") is False:
        raise ConfigurationError(
            f"The index {index} keeps no _source, so documents cannot be updated in part. "
            "Reindex it with _source enabled."
        )
    # Not only for our fields: our own partial updates would wipe whatever else is left out.
    if source.get("excludes") or source.get("includes", ["*"]) != ["*"]:
        raise ConfigurationError(
            f"The mapping of {index} leaves fields out of _source (excludes {source.get('excludes', [])}, "
            f"includes {source.get('includes', [])}): any partial update of a document wipes them. Reindex "
            "with a mapping whose _source has neither; Elasticsearch 9.2 and newer keeps vectors out of the "
            "stored source by itself."
        )
    if mapping.get("_routing", {}).get("required"):
        raise ConfigurationError(
            f"The mapping of {index} requires a routing of each document (_routing.required), and features "
            "are written by a document's id alone. Reindex into an index whose mapping does not require it, "
            'with "routing": "discard".'
        )
    properties = mapping.get("properties", {})
    for field, wanted in FIELDS.items():
        held = properties.get(field)
        if held is None:
            continue
        for key in ("type", "dims", "similarity"):
            if key in wanted and held.get(key) != wanted[key]:
                raise ConfigurationError(
                    f"The field {field} of {index} has {key} {held.get(key)!r}, but must have "
                    f"{wanted[key]!r}. A field's mapping cannot be changed: reindex without the field, or "
                    "point FEATURES_INDEX at another index."
                )
        if wanted.get("index") and held.get("index") is False:
            raise ConfigurationError(
                f"The field {field} of {index} is not indexed, so no search can use it. "
                "Reindex with index: true."
            )


def refuse_another_model(index: IndexClient, model: Identity) -> bool:
    """Refuse an index whose features have the model's version and come from one that computes something else.

    Returns:
        Whether the index says what the model of this version computes; else it may be any.

    Raises:
        ConfigurationError: naming both fingerprints.
    """
    with index.errors_explained():
        answer = index.client.indices.get_mapping(index=index.name, filter_path="*.mappings._meta")
    every = [_fingerprints(found["mappings"]["_meta"]) for found in answer.values()]
    noted = [str(known[model.version]) for known in every if model.version in known]
    for made in noted:
        if not fingerprint.same(made, model.fingerprint):
            raise ConfigurationError(
                f"The features {model.version} in the index {index.name} were made by a model that computes "
                "something else with the same weights, as one does that scales pictures otherwise: its "
                f"fingerprint is {made}, that of the model here {model.fingerprint}. Such features cannot be "
                "compared. Install the model they were made with, or take another index."
            )
    return bool(noted)


def note_model(index: IndexClient, concrete: str, model: Identity) -> None:
    """Note in the index behind the name, which is `concrete`, what the model of this version computes, unless
    that is noted; errors as of `refuse_another_model`."""
    from elasticsearch import AuthorizationException

    if not model.fingerprint or refuse_another_model(index, model):
        return
    with index.errors_explained():
        (found,) = index.client.indices.get_mapping(index=concrete).values()
        meta = found["mappings"].get("_meta", {})
        known = _fingerprints(meta) | {model.version: model.fingerprint}
        try:
            # All of `_meta` is replaced, the shop's own part of it, too.
            index.client.indices.put_mapping(index=concrete, meta=meta | {FINGERPRINTS: known})
        except AuthorizationException:
            log.warning(
                "The index %s cannot note which model its features are of: that takes the privilege to "
                "change its mapping (docs/access.md). Another model with the same weights will not be "
                "distinguished from it.",
                concrete,
            )


def _fingerprints(meta: Mapping[str, Any]) -> dict[str, Any]:
    held = meta.get(FINGERPRINTS)
    return held if isinstance(held, dict) else {}


def vector_of(hit: Mapping[str, Any], field: str = FEATURE) -> NDArray[np.float32] | None:
    """The feature [2048], or the compact vector [128], of a document that was asked for it as PACKED has it;
    None where it has none."""
    values = hit.get("fields", {}).get(field)
    if values is None:
        return None
    return unpacked(values[0]) if isinstance(values[0], str) else unpacked(values)


def unpacked(values: str | Sequence[Any]) -> NDArray[np.float32]:
    """A vector that Elasticsearch gives in base64, or, as a server before 9.4 does, in numbers."""
    if isinstance(values, str):
        return np.frombuffer(base64.b64decode(values), ">f4").astype(np.float32)
    return np.array(values, np.float32).ravel()


def of_version(version: str) -> dict[str, Any]:
    """The query for documents with a feature of a version."""
    return {"bool": {"filter": [{"term": {VERSION: version}}, {"exists": {"field": FEATURE}}]}}


def not_of_version(version: str) -> dict[str, Any]:
    """The query for documents without a feature of a version."""
    return {"bool": {"must_not": [of_version(version)]}}


def of_space(space: str) -> dict[str, Any]:
    """The query for documents with a compact vector of a space."""
    return {"bool": {"filter": [{"term": {COMPACT_VERSION: space}}, {"exists": {"field": COMPACT}}]}}
