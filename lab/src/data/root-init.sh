#!/bin/busybox sh
# The first program on a root file system of a disk.
/bin/busybox --install -s /bin
export PATH=/bin

finish() {
    echo "GUEST: exit $1"
    poweroff -f
    sleep 60
}

fail() {
    echo "GUEST: failed: $*"
    finish 1
}

mount -t proc proc /proc
grep -q '^/dev/vda / ext4 rw' /proc/mounts || fail "the root is $(grep ' / ' /proc/mounts)"
cd /
md5sum -c data.sum >/dev/null || fail 'the data is not what it was'
# Over what the base has, and beside it.
dd if=/dev/urandom of=/data bs=64k seek=16 count=32 conv=notrunc 2>/dev/null || fail 'write over the data'
dd if=/dev/urandom of=/more bs=64k count=64 2>/dev/null || fail 'write'
sync
# From the disk, and with no page of a program given up: see vhost-clone.sh.
for file in data more; do
    [ "$(dd if=$file bs=64k iflag=direct 2>/dev/null | md5sum)" = "$(cat $file | md5sum)" ] ||
        fail "what was written to $file is not there"
done
rm more
mount -o remount,ro / || fail 'remount'
echo 'GUEST: the root is sound'
finish 0
