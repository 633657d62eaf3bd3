"""That weights have seen images by which a run is judged: as a run's and an ensemble's record say it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Contamination(BaseModel):
    """What pretraining has seen of the images of a split. weights: the file.

    images: those whose original is the same file. subjects: those who are known by id, or by such an image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str
    split: str
    images: int
    of_images: int
    subjects: int
    of_subjects: int

    @property
    def sentence(self) -> str:
        """For a person."""
        judged = {"val": "validation", "train": "validation by folds of them"}.get(self.split, "the score")
        return (
            f"Warning: {self.weights} was pretrained on {self.subjects:,} of the {self.of_subjects:,} {self.split} "
            f"subjects ({self.images:,} of the {self.of_images:,} images are the same files): {judged} promises too "
            "much. It saw no labels."
        )
