"""The programs of pipelines/reuse run, use textures in their losses, and are quoted correctly in docs/reuse.md."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "pipelines" / "reuse"
TRAINERS = ("moco", "simclr", "byol", "dcl")
NEEDS_SOLO = "needs solo-learn, which is not on PyPI for this torch (pipelines/reuse/solo_learn.py says where it is)"


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
def test_program_trains_for_two_steps(name: str, shapes_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "encoder.pt"
    line = ["--batch-size", "16", "--steps", "2", "--device", "cpu", "--shards", str(shapes_shards), "--out", str(out)]
    if name == "simclr":  # one as users start it; the others save the import of torch
        command = [sys.executable, "-m", f"pipelines.reuse.{name}", *line]
        stdout = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=180).stdout
    else:
        done = CliRunner().invoke(importlib.import_module(f"pipelines.reuse.{name}").main, line)
        assert done.exit_code == 0, done.output
        stdout = done.output
    losses = [float(text) for text in re.findall(r"loss (\S+)", stdout)]
    assert len(losses) >= 2
    assert all(0 < loss < 20 for loss in losses)
    saved = torch.load(out, weights_only=True)
    names = saved.get("encoder", saved).keys()
    assert "layer4.1.conv2.weight" in names  # a torchvision resnet18


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--out", "nowhere/encoder.pt"], "--out nowhere/encoder.pt: "),
        (["--out", "."], "--out .: "),
        (["--device", "gpu"], "--device gpu: "),
        (["--device", "meta:9:9"], "--device meta:9:9: "),
    ],
)
def test_program_refuses_what_would_fail_after_its_training(
    name: str, line: list[str], message: str, shapes_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"pipelines.reuse.{name}").main
    with pytest.raises(SystemExit) as ended:
        main(["--steps", "1", "--batch-size", "2", "--device", "cpu", "--shards", str(shapes_shards), *line])
    assert ended.value.code != 0
    assert message in (ended.value.code if name == "simclr" else capsys.readouterr().err)


@pytest.mark.slow
def test_solo_learn_trains_for_two_steps(shapes_shards: Path, tmp_path: Path) -> None:
    losses = pytest.importorskip("solo.losses.simclr", reason=NEEDS_SOLO)
    from pipelines.reuse.solo_learn import main, nt_xent

    z1, z2, t = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
    expected = losses.simclr_loss_func(torch.cat([z1, z2]), torch.arange(4).repeat(2), temperature=0.5)
    assert float(nt_xent(z1, z2, None, 0.5, 2.0)) == pytest.approx(float(expected), rel=1e-5)
    assert nt_xent(z1, z2, None, 0.5, 2.0) < nt_xent(z1, z2, t, 0.5, 2.0)
    out = tmp_path / "encoder.pt"
    line = ["--batch-size", "16", "--steps", "2", "--device", "cpu", "--shards", str(shapes_shards), "--out", str(out)]
    done = CliRunner().invoke(main, line)
    assert done.exit_code == 0, done.output
    assert "layer4.1.conv2.weight" in torch.load(out, weights_only=True)


@pytest.mark.parametrize("name", ["simclr", "hf_datasets"])
def test_programs_do_not_import_this_project(name: str) -> None:
    for node in ast.walk(ast.parse((PROGRAMS / f"{name}.py").read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(n.split(".")[0] in ("texturegen", "sacl_train", "pipelines") for n in names)


def test_programs_have_at_most_150_lines() -> None:
    programs = sorted(PROGRAMS.glob("[a-z]*.py"))
    assert len(programs) >= 6
    for path in programs:
        assert len(path.read_text().splitlines()) <= 150, path


def test_moco_loss_uses_own_texture_as_one_more_negative() -> None:
    from pipelines.reuse.moco import moco_loss

    rows = torch.nn.functional.normalize(torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    q, k, t, queue = rows
    for alpha in (1.0, 2.0):
        expected = 0.0
        for i in range(5):
            own = torch.exp(q[i] @ k[i] / 0.2)
            others = sum(torch.exp(q[i] @ key / 0.2) for key in queue) + torch.exp(alpha * (q[i] @ t[i]) / 0.2)
            expected -= float(torch.log(own / (own + others))) / 5
        assert float(moco_loss(q, k, t, queue, 0.2, alpha)) == pytest.approx(expected, rel=1e-5)
    assert moco_loss(q, k, None, queue, 0.2, 2.0) < moco_loss(q, k, t, queue, 0.2, 2.0)


def test_queue_is_in_state_dict_and_holds_newest_keys() -> None:
    from pipelines.reuse.moco import MoCo

    net = MoCo(dim=4, queue=6, small=True)
    keys = torch.arange(8.0).reshape(2, 4)
    before = net.queue.clone()
    net.enqueue(keys)
    assert torch.equal(net.state_dict()["queue"], torch.cat([keys, before[:4]]))


def test_simclr_loss_uses_own_texture_as_one_more_negative() -> None:
    from pipelines.reuse.simclr import nt_xent

    z1, z2, t = torch.nn.functional.normalize(torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1)), dim=2)
    z, own = torch.cat([z1, z2]), torch.cat([t, t])
    expected = 0.0
    for i in range(8):
        terms = [torch.exp(z[i] @ z[j] / 0.5) for j in range(8) if j != i] + [torch.exp(2 * (z[i] @ own[i]) / 0.5)]
        expected -= float(torch.log(torch.exp(z[i] @ z[(i + 4) % 8] / 0.5) / sum(terms))) / 8
    assert float(nt_xent(z1, z2, t, 0.5, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_dcl_loss_is_lightlys_with_one_more_negative() -> None:
    from lightly.loss import DCLLoss

    from pipelines.reuse.dcl import dcl

    z1, z2, t = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2))
    assert float(dcl(z1, z2, None, 0.2, 2.0)) == pytest.approx(float(DCLLoss(0.2)(z1, z2)), rel=1e-5)
    z, own = torch.nn.functional.normalize(torch.stack([torch.cat([z1, z2]), torch.cat([t, t])]), dim=2)
    expected = 0.0
    for i in range(8):
        terms = [torch.exp(z[i] @ z[j] / 0.2) for j in range(8) if j % 4 != i % 4]
        terms += [torch.exp(2 * (z[i] @ own[i]) / 0.2)]
        expected += float(torch.log(sum(terms)) - z[i] @ z[(i + 4) % 8] / 0.2) / 8
    assert float(dcl(z1, z2, t, 0.2, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_byol_loss_grows_with_similarity_to_texture() -> None:
    from pipelines.reuse.byol import byol_loss

    p, z = torch.eye(4)[:2], torch.eye(4)[:2]
    assert float(byol_loss(p, z, None, 1.0, 0.0)) == pytest.approx(0)
    assert float(byol_loss(p, z, p, 0.5, 0.2)) == pytest.approx(0.4)
    assert float(byol_loss(p, z, -p, 0.5, 0.2)) == pytest.approx(0)


@pytest.mark.slow
def test_hugging_face_reads_every_sample(shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from pipelines.reuse.hf_datasets import collate, load
    from texturegen import open_shards

    data = load(shapes_shards, tmp_path)
    shards = open_shards(shapes_shards)
    assert list(data["key"]) == shards.keys
    batch = collate([data[i] for i in (0, 63)])
    for place, number in enumerate((0, 63)):
        sample = shards[number]
        assert torch.equal(batch["image"][place], torch.from_numpy(sample.image).permute(2, 0, 1))
        assert torch.equal(batch["texture"][place], torch.from_numpy(sample.textures[0]).permute(2, 0, 1))
        assert int(batch["label"][place]) == sample.label


def test_hugging_face_reads_mixed_types(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    from pipelines.reuse import hf_datasets
    from texturegen import Recipe, build, open_shards

    mixed = tmp_path / "mixed"  # six images, two of them JPEG
    build(Recipe("folder", method="patch-shuffle"), mixed, str(image_folder))
    data = hf_datasets.load(mixed, tmp_path / "cache")
    assert sorted(data.column_names) == ["image", "key", "label", "texture"]
    for row, sample in zip(data, open_shards(mixed), strict=True):
        assert (np.asarray(row["image"]) == sample.image).all()
    hf_datasets.main(["--shards", str(mixed), "--cache", str(tmp_path / "cache"), "--batch-size", "3"])
    assert capsys.readouterr().out.count("images (3, 3, 32, 32)") == 2
    (mixed / "README.md").unlink()
    with pytest.raises(SystemExit, match=r"no README.md here; write it with `texturegen index"):
        hf_datasets.load(mixed)


@pytest.mark.parametrize("name", [*TRAINERS, "hf_datasets"])
def test_mistakes_are_reported_in_one_sentence(
    name: str, shapes_test_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    main = importlib.import_module(f"pipelines.reuse.{name}").main
    cache = ["--cache", str(tmp_path)] if name == "hf_datasets" else []
    for directory, said in ((tmp_path / "none", "no shards"), (shapes_test_shards, "no textures")):
        with pytest.raises(SystemExit) as ended:
            main(["--shards", str(directory), *cache])
        assert ended.value.code  # the message, or the exit status 1
        assert said in f"{ended.value.code} {capsys.readouterr().err}"


def test_docs_quote_lines_of_programs() -> None:
    text = (ROOT / "docs" / "reuse.md").read_text()
    sections = re.findall(r"## .*?`(\w+\.py)`.*?```python\n(.*?)```", text, flags=re.DOTALL)
    quoted = {"byol.py", "dcl.py", "hf_datasets.py", "moco.py", "simclr.py", "solo_learn.py"}
    assert {name for name, _ in sections} >= quoted
    for name, snippet in sections:
        program = {line.strip() for line in (PROGRAMS / name).read_text().splitlines()}
        lines = [line.strip() for line in snippet.splitlines() if line.strip()]
        assert len(lines) >= 3
        assert [line for line in lines if line not in program] == [], name
