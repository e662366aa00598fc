"""Private ground floor: Optax's types, argument checks, leaf paths. No technique."""
