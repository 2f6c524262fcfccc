from __future__ import annotations

import dataclasses
import importlib.metadata
import pickle
import subprocess
import sys

import pytest

from neuroray.config import ConfigError
from neuroray.storage.profiles import PROFILES, ProfileError, find_profile, steps
from neuroray.storage.profiles.profile import Native, TemplateAligned, parse_profile
from neuroray.storage.profiles.stored import StoredProfile


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(ProfileError, match=r"mni_afine.*native, n4, mni_affine, mni_grid, fmri_minimal"):
        find_profile("mni_afine")


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_survives_json_and_pickle(name: str):
    profile = find_profile(name)
    assert profile.name == name
    assert parse_profile(profile.to_json()) == profile
    assert pickle.loads(pickle.dumps((profile, steps(profile)))) == (profile, steps(profile))
    assert StoredProfile.from_json(StoredProfile.of(profile).to_json()).restore() == profile


def test_the_hash_follows_options_version_and_libraries(monkeypatch: pytest.MonkeyPatch):
    plain = find_profile("mni_affine")
    assert isinstance(plain, TemplateAligned)
    others = [dataclasses.replace(plain, **change) for change in ({"spacing_mm": 2.0}, {"seed": 2}, {"version": 2})]
    hashes = {profile.fingerprint() for profile in (*PROFILES.values(), *others)}
    assert len(hashes) == len(PROFILES) + len(others)
    found, native = importlib.metadata.version, find_profile("native").fingerprint()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0" if name == "antspyx" else found(name))
    assert plain.fingerprint() not in hashes
    assert find_profile("native").fingerprint() == native


def test_a_profile_made_with_other_libraries_is_not_repeated_here():
    stored = dataclasses.replace(StoredProfile.of(find_profile("n4")), made_with={"antspyx": "0.4.2"}, sha256="ab" * 32)
    with pytest.raises(ProfileError, match=r"would not give the same result here.*0\.4\.2"):
        stored.restore()
    with pytest.raises(ProfileError, match=r"another version of the profile native.*given 9"):
        parse_profile(Native(version=9).to_json())


def test_options_that_make_no_sense_are_refused():
    for name, option in (
        ("mni_affine", {"spacing_mm": 0.2}),
        ("mni_affine", {"seed": 0}),
        ("mni_grid", {"spacing_mm": 9.0}),
        ("n4", {"shrink_factor": 0}),
    ):
        with pytest.raises(ProfileError):
            dataclasses.replace(find_profile(name), **option)
    with pytest.raises(ConfigError, match="has no field colour"):
        parse_profile({"name": "native", "colour": "red"})


def test_without_ants_its_profiles_say_what_to_install(monkeypatch: pytest.MonkeyPatch):
    def not_installed(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    with pytest.raises(ProfileError, match=r"antspyx.*pip install 'neuroray\[ants\]'"):
        find_profile("n4").fingerprint()


def test_a_store_is_opened_without_ants_and_nilearn():
    code = "import sys, neuroray.storage.store; print({'ants', 'nilearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
