"""RemoteSAM computed in the plainest way, straight from its weights: a second opinion, and what the fast way is timed against.

Every prompt is a whole forward pass: text encoded anew, padding sent through every layer, dead branches computed, nothing shared,
folded or done in bands. It shares no code with the network but the text encoder, which is a library's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class PlainRemoteSAM:
    """The network of `network`'s weights; call it with pixels, input_ids, attention_mask."""

    def __init__(self, network: Any) -> None:
        self.state, self.config, self.text = network.state_dict(), network.config, network.text_encoder

    def __call__(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, 2, H, W)."""
        hidden = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        maps = self.cross_scale(self.trunk(pixels, hidden.transpose(1, 2), attention_mask.float()[:, None]))
        return F.interpolate(self.decoder(maps), size=pixels.shape[2:], mode="bilinear", align_corners=True)

    def get(self, key: str) -> Tensor | None:
        return self.state.get(key)

    def linear(self, x: Tensor, key: str) -> Tensor:
        return F.linear(x, self.state[f"{key}.weight"], self.get(f"{key}.bias"))

    def conv1d(self, x: Tensor, key: str) -> Tensor:
        return F.conv1d(x, self.state[f"{key}.weight"], self.get(f"{key}.bias"))

    def conv(self, x: Tensor, key: str, **how: int) -> Tensor:
        return F.conv2d(x, self.state[f"{key}.weight"], self.get(f"{key}.bias"), **how)

    def layer_norm(self, x: Tensor, key: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{key}.weight"], self.state[f"{key}.bias"], 1e-5)

    def batch_norm(self, x: Tensor, key: str) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.state[f"{key}.{name}"] for name in names), eps=1e-5)

    def trunk(self, pixels: Tensor, words: Tensor, mask: Tensor) -> list[Tensor]:
        height, width = pixels.shape[2:]
        x = self.conv(F.pad(pixels, (0, -width % 4, 0, -height % 4)), "backbone.patch_embed.proj", stride=4)
        h, w = x.shape[2:]
        x = self.layer_norm(x.flatten(2).transpose(1, 2), "backbone.patch_embed.norm")
        maps = []
        for number, depth in enumerate(self.config.depths):
            key = f"backbone.layers.{number}"
            for block in range(depth):
                shift = self.config.swin_window // 2 if block % 2 else 0
                x = self.block(x, h, w, f"{key}.blocks.{block}", self.config.heads[number], shift)
            fused = self.fusion(x, words, mask, f"{key}.fusion")
            seen = x * self.receptive(x, f"{key}.visual_residual.repblock")
            maps.append(self.layer_norm(fused, f"backbone.norm{number}").transpose(1, 2).unflatten(2, (h, w)).contiguous())
            x = x + self.gate(fused, f"{key}.res_gate") * fused + self.gate(seen, f"{key}.visual_gate") * seen
            if number < 3:
                x, h, w = self.merge(x, h, w, f"{key}.downsample"), (h + 1) // 2, (w + 1) // 2
        return maps

    def gate(self, x: Tensor, key: str) -> Tensor:
        return torch.tanh(self.linear(F.relu(self.linear(x, f"{key}.0")), f"{key}.2"))

    def merge(self, x: Tensor, h: int, w: int, key: str) -> Tensor:
        x = F.pad(x.unflatten(1, (h, w)), (0, 0, 0, w % 2, 0, h % 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1).flatten(1, 2)
        return self.linear(self.layer_norm(x, f"{key}.norm"), f"{key}.reduction")

    def block(self, x: Tensor, h: int, w: int, key: str, heads: int, shift: int) -> Tensor:
        size = self.config.swin_window
        y = self.layer_norm(x, f"{key}.norm1").unflatten(1, (h, w))
        y = F.pad(y, (0, 0, 0, -w % size, 0, -h % size)).roll((-shift, -shift), (1, 2))
        padded_h, padded_w = y.shape[1:3]
        region = torch.zeros(padded_h, padded_w)
        if shift:
            for edge in (size, shift):
                region[-edge:] += 1
                region[:, -edge:] += 3
        region = self.split(region[None, :, :, None])[..., 0]
        mask = torch.where(region[:, None] == region[:, :, None], 0.0, -100.0)
        y = self.attend(self.split(y), mask, f"{key}.attn", heads)
        y = y.reshape(-1, padded_h // size, padded_w // size, size, size, y.shape[-1]).transpose(2, 3)
        y = y.reshape(len(x), padded_h, padded_w, -1).roll((shift, shift), (1, 2))[:, :h, :w].flatten(1, 2)
        x = x + y
        y = self.linear(self.layer_norm(x, f"{key}.norm2"), f"{key}.mlp.fc1")
        return x + self.linear(F.gelu(y), f"{key}.mlp.fc2")

    def split(self, x: Tensor) -> Tensor:
        size = self.config.swin_window
        batch, h, w, dim = x.shape
        return x.reshape(batch, h // size, size, w // size, size, dim).transpose(2, 3).reshape(-1, size * size, dim)

    def attend(self, x: Tensor, mask: Tensor, key: str, heads: int) -> Tensor:
        count, size, dim = x.shape
        q, k, v = self.linear(x, f"{key}.qkv").reshape(count, size, 3, heads, -1).permute(2, 0, 3, 1, 4)
        table, index = self.state[f"{key}.relative_position_bias_table"], self.state[f"{key}.relative_position_index"]
        score = (q * (dim // heads) ** -0.5) @ k.transpose(-2, -1)
        score = score + table[index.reshape(-1)].reshape(size, size, heads).permute(2, 0, 1)
        if mask.any():
            score = (score.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        return self.linear((score.softmax(-1) @ v).transpose(1, 2).reshape(count, size, dim), f"{key}.proj")

    def fusion(self, x: Tensor, words: Tensor, mask: Tensor, key: str) -> Tensor:
        x = x.transpose(1, 2)
        look = F.gelu(self.conv1d(x, f"{key}.vis_project.0"))
        at = f"{key}.image_lang_att"
        query = F.instance_norm(self.conv1d(x, f"{at}.f_query.0")).transpose(1, 2)
        k, v = (self.conv1d(words, f"{at}.f_{name}.0") * mask for name in ("key", "value"))
        score = query.shape[-1] ** -0.5 * (query @ k) + (10000 * mask - 10000)
        said = (score.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)
        said = F.instance_norm(self.conv1d(said, f"{at}.W.0"))
        return F.gelu(self.conv1d(look * said, f"{key}.project_mm.0")).transpose(1, 2)

    def receptive(self, x: Tensor, key: str) -> Tensor:
        side = math.isqrt(x.shape[1])
        z = x.mean(-1).reshape(-1, 1, side, side)
        for end, last in (("", F.relu), ("_2", torch.sigmoid)):
            local = self.batch_norm(self.conv(z, f"{key}.brb_3x3{end}.conv1"), f"{key}.brb_3x3{end}.bn1")
            local = self.batch_norm(self.conv(local, f"{key}.brb_3x3{end}.conv2", padding=1), f"{key}.brb_3x3{end}.bn2")
            point = self.batch_norm(self.conv(z, f"{key}.brb_1x1{end}.conv"), f"{key}.brb_1x1{end}.bn")
            z = last(point + local + self.batch_norm(z, f"{key}.brb_identity{end}"))
        return z.flatten(1)[..., None]

    def cross_scale(self, maps: list[Tensor]) -> list[Tensor]:
        key = "backbone.cim"
        x = torch.cat([F.adaptive_avg_pool2d(x, maps[-1].shape[2:]) for x in maps], 1)
        x = self.conv(x, f"{key}.down_channel")
        x = x + self.scale_attention(x, f"{key}.block.0.csa1.m")
        parts = zip(x.split([dim // 4 for dim in self.config.dims], 1), range(1, 5), strict=True)
        x = x + torch.cat([y + self.feed(y, f"{key}.block.0.intra_ff.m.ff{number}.m") for y, number in parts], 1)
        x = x + self.scale_attention(x, f"{key}.block.0.csa2.m")
        x = x + self.feed(x, f"{key}.block.0.ff.m")
        x = self.conv(self.batch_norm(x, f"{key}.bn"), f"{key}.up_channel")
        out = []
        for number, (own, part) in enumerate(zip(maps, x.split(self.config.dims, 1), strict=True)):
            at = f"{key}.fusion.{number}"
            scale = F.relu6(self.batch_norm(self.conv(part, f"{at}.global_act"), f"{at}.bn3") + 3) / 6
            shift = self.batch_norm(self.conv(part, f"{at}.global_embedding"), f"{at}.bn2")
            scale, shift = (F.interpolate(y, own.shape[2:], mode="bilinear", align_corners=False) for y in (scale, shift))
            out.append(self.batch_norm(self.conv(own, f"{at}.local_embedding"), f"{at}.bn1") * scale + shift)
        return out

    def scale_attention(self, x: Tensor, key: str) -> Tensor:
        batch, dim, side, _ = x.shape
        heads, key_dim, value_dim = self.config.cross_heads, self.config.cross_key_dim, self.config.cross_value_dim
        x = self.batch_norm(x, f"{key}.bn1")
        half = self.batch_norm(self.conv(x, f"{key}.DWConv1.0", stride=2, padding=1, groups=dim), f"{key}.DWConv1.1")
        third = self.batch_norm(self.conv(x, f"{key}.DWConv2.0", stride=3, padding=2, groups=dim), f"{key}.DWConv2.1")
        tokens = torch.cat([y.flatten(2) for y in (x, half, third)], 2).transpose(1, 2)
        count = tokens.shape[1]
        qkv = self.linear(tokens, f"{key}.attention.qkv.c")
        qkv = self.batch_norm(qkv.transpose(1, 2), f"{key}.attention.qkv.bn").transpose(1, 2)
        q, k, v = qkv.reshape(batch, count, heads, -1).transpose(1, 2).split([key_dim, key_dim, value_dim], -1)
        local = v[:, :, : side * side].contiguous().view(batch, -1, side, side)
        local = self.conv(F.hardswish(local), f"{key}.attention.parallel_conv.1", padding=1, groups=local.shape[1])
        said = (q @ k.transpose(-2, -1) * key_dim**-0.5).softmax(-1) @ v
        said = said.transpose(1, 2).contiguous().view(batch, heads * value_dim, count)
        said = self.linear(said, f"{key}.attention.proj") + local.flatten(2)
        said = self.linear(said.transpose(1, 2), f"{key}.attention.to_out").transpose(1, 2).reshape(x.shape)
        return self.conv(F.hardswish(self.batch_norm(said, f"{key}.bn4")), f"{key}.conv")

    def feed(self, x: Tensor, key: str) -> Tensor:
        y = self.batch_norm(self.conv(self.batch_norm(x, f"{key}.bn1"), f"{key}.conv1"), f"{key}.bn2")
        return self.conv(F.relu6(self.conv(y, f"{key}.conv2", padding=1, groups=x.shape[1])), f"{key}.conv3")

    def decoder(self, maps: list[Tensor]) -> Tensor:
        x, key = maps[3], "classifier"
        for level in (4, 3, 2):
            skip = maps[level - 2]
            if x.shape[2] < skip.shape[2] or x.shape[3] < skip.shape[3]:
                x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=True)
            x = self.conv(torch.cat((x, skip), 1), f"{key}.conv1_{level}", padding=1)
            x = self.rotated(F.relu(self.batch_norm(x, f"{key}.bn1_{level}")), f"{key}.conv2_{level}")
            x = F.relu(self.batch_norm(x, f"{key}.bn2_{level}"))
        return self.conv(x, f"{key}.conv1_1")

    def rotated(self, x: Tensor, key: str) -> Tensor:
        batch, dim, h, w = x.shape
        y = self.conv(x, f"{key}.rounting_func.dwc", padding=1, groups=dim).permute(0, 2, 3, 1)
        y = F.relu(self.layer_norm(y, f"{key}.rounting_func.norm.norm")).mean((1, 2))
        alpha = torch.sigmoid(self.linear(y, f"{key}.rounting_func.fc_alpha"))[:, 0]
        theta = math.radians(40) * F.softsign(self.linear(y, f"{key}.rounting_func.fc_theta"))[:, 0]
        kernels = [a * turned(self.state[f"{key}.weight"][0], float(t)) for a, t in zip(alpha, theta, strict=True)]
        return F.conv2d(x.reshape(1, -1, h, w), torch.cat(kernels), padding=1, groups=batch).reshape(batch, dim, h, w)


def turned(weight: Tensor, theta: float) -> Tensor:
    """Kernels (out, in, 3, 3) read bilinearly at positions turned by theta, by torch's own sampler."""
    cos, sin = math.cos(theta), math.sin(theta)
    grid = F.affine_grid(torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]]), [1, 1, 3, 3], align_corners=True)
    return F.grid_sample(weight.flatten(0, 1)[None], grid, padding_mode="border", align_corners=True).reshape(weight.shape)
