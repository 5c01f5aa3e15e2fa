from pyspark.sql import SparkSession


def begin():
    global frame, numbers
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    session = builder.config("spark.driver.memory", "700m").getOrCreate()
    frame = session.range(10000).cache()
    numbers = session.sparkContext.parallelize(range(100), 2).map(lambda x: x + 1)
    ask(0)


def ask(count):
    assert frame.count() == 10000
    assert numbers.sum() == 5050
