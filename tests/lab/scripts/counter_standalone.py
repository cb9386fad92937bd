"""A script as the seed framework's documents describe them: it knows nothing of this repository."""

import argparse
import os
import sys
import time


def create_ready_signal(working_dir: str) -> None:
    with open(f"{working_dir}/checkpoint_ready", "w") as f:
        f.write(f"ready:{os.getpid()}\n")


def check_restore_complete(working_dir: str) -> bool:
    return not os.path.exists(f"{working_dir}/checkpoint_flag")


def run_workload(working_dir: str) -> None:
    create_ready_signal(working_dir)
    number = 0
    while True:
        if check_restore_complete(working_dir):
            print("restore complete", flush=True)
            sys.exit(0)
        print(number, flush=True)
        number += 1
        time.sleep(0.02)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--working_dir", required=True)
    run_workload(parser.parse_args().working_dir)
