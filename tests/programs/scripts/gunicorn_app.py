"""A WSGI application that counts in memory that the workers share, behind an array that they got by fork."""

import multiprocessing

preloaded = bytearray(range(256)) * (1 << 18)
count = multiprocessing.Value("q", 0)


def app(environ, start_response):
    with count:
        count.value += 1
        answer = str(count.value) if preloaded[1 << 20] == 0 else "wrong"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer.encode()]
