from dask.distributed import Client, LocalCluster


def begin():
    global client
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit="500MB")
    client = Client(cluster)
    ask(0)


def ask(count):
    assert client.submit(pow, 2, 5, pure=False).result(timeout=60) == 32
    assert len(client.scheduler_info(n_workers=-1)["workers"]) == 2
