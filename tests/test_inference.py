import pytest
import torch
from torch import nn

from hallmark.models.encoders import Encoder
from hallmark.models.inference import Answering, block_size


@pytest.fixture
def encoder() -> Encoder:
    """An encoder whose BatchNorm does something in evaluation mode."""
    torch.manual_seed(0)
    encoder = Encoder("resnet_small", 4)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return encoder


def test_folding_changes_no_answer(encoder: Encoder) -> None:
    images = torch.rand(7, 3, 16, 16)
    answering = Answering(encoder)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in answering.modules())
    torch.testing.assert_close(answering(images), encoder.eval()(images), rtol=1e-4, atol=1e-5)


def test_blocks_change_no_answer(encoder: Encoder) -> None:
    images = torch.rand(7, 3, 16, 16)
    torch.testing.assert_close(Answering(encoder, block=3)(images), Answering(encoder)(images), rtol=1e-5, atol=1e-6)


def test_the_network_is_left_as_it_was(encoder: Encoder) -> None:
    encoder.train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    Answering(encoder)(torch.rand(2, 3, 16, 16))
    assert encoder.training
    assert all(p.requires_grad for p in encoder.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_network_that_cannot_be_traced_answers_too() -> None:
    class Branching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((1, 2, 3)) if images.sum() > 0 else images.amax((1, 2, 3))

    images = torch.rand(3, 3, 4, 4)
    assert torch.equal(Answering(Branching())(images), images.mean((1, 2, 3)))


def test_blocks_shrink_as_images_grow() -> None:
    assert block_size(torch.empty(1, 3, 32, 32)) == 16 * block_size(torch.empty(1, 3, 128, 128))
    assert block_size(torch.empty(1, 3, 4096, 4096)) == 1
