# passt without a network to copy calls the guest 169.254.2.1 and itself, which is the host's loopback, 169.254.2.2.
ip addr add 169.254.2.1/16 dev eth0
ip link set eth0 up
mount -t tmpfs -o size=100m tmp /tmp
web=http://169.254.2.2:8000
wait_until 30 wget -q -O /tmp/sum $web/sum || fail 'no web server'
wget -q -O /tmp/large $web/large || fail download
want 'sum of what came through passt' "$(sum /tmp/large)" "$(cat /tmp/sum)"
nc 169.254.2.2 5000 </tmp/large || fail upload

# The disks' daemon is killed whenever they are idle: it keeps no in-flight log.
for disk in vda vdb; do
    mkfs.ext4 -q /dev/$disk || fail "mkfs on $disk"
    mkdir -p /mnt/$disk
done
for round in 1 2; do
    for disk in vda vdb; do
        mount -t ext4 /dev/$disk /mnt/$disk || fail "mount of $disk, round $round"
        dd if=/dev/urandom of=/mnt/$disk/$round bs=1M count=8 2>/dev/null || fail "write to $disk"
        sum /mnt/$disk/$round >/mnt/$disk/$round.sum
        umount /mnt/$disk || fail "umount of $disk"
    done
    echo "GUEST: idle $round"
    wait_until 60 wget -q -O /tmp/go $web/restarted$round || fail "round $round is not over"
    echo 3 >/proc/sys/vm/drop_caches
done
for disk in vda vdb; do
    e2fsck -fn /dev/$disk || fail "the file system on $disk is damaged"
    mount -t ext4 /dev/$disk /mnt/$disk || fail "the last mount of $disk"
    for file in /mnt/$disk/*.sum; do
        [ "$(sum "${file%.sum}")" = "$(cat "$file")" ] || fail "$disk: ${file%.sum} has changed"
    done
    umount /mnt/$disk
done

mkdir /mnt/share
mount -t virtiofs share /mnt/share || fail 'mount of the folder'
want 'sum of the file in the folder' "$(sum /mnt/share/large)" "$(cat /tmp/sum)"
mkdir /mnt/share/new || fail 'mkdir in the folder'
cp /tmp/large /mnt/share/new/copy || fail 'write to the folder'
umount /mnt/share
echo 'peers done'
