"""Shards in a torch DataLoader on two ranks, each with two workers under spawn."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from texturegen.shards import open_shards

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, sys
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler
from texturegen import open_shards

def main(directory, rank, meeting):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
    shards = open_shards(directory)
    sampler = DistributedSampler(shards)
    loader = DataLoader(shards, 5, sampler=sampler, num_workers=2, multiprocessing_context="spawn",
                        persistent_workers=True)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append([(key, int(label), int(image.sum()), int(textures.sum())) for batch in loader for key, label,
                       image, textures in zip(batch["key"], batch["label"], batch["image"], batch["textures"])])
    ranks = [None, None]
    dist.all_gather_object(ranks, epochs)
    if dist.get_rank() == 0:
        print(json.dumps(ranks))
    dist.destroy_process_group()

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.slow
def test_every_sample_is_read_once_per_epoch(shapes_shards: Path, tmp_path: Path, uncovered: dict[str, str]) -> None:
    pytest.importorskip("torch", reason="needs torch")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**uncovered, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), str(shapes_shards), str(rank), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=250) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs[0][1] + outputs[1][1]
    ranks = json.loads(outputs[0][0])
    expected = sorted([s.key, s.label, int(s.image.sum()), int(s.textures.sum())] for s in open_shards(shapes_shards))
    for epoch in range(2):
        assert [len(rank[epoch]) for rank in ranks] == [32, 32]
        assert sorted(ranks[0][epoch] + ranks[1][epoch]) == expected
    assert ranks[0][0] != ranks[0][1], "another order in each epoch"
