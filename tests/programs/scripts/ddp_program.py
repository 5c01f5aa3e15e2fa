"""A model that two processes train together, each with a DataLoader's worker of its own. What it must come to, bit for
bit, is found out first, by the same two processes without a pause; an epoch is one `ask`."""

import hashlib
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

EPOCHS = 24


class Points(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, at):
        return torch.linspace(0, 1, 32) * at


class Training:
    """One rank's share of it."""

    def __init__(self, rank):
        self.sampler = DistributedSampler(Points(), 2, rank)
        self.loader = DataLoader(Points(), batch_size=8, sampler=self.sampler, num_workers=1, persistent_workers=True)
        self.begin()

    def begin(self):
        """Anew, with the same worker: a process with autograd's threads forks no second one."""
        torch.manual_seed(7)
        layers = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
        self.model = DistributedDataParallel(layers)
        self.optimiser = torch.optim.Adam(self.model.parameters())
        self.epoch = 0

    def train(self):
        """An epoch; the parameters after it, as a digest."""
        self.sampler.set_epoch(self.epoch)
        self.epoch += 1
        for batch in self.loader:
            self.optimiser.zero_grad()
            self.model(batch).pow(2).mean().backward()
            self.optimiser.step()
        values = b"".join(parameter.detach().numpy().tobytes() for parameter in self.model.parameters())
        return hashlib.sha256(values).hexdigest()


def joined(rank):
    """This rank's training, and what it must come to after each epoch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    training = Training(rank)
    expected = [training.train() for _ in range(EPOCHS)]
    training.begin()
    return training, expected


def other_rank(asked):
    training, expected = joined(1)
    while asked.recv():
        asked.send(training.train() == expected[training.epoch - 1])


def begin():
    global training, expected, other, folder
    folder = tempfile.mkdtemp()  # a meeting place that another run left would be waited at for ever
    context = mp.get_context("fork")
    other, its = context.Pipe()
    context.Process(target=other_rank, args=(its,)).start()
    training, expected = joined(0)


def ask(count):
    """An epoch of both."""
    other.send(True)
    assert training.train() == expected[count - 1], "rank 0 came to other numbers"
    assert other.recv(), "rank 1 came to other numbers"
