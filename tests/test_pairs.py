"""Pairs: each degradation against its own definition, shares of a batch, patches that are where they came from."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hallmark.core import generator
from hallmark.data.pairs import KINDS, PairLaw, cut, degrade, make_pairs, to_bytes
from hallmark.data.procedural import procedural_images
from hallmark.errors import ConfigError, DataError

SIDE = 32


def photographs(count: int = 6, size: int = SIDE) -> Tensor:
    return procedural_images(count, size=size)[0].float() / 255


def degraded(images: Tensor, seed: int = 0, **law: object) -> Tensor:
    return degrade(images, PairLaw(side=images.shape[-1], **law), generator=generator(seed, "degrade"))


def grey_level(level: float, count: int = 4, size: int = 64) -> Tensor:
    return torch.full((count, 3, size, size), level)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_generators_give_equal_inputs_of_8_bits(kind: str) -> None:
    images = photographs()
    before = images.clone()
    first, again, other = (degraded(images, seed, kind=kind) for seed in (0, 0, 1))
    assert torch.equal(images, before)
    assert torch.equal(first, again)
    assert first.shape == images.shape
    assert torch.equal(to_bytes(first).float() / 255, first)
    assert not torch.equal(first, images)
    assert torch.equal(first, other) == (kind == "grey")  # the one that draws nothing


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_a_batch_is_degraded_as_in_the_whole(kind: str) -> None:
    images, law = photographs(), PairLaw(kind=kind, side=SIDE)
    whole = degrade(images, law, generator=generator(0))
    share = degrade(images[2:5], law, generator=generator(0), total=6, start=2)
    assert torch.equal(share, whole[2:5])


def test_rain_brightens_all_channels_alike_and_differs_from_image_to_image() -> None:
    images = grey_level(0.2)
    streaks = degraded(images, kind="rain") - images
    assert streaks.min() > -1 / 255
    assert (streaks.amax(dim=(1, 2, 3)) > 0.1).all()
    assert torch.equal(streaks[:, 0], streaks[:, 1])
    assert not torch.equal(streaks[0], streaks[1])


def test_streaks_have_the_length_and_direction_asked_for() -> None:
    law = {"kind": "rain", "density": (0.001, 0.001), "brightness": (0.5, 0.5)}
    for angle, axis in ((0.0, 1), (90.0, 2)):
        streaks = degraded(grey_level(0.0, 8), angle=(angle, angle), length=(11.0, 11.0), **law)[:, 0] > 0
        along = streaks.sum(axis).float()  # wet pixels of each column (row): 11 for every streak that lies inside
        assert set((along[(along > 0) & (along < 22)] / 11).unique().tolist()) & {1.0}
        across = streaks.sum(3 - axis).float()
        assert along.max() >= 11 > across[across > 0].median()
    shorter, longer = (degraded(grey_level(0.0, 8), length=(n, n), **law).sum() for n in (6.0, 12.0))
    assert float(longer / shorter) == pytest.approx(2, abs=0.15)


def test_rain_grows_with_its_density() -> None:
    light, heavy = (
        degraded(grey_level(0.0, 64), kind="rain", density=(d, d)).gt(0).float().mean() for d in (0.001, 0.004)
    )
    assert 3 < heavy / light < 4.4  # a little less than four times, for streaks overlap; 450 and 1,800 of them


@pytest.mark.parametrize("sigma", [5.0, 25.0])
def test_noise_has_the_standard_deviation_asked_for(sigma: float) -> None:
    noise = (degraded(grey_level(0.5), kind="noise", sigma=(sigma, sigma)) - 0.5) * 255
    # 49,152 samples: four standard errors; rounding to 8 bits adds a variance of 1/12
    expected = (sigma**2 + 1 / 12) ** 0.5
    assert float(noise.std()) == pytest.approx(expected, rel=4 / (2 * noise.numel()) ** 0.5)
    assert abs(float(noise.mean())) < 0.5 + 4 * expected / noise.numel() ** 0.5  # 0.5 lies between two levels


def test_noise_varies_from_image_to_image() -> None:
    spread = (degraded(grey_level(0.5, 16), kind="noise", sigma=(5.0, 50.0)) - 0.5).std(dim=(1, 2, 3)) * 255
    assert spread.min() < 15
    assert spread.max() > 35


def test_jpeg_is_what_another_codec_makes_of_it() -> None:
    images = photographs(4, 64)
    ours = degraded(images, kind="jpeg", quality=(20, 20))
    for image, found in zip(to_bytes(images), ours, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "jpeg", quality=20)
        theirs = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255
        assert float((found - theirs).abs().mean()) * 255 < 1
        assert float((found - image / 255).abs().mean()) * 255 > 2


def test_jpeg_gets_worse_with_less_quality() -> None:
    images = photographs(4, 64)
    errors = [float((degraded(images, kind="jpeg", quality=(q, q)) - images).square().mean()) for q in (5, 20, 60, 95)]
    assert errors == sorted(errors, reverse=True)


def test_grey_is_the_luma_in_every_channel() -> None:
    images = photographs()
    luma = np.tensordot(images.numpy(), np.array([0.299, 0.587, 0.114]), axes=([1], [0]))
    grey = degraded(images, kind="grey").numpy()
    for channel in range(3):
        np.testing.assert_allclose(grey[:, channel], luma, atol=0.5 / 255 + 1e-6)


def test_patches_are_where_they_came_from() -> None:
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(50), indexing="ij")
    images = torch.stack([torch.stack([rows, columns, torch.full_like(rows, i)]) for i in range(3)]).to(torch.uint8)
    patches = cut(images, 16, 5, generator=generator(0))
    assert patches.shape == (15, 3, 16, 16)
    for place, patch in enumerate(patches):
        top, left, number = patch[:, 0, 0].tolist()
        assert number == place // 5
        assert torch.equal(patch, images[number, :, top : top + 16, left : left + 16])
    assert len({tuple(p[:2, 0, 0].tolist()) for p in patches}) > 10
    assert torch.equal(patches, cut(images, 16, 5, generator=generator(0)))


def test_images_of_a_patch_size_are_taken_whole() -> None:
    images = to_bytes(photographs())
    assert cut(images, SIDE, 1, generator=generator(0)) is images
    with pytest.raises(DataError, match="patches of 33x33 cannot be cut from 32x32 images"):
        cut(images, 33, 1, generator=generator(0))


def test_a_set_of_pairs_is_targets_and_what_became_of_them() -> None:
    images, law = to_bytes(photographs(size=48)), PairLaw(kind="grey", side=16)
    inputs, targets = make_pairs(images, law, 20, generator=generator(0))  # more than one block
    assert inputs.dtype == targets.dtype == torch.uint8
    assert inputs.shape == targets.shape == (120, 3, 16, 16)
    expected = degrade(targets.float() / 255, law, generator=generator(0))
    assert torch.equal(inputs, to_bytes(expected))
    assert all(
        torch.equal(a, b)
        for a, b in zip(make_pairs(images, law, 20, generator=generator(0)), (inputs, targets), strict=True)
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "fog"}, "unknown kind of pairs 'fog'; allowed: grey, jpeg, noise, rain"),
        ({"side": 0}, "pairs.side must be at least 1, got 0"),
        ({"quality": (0, 50)}, "pairs.quality"),
        ({"angle": (-100.0, 0.0)}, "pairs.angle"),
        ({"sigma": (5.0, 1.0)}, "pairs.sigma"),
        ({"density": (0.1,)}, "pairs.density"),
    ],
)
def test_impossible_laws_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PairLaw(**wrong)
