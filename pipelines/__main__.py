"""`python -m pipelines` runs a recipe, or a grid of runs."""

from texturegen.system.interrupts import run_command

if __name__ == "__main__":
    run_command("pipelines.cli", "main", prog_name="python -m pipelines")
