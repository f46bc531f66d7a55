# A disk (vda) and a drive (sda) that are written to all the time; the host puts a new image on top of each meanwhile.
for disk in vda sda; do
    dd if=/dev/urandom of=/dev/$disk bs=64k count=32 conv=fsync 2>/dev/null || fail "the first write to $disk"
done
while [ ! -e /tmp/enough ]; do
    for disk in vda sda; do
        dd if=/dev/urandom of=/tmp/piece bs=64k count=8 2>/dev/null
        dd if=/tmp/piece of=/dev/$disk bs=16k seek=256 oflag=direct 2>/dev/null || fail "write to $disk"
        dd if=/dev/$disk of=/tmp/back bs=16k skip=256 count=32 iflag=direct 2>/dev/null || fail "read of $disk"
        cmp /tmp/piece /tmp/back || fail "$disk read what was not written"
    done
    echo 'GUEST: round'
done &
load=$!
echo "before $(dd if=/dev/vda bs=64k count=32 2>/dev/null | md5sum) $(dd if=/dev/sda bs=64k count=32 2>/dev/null | md5sum)"
wait_until 60 grep -q snapshots /dev/vdb || fail 'the host took no snapshots'
# Half of it is in the image below, half in the new one.
for disk in vda sda; do
    dd if=/dev/urandom of=/dev/$disk bs=64k count=16 conv=fsync,notrunc 2>/dev/null || fail "the write to $disk after the snapshot"
done
touch /tmp/enough
wait $load || exit 1
sync
echo 3 >/proc/sys/vm/drop_caches
echo "after $(sum /dev/vda) $(sum /dev/sda)"
