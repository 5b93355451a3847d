"""What each process is at, for the message of one that waits for it in vain."""

from collections.abc import Iterable, Iterator

from mask2former.engine.trainer import Batch, describe_image
from mask2former.utils.comm import note, world_size


def noted(batches: Iterable[Batch], first_step: int) -> Iterator[Batch]:
    """The `batches` of `first_step` and those after it; the other processes learn which one this is at."""
    note(f"reading the images of step {first_step}")
    for step, batch in enumerate(batches, start=first_step):
        if world_size() > 1:
            note(f"in step {step} with {', '.join(map(describe_image, batch))}")
        yield batch
        note(f"reading the images of step {step + 1}")
