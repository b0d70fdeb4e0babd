"""`python -m taskq` is `taskq`."""

from taskq.cli import main

if __name__ == "__main__":
    main(prog_name="taskq")
