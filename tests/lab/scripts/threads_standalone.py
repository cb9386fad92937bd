"""A third one: threads that share a queue, a lock and their results in memory."""

import argparse
import os
import queue
import threading
import time

WORKERS = 4


class Work:
    def __init__(self, working_dir: str) -> None:
        self.tasks: queue.Queue[int] = queue.Queue(maxsize=8)
        self.lock = threading.Lock()
        self.done: dict[int, int] = {}
        self.next = 0
        self.output = open(f"{working_dir}/cubes.txt", "w")  # noqa: SIM115 - kept open on purpose
        self.by_thread = threading.local()

    def worker(self) -> None:
        self.by_thread.count = 0
        while True:
            number = self.tasks.get()
            if number < 0:
                break
            self.by_thread.count += 1
            with self.lock:
                self.done[number] = number**3
                while self.next in self.done:  # in order, whoever was first
                    print(self.done.pop(self.next), file=self.output, flush=True)
                    self.next += 1
        with self.lock:
            print(f"thread ends after {self.by_thread.count}", flush=True)


def main(working_dir: str) -> None:
    work = Work(working_dir)
    threads = [threading.Thread(target=work.worker) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    with open(f"{working_dir}/checkpoint_ready", "w") as f:
        f.write(f"ready:{os.getpid()}\n")
    number = 0
    while os.path.exists(f"{working_dir}/checkpoint_flag"):
        work.tasks.put(number)
        number += 1
        time.sleep(0.005)
    for _ in threads:
        work.tasks.put(-1)
    for thread in threads:
        thread.join()
    print(f"{work.next} of {number}", flush=True)
    print("restore complete", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--working_dir", required=True)
    main(parser.parse_args().working_dir)
