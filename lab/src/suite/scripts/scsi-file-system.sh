# A file system on one target, written by several programs at once, and a disc read whole.
wait_until 20 [ -b /dev/sda ] || { dmesg | tail -n 40; fail 'no disk'; }
want driver "$(basename "$(readlink -f /sys/block/sda/device/../../../driver)")" sym53c8xx
want 'serial number' "$(sg_vpd -p sn /dev/sda | sed -n 's/.*number: *//p')" TREATY-8
mkfs.ext4 -q -F /dev/sda || fail mkfs
mount -t ext4 /dev/sda /mnt || fail mount
for part in 1 2 3 4; do
    head -c 5m /dev/urandom >/mnt/part$part &
done
wait
before=$(cat /mnt/part? | md5sum)
umount /mnt
e2fsck -fn /dev/sda >/dev/null || fail e2fsck
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 -o discard /dev/sda /mnt || fail 'mount again'
for part in 1 2 3 4; do
    cat /mnt/part$part >/dev/null &
done
wait
want 'sum of the files' "$(cat /mnt/part? | md5sum)" "$before"
rm /mnt/part?
umount /mnt
e2fsck -fn /dev/sda >/dev/null || fail 'e2fsck after discard'
wait_until 20 [ -b /dev/sr0 ] || fail 'no disc'
depth=$(cat /sys/block/sda/device/queue_depth)
[ "$depth" -gt 1 ] || fail "no tagged queuing: the depth is $depth"
echo "GUEST: queue depth $depth"
read=$(dd if=/dev/sr0 bs=2048 count=2560 2>/dev/null | md5sum)
want 'sum of the disc' "${read%% *}" "$(dd if=/dev/sr0 bs=2048 skip=2560 2>/dev/null | tr -d '\0')"
want 'size of the disc' "$(cat /sys/block/sr0/size)" 10244
dd if=/dev/zero of=/dev/sr0 count=1 2>/dev/null && fail 'the disc was written'
dmesg | grep -i 'sym0.*\(error\|failed\|abort\|timed\|unexpected\)' && fail 'the driver complained'
echo checked
