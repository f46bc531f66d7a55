# Takes the driver away from a disk 50 times while two readers are busy with it, and gives it back.
name=$(basename "$(readlink -f /sys/block/vda/device)")
before=$(sum /dev/vda)
round=0
while [ $round -lt 50 ]; do
    dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null &
    dd if=/dev/vda of=/dev/null bs=4k skip=512 2>/dev/null &
    usleep $((round * 400))
    echo "$name" >/sys/bus/virtio/drivers/virtio_blk/unbind || fail "unbind in round $round"
    wait
    echo "$name" >/sys/bus/virtio/drivers/virtio_blk/bind || fail "bind in round $round"
    wait_until 10 test -b /dev/vda || fail "no disk in round $round"
    round=$((round + 1))
done
want 'sum after 50 rounds' "$(sum /dev/vda)" "$before"
echo 'rounds done'
