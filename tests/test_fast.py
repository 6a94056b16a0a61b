"""The fast step computes what the plain loop computes."""

import copy
from dataclasses import replace

import pytest
import torch
from builders import plain_recipe
from torch import Tensor, nn
from torchvision.models import alexnet

from fedcats.training.fast import FastStep, keep_freed_memory, make_fast_step
from fedcats.training.loop import PlainStep
from fedcats.training.recipe import Recipe

PLAIN = plain_recipe()
MOMENTUM = replace(PLAIN, momentum=0.9)
NESTEROV = replace(PLAIN, momentum=0.9, nesterov=True, weight_decay=0.01)
DECAY = replace(PLAIN, weight_decay=0.01)
RECIPES = [PLAIN, MOMENTUM, NESTEROV, DECAY]
IDS = ["plain", "momentum", "nesterov+decay", "decay"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Small(nn.Module):
    """Convolutions, dropout on images, pooling, two linear layers of which one has two blocks."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Dropout(0.3),
            nn.Conv2d(16, 64, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.hidden = nn.Linear(64 * 8 * 8, 50, bias=bias)  # 16 kB a row: blocks of 16 rows and 2
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(50, 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.features(x), 1)
        return self.head(self.dropout(torch.relu(self.hidden(x))))


def small(**options) -> Small:
    torch.manual_seed(1)
    return Small(**options)


def fast(model: nn.Module, recipe: Recipe) -> FastStep:
    step = make_fast_step(model, recipe)
    assert step is not None
    return step


def batch(size: int, side: int, i: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(i)
    x = torch.randn(size, 3, side, side, generator=generator)
    return x, torch.randint(0, 2, (size,), generator=generator)


def run(make, model: nn.Module, recipe: Recipe, *, steps: int, side: int = 16, size: int = 4):
    """Train a copy; its weights, the losses and the state of the random generator after it."""
    model = copy.deepcopy(model).train()
    step = make(model, recipe)
    torch.manual_seed(7)
    losses = [step(*batch(size, side, i)).item() for i in range(steps)]
    return model.state_dict(), losses, torch.get_rng_state()


def ulps(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference, in half units of the last place of its tensor's largest weight."""
    return max((a[k] - b[k]).abs().max().item() / (2**-24 * b[k].abs().max().item()) for k in b)


def deviation(a: dict[str, Tensor], b: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """Largest relative deviation of a tensor's movement since `start` (2-norms)."""
    return max(((a[k] - b[k]).norm() / (b[k] - start[k]).norm()).item() for k in b)


@pytest.fixture(scope="module")
def big():
    torch.manual_seed(0)
    return alexnet(num_classes=2)


@pytest.fixture(scope="module")
def averaging(big):
    """AlexNet that pools by the mean: the bound of rounding alone.

    Of two values that are equal up to rounding, another one can be the largest on each processor,
    and its gradient then goes to another place.
    """
    model = copy.deepcopy(big)
    for i, module in enumerate(model.features):
        if isinstance(module, nn.MaxPool2d):
            model.features[i] = nn.AvgPool2d(module.kernel_size, module.stride)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [PLAIN, NESTEROV], ids=["plain", "nesterov+decay"])
def test_alexnet_one_step_is_the_plain_step_to_four_ulps(averaging, recipe):
    ours, losses, rng = run(fast, averaging, recipe, steps=1, side=224)
    plain, plain_losses, plain_rng = run(PlainStep, averaging, recipe, steps=1, side=224)
    assert ulps(ours, plain) <= 4
    assert losses == pytest.approx(plain_losses, rel=1e-6)
    assert torch.equal(rng, plain_rng)
    assert ours["classifier.1.weight"].is_contiguous() and ours["features.0.weight"].is_contiguous()


@pytest.mark.slow
def test_alexnet_three_steps_move_the_weights_as_plain_ones_do(big, averaging):
    for model, bound in ((averaging, 4e-3), (big, 0.05)):  # the second with pooling's choices
        ours, *_ = run(fast, model, PLAIN, steps=3, side=224)
        plain, *_ = run(PlainStep, model, PLAIN, steps=3, side=224)
        assert deviation(ours, plain, model.state_dict()) <= bound


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_small_network_follows_the_plain_loop(recipe):
    model = small()
    ours, losses, rng = run(fast, model, replace(recipe, lr=0.01), steps=10)
    plain, plain_losses, plain_rng = run(PlainStep, model, replace(recipe, lr=0.01), steps=10)
    assert deviation(ours, plain, model.state_dict()) <= 1e-3
    assert losses == pytest.approx(plain_losses, rel=1e-4)
    assert torch.equal(rng, plain_rng)


def test_is_as_near_to_exact_arithmetic_as_the_plain_step():
    model = small().double()
    start = model.state_dict()
    exact, *_ = run(lambda m, r: _double(PlainStep(m, r)), model, replace(PLAIN, lr=0.01), steps=5)
    model = model.float()
    ours, *_ = run(fast, model, replace(PLAIN, lr=0.01), steps=5)
    plain, *_ = run(PlainStep, model, replace(PLAIN, lr=0.01), steps=5)
    assert deviation(ours, exact, start) <= 2 * deviation(plain, exact, start) <= 1e-3


def _double(step):
    return lambda x, y: step(x.double(), y)


def test_hand_computed_step():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
        model.bias.zero_()
    step = fast(model, replace(PLAIN, lr=0.5))
    # x = (0, 0): both logits are 0, the softmax is (1/2, 1/2), and with label 0 the gradient of
    # the logits is (-1/2, 1/2). The weight gets no gradient, the bias moves by 0.5 * (1/2, -1/2).
    assert step(torch.zeros(1, 2), torch.tensor([0])).item() == pytest.approx(0.6931472)
    assert model.bias.tolist() == [0.25, -0.25]
    assert model.weight.tolist() == [[1.0, 2.0], [3.0, 5.0]]


def test_same_bits_in_every_run():
    first, second = (run(fast, small(), MOMENTUM, steps=5) for _ in range(2))
    assert first[1] == second[1]
    assert all(torch.equal(first[0][k], second[0][k]) for k in first[0])


def test_same_bits_with_kept_memory():
    expected = run(fast, small(), NESTEROV, steps=3)
    keep_freed_memory()
    ours = run(fast, small(), NESTEROV, steps=3)
    assert ours[1] == expected[1]
    assert all(torch.equal(ours[0][k], expected[0][k]) for k in expected[0])


def test_two_threads_compute_the_same_up_to_rounding():
    one, *_ = run(fast, small(), NESTEROV, steps=2)
    torch.set_num_threads(2)
    two, *_ = run(fast, small(), NESTEROV, steps=2)
    assert ulps(two, one) <= 8


@pytest.mark.parametrize("size", [1, 16, 17, 40])
def test_any_batch_size(size):
    ours, *_ = run(fast, small(), PLAIN, steps=1, size=size)
    plain, *_ = run(PlainStep, small(), PLAIN, steps=1, size=size)
    assert ulps(ours, plain) <= 4


def test_without_bias():
    ours, *_ = run(fast, small(bias=False), MOMENTUM, steps=2)
    plain, *_ = run(PlainStep, small(bias=False), MOMENTUM, steps=2)
    assert ulps(ours, plain) <= 8


@pytest.mark.parametrize("bias", [True, False])
def test_a_first_linear_layer_without_gradient_of_its_input_is_trained(bias):
    model = small(bias=bias)
    model.features.requires_grad_(False)
    ours, *_ = run(fast, model, PLAIN, steps=2)
    plain, *_ = run(PlainStep, model, PLAIN, steps=2)
    assert ulps(ours, plain) <= 8
    assert not torch.equal(ours["hidden.weight"], model.hidden.weight)
    assert torch.equal(ours["features.0.weight"], model.features[0].weight)


@pytest.mark.parametrize("frozen", ["hidden.weight", "hidden.bias", "head.weight"])
def test_frozen_parameters_stay(frozen):
    model = small()
    model.get_parameter(frozen).requires_grad_(False)
    ours, *_ = run(fast, model, NESTEROV, steps=3)
    plain, *_ = run(PlainStep, model, NESTEROV, steps=3)
    assert torch.equal(ours[frozen], model.get_parameter(frozen))
    assert deviation(_without(ours, frozen), _without(plain, frozen), model.state_dict()) <= 1e-3


def _without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k != name}


def test_inputs_of_more_dimensions():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(6, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.tanh(self.embed(x)).mean(1))

    torch.manual_seed(2)
    model = Tokens()
    other = copy.deepcopy(model)
    x, y = torch.randn(4, 5, 6), torch.tensor([0, 1, 1, 0])
    for _ in range(3):
        fast(model, PLAIN)(x, y)
        PlainStep(other, PLAIN)(x, y)
    assert ulps(model.state_dict(), other.state_dict()) <= 12  # 4 a step


def test_learning_rate_can_be_changed():
    model, other = small(), small()
    step, plain = fast(model, MOMENTUM), PlainStep(other, MOMENTUM)
    start = copy.deepcopy(model.state_dict())
    for i, lr in enumerate([0.01, 0.1]):
        for each in (step, plain):
            each.set_lr(lr)
            torch.manual_seed(i)
            each(*batch(4, 16, i))
    assert deviation(model.state_dict(), other.state_dict(), start) <= 1e-3


def test_training_goes_on_from_the_saved_momentum():
    model = small()
    step = fast(model, NESTEROV)
    torch.manual_seed(0)
    step(*batch(4, 16, 0))
    weights = copy.deepcopy(model.state_dict())
    saved = {k: v.clone() for k, v in step.state().items()}
    assert saved.keys() == weights.keys()
    torch.manual_seed(1)
    step(*batch(4, 16, 1))

    resumed = small()
    resumed.load_state_dict(weights)
    again = fast(resumed, NESTEROV)
    again.load_state(saved)
    torch.manual_seed(1)
    again(*batch(4, 16, 1))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in resumed.state_dict().items())
    assert all(torch.equal(v, step.state()[k]) for k, v in again.state().items())


def test_momentum_is_interchangeable_with_the_plain_step():
    plain_model = small()
    plain = PlainStep(plain_model, MOMENTUM)
    torch.manual_seed(0)
    plain(*batch(4, 16, 0))
    model = copy.deepcopy(plain_model)
    step = fast(model, MOMENTUM)
    step.load_state(plain.state())
    for each in (plain, step):
        torch.manual_seed(1)
        each(*batch(4, 16, 1))
    assert ulps(model.state_dict(), plain_model.state_dict()) <= 8


def test_an_empty_state_is_a_fresh_start():
    step = fast(small(), MOMENTUM)
    step(*batch(4, 16, 0))
    step.load_state({})
    assert all(not buffer.any() for buffer in step.state().values())
    assert fast(small(), PLAIN).state() == {}


def test_a_foreign_state_is_refused():
    step = fast(small(), MOMENTUM)
    state = step.state()
    with pytest.raises(ValueError, match=r"do not belong to this model.*head\.weight"):
        step.load_state({k: v for k, v in state.items() if k != "head.weight"})
    with pytest.raises(ValueError, match=r"head\.bias has shape \(3,\), expected \(2,\)"):
        step.load_state({**state, "head.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="do not belong"):
        fast(small(), PLAIN).load_state(state)


def test_weights_replaced_from_outside_are_the_ones_trained():
    model, other = small(), small()
    steps = [(model, fast(model, PLAIN)), (other, PlainStep(other, PLAIN))]
    for trained, step in steps:
        torch.manual_seed(0)
        step(*batch(4, 16, 0))
        for parameter in trained.parameters():
            parameter.data = parameter.data.clone()
        torch.manual_seed(1)
        step(*batch(4, 16, 1))
    assert ulps(model.state_dict(), other.state_dict()) <= 8


def test_a_model_that_has_old_gradients_is_trained():
    model, other = small(), small()
    for trained, make in ((model, fast), (other, PlainStep)):
        for step in (PlainStep(trained, PLAIN), make(trained, PLAIN)):
            torch.manual_seed(0)
            step(*batch(4, 16, 0))
    assert ulps(model.state_dict(), other.state_dict()) <= 8


def test_modules_are_as_before_after_a_step_and_after_an_error():
    model = small()
    step = fast(model, PLAIN)
    step(*batch(4, 16, 0))
    assert all("forward" not in module.__dict__ for module in model.modules())
    with pytest.raises(RuntimeError):
        step(torch.randn(4, 3, 5, 5), torch.zeros(4, dtype=torch.int64))
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert model.hidden.weight.grad is None


def test_a_layer_used_twice_is_an_error():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(self.layer(x))

    with pytest.raises(RuntimeError, match=r"layer\.weight is used twice.*plain loop"):
        fast(Twice(), PLAIN)(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64))


def test_a_weight_used_outside_of_its_layer_is_an_error():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x) @ self.layer.weight

    with pytest.raises(RuntimeError, match=r"layer\.weight is used outside.*plain loop"):
        fast(Tied(), PLAIN)(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64))


def test_not_covered():
    assert make_fast_step(small().double(), PLAIN) is None
    assert make_fast_step(nn.Sequential(nn.Flatten(), nn.Conv1d(1, 2, 3)), PLAIN) is None
    frozen = small()
    for layer in (frozen.hidden, frozen.head):
        layer.weight.requires_grad_(False)
    assert make_fast_step(frozen, PLAIN) is None
    shared = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    shared[2].weight = shared[0].weight
    assert make_fast_step(shared, PLAIN) is None
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    assert make_fast_step(normed, PLAIN) is None
