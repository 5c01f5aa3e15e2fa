import torch
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, at):
        return torch.full((3, 16, 16), float(at))


def begin():
    global loader, model, optimiser
    torch.set_num_threads(2)
    loader = DataLoader(Images(), batch_size=8, num_workers=2, persistent_workers=True)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 14 * 14, 2)
    )
    optimiser = torch.optim.Adam(model.parameters())
    ask(0)


def ask(count):
    """An epoch with the workers that are there."""
    batches = 0
    for batch in loader:
        optimiser.zero_grad()
        model(batch).pow(2).mean().backward()
        optimiser.step()
        batches += 1
    assert batches == 8
