"""What the harness changes, and what must hold afterwards. A target raises AssertionError for a finding.

A call may return what it would return for the unchanged files, or raise a UserError. Other data, another exception and
a hang are findings, and so is a file under its final name that is not whole.
"""

import hashlib
import io
import json
import random
import shutil
import tarfile
import tomllib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from click.testing import CliRunner

from tests.fuzz.mutation import flip_bit, mutate_bytes, mutate_tree, to_toml
from tests.texturegen.builds.test_build import digests
from texturegen import open_shards
from texturegen.builds import Recipe, build, finish
from texturegen.builds.repair import repair
from texturegen.cli.shards import index as index_command
from texturegen.cli.shards import info, preview
from texturegen.cli.shards import merge as merge_command
from texturegen.cli.shards import split as split_command
from texturegen.cli.shards import verify as verify_command
from texturegen.errors import UserError
from texturegen.shards.index import INDEXES
from texturegen.shards.layout import BUILD, MANIFEST
from texturegen.shards.merge import merge, split
from texturegen.shards.verify import verify
from texturegen.storage.image import decode_image, encode_image
from texturegen.storage.sealed import seal

Run = Callable[[random.Random, Path], str]
"""Run one case in an empty directory; return its outcome, "refused" or "unchanged" or "read"."""


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes
    ----------
    weight : share of all cases, relative to that of the other targets.
    prepare : makes the unchanged files in a directory, and returns the function that runs a case.
    """

    weight: int
    prepare: Callable[[Path], Run]


def samples_of(directory: Path) -> dict[str, Any]:
    """Return all that can be read of a shard directory: class names, and key -> data or UserError."""
    shards = open_shards(directory)
    found: dict[str, Any] = {"classes": tuple(shards.classes), "keys": tuple(shards.keys)}
    for i in range(len(shards)):
        try:
            sample = shards[i]
            pixels = (sample.image.tobytes(), sample.image.shape, sample.textures.tobytes())
            found[sample.key] = (sample.label, json.dumps(sample.meta), pixels, sample.image_bytes, sample.members)
        except UserError as error:
            found[shards.keys[i]] = error
    return found


def check_samples(directory: Path, expected: dict[str, Any]) -> str:
    """Compare what can be read of a directory with what was built; return the outcome."""
    try:
        found = samples_of(directory)
    except UserError:
        return "refused"
    wrong = [name for name, data in found.items() if data != expected.get(name) and not isinstance(data, UserError)]
    assert not wrong, f"silent wrong data: {wrong[:3]}"
    assert found.keys() == expected.keys(), "samples are missing"
    return "refused" if any(isinstance(data, UserError) for data in found.values()) else "unchanged"


def _make_shards(place: Path, encoding: str = "webp", count: int = 12) -> tuple[Path, dict[str, bytes], dict[str, Any]]:
    out = place / "sound"
    build(Recipe("shapes", limit=count, shard_size=4, encoding=encoding), out)
    files = [*out.glob("*.tar"), out / MANIFEST, out / BUILD]
    return out, {path.name: path.read_bytes() for path in files}, samples_of(out)


def prepare_shard_files(place: Path) -> Run:
    """Bytes of tars, manifest and build.json: nothing but what was built is ever read, verified, repaired or copied."""
    sound, files, expected = _make_shards(place)

    def run(draws: random.Random, work: Path) -> str:
        out = Path(shutil.copytree(sound, work / "s"))
        name = draws.choice([*files, MANIFEST, BUILD])
        changed = mutate_bytes(files[name], draws) if draws.random() < 0.7 else flip_bit(files[name], draws)
        (out / name).write_bytes(changed)
        outcome = check_samples(out, expected)
        is_same = changed == files[name] or (name == BUILD and _same_json(changed, files[name]))
        faults = verify(out, workers=1, deep=draws.random() < 0.3)
        assert is_same == (not faults), f"verify finds {faults[:2]} in {name}"
        assert all(fault.isprintable() for fault in faults)
        follow_up = draws.randrange(6)
        if follow_up == 0 and name.endswith(".tar"):
            try:
                repair(out, workers=0)
            except UserError:
                outcome = "refused"
            assert (out / name).read_bytes() in (changed, files[name]), "repair wrote another shard"
            if not verify(out, workers=1):
                assert check_samples(out, expected) == "unchanged"
        elif follow_up == 1:
            _check_copy(lambda to: split(out, to, share=0.5), work / "copy", expected)
        elif follow_up == 2:
            _check_copy(lambda to: merge([out], to, shard_size=5), work / "copy", expected)
        elif follow_up == 3:
            _check_commands(out, work, draws)
        return outcome

    return run


def _same_json(one: bytes, other: bytes) -> bool:
    try:
        found = json.loads(one)
    except (ValueError, RecursionError):
        return False
    wanted = json.loads(other)
    # Without these entries, the file counts as one of texturegen 0.1.0, and entries that no reader knows are ignored.
    if isinstance(found, dict) and not {"sha256", "algorithms"} & found.keys():
        del wanted["sha256"], wanted["algorithms"]
        return {name: found.get(name) for name in wanted} == wanted
    return bool(found == wanted)


def _check_copy(copy: Callable[[Path], object], to: Path, expected: dict[str, Any]) -> None:
    """Check that a copy holds only samples that were built, or does not exist."""
    try:
        copy(to)
    except UserError:
        assert not to.exists() or not any(to.iterdir()), "files are left under a final name"
        return
    assert verify(to, workers=1, deep=True) == []
    found = samples_of(to)
    for key in found["keys"]:
        assert found[key] == expected[key], f"silent wrong data in a copy: {key}"


def _check_commands(out: Path, work: Path, draws: random.Random) -> None:
    command, options = draws.choice(
        [
            (info, [str(out)]),
            (verify_command, [str(out), "--workers", "1"]),
            (preview, [str(out), "-o", str(work / "sheet.png")]),
            (merge_command, [str(out), "--out", str(work / "m")]),
            (split_command, [str(out), "--share", "0.5", "--out", str(work / "a"), "--rest", str(work / "b")]),
        ]
    )
    check_command(command, options)


def check_command(command: Any, options: list[str]) -> int:
    """Run a click command in this process: it ends with a status, and a failure is told in lines that print."""
    done = CliRunner().invoke(command, options)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code in (0, 1, 2)
    assert "Traceback" not in done.output
    assert done.exit_code == 0 or done.stderr.strip(), "a failure without a message"
    return int(done.exit_code)


def prepare_hostile_shards(place: Path) -> Run:
    """Changed values with matching checksums: the reader and verify agree, and no other exception is raised."""
    sound, files, _ = _make_shards(place, "png", 6)
    recipe = Recipe("shapes", limit=6, shard_size=4)
    content = json.loads(files[BUILD])

    def run(draws: random.Random, work: Path) -> str:
        out = Path(shutil.copytree(sound, work / "s"))
        kind = draws.randrange(3)
        changed: Any = dict(content)
        if kind == 0:
            changed = mutate_tree(content, draws)
        elif kind == 1:
            (out / MANIFEST).write_bytes(mutate_bytes(files[MANIFEST], draws))
        else:
            name = draws.choice([name for name in files if name.endswith(".tar")])
            (out / name).write_bytes(mutate_bytes(files[name], draws))
            for shard in changed["shards"]:
                data = (out / shard["name"]).read_bytes()
                changed["shards"] = [
                    {**s, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} if s is shard else s
                    for s in changed["shards"]
                ]
        if kind == 1:
            changed["manifest_sha256"] = hashlib.sha256((out / MANIFEST).read_bytes()).hexdigest()
        if isinstance(changed, dict):
            changed = seal(changed)
        (out / BUILD).write_text(json.dumps(changed))
        try:
            faults = verify(out, workers=1, deep=True)
        except UserError:
            faults = ["refused"]
        try:
            found = samples_of(out)
            open_shards(out).metas()
            open_shards(out).manifest.to_pylist()
            error = next((data for data in found.values() if isinstance(data, UserError)), None)
        except UserError as raised:
            error = raised
        if not faults:
            assert error is None, f"verify accepts what the reader refuses: {error}"
        is_refused(lambda: split(out, work / "copy", share=0.5))
        command, options = draws.choice(
            [
                (info, [str(out)]),
                (preview, [str(out), "-o", str(work / "sheet.png")]),
                (index_command, [str(out), "--for", draws.choice([*INDEXES])]),
                (merge_command, [str(out), str(sound), "--out", str(work / "m")]),
            ]
        )
        check_command(command, options)
        is_refused(lambda: finish(out))
        # What rebuilds shards reads the recipe; a finished build whose files are whole is left alone.
        next(out.glob("*.tar")).unlink(missing_ok=True)
        is_refused(lambda: repair(out, workers=0))
        is_refused(lambda: build(recipe, out, retry_failed=draws.random() < 0.5))
        return "refused" if error or faults else "read"

    return run


def prepare_begun_builds(place: Path) -> Run:
    """Files of an unfinished build: it is finished as if they had not changed, or refused."""
    root = place / "photos"
    root.mkdir()
    for i in range(6):
        picture = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        (root / f"{i}.png").write_bytes(encode_image(picture, "png")[: 300 if i == 3 else None])
    (root / "notes.txt").touch()  # counted as ignored
    recipe = Recipe("folder", per_image=0, shard_size=2)
    make = partial(build, recipe, root=str(root))
    make(place / "finished")
    expected = digests(place / "finished")
    for name, parts in (("half", (1,)), ("whole", (1, 2))):
        for part in parts:
            make(place / name, part=(part, 2))

    def run(draws: random.Random, work: Path) -> str:
        ending = draws.randrange(3)
        out = Path(shutil.copytree(place / ("whole" if ending == 0 else "half"), work / "out"))
        path = draws.choice([path for path in sorted((out / "parts").iterdir()) if not path.name.startswith("lock")])
        data = path.read_bytes()
        path.write_bytes(mutate_bytes(data, draws) if draws.random() < 0.7 else flip_bit(data, draws))

        def end() -> None:
            if ending == 1:
                make(out)
                return
            if ending == 2:
                make(out, part=(2, 2))
            finish(out)

        if is_refused(end):
            return "refused"
        assert digests(out) == expected, f"silently another build after a change of {path.name}"
        return "unchanged"

    return run


def is_refused(act: Callable[[], object]) -> bool:
    """Return True if `act` raises a UserError, whose message must print."""
    try:
        act()
    except UserError as error:
        message = str(error)
    else:
        return False
    assert message
    assert message.isprintable(), repr(message)
    return True


def prepare_foreign_tars(place: Path) -> Run:
    """Tars of other programs: every image that can be read is in the build, and the build verifies."""
    random_pixels = np.random.default_rng(0)
    kinds = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    tars = []
    for number, form in enumerate(kinds):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
            for i in range(4):
                picture = random_pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                key = f"dir-{number}/{i}" if i else f"a-long-name-{'x' * 80}-{number}"
                encoding = "jpeg" if i % 2 else "png"
                for ext, data in (
                    ("jpg" if i % 2 else "png", encode_image(picture, encoding)),
                    ("cls", str(i).encode()),
                    ("json", b'{"a": 1}'),
                ):
                    member = tarfile.TarInfo(f"{key}.{ext}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        tars.append(stream.getvalue())

    def run(draws: random.Random, work: Path) -> str:
        root = work / "tars"
        root.mkdir()
        number = draws.randrange(len(tars))
        for i, data in enumerate(tars):
            (root / f"{i}.tar").write_bytes(mutate_bytes(data, draws) if i == number else data)
        out = work / "out"
        if is_refused(lambda: build(Recipe("webdataset", per_image=0, shard_size=5), out, root=str(root))):
            return "refused"
        assert verify(out, workers=1, deep=True) == []
        assert not any(isinstance(data, UserError) for data in samples_of(out).values())
        return "read"

    return run


def prepare_images(place: Path) -> Run:
    """Image files: pixels or an error."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(pixels, (9, 9), 0)
    files = [bytes(cv2.imencode(f".{ext}", smooth)[1]) for ext in ("png", "jpg", "webp", "bmp", "tiff", "ppm", "gif")]

    def run(draws: random.Random, work: Path) -> str:
        decoded = []
        data = mutate_bytes(draws.choice(files), draws)
        if is_refused(lambda: decoded.append(decode_image(data))):
            return "refused"
        assert decoded[0].dtype == np.uint8
        assert decoded[0].shape[2:] == (3,)
        return "read"

    return run


def prepare_checkpoints(place: Path) -> Run:
    """A changed checkpoint or exported encoder gives the weights of a step of the run, or an error."""
    import torch

    from sacl_train import load_config, train
    from sacl_train.export import export, load_exported
    from sacl_train.training.checkpoint import list_checkpoints, load_checkpoint, read_checkpoint
    from sacl_train.training.resume import load_encoder

    build(Recipe("shapes", limit=16), place / "s")
    settings: dict[str, Any] = {"encoder": "se_resnet8", "width": 2, "stem": "cifar-stride2", "batch_size": 8}
    settings |= {"projector_hidden": 4, "projector_out": 4, "predictor_hidden": 4, "device": "cpu", "epochs": 2}
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        train(load_config(None, {**settings, "knn_every": 0, "save_every": 1, "keep": 2}), place / "s", place / "run")
        exported = export(place / "run", "safetensors")
    paths = list_checkpoints(place / "run")
    newest, data, encoder_data = paths[0], paths[0].read_bytes(), exported.read_bytes()

    def leaves(tree: Any) -> list[Any]:
        return [
            leaf.numpy().tobytes() if isinstance(leaf, torch.Tensor) else leaf
            for leaf in torch.utils._pytree.tree_leaves(tree)
        ]

    expected = [leaves(read_checkpoint(path)) for path in paths]
    of_export = leaves(load_exported(exported).state_dict())

    def run(draws: random.Random, work: Path) -> str:
        if draws.random() < 0.3:
            file = work / exported.name
            file.write_bytes(mutate_bytes(encoder_data, draws))
            try:
                found = leaves(load_exported(file).state_dict())
            except UserError:
                return "refused"
            assert found == of_export, "silently other weights in an exported encoder"
            return "unchanged"
        newest.write_bytes(mutate_bytes(data, draws))
        try:
            with redirect_stderr(io.StringIO()):
                checkpoint = load_checkpoint(place / "run")
                load_encoder(place / "run")
            assert leaves(checkpoint) in expected, "silently other weights"
        except UserError:
            return "refused"
        finally:
            newest.write_bytes(data)
        return "unchanged"

    return run


def prepare_texts(place: Path) -> Run:
    """Recipes of pipelines and settings of sacl-train, as bytes and as values."""
    from pipelines.recipe import HERE, load_recipe
    from sacl_train.config import dump_config, load_config

    recipes = [path.read_bytes() for path in sorted(HERE.glob("*.toml"))]
    configs = [dump_config(load_config(None, {"method": name})).encode() for name in ("sacl", "mocov2", "byol", "pirl")]

    def run(draws: random.Random, work: Path) -> str:
        is_recipe = draws.random() < 0.5
        data = draws.choice(recipes if is_recipe else configs)
        if draws.random() < 0.5:
            changed = mutate_bytes(data, draws)
        else:
            tree = mutate_tree(tomllib.loads(data.decode()), draws)
            changed = (to_toml(tree) if isinstance(tree, dict) else str(tree)).encode("utf-8", "surrogatepass")
        if draws.random() < 0.05:
            changed = b"deep = " + b"[" * draws.choice([500, 50_000]) + b"\n" + changed
        path = work / "file.toml"
        path.write_bytes(changed)
        refused = is_refused(lambda: load_recipe(str(path), {}) if is_recipe else load_config(path, {}))
        return "refused" if refused else "read"

    return run


TARGETS = {
    "shard files": Target(6, prepare_shard_files),
    "hostile shards": Target(4, prepare_hostile_shards),
    "begun builds": Target(2, prepare_begun_builds),
    "foreign tars": Target(3, prepare_foreign_tars),
    "images": Target(3, prepare_images),
    "checkpoints": Target(3, prepare_checkpoints),
    "recipes and settings": Target(3, prepare_texts),
}
