"""A LightningModule, one process a rank: mpiexec -n 4 python -m mpi4py examples/train_lightning.py (pip install lightning).

Lightning itself knows of one device here; wagma's optimizer joins the ranks.
"""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import wagma

truth = torch.linspace(-1, 1, 64)
inputs = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
data = TensorDataset(inputs, inputs @ truth)


class Regression(lightning.LightningModule):
    """Least squares."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 1, bias=False)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """The loss of a batch."""
        return torch.nn.functional.mse_loss(self.linear(batch[0]).squeeze(1), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The one line that changes."""
        return wagma.distribute(torch.optim.SGD(self.parameters(), lr=0.1), self, sync_period=10)


model = Regression()
loader = DataLoader(data, batch_size=25, sampler=wagma.ShardSampler(data, drop_last=True))
trainer = lightning.Trainer(
    max_epochs=2, accelerator="auto", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False,
)  # fmt: skip
trainer.fit(model, loader)
trainer.optimizers[0].close()  # as the end of `with optimizer:` does
print(f"rank {wagma.rank()}: distance to the truth {float((model.linear.weight.detach() - truth).norm()):.4f}", flush=True)
