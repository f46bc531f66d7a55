[ ! -e /sys/bus/virtio/drivers/virtio_rng/virtio1 ] ||
    want 'bytes of entropy' "$(dd if=/dev/hwrng bs=64 count=16 2>/dev/null | wc -c)" 1024
echo "GUEST: features $(cat /sys/bus/virtio/devices/virtio0/features), queues $(ls /sys/block/vda/mq | wc -l)"
mkfs.ext4 -q /dev/vda || fail mkfs
mount -t ext4 /dev/vda /mnt || fail 'the first mount'
for at in 1 2 3 4; do
    dd if=/dev/urandom of=/mnt/$at bs=1M count=4 2>/dev/null &
done
wait
before=$(cat /mnt/? | md5sum)
umount /mnt || fail umount
e2fsck -fn /dev/vda || fail 'the file system is damaged'
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /mnt || fail 'the second mount'
want 'sum' "$(cat /mnt/? | md5sum)" "$before"
umount /mnt
