# Leaves for the root file system on the disk.
mount -t ext4 /dev/vda /mnt || fail 'mount the root'
cmp /bin/busybox /mnt/bin/busybox || fail "the root has another busybox"
mount --move /dev /mnt/dev
umount /sys /proc
exec switch_root /mnt /bin/init
