import tensorflow as tf


def begin():
    global model, x, y
    model = tf.keras.Sequential([tf.keras.layers.Dense(32, activation="relu"), tf.keras.layers.Dense(1)])
    model.compile("adam", "mse")
    x, y = tf.random.normal((256, 8)), tf.random.normal((256, 1))
    ask(0)


def ask(count):
    model.fit(x, y, epochs=1, verbose=0)
    assert model(x).shape == (256, 1)
