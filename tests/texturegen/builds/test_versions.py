"""Versions of algorithms: every release with the same ones resumes and repairs a build, and no other does."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from tests.texturegen.builds.test_build import digests
from texturegen import open_shards
from texturegen.builds import Recipe, build, finish
from texturegen.builds.directory import BuildDirectory
from texturegen.builds.job import run_job
from texturegen.builds.recipe import IMAGE_VERSIONS, Plan, list_algorithms, make_plan, texture_seed
from texturegen.builds.repair import repair
from texturegen.errors import OtherBuildError
from texturegen.shards.verify import verify
from texturegen.storage.image import ENCODINGS, encode_image
from texturegen.storage.sealed import seal
from texturegen.texture import METHODS, PATCHES_VERSION, QUALITY_VERSION, cut_patches, resolve_settings, synthesize
from texturegen.texture.quality import measure

# What texturegen 0.1.0 wrote for SMALL before it recorded versions of algorithms, which were all 1.
BEFORE = Path(__file__).with_name("build-0.1.0.json")
SMALL = Recipe(**json.loads(BEFORE.read_text())["recipe"])
FINGERPRINT = "7c3d514d3cfbbff357350c276bb5b6b7cc049c90b34a2e5f5ae930f808cb4035"

# Version of each method, and the SHA-256 of the texture that it makes from `patches()`.
TEXTURES = {  # of the default settings, or of one that has a kernel of its own
    ("coherent", None): (2, "838864b1dd876704f3014b8a46d88fc14aa9ef367baac8f494a99f6c9e63edc3"),
    ("efros-leung", None): (1, "abefad4b0bf5c29539b83a6e82191bdcbdd60ca205d406111308312250995867"),
    ("patch-shuffle", None): (1, "1f8f09f745528eea5488d2b4969d26f1f1ee0728073d6469044d1e349e6aad7e"),
    ("quilting", None): (1, "02964c6888fb8a0eb9120b34f148099dd394b1b000750bceb38b8210d25f8117"),
    ("wang-tiles", None): (1, "f113d7d8502858d55e59289f162b784428fc42da93e19a501979239c9e84cdef"),
    ("wei-levoy", None): (1, "02a3d1f8bc6462683d19c1d7172691c71f7c6450dff0d65044ed4fac0a053baa"),
    ("wei-levoy", "tsvq"): (1, "e76f0c15f9c84154eb8db80a6845ba8b655c8805149791bda3d9ad1b590d86bc"),
}
# Quality figures of the texture of patch-shuffle.
FIGURES = [2.910000000000013, 0.10805953328220767, 27.419473734534016, 30.194632923951026, 0.8888888888888888, 0.05625]
PLACES = [(17, 25), (21, 46), (17, 25), (2, 33), (17, 25), (2, 36)]
CORNERS = [(34, 49), (34, 5), (34, 49), (3, 50), (0, 47), (34, 2)]
SEEDS = [2290199993486840126, 22978863051186135]
OPTIONS = {
    "png": (1, ".png", []),
    "webp": (1, ".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
    "jpeg": (1, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]),
}


def patches() -> list[np.ndarray]:
    """Two patches without random numbers, whose generators change with NumPy."""
    made = []
    for height, width, step in ((40, 44, 5), (36, 40, 9)):
        y, x = np.mgrid[:height, :width]
        ramps = [(y * step + x * 3) % 97, (y * y + step * x) % 131, ((y // 4 + x // 5) * 53) % 256]
        made.append(np.stack(ramps, axis=-1).astype(np.uint8))
    return made


@pytest.mark.parametrize(("method", "search"), TEXTURES)
def test_a_method_with_other_textures_has_another_version(method: str, search: str | None) -> None:
    settings = {} if search is None else {"search": search}
    texture = synthesize(patches(), (32, 40), method, seed=7, **settings)
    found = METHODS[method].version, hashlib.sha256(texture.image.tobytes()).hexdigest()
    assert found == TEXTURES[method, search], f"raise the version of {method} in METHODS, and enter both here"


def test_every_method_is_in_the_table_of_textures() -> None:
    assert {method for method, _ in TEXTURES} == METHODS.keys()


def test_other_quality_figures_have_another_version() -> None:
    texture = synthesize(patches(), (32, 40), "patch-shuffle", seed=7)
    figures = astuple(measure(patches(), texture.image, seed=7, source=texture.source))
    assert (QUALITY_VERSION, figures) == (1, pytest.approx(FIGURES, rel=1e-9)), "raise QUALITY_VERSION"


def test_other_patches_and_seeds_have_another_version() -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    places = [box[:2] for seed in range(3) for box in cut_patches(image, seed)[1]]
    assert (PATCHES_VERSION, places) == (2, PLACES), "raise PATCHES_VERSION"
    corners = [box[:2] for seed in range(3) for box in cut_patches(image, seed, place="corners")[1]]
    assert (PATCHES_VERSION, corners) == (2, CORNERS), "raise PATCHES_VERSION"
    seeds = [texture_seed(0, "a", 0), texture_seed(1, "b/ü", 2)]
    assert (IMAGE_VERSIONS["seeds"], seeds) == (1, SEEDS), "raise the version of seeds in IMAGE_VERSIONS"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_encoding_with_other_options_has_another_version(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not the bytes, which change with the version of OpenCV too.
    given: list[Any] = []
    encode = cv2.imencode
    monkeypatch.setattr(cv2, "imencode", lambda *arguments: given.append(arguments) or encode(*arguments))
    image = patches()[0]
    encode_image(image, encoding)
    ((ext, pixels, options),) = given
    assert np.array_equal(pixels, image[..., ::-1])
    assert (IMAGE_VERSIONS[encoding], ext, list(options)) == OPTIONS[encoding], "raise its version in IMAGE_VERSIONS"


def test_a_plan_records_the_algorithms_that_it_uses() -> None:
    assert make_plan(SMALL)[0].algorithms == {
        "coherent": 2, "decoding": 1, "patches": 2, "png": 1, "quality": 1, "resizing": 1, "seeds": 1,
    }  # fmt: skip
    assert list_algorithms(replace(SMALL, size=None, per_image=0, encoding="webp")) == {"decoding": 1, "webp": 1}


@pytest.fixture
def first_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """All algorithms have version 1, as in texturegen 0.1.0."""
    monkeypatch.setitem(METHODS, "coherent", replace(METHODS["coherent"], version=1))
    monkeypatch.setattr("texturegen.builds.recipe.PATCHES_VERSION", 1)


@pytest.fixture
def finished(tmp_path: Path, first_versions: None) -> Path:
    """A build whose build.json is the stored one of texturegen 0.1.0."""
    out = tmp_path / "finished"
    build(SMALL, out)
    present, before = (json.loads(path.read_text()) for path in (out / "build.json", BEFORE))
    assert present.keys() - before.keys() == {"algorithms", "sha256"}
    # OpenCV and pyarrow decide these bytes, and their versions differ between machines.
    of_packages = {name: present[name] for name in ("shards", "manifest_sha256", "versions")}
    (out / "build.json").write_text(json.dumps(before | of_packages))
    return out


def test_a_build_from_before_versions_were_recorded_is_read_verified_and_repaired(finished: Path) -> None:
    expected = digests(finished)
    assert verify(finished) == []
    assert build(SMALL, finished).counts["samples"] == 4
    assert len(open_shards(finished)) == 4
    (finished / "shard-000001.tar").unlink()
    assert repair(finished, workers=0).rebuilt == ["shard-000001.tar"]
    assert digests(finished) == expected


def test_the_fingerprint_is_that_of_texturegen_0_1_0() -> None:
    content = json.loads(BEFORE.read_text())
    assert Plan.from_description(content).fingerprint == FINGERPRINT
    every = dict.fromkeys(list_algorithms(SMALL), 1)
    assert Plan.from_description({**content, "algorithms": every}).fingerprint == FINGERPRINT
    assert Plan.from_description({**content, "algorithms": {"coherent": 2}}).fingerprint != FINGERPRINT
    for name, value in {"patches": 12, "patch_size": 12, "patches_from": "corners", "short_side": 64}.items():
        changed = {**content, "recipe": {**content["recipe"], name: value}}
        assert Plan.from_description(changed).fingerprint != FINGERPRINT


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(seal(content)))


def forget_algorithms(content: dict[str, Any]) -> None:
    del content["algorithms"]


def set_other_release(content: dict[str, Any]) -> None:
    content["texturegen"] = "0.0.9"


@pytest.mark.usefixtures("first_versions")
@pytest.mark.parametrize("change", [forget_algorithms, set_other_release])
@pytest.mark.parametrize("ending", [build, finish])
def test_a_build_that_another_release_began_is_resumed(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], ending: Callable[..., object]
) -> None:
    build(SMALL, tmp_path / "whole")
    out = tmp_path / "out"
    for part in (1, 2) if ending is finish else (1,):
        build(SMALL, out, part=(part, 2))
    change_json(out / "parts" / "recipe.json", change)
    kept = (out / "shard-000000.tar").stat().st_mtime_ns
    if ending is finish:
        finish(out)
    else:
        build(SMALL, out)
    assert (out / "shard-000000.tar").stat().st_mtime_ns == kept
    for name in ("shard-000000.tar", "shard-000001.tar", "manifest.parquet"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("ending", [build, finish])
def test_settings_of_textures_that_are_not_made_decide_nothing(tmp_path: Path, ending: Callable[..., object]) -> None:
    recipe = Recipe("shapes", limit=4, shard_size=2, per_image=0)
    build(recipe, tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "build.json").read_text())["recipe"]["settings"] == {}
    # texturegen 0.1.0 recorded them.
    before = replace(recipe, settings=resolve_settings("coherent"))
    plan, source = make_plan(recipe)
    plan = replace(plan, recipe=replace(plan.recipe, settings=before.settings))
    out = tmp_path / "out"
    with BuildDirectory(out) as directory:
        directory.claim(plan, 0, source)
        for number in range(2 if ending is finish else 1):
            run_job(plan, None, out, {}, number, lambda made, failed: True)
    kept = (out / "shard-000000.tar").stat().st_mtime_ns
    assert ending(*([recipe] if ending is build else []), out).counts["samples"] == 4
    assert (out / "shard-000000.tar").stat().st_mtime_ns == kept
    assert build(recipe, out) == build(before, out)
    for name in ("shard-000000.tar", "shard-000001.tar", "manifest.parquet"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    (out / "shard-000001.tar").unlink()
    assert repair(out, workers=0).rebuilt == ["shard-000001.tar"]


@pytest.mark.usefixtures("first_versions")
def test_a_part_of_an_array_replaces_a_listing_without_sizes(image_folder: Path, tmp_path: Path) -> None:
    # texturegen 0.1.0 listed the paths alone.
    recipe, root, out = Recipe("folder", shard_size=2), str(image_folder), tmp_path / "s"
    build(recipe, tmp_path / "whole", root=root)
    build(recipe, out, root=root, part=(1, 2))
    (listing,) = (out / "parts").glob("files-*.arrow")
    table = pa.ipc.open_file(listing.read_bytes()[:-32]).read_all().select(["path"]).replace_schema_metadata()
    with pa.ipc.new_file(listing, table.schema) as writer:
        writer.write_table(table)
    change_json(out / "parts" / "recipe.json", forget_algorithms)
    assert build(recipe, out, root=root, part=(2, 2)).missing == 0
    finish(out)
    assert (out / "manifest.parquet").read_bytes() == (tmp_path / "whole" / "manifest.parquet").read_bytes()


@pytest.mark.usefixtures("first_versions")
def test_failed_images_of_another_releases_build_are_retried(image_folder: Path, tmp_path: Path) -> None:
    recipe, root = Recipe("folder", shard_size=2), str(image_folder)
    bad = image_folder / "cats" / "2.png"
    data = bad.read_bytes()
    bad.write_bytes(data[:100] + bytes(len(data) - 100))
    assert build(recipe, tmp_path / "s", root=root).counts["failed"] == 1
    for change in (forget_algorithms, set_other_release):
        change_json(tmp_path / "s" / "build.json", change)
    bad.write_bytes(data)
    assert build(recipe, tmp_path / "s", root=root, retry_failed=True).counts["failed"] == 0
    assert "algorithms" in json.loads((tmp_path / "s" / "build.json").read_text())
    build(recipe, tmp_path / "fresh", root=root)
    assert digests(tmp_path / "s") == digests(tmp_path / "fresh")


def test_another_version_of_an_algorithm_is_another_build(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    build(SMALL, begun, part=(1, 2))
    (finished / "shard-000001.tar").unlink()
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "coherent", replace(METHODS["coherent"], version=2))
        for out in (finished, begun):
            with pytest.raises(OtherBuildError, match=r"\(algorithms.coherent 1 there, 2 requested\)"):
                build(SMALL, out)
        with pytest.raises(
            OtherBuildError, match=r"\(coherent version 1 there, 2 here\); repair it with texturegen 0\."
        ):
            repair(finished, workers=0)
        assert finish_both_parts(tmp_path / "new")["algorithms"]["coherent"] == 2
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "quilting", replace(METHODS["quilting"], version=2))
        assert repair(finished, workers=0).rebuilt == ["shard-000001.tar"]
    with pytest.raises(OtherBuildError, match=r"algorithms.coherent 2 there, 1 requested"):
        build(SMALL, tmp_path / "new")


def finish_both_parts(out: Path) -> dict[str, Any]:
    """Return build.json of a build of two parts."""
    for part in (1, 2):
        build(SMALL, out, part=(part, 2))
    finish(out)
    content: dict[str, Any] = json.loads((out / "build.json").read_text())
    return content
