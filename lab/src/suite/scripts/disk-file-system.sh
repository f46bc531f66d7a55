# The first boot makes a file system, writes and reboots; the second reads it by the checksum that the first left.
if e2fsck -n /dev/vda >/dev/null 2>&1; then
    mount -t ext4 /dev/vda /mnt || fail 'the second mount'
    want 'size' "$(wc -c </mnt/data)" 16777216
    want 'sum after the reboot' "$(sum /mnt/data)" "$(cat /mnt/sum)"
    rm /mnt/data
    umount /mnt || fail 'the second umount'
    e2fsck -fn /dev/vda || fail 'the file system is damaged'
    echo 'checked'
    finish 0
fi
mkfs.ext4 -q /dev/vda || fail mkfs
mount -t ext4 /dev/vda /mnt || fail 'the first mount'
dd if=/dev/urandom of=/mnt/data bs=1M count=16 2>/dev/null || fail write
sum /mnt/data >/mnt/sum
umount /mnt || fail 'the first umount'
sync
reboot -f
sleep 60
fail 'still here after a reboot'
