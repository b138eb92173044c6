"""A whole training program: mpiexec -n 4 python -m mpi4py examples/train_digits.py.

Shards of a data set, mixed precision with a loss scaler, clipping, a schedule of learning rates, and the accuracy of the mean model.
"""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import wagma

EPOCHS = 6

device = wagma.device()  # this rank's GPU, or the CPU
pixels, digits = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
train, test = TensorDataset(images[:1500], labels[:1500]), (images[1500:].to(device), labels[1500:].to(device))

sampler = wagma.ShardSampler(train, drop_last=True)  # equally many samples, and so equally many iterations, on all ranks
loader = DataLoader(train, batch_size=25, sampler=sampler)

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).to(device)
optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
optimizer = wagma.distribute(optimizer, model, sync_period=len(loader))  # a sync at the end of each epoch
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
scaler = torch.amp.GradScaler(device.type)

with optimizer:
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for inputs, targets in loader:
            optimizer.zero_grad()
            with torch.autocast(device.type):
                loss = cross_entropy(model(inputs.to(device)), targets.to(device))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)  # where it finds an overflow, this rank joins the others without an update
            scaler.update()
        scheduler.step()
        with optimizer.consolidated(), torch.no_grad():  # the mean of all ranks' models, on every rank
            correct = (model(test[0]).argmax(1) == test[1]).float().mean()
        if wagma.rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.3f}, accuracy {100 * correct:.1f} %", flush=True)
