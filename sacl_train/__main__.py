"""`sacl-train`, also as `python -m sacl_train` (so that torchrun can start it), `sacl-eval` and `sacl-export`."""

from texturegen.system.interrupts import run_command


def train() -> None:
    """Run `sacl-train`."""
    run_command("sacl_train.cli.train", "train_main", prog_name="sacl-train")


def evaluate() -> None:
    """Run `sacl-eval`."""
    run_command("sacl_train.cli.evaluate", "eval_main", prog_name="sacl-eval")


def export() -> None:
    """Run `sacl-export`."""
    run_command("sacl_train.cli.export", "export_main", prog_name="sacl-export")


if __name__ == "__main__":
    train()
