"""The frame of the Python drivers of Varve's compatibility suite: it reads the command line that the suite speaks to
every driver (see the Go package test/compat), runs one verb with a Kafka client, and prints what the client saw."""

import argparse
import sys
import threading
import time

LIMIT_SECONDS = 60
RETENTION = "retention.ms"
ABORTED = 3  # of so many transactions, the verb copy aborts one


class Client:
    """One Kafka client library under test. A subclass has a method per verb."""

    def __init__(self, job):
        self.job = job
        self.deadline = time.monotonic() + LIMIT_SECONDS

    def show(self, partition, offset, key, value):
        print("record", partition, offset, key.decode(), value.decode(), sep="\t", flush=True)

    def show_assigned(self, partitions):
        print("assigned", ",".join(str(p) for p in sorted(partitions)), sep="\t", flush=True)

    def in_time(self, what):
        if time.monotonic() > self.deadline:
            raise TimeoutError(what)

    def eventually(self, what, check):
        """Waits for a change to show: Kafka's metadata follow an administrator a little later."""
        while not check():
            self.in_time(what)
            time.sleep(0.05)

    def admin(self):
        """Walks a topic through its life; the subclass has a method per step."""
        self.create(2, {RETENTION: "3600000"})
        print("created")
        self.await_partitions(2)
        self.await_retention("3600000")
        self.alter({RETENTION: "7200000"})
        self.await_retention("7200000")
        self.add_partitions(4)
        self.await_partitions(4)
        self.delete()
        self.eventually("describe after delete", lambda: self.partitions() == 0)
        print("deleted")

    def transact(self):
        """Does what standard input says, step by step; the subclass has a method per step."""
        self.begin_transactions()
        print("ready", flush=True)
        for line in sys.stdin.buffer:
            step, *args = line.decode().rstrip("\n").split("\t")
            try:
                getattr(self, "step_" + step)(*args)
                print("done", flush=True)
            except Exception as e:
                print("refused", self.name_of(e), sep="\t", flush=True)

    def name_of(self, error):
        return type(error).__name__

    def stall(self):
        print("stalled", flush=True)
        threading.Event().wait()

    def await_partitions(self, want):
        self.eventually("describe", lambda: self.partitions() == want)
        print("partitions", want)

    def await_retention(self, want):
        self.eventually("describe config", lambda: self.config(RETENTION) == want)
        print(RETENTION, want)


def records():
    """The records on standard input: lines "key TAB value"."""
    for line in sys.stdin.buffer:
        yield line.rstrip(b"\n").split(b"\t", 1)


def end_of_input():
    """An event that is set when standard input ends."""
    ended = threading.Event()

    def wait():
        sys.stdin.buffer.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    return ended


def main(client):
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["produce", "consume", "resume", "member", "seek", "admin", "transact", "copy"])
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", default="")
    parser.add_argument("--codec", default="none")
    parser.add_argument("--idempotent", default="false")
    parser.add_argument("--group")
    parser.add_argument("--session", type=int, default=10000)  # milliseconds
    parser.add_argument("--max", type=int, default=0)
    parser.add_argument("--timestamp", type=int, default=0)
    parser.add_argument("--isolation", default="read_uncommitted")
    parser.add_argument("--id")
    parser.add_argument("--timeout", type=int)  # milliseconds
    parser.add_argument("--to")
    parser.add_argument("--stall", default="")
    job = parser.parse_args()
    job.topics = job.topic.split(",")
    job.idempotent = job.idempotent == "true"
    getattr(client(job), job.verb)()
