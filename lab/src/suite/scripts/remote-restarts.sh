mkfs.ext4 -q /dev/vda || fail mkfs
mount -t ext4 /dev/vda /mnt || fail 'the first mount'
echo 'GUEST: begin'
read -r start _ </proc/uptime
now=$start
count=0
# A round writes, waits for the disk, and notes the sum; it is for 6 s and at most 40 MiB.
while [ "$((${now%.*} - ${start%.*}))" -lt 6 ] || [ $count -lt 5 ]; do
    count=$((count + 1))
    file=/mnt/$((count % 40))
    dd if=/dev/urandom of=$file bs=64k count=16 conv=fsync 2>/dev/null || fail "write $count"
    sum $file >$file.sum
    read -r now _ </proc/uptime
done
echo 'GUEST: end'
echo "GUEST: $count rounds"
umount /mnt || fail umount
e2fsck -fn /dev/vda || fail 'the file system is damaged'
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /mnt || fail 'the second mount'
for file in /mnt/*.sum; do
    [ "$(sum "${file%.sum}")" = "$(cat "$file")" ] || fail "${file%.sum} has changed"
done
umount /mnt
want 'bytes of entropy' "$(dd if=/dev/hwrng bs=64 count=16 2>/dev/null | wc -c)" 1024
