"""Print the JSON lines of FUZZ_REPORT as a Markdown table."""

import json
import sys
from pathlib import Path

OUTCOMES = ("unchanged", "read", "refused", "finding")


def main(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    print(f"| input | cases | {' | '.join(OUTCOMES)} |\n| --- |{' --- |' * (1 + len(OUTCOMES))}")
    for line in lines:
        counts = [line.get(outcome, 0) for outcome in OUTCOMES]
        print(f"| {line['target']} | {sum(counts)} | {' | '.join(map(str, counts))} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
