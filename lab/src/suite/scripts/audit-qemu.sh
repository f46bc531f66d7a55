# Two QEMUs, one after the other, from the image that treaty's guest left.
. "$T/guest.sh"
kernel=$3
libraries=$LAB_PEERS/usr/lib/x86_64-linux-gnu
share=$LAB_PEERS/usr/share

# machine NAME OPTIONS...: starts QEMU, waits for its guest's load, looks at it, and ends it.
machine() {
    name=$1 tap=$2
    shift 2
    "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$LAB_PEERS/usr/bin/qemu-system-x86_64" \
        -L "$share/qemu" -L "$share/seabios" -nodefaults -name "$name" -M pc,accel=kvm -cpu host -m 256 -display none \
        -kernel "$kernel" -initrd "$W/initrd" -append "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests=1 \
        random.trust_cpu=on tsc=reliable no_timer_check initcall_blacklist=cmos_init" -serial "file:$W/$name.log" \
        -qmp "unix:$W/$name.qmp,server=on,wait=off" -netdev "tap,id=n0,ifname=$tap,script=no,downscript=no" "$@" \
        >"$T/$name.err" 2>&1 </dev/null &
    qemu=$!
    host_tap "$tap" 10.7.0.1/24
    loaded "$W/$name.log" 60
    "$LAB_TREATY" audit --pid $qemu --seconds 2 --json --html "$T/$name.html" >"$T/$name.json" || fail "audit of $name"
    "$LAB_TREATY" audit --pid $qemu --seconds 0.2
    kill $qemu
    wait $qemu
}

machine emulated tt0 -drive "file=$W/disk,format=qcow2,if=ide,id=hd" -device e1000,netdev=n0,romfile=
answers "$T/emulated.json" emulated-disk-hot emulated-net-hot
grep -q 'about [0-9]* exits/s' "$T/emulated.json" || fail 'no word of what moving the disk saves'
silent "$T/emulated.json" virtio
machine virtio tt1 -drive "file=$W/disk,format=qcow2,if=virtio,id=vd" -device virtio-net-pci,netdev=n0,romfile=
answers "$T/virtio.json" virtio-good
silent "$T/virtio.json" emulated-disk emulated-net
