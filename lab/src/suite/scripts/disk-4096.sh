want 'block size' "$(cat /sys/block/vda/queue/logical_block_size)" 4096
mkfs.ext4 -q /dev/vda || fail mkfs
mount -t ext4 /dev/vda /mnt || fail mount
dd if=/dev/urandom of=/mnt/data bs=64k count=16 2>/dev/null || fail write
before=$(sum /mnt/data)
umount /mnt
mount -t ext4 /dev/vda /mnt || fail 'mount again'
want sum "$(sum /mnt/data)" "$before"
