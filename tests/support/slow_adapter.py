"""ViT-Adapter written slowly from the formulas: on a state dict, one head, level and point at a time."""

import torch
from torch.nn import functional as F

POINTS = 4


def below(state, prefix):
    """Return the tensors whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(state, name, x):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def centers(shapes):
    """Return the centers of all cells, x then y, in [0, 1]."""
    return torch.tensor(
        [
            [(x + 0.5) / width, (y + 0.5) / height]
            for height, width in shapes
            for y in range(height)
            for x in range(width)
        ]
    )


def cut(x, shapes):
    """Return the maps (B, C, H, W) of a sequence (B, S, C)."""
    maps, start = [], 0
    for height, width in shapes:
        part = x[:, start : start + height * width]
        maps.append(part.reshape(len(x), height, width, -1).permute(0, 3, 1, 2))
        start += height * width
    assert start == x.shape[1]
    return maps


def deformable_attention(state, query, query_shapes, value, value_shapes, heads):
    """Sum over heads, levels and points the bilinear samples around each query's center."""
    batch, queries, _ = query.shape
    levels = len(value_shapes)
    offsets = linear(state, "sampling_offsets", query).view(batch, queries, heads, levels, POINTS, 2)
    logits = linear(state, "attention_weights", query).view(batch, queries, heads, levels * POINTS)
    weights = logits.softmax(-1).view(batch, queries, heads, levels, POINTS)
    maps = cut(linear(state, "value_proj", value), value_shapes)
    width = maps[0].shape[1] // heads
    results = []
    for head in range(heads):
        total = torch.zeros(batch, width, queries)
        for level, (rows, columns) in enumerate(value_shapes):
            map_ = maps[level][:, head * width : (head + 1) * width]
            for point in range(POINTS):
                places = centers(query_shapes) + offsets[:, :, head, level, point] / torch.tensor(
                    [columns, rows]
                )
                sampled = F.grid_sample(map_, 2 * places[:, None] - 1, align_corners=False)[:, :, 0]
                total += sampled * weights[:, None, :, head, level, point]
        results.append(total)
    return linear(state, "output_proj", torch.cat(results, dim=1).transpose(1, 2))


def attend(state, query, query_shapes, value, value_shapes, heads):
    """Attend from the normalized query to the normalized value."""
    query, value = layer_norm(state, "query_norm", query), layer_norm(state, "feat_norm", value)
    return deformable_attention(below(state, "attn."), query, query_shapes, value, value_shapes, heads)


def inject(state, patches, cells, grid, prior, heads):
    return patches + state["gamma"] * attend(state, patches, [grid], cells, prior, heads)


def extract(state, cells, patches, grid, prior, heads):
    cells = cells + attend(state, cells, prior, patches, [grid], heads)
    hidden = linear(state, "ffn.fc1", layer_norm(state, "ffn_norm", cells))
    weight, bias = state["ffn.dwconv.weight"], state["ffn.dwconv.bias"]
    maps = [F.conv2d(x, weight, bias, padding=1, groups=len(weight)) for x in cut(hidden, prior)]
    hidden = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
    return cells + linear(state, "ffn.fc2", F.gelu(hidden))


def batch_norm(state, name, x):
    """Normalize by the statistics of training."""
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / (variance + 1e-5).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None]


def spatial_prior(state, images):
    """Return the maps at strides 4, 8, 16 and 32."""
    x, maps = images, []
    layers = [("stem.0", "stem.1", 2), ("stem.3", "stem.4", 1), ("stem.6", "stem.7", 1)]
    layers += [(f"conv{i}.0", f"conv{i}.1", 2) for i in (2, 3, 4)]
    for i, (convolution, norm, stride) in enumerate(layers):
        x = F.conv2d(x, state[f"{convolution}.weight"], stride=stride, padding=1)
        x = batch_norm(state, norm, x).clamp(min=0)
        if i == 2:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        if i >= 2:
            name = f"fc{i - 1}"
            maps.append(F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"]))
    return maps


def adapter_maps(state, vit, images, heads):
    """Return the four maps of ViT-Adapter on `vit`, whose blocks alone are taken as they are."""
    height, width = images.shape[2] // 16, images.shape[3] // 16
    grid, prior = (height, width), [(2 * height, 2 * width), (height, width), (height // 2, width // 2)]
    fine, *coarse = spatial_prior(below(state, "spm."), images)
    parts = [x.flatten(2).transpose(1, 2) + state["level_embed"][i] for i, x in enumerate(coarse)]
    cells = torch.cat(parts, dim=1)
    tokens, layout = vit.embed(images)
    group, after = len(vit.blocks) // 4, []
    for i in range(4):
        special, patches = tokens[:, : -height * width], tokens[:, -height * width :]
        part = below(state, f"interactions.{i}.")
        patches = inject(below(part, "injector."), patches, cells, grid, prior, heads)
        tokens = torch.cat((special, patches), dim=1)
        for block in vit.blocks[group * i : group * (i + 1)]:
            tokens = block(tokens, layout)
        patches = tokens[:, -height * width :]
        names = ["extractor.", "extra_extractors.0.", "extra_extractors.1."]
        for name in names if i == 3 else names[:1]:
            cells = extract(below(part, name), cells, patches, grid, prior, heads)
        after += cut(patches, [grid])
    maps = cut(cells, prior)
    doubled = F.conv_transpose2d(maps[0], state["up.weight"], state["up.bias"], stride=2)
    maps = [fine + doubled, *maps]
    results = []
    for i, (map_, patches, scale) in enumerate(zip(maps, after, (4, 2, 1, 0.5), strict=True)):
        resized = F.interpolate(patches, scale_factor=scale, mode="bilinear")
        results.append(batch_norm(state, f"norm{i + 1}", map_ + resized))
    return results
