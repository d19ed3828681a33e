"""Which model: features of one that computes something else with the same weights come into no index."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import ConfigurationError
from tasks.inference import graph, model
from tasks.inference.model import Identity
from tasks.runs import packs
from tasks.runs.run import Plan, Request
from tasks.search.mapping import FINGERPRINTS, VERSION
from tasks.settings import Settings
from tasks.stages import extract, plan
from tests.shop_fixtures import NOON, SmallShop

pytestmark = pytest.mark.model

BACKFILL = Request("backfill", "r", category_ids=("00000010",))


def save(folder: Path, change: str = "") -> Path:
    """Write a small network, two of whose layers have one shape; a change leaves its weights as they are."""
    import tensorflow as tf

    random = np.random.default_rng(8)
    shapes = ([3, 3, 3, 16], [3, 3, 16, 16], [3, 3, 16, 16], [16, 2048])
    weights = [
        random.standard_normal(shape, np.float32) / np.float32(np.prod(shape[:-1])) ** 0.5 for shape in shapes
    ]

    class Network(tf.Module):
        variables: Any = ()

        def __init__(self) -> None:
            order = [3, 1, 0, 2] if change == "the file's order" else range(4)
            made = {number: tf.Variable(weights[number]) for number in order}
            self.variables = [made[number] for number in order]
            self.layers = [made[number] for number in range(4)]

        @tf.function(input_signature=[tf.TensorSpec([None, 299, 299, 3], tf.float32)])
        def __call__(self, pictures: Any) -> Any:
            first, second, third, last = self.layers
            if change == "weights exchanged":
                second, third = third, second
            if change == "preprocessing size":
                pictures = tf.image.resize(pictures, [224, 224])
            if change == "colours":
                pictures = pictures[..., ::-1]
            scaled = pictures if change == "scaling" else pictures * 2 - 1
            one = tf.nn.relu(tf.nn.conv2d(scaled, first, 2, "VALID"))
            two = tf.nn.relu(tf.nn.conv2d(one, second, 2, "VALID"))
            three = tf.nn.relu(tf.nn.conv2d(two, third, 2, "VALID"))
            pooled = tf.reduce_mean(two if change == "layer" else three, [1, 2])
            features = tf.nn.relu(pooled @ last)
            return features * 0.5 if change == "result" else features

    tf.saved_model.save(Network(), str(folder))
    return folder


CHANGES = ("scaling", "preprocessing size", "layer", "weights exchanged", "colours", "result")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the model with a change; one that is asked for again is not made again."""
    made: dict[str, Path] = {}

    def folder(change: str = "") -> Path:
        if change not in made:
            made[change] = save(tmp_path_factory.mktemp("model") / "model", change)
        return made[change]

    return folder


def settings_of(folder: Path, data_dir: Path, **changes: Any) -> Settings:
    return Settings(model_dir=folder, data_dir=data_dir, image_hosts=("*",), precision="float32", **changes)


def state(shop: SmallShop) -> Any:
    return shop.client.indices.get_mapping(index=shop.index), shop.sequence_numbers()


@pytest.mark.parametrize("change", CHANGES)
def test_another_fingerprint_under_a_known_version_stops_a_run_and_a_preview(
    change: str, models: Callable[..., Path], sqlite_shop: SmallShop
) -> None:
    shop = sqlite_shop
    shop.stock("a", "b")
    ours, theirs = shop.settings(model_dir=models()), shop.settings(model_dir=models(change))
    assert model.feature_version(ours) == model.feature_version(theirs), "the weights are the same"
    first = plan.run(BACKFILL, ours, shop.services)
    before, plans = state(shop), set(shop.data_dir.rglob("plan.json"))

    for mix in (False, True):
        for dry_run in (True, False):
            request = Request("backfill", "other", category_ids=("00000010",), dry_run=dry_run)
            changed = theirs.model_copy(update={"mix_versions": mix})
            with pytest.raises(
                ConfigurationError, match="computes something else with the same weights"
            ) as no:
                plan.run(request, changed, shop.services)
            assert first.fingerprint in str(no.value)
            assert model.identity(theirs).fingerprint in str(no.value)
    assert state(shop) == before
    assert set(shop.data_dir.rglob("plan.json")) == plans
    assert plan.run(BACKFILL, ours, shop.services).planned == 2


def test_the_same_network_from_a_file_of_another_order_is_the_same_model(
    models: Callable[..., Path], sqlite_shop: SmallShop
) -> None:
    shop = sqlite_shop
    shop.stock("a")
    plan.run(BACKFILL, shop.settings(model_dir=models()), shop.services)
    again = plan.run(BACKFILL, shop.settings(model_dir=models("the file's order")), shop.services)
    assert again.planned == 1


def test_the_index_notes_the_model_once_beside_what_the_shop_has_there(
    models: Callable[..., Path], sqlite_shop: SmallShop
) -> None:
    shop = sqlite_shop
    shop.stock("a")
    shop.client.indices.put_mapping(index=shop.index, meta={"owner": "search team", "picture": {"a": 1}})
    settings = shop.settings(model_dir=models())
    version, fingerprint = model.identity(settings)
    preview = Request("backfill", "p", category_ids=("00000010",), dry_run=True)
    assert plan.run(preview, settings, shop.services).notices == ()

    def meta() -> Any:
        (found,) = shop.client.indices.get_mapping(index=shop.index).values()
        return found["mappings"]["_meta"]

    assert FINGERPRINTS not in meta(), "a preview touches nothing"
    assert plan.run(BACKFILL, settings, shop.services).notices == ()
    noted = {"owner": "search team", "picture": {"a": 1}, FINGERPRINTS: {version: fingerprint}}
    assert meta() == noted
    plan.run(BACKFILL, settings, shop.services)
    assert meta() == noted


def test_features_of_before_fingerprints_were_noted_are_said_and_noted_at_the_first_write(
    models: Callable[..., Path], sqlite_shop: SmallShop
) -> None:
    shop = sqlite_shop
    shop.stock("a", "b")
    settings = shop.settings(model_dir=models())
    version, _ = model.identity(settings)
    # As the core server maps a string that it has not met: aggregations need the keyword.
    shop.client.indices.put_mapping(index=shop.index, properties={VERSION: {"type": "keyword"}})
    shop.client.update(index=shop.index, id="a", doc={VERSION: version}, refresh=True)
    (notice,) = plan.run(BACKFILL, settings, shop.services).notices
    assert f"holds features of {version} and does not say what their model computes" in notice
    assert plan.run(BACKFILL, settings, shop.services).notices == ()
    with pytest.raises(ConfigurationError, match="computes something else"):
        plan.run(BACKFILL, shop.settings(model_dir=models("scaling")), shop.services)


def test_a_worker_with_another_model_than_the_planned_one_computes_nothing(
    models: Callable[..., Path], sqlite_shop: SmallShop
) -> None:
    shop = sqlite_shop
    shop.stock("a")
    planned = plan.run(BACKFILL, shop.settings(model_dir=models()), shop.services)
    (chunk,) = planned.chunks
    with packs.writing(chunk.pictures, packs.PICTURES) as pack:
        pack.add({"img_url": "u", "content": b"a picture", "sha256": "0" * 64})
    with pytest.raises(
        ConfigurationError, match=r"The run was planned for .* but the model here is"
    ) as refused:
        extract.run(chunk, shop.settings(model_dir=models("scaling"), precision="float32"))
    assert planned.fingerprint in str(refused.value)
    assert not chunk.features.exists()


def test_a_plan_of_an_earlier_release_is_of_its_version(tmp_path: Path) -> None:
    made = Plan(tmp_path, BACKFILL, "v", 0, 0, NOON, fingerprint="3c00" * 16)
    made.save()
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace(f',\n  "fingerprint": "{made.fingerprint}"', ""))
    loaded = Plan.load(tmp_path)
    assert loaded.fingerprint == ""
    assert Identity("v", made.fingerprint).same_as(Identity(loaded.feature_version, loaded.fingerprint))
    assert not Identity("v", made.fingerprint).same_as(Identity("w", loaded.fingerprint))


# FEATURES_MODEL_DIGEST ---------------------------------------------------------------------------


def test_a_demanded_digest_takes_that_model_alone(models: Callable[..., Path], tmp_path: Path) -> None:
    ours = settings_of(models(), tmp_path)
    weights, made = model.installed_digest(ours), model.identity(ours).fingerprint
    whole = {"model_digest": f"{weights}-{made}"}
    assert model.identity(ours.model_copy(update=whole)) == model.identity(ours)
    for change in CHANGES:
        with pytest.raises(ConfigurationError, match="FEATURES_MODEL_DIGEST demands"):
            model.identity(settings_of(models(change), tmp_path, **whole))
    # The weights alone are demanded by settings of before: they let any graph pass.
    with pytest.raises(ConfigurationError, match="does not say what is computed with the weights") as refused:
        model.identity(ours.model_copy(update={"model_digest": weights}))
    assert f"has the digest {weights}-{made}" in str(refused.value)


def test_our_own_weights_with_another_scaling_are_no_model(tmp_path: Path) -> None:
    """Without any index, with and without a demand: what they compute is known."""
    import tensorflow as tf

    installed = Settings(data_dir=tmp_path / "var")
    network = tf.saved_model.load(str(installed.model_dir))

    class Scaled(tf.Module):
        variables: Any = ()

        @tf.function(input_signature=[tf.TensorSpec([None, 299, 299, 3], tf.float32)])
        def __call__(self, pictures: Any) -> Any:
            return network(pictures * 255)

    scaled = Scaled()
    scaled.network, scaled.variables = network, list(network.variables)
    tf.saved_model.save(scaled, str(tmp_path / "model"))
    for demanded in ("", model.OUR_WEIGHTS, f"{model.OUR_WEIGHTS}-{model.OUR_FINGERPRINT}"):
        with pytest.raises(ConfigurationError, match="our model's weights and computes something else"):
            model.identity(settings_of(tmp_path / "model", tmp_path / "var", model_digest=demanded))
    for demanded in ("", model.OUR_WEIGHTS, f"{model.OUR_WEIGHTS}-{model.OUR_FINGERPRINT}"):
        ours = model.identity(installed.model_copy(update={"model_digest": demanded}))
        assert ours.version.startswith(f"inception_v3-{model.OUR_WEIGHTS[:12]}-")


# The graph that is kept --------------------------------------------------------------------------


def test_no_graph_is_taken_from_the_data_dir(models: Callable[..., Path], tmp_path: Path) -> None:
    """Every worker writes there, and a graph is a program."""
    settings = settings_of(models(), tmp_path)
    model.load(settings)
    kept = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.parent.name for path in kept} <= {"known_models", "precisions"}
    assert max(path.stat().st_size for path in kept) < 1_000


def test_a_graph_of_another_network_in_the_place_of_ours_is_noticed(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    """Its checksum is right: whoever writes there can make it so."""
    ours, theirs = (shutil.copytree(models(change), tmp_path / f"of {change}") for change in ("", "scaling"))
    model.keep_graph(settings_of(theirs, tmp_path / "var"))
    content = (theirs / "frozen_graph").read_bytes()[32:]
    made_from = model._made_from(ours)
    (ours / "frozen_graph").write_bytes(graph._checksum(made_from, content) + content)

    settings = settings_of(ours, tmp_path / "var")
    with pytest.raises(ConfigurationError, match="computes something else on this machine") as refused:
        model.load(settings)
    assert str(ours / "frozen_graph") in str(refused.value)
    (ours / "frozen_graph").unlink()
    assert model.load(settings).identity == model.identity(settings)


def test_a_note_of_another_model_in_the_place_of_ours_is_noticed(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    ours, theirs = (settings_of(models(change), tmp_path / "var") for change in ("", "scaling"))
    for settings in (ours, theirs):
        model.identity(settings)
    note = model._note(ours)
    note.write_bytes(model._note(theirs).read_bytes())
    with pytest.raises(ConfigurationError, match="computes something else on this machine") as refused:
        model.load(ours)
    assert str(note) in str(refused.value)
