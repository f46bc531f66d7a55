# Two disks and two cards at work until the host sends a line: by then the machine has moved.
(read -r _ && : >/go) </dev/console &
for disk in vda vdb; do
    mkfs.ext4 -q /dev/$disk || fail mkfs $disk
    mkdir -p /mnt/$disk
    mount -t ext4 /dev/$disk /mnt/$disk || fail 'the first mount'
done
unshare -n sleep 6000 &
other=$!
there() { nsenter -t $other -n "$@"; }
sleep 1
ip link set eth1 netns $other || fail 'cannot move the second card'
ip addr add 10.9.0.1/24 dev eth0
ip link set eth0 up
there ip addr add 10.9.0.2/24 dev eth1 || fail 'cannot give the second card an address'
there ip link set eth1 up
wait_until 4 ping -c 1 -W 1 10.9.0.2 >/dev/null || fail 'no answer'
dd if=/dev/urandom of=/tmp/data bs=1M count=2 2>/dev/null
there httpd -p 5000 -h /tmp || fail 'no server'

# What a disk wrote into memory is only there: no processor has touched it, so it moves by the dirty log or not at all.
for disk in vda vdb; do
    dd if=/dev/urandom of=/mnt/$disk/cached bs=1M count=8 2>/dev/null || fail 'the large file'
    sum /mnt/$disk/cached >/tmp/$disk.sum
done
sync
cached() {
    while [ ! -e /go ]; do
        echo 3 >/proc/sys/vm/drop_caches
        cat /mnt/vda/cached /mnt/vdb/cached >/dev/null
        for at in 1 2 3; do
            for disk in vda vdb; do
                [ "$(sum /mnt/$disk/cached)" = "$(cat /tmp/$disk.sum)" ] || fail "what is cached of $disk has changed"
            done
        done
        echo 'GUEST: round'
    done
    : >/tmp/cached.done
}

# Writes a file and reads an older one from the disk itself.
direct_sum() {
    dd if=$1 bs=64k iflag=direct 2>/dev/null | md5sum | cut -d' ' -f1
}
work_on() {
    count=0
    while [ ! -e /go ] || [ $count -lt 8 ]; do
        count=$((count + 1))
        echo 'GUEST: round'
        file=/mnt/$1/$((count % 24))
        dd if=/dev/urandom of=$file bs=64k count=8 conv=fsync 2>/dev/null || fail "write $count to $1"
        sum $file >$file.sum
        older=/mnt/$1/$((count * 7 % 24))
        [ ! -e $older.sum ] || [ "$(direct_sum $older)" = "$(cat $older.sum)" ] || fail "$older has changed"
    done
    echo "GUEST: $count rounds on $1"
    : >/tmp/$1.done
}

fetch() {
    count=0
    while [ ! -e /go ] || [ $count -lt 4 ]; do
        count=$((count + 1))
        wget -q -T 60 -O /arrived http://10.9.0.2:5000/data || fail "fetch $count"
        [ "$(sum /arrived)" = "$(sum /tmp/data)" ] || fail "what was fetched has changed"
    done
    echo "GUEST: $count transfers"
    : >/tmp/net.done
}
cached &
work_on vda &
work_on vdb &
fetch
for job in cached vda vdb; do
    wait_until 100 [ -e /tmp/$job.done ] || fail "$job hangs"
done
want 'answers' "$(ping -c 10 -i 0.05 -s 1400 10.9.0.2 | grep -c 'bytes from')" 10
for disk in vda vdb; do
    umount /mnt/$disk || fail umount
    e2fsck -fn /dev/$disk || fail "the file system of $disk is damaged"
    echo 3 >/proc/sys/vm/drop_caches
    mount -t ext4 /dev/$disk /mnt/$disk || fail 'the second mount'
    for file in /mnt/$disk/*.sum; do
        [ "$(sum "${file%.sum}")" = "$(cat "$file")" ] || fail "${file%.sum} has changed"
    done
    umount /mnt/$disk
done
