"""Private ground floor: leaf paths, argument checks, what stands below a technique."""
