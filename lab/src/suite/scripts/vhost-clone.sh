# Leaves for the root file system on the disk.
mount -t ext4 /dev/vda /mnt || fail 'mount the root'
# The programs of the root are read while those of the initramfs still have their memory: QEMU without KVM does not see that a
# vhost-user disk puts other code where it has run some before, and runs what was there.
cmp /bin/busybox /mnt/bin/busybox || fail "the root has another busybox"
mount --move /dev /mnt/dev
umount /sys /proc
exec switch_root /mnt /bin/init
