import os

from celery import Celery

broker = f"redis://127.0.0.1:{os.environ['PORT']}/0"
app = Celery("program", broker=broker, backend=broker)
app.conf.worker_hijack_root_logger = False


@app.task(name="add")
def add(x, y):
    return x + y


if __name__ == "__main__":
    import redis

    assert add.delay(2, 3).get(timeout=60) == 5
    print(redis.Redis(port=int(os.environ["PORT"])).incr("asked"))
