/* A disk with one bad sector, for LD_PRELOAD: of the file with inode BAD_INODE, the 4096 bytes at BAD_AT cannot be read.
   As the kernel does it, a read that begins in front of the sector is short, and one that begins in it fails with EIO.
   Pages that a process maps are not covered. Used by test_bad_sector.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SECTOR = 4096 };

/* How many of `wanted` bytes at `offset` can be read; -1: none, the first of them is bad. */
static ssize_t readable(int fd, size_t wanted, off_t offset)
{
    const char *inode = getenv("BAD_INODE"), *at = getenv("BAD_AT");
    struct stat status;
    if (!inode || !at || fstat(fd, &status) || status.st_ino != strtoull(inode, NULL, 10))
        return wanted;
    off_t bad = strtoll(at, NULL, 10);
    if (offset >= bad + SECTOR || offset + (off_t)wanted <= bad)
        return wanted;
    if (offset < bad)
        return bad - offset;
    errno = EIO;
    return -1;
}

ssize_t pread(int fd, void *buffer, size_t count, off_t offset)
{
    static ssize_t (*real)(int, void *, size_t, off_t);
    if (!real)
        real = dlsym(RTLD_NEXT, "pread");
    ssize_t most = readable(fd, count, offset);
    return most < 0 ? -1 : real(fd, buffer, most, offset);
}

ssize_t pread64(int fd, void *buffer, size_t count, off_t offset)
{
    return pread(fd, buffer, count, offset);
}

ssize_t read(int fd, void *buffer, size_t count)
{
    static ssize_t (*real)(int, void *, size_t);
    if (!real)
        real = dlsym(RTLD_NEXT, "read");
    int before = errno;
    off_t offset = lseek(fd, 0, SEEK_CUR);
    errno = before;
    ssize_t most = offset < 0 ? (ssize_t)count : readable(fd, count, offset);
    return most < 0 ? -1 : real(fd, buffer, most);
}

ssize_t preadv(int fd, const struct iovec *parts, int count, off_t offset)
{
    static ssize_t (*real)(int, const struct iovec *, int, off_t);
    if (!real)
        real = dlsym(RTLD_NEXT, "preadv");
    size_t wanted = 0;
    for (int i = 0; i < count; i++)
        wanted += parts[i].iov_len;
    ssize_t most = readable(fd, wanted, offset);
    if (most < 0)
        return -1;
    if ((size_t)most == wanted)
        return real(fd, parts, count, offset);
    return pread(fd, parts[0].iov_base, parts[0].iov_len < (size_t)most ? parts[0].iov_len : (size_t)most, offset);
}

ssize_t preadv64(int fd, const struct iovec *parts, int count, off_t offset)
{
    return preadv(fd, parts, count, offset);
}

ssize_t preadv2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    (void)flags;
    return preadv(fd, parts, count, offset);
}
