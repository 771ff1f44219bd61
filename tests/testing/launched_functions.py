"""What the launched processes do."""

import os
import time

import torch
from torch import distributed


def add(first, second):
    return first + second, {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")}


def sum_of_ranks():
    distributed.init_process_group("gloo")
    value = torch.tensor([float(distributed.get_rank() + 1)])
    distributed.all_reduce(value)
    return value, torch.get_num_threads()


def one_fails():
    if os.environ["RANK"] == "1":
        raise ValueError("out of luck")
    time.sleep(60)


def one_dies():
    if os.environ["RANK"] == "0":
        os._exit(3)
    time.sleep(60)


def sleep():
    time.sleep(60)
