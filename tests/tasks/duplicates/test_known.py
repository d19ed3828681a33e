import hashlib

import numpy as np
import pytest

from tasks.duplicates.known import Groups, Known, digests, hexadecimal
from tasks.errors import ConfigurationError
from tasks.inference.model import Identity
from tasks.settings import Settings
from tests.tasks.duplicates.shop import MODEL, published_space

NAMES = [hashlib.sha256(bytes([number])).hexdigest() for number in range(6)]
ZEROS = "11" * 31 + "00"


@pytest.fixture
def settings(tmp_path):
    settings = Settings(data_dir=tmp_path)
    published_space(settings)
    return settings


def filled(settings, names=NAMES, leaders=(0, 0, 2, 2, 4, 2)):
    known = Known.load(settings, MODEL)
    codes = np.arange(len(names) * 16, dtype=np.uint8).reshape(-1, 16)
    known.add(digests(names), codes, np.array(leaders))
    return known


def test_digests_are_the_same_bytes_and_texts():
    assert hexadecimal(digests([*NAMES, ZEROS])) == [*NAMES, ZEROS]
    assert digests([ZEROS])[0] == bytes.fromhex(ZEROS).rstrip(b"\0")
    assert len(digests([])) == 0


@pytest.mark.parametrize("text", ["", "no digest", "ab", NAMES[0].upper(), NAMES[0] + "00", "\ud800"])
def test_what_is_no_digest_is_that_of_no_picture(settings, text):
    assert text not in hexadecimal(digests([text]))
    assert Groups(filled(settings)).of([text, NAMES[1]]) == [text, NAMES[0]]


def test_a_group_is_named_by_its_leader(settings):
    groups = Groups(filled(settings))
    assert groups.of(NAMES[::-1]) == [NAMES[n] for n in (2, 4, 2, 2, 0, 0)]
    assert groups.of([ZEROS]) == [ZEROS]
    assert Groups(Known.load(settings, MODEL)).of([ZEROS]) == [ZEROS]


def test_what_left_is_forgotten_with_those_that_it_led(settings):
    known = filled(settings)
    known.keep(np.sort(digests([NAMES[n] for n in (0, 3, 4, 5)])))
    assert hexadecimal(known.pictures) == [NAMES[0], NAMES[4]]
    assert known.leaders.tolist() == [0, 1]
    assert known.codes[:, 0].tolist() == [0, 64]
    assert hexadecimal(known.without(digests(NAMES))) == [NAMES[n] for n in (1, 2, 3, 5)]
    known.keep(digests([]))
    assert len(known.pictures) == len(known.codes) == len(known.leaders) == 0


def test_what_is_saved_is_loaded_with_the_space_it_began_with(settings):
    known = filled(settings)
    known.save(settings)
    published_space(settings, seed=5)
    again = Known.load(settings, MODEL)
    for name in ("pictures", "codes", "leaders"):
        np.testing.assert_array_equal(getattr(again, name), getattr(known, name))
    np.testing.assert_array_equal(again.codes_of.rotation, known.codes_of.rotation)


def test_of_another_model_and_of_a_damaged_file_nothing_is_known(settings, caplog):
    filled(settings).save(settings)
    other = Identity("another version")
    published_space(settings, other)
    assert len(Known.load(settings, other).pictures) == 0
    published_space(settings)
    (file,) = (settings.data_dir / "duplicates").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert len(Known.load(settings, MODEL).pictures) == 0
    assert "the groups are made anew" in caplog.text


def test_without_a_space_it_says_which_dag_to_run(tmp_path):
    with pytest.raises(ConfigurationError, match="Run the DAG feature_space"):
        Known.load(Settings(data_dir=tmp_path), MODEL)
