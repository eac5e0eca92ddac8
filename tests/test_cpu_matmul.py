"""The compiled product against torch's, and each row's bits alone and among others."""

import numpy as np
import pytest
import torch

from nanochat.cpu_matmul import DEPTH, KINDS, TILE, matmul, tiles
from nanochat.native import source_stamp


def product(x: np.ndarray, weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    out = np.ones((len(x), len(weights) * TILE), np.float32)
    matmul(x, x.shape[1], weights, scales, False, out)
    sums = out.copy()
    matmul(x, x.shape[1], weights, scales, True, sums)
    np.testing.assert_allclose(sums, 2 * out, rtol=1e-5, atol=1e-5)
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_in, n_out", [(3, 5), (DEPTH + 7, 2 * TILE)])
def test_rows_times_a_matrix(kind, n_in, n_out):
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(n_out, n_in, generator=generator) for _ in range(2)]
    x = torch.randn(11, n_in, generator=generator)
    weights, scales = tiles(matrices, kind)
    assert weights.dtype.itemsize == {"float32": 4, "bfloat16": 2, "int8": 1}[kind]
    for layer, matrix in enumerate(matrices):
        out = product(x.numpy(), weights[layer], scales[layer])
        assert not out[:, n_out:].any()
        if kind == "int8":
            scale = matrix.abs().amax(1, keepdim=True) / 127
            matrix = (matrix / scale).round() * scale
        exact = x.double() @ (matrix.bfloat16() if kind == "bfloat16" else matrix).double().T
        torch.testing.assert_close(torch.from_numpy(out[:, :n_out]).double(), exact, rtol=1e-4, atol=1e-4)
        for count in range(1, 11):
            assert (product(x[10 - count : 10].numpy(), weights[layer], scales[layer])[-1] == out[9]).all()


def test_machine_code_is_made_anew_if_any_file_that_it_comes_from_changes(tmp_path):
    texts = {
        "a": "from nanochat.b import (\n    f,\n)\n",
        "b": "import re\nfrom nanochat.c import g\nfrom nanochat.a import h\n",
        "c": "x = 1\n",
        "d": "",
    }
    stamps = []
    for changed in (None, "a", "b", "c", "d"):
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text + ("# new\n" if name == changed else ""))
        source_stamp.cache_clear()
        stamps.append(source_stamp(tmp_path / "a.py"))
    assert len(set(stamps[:4])) == 4 and stamps[4] == stamps[0]
    source_stamp.cache_clear()
