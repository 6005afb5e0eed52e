"""The exact oracle against compositing every pixel again."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.benchmarks.layer_stacks import LayerStack, boxes_in_a_room
from osn_gs.errors import DatasetError, OsnGsError
from osn_gs.object_scales.oracle import MAX_OBJECTS, Backend, ScaleOracle, ScaleOracleBuilder
from osn_gs.object_scales.ranges import uniform_scales


def random_stack(num_objects: int, generator: torch.Generator, num_frames: int = 3, side: int = 24) -> LayerStack:
    """Depths without any order to them: most pixels have several candidates, some have none."""
    shape = (num_frames, num_objects, side, side)
    depths = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.7
    depths[torch.rand(shape, generator=generator) < 0.3] = torch.inf
    ranges = torch.tensor([[1.0, 1.0]] + [[0.5, 1.5]] * (num_objects - 1), dtype=torch.float64)
    ids = torch.randint(num_objects, (num_frames, side, side), generator=generator, dtype=torch.uint8)
    return LayerStack(ids, depths, ranges, torch.ones(num_objects, dtype=torch.float64))


def oracle_of(stack: LayerStack) -> ScaleOracle:
    return ScaleOracle.from_frames(stack.object_ids, stack.layer_depths, stack.scale_ranges)


def recomposited_violations(stack: LayerStack, object_scales: Float[Tensor, "n k"]) -> Tensor:
    """Violated pixels by compositing all layers anew for each vector."""
    counts = []
    for scales in object_scales:
        nearest = (stack.layer_depths * scales[:, None, None]).min(dim=1)
        correct = (nearest.indices == stack.object_ids) & nearest.values.isfinite()
        counts.append(correct.numel() - correct.sum())
    return torch.stack(counts)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("num_objects", [2, 3, 5, 9])
@pytest.mark.parametrize("seed", range(3))
def test_every_vector_counts_the_pixels_that_compositing_counts(num_objects: int, seed: int, backend: Backend) -> None:
    generator = torch.Generator().manual_seed(seed)
    stack = random_stack(num_objects, generator)
    oracle = ScaleOracle.from_frames(stack.object_ids, stack.layer_depths, stack.scale_ranges, backend)
    vectors = uniform_scales(stack.scale_ranges, 40, generator)
    assert torch.equal(oracle.violated_pixels(vectors), recomposited_violations(stack, vectors))
    if num_objects > 2:
        assert oracle.num_joint_pixels > 100  # three and more candidates


def test_counts_stay_exact_when_pixels_fill_several_blocks(generator: torch.Generator) -> None:
    stack = random_stack(3, generator, num_frames=6, side=120)
    vectors = uniform_scales(stack.scale_ranges, 40, generator)
    oracle = oracle_of(stack)
    assert len(oracle._counter.joint_blocks.num_pixels) > 3  # more than one for each labelled object
    assert torch.equal(oracle.violated_pixels(vectors), recomposited_violations(stack, vectors))


def test_counts_stay_exact_where_many_pixels_share_a_bound(generator: torch.Generator) -> None:
    stack = random_stack(4, generator)
    steps = (stack.layer_depths * 8).round() / 8
    stack = LayerStack(stack.object_ids, steps, stack.scale_ranges, stack.true_scales)
    vectors = uniform_scales(stack.scale_ranges, 40, generator)
    assert torch.equal(oracle_of(stack).violated_pixels(vectors), recomposited_violations(stack, vectors))


def test_many_vectors_in_threads_get_what_each_gets_alone(generator: torch.Generator) -> None:
    oracle = oracle_of(boxes_in_a_room(4, 4, 30, 40, generator))
    vectors = uniform_scales(oracle.scale_ranges, 50_000, generator)
    together = oracle.accuracy(vectors)
    for first in range(0, 50_000, 9_973):
        assert torch.equal(together[first : first + 7], oracle.accuracy(vectors[first : first + 7]))


def test_the_true_scales_explain_every_pixel_of_exact_layers(generator: torch.Generator) -> None:
    stack = boxes_in_a_room(6, 4, 60, 80, generator)
    assert oracle_of(stack).violated_pixels(stack.true_scales[None]).item() == 0


def test_accuracy_stays_when_all_scales_grow_together_only_if_the_background_does(generator: torch.Generator) -> None:
    stack = boxes_in_a_room(4, 4, 60, 80, generator)
    oracle = oracle_of(stack)
    grown = stack.true_scales * 1.3
    assert oracle.accuracy(grown[None]).item() == oracle.accuracy(stack.true_scales[None]).item()
    grown[0] = 1.0
    assert oracle.accuracy(grown[None]).item() < oracle.accuracy(stack.true_scales[None]).item()


def test_a_pixel_whose_object_is_not_there_is_wrong_for_every_vector(generator: torch.Generator) -> None:
    stack = boxes_in_a_room(3, 2, 30, 40, generator)
    stack.layer_depths[0, 1] = torch.inf
    missing = int((stack.object_ids[0] == 1).sum())
    oracle = oracle_of(stack)
    assert oracle.uncovered_pixels == (0, missing, 0)
    assert oracle.violated_pixels(stack.true_scales[None]).item() == missing > 0


def test_frames_may_be_added_one_by_one(generator: torch.Generator) -> None:
    stack = random_stack(4, generator)
    builder = ScaleOracleBuilder(stack.scale_ranges)
    for ids, depths in zip(stack.object_ids, stack.layer_depths, strict=True):
        builder.add_frame(ids, depths)
    vectors = uniform_scales(stack.scale_ranges, 100, generator)
    assert torch.equal(builder.build().accuracy(vectors), oracle_of(stack).accuracy(vectors))


def test_pair_violations_name_the_intruder_and_the_worst_frame(generator: torch.Generator) -> None:
    stack = random_stack(4, generator)
    scales = uniform_scales(stack.scale_ranges, 1, generator)[0]
    depths = stack.layer_depths * scales[:, None, None]
    violations = oracle_of(stack).pair_violations(scales)
    assert [v.pixels for v in violations] == sorted((v.pixels for v in violations), reverse=True)
    assert len(violations) == 12  # every ordered pair of four objects
    for violation in violations:
        shown = (stack.object_ids == violation.labelled) & depths[:, violation.labelled].isfinite()
        in_front = depths[:, violation.intruder] < depths[:, violation.labelled]
        per_frame = (shown & in_front).sum(dim=(1, 2))
        assert violation.pixels == int(per_frame.sum())
        assert violation.worst_frame_pixels == int(per_frame[violation.worst_frame]) == int(per_frame.max())


def test_without_occlusion_every_vector_explains_the_video(generator: torch.Generator) -> None:
    ids = torch.zeros(1, 10, 10, dtype=torch.uint8)
    ids[0, 2:5, 2:5] = 1
    depths = torch.full((1, 2, 10, 10), torch.inf)
    depths[0, 0][ids[0] == 0] = 5.0
    depths[0, 1][ids[0] == 1] = 2.0
    oracle = ScaleOracle.from_frames(ids, depths, torch.tensor([[1.0, 1.0], [0.3, 1.7]]))
    assert (oracle.accuracy(uniform_scales(oracle.scale_ranges, 1_000, generator)) == 1).all()


def test_scales_outside_the_ranges_are_refused_by_object(generator: torch.Generator) -> None:
    oracle = oracle_of(random_stack(3, generator))
    with pytest.raises(OsnGsError, match=r"object 2 has scale 1\.7 in vector 1"):
        oracle.accuracy(torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.7]]))
    with pytest.raises(OsnGsError, match=r"expected \[N, 3\]"):
        oracle.accuracy(torch.ones(5, 2))


def test_bad_layers_are_refused_by_frame(generator: torch.Generator) -> None:
    builder = ScaleOracleBuilder(torch.tensor([[1.0, 1.0], [0.5, 1.5]]))
    ids = torch.zeros(4, 4, dtype=torch.uint8)
    builder.add_frame(ids, torch.ones(2, 4, 4))
    with pytest.raises(DatasetError, match="frame 1: layer depths are"):
        builder.add_frame(ids, torch.ones(2, 4, 5))
    with pytest.raises(DatasetError, match="frame 1: the mask holds id 7"):
        builder.add_frame(ids + 7, torch.ones(2, 4, 4))
    with pytest.raises(DatasetError, match="frame 1: layer depths must be positive"):
        builder.add_frame(ids, torch.full((2, 4, 4), torch.nan))
    with pytest.raises(DatasetError, match="no pixels"):
        ScaleOracleBuilder(torch.tensor([[1.0, 1.0], [0.5, 1.5]])).build()


def test_one_object_only_is_refused() -> None:
    with pytest.raises(OsnGsError, match="one object only"):
        ScaleOracleBuilder(torch.ones(1, 2))


def test_both_back_ends_count_alike_for_many_vectors(generator: torch.Generator) -> None:
    stack = boxes_in_a_room(6, 4, 60, 80, generator, depth_noise=0.003, box_size=1.5)
    fast, plain = (
        ScaleOracle.from_frames(stack.object_ids, stack.layer_depths, stack.scale_ranges, backend)
        for backend in ("numba", "numpy")
    )
    assert fast.num_joint_pixels == plain.num_joint_pixels > 0
    vectors = uniform_scales(stack.scale_ranges, 20_000, generator)  # more than one task
    assert torch.equal(fast.violated_pixels(vectors), plain.violated_pixels(vectors))


WITHOUT_NUMBA = """
import json, sys
sys.modules["numba"] = sys.modules["llvmlite"] = None  # every import of them fails

import torch
from osn_gs.benchmarks.layer_stacks import boxes_in_a_room
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.object_scales.ranges import uniform_scales
from osn_gs.rendering.rasterize import rasterize

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
stack = boxes_in_a_room(4, 2, 30, 40, generator)
oracle = ScaleOracle.from_frames(stack.object_ids, stack.layer_depths, stack.scale_ranges)
counts = oracle.violated_pixels(uniform_scales(stack.scale_ranges, 10, generator))
K = torch.tensor([[[20.0, 0, 10], [0, 20, 10], [0, 0, 1]]])
gaussian = (torch.tensor([[0.0, 0, 2]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.2), torch.tensor([0.9]))
image, alphas, _ = rasterize(*gaussian, torch.ones(1, 3), torch.eye(4)[None], K, 20, 20)
print(json.dumps({"counts": counts.tolist(), "middle": float(image[0, 10, 10, 0])}))
"""


def test_without_numba_the_oracle_counts_the_same_and_a_picture_is_drawn(generator: torch.Generator) -> None:
    finished = subprocess.run([sys.executable, "-c", WITHOUT_NUMBA], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout)
    stack = boxes_in_a_room(4, 2, 30, 40, generator)
    vectors = uniform_scales(stack.scale_ranges, 10, generator)
    assert report["counts"] == oracle_of(stack).violated_pixels(vectors).tolist()
    half_pixel_off = math.exp(-0.5 * (0.5**2 + 0.5**2) / (2.0**2 + 0.3))  # 0.3 is eps2d
    assert report["middle"] == pytest.approx(0.9 * half_pixel_off, rel=1e-5)


def test_more_objects_than_the_oracle_can_hold_are_refused() -> None:
    """Beyond 62 the bits that name a pixel's layers would run out, and the counts be wrong."""
    ranges = torch.tensor([[1.0, 1.0]] + [[0.5, 1.5]] * MAX_OBJECTS)
    ScaleOracleBuilder(ranges[:MAX_OBJECTS])
    with pytest.raises(OsnGsError, match=r"holds 62 objects at most, got 63"):
        ScaleOracleBuilder(ranges)
