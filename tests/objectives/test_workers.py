"""Two workers come to the loss and the gradients of one worker on the joined batch; their batches differ by one row."""

from __future__ import annotations

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel as DDP
from two_workers import process_group, run_two

from cxrlt_ray.objectives.terms.contrast import LogScale, info_nce, sigmoid_loss
from cxrlt_ray.objectives.terms.entities import entity_contrast
from cxrlt_ray.objectives.terms.gather import gathered, share_of
from cxrlt_ray.objectives.terms.grounding import phrase_loss
from cxrlt_ray.objectives.terms.local import local_alignment
from cxrlt_ray.objectives.terms.views import EMPTY, KeyQueue, moco, nt_xent

ROWS, WIDTH = 7, 6
NUMBER = torch.tensor([4, 5, 4, 0, 6, 4, 7])  # equal ones on both workers; one without text
LABELS = torch.tensor([1, 0, -1, 0, 1, 1, 0])


class Towers(torch.nn.Module):
    """Two projections and a scale, which both sides learn."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.one, self.other = torch.nn.Linear(WIDTH, 5), torch.nn.Linear(WIDTH, 5)
        self.scale, self.queue = LogScale(), KeyQueue(4, 5)
        self.queue.keys.copy_(torch.nn.functional.normalize(torch.randn(4, 5), dim=1))
        self.queue.study.copy_(torch.tensor([6, 50, 51, EMPTY]))

    def forward(self, first, second):
        return self.one(first), self.other(second), self.scale()


def local(a, b, scale, rows, towers):
    """SLA of three patches and two words an image; later rows have three words, so that lengths differ by worker."""
    patches, words = (torch.stack([x, x.roll(1, 1), x * x], dim=1) for x in (a, b))
    count = torch.tensor([2, 1, 2, 3, 3, 2, 3])[rows]
    mask = torch.arange(3) < count.unsqueeze(1)
    longest = int(count.max())
    return local_alignment(patches, words[:, :longest], mask[:, :longest], (scale, 3.0), NUMBER[rows])


TERMS = {
    "info_nce": lambda a, b, scale, rows, towers: info_nce(a, b, scale, NUMBER[rows]),
    "info_nce_distinct": lambda a, b, scale, rows, towers: info_nce(a, b, scale),
    "sigmoid": lambda a, b, scale, rows, towers: sigmoid_loss(a, b, scale, -2.0, NUMBER[rows]),
    "nt_xent": lambda a, b, scale, rows, towers: nt_xent(a, b, 0.5, NUMBER[rows]),
    "moco": lambda a, b, scale, rows, towers: moco(a, b, towers.queue, 0.3, NUMBER[rows]),
    "local": local,
    "entities": lambda a, b, scale, rows, towers: entity_contrast(a, b, NUMBER[rows], scale),
    "phrases": lambda a, b, scale, rows, towers: phrase_loss(a[:, :1], LABELS[rows].unsqueeze(1)),
}


def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, WIDTH, generator=generator), torch.randn(ROWS, WIDTH, generator=generator)


def outcome(rows: slice, term: str, wrapped: bool):
    """The loss of these rows, and the gradients after what DDP does to them."""
    towers = Towers()
    network = DDP(towers, find_unused_parameters=True) if wrapped else towers
    first, second = (tensor[rows] for tensor in inputs())
    loss = TERMS[term](*network(first, second), rows, towers)
    loss.backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in towers.named_parameters()}
    return loss.detach(), {name: gradient.clone() for name, gradient in gradients.items()}


def worker(rank, meeting, file):
    rows, results = slice(0, 3) if rank == 0 else slice(3, ROWS), {}
    with process_group(rank, meeting):
        for term in TERMS:
            loss, gradients = outcome(rows, term, True)
            losses = gathered(loss.reshape(1), share_of(loss.reshape(1)))
            results[term] = (losses.mean(), gradients)
        queue = KeyQueue(20, WIDTH)
        queue.push(inputs()[0][rows], NUMBER[rows])
        results["queue"] = queue.state_dict()
        results["saved"] = largest_saved(rows)
    torch.save(results, f"{file}-{rank}")


def largest_saved(rows):
    """The most values of one tensor that InfoNCE keeps for its backward pass."""
    sizes, towers = [], Towers()
    outputs = towers(*(tensor[rows] for tensor in inputs()))

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        info_nce(*outputs, NUMBER[rows])
    return max(sizes)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    run_two(worker, f"{folder}/meeting", f"{folder}/results")
    return [torch.load(f"{folder}/results-{rank}") for rank in range(2)]


@pytest.mark.parametrize("term", TERMS)
def test_two_workers_have_the_loss_and_gradients_of_one_on_the_joined_batch(term, two):
    loss, gradients = outcome(slice(0, ROWS), term, False)
    assert any(gradient.abs().sum() > 0 for gradient in gradients.values())
    for rank in range(2):
        torch.testing.assert_close(two[rank][term][0], loss)
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                two[rank][term][1][name], gradient, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_both_workers_queues_hold_all_workers_keys_in_one_order(two):
    queue = KeyQueue(20, WIDTH)
    queue.push(inputs()[0], NUMBER)
    for rank in range(2):
        for name, tensor in queue.state_dict().items():
            torch.testing.assert_close(two[rank]["queue"][name], tensor)


def test_a_worker_keeps_its_own_rows_against_all_columns_and_no_square_of_the_batch(two):
    assert two[0]["saved"] <= 3 * ROWS + WIDTH * WIDTH
    assert two[0]["saved"] < ROWS * ROWS
