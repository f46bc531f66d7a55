. ./judge.sh
line() { tr -d '\r' <"$CONSOLE" | grep "^$1 "; }
set -- $(line before)
[ $# = 5 ] || fail "the guest said '$*'"
half() { "$LAB_TREATY" img convert -f "$1" -O raw "$2" flat && head -c 2097152 flat | md5sum | cut -d' ' -f1; }
want 'what the disk had before' "$(half raw vda.raw)" "$2"
want 'what the drive had before' "$(half qcow2 sda.qcow2)" "$4"
set -- $(line after)
for disk in vda sda; do
    shift
    qemu_img convert -f qcow2 -O raw $disk.2 flat || fail 'qemu-img convert'
    want "sum of $disk afterwards" "$(sum flat)" "$1"
    for layer in 1 2; do
        qemu_img check -q -f qcow2 $disk.$layer || fail "qemu-img check $disk.$layer"
    done
    "$LAB_TREATY" img compare -f raw -F qcow2 flat $disk.2 || fail 'treaty img compare'
    want "the chain of $disk" "$(qemu_img info --backing-chain $disk.2 | grep -c '^image:')" 3
done
qemu_img check -q -f qcow2 sda.qcow2 || fail 'qemu-img check of the first image'
qemu_img info sda.qcow2 | grep -q 'lazy refcounts: true' || fail 'no lazy refcounts'
umount small
