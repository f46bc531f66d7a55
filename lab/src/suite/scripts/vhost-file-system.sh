[ ! -e /sys/bus/virtio/drivers/virtio_rng/virtio* ] ||
    want 'bytes of entropy' "$(dd if=/dev/hwrng bs=64 count=16 2>/dev/null | wc -c)" 1024
for disk in $(disks); do
    echo "GUEST: $disk has features $(cat /sys/block/$disk/device/features), queues $(ls /sys/block/$disk/mq | wc -l)"
    fio --name=$disk --filename=/dev/$disk --thread --numjobs=$(nproc) --size=12M --offset_increment=12M \
        --rw=randwrite --bsrange=512-64k --blockalign=512 --ioengine=libaio --iodepth=16 --direct=1 \
        --verify=crc32c --verify_fatal=1 --group_reporting --output-format=terse >/tmp/fio || fail "fio on $disk: $(cat /tmp/fio)"
    mkfs.ext4 -q /dev/$disk || fail mkfs
    mount -t ext4 /dev/$disk /mnt || fail 'the first mount'
    for at in 1 2 3 4; do
        dd if=/dev/urandom of=/mnt/$at bs=1M count=4 2>/dev/null &
    done
    wait
    before=$(cat /mnt/? | md5sum)
    umount /mnt || fail umount
    e2fsck -fn /dev/$disk >/dev/null || fail 'the file system is damaged'
    echo 3 >/proc/sys/vm/drop_caches
    mount -t ext4 /dev/$disk /mnt || fail 'the second mount'
    want "sum on $disk" "$(cat /mnt/? | md5sum)" "$before"
    umount /mnt
done
