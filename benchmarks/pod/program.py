"""What is compiled: how a run begins, and how it takes a step."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optaxtricks as ot

from ..compiled.steps import abstract_state
from ..finetune.errors import InputError
from ..finetune.train import warm_up_then_decay
from .layout import Rules, Spec, param_shardings
from .recipes import RECIPES, Setup, any_mask, largest_entries


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A model with its data.

    Attributes:
      loss: `loss(params, batch, key)`, a scalar.
      fresh: `fresh(key)` gives parameters; it runs on the devices.
      given: of a pretrained model, a function that gives parameters on the host.
      rules: where parameters lie.
      example: a batch of one example, or its shapes and dtypes.
      length: tokens of an example.
      train: all examples, looked up by their numbers; made when a run starts.
      specs: of the parts of a batch that lie on more than the axis "data", where.
      settings: what tells this work from another in a checkpoint.
      stacked: a pattern of the leaves that hold a tensor for each layer.
      divided: sizes that lie on the axis "model", by what is to be said of them.
    """

    loss: Callable[[Any, Any, jax.Array], jax.Array]
    fresh: Callable[[jax.Array], Any]
    given: Callable[[int], Any] | None = None
    rules: Rules
    example: Mapping[str, Any]
    length: int
    train: Callable[[], Any]
    specs: Mapping[str, Spec] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any]
    stacked: str | None = None
    divided: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def params(self, shardings: Any, seed: int) -> Any:
        """The first parameters, each device holding its own part."""
        if self.given is None:
            return jax.jit(self.fresh, out_shardings=shardings)(jax.random.key(seed))
        put = lambda leaf, sharding: jax.make_array_from_callback(
            leaf.shape, sharding, lambda index: leaf[index]
        )
        return jax.tree.map(put, jax.device_get(self.given(seed)), shardings)


@dataclasses.dataclass(frozen=True)
class Program:
    """A work's step by a recipe on a mesh."""

    work: Work
    options: argparse.Namespace
    mesh: Mesh

    def __post_init__(self) -> None:
        size, parts = self.options.batch_size, self.options.microbatches
        data, axis = self.mesh.shape["data"], self.mesh.shape["model"]
        if size % (data * parts):
            times = f" times --microbatches {parts}" if parts > 1 else ""
            raise InputError(
                f"--batch-size: {size} is not divisible by data={data} of the mesh"
                f"{times}."
            )
        for what, length in self.work.divided.items():
            if length % axis:
                raise InputError(
                    f"{what} {length}, is not divisible by model={axis} of the mesh."
                )

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """Parameters and optimizer state as shapes, dtypes and shardings."""
        params, tx = self._params, self._under_any_mask
        try:
            state = abstract_state(tx, params)
        except ValueError as error:  # what the chain refuses of its options or a model
            why = f"{self.options.recipe} of {self.options.model}: {error}"
            raise InputError(f"--recipe: {why}") from None
        return {"params": params, "state": state}

    @functools.cached_property
    def shardings(self) -> dict[str, Any]:
        """Where each of them lies."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.shapes)

    @functools.cached_property
    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch as shapes, dtypes and shardings."""
        size, specs = self.options.batch_size, self.work.specs
        where = lambda name: NamedSharding(
            self.mesh, PartitionSpec(*specs.get(name, ("data",)))
        )
        return {
            name: jax.ShapeDtypeStruct(
                (size, *part.shape[1:]), part.dtype, sharding=where(name)
            )
            for name, part in self.work.example.items()
        }

    @property
    def trained(self) -> Any:
        """The parameters that have a gradient, with `None` for the others."""
        trained = RECIPES[self.options.recipe].trained
        return self._params if trained is None else ot.split(self._params, trained)[0]

    def begin(self) -> dict[str, Any]:
        """Parameters and optimizer state before the first step, placed."""
        params = self.work.params(self.shardings["params"], self.options.seed)
        mask = None
        if (fraction := self.options.set.get("keep_fraction")) is not None:
            mask = largest_entries(params, fraction)
        # The mask is an operand: it would be a constant of the program otherwise.
        init = lambda params, mask: self._tx(mask).init(params)
        state = jax.jit(init, out_shardings=self.shardings["state"])(params, mask)
        return {"params": params, "state": state}

    def step(self) -> Any:
        """From a run, a batch and the steps done: the next run, and scalars."""
        tx, seed = self._under_any_mask, self.options.seed
        gradient = accumulated(self._gradient, self.options.microbatches)

        def step(run: Any, batch: Any, done: Any) -> tuple[Any, dict[str, jax.Array]]:
            key = jax.random.fold_in(jax.random.key(seed), done)
            loss, grads = gradient(run["params"], batch, key)
            updates, state = tx.update(grads, run["state"], run["params"])
            params = optax.apply_updates(run["params"], updates)
            seen = {"loss": loss, **ot.metrics(state)}
            return {"params": params, "state": state}, seen

        everywhere = NamedSharding(self.mesh, PartitionSpec())
        where = (self.shardings, everywhere)
        return jax.jit(step, donate_argnums=0, out_shardings=where)

    @functools.cached_property
    def _params(self) -> Any:
        params = jax.eval_shape(self.work.fresh, jax.random.key(0))
        places = param_shardings(params, self.work.rules, self.mesh)
        place = lambda leaf, there: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=there
        )
        return jax.tree.map(place, params, places)

    def _gradient(self, params: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
        """Loss and gradient, placed as the parameters are."""
        of: Callable = jax.value_and_grad
        if (trained := RECIPES[self.options.recipe].trained) is not None:
            of = functools.partial(ot.side_value_and_grad, side=trained)
        loss, grads = of(self.work.loss)(params, batch, key)
        place = jax.lax.with_sharding_constraint
        alike = lambda leaf, like: None if leaf is None else place(leaf, like.sharding)
        hole = lambda leaf: leaf is None
        return loss, jax.tree.map(alike, grads, self._params, is_leaf=hole)

    @property
    def _under_any_mask(self) -> optax.GradientTransformationExtraArgs:
        """The chain under any mask: an update reads the one in the state."""
        tx = lambda like: self._tx(any_mask(self._params, like))

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            chain = optax.with_extra_args_support(tx(params))
            return chain.update(updates, state, params, **extra)

        init = lambda params: tx(params).init(params)
        return optax.GradientTransformationExtraArgs(init, update)

    def _tx(self, mask: Any) -> optax.GradientTransformation:
        options = self.options
        setup = Setup(
            learning_rate=warm_up_then_decay(options.learning_rate, options.steps),
            seed=options.seed,
            mask=mask,
            params=self._params,
            stacked=self.work.stacked,
            options=options.set,
        )
        return RECIPES[options.recipe].build(setup)


def accumulated(gradient: Callable, count: int) -> Callable:
    """Loss and gradient as means over microbatches, added up in at least float32.

    Each takes every `count`-th example, so that none leaves its device.
    """
    if count == 1:
        return gradient
    wide = lambda x: jnp.promote_types(x.dtype, jnp.float32)

    def over(params: Any, batch: Any, key: jax.Array) -> Any:
        split = lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)
        parts = jax.tree.map(split, batch), jax.random.split(key, count)
        one = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient, params, *one)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            found = gradient(params, *part)
            return jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, found), None

        start = jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x)), shapes)
        total, _ = jax.lax.scan(add, start, parts)
        mean = lambda t, x: (t / count).astype(x.dtype)
        return jax.tree.map(mean, total, shapes)

    return over
