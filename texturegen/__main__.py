"""`texturegen`, also as `python -m texturegen`."""

from texturegen.system.interrupts import run_command


def main() -> None:
    """Run `texturegen`."""
    run_command("texturegen.cli", "main", prog_name="texturegen")


if __name__ == "__main__":
    main()
