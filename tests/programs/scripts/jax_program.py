import jax
import jax.numpy as jnp


def begin():
    global compiled, matrix
    compiled = jax.jit(lambda x: (x @ x.T).sum())
    matrix = jnp.ones((300, 300))
    ask(0)


def ask(count):
    assert float(compiled(matrix)) == 300**3
    assert float(jax.jit(lambda y: y * 3 + count)(jnp.float32(2))) == 6 + count  # compiled anew each time
