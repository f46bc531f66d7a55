# Both disks at once, each with a file system; what was acknowledged is noted in memory.
mkdir -p /tmp/vda /tmp/vdb /mnt/vda /mnt/vdb
for disk in vda vdb; do
    mkfs.ext4 -q /dev/$disk || fail "mkfs $disk"
    mount -t ext4 /dev/$disk /mnt/$disk || fail "the first mount of $disk"
done

# A round writes, waits for the disk, and notes the sum; it is for 8 s and at most 32 MiB.
work() {
    read -r start _ </proc/uptime
    now=$start
    count=0
    while [ "$((${now%.*} - ${start%.*}))" -lt 8 ] || [ $count -lt 5 ]; do
        count=$((count + 1))
        name=$((count % 64))
        rm -f /tmp/$1/$name
        dd if=/dev/urandom of=/tmp/$1.new bs=64k count=8 2>/dev/null
        dd if=/tmp/$1.new of=/mnt/$1/$name bs=16k conv=fsync 2>/dev/null || return 1
        sum /tmp/$1.new >/tmp/$1/$name
        read -r now _ </proc/uptime
    done
    echo "GUEST: $1: $count rounds"
}

echo 'GUEST: begin'
work vda &
first=$!
work vdb || fail 'write to vdb'
wait $first || fail 'write to vda'
echo 'GUEST: end'
echo 3 >/proc/sys/vm/drop_caches
for disk in vda vdb; do
    [ "$(ls /tmp/$disk | wc -l)" -ge 5 ] || fail "nothing was written to $disk"
    for note in /tmp/$disk/*; do
        [ "$(sum /mnt/$disk/"${note##*/}")" = "$(cat "$note")" ] || fail "$disk/${note##*/} has changed"
    done
    umount /mnt/$disk || fail "umount $disk"
    e2fsck -fn /dev/$disk || fail "the file system on $disk is damaged"
done
