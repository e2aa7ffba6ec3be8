"""The look: what the networks say of a batch, at the size that they know, and whom that makes suspicious."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sampdetox_transforms.method.calibration import Calibration
from sampdetox_transforms.method.search import Answer, SearchNetworks, local_suspicion, shrink


class Look(NamedTuple):
    """What was seen in a batch.

    Attributes:
        x: (b, c, h, w), the images at the size at which they were looked at.
        shrunk: whether that is not their own.
        answer: what the networks say of them.
        p_value: (b,), the share of clean images that look at least as suspicious.
        alarms: (b, 2), whether they are taken for images with a local trigger, with a dense one.
        likely: (b,), probability of a dense trigger; 1/2 where one clean image in ten is as suspicious.
    """

    x: Float[Tensor, "b c h w"]
    shrunk: bool
    answer: Answer
    p_value: Float[Tensor, " b"]
    alarms: Bool[Tensor, "b 2"]
    likely: Float[Tensor, " b"]

    def only(self, index: Int[Tensor, " n"]) -> "Look":
        """What was seen in some of the images."""
        local, dense, image = self.answer
        answer = Answer(local[index], dense[index], image if image is None else image[index])
        return Look(
            self.x[index], self.shrunk, answer, self.p_value[index], self.alarms[index], self.likely[index]
        )  # fmt: skip


def look(x0: Float[Tensor, "b c h w"], networks: SearchNetworks, calibration: Calibration) -> Look:
    """Ask the networks about every image, at the size that they know."""
    x = shrink(x0, networks)
    answer = networks.look(x)
    p_values = calibration.p_values(local_suspicion(answer.local, networks.window), answer.dense)
    alarms = p_values.detach() < calibration.false_alarm_rate
    likely = (answer.dense - calibration.doubt).sigmoid()
    shrunk = x.shape[-1] < x0.shape[-1]
    return Look(x, shrunk, answer, p_values.amin(dim=1).clamp(max=1), alarms, likely)
