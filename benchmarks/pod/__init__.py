"""Training on one process or on many, that goes on where a crash cut it off."""

import jax, optax
import optaxtricks as ot


def _ss(tx, params):
    abstract = jax.eval_shape(tx.init, params)
    any_ = jax.tree.leaves(params)[0].sharding
    rep = jax.sharding.NamedSharding(any_.mesh, jax.sharding.PartitionSpec())
    known = [
        (jax.tree_util.keystr(k, simple=True, separator="/"), p)
        for k, p in jax.tree.leaves_with_path(params)
    ]

    def f(k, s):
        path = jax.tree_util.keystr(k, simple=True, separator="/")
        for q, p in known:
            if path.endswith("/" + q) and p.shape == s.shape:
                return p.sharding
        return rep

    return jax.tree_util.tree_map_with_path(f, abstract)


if not hasattr(ot, "state_shardings"):
    ot.state_shardings = _ss
    ot.metrics = lambda s: {}
