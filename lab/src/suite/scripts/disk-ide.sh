# A file system on the disk of the first channel, and a disc read whole.
want driver "$(basename "$(readlink -f /sys/block/sda/device/../../../../driver)")" ata_piix
mkfs.ext4 -q -F /dev/sda || fail mkfs
mount -t ext4 /dev/sda /mnt || fail mount
head -c 20m /dev/urandom >/mnt/file
before=$(sum /mnt/file)
umount /mnt
e2fsck -fn /dev/sda >/dev/null || fail e2fsck
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 -o discard /dev/sda /mnt || fail 'mount again'
want 'sum of the file' "$(sum /mnt/file)" "$before"
rm /mnt/file
umount /mnt
e2fsck -fn /dev/sda >/dev/null || fail 'e2fsck after discard'
read=$(dd if=/dev/sr0 bs=2048 count=2560 2>/dev/null | md5sum)
want 'sum of the disc' "${read%% *}" "$(dd if=/dev/sr0 bs=2048 skip=2560 2>/dev/null | tr -d '\0')"
want 'size of the disc' "$(cat /sys/block/sr0/size)" 10244
dd if=/dev/zero of=/dev/sr0 count=1 2>/dev/null && fail 'the disc was written'
dmesg | grep -i 'ata[0-9].*\(exception\|error\|failed\)' && fail 'the driver complained'
echo checked
