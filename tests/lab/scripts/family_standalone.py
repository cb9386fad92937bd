"""A second one: a parent that feeds a child through a pipe and a file that it keeps open."""

import argparse
import os
import subprocess
import sys
import time

CHILD = "import sys\nfor line in sys.stdin:\n    print(int(line) * int(line), flush=True)\n"


def main(working_dir: str) -> None:
    log = open(f"{working_dir}/squares.txt", "w")  # noqa: SIM115 - kept open on purpose
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert child.stdin and child.stdout
    with open(f"{working_dir}/checkpoint_ready", "w") as f:
        f.write(f"ready:{os.getpid()}\n")
    number = 0
    while os.path.exists(f"{working_dir}/checkpoint_flag"):
        child.stdin.write(f"{number}\n")
        log.write(child.stdout.readline())
        log.flush()
        number += 1
        time.sleep(0.02)
    child.stdin.close()
    child.wait()
    print("restore complete", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--working_dir", required=True)
    main(parser.parse_args().working_dir)
