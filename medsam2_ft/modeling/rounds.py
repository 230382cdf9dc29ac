"""Prompting as a user does: ask, look where the answer is wrong, click there, ask again; all rounds on one encoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medsam2_ft.modeling.segmenter import Decoded, Points, PromptedSegmenter, resize_logits
from medsam2_ft.prompts.simulator import PromptSimulator

LOGIT_RANGE = 32.0
"""SAM2's predictor hands out low-res logits clipped to this, so that is what comes back as a dense prompt."""


@dataclass(frozen=True)
class PromptRounds:
    """How the N objects of a batch are prompted on one slice.

    Attributes:
        kind: of `prompts.simulator.KINDS`.
        boxes_N4: (x0, y0, x1, y1) in native pixels, half-open.
        sizes_hw_N2: native height and width of the image under each object.
        simulator: of the clicks.
        num_clicks: correction rounds of `box_clicks`.
    """

    kind: str
    boxes_N4: Tensor
    sizes_hw_N2: Tensor
    simulator: PromptSimulator
    num_clicks: int = 0

    def decode(
        self, segmenter: PromptedSegmenter, embedding_NChw: Tensor, high_res: tuple[Tensor, Tensor]
    ) -> list[Decoded]:
        """Answers round after round, on embeddings that already carry their memory (or the no-memory embedding)."""

        def ask(points: Points, earlier_N1hw: Tensor | None = None) -> Decoded:
            prior = None if earlier_N1hw is None else earlier_N1hw.clamp(-LOGIT_RANGE, LOGIT_RANGE)
            several = segmenter.wants_several(points)
            return segmenter.decode_embedding(
                embedding_NChw, high_res, points=points, mask_logits_N1hw=prior, multimask=several
            )

        if self.kind == "point":
            return [ask(self._scaled(segmenter, *self.simulator.click_objects()))]
        points = segmenter.box_points(self.boxes_N4, self.sizes_hw_N2)
        rounds = [ask(points)]
        if self.kind == "mask":
            rounds.append(ask(points, rounds[0].logits_N1hw.detach()))
        for _ in range(self.num_clicks if self.kind == "box_clicks" else 0):
            clicks = self._scaled(segmenter, *self.simulator.click_errors(self._masks(rounds[-1])))
            points = Points(
                torch.cat([points.coords_NP2, clicks.coords_NP2], 1), torch.cat([points.labels_NP, clicks.labels_NP], 1)
            )
            rounds.append(ask(points, rounds[-1].logits_N1hw))
        return rounds

    def _scaled(self, segmenter: PromptedSegmenter, clicks_NP2: Tensor, labels_NP: Tensor) -> Points:
        return Points(segmenter.scale_points(clicks_NP2, self.sizes_hw_N2), labels_NP)

    @torch.no_grad()
    def _masks(self, decoded: Decoded) -> list[Tensor]:
        """Thresholded answers at the native size of each image."""
        truths = self.simulator.masks
        parts = torch.split(decoded.logits_N1hw, [len(truth) for truth in truths])
        sizes = [(truth.shape[-2], truth.shape[-1]) for truth in truths]
        return [resize_logits(part, size) > 0 for part, size in zip(parts, sizes, strict=True)]
