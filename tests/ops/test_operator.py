"""What torch sees of the operator: schemas, shapes, gradients, compilation, export; and wrong arguments."""

import pytest
import torch
from explicit_attention import BACKENDS, FORMS, SHAPES, asking_for, attend, convert, draw, explicit

from mask2former.ops import ms_deform_attn, ms_deform_attn_from_offsets, operator

FLAT = [side for shape in SHAPES for side in shape]
FORWARD = torch.ops.mask2former.ms_deform_attn.default
BACKWARD = torch.ops.mask2former.ms_deform_attn_backward.default


def float_fused(device="cpu", **sizes):
    return convert(draw("fused", **sizes), device, torch.float32)


def of_model(value, offsets, logits, reference):
    return ms_deform_attn_from_offsets(value, SHAPES, reference, offsets, logits)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_opcheck(backend, dtype, form):
    if dtype == torch.float64 and backend != "torch":
        pytest.skip("float64 is PyTorch's")
    with asking_for(backend) as device:
        width = torch.float64 if dtype == torch.float64 else torch.float32
        value, points, weights, reference = convert(draw(form), device, width)
        value = value.to(dtype)
        grad = torch.randn(2, 3, 6, device=device, dtype=dtype)
        torch.library.opcheck(BACKWARD, (grad, value, FLAT, points, weights, reference))
        for tensor in (value, points, weights):
            tensor.requires_grad_()
        torch.library.opcheck(FORWARD, (value, FLAT, points, weights, reference))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_to_one_graph_with_its_gradients(backend, compiler):
    with asking_for(backend) as device:
        tensors = [t.requires_grad_() for t in float_fused(device)]
        compiled = torch.compile(of_model, fullgraph=True, backend=compiler)
        result, expected = compiled(*tensors), of_model(*tensors)
        torch.testing.assert_close(result, expected)
        seed = torch.randn_like(result)
        grads = torch.autograd.grad(result, tensors, seed)
        for mine, other in zip(grads, torch.autograd.grad(expected, tensors, seed), strict=True):
            torch.testing.assert_close(mine, other)


def test_compiles_for_any_number_of_images_and_any_sides():
    def of_map(image, offsets, logits, reference):
        shapes = ((image.shape[1], image.shape[2]),)
        return ms_deform_attn_from_offsets(image.flatten(1, 2), shapes, reference, offsets, logits)

    compiled = torch.compile(of_map, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, shape in ((5, (11, 13)), (6, (8, 9)), (7, (16, 10))):  # no two alike, which would be a guard
        value, *others = float_fused(shapes=(shape,), batch=batch, queries=17, points=4)
        image = value.unflatten(1, shape)
        with torch.compiler.set_stance("fail_on_recompile" if batch > 5 else "default"):
            torch.testing.assert_close(compiled(image, *others), of_map(image, *others))


def test_exports_as_one_node():
    class Model(torch.nn.Module):
        def forward(self, *tensors):
            return of_model(*tensors)

    images = torch.export.Dim("images", min=1, max=8)
    dynamic = (({0: images}, {0: images}, {0: images}, {0: images}),)
    program = torch.export.export(Model(), tuple(float_fused()), dynamic_shapes=dynamic)
    nodes = [node for node in program.graph.nodes if node.op == "call_function" and node.target == FORWARD]
    assert len(nodes) == 1
    three = float_fused(batch=3)
    torch.testing.assert_close(program.module()(*three), of_model(*three))


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_order_does_not_matter(backend):
    with asking_for(backend) as device:
        contiguous = [t.requires_grad_() for t in float_fused(device)]
        strided = [
            t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for t in contiguous
        ]
        assert not any(t.is_contiguous() for t in strided)
        results = [of_model(*tensors) for tensors in (contiguous, strided)]
        torch.testing.assert_close(*results, rtol=0, atol=0)
        for result in results:
            result.sum().backward()  # whose gradient is one number, expanded
        for one, other in zip(contiguous, strided, strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)


EMPTY = {
    "no image": {"batch": 0},
    "no query": {"queries": 0},
    "no point": {"points": 0},
    "no channel": {"channels": 0},
    "no cell": {"shapes": ((0, 3), (2, 0))},
    "no level": {"shapes": ()},
    "an empty level": {"shapes": ((0, 3), (2, 2))},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", EMPTY)
@pytest.mark.parametrize("form", FORMS)
def test_empty_inputs_give_zeros(backend, case, form):
    sizes = {"shapes": SHAPES, **EMPTY[case]}
    with asking_for(backend) as device:
        value, *others = draw(form, **sizes)
        ours = convert((value, *others), device, torch.float32)
        given = [t.requires_grad_() for t in ours if t is not None]
        result = attend(ours[0], sizes["shapes"], *ours[1:])
        result.sum().backward()
    expected = explicit(value, sizes["shapes"], *others)
    torch.testing.assert_close(result.cpu().double(), expected, atol=1e-5, rtol=1e-5)
    assert all(t.grad.shape == t.shape and t.grad.isfinite().all() for t in given)


@pytest.mark.parametrize("wanted", range(4))
def test_any_one_gradient_alone(wanted):
    tensors = float_fused()
    every = [t.clone().requires_grad_() for t in tensors]
    of_model(*every).square().sum().backward()
    tensors[wanted].requires_grad_()
    of_model(*tensors).square().sum().backward()
    torch.testing.assert_close(tensors[wanted].grad, every[wanted].grad)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    tensors = [t.requires_grad_() for t in float_fused()]
    with context():
        result = of_model(*tensors)
    assert not result.requires_grad
    torch.testing.assert_close(result, of_model(*tensors).detach())


def test_autocast_leaves_it_alone():
    tensors = float_fused()
    with torch.autocast("cpu", torch.bfloat16):
        result = of_model(*tensors)
    torch.testing.assert_close(result, of_model(*tensors), rtol=0, atol=0)


def test_there_is_no_second_derivative():
    tensors = [t.requires_grad_() for t in float_fused()]
    grads = torch.autograd.grad(of_model(*tensors).square().sum(), tensors, create_graph=True)
    with pytest.raises(NotImplementedError, match="once, not twice"):
        grads[0].sum().backward()


def test_shapes_without_values():
    tensors = [t.to("meta") for t in float_fused(queries=5)]
    assert of_model(*tensors).shape == (2, 5, 6)


VALUE, OFFSETS, LOGITS, REFERENCE = float_fused()
WRONG = [
    ("value", VALUE.flatten(2), "is of shape (2, 17, 6)"),
    ("value", VALUE.long(), "is of torch.int64"),
    ("spatial_shapes", ((3, 4), (2, 2)), "((3, 4), (2, 2)) has 16 cells, and value 17"),
    ("spatial_shapes", ((-3, -4), (5, 1)), "((-3, -4), (5, 1)) has a negative side"),
    ("spatial_shapes", torch.tensor(SHAPES), "is a tensor"),
    ("sampling_offsets", OFFSETS[..., :1], "is of shape (2, 3, 2, 3, 2, 1), where (2, 3, 2, 3, 2, 2)"),
    ("sampling_offsets", OFFSETS.flatten(3, 4), "is of shape (2, 3, 2, 6, 2)"),
    ("sampling_offsets", OFFSETS[:1], "is of shape (1, 3, 2, 3, 2, 2), where (2, 3,"),
    ("attention_logits", LOGITS[..., :1], "is of shape (2, 3, 2, 3, 1), where (2, 3, 2, 3, 2)"),
    ("reference_points", REFERENCE[:, :, :2], "is of shape (2, 3, 2, 2), where (2, 3, 3, 2)"),
    ("reference_points", REFERENCE[0], "is of shape (3, 3, 2), where (2, 3, 3, 2)"),
]


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_wrong_arguments_are_named(name, wrong, message):
    good = {"value": VALUE, "spatial_shapes": SHAPES, "reference_points": REFERENCE}
    points = {"sampling_offsets": OFFSETS, "attention_logits": LOGITS}
    with pytest.raises(ValueError) as error:
        ms_deform_attn_from_offsets(**{**good, **points, name: wrong})
    assert f"{name} {message}" in str(error.value)


def test_wrong_arguments_of_the_plain_form_are_named():
    value, locations, weights, _ = convert(draw("plain"), torch.float32)
    with pytest.raises(ValueError, match=r"sampling_locations is of shape \(2, 3, 2, 2, 2, 2\), where"):
        ms_deform_attn(value, SHAPES, locations[:, :, :, :2], weights)
    with pytest.raises(ValueError, match=r"attention_weights is of shape \(2, 2, 2, 3, 2\), where"):
        ms_deform_attn(value, SHAPES, locations, weights[:, :2])


def test_the_raw_operator_checks_types_devices_and_the_gradient():
    with pytest.raises(ValueError, match="attention_logits is on meta, and value on cpu"):
        # torch.ops would dispatch to the meta device
        operator._forward(VALUE, FLAT, OFFSETS, LOGITS.to("meta"), REFERENCE)
    with pytest.raises(ValueError, match=r"sampling_offsets is of torch.float64, where torch.float32"):
        FORWARD(VALUE, FLAT, OFFSETS.double(), LOGITS, REFERENCE)
    with pytest.raises(ValueError, match=r"grad is of shape \(2, 3, 5\), where \(2, 3, 6\)"):
        BACKWARD(torch.zeros(2, 3, 5), VALUE, FLAT, OFFSETS, LOGITS, REFERENCE)
    with pytest.raises(ValueError, match="zip"):
        FORWARD(VALUE, FLAT[:-1], OFFSETS, LOGITS, REFERENCE)
