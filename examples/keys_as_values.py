"""A mixer of one's own: attention whose values are its keys, so that its cache is half as large.

costmodel plan --mixer examples/keys_as_values.py:keys_as_values --seq 1Mi --cluster 8xh100
"""

from costmodel.carries.pairs import Pairs
from costmodel.mixer import Kept, Written
from costmodel.mixers.attention import Attention
from costmodel.written import softmax_matrix


class KeysAsValues(Attention):
    """P(X) = softmax(mask + Q K^T / sqrt(d)) per head, V(X) = K; without positions."""

    name = "keys-as-values"
    title = "attention whose values are its keys"
    template = "P = softmax(M + Q K^T / sqrt(d)),  V = K"
    source = "an example of this repository"

    def weights(self, m):
        return {key: shape for key, shape in super().weights(m).items() if key != "w_v"}

    def inputs(self, m):
        return "w_q", "w_k"

    def project(self, ops, read, w, at):
        q, k = read
        return Pairs(q, k, k, at.mask, at.sizes["d"] ** -0.5, at.kernel), (k,)

    def decode(self, ops, read, w, at):
        q, k = read
        k = ops.append(at.cache[0], k, 2, at.cache_axis)
        return Pairs(q, k, k, at.mask, at.sizes["d"] ** -0.5, at.kernel)

    def cache(self, m, tokens):
        return (Kept((m["H_kv"], tokens, m["d"]), tokens=True),)

    def rotary(self, m):
        return 0

    def written(self, xp, x, w, at):
        """The definition that the rest is tested against, as slow as it is plain."""
        q, k = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k"))
        k = xp.repeat_interleave(k, q.shape[1] // k.shape[1], 1)
        matrix = softmax_matrix(xp, xp.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5, at.mask)
        return Written(matrix, k, xp.einsum("bhij,bhje,hed->bid", matrix, k, w["w_o"]))


keys_as_values = KeysAsValues()
