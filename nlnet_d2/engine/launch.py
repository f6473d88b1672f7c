"""Start the processes of a run: torchrun, or Detectron2's flags; NCCL on GPUs, gloo on CPUs.

Detectron2 0.6 refuses CPUs, and neither 0.6 nor main understands torchrun.
"""

import gc
import os
import signal
import socket
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from detectron2.engine import create_ddp_model
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn

from nlnet_d2.engine.errors import EXIT_CODES, STOP_SIGNALS, ConfigError, exit_code

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def launch(main: Callable, args: Namespace, device: str, *main_args):
    """Run ``main(*main_args)`` in every process of the run.

    Args:
        main: a function at the top level of a module.
        args: with ``num_gpus``, ``num_machines``, ``machine_rank`` and ``dist_url`` as in Detectron2; where
            ``device`` is "cpu", num_gpus is a number of processes. Under torchrun they are not read.
        device: "cuda" or "cpu".

    Returns:
        What ``main`` returned, or None where child processes ran it.

    Raises:
        ConfigError: more processes than GPUs, or several machines that do not know where to meet.
        SystemExit: a child process ended with this exit code.
    """
    if all(name in os.environ for name in TORCHRUN):
        local_rank = int(os.environ["LOCAL_RANK"])
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        with _process_group(device, local_rank, local_size, init_method="env://"):
            return main(*main_args)
    if args.num_gpus * args.num_machines <= 1:  # 0 GPUs is how some ask for the CPU
        return main(*main_args)
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ConfigError("--dist-url auto is for one machine: give tcp://HOST:PORT of the first to all")
    if device != "cpu" and args.num_gpus > torch.cuda.device_count():
        raise ConfigError(f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()}")
    return _spawn(main, args, device, main_args)


def distribute(model: nn.Module) -> nn.Module:
    """Average gradients over the processes of the run, where there are several."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    device_ids = None if on_cpu else [torch.cuda.current_device()]
    return create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)


def _spawn(main: Callable, args: Namespace, device: str, main_args: tuple) -> None:
    """Start the processes of this machine, pass signals on to them, and end as they end."""
    if args.dist_url == "auto":
        args.dist_url = f"tcp://127.0.0.1:{_free_port()}"
    context = mp.start_processes(
        _child, (main, args, device, main_args), nprocs=args.num_gpus, join=False, start_method="spawn"
    )

    def forward(number: int, frame) -> None:
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    previous = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        while not context.join():
            pass
    except mp.ProcessExitedException as error:
        raise SystemExit(error.exit_code) from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def _child(local_rank: int, main: Callable, args: Namespace, device: str, main_args: tuple) -> None:
    raise SystemExit(exit_code(_join_run, local_rank, main, args, device, main_args))


def _join_run(local_rank: int, main: Callable, args: Namespace, device: str, main_args: tuple) -> None:
    place = {
        "init_method": args.dist_url,
        "world_size": args.num_gpus * args.num_machines,
        "rank": args.num_gpus * args.machine_rank + local_rank,
    }
    with _process_group(device, local_rank, args.num_gpus, **place):
        main(*main_args)


@contextmanager
def _process_group(device: str, local_rank: int, local_size: int, **place) -> Iterator[None]:
    """The process group of the run, and the one of this machine that Detectron2 wants to know."""
    if device != "cpu":
        torch.cuda.set_device(local_rank)
    dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=DEFAULT_TIMEOUT, **place)
    for first in range(0, dist.get_world_size(), local_size):
        group = dist.new_group(list(range(first, first + local_size)))
        if first <= dist.get_rank() < first + local_size:
            comm._LOCAL_PROCESS_GROUP = group  # 0.6 has no function for it
    comm.synchronize()  # or a slow machine may miss the first collective
    try:
        yield
    except (SystemExit, *EXIT_CODES) as error:
        traceback.clear_frames(error.__traceback__)  # they hold the model, and with it the group
        _end_process_group()
        raise
    _end_process_group()  # not after a bug: it may wait for the others


def _end_process_group() -> None:
    """Also its threads: one that is left while the interpreter ends may abort it, and spoil the exit code."""
    dist.destroy_process_group()
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    gc.collect()
